"""The graph: it loads, it is the one the README draws, and its pieces hold together."""

import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import dagster as dg
import pytest

from assets.grid import Outline, cell_key, rectangle
from assets.progress import progress, training_progress, watched_by
from sae_workflows.definitions import build
from sae_workflows.home import adopt, experiment_files, outlines

ROOT = Path(__file__).parents[2]

SITES, VARIANTS = ("resid_post.0", "resid_post.1"), ("x", "y", "z")

OUTLINE = Outline(
    name="a-study",
    description="",
    file="a.yaml",
    model="tiny",
    sites=SITES,
    variants=VARIANTS,
    explains=True,
    applies=True,
    groups_layers=False,
    cells={cell_key(site, variant): (site,) for site in SITES for variant in VARIANTS},
)


def test_definitions_of_several_experiments_load_together(tmp_path: Path):
    other = OUTLINE._replace(name="other", explains=False, applies=False)
    definitions = build([OUTLINE, other], tmp_path)
    dg.Definitions.validate_loadable(definitions)
    keys = {key.to_user_string() for key in definitions.resolve_asset_graph().get_all_asset_keys()}
    assert "a-study/explanations" in keys
    assert "other/explanations" not in keys
    assert "models/tiny" in keys


def test_a_home_without_experiments_still_loads(tmp_path: Path):
    dg.Definitions.validate_loadable(build([], tmp_path))


def test_assets_are_grouped_by_experiment_and_in_it_by_stage(tmp_path: Path):
    graph = build([OUTLINE], tmp_path).resolve_asset_graph()
    groups = {key.path[-1]: graph.get(key).group_name for key in graph.get_all_asset_keys()}
    assert groups["tokens"] == groups["activations"] == "a_study/data"
    assert groups["saes"] == "a_study/training"
    assert groups["metrics"] == groups["explanations"] == "a_study/evaluation"
    assert groups["database"] == "results"


def test_the_graph_in_the_readme_is_the_real_one(tmp_path: Path):
    found, broken = outlines(tmp_path)
    assert not broken
    demo = [outline for outline in found if outline.name == "world-demo"]
    graph = build(demo, tmp_path).resolve_asset_graph()
    real = set()
    for key in graph.get_all_asset_keys():
        parents = sorted(parent.to_user_string() for parent in graph.get(key).parent_keys)
        if parents:
            real.add(f"{key.to_user_string()} <- {', '.join(parents)}")
    readme = (ROOT / "README.md").read_text()
    assert {line for line in readme.splitlines() if " <- " in line} == real


def test_a_rectangle_holds_its_cells_and_is_no_larger_than_it_must_be():
    first, last = rectangle(OUTLINE, [("resid_post.0", "z"), ("resid_post.1", "y")])
    assert first == cell_key("resid_post.0", "y") == "resid_post.0|y"
    assert last == cell_key("resid_post.1", "z")


def test_adopted_experiments_are_part_of_the_graph_until_their_file_goes(tmp_path: Path):
    file = tmp_path / "mine.yaml"
    demo = (ROOT / "sae_workflows" / "experiments" / "world-demo.yaml").read_text()
    file.write_text(demo.replace("name: world-demo", "name: mine"))
    home = tmp_path / "home"
    adopt(home, file, "mine")
    assert file in experiment_files(home)
    assert "mine" in {outline.name for outline in outlines(home)[0]}
    file.unlink()
    assert "mine" not in {outline.name for outline in outlines(home)[0]}


def test_a_broken_experiment_is_left_out_and_named(tmp_path: Path):
    file = tmp_path / "broken.yaml"
    file.write_text("name: broken\n")
    adopt(tmp_path, file, "broken")
    found, broken = outlines(tmp_path)
    assert found
    assert "this key is missing" in broken[str(file)]


@pytest.mark.slow
def test_the_workspace_validates(tmp_path: Path):
    found = subprocess.run(
        [
            Path(sys.executable).parent / "dagster",
            "definitions",
            "validate",
            "-w",
            "workspace.yaml",
        ],
        cwd=ROOT,
        env={**os.environ, "SAE_HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr


def test_progress_goes_to_who_watches_and_else_to_the_log():
    said: list[str] = []
    update = progress("work", said.append, unit="steps")
    update(5, 10)
    update(10, 10)
    assert len(said) == 1
    assert "10 of 10 steps" in said[0]

    class Watcher:
        def __init__(self) -> None:
            self.seen: list[tuple[str, int, int]] = []

        def task(self, description: str, unit: str):
            return lambda done, total: self.seen.append((description, done, total))

        def training(self, description: str):
            return lambda name, step, steps, numbers, problem: self.seen.append((name, step, steps))

    watcher = Watcher()
    with watched_by(watcher):
        progress("work", said.append)(1, 2)
        training_progress("SAEs", said.append)("one", 3, 4, {"fvu": 0.1}, None)
    assert watcher.seen == [("work", 1, 2), ("one", 3, 4)]
    assert len(said) == 1


def test_the_definitions_object_of_the_code_location_resolves(monkeypatch, tmp_path: Path):
    monkeypatch.setenv("SAE_HOME", str(tmp_path))
    from sae_workflows import definitions

    with warnings.catch_warnings():
        warnings.simplefilter("error", dg.BetaWarning)
        found = definitions.build(outlines(tmp_path)[0], tmp_path)
    checks = {str(key.name) for key in found.resolve_asset_graph().asset_check_keys}
    assert {"loss_is_finite", "few_dead_latents", "values_are_possible"} <= checks
    assert json.loads((tmp_path / "cache" / "outlines.json").read_text())
