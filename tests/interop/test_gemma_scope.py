"""Gemma Scope folders, written here in its layout."""

import math
from pathlib import Path

import numpy as np
import pytest

from sae_lib.errors import BadInput, CorruptData, MissingFile
from sae_lib.interop.gemma_scope import read_gemma_scope
from tests.interop.drawn_weights import Drawn, agrees, relu


def write(folder: Path, drawn: Drawn, *, lower: bool = False, **more: np.ndarray) -> Path:
    folder.mkdir(parents=True)
    names = {"W_enc": drawn.W_enc, "W_dec": drawn.W_dec}
    arrays = {name.lower() if lower else name: array for name, array in names.items()}
    own = {"b_enc": drawn.b_enc, "b_dec": drawn.b_dec, "threshold": drawn.threshold}
    np.savez(folder / "params.npz", **{**arrays, **own, **more})
    return folder


@pytest.mark.parametrize("lower", [False, True])
def test_nothing_is_subtracted_from_the_input(drawn, tmp_path, lower):
    place = "gemma-scope-2b-pt-res/layer_12/width_16k/average_l0_82"
    found = read_gemma_scope(write(tmp_path / place, drawn, lower=lower))
    pre = drawn.x @ drawn.W_enc + drawn.b_enc
    z = relu(pre) * (pre > drawn.threshold)
    agrees(found.coder, drawn.x, z @ drawn.W_dec + drawn.b_dec, z > 0)
    facts = {key: found.facts[key] for key in ("model", "site", "average_l0")}
    assert facts == {"model": "google/gemma-2-2b", "site": "resid_post.12", "average_l0": 82}


def test_saes_of_the_embedding_are_scaled(drawn, tmp_path):
    found = read_gemma_scope(write(tmp_path / "embedding" / "width_4k" / "average_l0_6", drawn))
    root = math.sqrt(6)
    pre = drawn.x @ drawn.W_enc / root + drawn.b_enc
    z = relu(pre) * (pre > drawn.threshold)
    agrees(found.coder, drawn.x, z @ drawn.W_dec * root + drawn.b_dec, z > 0)


def test_a_path_that_says_nothing_leaves_facts_open(drawn, tmp_path):
    facts = read_gemma_scope(write(tmp_path / "mine", drawn)).facts
    assert facts["model"] is facts["site"] is facts["average_l0"] is None


def test_what_cannot_be_read(drawn, tmp_path):
    with pytest.raises(MissingFile, match=r"params\.npz is missing"):
        read_gemma_scope(tmp_path / "nothing")
    with pytest.raises(BadInput, match="transcoder"):
        read_gemma_scope(write(tmp_path / "gemma-scope-2b-pt-transcoders" / "layer_1", drawn))
    pickled = np.array([{"a": 1}], dtype=object)
    with pytest.raises(CorruptData, match="not an archive of arrays"):
        read_gemma_scope(write(tmp_path / "pickled", drawn, surplus=pickled))
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "params.npz").write_bytes(b"no arrays")
    with pytest.raises(CorruptData, match="not an archive of arrays"):
        read_gemma_scope(folder)
    np.savez(folder / "params.npz", W_enc=drawn.W_enc)
    with pytest.raises(CorruptData, match="w_dec is missing"):
        read_gemma_scope(folder)
