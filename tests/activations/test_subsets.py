"""Training on some of the contexts: only those come, in the order rules of a set of their own."""

import numpy as np
import pytest
import torch

from sae_lib.activations.batches import StoredBatches, StreamedBatches
from sae_lib.activations.harvest import harvest
from sae_lib.activations.order import Order
from sae_lib.activations.store import ActivationStore
from sae_lib.errors import BadInput

SITES = ["resid_post.0", "mlp_act.1"]
HOW = {"seed": 2, "block_tokens": 64, "batch_tokens": 24}
CHOSEN = np.array([1, 4, 5, 11, 20, 21, 33, 40, 41, 50])


@pytest.fixture
def split(tokens):
    return tokens.split("train")


@pytest.fixture
def store(model, split, tmp_path):
    harvest(model, split, SITES, tmp_path / "h", batch_contexts=4, shard_rows=256)
    model.calls.clear()
    return ActivationStore.open(tmp_path / "h")


def test_an_epoch_holds_the_rows_of_the_chosen_contexts_once_and_no_others(split, store):
    order = Order(split.kept_per_context, contexts=CHOSEN, **{**HOW, "batch_tokens": 1})
    batches = StoredBatches(store, SITES[:1], order)
    assert order.num_blocks > 2
    places = split.kept_rows(range(split.num_contexts))
    every = sorted(places[np.isin(places // split.context, CHOSEN)].tolist())
    seen = [int(batches.batch(step).rows) for step in range(2 * order.num_rows)]
    first, second = seen[: order.num_rows], seen[order.num_rows :]
    assert sorted(first) == sorted(second) == every
    assert first != second


def test_rows_of_a_subset_are_what_the_store_has_at_their_places(split, store):
    order = Order(split.kept_per_context, contexts=CHOSEN, **HOW)
    batches = StoredBatches(store, SITES, order)
    whole = store.contexts("mlp_act.1", range(split.num_contexts))
    places = {int(place): i for i, place in enumerate(whole.rows)}
    for step in range(8):
        batch = batches.batch(step)
        rows = [places[int(place)] for place in batch.rows]
        assert torch.equal(batch.x["mlp_act.1"], whole.x[rows].float())


def test_a_streamed_subset_is_the_stored_one_bit_for_bit_and_runs_nothing_else(model, split, store):
    order = Order(split.kept_per_context, contexts=CHOSEN, **HOW)
    stored = StoredBatches(store, SITES, order)
    streamed = StreamedBatches(model, split, SITES, order, batch_contexts=3)
    steps = order.num_rows // order.batch_tokens
    for step in range(steps):
        one, other = stored.batch(step), streamed.batch(step)
        assert torch.equal(one.rows, other.rows)
        assert all(torch.equal(one.x[site], other.x[site]) for site in SITES)
    assert sum(size for size, _ in model.calls) <= len(CHOSEN)


def test_the_order_of_a_subset_is_that_of_a_set_of_its_own(split):
    order = Order(split.kept_per_context, contexts=CHOSEN, **HOW)
    alone = Order(split.kept_per_context[CHOSEN], **HOW)
    assert order.num_blocks == alone.num_blocks
    for step in range(20):
        for part, other in zip(order.batch(step), alone.batch(step), strict=True):
            assert part.key == other.key
            assert torch.equal(part.rows, other.rows)
            assert np.array_equal(order.contexts(part.key), CHOSEN[alone.contexts(part.key)])


def test_all_contexts_as_a_subset_are_the_order_without_one(split):
    everything = np.arange(split.num_contexts)
    one = Order(split.kept_per_context, contexts=everything, **HOW)
    other = Order(split.kept_per_context, **HOW)
    for step in range(60):
        for part, expected in zip(one.batch(step), other.batch(step), strict=True):
            assert part.key == expected.key
            assert torch.equal(part.rows, expected.rows)


def test_a_subset_is_resumed_at_a_step_and_read_ahead_without_a_change(split, store):
    order = Order(split.kept_per_context, contexts=CHOSEN, **HOW)
    whole = [batch for _, batch in zip(range(12), StoredBatches(store, SITES, order), strict=False)]
    late = StoredBatches(store, SITES, order)
    with late.reading_ahead(12):
        for step in range(5, 12):
            assert torch.equal(late.batch(step).rows, whole[step].rows)
            assert torch.equal(late.batch(step).x[SITES[0]], whole[step].x[SITES[0]])


def test_statistics_are_of_the_chosen_contexts_stored_and_streamed_alike(model, split, store):
    order = Order(split.kept_per_context, contexts=CHOSEN, **HOW)
    stored = StoredBatches(store, SITES, order)
    streamed = StreamedBatches(model, split, SITES, order, batch_contexts=3)
    for site in SITES:
        x = store.contexts(site, CHOSEN).x.double()
        for stats in (stored.stats(site), streamed.stats(site)):
            assert stats.num_rows == len(x)
            torch.testing.assert_close(stats.mean, x.mean(0))
            torch.testing.assert_close(stats.variance, x.var(0, correction=0))
        assert stored.stats(site).mean_square_norm != store.stats(site).mean_square_norm


def test_a_checkpoint_of_other_contexts_is_refused(split):
    order = Order(split.kept_per_context, contexts=CHOSEN, **HOW)
    order.check_state(order.state())
    whole = Order(split.kept_per_context, **HOW)
    other = Order(split.kept_per_context, contexts=np.array([1, 4, 5, 11, 20, 22]), **HOW)
    for mine, theirs in ((order, whole), (whole, order), (order, other)):
        with pytest.raises(BadInput, match="contexts"):
            mine.check_state({**mine.state(), "contexts": theirs.state()["contexts"]})
    old = {name: value for name, value in whole.state().items() if name != "contexts"}
    whole.check_state(old)  # written when there were no subsets


@pytest.mark.parametrize("wrong", [[], [3, 3], [5, 4], [-1, 2], [0, 10**6], [[1, 2]], [0.5, 1.0]])
def test_numbers_that_are_not_contexts_are_refused(split, wrong):
    with pytest.raises(BadInput, match="contexts"):
        Order(split.kept_per_context, contexts=np.array(wrong), **HOW)
