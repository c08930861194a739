"""`sae status`, `sae run --select` and `sae gc`: what stands how, and what can go."""

import json
import os
import shutil
from pathlib import Path

import dagster as dg
import pytest
from typer.testing import CliRunner

from assets.runs import cause_of, fail_dead_runs, process_is_gone, run_rows
from sae_lib.errors import BadInput
from sae_lib.warehouse.query import query
from sae_workflows.cli import app
from sae_workflows.console import fresh_database
from sae_workflows.definitions import build
from sae_workflows.headless import next_work, run_study, stages
from sae_workflows.home import dagster_home, outline_of, outlines, study_at
from sae_workflows.selection import selected_stages


def sae(home: Path, *arguments: str) -> str:
    result = CliRunner().invoke(app, [*arguments, "--home", str(home)])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def status(home: Path, *arguments: str) -> dict[tuple[str, str], int]:
    rows = json.loads(sae(home, "status", *arguments, "--json"))
    return {(row["stage"], row["state"]): row["cells"] for row in rows}


@pytest.fixture
def small(write):
    """An experiment of four SAEs with little to measure, and none of it built."""
    return write(evaluate="[reconstruction, sparsity]", explain=None)


def test_status_knows_missing_fresh_stale_and_failed(small: Path, tmp_path: Path):
    home = tmp_path / "home"
    assert status(home, str(small))["saes", "missing"] == 4
    run_study(study_at(home, small), home)
    assert {state for _, state in status(home, str(small))} == {"fresh"}
    # other settings of a metric: the metrics are stale, and the row says why
    small.write_text(small.read_text().replace("reconstruction,", "reconstruction, model_loss,"))
    rows = json.loads(sae(home, "status", str(small), "--json"))
    (metrics,) = [row for row in rows if row["stage"] == "metrics"]
    assert (metrics["state"], metrics["cells"]) == ("stale", 4)
    assert "other settings are asked for" in metrics["why"]
    # a step that fails: the cells that it was to build say so, with its cause
    site, variant = study_at(home, small).cells()[0]
    study = study_at(home, small)
    broken = home / "artifacts" / "sae" / study.sae(site, variant).folder / "sae.safetensors"
    kept = broken.read_bytes()
    broken.write_bytes(b"no safetensors")
    with pytest.raises(Exception):  # noqa: B017, PT011  (whatever the reader says)
        run_study(study, home)
    found = json.loads(sae(home, "status", str(small), "--cells", "--json"))
    failed = [row for row in found if row["state"] == "failed"]
    # the other site of the batch was measured all the same
    assert {(row["stage"], row["site"]) for row in failed} == {("metrics", site)}
    assert all("(run " in row["why"] for row in failed)
    runs = query(fresh_database(home), "select * from runs where status = 'FAILURE'")
    assert runs["experiment"].to_list() == ["study"]
    assert runs["stages"].to_list() == [["metrics"]]
    assert runs["cause"].item()
    broken.write_bytes(kept)
    run_study(study, home)
    assert {state for _, state in status(home, str(small))} == {"fresh"}


def test_the_overview_has_a_line_per_experiment_and_names_orphans(write, tmp_path: Path):
    home = tmp_path / "home"
    one = write("one", sites="[resid_post.0]", evaluate="[sparsity]", explain=None)
    run_study(study_at(home, one), home)
    (row,) = json.loads(sae(home, "status", "--json"))
    assert row["experiment"] == "one"
    assert row["stale"] == row["missing"] == row["failed"] == 0
    one.write_text(one.read_text().replace("k: [2, 4]", "k: [2]"))
    assert "one|resid_post.0|topk-w32-k4-s0" in sae(home, "status")
    one.unlink()
    assert "Rows of 3 cells belong to no experiment" in sae(home, "status").replace("\n", " ")


