"""Batches in memory."""

import pytest
import torch

from sae_lib.errors import BadInput
from sae_lib.training.memory import InMemoryBatches

X = {"a": torch.arange(10.0).unsqueeze(1), "b": -torch.arange(10.0).unsqueeze(1)}


def test_a_batch_is_a_function_of_its_number():
    first, second = InMemoryBatches(X, 4, seed=1), InMemoryBatches(X, 4, seed=1)
    forwards = [first.batch(i).rows.tolist() for i in range(12)]
    assert [second.batch(i).rows.tolist() for i in reversed(range(12))] == forwards[::-1]
    assert [InMemoryBatches(X, 4, seed=2).batch(i).rows.tolist() for i in range(12)] != forwards


def test_every_pass_has_each_row_once_in_an_order_of_its_own():
    rows = torch.cat([InMemoryBatches(X, 4).batch(i).rows for i in range(5)])
    first, second = rows[:10].tolist(), rows[10:].tolist()
    assert sorted(first) == sorted(second) == list(range(10))
    assert first != second


def test_all_sites_show_the_same_rows():
    batch = InMemoryBatches(X, 7).batch(3)
    assert torch.equal(batch.x["a"].squeeze(1), batch.rows.float())
    assert torch.equal(batch.x["b"], -batch.x["a"])


def test_a_batch_may_be_longer_than_the_data():
    assert InMemoryBatches(X, 25).batch(1).rows.bincount().sum() == 25


@pytest.mark.parametrize("x", [{"a": torch.zeros(3, 1), "b": torch.zeros(4, 1)}, {"a": X["a"][:0]}])
def test_sites_of_different_or_no_length_are_refused(x: dict[str, torch.Tensor]):
    with pytest.raises(BadInput, match="same number of rows"):
        InMemoryBatches(x, 2)
