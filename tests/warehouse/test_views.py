import json
import math
from datetime import UTC, datetime
from importlib import import_module

import pytest

from sae_lib.registry import import_members
from sae_lib.warehouse.rows import ApplicationRow, ExampleRow, ExplanationRow, LatentRow
from sae_lib.warehouse.write import Provenance, write_rows

SAE = {
    "kind": "topk",
    "d_in": 8,
    "d_sae": 32,
    "config": {},
    "train": {},
    "packages": {},
    "status": "complete",
}


@pytest.fixture
def fill(warehouse, number):
    """Writes the row of an SAE and its metrics, given as name=value or name=(value, stderr)."""
    definitions = {
        "l0": "mean_of_tokens",
        "fvu": "ratio_of_sums",
        "delta_lm_loss": "splice_kept",
        "dead_share": "never_fired",
    }

    def write(variant: str, *, kind: str = "topk", site: str = "s", **values):
        rows = []
        for name, given in values.items():
            value, stderr = given if isinstance(given, tuple) else (given, None)
            rows.append(number(name, value, definition=definitions[name], stderr=stderr))
        where = {"site": site, "variant": variant, "sae_id": f"id-{site}-{variant}"}
        warehouse.write("saes", [{**SAE, "kind": kind}], **where)
        warehouse.write("metrics", rows, **where)

    return write


def test_the_leaderboard_has_one_row_per_declared_sae_best_first(warehouse, fill):
    fill("a", l0=16.0, fvu=(0.3, 0.01), dead_share=0.1)
    fill("b", l0=32.0, fvu=0.2, delta_lm_loss=(0.05, 0.002))
    fill("gone", l0=64.0, fvu=0.1)
    warehouse.publish([("e", "s", v) for v in ("a", "b", "missing")])
    found = warehouse.ask(
        "select variant, status, l0, fvu, fvu_stderr, delta_lm_loss, delta_lm_loss_stderr, "
        "dead_share, kind, sae_id from leaderboard"
    )
    assert found.rows() == [
        ("b", "complete", 32.0, 0.2, None, 0.05, 0.002, None, "topk", "id-s-b"),
        ("a", "complete", 16.0, 0.3, 0.01, None, None, 0.1, "topk", "id-s-a"),
        ("missing", "not built", *[None] * 8),
    ]


def test_the_leaderboard_takes_the_headline_definition_whatever_its_value(warehouse, number):
    found = [
        number("fvu", 0.9, definition="uncentred"),
        number("fvu", 0.3, definition="ratio_of_sums"),
        number("loss_recovered", 0.8, definition="mean_ablation_kept"),
        number("loss_recovered", 0.95, definition="zero_ablation_kept"),
        number("loss_recovered", 0.99, definition="zero_ablation_all"),
        number("delta_lm_loss", 0.07, definition="splice_all"),
        number("dead_share", 0.5, definition="density_below", params={"threshold": 1e-3}),
        number("cosine", None, definition="mean_of_tokens"),
    ]
    warehouse.write("metrics", found)
    warehouse.publish()
    row = warehouse.ask("from leaderboard").row(0, named=True)
    assert (row["fvu"], row["loss_recovered"], row["loss_recovered_mean"]) == (0.3, 0.95, 0.8)
    assert (row["delta_lm_loss"], row["dead_share"], row["cosine"]) == (0.07, None, None)


def test_every_headline_is_a_definition_that_evaluations_have(warehouse):
    evaluate = import_module("sae_lib.evaluate")
    import_members("sae_lib.evaluate", evaluate.__path__)
    metrics = import_module("sae_lib.evaluate.base").METRICS
    known = {(d.name, d.definition) for metric in metrics.values() for d in metric.definitions()}
    warehouse.publish()
    headline = warehouse.ask("select name, definition from stored.headline").rows()
    assert len(headline) > 10
    assert set(headline) <= known
    named = set(warehouse.ask('select "column" from stored.headline')["column"])
    assert named <= set(warehouse.ask("from leaderboard").columns)


