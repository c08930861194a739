import math

import numpy as np
import pytest
import torch

from sae_lib.evaluate._moments import ContextMoments


def clustered(num_contexts: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Contexts of unequal length whose tokens resemble each other: context, a, b."""
    rng = np.random.default_rng(seed)
    context = np.repeat(np.arange(num_contexts), rng.integers(3, 12, num_contexts))
    level = rng.normal(2.0, 1.0, num_contexts)[context]
    a = level + rng.normal(0, 0.5, len(context))
    b = 3 + 0.5 * level + rng.normal(0, 0.5, len(context))
    return torch.from_numpy(context), torch.from_numpy(a), torch.from_numpy(b)


def moments_of(context: torch.Tensor, *columns: torch.Tensor) -> ContextMoments:
    moments = ContextMoments([f"c{i}" for i in range(len(columns))])
    moments.add(context, int(context.max()) + 1, *columns)
    return moments


def test_a_mean_over_tokens_is_the_sum_over_the_count():
    context, a, _ = clustered(40)
    found = moments_of(context, a).ratio("c0")
    assert found.value == pytest.approx(a.mean().item(), rel=1e-14)
    assert (found.n, found.unit) == (40, "contexts")


def test_the_standard_error_of_a_ratio_is_the_bootstrap_one():
    context, a, b = clustered(200)
    found = moments_of(context, a, b).ratio("c0", "c1")
    sums = np.stack([np.bincount(context, v) for v in (a, b)], axis=1)
    rng = np.random.default_rng(1)
    drawn = sums[rng.integers(0, 200, (20_000, 200))].sum(1)
    bootstrap = (drawn[:, 0] / drawn[:, 1]).std()
    assert found.stderr == pytest.approx(bootstrap, rel=0.03)


def test_tokens_that_resemble_each_other_do_not_count_as_independent():
    context, a, _ = clustered(200)
    found = moments_of(context, a).ratio("c0")
    as_if_independent = a.std().item() / math.sqrt(len(a))
    assert found.stderr is not None
    assert found.stderr > 1.5 * as_if_independent


def test_with_one_token_per_context_it_is_the_ordinary_standard_error():
    values = torch.tensor([1.0, 4.0, 2.0, 7.0], dtype=torch.float64)
    found = moments_of(torch.arange(4), values).ratio("c0")
    assert found.stderr == pytest.approx(values.std().item() / 2, rel=1e-14)


def test_batches_add_up_to_one_shot():
    context, a, b = clustered(30)
    whole = moments_of(context, a, b)
    parts = ContextMoments(["c0", "c1"])
    for low, high in ((0, 13), (13, 30)):
        here = (context >= low) & (context < high)
        parts.add(context[here] - low, high - low, a[here], b[here])
    one, other = whole.ratio("c0", "c1"), parts.ratio("c0", "c1")
    assert one[:3] == pytest.approx(other[:3], rel=1e-12)


def test_a_context_without_a_kept_token_counts_for_nothing():
    context, a, _ = clustered(30)
    with_empty = ContextMoments(["c0"])
    with_empty.add(context, 37, a)
    assert with_empty.ratio("c0") == moments_of(context, a).ratio("c0")


def test_one_context_has_a_value_and_no_standard_error():
    found = moments_of(torch.zeros(3, dtype=torch.long), torch.tensor([1.0, 2.0, 6.0])).ratio("c0")
    assert (found.value, found.stderr, found.n) == (3.0, None, 1)


def test_nothing_at_all_has_a_reason_instead_of_a_value():
    assert ContextMoments(["c0"]).ratio("c0").reason == "no token was kept"


def test_a_denominator_of_zero_has_a_reason_instead_of_a_value():
    found = moments_of(torch.arange(2), torch.ones(2), torch.zeros(2)).ratio("c0", "c1")
    assert found.value is None
    assert found.reason == "the sum of c1 is 0"


def test_infinity_in_one_column_leaves_the_others_their_standard_error():
    context, a, _ = clustered(30)
    beside = moments_of(context, a, torch.full_like(a, torch.inf)).ratio("c0")
    assert beside == moments_of(context, a).ratio("c0")
