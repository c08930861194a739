from typing import Any

import numpy as np
import pytest
import torch

from sae_lib.evaluate.reconstruction import ReconstructionConfig

METRIC = ReconstructionConfig()
X = torch.tensor([[2.0, 0.0], [0.0, 4.0], [4.0, 2.0]])
X_HAT = torch.tensor([[2.0, 1.0], [0.0, 3.0], [4.0, 4.0]])


def values(tools: Any, *batches: Any, mean: torch.Tensor | None = None) -> Any:
    return tools.Values(tools.run_metric(METRIC, list(batches), mean=mean).rows())


def realistic(num_contexts: int = 60, d_in: int = 8, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """x with a large mean and one loud dimension, a shrunken x_hat, contexts that cluster."""
    rng = np.random.default_rng(seed)
    context = np.repeat(np.arange(num_contexts), rng.integers(4, 9, num_contexts))
    topic = rng.normal(0, 1, (num_contexts, d_in))[context]
    x = 20 + topic + rng.normal(0, 1, (len(context), d_in)) * np.geomspace(0.1, 10, d_in)
    noise = (0.3 + 0.3 * np.abs(topic[:, :1])) * rng.normal(0, 1, x.shape)
    x_hat = 0.95 * (x - x.mean(0)) + x.mean(0) + 0.1 + noise
    return torch.from_numpy(x), torch.from_numpy(x_hat), torch.from_numpy(context)


def brute_force(x: torch.Tensor, x_hat: torch.Tensor) -> dict[tuple[str, str], float]:
    """Every definition, token by token in float64, one batch."""
    x, x_hat = x.double(), x_hat.double()
    e = x - x_hat
    rows = list(zip(x, x_hat, e, strict=True))
    square = [float(v @ v) for v in e]
    spread = sum(float(v @ v) for v in x - x.mean(0))
    mean = x.mean(0)
    n = len(x)
    return {
        ("mse", "per_token"): sum(square) / n,
        ("mse", "per_element"): float((e**2).mean()),
        ("cosine", "mean_of_tokens"): sum(
            float(a @ b) / float(a.norm() * b.norm()) for a, b, _ in rows
        )
        / n,
        ("fvu", "ratio_of_sums"): sum(square) / spread,
        ("explained_variance", "ratio_of_sums"): 1 - sum(square) / spread,
        ("explained_variance", "legacy_mean_of_ratios"): sum(
            1 - float(c @ c) / float((a - mean) @ (a - mean)) for a, _, c in rows
        )
        / n,
        ("explained_variance", "variance_of_error"): 1
        - float(e.var(0, correction=0).sum() / x.var(0, correction=0).sum()),
        ("fvu", "uncentred"): sum(square) / float((x**2).sum()),
        ("normalized_mse", "mean_of_ratios"): sum(float(c @ c) / float(a @ a) for a, _, c in rows)
        / n,
        ("l2_ratio", "mean_of_ratios"): sum(float(b.norm() / a.norm()) for a, b, _ in rows) / n,
        ("l2_ratio", "ratio_of_means"): float(x_hat.norm(dim=1).mean() / x.norm(dim=1).mean()),
        ("l2_norm_in", "mean_of_tokens"): float(x.norm(dim=1).mean()),
        ("l2_norm_out", "mean_of_tokens"): float(x_hat.norm(dim=1).mean()),
        ("relative_reconstruction_bias", "ratio_of_sums"): float(
            (x_hat**2).sum() / (x * x_hat).sum()
        ),
    }


def test_three_tokens_by_hand(tools):
    found = values(tools, tools.batch_of(X, X_HAT))
    expected = {
        ("mse", "per_token"): 2.0,
        ("mse", "per_element"): 1.0,
        ("cosine", "mean_of_tokens"): 0.947703,
        ("zero_reconstruction_share", "mean_of_tokens"): 0.0,
        ("fvu", "ratio_of_sums"): 0.375,
        ("fvu", "uncentred"): 0.15,
        ("explained_variance", "ratio_of_sums"): 0.625,
        ("explained_variance", "legacy_mean_of_ratios"): 0.541667,
        ("explained_variance", "variance_of_error"): 0.708333,
        ("normalized_mse", "mean_of_ratios"): 0.170833,
        ("l2_ratio", "mean_of_ratios"): 1.044315,
        ("l2_ratio", "ratio_of_means"): 1.040182,
        ("relative_reconstruction_bias", "ratio_of_sums"): 1.15,
    }
    assert {key: found[key].value for key in expected} == pytest.approx(expected, abs=1e-6)


def test_two_tokens_by_hand(tools):
    found = values(tools, tools.batch_of(X[:2], X_HAT[:2]))
    assert found["explained_variance", "ratio_of_sums"].value == pytest.approx(0.8)


def test_every_definition_equals_a_loop_over_tokens(tools):
    x, x_hat, context = realistic()
    found = values(tools, tools.batch_of(x, x_hat, context=context), mean=x.mean(0) + 0.3)
    expected = brute_force(x, x_hat)
    assert {key: found[key].value for key in expected} == pytest.approx(expected, rel=1e-10)


def test_the_given_centre_does_not_change_a_value(tools):
    x, x_hat, context = realistic()
    batch = tools.batch_of(x, x_hat, context=context)
    near, far = values(tools, batch, mean=x.mean(0)), values(tools, batch)
    for key, row in near.items():
        assert row.value == pytest.approx(far[key].value, rel=1e-10)


def test_float32_agrees_with_float64(tools):
    x, x_hat, context = realistic()
    fine = values(tools, tools.batch_of(x, x_hat, context=context), mean=x.mean(0))
    coarse = values(
        tools, tools.batch_of(x.float(), x_hat.float(), context=context), mean=x.mean(0).float()
    )
    for key, row in fine.items():
        assert row.value == pytest.approx(coarse[key].value, rel=1e-4)


def test_a_large_common_offset_does_not_eat_the_variance(tools):
    x, x_hat, _ = realistic()
    near = values(tools, tools.batch_of(x, x_hat), mean=x.mean(0))
    far = values(tools, tools.batch_of(x + 1e5, x_hat + 1e5), mean=x.mean(0) + 1e5)
    assert near["fvu", "ratio_of_sums"].value == pytest.approx(
        far["fvu", "ratio_of_sums"].value, rel=1e-8
    )


def test_two_halves_equal_one_shot_but_for_the_definition_that_depends_on_the_batch(tools):
    x, x_hat, context = realistic()
    first = context < 25
    whole = values(tools, tools.batch_of(x, x_hat, context=context), mean=x.mean(0))
    halves = values(
        tools,
        tools.batch_of(x[first], x_hat[first], context=context[first]),
        tools.batch_of(x[~first], x_hat[~first], context=context[~first] - 25),
        mean=x.mean(0),
    )
    legacy = ("explained_variance", "legacy_mean_of_ratios")
    for key in whole.keys() - {legacy}:
        assert whole[key].value == pytest.approx(halves[key].value, rel=1e-12)
        if key != ("explained_variance", "variance_of_error"):
            assert whole[key].stderr == pytest.approx(halves[key].stderr, rel=1e-9)
    assert whole[legacy].value != pytest.approx(halves[legacy].value, rel=1e-6)


def test_the_order_of_tokens_means_nothing(tools):
    x, x_hat, context = realistic()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    straight = values(tools, tools.batch_of(x, x_hat, context=context))
    shuffled = values(tools, tools.batch_of(x[order], x_hat[order], context=context[order]))
    for key, row in straight.items():
        assert row.value == pytest.approx(shuffled[key].value, rel=1e-12)


def test_the_mean_predictor_explains_nothing_and_the_identity_everything(tools):
    x, _, _ = realistic()
    mean = values(tools, tools.batch_of(x, x.mean(0).expand_as(x)), mean=x.mean(0))
    assert mean["fvu", "ratio_of_sums"].value == pytest.approx(1.0, rel=1e-12)
    perfect = values(tools, tools.batch_of(x, x), mean=x.mean(0))
    assert perfect["explained_variance", "ratio_of_sums"].value == 1.0
    assert perfect["relative_reconstruction_bias", "ratio_of_sums"].value == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["fvu", "explained_variance"])