def test_variants_are_means_over_seeds_with_their_standard_errors(warehouse, fill, number):
    for seed, fvu in enumerate((0.1, 0.2, 0.6)):
        fill(f"topk-w32-k4-s{seed}", l0=4.0, fvu=fvu, dead_share=0.01 * seed)
    fill("topk-w32-k8-s10", l0=8.0, fvu=0.05)
    cells = [("e", "s", f"topk-w32-k4-s{seed}") for seed in range(4)]
    warehouse.publish([*cells, ("e", "s", "topk-w32-k8-s10"), ("e", "s", "missing-s0")])
    found = warehouse.ask(
        "select family, kind, objective, d_sae, num_declared, num_seeds, num_unfinished, l0, "
        "l0_stderr, fvu, fvu_stderr, dead_share, gamma, gamma_stderr from variants"
    ).rows()
    assert [row[0] for row in found] == ["topk-w32-k8", "topk-w32-k4", "missing"]
    alone, three, missing = found
    assert alone[1:] == ("topk", None, 32, 1, 1, 0, 8.0, None, 0.05, None, None, None, None)
    assert three[1:9] == ("topk", None, 32, 4, 3, 0, 4.0, 0.0)
    # 0.1, 0.2, 0.6: deviations -0.2, -0.1, 0.3 from 0.3, so a variance of 0.14 / 2
    assert three[9:11] == pytest.approx((0.3, math.sqrt(0.07 / 3)))
    assert three[11] == pytest.approx(0.01)
    assert missing[1:7] == (None, None, None, 1, 0, 0)


def test_a_standard_error_needs_a_value_of_every_seed(warehouse, fill):
    fill("a-s0", l0=4.0, fvu=0.1)
    fill("a-s1", l0=4.2, fvu=0.3)
    fill("a-s2", l0=4.4)
    warehouse.publish()
    (row,) = warehouse.ask("select fvu, fvu_stderr, l0_stderr from variants").rows()
    assert row == (pytest.approx(0.2), None, pytest.approx(0.2 / math.sqrt(3)))


def test_variants_know_costs_training_and_ground_truth(warehouse, number):
    for seed in (0, 1):
        where = {"variant": f"gated-w32-s{seed}", "sae_id": f"sae{seed}"}
        sae = {
            **SAE,
            "kind": "gated",
            "objective": "end_to_end",
            "status": ("complete", "diverged")[seed],
            "tokens": 100,
            "flops": 5000.0 * (1 + seed),
            "cpu_seconds": 3.0 + seed,
        }
        warehouse.write("saes", [sae], **where)
        gamma = number("relative_reconstruction_bias", 0.9, definition="ratio_of_sums")
        warehouse.write("metrics", [gamma], **where)
        share = 0.2 + 0.2 * seed
        coverage = [
            ("sae", "all", share, "one_to_one", 0.8),
            ("sae", "all", 0.9, "one_to_one", 0.5),
            ("sae", "all", 0.95, "union_of_10", 0.8),
            ("sae", "scope:token", 0.8, "one_to_one", 0.8),
            ("linear_probes", "all", 1.0, "one_to_one", 0.8),
        ]
        rows = [
            _applied(number, "concepts", how, task, "coverage", value, definition=kind, f1=f1)
            for how, task, value, kind, f1 in coverage
        ]
        rows += [
            _applied(number, "dictionary", "twin", "mixtures", "mmcs", 0.7 + 0.1 * seed),
            _applied(number, "dictionary", "twin", "mixtures", "recovered", 0.5),
            _applied(number, "dictionary", "untrained", "mixtures", "mmcs", 0.1),
        ]
        warehouse.write("applications", rows, **where)
    warehouse.publish()
    row = warehouse.ask("from variants").row(0, named=True)
    assert (row["kind"], row["objective"], row["num_seeds"]) == ("gated", "end_to_end", 2)
    assert row["num_unfinished"] == 1
    assert (row["cpu_seconds"], row["flops_per_token"]) == (3.5, 75.0)
    assert (row["gamma"], row["gamma_stderr"]) == (pytest.approx(0.9), pytest.approx(0))
    assert row["concept_coverage"] == pytest.approx(0.3)
    assert row["concept_coverage_stderr"] == pytest.approx(0.1)
    assert row["mmcs"] == pytest.approx(0.75)
    assert (row["recovered_share"], row["recovered_share_stderr"]) == (0.5, 0.0)


