"""A model changes under an experiment: what follows it, what is kept, and what one sees of it."""

import shutil
from dataclasses import replace
from pathlib import Path

import dagster as dg
import pytest
import torch
from transformers import LlamaForCausalLM

from assets.freshness import states
from assets.lineage import trained_elsewhere
from assets.saes import WEIGHTS_CURRENT, saes_key
from assets.store import Store
from assets.study import Study
from sae_lib.warehouse.query import query
from sae_workflows.automation import last_observed, observation
from sae_workflows.definitions import build
from sae_workflows.headless import run_study
from sae_workflows.home import dagster_home, outline_of, study_at
from sae_workflows.selection import Wanted

STUDY = """\
name: study
model: {{id: {model}}}
corpus: {{id: {text}, tokens: 4000, context: 32, eval_tokens: 1000}}
sites: [resid_post.0, resid_post.1]
saes: [{{kind: topk, d_sae: 32, k: [2, 4]}}]
train: {{batch_tokens: 256, tokens: 4096}}
evaluate: [reconstruction, sparsity]
automation: {{saes: {saes}, reevaluate: {when}}}
"""


def change_weights(model: Path, seed: int) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        other = LlamaForCausalLM.from_pretrained(model)
        for parameter in other.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)
        other.save_pretrained(model)


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, text: Path):
    """A folder with a model of its own, its study, and a home."""
    model = tmp_path / "model"
    shutil.copytree(tiny_model, model)

    def write(saes: str = "keep", when: str = "on_change") -> tuple[Path, Path]:
        file = tmp_path / "study.yaml"
        file.write_text(STUDY.format(model=model, text=text, saes=saes, when=f"'{when}'"))
        return file, tmp_path / "home"

    return model, write


def run(file: Path, home: Path, wanted: Wanted | None = None, *, retrain: bool = False):
    study = study_at(home, file)
    study = study.anew if retrain else study
    return {
        result.stage: result.built
        for result in run_study(study, home, wanted=wanted or Wanted())
        if result.built
    }


def saes_of(home: Path) -> set[str]:
    return {folder.name for folder in (home / "artifacts" / "sae").glob("[!.]*")}


def counted(study: Study, home: Path) -> dict[tuple[str, str], int]:
    found: dict[tuple[str, str], int] = {}
    for state in states(study, Store(home=str(home))):
        found[state.stage, state.state] = found.get((state.stage, state.state), 0) + 1
    return found


def test_saes_are_kept_and_measured_on_the_new_model_and_drift_compares(place):
    model, write = place
    file, home = write()
    run(file, home)
    first = study_at(home, file)
    before, trained = first.model_fingerprint, saes_of(home)
    assert trained_elsewhere(first) == {}
    assert query(home / "results.duckdb", "select * from drift").is_empty()

    change_weights(model, 1)
    changed = study_at(home, file)
    now = changed.model_fingerprint
    assert now != before
    why = f"the model changed ({before} to {now})"
    stale = [one for one in states(changed, Store(home=str(home))) if one.state != "fresh"]
    assert {(one.stage, one.state) for one in stale} == {
        ("tokens", "stale"),
        ("activations", "stale"),
        ("saes", "kept"),
        ("metrics", "stale"),
        ("frontier", "stale"),
        ("claims", "stale"),
    }
    direct = ("tokens", "activations", "saes", "metrics")
    assert {one.why for one in stale if one.stage in direct} == {why}
    assert set(trained_elsewhere(changed).values()) == {before}

    built = run(file, home)
    assert "saes" not in built
    assert built["metrics"] == 4
    assert built["activations"] == 2
    assert saes_of(home) == trained
    drift = query(
        home / "results.duckdb",
        "select * from drift where name = 'fvu' and definition = 'ratio_of_sums'",
    )
    assert drift.height == 4
    assert set(drift["fingerprint_before"]) == {before}
    assert set(drift["fingerprint_after"]) == {now}
    assert (drift["difference"] > 0).all(), "old SAEs explain a changed model less well"
    leaders = query(home / "results.duckdb", "select sae_id, fvu from leaderboard")
    assert set(leaders["fvu"]) == set(drift["value_after"])
    # and the SAEs of the old model say that they are
    held = query(home / "results.duckdb", "select distinct held_in from stale")
    assert held["held_in"].to_list() == ["saes"]
    assert run(file, home) == {}


def test_going_back_to_the_first_model_needs_no_compute(place):
    model, write = place
    file, home = write()
    shutil.copytree(model, model.with_name("first"))
    run(file, home)
    change_weights(model, 1)
    run(file, home)
    shutil.rmtree(model)
    model.with_name("first").rename(model)
    back = run(file, home)
    assert not {"tokens", "activations", "saes"} & set(back), back
    counts = counted(study_at(home, file), home)
    assert {state for _, state in counts} == {"fresh"}


def test_saes_are_trained_anew_where_the_file_says_so_or_when_asked(place):
    model, write = place
    file, home = write(saes="retrain")
    run(file, home)
    trained = saes_of(home)
    change_weights(model, 1)
    stale = counted(study_at(home, file), home)
    assert stale["saes", "stale"] == 4
    assert run(file, home)["saes"] == 4
    again = saes_of(home)
    assert len(again - trained) == 4
    # asked for by hand, where the file keeps them; later runs use the new ones
    file, home = write(saes="keep")
    change_weights(model, 2)
    assert "saes" not in run(file, home)
    assert run(file, home, retrain=True)["saes"] == 4
    assert trained_elsewhere(study_at(home, file)) == {}
    assert run(file, home) == {}