def test_the_standard_error_of_fvu_is_the_bootstrap_one(tools, name):
    x, x_hat, context = realistic(num_contexts=200)
    found = values(tools, tools.batch_of(x, x_hat, context=context), mean=x.mean(0) + 0.1)
    # per context: count, sum of x, sum of |x|^2, sum of |e|^2
    moments = torch.cat(
        [
            torch.ones(len(x), 1, dtype=torch.float64),
            x,
            (x**2).sum(1, keepdim=True),
            ((x - x_hat) ** 2).sum(1, keepdim=True),
        ],
        dim=1,
    )
    by_context = torch.zeros(200, moments.shape[1], dtype=torch.float64)
    by_context.index_add_(0, context, moments)
    rng = np.random.default_rng(0)
    drawn = by_context.numpy()[rng.integers(0, 200, (5000, 200))].sum(1)
    count, sum_x, sum_xx, sum_ee = drawn[:, 0], drawn[:, 1:9], drawn[:, 9], drawn[:, 10]
    fvu = sum_ee / (sum_xx - (sum_x**2).sum(1) / count)
    assert found[name, "ratio_of_sums"].stderr == pytest.approx(fvu.std(), rel=0.06)


def test_a_centre_far_from_the_data_costs_fvu_its_standard_error_not_its_value(tools):
    x, x_hat, context = realistic()
    found = values(tools, tools.batch_of(x, x_hat, context=context))["fvu", "ratio_of_sums"]
    assert found.stderr is None
    assert found.value == pytest.approx(brute_force(x, x_hat)["fvu", "ratio_of_sums"])