def test_every_column_of_the_leaderboard_and_of_variants_is_documented(warehouse):
    warehouse.publish()
    shared = {"experiment", "site", "variant", "kind", "objective", "d_sae", "seed", "sae_id"}
    for view in ("leaderboard", "variants"):
        told = warehouse.ask(
            "select column_name from duckdb_columns() where table_name = ? and comment is null",
            view,
        )["column_name"]
        left = {name for name in told if not name.endswith("_stderr")}
        assert left <= shared | {"created_at"}, view


def _define(warehouse, *rows):
    defined = [
        {
            "name": name,
            "definition": definition,
            "version": 1,
            "text": "t",
            "better": better,
            "role": role,
            "metric": "probing",
        }
        for name, definition, role, better in rows
    ]
    provenance = Provenance(
        model="", model_fingerprint="", created_at=datetime(2026, 1, 1, tzinfo=UTC)
    )
    write_rows(warehouse.root, "definitions", {}, defined, provenance)


def test_a_score_stands_beside_its_best_floor_and_ceiling_at_the_same_settings(warehouse, number):
    _define(
        warehouse,
        ("accuracy", "top_k", "score", "higher"),
        ("accuracy", "random", "floor", "higher"),
        ("accuracy", "majority", "floor", "higher"),
        ("accuracy", "dense", "ceiling", "higher"),
        ("accuracy", "of_one", "part", "higher"),
        ("error", "mean", "score", "lower"),
        ("error", "random", "floor", "lower"),
        ("error", "zero", "floor", "lower"),
        ("error", "best", "score", "lower"),
        ("error", "random_best", "floor", "lower"),
    )
    k = {"k": 1}
    rows = [
        number("accuracy", 0.8, definition="top_k", params=k, stderr=0.02, n=4, unit="datasets"),
        number("accuracy", 0.9, definition="top_k", params={"k": 2}),
        number("accuracy", 0.6, definition="random", params=k),
        number("accuracy", 0.5, definition="majority", params=k),
        number("accuracy", 0.95, definition="dense"),  # for every k
        number("accuracy", 0.7, definition="of_one", params={"k": 1, "dataset": "a"}),
        number("error", 0.1, definition="mean"),
        number("error", 0.6, definition="random"),
        number("error", 0.4, definition="zero"),
        number("error", 0.05, definition="best"),
        number("error", 0.3, definition="random_best"),  # that of the best alone
    ]
    warehouse.write("metrics", rows, variant="v-s0")
    warehouse.write("saes", [SAE], variant="v-s0")
    warehouse.publish()
    columns = "name, dial, value, floor, floor_is, ceiling, ceiling_is"
    found = warehouse.ask(f"select {columns} from scorecard where variant = 'v-s0'")
    assert found.rows() == [
        ("accuracy", "k=1", 0.8, 0.6, "random", 0.95, "dense"),
        ("accuracy", "k=2", 0.9, None, None, 0.95, "dense"),
        ("error", "", 0.05, 0.3, "random_best", None, None),
        ("error", "", 0.1, 0.4, "zero", None, None),
    ]
    _define(
        warehouse,
        ("cosine", "to_partner", "score", "higher"),
        ("cosine", "random_directions", "floor", "higher"),
    )
    named = {"site": "s", "variant": "v-s0"}
    warehouse.write(
        "metrics",
        [
            number("cosine", 0.7, definition="to_partner", params=named),
            number("cosine", 0.2, definition="random_directions", params=named),
        ],
        site="",
        variant="",
    )
    warehouse.publish()
    found = warehouse.ask(
        "select site, variant, d_sae, value, floor from scorecard where name = 'cosine'"
    )
    assert found.rows() == [("s", "v-s0", 32, 0.7, 0.2)]


