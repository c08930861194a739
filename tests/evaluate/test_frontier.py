import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from sae_lib.evaluate.frontier import (
    Curve,
    FrontierConfig,
    FrontierPoint,
    area,
    common_range,
    dominance,
    loss_at,
    pareto,
)
from sae_lib.warehouse.rows import Measurement

FIVE = [(20.0, 0.30), (40.0, 0.20), (40.0, 0.25), (80.0, 0.21), (160.0, 0.10)]
METRIC = FrontierConfig(losses=("fvu",), at_l0=(30.0, 500.0))


def points(family: str, seed: int = 0, shift: float = 0.0, low: float = 10.0, high: float = 160.0):
    """A family whose loss falls by 0.1 with every doubling of L0."""
    doublings = round(math.log2(high / low))
    return [
        FrontierPoint(family, "resid_post.1", "fvu", low * 2**i, 0.9 - 0.1 * i + shift, seed)
        for i in range(doublings + 1)
    ]


def named(rows: list[Measurement], name: str, **params: object) -> list[Measurement]:
    return [r for r in rows if r.name == name and params.items() <= r.params.items()]


def one(rows: list[Measurement], name: str, **params: object) -> Measurement:
    (found,) = named(rows, name, **params)
    return found


def test_of_five_points_three_are_on_the_frontier():
    assert pareto(FIVE) == Curve((20.0, 40.0, 160.0), (0.30, 0.20, 0.10))


def test_halfway_in_log_l0_is_halfway_in_loss():
    assert loss_at(pareto(FIVE), 80.0) == pytest.approx(0.15)


@pytest.mark.parametrize("l0", [19.99, 160.01])
def test_a_curve_is_never_extrapolated(l0):
    assert loss_at(pareto(FIVE), l0) is None


def test_the_ends_of_a_curve_belong_to_it():
    curve = pareto(FIVE)
    assert [loss_at(curve, l0) for l0 in (20.0, 160.0)] == pytest.approx([0.30, 0.10])


def test_points_that_have_no_place_on_a_log_axis_are_left_out():
    assert pareto([(0.0, 0.1), (math.nan, 0.1), (8.0, math.inf), (8.0, 0.5)]) == Curve((8,), (0.5,))


def test_dominance_is_the_constant_gap_between_parallel_curves():
    a = pareto((p.l0, p.loss) for p in points("a"))
    b = pareto((p.l0, p.loss) for p in points("b", shift=0.07, low=20, high=320))
    # b starts at twice the L0, so at equal L0 it is one doubling behind: 0.1 more
    assert dominance(a, b) == pytest.approx(0.17)
    assert dominance(b, a) == pytest.approx(-0.17)


def test_area_of_a_straight_line_in_log_l0_is_its_middle():
    curve = Curve((10.0, 1000.0), (0.8, 0.2))
    assert area(curve, 10.0, 1000.0) == pytest.approx(0.5)
    assert area(curve, 10.0, 100.0) == pytest.approx(0.65)


def test_area_is_exact_at_the_corners_of_the_curve():
    curve = pareto(FIVE)
    grid = np.linspace(math.log(25), math.log(150), 200_001)
    fine = np.interp(grid, np.log(curve.l0), curve.loss).mean()
    assert area(curve, 25.0, 150.0) == pytest.approx(fine, rel=1e-4)


def test_curves_that_only_touch_have_no_common_range():
    assert common_range([Curve((1, 2), (2, 1)), Curve((2, 3), (2, 1))]) is None


def test_loss_at_equal_l0_is_a_mean_over_seeds_with_its_standard_error():
    shifts = (0.0, 0.03, 0.06)
    table = [p for seed, shift in enumerate(shifts) for p in points("a", seed, shift)]
    row = one(METRIC.compare(table), "loss_at_l0", at_l0=30.0)
    expected = 0.9 - 0.1 * math.log2(3)
    assert row.value == pytest.approx(expected + 0.03)
    assert row.stderr == pytest.approx(0.03 / math.sqrt(3))
    assert (row.n, row.unit) == (3, "seeds")


def test_differences_between_families_are_taken_seed_by_seed():
    table = []
    for seed, shift in enumerate((0.0, 0.2, 0.1)):
        table += points("a", seed, shift) + points("b", seed, shift + 0.05)
    rows = METRIC.compare(table)
    for name in ("dominance", "loss_difference_at_l0"):
        row = named(rows, name, family_a="a", family_b="b")[0]
        assert row.value == pytest.approx(0.05)
        assert row.stderr == pytest.approx(0.0, abs=1e-12)
        assert row.n == 3
    alone = one(rows, "loss_at_l0", family="a", at_l0=30.0)
    assert alone.stderr is not None
    assert alone.stderr > 0.05


def test_families_without_a_common_seed_are_compared_by_all_their_points():
    row = one(METRIC.compare(points("a", 0) + points("b", 7, 0.05)), "dominance")
    assert row.value == pytest.approx(0.05)
    assert row.stderr is None


def test_outside_the_measured_l0_there_is_a_reason_instead_of_a_number():
    rows = METRIC.compare(points("a") + points("b"))
    row = one(rows, "loss_at_l0", family="a", at_l0=500.0)
    assert row.value is None
    assert row.reason == "a has L0 10 to 160, and 500 lies outside"
    assert one(rows, "loss_difference_at_l0", at_l0=500.0).value is None


def test_families_far_apart_have_a_reason_instead_of_a_dominance():
    rows = METRIC.compare(points("a", low=1, high=4) + points("b", low=64, high=256))
    row = one(rows, "dominance")
    assert row.value is None
    assert "a has L0 1 to 4, b L0 64 to 256" in (row.reason or "")


