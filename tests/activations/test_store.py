"""Reading a harvest back."""

import json

import pytest
import torch

from sae_lib.activations.harvest import harvest
from sae_lib.activations.store import ActivationStore
from sae_lib.errors import BadInput, CorruptData, MissingFile, UnknownName

SITES = ["resid_post.0", "mlp_act.1"]
OPTIONS = {"batch_contexts": 4, "shard_rows": 256}


@pytest.fixture
def folder(model, tokens, tmp_path):
    harvest(model, tokens.split("train"), SITES, tmp_path / "h", dtype="float32", **OPTIONS)
    return tmp_path / "h"


def test_contexts_come_in_the_order_they_were_asked_for(folder, model, tokens):
    store, split = ActivationStore.open(folder), tokens.split("train")
    chosen = [33, 2, 47, 2, 0, split.num_contexts - 1]
    rows = split.rows(chosen)
    for site in SITES:
        found = store.contexts(site, chosen)
        assert torch.equal(found.x, model.by_hand(rows.tokens, site)[rows.keep])
        places = torch.tensor(chosen)[:, None] * 16 + torch.arange(16)
        assert torch.equal(found.rows, places[rows.keep])
    assert store.contexts(SITES[0], []).x.shape == (0, 8)


def test_the_store_knows_its_sites_and_sizes(folder, tokens):
    store, split = ActivationStore.open(folder), tokens.split("train")
    assert store.sites == sorted(SITES)
    assert [store.width(site) for site in SITES] == [8, 12]
    assert (store.num_contexts, store.num_rows) == (split.num_contexts, split.num_kept)
    assert (store.kept_per_context == split.kept_per_context).all()
    assert store.summary(SITES[0]).tokens == split.digest
    assert store.dtype == "float32"


def test_a_site_of_a_module_has_a_folder_of_its_own(model, tokens, tmp_path, monkeypatch):
    site = "module:layers.0.mlp"
    monkeypatch.setattr(type(model), "width", lambda self, site: 8)
    model._tables[site] = model._tables["resid_post.0"]
    harvest(model, tokens.split("eval"), [site], tmp_path / "h", **OPTIONS)
    store = ActivationStore.open(tmp_path / "h")
    assert store.sites == [site]
    assert ":" not in "".join(path.name for path in (tmp_path / "h").iterdir())


def test_a_site_that_was_not_harvested_is_answered_with_the_nearest(folder):
    with pytest.raises(UnknownName, match=r"resid_post\.1.*mean 'resid_post\.0'"):
        ActivationStore.open(folder).contexts("resid_post.1", [0])


def test_contexts_that_do_not_exist_are_refused(folder):
    store = ActivationStore.open(folder)
    for wrong in ([-1], [store.num_contexts]):
        with pytest.raises(BadInput, match="numbered from 0"):
            store.contexts(SITES[0], wrong)


def test_a_folder_without_a_harvest_is_refused(tmp_path):
    with pytest.raises(MissingFile, match="no finished harvest"):
        ActivationStore.open(tmp_path)


@pytest.mark.parametrize("name", ["shard-00001.safetensors", "stats.safetensors"])
def test_damage_is_noticed(folder, name):
    path = folder / SITES[0] / name
    whole = path.read_bytes()
    ActivationStore.open(folder).verify()

    path.write_bytes(whole[:-8])
    with pytest.raises(CorruptData, match=f"{name}.*bytes, not the"):
        ActivationStore.open(folder)

    flipped = bytearray(whole)
    flipped[-3] ^= 1
    path.write_bytes(flipped)
    with pytest.raises(CorruptData, match=f"{name}.*checksum"):
        ActivationStore.open(folder).verify()

    flipped = bytearray(whole)
    flipped[12] ^= 0x41
    path.write_bytes(flipped)
    store = ActivationStore.open(folder)
    with pytest.raises(CorruptData, match=name):
        (store.stats(SITES[0]), store.contexts(SITES[0], [20]))

    path.unlink()
    with pytest.raises(CorruptData, match=f"{name}.*missing"):
        ActivationStore.open(folder)


def test_a_shard_cut_after_opening_is_an_error_and_not_a_crash(folder):
    store = ActivationStore.open(folder)
    path = folder / SITES[0] / "shard-00001.safetensors"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(CorruptData, match="behind the end of the file"):
        store.contexts(SITES[0], [20])


def test_a_summary_of_another_version_is_refused(folder):
    path = folder / SITES[0] / "site.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 9}))
    with pytest.raises(CorruptData, match=r"site\.json(?s:.)*format_version"):
        ActivationStore.open(folder)


def test_sites_of_different_harvests_do_not_mix(folder, model, tokens):
    other = folder.parent / "other"
    harvest(model, tokens.split("eval"), ["resid_post.1"], other, dtype="float32", **OPTIONS)
    (other / "resid_post.1").rename(folder / "resid_post.1")
    with pytest.raises(CorruptData, match="different tokens or in different shards"):
        ActivationStore.open(folder)


def test_few_files_are_open_at_a_time(folder, monkeypatch):
    monkeypatch.setattr("sae_lib.activations._shards.OPEN_MAPS", 1)
    store = ActivationStore.open(folder)
    expected = store.contexts(SITES[0], range(store.num_contexts)).x
    back_and_forth = [0, 40, 1, 41, 2, 42]
    found = store.contexts(SITES[0], back_and_forth)
    places = torch.cat([(store.contexts(SITES[0], [c]).rows) for c in back_and_forth])
    assert torch.equal(found.rows, places)
    assert len(store._maps[SITES[0]]._open) == 1
    assert expected.shape[0] == store.num_rows