def test_the_scorecard_over_seeds_is_a_mean_with_its_standard_error(warehouse, number):
    _define(
        warehouse,
        ("accuracy", "top_k", "score", "higher"),
        ("accuracy", "random", "floor", "higher"),
    )
    for seed in (0, 1):
        rows = [
            number("accuracy", 0.8 + 0.02 * seed, definition="top_k", params={"k": 1}),
            number("accuracy", 0.6 + 0.02 * seed, definition="random"),
        ]
        warehouse.write("metrics", rows, variant=f"v-s{seed}", sae_id=f"id{seed}")
        provenance = Provenance(
            "m", "f1", f"id{seed}", "art", seed, datetime(2026, 1, 1, tzinfo=UTC)
        )
        where = {"experiment": "e", "site": "s", "variant": f"v-s{seed}"}
        write_rows(warehouse.root, "saes", where, [SAE], provenance)
    warehouse.publish()
    over = warehouse.ask(
        "select family, value, stderr, num_seeds, floor from scorecard_over_seeds"
        " where name = 'accuracy' and dial = 'k=1'"
    ).row(0)
    assert over == ("v", pytest.approx(0.81), pytest.approx(0.01), 2, pytest.approx(0.61))


def test_the_frontier_keeps_the_five_points_of_the_reference(warehouse, fill):
    points = {"a": (20, 0.30), "c": (40, 0.20), "b": (40, 0.25), "d": (80, 0.21), "e": (160, 0.10)}
    for variant, (l0, fvu) in points.items():
        fill(variant, l0=float(l0), fvu=fvu)
    fill("other kind", kind="relu", l0=30.0, fvu=0.15)
    fill("elsewhere", site="t", l0=1.0, fvu=0.01)
    fill("no loss", l0=1.0)
    warehouse.publish()
    kept = warehouse.ask("select variant from frontier where is_pareto and site = 's'")
    assert sorted(kept["variant"]) == ["a", "c", "e", "other kind"]
    of_site = warehouse.ask("select variant from frontier where is_pareto_of_site and site = 's'")
    assert sorted(of_site["variant"]) == ["a", "e", "other kind"]
    assert "no loss" not in warehouse.ask("from frontier")["variant"].to_list()


def test_of_two_equal_points_one_is_on_the_frontier(warehouse, fill):
    for variant in ("twin", "other twin"):
        fill(variant, l0=20.0, fvu=0.3, delta_lm_loss=0.1)
    warehouse.publish()
    found = warehouse.ask("select count_if(is_pareto), count_if(is_pareto_in_loss) from frontier")
    assert found.rows() == [(1, 1)]


def test_only_the_newest_version_of_the_model_counts_as_latest(warehouse, number):
    warehouse.write("metrics", [number("fvu", 0.5), number("dropped", 1.0)], fingerprint="f1")
    warehouse.write("metrics", [number("fvu", 0.4)], fingerprint="f2", hour=1)
    warehouse.write("metrics", [number("fvu", 0.3)], fingerprint="f1", variant="old")
    warehouse.publish()
    found = warehouse.ask("select variant, name, value from latest_metrics order by variant")
    assert found.rows() == [("old", "fvu", 0.3), ("v", "fvu", 0.4)]
    assert warehouse.ask("from metrics").height == 4


def test_a_model_that_went_back_to_an_earlier_version_has_that_versions_numbers(warehouse, number):
    warehouse.write("metrics", [number("fvu", 0.5)], fingerprint="f1", hour=0)
    warehouse.write("metrics", [number("fvu", 0.4)], fingerprint="f2", hour=1)
    for hour, fingerprint in enumerate(["f2", "f1"]):
        version = {"model": "m", "model_fingerprint": fingerprint}
        seen = Provenance("m", fingerprint, created_at=datetime(2026, 1, 2, hour, tzinfo=UTC))
        write_rows(warehouse.root, "models", version, [{}], seen)
    warehouse.publish()
    assert warehouse.ask("select value from latest_metrics").rows() == [(0.5,)]
    assert warehouse.ask("from stale").height == 0


