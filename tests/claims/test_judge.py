"""Verdicts on results that are made up, with intervals computed by hand.

t(.975) is 12.706 for one degree of freedom, 4.303 for two, 2.776 for four.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from sae_lib.claims import CLAIMS, Claim, ClaimRow, Selector, evaluate
from sae_lib.claims.judge import VERDICTS, interval
from sae_lib.errors import MissingFile, UnknownName
from sae_lib.papers import Paper
from sae_lib.warehouse.publish import publish
from sae_lib.warehouse.rows import Measurement
from sae_lib.warehouse.write import Provenance, write_rows

SITE = "resid_post.2"
PAPER = Paper("Somebody 2024", "https://example.org", "abstract")


class Results:
    """A warehouse that is filled SAE by SAE."""

    def __init__(self, root: Path) -> None:
        self.root, self.db = root / "rows", root / "results.duckdb"
        self.entries: list[dict[str, Any]] = []

    def add(
        self,
        kind: str,
        seeds: Sequence[int],
        *,
        site: str = SITE,
        sites: Sequence[str] = (),
        objective: dict[str, Any] | None = None,
        d_sae: int = 64,
        status: str = "complete",
        cost: float = 10.0,
        flops: float = 1e6,
        lr: float = 1e-3,
        tag: str = "",
        applied: dict[tuple[str, str], Sequence[float]] | None = None,
        sae: dict[str, Any] | None = None,
        **values: Sequence[float | None],
    ) -> None:
        """SAEs of one setting, one per seed; each of ``values`` holds a number per seed."""
        objective = objective or {"kind": "plain"}
        for index, seed in enumerate(seeds):
            config = {"kind": kind, "d_sae": d_sae, "seed": seed, **(sae or {})}
            settings = "".join(f"-{key}{value}" for key, value in (sae or {}).items())
            goal = "" if objective["kind"] == "plain" else f"-{objective['kind']}"
            variant = f"{kind}-w{d_sae}{settings}{goal}{tag}-s{seed}"
            self.entries.append(
                {"variant": variant, "sae": config, "objective": objective, "sites": list(sites)}
            )
            cell = {"experiment": "e", "site": site, "variant": variant}
            self._write(
                "saes",
                cell,
                [
                    {
                        "kind": kind,
                        "objective": objective["kind"],
                        "d_in": 8,
                        "d_sae": d_sae,
                        "config": {**config, "d_in": 8},
                        "train": {"lr": lr, "seed": seed, "tokens": 1000},
                        "status": status,
                        "tokens": 1000,
                        "cpu_seconds": cost,
                        "flops": flops,
                        "packages": {},
                    }
                ],
                seed,
            )
            rows = [
                Measurement(*_measured(name), 1)._replace(value=numbers[index])
                for name, numbers in values.items()
                if numbers[index] is not None
            ]
            self._write("metrics", cell, rows, seed)
            if applied:
                found = [
                    {
                        "application": "concepts",
                        "method": method,
                        "task": task,
                        "name": "coverage",
                        "definition": "one_to_one",
                        "version": 1,
                        "value": numbers[index],
                        "params": {"f1": 0.7, "tokens": 1000},
                    }
                    for (method, task), numbers in applied.items()
                ]
                self._write("applications", cell, found, seed)

    def judge(self, *claims: Claim) -> list[ClaimRow]:
        config = {"name": "e", "saes": self.entries}
        self._write("experiments", {"experiment": "e"}, [{"config": config, "packages": {}}], None)
        publish(self.root, self.db)
        return evaluate(self.db, "e", claims or None)

    def one(self, claim: Claim) -> ClaimRow:
        (row,) = self.judge(claim)
        return row

    def _write(self, table: str, keys: dict[str, str], rows: list[Any], seed: int | None) -> None:
        write_rows(self.root, table, keys, rows, Provenance("m", "f", "sae", "art", seed))


def _measured(name: str) -> tuple[str, None, str]:
    return {
        "l0": ("l0", None, "mean_of_tokens"),
        "fvu": ("fvu", None, "ratio_of_sums"),
        "dead_share": ("dead_share", None, "never_fired"),
        "loss_recovered": ("loss_recovered", None, "zero_ablation_kept"),
    }[name]


@pytest.fixture
def results(tmp_path: Path) -> Results:
    return Results(tmp_path)


def claim(**changes: Any) -> Claim:
    settings: dict[str, Any] = {
        "name": "topk_is_lower",
        "statement": "TopK leaves less.",
        "papers": (PAPER,),
        "a": Selector(kind="topk"),
        "b": Selector(kind="standard"),
        "quantity": "fvu",
        "direction": "lower",
        "least": 0.01,
        **changes,
    }
    return Claim(**settings)


def fill(results: Results, a: Sequence[float], b: Sequence[float], **more: Any) -> None:
    l0 = [16.0] * max(len(a), len(b))
    results.add("topk", range(len(a)), l0=l0, fvu=a, **more)
    results.add("standard", range(len(b)), l0=l0, fvu=b, **more)


def test_differences_are_taken_seed_by_seed_where_seeds_are_shared(results):
    fill(results, [0.10, 0.20, 0.30], [0.15, 0.24, 0.36])  # differences -.05, -.04, -.06
    row = results.one(claim())
    half = 4.30265 * 0.01 / math.sqrt(3)
    assert (row.verdict, row.comparison, row.n) == ("supported", "paired", 3)
    assert (row.effect, row.low, row.high) == pytest.approx((-0.05, -0.05 - half, -0.05 + half))
    assert (row.value_a, row.value_b) == pytest.approx((0.2, 0.25))
    assert (row.l0_a, row.l0_b) == (16.0, 16.0)
    assert (row.place, row.a, row.b) == (SITE, "topk-w64", "standard-w64")
    assert "0.05 lower than that of standard-w64 at L0 16 and 16" in row.reason
    assert "-0.0748 to -0.0252 from 3 pairs of seeds" in row.reason


def test_other_seeds_are_compared_as_independent_samples(results):
    results.add("topk", [0, 1], l0=[16, 16], fvu=[0.10, 0.12])
    results.add("standard", [5, 6, 7], l0=[16, 16, 16], fvu=[0.30, 0.33, 0.36])
    row = results.one(claim())
    # variances .0002 and .0009; over 2 and 3 SAEs: .0001 and .0003
    df = 0.0004**2 / (0.0001**2 / 1 + 0.0003**2 / 2)
    half = stats.t.ppf(0.975, df) * 0.02
    assert df == pytest.approx(2.909, abs=1e-3)
    assert (row.verdict, row.comparison, row.n) == ("supported", "welch", 5)
    assert (row.effect, row.low, row.high) == pytest.approx((-0.22, -0.22 - half, -0.22 + half))


def test_welch_agrees_with_scipy():
    a, b = {0: 1.0, 1: 3.0, 2: 2.5}, {7: 4.0, 8: 9.0}
    found = interval(a, b)
    reference = stats.ttest_ind(list(a.values()), list(b.values()), equal_var=False)
    expected = reference.confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))


def test_one_shared_seed_is_no_pairing():
    found = interval({0: 1.0, 1: 2.0}, {1: 5.0, 2: 6.0})
    assert (found.comparison, found.n, found.effect) == ("welch", 4, -4.0)


def test_one_seed_leaves_a_claim_open_however_large_the_effect(results):
    fill(results, [0.1], [0.9])
    row = results.one(claim())
    assert (row.verdict, row.comparison) == ("undecided", "none")
    assert (row.effect, row.low, row.high) == (pytest.approx(-0.8), None, None)
    assert "one seed gives no interval" in row.reason


def test_the_opposite_refutes(results):
    fill(results, [0.3, 0.31, 0.32], [0.2, 0.21, 0.22])
    row = results.one(claim())
    assert row.verdict == "refuted"
    assert row.effect == pytest.approx(0.1)
    assert "0.1 higher than that of standard-w64" in row.reason


def test_an_effect_that_is_sure_but_too_small_refutes(results):
    fill(results, [0.199, 0.208, 0.222], [0.200, 0.210, 0.223])  # -.001, -.002, -.001
    assert results.one(claim(least=0.01)).verdict == "refuted"
    assert results.one(claim(least=0.0)).verdict == "undecided"


def test_an_interval_over_both_answers_leaves_it_open(results):
    fill(results, [0.1, 0.3, 0.2], [0.2, 0.2, 0.22])
    row = results.one(claim())
    assert row.verdict == "undecided"
    assert row.low is not None
    assert row.high is not None
    assert row.low < -0.01 < row.high


def test_the_direction_turns_the_verdict_round(results):
    fill(results, [0.3, 0.31, 0.32], [0.2, 0.21, 0.22])
    assert results.one(claim(direction="higher")).verdict == "supported"


def test_a_loss_may_be_let_pass(results):
    fill(results, [0.21, 0.211, 0.212], [0.2, 0.2, 0.2])  # +.010, +.011, +.012
    assert results.one(claim(least=-0.05)).verdict == "supported"
    assert results.one(claim(least=-0.012)).verdict == "undecided"
    assert results.one(claim(least=-0.005)).verdict == "refuted"


def test_relative_effects_are_ratios_of_geometric_means(results):
    fill(results, [0.1, 0.2], [0.2, 0.5])  # ratios 1/2 and 2/5
    row = results.one(claim(relative=True, least=0.05))
    mean = (math.log(0.5) + math.log(0.4)) / 2
    half = 12.7062 * (math.log(0.5) - math.log(0.4)) / math.sqrt(2) / math.sqrt(2)
    assert row.effect == pytest.approx(math.sqrt(0.2) - 1)
    assert (row.low, row.high) == pytest.approx(
        (math.exp(mean - half) - 1, math.exp(mean + half) - 1), rel=1e-5
    )
    assert (row.value_a, row.value_b) == pytest.approx((math.sqrt(0.02), math.sqrt(0.1)))
    assert row.is_relative


def test_a_ratio_to_nothing_is_not_comparable(results):
    fill(results, [0.1, 0.2], [0.0, 0.5])
    row = results.one(claim(relative=True))
    assert row.verdict == "not comparable"
    assert "needs values above 0" in row.reason


@pytest.mark.parametrize(("l0", "verdict"), [(17.5, "supported"), (17.7, "not comparable")])
def test_single_settings_must_agree_in_l0(results, l0, verdict):
    results.add("topk", [0, 1], l0=[16, 16], fvu=[0.1, 0.11])
    results.add("standard", [0, 1], l0=[l0, l0], fvu=[0.2, 0.21])
    row = results.one(claim())
    assert row.verdict == verdict
    assert (row.l0_a, row.l0_b) == (16, l0)
    if verdict == "not comparable":
        assert "L0 is 16 for topk-w64 and 17.7 for standard-w64: more than 10% apart" in row.reason
        assert (row.effect, row.n) == (None, 0)


def test_a_single_setting_is_compared_with_the_curve_at_its_l0(results):
    for l0, fvu in ((4.0, 0.4), (16.0, 0.2)):
        results.add("standard", [0, 1], sae={"l1": l0}, l0=[l0, l0], fvu=[fvu, fvu + 0.02])
    results.add("topk", [0, 1], l0=[8.0, 8.0], fvu=[0.1, 0.13])
    row = results.one(claim())
    # half way in log L0: .3 and .32
    assert (row.value_a, row.value_b) == pytest.approx((0.115, 0.31))
    assert row.effect == pytest.approx(-0.195)
    assert row.comparison == "paired"
    assert "at L0 8" in row.reason
    assert row.b == "standard-w64-l14.0, standard-w64-l116.0"


def test_a_curve_is_never_extrapolated(results):
    for l0, fvu in ((4.0, 0.4), (16.0, 0.2)):
        results.add("standard", [0, 1], sae={"l1": l0}, l0=[l0, l0], fvu=[fvu, fvu])
    results.add("topk", [0, 1], l0=[17.0, 17.0], fvu=[0.1, 0.1])
    row = results.one(claim())
    assert row.verdict == "not comparable"
    assert "L0 17 lies outside what" in row.reason
    assert "4 to 16" in row.reason


def test_two_curves_are_averaged_over_their_common_range(results):
    for l0, fvu in ((2.0, 0.5), (8.0, 0.3), (32.0, 0.1)):
        results.add("standard", [0, 1, 2], sae={"l1": l0}, l0=[l0] * 3, fvu=[fvu] * 3)
    for k, fvu in ((8, 0.2), (64, 0.2)):
        noise = [fvu - 0.01, fvu, fvu + 0.01]
        results.add("topk", [0, 1, 2], sae={"k": k}, l0=[float(k)] * 3, fvu=noise)
    row = results.one(claim(least=0.0))
    # common range 8 to 32, where standard falls from .3 to .1 in a straight line: mean .2
    assert row.value_b == pytest.approx(0.2)
    assert row.effect == pytest.approx(0.0, abs=1e-12)
    assert row.high == pytest.approx(4.30265 * 0.01 / math.sqrt(3))
    assert row.verdict == "undecided"
    assert "at L0 8 to 32" in row.reason


def test_curves_without_a_common_range_are_not_comparable(results):
    for k in (2, 4):
        results.add("topk", [0], sae={"k": k}, l0=[float(k)], fvu=[0.3])
    for l0 in (8.0, 16.0):
        results.add("standard", [0], sae={"l1": l0}, l0=[l0], fvu=[0.3])
    row = results.one(claim())
    assert row.verdict == "not comparable"
    assert "topk-w64-k2, topk-w64-k4 from 2 to 4" in row.reason


def test_l0_is_compared_at_equal_loss_recovered(results):
    halves = claim(quantity="l0", at="loss_recovered", relative=True, least=0.4)
    for l0, recovered in ((10.0, 0.8), (40.0, 0.9)):
        results.add("standard", [0, 1], sae={"l1": l0}, l0=[l0] * 2, loss_recovered=[recovered] * 2)
    results.add("topk", [0, 1], l0=[10.0, 10.0], loss_recovered=[0.85, 0.85])
    row = results.one(halves)
    assert row.effect == pytest.approx(-0.5)  # 10 instead of 20, half way between 10 and 40
    assert row.verdict == "supported"
    assert "at loss recovered 0.85" in row.reason


def test_at_equal_loss_single_settings_say_nothing(results):
    for kind in ("topk", "standard"):
        results.add(kind, [0, 1], l0=[10.0, 10.0], loss_recovered=[0.85, 0.85])
    row = results.one(claim(quantity="l0", at="loss_recovered", relative=True, least=0.4))
    assert row.verdict == "not comparable"
    assert "needs several sparsities" in row.reason


def test_settings_that_differ_in_more_than_sparsity_are_families_of_their_own(results):
    fill(results, [0.1, 0.11, 0.12], [0.2, 0.21, 0.22])
    results.add("topk", range(3), l0=[16] * 3, fvu=[0.3] * 3, lr=1e-2, tag="-lr")
    rows = results.judge(claim())
    assert [(row.a, row.verdict) for row in rows] == [
        ("topk-w64", "supported"),
        ("topk-w64-lr", "refuted"),
    ]


def test_only_equal_widths_are_compared(results):
    results.add("topk", [0], d_sae=64, l0=[16], fvu=[0.1])
    results.add("standard", [0], d_sae=128, l0=[16], fvu=[0.1])
    row = results.one(claim())
    assert (row.verdict, row.place) == ("no data", "")
    assert row.reason == "No site has SAEs of both kinds with the same width."


def test_every_site_is_judged_for_itself(results):
    fill(results, [0.1, 0.11], [0.2, 0.21])
    fill(results, [0.3, 0.31], [0.2, 0.21], site="resid_post.3")
    results.add("topk", [0], site="resid_post.4", l0=[16], fvu=[0.1])
    found = {row.place: row.verdict for row in results.judge(claim())}
    assert found == {"resid_post.2": "supported", "resid_post.3": "refuted"}


def test_what_was_not_measured_is_no_data(results):
    fill(results, [0.1, 0.11], [0.2, 0.21])
    row = results.one(claim(quantity="loss_recovered", direction="higher"))
    assert (row.verdict, row.place) == ("no data", SITE)
    assert row.reason == "The loss recovered of topk-w64 was not measured."


def test_an_sae_that_stopped_early_does_not_count(results):
    results.add("topk", [0, 1], l0=[16, 16], fvu=[0.1, 0.1], status="diverged")
    results.add("standard", [0, 1], l0=[16, 16], fvu=[0.2, 0.2])
    row = results.one(claim())
    assert row.verdict == "no data"
    assert row.reason == "Training of all 2 SAEs of topk stopped early."


def test_a_number_takes_the_place_of_other_saes(results):
    dead = claim(b=None, against=0.01, at=None, quantity="dead_share", least=0.0)
    results.add("topk", [0, 1, 2], l0=[16] * 3, dead_share=[0.0, 0.001, 0.002])
    row = results.one(dead)
    half = 4.30265 * 0.001 / math.sqrt(3)
    assert (row.effect, row.low, row.high) == pytest.approx((-0.009, -0.009 - half, -0.009 + half))
    assert (row.verdict, row.comparison, row.b) == ("supported", "one sample", "0.01")
    assert "than the limit 0.01" in row.reason


def test_the_partner_of_equal_cost_is_chosen_and_checked(results):
    equal = claim(a=Selector(kind="switch"), b=Selector(kind="topk"), same=(), equal_flops=True)
    results.add("switch", [0, 1], flops=1.0e6, l0=[16, 16], fvu=[0.1, 0.11])
    for d_sae, flops in ((16, 1.05e6), (64, 4e6)):
        results.add("topk", [0, 1], d_sae=d_sae, flops=flops, l0=[16, 16], fvu=[0.2, 0.21])
    row = results.one(equal)
    assert (row.verdict, row.b) == ("supported", "topk-w16")
    results.add("switch", [0, 1], d_sae=32, flops=2e6, l0=[16, 16], fvu=[0.1, 0.11])
    row = next(row for row in results.judge(equal) if row.a == "switch-w32")
    assert row.verdict == "not comparable"
    assert "costs 2e+03 operations per token" in row.reason


def test_costs_are_those_of_the_sparsity_that_is_compared(results):
    equal = claim(a=Selector(kind="switch"), b=Selector(kind="topk"), same=(), equal_flops=True)
    results.add("switch", [0, 1], flops=1.0e6, l0=[16, 16], fvu=[0.1, 0.11])
    results.add("topk", [0, 1], tag="-k16", flops=1.05e6, l0=[16, 16], fvu=[0.2, 0.21])
    results.add("topk", [0, 1], tag="-k64", flops=9e6, l0=[64, 64], fvu=[0.05, 0.06])
    row = results.one(equal)
    assert (row.verdict, row.b) == ("supported", "topk-w64-k16")
    assert row.value_b == pytest.approx(0.205, abs=1e-3)


def test_a_training_strategy_is_compared_with_the_same_architecture(results):
    helped = {"kind": "end_to_end", "downstream": 1.0, "local": 0.0}
    alone = {"kind": "end_to_end", "downstream": 0.0, "local": 0.0}
    l0 = [16.0, 16.0]
    results.add("topk", [0, 1], objective=helped, tag="-down", l0=l0, fvu=[0.2, 0.21])
    results.add("topk", [0, 1], objective=alone, l0=l0, fvu=[0.6, 0.61])
    results.add("topk", [0, 1], l0=l0, fvu=[0.1, 0.11])
    results.add("standard", [0, 1], l0=l0, fvu=[0.3, 0.31])
    (row,) = results.judge(CLAIMS["downstream_term_helps_reconstruction"])
    assert (row.verdict, row.a, row.b) == (
        "supported",
        "topk-w64-end_to_end-down",
        "topk-w64-end_to_end",
    )
    (row,) = results.judge(CLAIMS["end_to_end_reconstructs_badly"])
    assert (row.verdict, row.b) == ("supported", "topk-w64")


@pytest.mark.parametrize(
    ("groups", "sharing"),
    [(1, 3), ([[SITE, "resid_post.3"], ["resid_post.4"]], 2), (2, 2)],
)
def test_layers_that_share_an_sae_share_its_cost(results, groups, sharing):
    sites = [SITE, "resid_post.3", "resid_post.4"]
    clusters = [
        {"num_groups": 2, "group": int(site == sites[2]), "member": site, "amad": 0.1}
        for site in sites
    ]
    results._write("layer_groups", {"experiment": "e", "site": "", "variant": ""}, clusters, None)
    objective = {"kind": "layer_group", "groups": groups}
    results.add("topk", [0, 1], objective=objective, sites=sites, cost=12.0, l0=[16, 16])
    results.add("topk", [0, 1], cost=10.0, l0=[16, 16])
    (row,) = results.judge(CLAIMS["layer_group_saves_time"])
    assert row.value_a == pytest.approx(12.0 / sharing)
    assert row.effect == pytest.approx(12.0 / sharing / 10.0 - 1)
    assert row.verdict == "supported"


def test_coverage_of_rare_concepts_is_read_from_the_saes_own_rows(results):
    rare = "frequency:0.0001-0.001"
    special = {"kind": "specialized"}
    for objective, shares in ((special, [0.5, 0.52]), (None, [0.3, 0.31])):
        results.add(
            "topk",
            [0, 1],
            objective=objective,
            l0=[16, 16],
            applied={("sae", rare): shares, ("random_dictionary", rare): [0.9, 0.9]},
        )
    (row,) = results.judge(CLAIMS["specialized_finds_rare_concepts"])
    assert (row.value_a, row.value_b) == pytest.approx((0.51, 0.305))
    (other,) = results.judge(CLAIMS["feature_aligned_recovers_concepts"])
    assert other.verdict == "no data"


def test_without_any_sae_every_claim_says_what_is_missing(results):
    rows = results.judge()
    assert [row.claim for row in rows] == list(CLAIMS)
    assert {row.verdict for row in rows} == {"no data"}
    assert all(row.reason.startswith("The experiment has no SAE of") for row in rows)


def test_every_verdict_has_occurred_above():
    source = Path(__file__).read_text()
    assert all(source.count(f'"{verdict}"') > 1 for verdict in VERDICTS)


def test_an_unknown_experiment_is_answered_with_those_there_are(results):
    results.judge(claim())
    with pytest.raises(UnknownName, match="'e'"):
        evaluate(results.db, "ee")


def test_before_anything_was_published_there_is_nothing_to_judge(tmp_path):
    with pytest.raises(MissingFile):
        evaluate(tmp_path / "results.duckdb", "e")


def test_rows_fit_their_table(results, tmp_path):
    fill(results, [0.1, 0.11], [0.2, 0.21])
    rows = results.judge()
    write_rows(results.root, "claims", {"experiment": "e"}, rows, Provenance("m", "f"))
    publish(results.root, results.db)
    from sae_lib.warehouse.query import query

    found = query(results.db, "select claim, verdict from claims where verdict = 'supported'")
    assert found.rows() == [("topk_beats_standard", "supported")]


def test_a_row_is_json(results):
    fill(results, [0.1, 0.11], [0.2, 0.21])
    assert json.loads(json.dumps([row._asdict() for row in results.judge()]))