def test_another_model_in_the_file_is_no_version_of_the_first(place, tiny_model: Path):
    _, write = place
    file, home = write()
    run(file, home)
    file.write_text(file.read_text().replace("/model}", "/elsewhere}"))
    shutil.copytree(tiny_model, file.parent / "elsewhere")
    change_weights(file.parent / "elsewhere", 3)
    assert study_at(home, file).earlier == ()
    assert run(file, home)["saes"] == 4


def test_only_stale_and_selections_build_no_more_than_they_say(place):
    model, write = place
    file, home = write()
    run(file, home, Wanted(selected=frozenset({"tokens", "activations", "saes"})))
    assert counted(study_at(home, file), home)["metrics", "missing"] == 4
    # what was never built is left alone
    assert run(file, home, Wanted(only_stale=True)).keys() <= {"results"}
    one = Wanted(variants=("*-k2-*",), sites=("resid_post.1",))
    assert run(file, home, one)["metrics"] == 1
    change_weights(model, 1)
    built = run(file, home, Wanted(only_stale=True))
    assert built["metrics"] == 1
    assert counted(study_at(home, file), home)["metrics", "missing"] == 3


def test_a_damaged_lineage_says_what_to_do(place):
    _, write = place
    file, home = write()
    (home / "lineage").mkdir(parents=True)
    (home / "lineage" / "study.json").write_text("{}")
    with pytest.raises(Exception, match="Delete it; SAEs of earlier versions"):
        study_at(home, file)


@pytest.mark.filterwarnings("ignore::dagster_shared.utils.warnings.BetaWarning")
@pytest.mark.parametrize(("when", "at_once"), [("on_change", True), ("0 3 * * *", False)])
def test_automation_asks_for_new_results_and_not_for_new_saes(place, when: str, at_once: bool):
    from datetime import UTC, datetime

    model, write = place
    file, home = write(when=when)
    run(file, home)
    study = study_at(home, file)
    definitions = build([outline_of(study)], home)
    noon, night = (datetime(2030, 1, day, hour, tzinfo=UTC) for day, hour in ((1, 12), (2, 4)))

    def requested(tick: dg.EvaluateAutomationConditionsResult) -> set[str]:
        keys = definitions.resolve_asset_graph().get_all_asset_keys()
        return {key.path[-1] for key in keys if tick.get_num_requested(key)}

    with dg.DagsterInstance.from_config(str(dagster_home(home))) as instance:
        tick = dg.evaluate_automation_conditions(definitions, instance, evaluation_time=noon)
        assert requested(tick) == set(), "everything is up to date"
        change_weights(model, 1)
        now = study_at(home, file).model_fingerprint
        before = last_observed(instance, study.model_name)
        instance.report_runless_asset_event(observation(study.model_name, now, before))
        tick = dg.evaluate_automation_conditions(
            definitions, instance, cursor=tick.cursor, evaluation_time=noon
        )
        if not at_once:
            assert requested(tick) <= {"database", "study"}
            tick = dg.evaluate_automation_conditions(
                definitions, instance, cursor=tick.cursor, evaluation_time=night
            )
        assert {"tokens", "activations", "metrics"} <= requested(tick)
        assert "saes" not in requested(tick)
        assert tick.get_num_requested(dg.AssetKey(["study", "metrics"])) == 4


def test_the_sensor_reports_a_change_once_and_a_damaged_folder_not_at_all(place):
    model, write = place
    file, home = write()
    study = study_at(home, file)
    sensor = build([outline_of(study)], home).resolve_sensor_def("watch_local_models")
    with dg.DagsterInstance.ephemeral() as instance:

        def look():
            return sensor(dg.build_sensor_context(instance=instance))

        def take(result) -> list[str]:
            assert isinstance(result, dg.SensorResult), result
            for event in result.asset_events:
                instance.report_runless_asset_event(event)
            return [event.tags["dagster/data_version"] for event in result.asset_events]

        assert take(look()) == [study.model_fingerprint]
        assert isinstance(look(), dg.SkipReason)
        change_weights(model, 1)
        (new,) = take(look())
        assert new == study_at(home, file).model_fingerprint
        assert isinstance(look(), dg.SkipReason)
        (model / "config.json").rename(model / "away.json")
        assert isinstance(look(), dg.SkipReason)


def test_a_check_warns_of_saes_of_an_earlier_model(place):
    model, write = place
    file, home = write()
    run(file, home)
    change_weights(model, 1)
    study = study_at(home, file)
    definitions = build([outline_of(study)], home, studies={"study": study})
    graph = definitions.resolve_asset_graph()
    check = dg.AssetCheckKey(saes_key("study"), WEIGHTS_CURRENT)
    assert check in graph.asset_check_keys
    job = definitions.resolve_implicit_global_asset_job_def()
    with dg.DagsterInstance.ephemeral() as instance:
        result = job.get_subset(asset_check_selection={check}).execute_in_process(instance=instance)
        (found,) = result.get_asset_check_evaluations()
    assert not found.passed
    assert found.severity is dg.AssetCheckSeverity.WARN
    assert found.metadata["trained on an earlier one"].value == 4


@pytest.mark.parametrize("said", ["sometimes", "0 3 * *", "off"])
def test_a_wrong_cron_line_is_refused_when_the_file_is_read(place, said: str):
    _, write = place
    file, home = write(when=said)
    with pytest.raises(Exception, match="cron line such as") as caught:
        study_at(home, file)
    assert "automation.reevaluate" in str(caught.value)


def test_a_study_of_two_versions_prefers_the_present_one(place):
    model, write = place
    file, home = write()
    run(file, home)
    change_weights(model, 1)
    study = study_at(home, file)
    site, variant = study.cells()[0]
    assert study.origin(site, variant).model_fingerprint == study.earlier[0]
    own = study.own_sae(site, variant)
    both = replace(study, exists=lambda one: one == own or study.exists(one))
    assert both.sae(site, variant) == own
