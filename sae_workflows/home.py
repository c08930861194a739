"""The folder everything is kept in, and which experiment files belong to it."""

import hashlib
import json
import os
from pathlib import Path

from assets.grid import Outline, cell_key
from assets.study import Study
from sae_lib.artifacts import write_atomically
from sae_lib.errors import SaeError

PACKAGED = Path(__file__).parent / "experiments"

DAGSTER_YAML = """\
telemetry: {enabled: false}
nux: {enabled: false}
concurrency:
  runs: {max_concurrent_runs: 1}
run_monitoring:
  enabled: true
  free_slots_after_run_end_seconds: 30
retention:
  sensor: {purge_after_days: {skipped: 1, failure: 30, success: 30}}
"""


def sae_home() -> Path:
    """``SAE_HOME``, or ``.sae`` in the current folder."""
    return Path(os.environ.get("SAE_HOME") or ".sae").resolve()


def dagster_home(home: Path) -> Path:
    """Dagster's folder inside ``home``, with its settings; made when it is not there."""
    folder = home / "dagster"
    settings = folder / "dagster.yaml"
    if not settings.is_file():
        write_atomically(settings, DAGSTER_YAML)
    return folder


def memo_file(home: Path) -> Path:
    return home / "cache" / "fingerprints.json"


def adopt(home: Path, file: Path, name: str) -> None:
    """Remember that ``file`` is part of this home, so that the graph shows it."""
    if file.parent != PACKAGED:
        write_atomically(
            home / "experiments" / f"{name}.json", json.dumps({"file": str(file)}) + "\n"
        )


def experiment_files(home: Path) -> list[Path]:
    """Bundled experiment files, then the adopted ones that still exist."""
    adopted = []
    for record in sorted((home / "experiments").glob("*.json")):
        file = Path(json.loads(record.read_text("utf-8"))["file"])
        if file.is_file():
            adopted.append(file)
    return sorted(PACKAGED.glob("*.yaml")) + adopted


def outline_of(study: Study) -> Outline:
    return Outline(
        name=study.name,
        description=study.description,
        file=str(study.file),
        model=study.model_name,
        sites=study.sites,
        variants=tuple(variant.id for variant in study.variants),
        explains=bool(study.explain),
        applies=bool(study.apply),
        groups_layers=any(one.objective["kind"] == "layer_group" for one in study.variants),
        cells={
            cell_key(site, variant.id): study.reads(site, variant)
            for site, variant in study.cells()
        },
    )


def outlines(home: Path) -> tuple[list[Outline], dict[str, str]]:
    """Outlines of all experiments, and for files that cannot be read the reason.

    An outline is remembered by the content of the file and of the package's own code, so that
    the graph loads without the compute libraries when nothing changed.
    """
    cache = home / "cache" / "outlines.json"
    known = json.loads(cache.read_text("utf-8")) if cache.is_file() else {}
    code = _code_version()
    fresh: dict[str, dict[str, object]] = {}
    found: list[Outline] = []
    broken: dict[str, str] = {}
    for file in experiment_files(home):
        key = hashlib.sha256(file.read_bytes() + code + str(file).encode()).hexdigest()
        if key not in known:
            from sae_workflows.experiment import load_experiment

            try:
                study = load_experiment(file, memo=memo_file(home))
            except SaeError as error:
                broken[str(file)] = str(error)
                continue
            known[key] = outline_of(study)._asdict()
        fresh[key] = known[key]
        outline = Outline(**known[key])
        outline = outline._replace(sites=tuple(outline.sites), variants=tuple(outline.variants))
        if any(outline.name == other.name for other in found):
            broken[str(file)] = f"another experiment is called {outline.name!r} already."
            continue
        found.append(outline)
    text = json.dumps(fresh)
    if not cache.is_file() or cache.read_text("utf-8") != text:
        write_atomically(cache, text)
    return found, broken


def _code_version() -> bytes:
    """Changes whenever a source file that can change an outline does."""
    root = Path(__file__).parent.parent
    stamp = hashlib.sha256()
    for package in ("sae_lib", "assets", "sae_workflows"):
        for file in sorted((root / package).rglob("*.py")):
            status = file.stat()
            stamp.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return stamp.digest()
