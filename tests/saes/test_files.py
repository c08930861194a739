"""Sparse coders on disk: what is refused, and how that is said."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from sae_lib.errors import BadInput, CorruptData, MissingFile
from sae_lib.saes.files import load_sae, read_description, save_sae, sha256
from sae_lib.saes.topk import TopKConfig


@pytest.fixture
def saved(tmp_path: Path, seasoned: Any) -> Path:
    folder = tmp_path / "sae"
    save_sae(seasoned(TopKConfig.example()), folder, facts={"l0": 4.0})
    return folder


def edit(folder: Path, **changes: Any) -> None:
    description = json.loads((folder / "sae.json").read_text())
    (folder / "sae.json").write_text(json.dumps({**description, **changes}))


def replace_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    save_file(tensors, folder / "sae.safetensors")
    edit(folder, sha256=sha256(folder / "sae.safetensors"))


def test_the_description_says_what_the_file_holds(saved: Path):
    description = read_description(saved)
    assert description["format_version"] == 1
    assert description["kind"] == "topk"
    assert description["dtype"] == "float32"
    assert description["is_normalisation_folded"] is True
    assert description["facts"] == {"l0": 4.0}
    assert {path.name for path in saved.iterdir()} == {"sae.json", "sae.safetensors"}


def test_saving_again_replaces_what_was_there(saved: Path, seasoned: Any):
    other = seasoned(TopKConfig.example().but(seed=5))
    save_sae(other, saved, facts={})
    assert torch.equal(load_sae(saved).W_enc, other.W_enc)


def test_a_folder_without_an_sae_is_named(tmp_path: Path):
    with pytest.raises(MissingFile, match=r"nothing: there is no SAE here"):
        load_sae(tmp_path / "nothing")


def test_another_format_version_is_refused(saved: Path):
    edit(saved, format_version=99)
    with pytest.raises(BadInput, match=r"sae\.json, key format_version, value 99: .* version 1"):
        load_sae(saved)


def test_an_unknown_variant_is_answered_with_the_nearest(saved: Path):
    edit(saved, kind="topkk")
    with pytest.raises(BadInput, match=r"sae\.json, key kind, value 'topkk'.*mean 'topk'"):
        load_sae(saved)


def test_a_setting_nobody_knows_is_refused(saved: Path):
    edit(saved, config={**TopKConfig.example().model_dump(), "kk": 3})
    with pytest.raises(BadInput, match=r"(?s)sae\.json, key config.*kk"):
        load_sae(saved)


def test_a_description_that_is_cut_off_is_noticed(saved: Path):
    text = (saved / "sae.json").read_text()
    (saved / "sae.json").write_text(text[:40])
    with pytest.raises(CorruptData, match=r"sae\.json: this is not JSON"):
        load_sae(saved)


def test_a_missing_tensor_is_named(saved: Path):
    tensors = load_file(saved / "sae.safetensors")
    tensors.pop("b_enc")
    replace_tensors(saved, tensors)
    with pytest.raises(CorruptData, match=r"sae\.safetensors: tensor b_enc is missing"):
        load_sae(saved)


def test_a_tensor_of_the_wrong_shape_is_named_with_both_shapes(saved: Path):
    tensors = load_file(saved / "sae.safetensors")
    tensors["W_dec"] = tensors["W_dec"][:, :7].contiguous()
    replace_tensors(saved, tensors)
    with pytest.raises(CorruptData, match=r"W_dec has shape \(32, 7\), not \(32, 8\)"):
        load_sae(saved)


def test_a_tensor_nobody_asked_for_is_named(saved: Path):
    replace_tensors(saved, load_file(saved / "sae.safetensors") | {"theta": torch.zeros(1)})
    with pytest.raises(CorruptData, match="nobody asked for: theta"):
        load_sae(saved)


@pytest.mark.parametrize("damage", ["flipped", "cut"])
def test_damaged_tensors_are_noticed(saved: Path, damage: str):
    path = saved / "sae.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content if damage == "flipped" else content[:-8])
    with pytest.raises(CorruptData, match=r"sae\.safetensors: its digest"):
        load_sae(saved)


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path):
    coder = TopKConfig.example().build()
    with torch.no_grad():
        coder.b_enc[3] = torch.nan
    with pytest.raises(BadInput, match=r"key b_enc: .* not finite"):
        save_sae(coder, tmp_path, facts={})
    assert not (tmp_path / "sae.json").exists()


def test_low_precision_survives_the_disk(saved: Path, seasoned: Any):
    coder = seasoned(TopKConfig.example()).to(torch.bfloat16)
    save_sae(coder, saved, facts={})
    assert read_description(saved)["dtype"] == "bfloat16"
    loaded = load_sae(saved)
    assert loaded.W_enc.dtype == torch.bfloat16
    assert torch.equal(loaded.W_enc, coder.W_enc)
