"""Result files as SAEBench writes them."""

import importlib.util
import json
import math
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from sae_lib.errors import BadInput, UnknownName
from sae_lib.report import saebench
from sae_lib.report._saebench_layout import LAYOUTS, Source
from sae_lib.report.saebench import export, json_schema
from sae_lib.warehouse.publish import publish
from sae_lib.warehouse.rows import ExplanationRow, LatentScoreRow, Measurement
from sae_lib.warehouse.write import Provenance, write_rows

NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
CONTEXT, CONTEXTS = 128, 40


class Results:
    """A published experiment of one SAE, or several."""

    def __init__(self, folder: Path, asked: dict[str, Any] | None = None) -> None:
        self.root, self.db, self.to = folder / "rows", folder / "results.duckdb", folder / "out"
        self.cells: list[tuple[str, str, str]] = []
        config = asked or {
            "model": {"id": "world", "dtype": "float32"},
            "corpus": {"id": "world", "context": CONTEXT},
            "activations": {"batch_contexts": 16},
            "evaluate": [{"name": "model_loss", "splice": "all"}, {"name": "scr", "seed": 7}],
        }
        what = {"description": "", "config": config, "packages": {}, "path": None}
        self._write("experiments", {"experiment": "e"}, [what], None)

    def _write(self, table: str, where: dict[str, str], rows: list[Any], sae: str | None) -> None:
        write_rows(self.root, table, where, rows, Provenance("m", "f", sae, "a", 0, NOW))

    def add(
        self,
        rows: list[Measurement],
        *,
        site: str = "resid_post.2",
        variant: str = "v",
        d_in: int = 8,
        **tables: list[Any],
    ) -> "Results":
        where = {"experiment": "e", "site": site, "variant": variant}
        sae = {
            "kind": "topk",
            "objective": "plain",
            "d_in": d_in,
            "d_sae": 32,
            "config": {"k": 4},
            "train": {},
            "status": "complete",
            "tokens": 1000,
            "packages": {},
        }
        self._write("saes", where, [sae], "cafe")
        self._write("metrics", where, rows, "cafe")
        for table, content in tables.items():
            self._write(table, where, content, "cafe")
        self.cells.append(("e", site, variant))
        publish(self.root, self.db, self.cells)
        return self

    def export(self, **options: Any) -> saebench.Exported:
        return export(self.db, "e", self.to, **options)


def rows_for(sources: list[Source], **params: Any) -> list[Measurement]:
    """A row for every source, each with a value of its own."""
    made: dict[tuple[Any, ...], Measurement] = {}
    for source in sources:
        if not source.name:
            continue
        own = {**source.params, **params}
        key = (source.name, source.definitions[0], *sorted(own.items()))
        is_count = source.is_whole and source.part == "value"
        value = 3.0 + len(made) if is_count else 0.25 + len(made) / 1000
        made.setdefault(
            key,
            Measurement(
                source.name,
                value,
                source.definitions[0],
                1,
                0.5,
                CONTEXTS,
                "contexts",
                {**own, **({"num_tokens": 4000} if source.name == "alive_share" else {})},
            ),
        )
    return list(made.values())


ABOUT = {"dataset": ("world:first", "world:second"), "letter": ("a", "b")}
"""What the rows of single datasets and letters are about."""


def complete(*eval_types: str) -> list[Measurement]:
    """A row for everything that files of these types hold, two datasets or letters each."""
    whole, parts = [], []
    for eval_type in eval_types:
        layout = LAYOUTS[eval_type]
        whole += [one for found in layout.categories.values() for one in found.values()]
        parts += [(layout.detail_param, source) for source in layout.details.values()]
    rows = rows_for(whole)
    for place in range(2):
        for param in dict.fromkeys(param for param, _ in parts):
            one = ABOUT[param][place]
            rows += rows_for([source for own, source in parts if own == param], **{param: one})
    return rows


META = "meta_structure_decoder_variance"
PLAIN = [eval_type for eval_type in LAYOUTS if eval_type != META]

