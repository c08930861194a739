"""Functions that variants share, against hand-computed cases and float64 brute force."""

import math
from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor

from sae_lib.saes import _ops
from sae_lib.saes._ops import (
    aux_k,
    geometric_median,
    half_width,
    keep_top_k,
    keep_top_of_batch,
    latents_of,
    project_gradient_rows_,
    random_unit_rows,
    spread_of,
    squared_error,
    unit_rows,
)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


# --- selection ---


def test_top_k_keeps_the_largest_where_they_were():
    pre = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 0.0, 0.0]])
    kept = keep_top_k(pre, 2)
    assert torch.equal(kept, torch.tensor([[0.0, 3.0, 0.0, 2.0], [5.0, 0.0, 0.0, 0.0]]))


def test_top_k_keeps_exactly_k_of_equal_entries():
    assert (keep_top_k(torch.ones(7, 5), 2) > 0).sum(-1).tolist() == [2] * 7


def test_top_k_of_everything_is_everything():
    pre = normal(3, 4).relu()
    assert torch.equal(keep_top_k(pre, 4), pre)


def test_top_k_passes_gradients_to_what_it_kept_only():
    pre = normal(6, 10).abs().requires_grad_()
    kept = keep_top_k(pre, 3)
    kept.sum().backward()
    assert pre.grad is not None
    assert torch.equal(pre.grad, (kept > 0).double())


@pytest.mark.parametrize("rows", [1, 7, 300])
def test_top_of_batch_agrees_with_sorting(rows: int, monkeypatch: pytest.MonkeyPatch):
    pre = normal(rows, 64).relu()
    num = rows * 5
    cut = pre.flatten().sort(descending=True).values[num - 1]
    expected = pre * (pre >= cut)
    assert torch.equal(keep_top_of_batch(pre, num), expected)
    monkeypatch.setattr(_ops, "MIN_SAMPLED", 1)  # so that the guess is used on small batches too
    assert torch.equal(keep_top_of_batch(pre, num), expected)


def test_top_of_batch_is_right_when_the_sampled_entries_mislead(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_ops, "MIN_SAMPLED", 1)
    pre = torch.rand(64, 61, generator=torch.Generator().manual_seed(0))
    for column in (0, slice(1, None)):
        misleading = pre.clone()
        misleading[:, column] += 10  # every sampled entry lies in column 0
        kept = keep_top_of_batch(misleading, 200)
        cut = misleading.flatten().sort(descending=True).values[199]
        assert torch.equal(kept > 0, misleading >= cut)


def test_top_of_batch_keeps_exactly_as_many_of_equal_entries(monkeypatch: pytest.MonkeyPatch):
    for minimum in (1, 1 << 16):
        monkeypatch.setattr(_ops, "MIN_SAMPLED", minimum)
        assert int((keep_top_of_batch(torch.ones(50, 20), 37) > 0).sum()) == 37


def test_top_of_one_row_is_top_k():
    pre = normal(1, 30).relu()
    assert torch.equal(keep_top_of_batch(pre, 4), keep_top_k(pre, 4))


# --- latents and their gradients ---


@pytest.mark.parametrize("has_centre", [True, False])
def test_the_short_cut_for_the_gradient_of_the_bias_is_exact(has_centre: bool):
    x, w, b, centre = normal(9, 4), normal(6, 4, seed=1), normal(6, seed=2), normal(4, seed=3)
    weight, results = normal(9, 6, seed=4), []
    for plainly in (True, False):
        leaves = [tensor.clone().requires_grad_() for tensor in (w, b, centre)]
        subtracted = leaves[2] if has_centre else None
        if plainly:
            shifted = x - leaves[2] if has_centre else x
            z = (shifted @ leaves[0].T + leaves[1]).relu()
        else:
            z = latents_of(x, leaves[0], leaves[1], subtracted)
        (z * weight).sum().backward()
        results.append([z.detach(), *[leaf.grad for leaf in leaves]])
    for plain, short in zip(*results, strict=True):
        if plain is None:
            assert short is None
        else:
            torch.testing.assert_close(short, plain, rtol=1e-12, atol=1e-12)


def test_unit_rows_have_norm_one_and_a_zero_row_stays_zero():
    rows = unit_rows(torch.tensor([[3.0, 4.0], [0.0, 0.0], [1e-6, 0.0]]))
    torch.testing.assert_close(rows, torch.tensor([[0.6, 0.8], [0.0, 0.0], [1.0, 0.0]]))


def test_random_rows_depend_on_their_seed_alone():
    before = torch.get_rng_state()
    assert torch.equal(random_unit_rows(5, 3, 1), random_unit_rows(5, 3, 1))
    assert not torch.equal(random_unit_rows(5, 3, 1), random_unit_rows(5, 3, 2))
    plainly = torch.randn(5, 3, generator=torch.Generator().manual_seed(1))
    assert not torch.allclose(random_unit_rows(5, 3, 1), unit_rows(plainly), atol=0.1)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_projected_gradient_is_at_right_angles_to_its_row():
    rows, gradient = unit_rows(normal(6, 5)), normal(6, 5, seed=1)
    across = gradient - (gradient * rows).sum(-1, keepdim=True) * rows
    project_gradient_rows_(gradient, rows)
    torch.testing.assert_close(gradient, across)
    assert float((gradient * rows).sum(-1).abs().max()) < 1e-14


def test_squared_error_sums_over_the_width_and_averages_over_the_batch():
    assert squared_error(torch.tensor([[1.0, 2.0], [0.0, 3.0]])).item() == 7.0
    assert spread_of(torch.tensor([[1.0, 2.0], [3.0, 2.0]])).item() == 1.0


# --- geometric median ---