def test_gc_deletes_what_nothing_asks_for_and_asks_first(small: Path, tmp_path: Path):
    home = tmp_path / "home"
    run_study(study_at(home, small), home)
    assert "Nothing to delete" in sae(home, "gc")
    # a variant less, a writer that was killed, and a file it left beside its place
    small.write_text(small.read_text().replace("k: [2, 4]", "k: [2]"))
    partial = home / "artifacts" / "sae" / ".dead.partial"
    partial.mkdir()
    (partial / "weights").write_bytes(b"0" * 1000)
    stray = home / "warehouse" / "metrics" / ".999999999-1-2.tmp"
    stray.write_text("")
    found = json.loads(sae(home, "gc", "--json"))
    assert {one["kind"] for one in found} == {"artefact", "unfinished", "temporary"}
    gone = {Path(one["path"]).name for one in found if one["kind"] == "artefact"}
    assert {name.rsplit("-", 1)[0] for name in gone} >= {
        "resid_post.0-topk-w32-k4-s0",
        "resid_post.1-topk-w32-k4-s0",
    }
    assert not any("k2" in name for name in gone)
    result = CliRunner().invoke(app, ["gc", "--home", str(home)], input="n\n")
    assert "Nothing was deleted" in result.stdout
    assert stray.exists()
    sae(home, "gc", "--yes", "--rows")
    assert not stray.exists()
    assert not partial.exists()
    stored = query(fresh_database(home), "select distinct variant from stored.saes")
    assert stored["variant"].to_list() == ["topk-w32-k2-s0"]
    assert {state for _, state in status(home, str(small))} <= {"fresh", "stale", "missing"}
    built = {one.stage: one.built for one in run_study(study_at(home, small), home)}
    assert built["saes"] == built["metrics"] == 0


def test_gc_does_not_touch_what_a_living_writer_holds(small: Path, tmp_path: Path):
    from filelock import FileLock

    home = tmp_path / "home"
    folder = home / "artifacts" / "sae" / ".busy.partial"
    folder.mkdir(parents=True)
    with FileLock(str(folder.with_name(".busy.lock"))):
        assert "Nothing to delete" in sae(home, "gc")
    assert json.loads(sae(home, "gc", "--json"))[0]["path"] == str(folder)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("metrics", {"metrics"}),
        ("metrics+", {"metrics", "frontier", "claims", "results"}),
        ("+saes", {"tokens", "activations", "saes"}),
        ("saes or tokens", {"saes", "tokens"}),
        ("saes+1", {"saes", "metrics", "results"}),
        ("metrics+ and not claims", {"metrics", "frontier", "results"}),
        ('key:"study/saes"', {"saes"}),
        ("results", {"results"}),
    ],
)
def test_selections_are_those_of_the_graph(small: Path, tmp_path: Path, text: str, expected: set):
    study = study_at(tmp_path, small)
    definitions = build([outline_of(study)], tmp_path)
    assert selected_stages(text, outline_of(study), definitions, stages(study)) == expected


@pytest.mark.parametrize(
    ("text", "says"), [("metric", "did you mean"), ("metrics and", "no selection"), ("+", "no sel")]
)
def test_a_wrong_selection_says_what_would_be_right(small, tmp_path: Path, text: str, says: str):
    study = study_at(tmp_path, small)
    definitions = build([outline_of(study)], tmp_path)
    with pytest.raises(BadInput) as caught:
        selected_stages(text, outline_of(study), definitions, stages(study))
    assert says.lower() in str(caught.value).lower()


def test_a_site_that_no_cell_has_is_refused_before_any_compute(small: Path, tmp_path: Path):
    result = CliRunner().invoke(
        app, ["run", str(small), "--site", "resid_post.7", "--home", str(tmp_path / "home")]
    )
    assert isinstance(result.exception, BadInput)
    assert "resid_post.0" in str(result.exception)
    assert not (tmp_path / "home" / "artifacts").exists()


