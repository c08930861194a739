"""Harvesting: the right rows, one forward per batch, resumable to the byte, clean on errors."""

import json
import threading
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sae_lib.activations import _background, _harvest_run
from sae_lib.activations import harvest as harvest_module
from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.harvest import harvest
from sae_lib.activations.store import ActivationStore
from sae_lib.activations.tokens import Tokens, build_tokens
from sae_lib.errors import BadInput, CorruptData

SITES = ["resid_post.0", "mlp_act.1"]
OPTIONS = {"batch_contexts": 4, "shard_rows": 256}  # 16 contexts of 16: four batches to a shard


def content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def split(tokens):
    return tokens.split("train")


def test_every_kept_position_is_stored_and_no_other(model, split, tmp_path):
    harvest(model, split, SITES, tmp_path / "h", dtype="float32", **OPTIONS)
    everything = split.rows(range(split.num_contexts))
    kept = everything.keep.reshape(-1)
    assert 0 < kept.sum() < len(kept)
    for site in SITES:
        exact = model.by_hand(everything.tokens, site).flatten(0, 1)[kept]
        shards = sorted((tmp_path / "h" / site).glob("shard-*.safetensors"))
        assert [shard.name for shard in shards] == [
            f"shard-{i:05d}.safetensors" for i in range(-(-split.num_contexts // 16))
        ]
        loaded = [load_file(shard) for shard in shards]  # any safetensors reader will do
        torch.testing.assert_close(
            torch.cat([shard["activations"] for shard in loaded]), exact, rtol=0, atol=0
        )
        places = torch.cat([shard["rows"] for shard in loaded])
        assert torch.equal(places, kept.nonzero().squeeze(1))


def test_bfloat16_rows_are_the_rounded_ones(model, split, tmp_path):
    harvest(model, split, ["resid_post.1"], tmp_path / "h", **OPTIONS)
    everything = split.rows(range(16))
    exact = model.by_hand(everything.tokens, "resid_post.1")[everything.keep]
    stored = load_file(tmp_path / "h" / "resid_post.1" / "shard-00000.safetensors")["activations"]
    assert stored.dtype == torch.bfloat16
    assert torch.equal(stored, exact.bfloat16())


def test_one_forward_per_batch_serves_all_sites(model, split, tmp_path):
    calls = []
    harvest(model, split, SITES, tmp_path, on_progress=lambda *at: calls.append(at), **OPTIONS)
    sizes = [size for size, _ in model.calls]
    assert sum(sizes) == split.num_contexts
    assert len(sizes) == -(-split.num_contexts // 4)
    assert {sites for _, sites in model.calls} == {tuple(SITES)}
    total = split.num_contexts
    assert calls == [(min(4 * (i + 1), total), total) for i in range(len(sizes))]


def test_statistics_are_those_of_the_stored_rows(model, split, tmp_path):
    summaries = harvest(model, split, SITES, tmp_path, **OPTIONS)
    store = ActivationStore.open(tmp_path)
    for site in SITES:
        x = store.contexts(site, range(split.num_contexts)).x.double().numpy()
        stats = store.stats(site)
        assert stats.num_rows == summaries[site].num_rows == len(x) == split.num_kept
        np.testing.assert_allclose(stats.mean, x.mean(0), rtol=1e-12)
        np.testing.assert_allclose(stats.variance, x.var(0), rtol=1e-12)
        norms = np.linalg.norm(x, axis=1)
        assert stats.mean_norm == pytest.approx(norms.mean(), rel=1e-12)
        assert stats.mean_square_norm == pytest.approx((norms**2).mean(), rel=1e-12)


@pytest.mark.parametrize("killed_after", range(0, 15, 2))
def test_a_killed_harvest_goes_on_and_ends_with_the_same_bytes(
    model, split, tmp_path, killed_after
):
    assert split.num_contexts > 48
    harvest(model, split, SITES, tmp_path / "whole", **OPTIONS)
    num_batches = len(model.calls)
    model.calls.clear()
    model.fail_at = killed_after
    with pytest.raises(RuntimeError, match="killed"):
        harvest(model, split, SITES, tmp_path / "killed", **OPTIONS)
    assert not list((tmp_path / "killed").rglob("*.partial"))
    assert not list((tmp_path / "killed").rglob("site.json"))
    model.calls.clear()
    model.fail_at = None
    harvest(model, split, SITES, tmp_path / "killed", **OPTIONS)
    assert len(model.calls) == num_batches - killed_after // 4 * 4
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_harvest_killed_between_the_shards_of_two_sites_goes_on(
    model, split, tmp_path, monkeypatch
):
    harvest(model, split, SITES, tmp_path / "whole", **OPTIONS)

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(_harvest_run.HarvestRun, "note", killed)
        with pytest.raises(KeyboardInterrupt):
            harvest(model, split, SITES, tmp_path / "killed", **OPTIONS)
    # what kill -9 leaves: whole shards that nobody noted, and half-written ones
    assert list((tmp_path / "killed").rglob("shard-*"))
    (tmp_path / "killed" / SITES[0] / ".shard-00001.safetensors.partial").write_bytes(b"half")
    harvest(model, split, SITES, tmp_path / "killed", **OPTIONS)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_a_finished_harvest_runs_nothing_again(model, split, tmp_path):
    first = harvest(model, split, SITES, tmp_path, **OPTIONS)
    before = content(tmp_path)
    model.calls.clear()
    assert harvest(model, split, SITES, tmp_path, **OPTIONS) == first
    assert model.calls == []
    assert content(tmp_path) == before


@pytest.mark.parametrize(
    "change", [{"dtype": "float32"}, {"batch_contexts": 2}, {"shard_rows": 64}, {"shard_rows": 512}]
)
def test_what_a_harvest_with_other_arguments_left_is_replaced(model, split, tmp_path, change):
    harvest(model, split, SITES, tmp_path / "a", **{**OPTIONS, **change})
    harvest(model, split, SITES, tmp_path / "b", **OPTIONS)
    harvest(model, split, SITES, tmp_path / "a", **OPTIONS)
    assert content(tmp_path / "a") == content(tmp_path / "b")


def test_a_shard_that_vanished_before_the_harvest_went_on_is_noticed(model, split, tmp_path):
    model.fail_at = 9
    with pytest.raises(RuntimeError):
        harvest(model, split, SITES, tmp_path, **OPTIONS)
    model.fail_at = None
    (tmp_path / SITES[1] / "shard-00000.safetensors").unlink()
    with pytest.raises(CorruptData, match=r"shard-00000.*missing"):
        harvest(model, split, SITES, tmp_path, **OPTIONS)


def test_activations_that_are_not_finite_are_refused(model, split, tmp_path):
    model._tables["mlp_act.1"] = model._tables["mlp_act.1"] * 1e6
    harvest(model, split, SITES, tmp_path / "b", **OPTIONS)
    with pytest.raises(BadInput, match=r"mlp_act\.1 between contexts 0 and 15.*float16"):
        harvest(model, split, SITES, tmp_path / "h", dtype="float16", **OPTIONS)
    assert not list((tmp_path / "h").rglob("shard-*"))


def test_a_disk_that_is_too_small_is_noticed_before_the_model_runs(
    model, split, tmp_path, monkeypatch
):
    needed = split.num_kept * (8 + 2 * 8 + 8 + 2 * 12)
    free = SimpleNamespace(free=needed)
    monkeypatch.setattr("shutil.disk_usage", lambda path: free)
    harvest(model, split, SITES, tmp_path / "fits", **OPTIONS)
    model.calls.clear()
    free.free -= 1
    with pytest.raises(BadInput, match=r"need 0\.0 GB.*fewer tokens or sites, or stream"):
        harvest(model, split, SITES, tmp_path / "h", **OPTIONS)
    assert model.calls == []


def test_an_error_while_writing_reaches_the_caller_and_ends_the_thread(
    model, split, tmp_path, monkeypatch
):
    def full(shards, rows):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(harvest_module, "_write", full)
    before = threading.active_count()
    with pytest.raises(OSError, match="No space left"):
        harvest(model, split, SITES, tmp_path, **OPTIONS)
    assert threading.active_count() == before
    assert not list(tmp_path.rglob("*.partial"))
    assert not list(tmp_path.rglob("shard-*"))


def test_rows_in_memory_do_not_grow_with_the_tokens(model, split, tmp_path, monkeypatch):
    """Batches that were captured and not yet written: never more than four."""
    captured = written = most = 0
    lock = threading.Lock()
    capture, write = model.capture, harvest_module._write

    def counting_capture(*args, **options):
        nonlocal captured, most
        with lock:
            captured += 1
            most = max(most, captured - written)
        return capture(*args, **options)

    def slow_write(shards, rows):
        nonlocal written
        threading.Event().wait(0.01)  # slower than the model, so the queue fills
        write(shards, rows)
        with lock:
            written += 1

    model.capture = counting_capture
    monkeypatch.setattr(harvest_module, "_write", slow_write)
    harvest(model, split, SITES, tmp_path, batch_contexts=1, shard_rows=10**6)
    assert captured == written == split.num_contexts
    assert most == _background.DEPTH + 2


def test_padding_is_masked_and_encoders_get_a_mask(
    model, write_corpus, documents, encoder_tokenizer, make_info, tmp_path
):
    cfg = CorpusConfig(id=str(write_corpus(documents)), tokens=960, context=16, eval_tokens=320)
    build_tokens(cfg, encoder_tokenizer, make_info(is_causal=False), tmp_path / "t")
    split = Tokens.open(tmp_path / "t").split("train")
    harvest(model, split, ["resid_post.0"], tmp_path / "h", **OPTIONS)
    fed = torch.cat(model.masks)
    assert torch.equal(fed, split.attention_mask(range(split.num_contexts)))
    assert not fed.all()
    store = ActivationStore.open(tmp_path / "h")
    assert store.num_rows == int((split.rows(range(split.num_contexts)).tokens >= 3).sum())


def test_a_concatenated_corpus_needs_no_mask(model, split, tmp_path):
    harvest(model, split, ["resid_post.0"], tmp_path, **OPTIONS)
    assert model.masks == [None] * len(model.calls)


def test_sites_must_differ_and_batches_hold_something(model, split, tmp_path):
    for sites, batch_contexts in (([], 1), (["resid_post.0"] * 2, 1), (["resid_post.0"], 0)):
        with pytest.raises(BadInput, match="at least one context per batch"):
            harvest(model, split, sites, tmp_path, batch_contexts=batch_contexts)


def test_the_progress_file_holds_no_infinities_and_names_every_shard(model, split, tmp_path):
    harvest(model, split, SITES, tmp_path, **OPTIONS)
    noted = json.loads((tmp_path / "harvest.json").read_text())
    assert sum(shard["contexts"] for shard in noted["shards"]) == split.num_contexts
    assert sum(shard["rows"] for shard in noted["shards"]) == split.num_kept


def test_jobs_run_in_order_and_none_after_an_error():
    done = []

    def fail():
        raise ValueError("third")

    def never_started():
        done.append("behind the error")

    def work():
        with _background.Background() as background:
            for job in (lambda: done.append(1), lambda: done.append(2), fail):
                background.submit(job)
            for _ in range(20):
                background.submit(never_started)

    with pytest.raises(ValueError, match="third"):
        work()
    assert done == [1, 2]


def test_an_error_of_the_last_job_is_raised_at_the_end():
    def work():
        with _background.Background() as background:
            background.submit(lambda: threading.Event().wait(0.02) or [][0])

    with pytest.raises(IndexError):
        work()


def test_an_error_of_the_caller_drops_what_waits():
    gate, done = threading.Event(), []

    def first():
        gate.wait(5)

    def work():
        with _background.Background() as background:
            background.submit(first)
            background.submit(lambda: done.append(1))
            threading.Timer(0.05, gate.set).start()
            raise KeyError

    with pytest.raises(KeyError):
        work()
    assert done == []
