"""Imports run one way, and the checks of it can fail."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def loads(module: str, code: str) -> bool:
    """Whether running ``code`` in a fresh interpreter imports ``module``."""
    script = f"import sys\n{code}\nsys.exit({module!r} in sys.modules)"
    return subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT).returncode == 1


LIBRARY = (
    "import sae_lib.saes, sae_lib.training.loop, sae_lib.evaluate, sae_lib.explain, sae_lib.apply"
)


def test_the_library_never_loads_the_orchestrator():
    assert not loads("dagster", LIBRARY)


def test_the_check_above_can_fail():
    assert loads("dagster", "import sae_workflows.definitions")


def test_the_code_location_loads_without_torch():
    assert not loads("torch", "import sae_workflows.definitions")


def test_the_warehouse_and_the_report_need_no_torch():
    assert not loads("torch", "import sae_lib.warehouse.query, sae_lib.report.study")


@pytest.mark.slow
def test_import_contracts_hold():
    found = subprocess.run(
        [Path(sys.executable).parent / "lint-imports"], capture_output=True, text=True, cwd=ROOT
    )
    assert found.returncode == 0, found.stdout


@pytest.mark.slow
def test_an_import_against_the_direction_is_caught(tmp_path: Path):
    for package in ("sae_lib", "assets", "sae_workflows"):
        for file in (ROOT / package).rglob("*.py"):
            target = tmp_path / file.relative_to(ROOT)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(file.read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    with (tmp_path / "sae_lib" / "saes" / "base.py").open("a") as file:
        file.write("\nimport sae_lib.training.loop\n")
    found = subprocess.run(
        [Path(sys.executable).parent / "lint-imports", "--no-cache"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "PATH": ""},
    )
    assert found.returncode == 1
    assert "sae_lib.saes.base -> sae_lib.training.loop" in found.stdout