def test_metrics_of_saes_that_are_not_trained_are_refused_with_a_remedy(small, tmp_path: Path):
    from sae_lib.errors import MissingFile
    from sae_workflows.selection import Wanted

    home = tmp_path / "home"
    with pytest.raises(MissingFile, match=r"--select '\+metrics'"):
        run_study(study_at(home, small), home, wanted=Wanted(frozenset({"metrics"})))


@pytest.mark.slow
def test_two_workers_build_the_same(small: Path, tmp_path: Path):
    one, two = tmp_path / "one", tmp_path / "two"
    run_study(study_at(one, small), one)
    run_study(study_at(two, small), two, workers=2)
    sql = (
        "select site, variant, name, definition, params, value from metrics "
        "where variant <> '' order by all"
    )
    first, second = (query(home / "results.duckdb", sql) for home in (one, two))
    assert first.drop("value").equals(second.drop("value"))
    # sums over a batch depend on how many threads share them
    assert first["value"].to_list() == pytest.approx(second["value"].to_list(), rel=1e-3)
    with dg.DagsterInstance.from_config(str(dagster_home(two))) as instance:
        rows = run_rows(instance)
    saes = [row for row in rows if row["stages"] == ["saes"]]
    assert {row["partitions"].split("|")[0] for row in saes} == {"resid_post.0", "resid_post.1"}
    assert {row["started_by"] for row in rows} == {"sae run"}


def test_a_run_whose_process_is_gone_is_marked_as_failed(small: Path, tmp_path: Path):
    home = tmp_path / "home"
    study = study_at(home, small)
    work = next_work(study, _store(home), "tokens")
    assert work is not None
    with dg.DagsterInstance.from_config(str(dagster_home(home))) as instance:
        definitions = build([outline_of(study)], home)
        job = definitions.resolve_implicit_global_asset_job_def()
        child = os.fork()
        if child == 0:  # it dies in the middle of its step, as when memory runs out
            import assets.corpora

            assets.corpora.build_tokens_artifact = lambda *_: os._exit(9)
            job.execute_in_process(instance=instance, asset_selection=[work.key])
        os.waitpid(child, 0)
        (run,) = instance.get_runs()
        assert run.status is dg.DagsterRunStatus.STARTED
        assert process_is_gone(instance, run.run_id)
        assert fail_dead_runs(instance) == [run.run_id]
        (run,) = instance.get_runs()
        assert run.status is dg.DagsterRunStatus.FAILURE
        assert "is gone" in cause_of(instance, run.run_id)
        assert fail_dead_runs(instance) == []


def _store(home: Path):
    from assets.store import Store

    return Store(home=str(home))


def test_names_that_would_collide_are_left_out_and_named(write, tmp_path: Path, tiny_model: Path):
    home = tmp_path / "home"
    files = [write("a-b"), write("a_b")]
    elsewhere = tmp_path / "elsewhere" / tiny_model.name
    shutil.copytree(tiny_model, elsewhere)
    files.append(write("other", model=f"{{id: {elsewhere}}}"))
    files.append(write("named", model=f"{{id: {elsewhere}, name: second}}"))
    from sae_workflows.home import adopt

    for file in files:
        adopt(home, file, file.stem)
    found, broken = outlines(home)
    assert {"a-b", "named"} <= {one.name for one in found}
    reasons = {Path(file).stem: reason for file, reason in broken.items()}
    assert "differ in dashes" in reasons["a_b"]
    assert "has another model that is called" in reasons["other"]
    build(found, home).resolve_asset_graph()


@pytest.mark.parametrize("name", ["results", "models", "../up", "a/b", "a|b"])
def test_names_that_lead_elsewhere_are_refused(write, tmp_path: Path, name: str):
    file = write("plain")
    file.write_text(file.read_text().replace("name: plain", f"name: '{name}'"))
    with pytest.raises(BadInput) as caught:
        study_at(tmp_path, file)
    assert "name" in str(caught.value)
