"""The seeded order: a permutation per epoch, a function of the step, and well mixed."""

import numpy as np
import pytest
import torch

from sae_lib.activations.order import BlockKey, Order
from sae_lib.errors import BadInput

KEPT = np.array([5, 3, 0, 8, 8, 1, 7, 2, 8, 4])  # 46 rows


def stream(order, steps):
    """(epoch, context, number inside the context) of every row of these batches, in order."""
    starts = {}
    found = []
    for step in steps:
        batch = []
        for key, rows in order.batch(step):
            if key not in starts:
                contexts = order.contexts(key)
                starts[key] = [
                    (key.epoch, int(c), i)
                    for c in contexts
                    for i in range(order.kept_per_context[c])
                ]
            batch += [starts[key][row] for row in rows.tolist()]
        assert len(batch) == order.batch_tokens
        found += batch
    return found


@pytest.mark.parametrize(
    ("block_tokens", "batch_tokens"), [(16, 7), (1, 5), (1000, 10), (24, 100), (8, 46)]
)
def test_every_kept_row_comes_exactly_once_per_epoch(block_tokens, batch_tokens):
    order = Order(KEPT, seed=3, block_tokens=block_tokens, batch_tokens=batch_tokens)
    assert order.num_rows == 46
    steps = -(-3 * 46 // batch_tokens)
    rows = stream(order, range(steps))
    every = {(c, i) for c, kept in enumerate(KEPT) for i in range(kept)}
    for epoch in range(3):
        mine = rows[epoch * 46 : (epoch + 1) * 46]
        assert {(e, *row) for e, *row in mine} == {(epoch, *row) for row in every}


def test_a_batch_is_a_function_of_its_number():
    make = {"seed": 3, "block_tokens": 16, "batch_tokens": 7}
    whole = stream(Order(KEPT, **make), range(30))
    resumed = Order(KEPT, **make)
    assert stream(resumed, range(11, 30)) == whole[11 * 7 :]
    assert stream(resumed, [4]) == whole[4 * 7 : 5 * 7]
    assert stream(Order(KEPT, **{**make, "seed": 4}), range(30)) != whole


def test_the_second_epoch_has_another_order_of_contexts_and_of_rows():
    order = Order(KEPT, seed=0, block_tokens=1000, batch_tokens=46)
    first, second = stream(order, [0]), stream(order, [1])
    assert [row[1:] for row in first] != [row[1:] for row in second]
    small = Order(np.full(200, 4), seed=0, block_tokens=40, batch_tokens=800)
    assert small.num_blocks == 20
    blocks = [[small.contexts(BlockKey(e, b)).tolist() for b in range(20)] for e in range(2)]
    for drawn in blocks:
        assert sorted(context for block in drawn for context in block) == list(range(200))
    assert not any(block in blocks[1] for block in blocks[0])


def test_batch_size_does_not_change_the_stream():
    ours = stream(Order(KEPT, seed=1, block_tokens=16, batch_tokens=7), range(14))
    other = stream(Order(KEPT, seed=1, block_tokens=16, batch_tokens=2), range(49))
    assert ours == other


def test_rows_of_one_context_meet_about_as_often_as_chance_has_it():
    contexts, kept, block = 256, 16, 64
    order = Order(np.full(contexts, kept), seed=0, block_tokens=block * kept, batch_tokens=128)
    rows = stream(order, range(contexts * kept // 128))
    ids = np.array([context for _, context, _ in rows])
    neighbours = (ids[1:] == ids[:-1]).mean()
    chance = (kept - 1) / (block * kept - 1)
    spread = np.sqrt(chance / len(ids))
    assert abs(neighbours - chance) < 4 * spread
    inside = ids.reshape(-1, 128)
    pairs = np.mean([(np.bincount(batch) ** 2).sum() - 128 for batch in inside]) / (128 * 127)
    assert pairs == pytest.approx(chance, rel=0.2)


def test_seeds_of_epochs_and_blocks_do_not_collide():
    # numpy seeds (s, e) and (s, e, 0) alike: without tags block 0 would repeat its epoch
    order = Order(np.ones(64, int), seed=5, block_tokens=64, batch_tokens=64)
    ((_, rows),) = order.batch(0)
    assert not np.array_equal(rows.numpy(), order._epoch(0).contexts)
    assert sorted(rows.tolist()) == list(range(64))


def test_the_first_contexts_hold_just_enough_rows():
    order = Order(np.full(50, 4), seed=0, block_tokens=40, batch_tokens=8)
    few = order.first_contexts(9)
    assert len(few) == 3
    assert set(few) <= set(order.contexts(BlockKey(0, 0)))
    assert order.first_contexts(8).size == 2
    assert order.first_contexts(10**6).tolist() == list(range(50))


def test_a_state_of_another_order_is_refused_with_what_differs():
    order = Order(KEPT, seed=3, block_tokens=16, batch_tokens=7)
    order.check_state(order.state())
    for change, name in (
        ({"seed": 4}, "seed"),
        ({"batch_tokens": 8}, "batch_tokens"),
        ({"block_tokens": 24}, "block_contexts"),
    ):
        other = Order(KEPT, **{"seed": 3, "block_tokens": 16, "batch_tokens": 7, **change})
        with pytest.raises(BadInput, match=f"key {name}"):
            other.check_state(order.state())
    with pytest.raises(BadInput, match="kept_per_context"):
        Order(KEPT + 1, seed=3, block_tokens=18, batch_tokens=7).check_state(order.state())


def test_impossible_orders_are_refused():
    good = {"seed": 0, "block_tokens": 8, "batch_tokens": 4}
    with pytest.raises(BadInput, match="0 rows"):
        Order(np.zeros(3, int), **good)
    for name in good:
        with pytest.raises(BadInput, match="at least one row"):
            Order(KEPT, **{**good, name: -1})
    with pytest.raises(BadInput, match="numbered from 0"):
        Order(KEPT, **good).batch(-1)


def test_the_global_generators_are_left_alone():
    np.random.seed(0)
    torch.manual_seed(0)
    before = np.random.get_state()[1].copy(), torch.get_rng_state()
    Order(KEPT, seed=3, block_tokens=16, batch_tokens=7).batch(5)
    assert np.array_equal(np.random.get_state()[1], before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