def test_drift_is_what_moved_from_one_version_to_the_next(warehouse, number):
    for hour, (fingerprint, value) in enumerate([("f1", 0.5), ("f2", 0.4), ("f3", 0.45)]):
        rows = [number("fvu", value, stderr=0.03), number("l0", 3.0)]
        warehouse.write("metrics", rows, fingerprint=fingerprint, hour=hour)
    warehouse.write("metrics", [number("fvu", 0.1)], sae_id="retrained", fingerprint="f4", hour=9)
    warehouse.publish()
    found = warehouse.ask(
        "select fingerprint_before, fingerprint_after, difference, stderr_difference from drift "
        "where name = 'fvu' order by created_at"
    ).rows()
    assert [row[:2] for row in found] == [("f1", "f2"), ("f2", "f3")]
    assert [row[2] for row in found] == pytest.approx([-0.1, 0.05])
    assert [row[3] for row in found] == pytest.approx([math.hypot(0.03, 0.03)] * 2)


def test_stale_names_what_was_computed_from_another_version_of_the_model(warehouse, number):
    for hour, fingerprint in enumerate(["f1", "f2"]):
        version = {"model": "m", "model_fingerprint": fingerprint}
        seen = Provenance("m", fingerprint, created_at=datetime(2026, 1, 1, hour, tzinfo=UTC))
        write_rows(warehouse.root, "models", version, [{"family": "gpt2"}], seen)
    warehouse.write("metrics", [number("fvu", 0.5)] * 2, fingerprint="f1", variant="old")
    warehouse.write("metrics", [number("fvu", 0.5)], fingerprint="f2", variant="new")
    warehouse.write("latents", [LatentRow(0, 0.1, 1.0, 2.0, None)], fingerprint="f1", variant="new")
    warehouse.publish()
    found = warehouse.ask(
        "select held_in, variant, model_fingerprint, current_fingerprint, num_rows from stale"
    )
    assert found.rows() == [("latents", "new", "f1", "f2", 1), ("metrics", "old", "f1", "f2", 2)]


def test_compare_puts_two_variants_side_by_side_at_each_site(warehouse, fill):
    fill("a", l0=(16.0, 0.3), fvu=(0.30, 0.03))
    fill("b", l0=(32.0, 0.4), fvu=(0.25, 0.04), delta_lm_loss=0.1)
    fill("a", site="t", l0=1.0)
    fill("b", site="t", l0=3.0)
    fill("c", l0=9.0)
    warehouse.publish()
    found = warehouse.ask(
        "select site_a, site_b, name, value_a, value_b, difference, stderr_difference "
        "from compare('a', 'b')"
    ).rows()
    assert [row[:5] for row in found] == [
        (None, "s", "delta_lm_loss", None, 0.1),
        ("s", "s", "fvu", 0.30, 0.25),
        ("s", "s", "l0", 16.0, 32.0),
        ("t", "t", "l0", 1.0, 3.0),
    ]
    assert found[0][5:] == (None, None)
    assert found[1][5:] == pytest.approx((-0.05, 0.05))
    assert found[2][5:] == pytest.approx((16.0, 0.5))
    assert found[3][5:] == (2.0, None)


def test_compare_takes_sae_ids_at_different_sites(warehouse, fill):
    fill("a", fvu=0.3)
    fill("a", site="t", fvu=0.5)
    warehouse.publish()
    found = warehouse.ask(
        "select site_a, site_b, difference, is_same_model from compare('id-s-a', 'id-t-a')"
    )
    assert found.rows() == [("s", "t", pytest.approx(0.2), True)]


def test_compare_of_a_variant_with_itself_is_all_zeros(warehouse, fill):
    fill("a", fvu=0.3, l0=3.0)
    warehouse.publish()
    assert warehouse.ask("select difference from compare('a', 'a')")["difference"].to_list() == [
        0.0,
        0.0,
    ]


def test_compare_matches_settings_and_not_only_names(warehouse, number):
    for variant, threshold in (("a", 1), ("b", 2)):
        rows = [number("dense_share", 0.5, params={"threshold": threshold})]
        warehouse.write("metrics", rows, variant=variant)
    warehouse.publish()
    found = warehouse.ask("select value_a, value_b from compare('a', 'b') order by all")
    assert found.rows() == [(0.5, None), (None, 0.5)]


