"""Whole runs on a tiny model: what exists is found, what is missing is built, nothing is lost."""

import json
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import polars as pl
import pytest
import torch
from safetensors.torch import load_file

from sae_lib.artifacts import ArtifactStore
from sae_lib.warehouse.query import query
from sae_workflows.definitions import build
from sae_workflows.experiment import load_experiment
from sae_workflows.headless import run_study
from sae_workflows.home import memo_file, outline_of

SAE = Path(sys.executable).parent / "sae"


def run(file: Path, home: Path) -> dict[str, tuple[int, int]]:
    """Built and found by stage."""
    results = run_study(load_experiment(file, memo=memo_file(home)), home)
    return {result.stage: (result.built, result.found) for result in results}


def weights(home: Path) -> dict[str, bytes]:
    """Bytes of every trained SAE, by its name."""
    return {
        manifest["name"]: (Path(manifest["path"]) / "sae.safetensors").read_bytes()
        for manifest in ArtifactStore(home).manifests("sae")
    }


def numbers(home: Path) -> list[tuple[object, ...]]:
    """Every metric value, without the time it was computed."""
    frame = query(
        home / "results.duckdb",
        "select experiment, site, variant, name, definition, params, value, stderr, n "
        "from metrics order by all",
    )
    return frame.rows()


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, text: Path):
    """One undisturbed run: its file and its home."""
    folder = tmp_path_factory.mktemp("finished")
    file = folder / "study.yaml"
    file.write_text(STUDY.format(model=tiny_model, text=text, ks="[2, 4]"))
    return file, folder / "home", run(file, folder / "home")


STUDY = """\
name: study
model: {{id: {model}}}
corpus: {{id: {text}, tokens: 8000, context: 32, eval_tokens: 1500}}
sites: [resid_post.0, resid_post.1]
saes: [{{kind: topk, d_sae: 32, k: {ks}}}, {{kind: standard, d_sae: 32, l1: 0.01}}]
train: {{batch_tokens: 512, tokens: 12288, checkpoint_every_seconds: 0}}
explain: [max_act, vocab_proj]
apply: [selection]
"""


def test_a_run_builds_every_stage_and_its_results_are_rows(finished):
    _, home, built = finished
    assert built["tokens"] == (1, 0)
    assert built["activations"] == (2, 0)
    assert built["saes"] == built["metrics"] == built["explanations"] == (6, 0)
    assert built["applications"] == (6, 0)
    database = home / "results.duckdb"
    leaders = query(database, "select * from leaderboard")
    assert leaders.height == 6
    for column in ("l0", "fvu", "delta_lm_loss"):
        assert leaders[column].null_count() == 0, column
    assert leaders["variant"].n_unique() == 3
    topk = leaders.filter(pl.col("variant") == "topk-w32-k2-s0")
    assert topk["l0"].to_list() == pytest.approx([2.0, 2.0], abs=0.01)
    for table in ("curves", "explanations", "examples", "latents", "applications", "selections"):
        cells = query(database, f"select distinct site, variant from {table} where variant <> ''")
        assert cells.height == 6, table
    assert query(database, "select value from metrics where name = 'boundary_loss'").height > 0
    page = (home / "reports" / "study.html").read_text()
    assert "topk-w32-k2-s0" in page


def test_a_second_run_does_nothing(finished):
    file, home, _ = finished
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*.parquet")}
    again = run(file, home)
    assert all(built == 0 for built, _ in again.values()), again
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*.parquet")} == before


def test_one_more_sparsity_trains_only_that_one(
    finished, tmp_path: Path, tiny_model: Path, text: Path
):
    _, home, _ = finished
    before = weights(home)
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(model=tiny_model, text=text, ks="[2, 4, 8]"))
    built = run(file, home)
    assert built["tokens"] == (0, 1)
    assert built["activations"] == (0, 2)
    assert built["saes"] == built["metrics"] == built["explanations"] == (2, 6)
    after = weights(home)
    assert {name: after[name] for name in before} == before
    assert set(after) - set(before) == {
        "resid_post.0-topk-w32-k8-s0",
        "resid_post.1-topk-w32-k8-s0",
    }
    assert query(home / "results.duckdb", "select * from leaderboard").height == 8


def test_a_study_in_another_home_gives_the_same_numbers(finished, tmp_path: Path):
    file, home, _ = finished
    run(file, tmp_path / "home")
    mine = weights(tmp_path / "home")
    assert mine == {name: weights(home)[name] for name in mine}
    theirs = [row for row in numbers(home) if "k8" not in str(row)]
    shared = [row for row in numbers(tmp_path / "home") if row[2] != ""]
    assert shared == [row for row in theirs if row[2] != ""]