EVERYTHING = complete(*LAYOUTS)


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Results:
    """One SAE with rows for every eval type; for tests that only read."""
    return Results(tmp_path_factory.mktemp("everything")).add(EVERYTHING)


def row_of(source: Source, **params: Any) -> Measurement:
    """The row that ``source`` asks for."""
    (row,) = (
        row
        for row in EVERYTHING
        if (row.name, row.definition) == (source.name, source.definitions[0])
        and {**source.params, **params}.items() <= row.params.items()
        and len(row.params.keys() - {"num_tokens"}) == len({**source.params, **params})
    )
    return row


def expected(source: Source, row: Measurement) -> float:
    value = {
        "value": row.value,
        "spread": 0.5 * math.sqrt(CONTEXTS),
        "units": CONTEXTS,
        "total": CONTEXTS * (row.value or 0),
    }[source.part]
    assert value is not None
    return round(value) if source.is_whole else value


def theirs(eval_type: str) -> dict[str, Any]:
    """SAEBench's own schema; skips where the package is not here."""
    spec = importlib.util.find_spec("sae_bench")
    folder = os.environ.get("SAE_BENCH") or ((spec and spec.submodule_search_locations) or [""])[0]
    found = list(Path(folder).rglob(f"eval_output_schema_{eval_type}.json")) if folder else []
    if not found:
        pytest.skip("sae-bench has no schema here; SAE_BENCH names the folder of the package")
    return json.loads(found[0].read_text())


def finite(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(finite, value.values()))
    if isinstance(value, list):
        return all(map(finite, value))
    return not isinstance(value, float) or math.isfinite(value)


@pytest.mark.parametrize("eval_type", PLAIN)
def test_every_number_lands_under_its_key_and_the_file_fits_the_schema(eval_type, everything):
    exported = everything.export(eval_types=[eval_type])
    assert exported.notes == []
    (path,) = exported.files
    assert path.name == "e_resid_post.2_v_custom_sae_eval_results.json"
    content = json.loads(path.read_text())
    jsonschema.validate(content, json_schema(eval_type))
    assert finite(content)
    layout = LAYOUTS[eval_type]
    assert content["eval_result_metrics"].keys() == layout.categories.keys()
    for category, sources in layout.categories.items():
        numbers = content["eval_result_metrics"][category]
        assert numbers.keys() == sources.keys()
        for key, source in sources.items():
            if source.name:
                assert numbers[key] == pytest.approx(expected(source, row_of(source)))
    details = content["eval_result_details"]
    about = ABOUT[layout.detail_param] if layout.details else ()
    for one, found in zip(about, details, strict=True):
        assert found.pop(layout.detail_key) == f"{one}{layout.detail_suffix}"
        assert found == {
            key: expected(source, row_of(source, **{layout.detail_param: one}))
            for key, source in layout.details.items()
        }


@pytest.mark.parametrize("eval_type", LAYOUTS)
@pytest.mark.parametrize("reference_scaling", [False, True])
def test_files_fit_the_schema_of_saebench_itself(eval_type, reference_scaling, everything):
    schema = theirs(eval_type)
    if eval_type == META and not reference_scaling:
        pytest.skip("without numbers that nothing measures here there is no file")
    (path,) = everything.export(eval_types=[eval_type], reference_scaling=reference_scaling).files
    content = json.loads(path.read_text())
    jsonschema.validate(content, schema)
    assert set(content) == set(schema["properties"]), "no key more and none less"
    metrics = schema["$defs"][schema["properties"]["eval_result_metrics"]["$ref"][8:]]
    for name, made in content["eval_result_metrics"].items():
        part = metrics["properties"][name]["$ref"].removeprefix("#/$defs/")
        assert set(made) == set(schema["$defs"][part]["properties"])


