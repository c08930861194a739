"""Running statistics against float64 numpy."""

import json

import numpy as np
import pytest
import torch

from sae_lib.activations.stats import RunningStats
from sae_lib.errors import BadInput


@pytest.fixture
def rows():
    """A dimension whose mean is a thousand times its spread, as residual streams have them."""
    x = torch.randn(1000, 8, generator=torch.Generator().manual_seed(0))
    x[:, 3] = x[:, 3] * 0.01 + 10
    x[:, 5] *= 100
    return x


def add_in_parts(x, sizes):
    stats = RunningStats(x.shape[1])
    for part in x.split(sizes):
        stats.add(part)
    return stats


@pytest.mark.parametrize("sizes", [[1000], [1, 999], [0, 500, 0, 500], [100] * 10])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_are_those_of_numpy_however_the_rows_came(rows, sizes, dtype):
    rows = rows.to(dtype)
    found = add_in_parts(rows, sizes).result()
    exact = rows.double().numpy()
    assert found.num_rows == 1000
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.variance, exact.var(0), rtol=1e-11)
    norms = np.linalg.norm(exact, axis=1)
    assert found.mean_norm == pytest.approx(norms.mean(), rel=1e-12)
    assert found.mean_square_norm == pytest.approx((norms**2).mean(), rel=1e-12)
    identity = found.mean.square().sum() + found.variance.sum()
    assert found.mean_square_norm == pytest.approx(identity.item(), rel=1e-12)


def test_a_state_that_went_through_json_goes_on_bit_for_bit(rows):
    whole = add_in_parts(rows, [300, 300, 400])
    first = add_in_parts(rows[:600], [300, 300])
    resumed = RunningStats(8)
    resumed.load(json.loads(json.dumps(first.state(), allow_nan=False)))
    resumed.add(rows[600:])
    assert resumed.state() == whole.state()


def test_a_result_does_not_change_when_more_rows_come(rows):
    stats = add_in_parts(rows[:100], [100])
    before = stats.result()
    mean = before.mean.clone()
    stats.add(rows[100:])
    assert torch.equal(before.mean, mean)


def test_no_rows_have_no_statistics():
    with pytest.raises(BadInput, match="no position was kept"):
        RunningStats(4).result()


def test_a_value_that_is_not_finite_shows(rows):
    stats = add_in_parts(rows, [1000])
    assert stats.is_finite()
    stats.add(torch.tensor([[float("inf")] + [0.0] * 7]))
    assert not stats.is_finite()
