"""Stored and streamed batches: the same rows, the same numbers, little memory."""

import threading
import weakref
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from sae_lib.activations.batches import StoredBatches, StreamedBatches
from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.harvest import harvest
from sae_lib.activations.order import BlockKey, Order
from sae_lib.activations.store import ActivationStore
from sae_lib.activations.tokens import Tokens, build_tokens
from sae_lib.errors import BadInput, CorruptData, UnknownName
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model

SITES = ["resid_post.0", "mlp_act.1"]
BATCH = 48


@pytest.fixture
def split(tokens):
    return tokens.split("train")


@pytest.fixture
def store(model, split, tmp_path):
    harvest(model, split, SITES, tmp_path / "h", batch_contexts=4, shard_rows=256)
    model.calls.clear()
    return ActivationStore.open(tmp_path / "h")


def make_order(split, **changes):
    options = {"seed": 2, "block_tokens": 160, "batch_tokens": BATCH, **changes}
    return Order(split.kept_per_context, **options)


def assert_same(one, other):
    assert torch.equal(one.rows, other.rows)
    assert one.x.keys() == other.x.keys()
    for site, x in one.x.items():
        assert torch.equal(x, other.x[site]), site


def num_steps(order, epochs):
    return -(-epochs * order.num_rows // BATCH)


def test_stored_rows_are_what_the_model_has_there_in_the_format_of_the_store(model, split, store):
    order = make_order(split)
    batches = StoredBatches(store, SITES, order)
    everything = split.rows(range(split.num_contexts))
    exact = {site: model.by_hand(everything.tokens, site).flatten(0, 1) for site in SITES}
    for step, batch in zip(range(num_steps(order, 2)), batches, strict=False):
        assert batch.rows.shape == (BATCH,)
        for site in SITES:
            assert batch.x[site].dtype == torch.float32
            expected = exact[site][batch.rows].bfloat16().float()
            assert torch.equal(batch.x[site], expected), step


def test_an_epoch_holds_every_kept_row_once(split, store):
    order = make_order(split, batch_tokens=1)
    batches = StoredBatches(store, SITES[:1], order)
    seen = [int(batches.batch(step).rows) for step in range(2 * order.num_rows)]
    first, second = seen[: order.num_rows], seen[order.num_rows :]
    every = split.kept_rows(range(split.num_contexts)).tolist()
    assert sorted(first) == sorted(second) == every
    assert first != second


@pytest.mark.parametrize("block_tokens", [32, 160, 10**6])
def test_streamed_batches_are_the_stored_ones_bit_for_bit(model, split, store, block_tokens):
    order = make_order(split, block_tokens=block_tokens)
    stored = StoredBatches(store, SITES, order)
    streamed = StreamedBatches(model, split, SITES, order, batch_contexts=4)
    for step in range(num_steps(order, 2)):
        assert_same(stored.batch(step), streamed.batch(step))


@pytest.mark.parametrize("kind", ["stored", "streamed"])
def test_a_run_that_starts_at_a_step_sees_what_the_whole_run_saw(model, split, store, kind):
    order = make_order(split)

    def make():
        if kind == "stored":
            return StoredBatches(store, SITES, order)
        return StreamedBatches(model, split, SITES, order, batch_contexts=3)

    last = num_steps(order, 2)
    whole = [batch for _, batch in zip(range(last), make(), strict=False)]
    for start in (1, 7, last - 1):
        for step, batch in zip(range(start, last), make().starting_at(start), strict=False):
            assert_same(batch, whole[step])
    batches = make()
    for step in (5, 0, 5, last - 1, 4):  # in any order, also back
        assert_same(batches.batch(step), whole[step])


def make_batches(kind, model, split, store, order):
    if kind == "stored":
        return StoredBatches(store, SITES, order)
    return StreamedBatches(model, split, SITES, order, batch_contexts=2)


@pytest.mark.parametrize("kind", ["stored", "streamed"])
@pytest.mark.parametrize(("ahead", "most"), [(True, 2), (False, 1)])
def test_only_the_current_and_the_next_block_are_in_memory(
    model, split, store, kind, ahead, most, monkeypatch
):
    order = make_order(split, block_tokens=100)
    assert order.num_blocks > 5
    batches = make_batches(kind, model, split, store, order)
    blocks, seen = 0, []
    load = batches._load

    def counting_load(contexts, ahead):
        nonlocal blocks
        blocks += 1  # from the moment it is loaded until its tensors are let go
        seen.append(blocks)
        block = load(contexts, ahead)

        def gone():
            nonlocal blocks
            blocks -= 1

        weakref.finalize(block.rows, gone)
        return block

    monkeypatch.setattr(batches, "_load", counting_load)
    epochs = range(3)
    largest = max(
        order.num_block_rows(BlockKey(e, b)) for e in epochs for b in range(order.num_blocks)
    )
    spanning, steps = 0, num_steps(order, 2)
    with batches.reading_ahead(steps) if ahead else nullcontext():
        for step in range(steps):
            spanning += len(order.batch(step)) > 1
            batches.batch(step)
            assert batches.rows_in_memory <= most * largest
    assert spanning > 5
    assert len(seen) > 2 * order.num_blocks - 2
    assert max(seen) == most


def test_the_model_runs_once_per_context_and_epoch(model, split):
    order = make_order(split)
    streamed = StreamedBatches(model, split, SITES, order, batch_contexts=4)
    for step in range(order.num_rows // BATCH):
        streamed.batch(step)
    fed = sum(size for size, _ in model.calls)
    assert split.num_contexts - order.block_contexts <= fed <= split.num_contexts
    assert {sites for _, sites in model.calls} == {tuple(SITES)}


def test_a_set_that_fits_in_one_block_is_loaded_once(model, split):
    order = make_order(split, block_tokens=10**6)
    streamed = StreamedBatches(model, split, SITES, order, batch_contexts=4)
    for step in range(num_steps(order, 3)):
        streamed.batch(step)
    assert sum(size for size, _ in model.calls) == split.num_contexts
    assert streamed.rows_in_memory == order.num_rows


@pytest.mark.parametrize("kind", ["stored", "streamed"])
def test_the_next_block_is_loaded_while_the_current_one_is_used(model, split, store, kind):
    order = make_order(split)
    batches = make_batches(kind, model, split, store, order)
    rows = [order.num_block_rows(BlockKey(0, block)) for block in (0, 1)]
    batches.batch(0)
    assert batches.rows_in_memory == rows[0]
    with batches.reading_ahead(num_steps(order, 1)):
        batches.batch(0)
        assert batches.rows_in_memory == sum(rows)
    assert batches.rows_in_memory == rows[0]


@pytest.mark.parametrize("kind", ["stored", "streamed"])
def test_reading_ahead_changes_no_bit_of_any_batch(model, split, store, kind):
    order = make_order(split, block_tokens=100)
    steps = num_steps(order, 2)
    alone = make_batches(kind, model, split, store, order)
    batches = make_batches(kind, model, split, store, order)
    with batches.reading_ahead(steps):
        for step in [*range(steps), 3, 0, steps - 1]:
            assert_same(alone.batch(step), batches.batch(step))


def test_no_block_is_loaded_that_only_later_steps_would_use(model, split):
    order = make_order(split, block_tokens=100)
    batches = StreamedBatches(model, split, SITES, order, batch_contexts=2)
    until = 4 * order.num_block_rows(BlockKey(0, 0)) // BATCH
    with batches.reading_ahead(until):
        for step in range(until):
            batches.batch(step)
    used = {part.key for step in range(until) for part in order.batch(step)}
    assert 1 < len(used) < order.num_blocks
    contexts = sum(len(order.contexts(key)) for key in used)
    assert sum(size for size, _ in model.calls) == contexts


def test_an_error_while_reading_ahead_is_raised_when_the_block_is_needed(split, store, tmp_path):
    order = make_order(split, block_tokens=100)
    for shard in (tmp_path / "h").rglob("shard-00002*"):
        shard.unlink()
    batches = StoredBatches(store, SITES, order)
    steps = num_steps(order, 1)
    with (
        pytest.raises(CorruptData, match=r"shard-00002.*missing"),
        batches.reading_ahead(steps),
    ):
        [batches.batch(step) for step in range(steps)]


def test_an_error_of_the_harvesting_thread_shows_where_it_happened(model, split):
    order = make_order(split, block_tokens=100)
    batches = StreamedBatches(model, split, SITES, order, batch_contexts=2)
    batches.batch(0)
    model.fail_at = len(model.calls) + 1  # under way in the second block
    steps = num_steps(order, 1)
    with pytest.raises(RuntimeError, match="killed") as raised, batches.reading_ahead(steps):
        [batches.batch(step) for step in range(steps)]
    assert {"capture", "_load"} <= {entry.name for entry in raised.traceback}
    assert "activations" not in thread_names()


def test_the_model_is_reserved_while_another_thread_may_run_it(model, split):
    batches = StreamedBatches(model, split, SITES, make_order(split), batch_contexts=2)
    batches.batch(0)
    assert model.reservations == 0
    with batches.reading_ahead(9):
        assert model.reservations == 1
    assert model.reservations == 0


def thread_names():
    return {thread.name.split("_")[0] for thread in threading.enumerate()}


@pytest.mark.parametrize("kind", ["stored", "streamed"])
def test_leaving_early_ends_the_load_under_way_and_its_thread(
    model, split, store, kind, monkeypatch
):
    order = make_order(split)
    batches = make_batches(kind, model, split, store, order)
    source, name = (store, "contexts") if kind == "stored" else (model, "capture")
    under_way, go_on, pieces = threading.Event(), threading.Event(), []
    piece = getattr(source, name)

    def slow_piece(*args, **kwargs):
        if threading.current_thread().name.startswith("activations"):
            pieces.append(args)
            under_way.set()
            assert go_on.wait(20)
        return piece(*args, **kwargs)

    monkeypatch.setattr(source, name, slow_piece)

    def leave_early():
        with batches.reading_ahead(num_steps(order, 1)) as ahead:
            batches.batch(0)
            assert under_way.wait(20)
            assert "activations" in thread_names()
            ahead.stop()
            go_on.set()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave_early()
    assert len(pieces) == 1, "it went on to the next piece"
    assert "activations" not in thread_names()


def test_batches_cannot_be_read_ahead_by_two_trainings(model, split):
    batches = StreamedBatches(model, split, SITES, make_order(split), batch_contexts=2)
    with (
        batches.reading_ahead(1),
        pytest.raises(BadInput, match="another training"),
        batches.reading_ahead(1),
    ):
        pass


def test_on_a_single_core_a_stream_does_not_read_ahead(model, split, monkeypatch):
    order = make_order(split)
    batches = StreamedBatches(model, split, SITES, order, batch_contexts=2)
    monkeypatch.setattr("sae_lib.activations.batches.num_cores", lambda: 1)
    with batches.reading_ahead(num_steps(order, 1)):
        batches.batch(0)
        assert batches.rows_in_memory == order.num_block_rows(BlockKey(0, 0))


def test_statistics_of_a_stream_over_everything_are_those_of_the_store(model, split, store):
    order = make_order(split)
    stored = StoredBatches(store, SITES, order)
    streamed = StreamedBatches(model, split, SITES, order, batch_contexts=4)
    for site in SITES:
        one, other = stored.stats(site), streamed.stats(site)
        assert one.num_rows == other.num_rows == stored.num_rows == streamed.num_rows
        torch.testing.assert_close(one.mean, other.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(one.variance, other.variance, rtol=1e-12, atol=1e-12)
        assert one.mean_norm == pytest.approx(other.mean_norm, rel=1e-12)
        assert one.mean_square_norm == pytest.approx(other.mean_square_norm, rel=1e-12)
        assert stored.width(site) == streamed.width(site) == len(one.mean)


def test_statistics_of_a_stream_are_measured_once_on_a_sample_that_is_always_the_same(model, split):
    def measure():
        model.calls.clear()
        order = make_order(split)
        return StreamedBatches(model, split, SITES, order, batch_contexts=4, stats_tokens=200)

    first, second = measure(), measure()
    for site in SITES:
        assert torch.equal(first.stats(site).mean, second.stats(site).mean)
    assert 200 <= second.stats(SITES[0]).num_rows < 200 + 16
    fed = sum(size for size, _ in model.calls)
    contexts = second.order.first_contexts(200)
    assert fed == 2 * len(contexts)  # both streams, both sites each
    exact = split.rows(contexts)
    x = model.by_hand(exact.tokens, SITES[1])[exact.keep].bfloat16().double().numpy()
    np.testing.assert_allclose(second.stats(SITES[1]).variance, x.var(0), rtol=1e-12)


def test_what_does_not_belong_together_is_refused(model, tokens, split, store):
    order = make_order(split)
    with pytest.raises(UnknownName, match=r"resid_post\.1"):
        StoredBatches(store, ["resid_post.1"], order)
    other = make_order(tokens.split("eval"))
    with pytest.raises(BadInput, match="other contexts"):
        StoredBatches(store, SITES, other)
    with pytest.raises(BadInput, match="other contexts"):
        StreamedBatches(model, split, SITES, other, batch_contexts=4)
    streamed = StreamedBatches(model, split, SITES, order, batch_contexts=4)
    with pytest.raises(UnknownName, match=r"resid_post\.1"):
        streamed.stats("resid_post.1")
    with pytest.raises(BadInput, match="batch_contexts"):
        StreamedBatches(model, split, SITES, order, batch_contexts=0)


def test_a_real_model_gives_the_same_rows_stored_and_streamed(
    write_corpus, documents, tokenizer, tmp_path
):
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=2, n_head=2, n_embd=8, vocab_size=64, n_positions=32, bos_token_id=1, eos_token_id=2
    )
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    tokenizer.save_pretrained(tmp_path / "gpt2")
    model = load_model(ModelConfig(id=str(tmp_path / "gpt2")))
    sites = ["resid_post.0", "resid_post.1"]
    cfg = CorpusConfig(id=str(write_corpus(documents)), tokens=480, context=16, eval_tokens=160)
    build_tokens(cfg, model.tokenizer, model.info, tmp_path / "t")
    split = Tokens.open(tmp_path / "t").split("train")
    harvest(model, split, sites, tmp_path / "s", batch_contexts=1)
    store = ActivationStore.open(tmp_path / "s")
    order = make_order(split)
    stored = StoredBatches(store, sites, order)
    alone = StreamedBatches(model, split, sites, order, batch_contexts=1)
    together = StreamedBatches(model, split, sites, order, batch_contexts=8)
    everything = split.rows(range(split.num_contexts))
    hidden = model.model(input_ids=everything.tokens, output_hidden_states=True).hidden_states
    exact = hidden[1].flatten(0, 1)
    for step in range(num_steps(order, 1)):
        batch = stored.batch(step)
        assert_same(batch, alone.batch(step))
        for site in sites:
            # one unit in the last place of bfloat16, where a sum in another order tips it over
            torch.testing.assert_close(
                batch.x[site], together.batch(step).x[site], rtol=2**-7, atol=1e-6
            )
        torch.testing.assert_close(batch.x[sites[0]], exact[batch.rows], rtol=2**-8, atol=1e-6)