def test_a_family_of_one_point_does_not_rob_the_others_of_their_area():
    lonely = FrontierPoint("c", "resid_post.1", "fvu", 40.0, 0.5)
    rows = METRIC.compare([*points("a"), *points("b", shift=0.1), lonely])
    a, b = (one(rows, "frontier_area", family=f) for f in "ab")
    assert a.value is not None
    assert b.value == pytest.approx(a.value + 0.1)
    assert a.params["low_l0"] == 10.0
    c = one(rows, "frontier_area", family="c")
    assert c.value is None
    assert "a curve needs two Pareto points" in (c.reason or "")


def test_the_frontier_of_a_site_names_the_coders_on_it():
    table = [*points("a"), *points("b", shift=0.1), *points("a", 1, -0.01, low=40, high=40)]
    rows = named(METRIC.compare(table), "pareto_loss")
    assert {r.params["family"] for r in rows} == {"a"}
    assert [(r.params["l0"], r.params["seed"]) for r in rows] == [
        (10.0, 0),
        (20.0, 0),
        (40.0, 0),
        (80.0, 0),
        (160.0, 0),
    ]
    better = [*table, FrontierPoint("b", "resid_post.1", "fvu", 15.0, 0.3)]
    rows = named(METRIC.compare(better), "pareto_loss")
    assert [r.params["family"] for r in rows] == ["a", "b"]


def test_sites_and_losses_do_not_mix():
    other = [p._replace(site="resid_post.2", loss=p.loss + 1) for p in points("a")]
    third = [p._replace(loss_name="delta_lm_loss", loss=p.loss + 2) for p in points("a")]
    rows = METRIC.compare([*points("a"), *other, *third])
    found = {
        (r.params["site"], r.params["loss"]): r.value for r in named(rows, "loss_at_l0", at_l0=30.0)
    }
    base = 0.9 - 0.1 * math.log2(3)
    assert found == pytest.approx(
        {
            ("resid_post.1", "fvu"): base,
            ("resid_post.2", "fvu"): base + 1,
            ("resid_post.1", "delta_lm_loss"): base + 2,
        }
    )


def test_an_l0_of_zero_is_refused_where_it_is_asked_for():
    with pytest.raises(ValidationError, match="every L0 must be above 0"):
        FrontierConfig(at_l0=(0.0, 16.0))


@pytest.mark.parametrize("score", ["loss_recovered", "explained_variance"])
def test_a_score_of_which_more_is_better_is_refused_as_a_loss(score):
    with pytest.raises(ValidationError, match=f"of {score} more is better.*delta_lm_loss"):
        FrontierConfig(losses=("fvu", score))


def test_points_are_taken_from_the_measurements_of_a_coder():
    rows = [
        Measurement("l0", 31.5, "mean_of_tokens"),
        Measurement("fvu", 0.2, "ratio_of_sums"),
        Measurement("fvu", 0.1, "uncentred"),
        Measurement("delta_lm_loss", None, "splice_kept", reason="no head"),
    ]
    found = FrontierConfig().points(rows, family="topk", site="resid_post.1", seed=2)
    assert found == [FrontierPoint("topk", "resid_post.1", "fvu", 31.5, 0.2, 2)]


def activations() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(6, 6, generator=generator, dtype=torch.float64)
    return 5 + torch.randn(400, 6, generator=generator, dtype=torch.float64) @ mixing


def boundary(*batches: torch.Tensor, centre: torch.Tensor) -> list[Measurement]:
    accumulator = FrontierConfig(at_l0=(3.0, 16.0)).start_site("resid_post.1", centre)
    for x in batches:
        accumulator.update(x)
    return accumulator.rows()


def test_the_pca_boundary_is_the_error_of_the_best_projection():
    x = activations()
    rows = boundary(x[:150], x[150:], centre=torch.full((6,), 4.0))
    deviation = x - x.mean(0)
    U, S, V = torch.linalg.svd(deviation, full_matrices=False)
    for k in (1, 2, 3, 4):
        best = U[:, :k] @ torch.diag(S[:k]) @ V[:k]
        expected = ((deviation - best) ** 2).sum() / (deviation**2).sum()
        found = next(r for r in rows if r.definition == "pca_in_sample" and r.params["l0"] == k)
        assert found.value == pytest.approx(expected.item(), rel=1e-10)
    assert [r.params["l0"] for r in rows] == [0, 1, 2, 3, 4, 6]


def test_the_boundary_goes_from_the_mean_predictor_to_the_identity():
    rows = boundary(activations(), centre=torch.zeros(6))
    assert (rows[0].definition, rows[0].value) == ("mean_predictor", 1.0)
    assert rows[-1].definition == "identity"
    assert rows[-1].value == 0.0
    losses = [r.value for r in rows if r.value is not None]
    assert losses == sorted(losses, reverse=True)


def test_a_site_that_does_not_vary_has_no_boundary():
    rows = boundary(torch.full((30, 6), 0.3), centre=torch.zeros(6))
    assert {r.value for r in rows} == {None}
    assert {r.reason for r in rows} == {"the activations do not vary"}


def test_one_activation_that_is_not_finite_takes_the_boundary_away():
    broken = activations()
    broken[7, 3] = torch.inf
    rows = boundary(activations(), broken, activations(), centre=torch.zeros(6))
    assert {r.value for r in rows} == {None}
    assert {r.reason for r in rows} == {"some activations are not finite"}