@pytest.mark.parametrize("eval_type", PLAIN)
def test_a_schema_refuses_what_saebench_would(eval_type, everything):
    (path,) = everything.export(eval_types=[eval_type]).files
    content = json.loads(path.read_text())
    schema = json_schema(eval_type)
    for key in ("eval_config", "eval_id", "eval_result_metrics", "sae_cfg_dict"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({k: v for k, v in content.items() if k != key}, schema)
    for wrong in (
        {"eval_id": "no uuid"},
        {"datetime_epoch_millis": -1},
        {"datetime_epoch_millis": 10**13},
        {"eval_result_metrics": {}},
        {"surplus": 1},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate({**content, **wrong}, schema)


def test_a_number_that_nothing_measures_is_no_file_or_a_sentinel(everything):
    (note,) = everything.export(eval_types=[META]).notes
    assert note.reason == "train_time_seconds is required: nothing measures it here"
    (path,) = everything.export(eval_types=[META], reference_scaling=True).files
    numbers = json.loads(path.read_text())["eval_result_metrics"]["meta_structure"]
    assert numbers["decoder_fraction_variance_explained"] > 0
    assert numbers["train_time_seconds"] == numbers["final_reconstruction_mse"] == -1


def core_of_t1() -> list[Measurement]:
    """Rows of the hand test T1: three tokens of one context, width 2."""
    rows = {
        (row.name, row.definition, row.params.get("threshold")): row._replace(n=1)
        for row in complete("core")
    }

    def put(name: str, definition: str, value: float, **params: Any) -> None:
        row = Measurement(name, value, definition, 1, None, 1, "contexts", params)
        rows[name, definition, None] = row

    put("mse", "per_token", 2.0)
    put("fvu", "uncentred", 0.15)
    put("explained_variance", "ratio_of_sums", 0.625)
    put("explained_variance", "legacy_mean_of_ratios", 0.541667, batch_contexts=16)
    put("alive_share", "fired_once", 0.5, num_tokens=3)
    return list(rows.values())


def test_the_scale_of_the_reference_is_written_only_when_it_is_asked_for(tmp_path):
    results = Results(tmp_path).add(core_of_t1(), d_in=2)

    def quality(**options: Any) -> dict[str, float]:
        (path,) = results.export(eval_types=["core"], **options).files
        content = json.loads(path.read_text())
        assert content["eval_config"]["reference_scaling"] is options.get(
            "reference_scaling", False
        )
        return content["eval_result_metrics"]["reconstruction_quality"]

    ours = quality()
    assert (ours["mse"], ours["explained_variance"]) == (2.0, 0.625)
    reference = quality(reference_scaling=True)
    assert reference["mse"] == pytest.approx(2 / 3)
    assert reference["explained_variance"] == pytest.approx(1.064286, abs=1e-6)
    assert reference["explained_variance_legacy"] == ours["explained_variance_legacy"] == 0.541667


def test_a_file_without_a_required_number_is_left_out_with_the_reason(tmp_path):
    rows = [row for row in complete("core") if row.name != "kl_score"]
    absent = Measurement("kl_score", None, "zero_ablation_kept", reason="the model is a stub")
    results = Results(tmp_path).add([*rows, absent])
    exported = results.export(eval_types=["core", "scr"])
    assert exported.files == []
    core, scr = exported.notes
    assert core.eval_type == "core"
    assert core.reason == "kl_div_score is required: kl_score has no value: the model is a stub"
    assert scr.reason.startswith("no rows of scr")
    assert "add scr to the experiment's evaluate" in scr.reason
    (path,) = results.export(eval_types=["core"], reference_scaling=True).files
    numbers = json.loads(path.read_text())["eval_result_metrics"]["model_behavior_preservation"]
    assert numbers["kl_div_score"] == -1
    assert numbers["kl_div_with_sae"] > 0


def test_an_optional_number_that_is_missing_is_null(tmp_path):
    rows = [row for row in complete("scr") if row.params.get("n") == 10]
    (path,) = Results(tmp_path).add(rows).export(eval_types=["scr"]).files
    content = json.loads(path.read_text())
    numbers = content["eval_result_metrics"]["scr_metrics"]
    assert {key for key, value in numbers.items() if value is not None} == {
        "scr_dir1_threshold_10",
        "scr_metric_threshold_10",
        "scr_dir2_threshold_10",
    }
    assert content["eval_config"]["random_seed"] == 7


def test_about_the_run(everything):
    (path,) = everything.export(eval_types=["core"]).files
    content = json.loads(path.read_text())
    assert content["datetime_epoch_millis"] == 1000 * NOW.timestamp()
    assert content["sae_bench_commit_hash"].startswith("not SAEBench")
    tokens = content["eval_result_metrics"]["token_stats"]
    assert set(tokens.values()) == {CONTEXT * CONTEXTS}
    config = content["eval_config"]
    assert config["n_eval_sparsity_variance_batches"] == 3, "40 contexts, 16 at a time"
    assert config["exclude_special_tokens_from_reconstruction"] is False, "splice: all"
    sae = content["sae_cfg_dict"]
    assert (sae["hook_name"], sae["hook_layer"]) == ("blocks.2.hook_resid_post", 2)
    assert (sae["architecture"], sae["d_sae"], sae["training_tokens"]) == ("topk", 32, 1000)


def test_the_same_results_give_the_same_bytes_and_other_results_another_id(tmp_path):
    results = Results(tmp_path).add(complete("core"))
    (path,) = results.export(eval_types=["core"]).files
    before = path.read_bytes()
    results.export(eval_types=["core"])
    assert path.read_bytes() == before
    changed = [row._replace(value=0.9) if row.name == "l0" else row for row in complete("core")]
    Results(tmp_path).add(changed).export(eval_types=["core"])
    assert json.loads(path.read_text())["eval_id"] != json.loads(before)["eval_id"]


def test_explanations_stand_beside_the_score_of_autointerp(tmp_path):
    scores = [LatentScoreRow(3, "autointerp", "autointerp_accuracy", "held_out", 0.75)]
    texts = [ExplanationRow(3, "max_act", "names of dogs", [], [])]
    results = Results(tmp_path).add(
        complete("autointerp"), latent_scores=scores, explanations=texts
    )
    (path,) = results.export(eval_types=["autointerp"]).files
    found = json.loads(path.read_text())["eval_result_unstructured"]
    assert found == {"3": {"latent": 3, "explanation": "names of dogs", "score": 0.75}}


def test_places_of_several_sites_have_safe_names_that_differ():
    names = {
        saebench.release_name("e", site, "v")
        for site in ("resid_mid.2>mlp_out.2", "resid_mid.2+mlp_out.2", "module:model.norm")
    }
    assert len(names) == 3
    assert not any(sign in name for name in names for sign in ">+:/")


def test_two_saes_with_one_file_are_refused(tmp_path):
    results = Results(tmp_path).add([], site="module:a").add([], site="module_a")
    with pytest.raises(BadInput, match="written to one file"):
        results.export()


def test_unknown_names_are_answered_with_the_nearest(tmp_path):
    results = Results(tmp_path).add([])
    with pytest.raises(UnknownName, match="absorption_first_letter"):
        results.export(eval_types=["absorption"])
    with pytest.raises(UnknownName, match="Known: e"):
        export(results.db, "f", results.to)


@pytest.mark.parametrize("eval_type", LAYOUTS)
def test_every_source_is_defined_by_a_metric(eval_type):
    from sae_lib.evaluate import METRICS  # loads torch

    layout = LAYOUTS[eval_type]
    defined = {
        (one.name, one.definition) for metric in METRICS.values() for one in metric.definitions()
    }
    if layout.metric not in METRICS:
        pytest.skip(f"there is no metric {layout.metric} yet")
    sources = [one for found in layout.categories.values() for one in found.values()]
    missing = {
        (source.name, definition)
        for source in (*sources, *layout.details.values())
        if source.name
        for definition in source.definitions
        if (source.name, definition) not in defined
    }
    assert not missing