def test_a_token_without_reconstruction_has_cosine_zero_and_is_counted(tools):
    x_hat = X_HAT.clone()
    x_hat[1] = 0
    found = values(tools, tools.batch_of(X, x_hat))
    assert found["cosine", "mean_of_tokens"].value == pytest.approx((0.894427 + 0.948683) / 3)
    assert found["zero_reconstruction_share", "mean_of_tokens"].value == pytest.approx(1 / 3)


def test_constant_activations_have_a_reason_instead_of_an_explained_variance(tools):
    x = torch.full((50, 4), 0.1)
    found = values(tools, tools.batch_of(x, x + 1), mean=torch.full((4,), 0.1))
    for key in (
        ("fvu", "ratio_of_sums"),
        ("explained_variance", "ratio_of_sums"),
        ("explained_variance", "variance_of_error"),
    ):
        assert found[key].value is None
        assert found[key].reason == "the activations are the same for all tokens"
    legacy = found["explained_variance", "legacy_mean_of_ratios"]
    assert legacy.value is None
    assert "50 tokens lie at the mean" in (legacy.reason or "")
    assert found["mse", "per_token"].value == pytest.approx(4.0)


def test_a_zero_activation_has_no_relative_error(tools):
    x = X.clone()
    x[0] = 0
    found = values(tools, tools.batch_of(x, X_HAT))["normalized_mse", "mean_of_ratios"]
    assert found.value is None
    assert "1 tokens have the zero vector" in (found.reason or "")


def test_a_reconstruction_that_points_away_has_no_shrinkage(tools):
    found = values(tools, tools.batch_of(X, -X_HAT))[
        "relative_reconstruction_bias", "ratio_of_sums"
    ]
    assert found.value is None
    assert "points away" in (found.reason or "")


def test_without_a_token_every_row_has_a_reason(tools):
    empty = tools.batch_of(torch.zeros(0, 2))
    rows = tools.run_metric(METRIC, [empty]).rows()
    assert len(rows) == len(METRIC.definitions())
    assert {row.value for row in rows} == {None}
    assert {row.reason for row in rows} == {"no token was kept"}