def test_the_geometric_median_minimises_the_mean_distance():
    sample = normal(200, 3) * torch.tensor([1.0, 5.0, 0.2]) + (normal(200, 1, seed=1) > 1.5) * 30.0
    found = geometric_median(sample, max_rounds=2000, tolerance=1e-12)
    best = minimize(
        lambda m: float((sample - torch.from_numpy(m)).norm(dim=-1).sum()),
        sample.mean(0).numpy(),
        method="BFGS",
        options={"gtol": 1e-8},
    )
    torch.testing.assert_close(found, torch.from_numpy(best.x), rtol=0, atol=1e-4)
    assert (found - sample.mean(0)).norm() > 1  # the outliers drag the mean, not the median


def test_the_median_of_points_that_include_the_mean_is_finite():
    sample = torch.tensor([[-1.0, 0.0], [0.0, 0.0], [1.0, 0.0]])
    torch.testing.assert_close(geometric_median(sample), torch.zeros(2))


# --- auxiliary loss ---


@pytest.fixture
def situation() -> dict[str, Any]:
    """A residual, latents of which some are dead, and a decoder; in float64."""
    dead = torch.zeros(10, dtype=torch.bool)
    dead[[1, 4, 5, 8]] = True
    return {
        "error": normal(6, 3),
        "pre": normal(6, 10, seed=1).relu(),
        "dead": dead,
        "W_dec": unit_rows(normal(10, 3, seed=2)),
    }


def test_aux_k_agrees_with_a_loop_over_tokens(situation: dict[str, Any]):
    error, pre, dead, W_dec = situation.values()
    total = 0.0
    for e, p in zip(error, pre, strict=True):
        strongest = sorted(dead.nonzero().flatten().tolist(), key=lambda i: -p[i])[:2]
        e_hat = sum((p[i] * W_dec[i] for i in strongest), torch.zeros(3, dtype=torch.float64))
        total += float((e - e_hat).square().sum())
    baseline = float((error - error.mean(0)).square().sum())
    assert aux_k(error, pre, dead, W_dec, 2).item() == pytest.approx(total / baseline, rel=1e-12)


def test_aux_k_teaches_only_the_dead_latents_it_selects(situation: dict[str, Any]):
    error, pre, dead, W_dec = situation.values()
    error, raw, W_dec = (
        tensor.clone().requires_grad_() for tensor in (error, normal(6, 10, seed=1), W_dec)
    )
    aux_k(error, raw.relu(), dead, W_dec, 2).backward()
    selected = torch.zeros_like(pre, dtype=torch.bool)
    for row, p in enumerate(pre):
        strongest = sorted(dead.nonzero().flatten().tolist(), key=lambda i: -p[i])[:2]
        selected[row, [i for i in strongest if p[i] > 0]] = True
    assert error.grad is None
    assert raw.grad is not None
    assert W_dec.grad is not None
    assert torch.equal(raw.grad != 0, selected)
    assert torch.equal((W_dec.grad != 0).any(-1), selected.any(0))
    assert selected.any()


def test_aux_k_is_zero_without_dead_latents(situation: dict[str, Any]):
    situation["dead"] = torch.zeros(10, dtype=torch.bool)
    assert aux_k(**situation, k=2).item() == 0


def test_aux_k_uses_all_dead_latents_when_they_are_few(situation: dict[str, Any]):
    assert torch.equal(aux_k(**situation, k=4), aux_k(**situation, k=10_000))


def test_aux_k_does_not_depend_on_the_scale(situation: dict[str, Any]):
    before = aux_k(**situation, k=2)
    situation["error"] = situation["error"] * 1e3
    situation["pre"] = situation["pre"] * 1e3
    torch.testing.assert_close(aux_k(**situation, k=2), before)


def test_aux_k_starts_at_one_for_a_centred_residual(situation: dict[str, Any]):
    situation["error"] = situation["error"] - situation["error"].mean(0)
    situation["pre"] = torch.zeros_like(situation["pre"])
    assert aux_k(**situation, k=2).item() == pytest.approx(1.0, rel=1e-12)


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_aux_k_is_zero_for_a_residual_that_is_the_same_everywhere(
    situation: dict[str, Any], value: float
):
    given = {
        name: tensor.float() if tensor.is_floating_point() else tensor
        for name, tensor in situation.items()
    }
    given["error"] = torch.full((6, 3), value)
    pre = given["pre"].requires_grad_()
    loss = aux_k(**given, k=2)
    loss.backward()
    assert loss.item() == 0
    assert pre.grad is not None
    assert bool((pre.grad == 0).all())


@pytest.mark.parametrize(("d_in", "expected"), [(768, 512), (1600, 1024), (192, 128), (2, 1)])
def test_as_many_dead_latents_help_as_the_power_of_two_nearest_half_the_width(
    d_in: int, expected: int
):
    found = half_width({"d_in": d_in})
    assert found == expected
    assert abs(math.log2(found) - math.log2(d_in / 2)) <= 0.5


def test_rows_of_data_point_from_the_centre_to_inputs_and_the_rest_is_drawn():
    torch.manual_seed(0)
    sample, centre = torch.randn(5, 4), torch.ones(4)
    sample[2] = centre  # has no direction
    rows = _ops.rows_of_data(sample, centre, 8, seed=3)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(8))
    wanted = _ops.unit_rows(sample - centre)
    cosines = rows[:5] @ wanted.mT
    assert sorted(cosines.argmax(1)[cosines.amax(1) > 1 - 1e-6].tolist()) == [0, 1, 3, 4]
    assert torch.equal(rows[5:], _ops.random_unit_rows(8, 4, 3)[5:])
    assert torch.equal(rows, _ops.rows_of_data(sample, centre, 8, seed=3))
