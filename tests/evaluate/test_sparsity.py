import math
from typing import Any

import pytest
import torch

from sae_lib.errors import NotApplicable
from sae_lib.evaluate.sparsity import SparsityAccumulator, SparsityConfig
from sae_lib.warehouse.rows import Measurement

METRIC = SparsityConfig()
Z = torch.tensor([[0.0, 2.0, 0.0, 1.0], [0.0, 0.0, 0.0, 3.0], [0.0, 0.0, 0.0, 0.5]])


def rows_of(tools: Any, *batches: Any, metric: SparsityConfig = METRIC) -> list[Measurement]:
    return tools.run_metric(metric, list(batches)).rows()


def batch(tools: Any, z: torch.Tensor, context: torch.Tensor | None = None) -> Any:
    return tools.batch_of(torch.zeros(len(z), 2, dtype=z.dtype), z=z, context=context)


def value(rows: list[Measurement], name: str, **params: Any) -> float | None:
    found = [r for r in rows if r.name == name and params.items() <= r.params.items()]
    assert len(found) == 1, found
    return found[0].value


def sparse_codes(
    num_tokens: int = 600, d_sae: int = 12, seed: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    p = torch.logspace(-2.5, 0, d_sae, dtype=torch.float64)
    shape = num_tokens, d_sae
    on = torch.rand(shape, generator=generator, dtype=torch.float64) < p
    size = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.1
    return on * size, torch.arange(num_tokens) // 20


def test_three_tokens_by_hand(tools):
    rows = rows_of(tools, batch(tools, Z))
    assert value(rows, "l0") == pytest.approx(4 / 3)
    assert value(rows, "l1") == pytest.approx(6.5 / 3)
    assert value(rows, "activation_when_on") == pytest.approx(6.5 / 4)
    assert value(rows, "alive_share") == 0.5
    assert next(r.value for r in rows if r.definition == "never_fired") == 0.5
    assert value(rows, "dense_share", threshold=0.01) == 0.5
    assert value(rows, "dense_share", threshold=0.1) == 0.5
    assert value(rows, "density_mass", threshold=0.1) == pytest.approx(1.0)


def test_three_tokens_by_hand_latent_by_latent(tools):
    latents = tools.run_metric(METRIC, [batch(tools, Z)]).per_latent()
    assert [latent.density for latent in latents] == pytest.approx([0, 1 / 3, 0, 1])
    assert [latent.mean_activation for latent in latents] == [None, 2.0, None, 1.5]
    assert [latent.max_activation for latent in latents] == [0.0, 2.0, 0.0, 3.0]
    assert [latent.latent for latent in latents] == [0, 1, 2, 3]


def test_the_histogram_has_silent_latents_in_the_first_bin_and_constant_ones_in_the_last(tools):
    rows = [r for r in rows_of(tools, batch(tools, Z)) if r.name == "log10_density_histogram"]
    assert [(r.params["low"], r.params["high"], r.value) for r in rows] == [
        (-10.0, -9.9, 0.5),
        (-0.5, -0.4, 0.25),  # log10(1/3) = -0.4771
        (-0.1, 0.0, 0.25),
    ]


def test_the_histogram_adds_up_to_all_latents(tools):
    z, _ = sparse_codes()
    rows = rows_of(tools, batch(tools, z))
    shares = [r.value for r in rows if r.name == "log10_density_histogram"]
    assert math.fsum(s for s in shares if s) == pytest.approx(1.0)


def test_firing_twice_in_one_context_and_once_in_another_is_one_and_a_half_times(tools):
    z = torch.tensor([[1.0], [2.0], [0.0], [0.0], [0.0], [4.0]])
    context = torch.tensor([0, 0, 1, 1, 2, 2])
    assert value(rows_of(tools, batch(tools, z, context)), "consistent_activation") == 1.5


def test_densities_add_up_to_l0(tools):
    z, context = sparse_codes()
    accumulator = tools.run_metric(METRIC, [batch(tools, z, context)])
    assert isinstance(accumulator, SparsityAccumulator)
    density = accumulator.density()
    assert density.sum().item() == pytest.approx(value(accumulator.rows(), "l0"), rel=1e-12)
    assert density.max() <= 1


def test_densities_are_those_that_were_planted(tools):
    z, context = sparse_codes(num_tokens=20_000)
    accumulator = tools.run_metric(METRIC, [batch(tools, z, context)])
    planted = torch.logspace(-2.5, 0, 12, dtype=torch.float64)
    found = torch.tensor([latent.density for latent in accumulator.per_latent()])
    assert ((found - planted).abs() <= 4 * (planted * (1 - planted) / 20_000).sqrt()).all()


def test_everything_equals_a_loop_over_latents(tools):
    z, context = sparse_codes()
    accumulator = tools.run_metric(METRIC, [batch(tools, z, context)])
    repeated = []
    for i, latent in enumerate(accumulator.per_latent()):
        on = z[:, i] > 0
        assert latent.density == pytest.approx(on.double().mean().item(), rel=1e-14)
        assert latent.max_activation == z[:, i].max().item()
        if not on.any():
            assert latent.mean_activation is None
            continue
        assert latent.mean_activation == pytest.approx(z[on, i].mean().item(), rel=1e-12)
        repeated.append(int(on.sum()) / len(context[on].unique()))
    found = value(accumulator.rows(), "consistent_activation")
    assert found == pytest.approx(sum(repeated) / len(repeated), rel=1e-12)


def test_shares_below_a_threshold_say_whether_the_tokens_were_enough(tools):
    metric = SparsityConfig(dead_below=(0.03, 0.01))
    z, context = sparse_codes(num_tokens=200)
    rows = rows_of(tools, batch(tools, z, context), metric=metric)
    below = {r.params["threshold"]: r for r in rows if r.definition == "density_below"}
    assert below[0.03].params["resolvable"]  # 3 / 0.03 = 100 tokens
    assert not below[0.01].params["resolvable"]  # 300 tokens
    density = (z > 0).double().mean(0)
    assert below[0.03].value == pytest.approx((density < 0.03).double().mean().item())


def test_two_halves_equal_one_shot(tools):
    z, context = sparse_codes()
    whole = tools.run_metric(METRIC, [batch(tools, z, context)])
    halves = tools.run_metric(
        METRIC, [batch(tools, z[:300], context[:300]), batch(tools, z[300:], context[300:] - 15)]
    )
    for one, other in zip(whole.rows(), halves.rows(), strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-12)
        assert one.stderr is None or one.stderr == pytest.approx(other.stderr, rel=1e-10)
        assert one.params == other.params
    for one, other in zip(whole.per_latent(), halves.per_latent(), strict=True):
        assert one._replace(mean_activation=None) == other._replace(mean_activation=None)
        assert one.mean_activation == pytest.approx(other.mean_activation, rel=1e-12)


def test_the_order_of_tokens_means_nothing(tools):
    z, context = sparse_codes()
    order = torch.randperm(len(z), generator=torch.Generator().manual_seed(0))
    straight = rows_of(tools, batch(tools, z, context))
    shuffled = rows_of(tools, batch(tools, z[order], context[order]))
    for one, other in zip(straight, shuffled, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-12)


def test_the_order_of_latents_means_nothing(tools):
    z, context = sparse_codes()
    order = torch.randperm(z.shape[1], generator=torch.Generator().manual_seed(0))
    one = tools.run_metric(METRIC, [batch(tools, z, context)])
    other = tools.run_metric(METRIC, [batch(tools, z[:, order], context)])
    for row, permuted in zip(one.rows(), other.rows(), strict=True):
        assert row.value == pytest.approx(permuted.value, rel=1e-12)
    for place, latent in enumerate(order.tolist()):
        assert other.per_latent()[place][1:] == one.per_latent()[latent][1:]


def test_scaling_latents_changes_sums_and_no_counts(tools):
    z, context = sparse_codes()
    once, twice = (rows_of(tools, batch(tools, c * z, context)) for c in (1, 2))
    for one, other in zip(once, twice, strict=True):
        factor = 2 if one.name in {"l1", "activation_when_on"} else 1
        assert one.value is not None
        assert other.value == pytest.approx(factor * one.value, rel=1e-12)


def test_float32_agrees_with_float64(tools):
    z, context = sparse_codes()
    fine = rows_of(tools, batch(tools, z, context))
    coarse = rows_of(tools, batch(tools, z.float(), context))
    for one, other in zip(fine, coarse, strict=True):
        assert one.value == pytest.approx(other.value, rel=1e-6)


def test_a_silent_coder_has_l0_zero_and_no_mean_activation(tools):
    rows = rows_of(tools, batch(tools, torch.zeros(5, 4)))
    assert value(rows, "l0") == 0
    assert value(rows, "density_mass", threshold=0.1) == 0
    assert value(rows, "alive_share") == 0
    for name in ("activation_when_on", "consistent_activation"):
        assert value(rows, name) is None
        assert next(r.reason for r in rows if r.name == name)


def test_latents_below_zero_are_refused(tools):
    with pytest.raises(NotApplicable, match="negative"):
        rows_of(tools, batch(tools, -Z))
