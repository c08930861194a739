"""Stored and streamed batches: the same rows, the same numbers, little memory."""

import weakref

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


@pytest.mark.parametrize(("kind", "most"), [("stored", 2), ("streamed", 1)])
def test_only_the_current_and_the_next_block_are_in_memory(
    model, split, store, kind, most, monkeypatch
):
    order = make_order(split, block_tokens=100)
    assert order.num_blocks > 5
    batches = (
        StoredBatches(store, SITES, order)
        if kind == "stored"
        else StreamedBatches(model, split, SITES, order, batch_contexts=2)
    )
    blocks, seen = 0, []
    load = batches._load

    def counting_load(contexts):
        nonlocal blocks
        blocks += 1  # from the moment it is loaded until its tensors are let go
        seen.append(blocks)
        block = load(contexts)

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
    spanning = 0
    for step in range(num_steps(order, 2)):
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


def test_the_next_block_is_read_while_the_current_one_is_used(split, store):
    order = make_order(split)
    batches = StoredBatches(store, SITES, order)
    batches.batch(0)
    first = [order.num_block_rows(BlockKey(0, block)) for block in (0, 1)]
    assert batches.rows_in_memory == sum(first)


def test_an_error_while_reading_ahead_is_raised_when_the_block_is_needed(split, store, tmp_path):
    order = make_order(split, block_tokens=100)
    for shard in (tmp_path / "h").rglob("shard-00002*"):
        shard.unlink()
    batches = StoredBatches(store, SITES, order)
    with pytest.raises(CorruptData, match=r"shard-00002.*missing"):
        [batches.batch(step) for step in range(num_steps(order, 1))]


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