def _applied(number, application, method, task, name, value, *, definition="d", **params):
    found = number(name, value, definition=definition, params=params)
    return ApplicationRow(application, method, task, found)


def test_applications_are_averaged_over_tasks_by_setting(warehouse, number):
    rows = [
        _applied(number, "probing", "sae_probe", "x", "accuracy", 0.8, k=1, columns=[3]),
        _applied(number, "probing", "sae_probe", "y", "accuracy", 0.6, k=1, columns=[7]),
        _applied(number, "probing", "sae_probe", "z", "accuracy", None, k=1),
        _applied(number, "probing", "sae_probe", "all", "accuracy", 0.7, k=1),
        _applied(number, "probing", "sae_probe", "x", "accuracy", 0.9, k=5, columns=[1, 2]),
        _applied(number, "steering", "latent", "x", "best_overall", 0.5, strength=1.0),
        _applied(number, "steering", "latent", "y", "best_overall", 0.3, strength=2.0),
    ]
    warehouse.write("applications", rows)
    warehouse.publish()
    found = warehouse.ask(
        "select name, k, strength, value, stderr, num_tasks, num_without_value "
        "from application_summary order by name, k"
    ).rows()
    assert found == [
        ("accuracy", 1, None, pytest.approx(0.7), pytest.approx(0.1), 2, 1),
        ("accuracy", 5, None, 0.9, None, 1, 0),
        ("best_overall", None, None, pytest.approx(0.4), pytest.approx(0.1), 2, 0),
    ]


def test_the_best_probe_stands_next_to_the_best_rival(warehouse, number):
    for variant, accuracy in (("a", 0.8), ("b", 0.85)):
        rows = [
            _applied(number, "probing", "sae_probe", "x", "accuracy", accuracy, k=5),
            _applied(number, "probing", "sae_probe", "x", "accuracy", 0.6, k=1),
            _applied(number, "probing", "dense_probe", "x", "accuracy", 0.9),
            _applied(number, "probing", "random_sae_probe", "x", "accuracy", 0.95, k=5),
            _applied(number, "probing", "dense_probe", "x", "auc", 0.99),
        ]
        warehouse.write("applications", rows, variant=variant)
    warehouse.publish()
    found = warehouse.ask(
        "select variant, k, accuracy, rival, rival_accuracy, gain from best_probes"
    )
    assert found.rows() == [("b", 5, 0.85, "random_sae_probe", 0.95, pytest.approx(-0.1))]


def test_a_latent_card_gathers_what_is_known_about_a_latent(warehouse):
    warehouse.write("latents", [LatentRow(i, 0.1, 1.0, 2.0, f"label {i}") for i in (0, 1)])
    explanations = [
        ExplanationRow(0, "vocab_proj", "promotes cat", ["cat"], [1.0]),
        ExplanationRow(0, "max_act", "fires on cat", ["cat", "dog"], [2.0, 1.0], 0.7, "f1"),
    ]
    warehouse.write("explanations", explanations)
    examples = [
        ExampleRow(0, rank, 17, 4, 1, ["the", " cat", " sat"], [0.0, 2.0, 0.0], 2.0)
        for rank in (1, 0)
    ]
    warehouse.write("examples", examples)
    warehouse.publish()
    first, second = warehouse.ask("from latent_cards").to_dicts()
    assert first["strongest"] == "the [cat] sat"
    assert first["score"] == 0.7
    assert [e["method"] for e in first["explanations"]] == ["max_act", "vocab_proj"]
    assert first["explanations"][0]["keywords"] == ["cat", "dog"]
    assert (second["label"], second["explanations"], second["strongest"]) == ("label 1", None, None)


def test_params_can_be_read_as_json(warehouse, number):
    warehouse.write("metrics", [number("x", 1.0, params={"a": {"b": [1, "q"]}})])
    warehouse.publish()
    text = warehouse.ask("select params, params -> 'a' ->> '$.b[1]' as b from metrics").row(0)
    assert json.loads(text[0]) == {"a": {"b": [1, "q"]}}
    assert text[1] == "q"
