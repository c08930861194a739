"""Llama Scope folders, written here in its layout; what they compute, step by step as its authors
fold them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_lib.errors import BadInput, MissingFile
from sae_lib.interop.llama_scope import read_llama_scope
from tests.interop.drawn_weights import Drawn, agrees, relu, top, torch_of

NORM = 11.3
THRESHOLD = 4.0


def write(folder: Path, drawn: Drawn, **cfg: Any) -> Path:
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    tensors = torch_of(
        **{
            "encoder.weight": drawn.W_enc.T,
            "encoder.bias": drawn.b_enc,
            "decoder.weight": drawn.W_dec.T,
            "decoder.bias": drawn.b_dec,
        }
    )
    save_file(tensors, folder / "checkpoints" / "final.safetensors")
    said = {
        "d_model": 6,
        "d_sae": 20,
        "hook_point_in": "blocks.12.hook_attn_out",
        "hook_point_out": "blocks.12.hook_attn_out",
        "act_fn": "jumprelu",
        "jump_relu_threshold": THRESHOLD,
        "norm_activation": "dataset-wise",
        "dataset_average_activation_norm": {"in": NORM, "out": NORM},
        "sparsity_include_decoder_norm": True,
        "apply_decoder_bias_to_pre_encoder": False,
        "use_decoder_bias": True,
        **cfg,
    }
    (folder / "hyperparams.json").write_text(json.dumps(said))
    return folder


def folded(drawn: Drawn, *, centred: bool = False, by_norm: bool = True):
    """pre-activations on the scale of x, decoder and bias, in the order of the authors' loader."""
    s = np.sqrt(6) / NORM
    W_enc, b_enc = drawn.W_enc.astype(np.float64), drawn.b_enc / s
    b_dec, W_dec = drawn.b_dec / s, drawn.W_dec.astype(np.float64)
    if by_norm:
        norms = np.linalg.norm(W_dec, axis=1)
        W_enc, b_enc, W_dec = W_enc * norms, b_enc * norms, W_dec / norms[:, None]
    u = drawn.x - b_dec if centred else drawn.x
    return u @ W_enc + b_enc, W_dec, b_dec


@pytest.mark.parametrize("by_norm", [True, False])
@pytest.mark.parametrize("centred", [True, False])
def test_the_threshold_gates_after_norm_and_rows_are_folded(drawn, tmp_path, by_norm, centred):
    found = read_llama_scope(
        write(
            tmp_path,
            drawn,
            sparsity_include_decoder_norm=by_norm,
            apply_decoder_bias_to_pre_encoder=centred,
        )
    )
    pre, W_dec, b_dec = folded(drawn, centred=centred, by_norm=by_norm)
    z = relu(pre) * (pre > THRESHOLD)
    assert ((pre > 0) & (pre <= THRESHOLD)).any(), "the threshold matters here"
    agrees(found.coder, drawn.x, z @ W_dec + b_dec, z > 0)
    assert found.facts["site"] == "attn_out.12"


def test_other_readings_have_another_number_of_latents_on(drawn, tmp_path):
    x = torch.from_numpy(drawn.x)
    right = (read_llama_scope(write(tmp_path / "a", drawn)).coder.encode(x) > 0).float().mean()
    for name, wrong in {
        "norm left out": {"norm_activation": "none"},
        "rows left out": {"sparsity_include_decoder_norm": False},
    }.items():
        other = read_llama_scope(write(tmp_path / name, drawn, **wrong)).coder.encode(x)
        assert abs((other > 0).float().mean() - right) > 0.01


def test_topk_ranks_with_the_norms_of_decoder_rows(drawn, tmp_path):
    found = read_llama_scope(write(tmp_path, drawn, act_fn="topk", top_k=5))
    pre, W_dec, b_dec = folded(drawn)
    z = top(pre, 5)
    agrees(found.coder, drawn.x, z @ W_dec + b_dec, z > 0)


def test_weights_in_bfloat16_and_without_a_bias(drawn, tmp_path):
    write(tmp_path, drawn, use_decoder_bias=False, act_fn="relu", norm_activation="inference")
    file = tmp_path / "checkpoints" / "final.safetensors"
    rounded = {
        name: torch.from_numpy(np.ascontiguousarray(array)).bfloat16()
        for name, array in {
            "encoder.weight": drawn.W_enc.T,
            "encoder.bias": drawn.b_enc,
            "decoder.weight": drawn.W_dec.T,
        }.items()
    }
    save_file(rounded, file)
    W_enc, b_enc, W_dec = (tensor.float().numpy() for tensor in rounded.values())
    z = relu(drawn.x @ W_enc.T + b_enc)
    coder = read_llama_scope(tmp_path).coder
    assert coder.W_enc.dtype is torch.float32
    agrees(coder, drawn.x, z @ W_dec.T, z > 0)


@pytest.mark.parametrize(
    ("cfg", "problem"),
    [
        ({"hook_point_out": "blocks.12.hook_mlp_out"}, "transcoder"),
        ({"act_fn": "gelu"}, "jumprelu, topk, relu"),
        ({"norm_activation": "token-wise"}, "dataset-wise"),
        ({"dataset_average_activation_norm": None}, "mean norm"),
        ({"dataset_average_activation_norm": {"in": 1.0, "out": 2.0}}, "the same number"),
        ({"jump_relu_threshold": None}, "a number is needed"),
        ({"act_fn": "topk"}, "a number is needed"),
    ],
)
def test_settings_that_no_coder_of_ours_has_are_named(drawn, tmp_path, cfg, problem):
    with pytest.raises(BadInput, match=problem):
        read_llama_scope(write(tmp_path, drawn, **cfg))


def test_a_folder_without_an_sae_is_named(tmp_path):
    with pytest.raises(MissingFile, match=r"hyperparams\.json is missing"):
        read_llama_scope(tmp_path)
