"""What the documentation says is true of the code: commands, snippets, links, sentences."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import yaml

from sae_lib.apply import APPLICATIONS
from sae_lib.evaluate import METRICS
from sae_lib.explain import EXPLAINERS
from sae_lib.report.survey import declared_table, row_of
from sae_lib.saes import VARIANTS
from sae_lib.training.config import TrainConfig
from sae_lib.training.objectives import OBJECTIVES
from sae_lib.training.survey import ROWS
from sae_workflows.experiment import ExperimentFile, load_experiment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]

CONFIGS = [
    ExperimentFile,
    TrainConfig,
    *VARIANTS.values(),
    *OBJECTIVES.values(),
    *METRICS.values(),
    *EXPLAINERS.values(),
    *APPLICATIONS.values(),
]


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.__name__)
def test_every_field_says_what_it_means(config):
    body = ast.parse(inspect.getsource(config)).body[0].body
    for field, after in zip(body, [*body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign) and "ClassVar" not in ast.unparse(field.annotation):
            described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert described, f"{config.__name__}.{ast.unparse(field.target)} has no sentence"


@pytest.mark.parametrize("config", [c for c in CONFIGS if hasattr(c, "summary")], ids=repr)
def test_every_member_has_a_summary_and_a_source(config):
    assert config.summary
    if config not in OBJECTIVES.values():
        assert config.papers
        assert all(paper.url.startswith("https://") and paper.where for paper in config.papers)


def test_the_page_of_metrics_has_a_row_for_each():
    page = (ROOT / "docs" / "metrics.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \|", page, flags=re.MULTILINE)
    assert sorted(rows) == sorted(METRICS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_to_a_file_leads_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not target.startswith(("http:", "https:")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def test_the_experiment_in_the_readme_is_the_bundled_one():
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    shown = next(block for block in blocks if "name: world-demo" in block)
    bundled = (ROOT / "sae_workflows" / "experiments" / "world-demo.yaml").read_text()
    shown, bundled = yaml.safe_load(shown), yaml.safe_load(bundled)
    bundled.pop("description", None)
    shown.pop("description", None)
    assert shown == bundled


@pytest.mark.slow
def test_the_python_in_the_readme_runs_and_prints_what_it_says():
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    found = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False
    )
    assert found.returncode == 0, found.stderr
    numbers = re.fullmatch(
        r"unexplained ([\d.]+), mean cosine to the truth ([\d.]+)\n", found.stdout
    )
    assert numbers
    assert float(numbers[1]) < 0.25
    assert float(numbers[2]) > 0.8


VARIANTS_PAGE = (ROOT / "docs" / "variants.md").read_text()


def test_the_table_of_variants_is_what_the_registry_says():
    shown = re.search(r"<!-- declared -->\n(.*?)\n<!-- end -->", VARIANTS_PAGE, re.DOTALL)
    assert shown
    assert shown[1] == declared_table(), "print it again: sae variants --markdown"


def _sections():
    """Text under each heading of the lowest level, by heading."""
    parts = re.split(r"^### (.+)$", VARIANTS_PAGE, flags=re.MULTILINE)
    texts = (re.split(r"^## ", text, flags=re.MULTILINE)[0] for text in parts[2::2])
    return dict(zip(parts[1::2], texts, strict=True))


def test_every_row_of_the_survey_has_its_section_and_no_other_has():
    assert sorted(_sections()) == sorted(row.name for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_section_of_a_variant_names_every_dial(row):
    text = _sections()[row.name]
    dials = set(VARIANTS[row.kind].dials)
    if row.objective not in ("plain", VARIANTS[row.kind].needs_objective):
        dials |= OBJECTIVES[row.objective].model_fields.keys() - {"kind", "seed"}
    missing = {dial for dial in dials if f"`{dial}`" not in text}
    assert not missing


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_the_entries_shown_for_a_variant_are_of_it(row, tmp_path: Path):
    shown = re.findall(r"```yaml\n(.*?)```", _sections()[row.name], re.DOTALL)
    assert len(shown) == 1
    sites = ["resid_post.1", "resid_post.2"]
    places = [*sites, "resid_mid.2>mlp_out.2", "+".join(sites)]
    asked = {
        "name": "shown",
        "model": {"id": "world"},
        "corpus": {"id": "world", "tokens": 200_000, "context": 128},
        "sites": places,
        "saes": yaml.safe_load(shown[0]),
    }
    file = tmp_path / "shown.yaml"
    file.write_text(yaml.safe_dump(asked))
    study = load_experiment(file)
    assert study.variants
    for one in study.variants:
        kind, objective = one.sae["kind"], one.objective["kind"]
        family = re.sub(r"-s\d+$", "", one.id)
        assert row_of(family, kind, objective, json.dumps(dict(one.sae))) == row
        assert one.places


def test_every_target_the_readme_names_is_in_the_makefile():
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"`?make ([a-z-]+)", (ROOT / "README.md").read_text())):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_no_placeholder_is_left_in_the_documentation():
    for page in PAGES:
        assert "@@" not in page.read_text(), page


NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_carry_no_output(path: Path):
    notebook = nbformat.read(path, as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert cells
    assert all(not cell.outputs and cell.execution_count is None for cell in cells)