@pytest.mark.slow
def test_a_killed_run_finishes_with_the_same_numbers(finished, tmp_path: Path):
    file, home, _ = finished
    # sums over a batch depend on how many threads share them
    env = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    other = tmp_path / "home"
    # the moments: while the text is read, while SAEs are trained, while they are measured
    for pattern in ("tokens/.*.partial", "sae/.*.partial/checkpoint/*", "metrics/*"):
        process = subprocess.Popen(
            [SAE, "run", file, "--home", other],
            env=env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if any((other / "artifacts").glob(pattern)):
                process.send_signal(signal.SIGKILL)
                break
            time.sleep(0.005)
        assert process.wait(120) == -signal.SIGKILL, f"it ended before {pattern} appeared"
    run(file, other)
    mine = weights(other)
    assert mine
    assert mine == {name: weights(home)[name] for name in mine}
    assert not list((other / "artifacts").glob("*/.*.partial"))


def test_streaming_trains_nearly_the_same_sae_as_the_store(
    finished, tmp_path: Path, tiny_model: Path, text: Path
):
    _, home, _ = finished
    content = STUDY.format(model=tiny_model, text=text, ks="4")
    content = content.replace("sites: [resid_post.0, resid_post.1]", "sites: [resid_post.0]")
    content = content.replace("explain: [max_act, vocab_proj]\napply: [selection]\n", "")
    file = tmp_path / "study.yaml"
    file.write_text(content + "activations: {store: stream}\nevaluate: [reconstruction]\n")
    built = run(file, tmp_path / "home")
    assert built["activations"] == (0, 1)
    assert not list((tmp_path / "home" / "artifacts").glob("activations/*"))
    name = "resid_post.0-topk-w32-k4-s0"
    for key, streamed in load_file(sae_file(tmp_path / "home", name)).items():
        stored = load_file(sae_file(home, name))[key]
        # the scale is measured on a sample of the stream, and on everything in the store
        gap = (streamed - stored).norm() / stored.norm()
        assert gap < 0.05, (key, float(gap))


def sae_file(home: Path, name: str) -> Path:
    found = {manifest["name"]: manifest for manifest in ArtifactStore(home).manifests("sae")}
    return Path(found[name]["path"]) / "sae.safetensors"


def test_an_encoder_is_studied_and_says_why_model_metrics_do_not_apply(
    write, tiny_encoder: Path, tmp_path: Path
):
    file = write(
        model=f"{{id: {tiny_encoder}}}", sites="[resid_post.1]", explain="[max_act, vocab_proj]"
    )
    home = tmp_path / "home"
    run(file, home)
    leaders = query(home / "results.duckdb", "select * from leaderboard")
    assert leaders["fvu"].null_count() == 0
    assert leaders["delta_lm_loss"].null_count() == leaders.height
    reasons = query(
        home / "results.duckdb", "select distinct reason from metrics where name = 'delta_lm_loss'"
    )
    assert "language-model head" in reasons.item()
    assert (home / "reports" / "study.html").is_file()


def test_a_removed_experiment_keeps_its_rows_but_leaves_the_views(write, tmp_path: Path):
    home = tmp_path / "home"
    one = write("one", sites="[resid_post.0]", explain=None, evaluate="[sparsity]")
    run(one, home)
    two = write("two", sites="[resid_post.0]", explain=None, evaluate="[sparsity]")
    one.unlink()
    run(two, home)
    database = home / "results.duckdb"
    assert query(database, "select distinct experiment from leaderboard").item() == "two"
    stored = query(database, "select distinct experiment from stored.metrics order by all")
    assert stored["experiment"].to_list() == ["one", "two"]


def test_the_job_of_the_graph_builds_a_cell_and_its_checks_pass(
    finished, tmp_path: Path, tiny_model: Path, text: Path
):
    import dagster as dg

    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(model=tiny_model, text=text, ks="[2, 4]"))
    study = load_experiment(file)
    definitions = build([outline_of(study)], tmp_path / "home")
    job = definitions.resolve_job_def("study_grid")
    with dg.DagsterInstance.ephemeral() as instance, warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        result = job.execute_in_process(
            instance=instance,
            partition_key="resid_post.0|topk-w32-k2-s0",
            run_config={"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}},
        )
    assert result.success
    checks = {found.check_name: found.passed for found in result.get_asset_check_evaluations()}
    assert checks["loss_is_finite"]
    assert checks["values_are_possible"]
    assert checks["alive_latents_are_explained"]
    # the graph and the headless run find the same artefact, and its weights are the same
    _, home, _ = finished
    name = "resid_post.0-topk-w32-k2-s0"
    assert weights(tmp_path / "home") == {name: weights(home)[name]}


def test_sql_answers_while_a_run_is_writing(tmp_path: Path, tiny_model: Path, text: Path):
    file, home = tmp_path / "study.yaml", tmp_path / "home"
    file.write_text(STUDY.format(model=tiny_model, text=text, ks="2"))
    run(file, home)
    file.write_text(STUDY.format(model=tiny_model, text=text, ks="[2, 3, 4]"))
    process = subprocess.Popen(
        [SAE, "run", file, "--home", home], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    counts = []
    while process.poll() is None:
        counts.append(query(home / "results.duckdb", "select * from leaderboard").height)
        time.sleep(0.05)
    assert process.returncode == 0
    assert len(counts) > 10
    assert set(counts) <= {4, 8}
    assert query(home / "results.duckdb", "select * from leaderboard").height == 8


def test_the_run_is_recorded_for_the_ui(finished):
    import dagster as dg

    _, home, _ = finished
    with dg.DagsterInstance.from_config(str(home / "dagster")) as instance:
        keys = instance.get_materialized_partitions(dg.AssetKey(["study", "saes"]))
        assert "resid_post.0|topk-w32-k2-s0" in keys
        record = instance.fetch_materializations(dg.AssetKey(["study", "saes"]), limit=1).records[0]
        assert record.asset_materialization
        assert "curve" in record.asset_materialization.metadata
    settings = (home / "dagster" / "dagster.yaml").read_text()
    assert "telemetry: {enabled: false}" in settings
    assert json.loads((home / "experiments" / "study.json").read_text())["file"].endswith(".yaml")
