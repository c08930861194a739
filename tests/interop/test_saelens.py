"""SAELens folders, written here in its layout."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sae_lib.errors import BadInput, CorruptData, MissingFile
from sae_lib.interop.hooks import HOOKS, hook_of, site_of
from sae_lib.interop.saelens import read_saelens
from sae_lib.saes.files import load_sae, save_sae
from tests.interop.drawn_weights import Drawn, agrees, relu, top, torch_of


def write(folder: Path, drawn: Drawn, *, threshold: bool = False, **cfg: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    W_enc, b_enc, W_dec, b_dec, theta, _ = drawn
    arrays = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if threshold:
        arrays["threshold"] = theta
    save_file(torch_of(**arrays), folder / "sae_weights.safetensors")
    said = {
        "architecture": "standard",
        "d_in": W_enc.shape[0],
        "d_sae": W_enc.shape[1],
        "dtype": "float32",
        "apply_b_dec_to_input": True,
        "normalize_activations": "none",
        "metadata": {
            "sae_lens_version": "6.54.12",
            "model_name": "gpt2-small",
            "hook_name": "blocks.8.hook_resid_pre",
            "context_size": 128,
        },
        **cfg,
    }
    (folder / "cfg.json").write_text(json.dumps(said))
    return folder


@pytest.mark.parametrize("centred", [True, False])
def test_standard(drawn, tmp_path, centred):
    found = read_saelens(write(tmp_path, drawn, apply_b_dec_to_input=centred))
    u = drawn.x - drawn.b_dec if centred else drawn.x
    z = relu(u @ drawn.W_enc + drawn.b_enc)
    agrees(found.coder, drawn.x, z @ drawn.W_dec + drawn.b_dec, z > 0)
    assert found.coder.cfg.kind == "standard"
    assert torch.allclose(found.coder.W_dec.norm(dim=-1), torch.ones(20))
    assert found.facts["model"] == "gpt2-small"
    assert found.facts["site"] == "resid_pre.8"


@pytest.mark.parametrize("by_norm", [False, True])
def test_topk_ranks_as_it_was_trained_to(drawn, tmp_path, by_norm):
    folder = write(tmp_path, drawn, architecture="topk", k=5, rescale_acts_by_decoder_norm=by_norm)
    pre = (drawn.x - drawn.b_dec) @ drawn.W_enc + drawn.b_enc
    norms = np.linalg.norm(drawn.W_dec, axis=1)
    z = top(pre, 5, pre * norms if by_norm else None)
    other = top(pre, 5, None if by_norm else pre * norms)
    assert ((z > 0) != (other > 0)).any(), "the two ways of ranking differ here"
    agrees(read_saelens(folder).coder, drawn.x, z @ drawn.W_dec + drawn.b_dec, z > 0)


def test_jumprelu(drawn, tmp_path):
    folder = write(
        tmp_path, drawn, threshold=True, architecture="jumprelu", apply_b_dec_to_input=False
    )
    pre = drawn.x @ drawn.W_enc + drawn.b_enc
    z = relu(pre) * (pre > drawn.threshold)
    assert ((pre > 0) & (pre <= drawn.threshold)).any(), "thresholds matter here"
    agrees(read_saelens(folder).coder, drawn.x, z @ drawn.W_dec + drawn.b_dec, z > 0)


def test_a_threshold_of_zero_or_below_is_a_relu(drawn, tmp_path):
    low = drawn._replace(threshold=np.linspace(-1, 0, 20).astype(np.float32))
    folder = write(tmp_path, low, threshold=True, architecture="jumprelu")
    z = relu((drawn.x - drawn.b_dec) @ drawn.W_enc + drawn.b_enc)
    agrees(read_saelens(folder).coder, drawn.x, z @ drawn.W_dec + drawn.b_dec, z > 0)


def test_the_norm_factor_is_folded(drawn, tmp_path):
    folder = write(tmp_path, drawn, normalize_activations="expected_average_only_in")
    factor = 0.37
    z = relu((factor * drawn.x - drawn.b_dec) @ drawn.W_enc + drawn.b_enc)
    x_hat = (z @ drawn.W_dec + drawn.b_dec) / factor
    agrees(read_saelens(folder, norm_factor=factor).coder, drawn.x, x_hat, z > 0)
    with pytest.raises(BadInput, match=r"cfg\.json.*give norm_factor"):
        read_saelens(folder)
    plain = write(tmp_path / "plain", drawn)
    with pytest.raises(BadInput, match="leave norm_factor out"):
        read_saelens(plain, norm_factor=factor)


def test_files_from_before_version_6(drawn, tmp_path):
    write(tmp_path, drawn)
    old = {
        "hook_point": "blocks.3.hook_mlp_out",
        "activation_fn_str": "topk",
        "activation_fn_kwargs": {"k": 4},
        "normalize_activations": False,
    }
    (tmp_path / "cfg.json").write_text(json.dumps(old))
    found = read_saelens(tmp_path)
    assert (found.coder.cfg.kind, found.coder.cfg.k) == ("topk", 4)
    assert found.facts["site"] == "mlp_out.3"


def test_a_coder_that_was_read_can_be_saved_as_ours(drawn, tmp_path):
    found = read_saelens(write(tmp_path / "theirs", drawn, threshold=True, architecture="jumprelu"))
    save_sae(found.coder, tmp_path / "ours", facts=found.facts)
    x = torch.from_numpy(drawn.x)
    assert torch.equal(load_sae(tmp_path / "ours")(x), found.coder(x))


@pytest.mark.parametrize(
    ("cfg", "problem"),
    [
        ({"architecture": "gated"}, "standard, topk, jumprelu"),
        ({"normalize_activations": "layer_norm"}, "every token by itself"),
        ({"architecture": "topk", "k": None}, "number of latents"),
        ({"architecture": "topk", "k": 21}, "between 1 and 20"),
    ],
)
def test_what_no_coder_of_ours_does_is_refused(drawn, tmp_path, cfg, problem):
    with pytest.raises(BadInput, match=problem):
        read_saelens(write(tmp_path, drawn, **cfg))


def test_files_that_do_not_fit(drawn, tmp_path):
    with pytest.raises(MissingFile, match="no SAE here"):
        read_saelens(tmp_path / "nothing")
    short = drawn._replace(b_enc=drawn.b_enc[:-1])
    with pytest.raises(CorruptData, match=r"b_enc has shape \(19,\), not \(20,\)"):
        read_saelens(write(tmp_path / "short", short))
    broken = drawn._replace(b_dec=drawn.b_dec * np.float32("nan"))
    with pytest.raises(CorruptData, match="b_dec holds numbers that are not finite"):
        read_saelens(write(tmp_path / "broken", broken))
    folder = write(tmp_path / "jump", drawn, architecture="jumprelu")
    with pytest.raises(CorruptData, match="threshold is missing"):
        read_saelens(folder)
    (folder / "sae_weights.safetensors").write_bytes(b"no tensors")
    with pytest.raises(CorruptData, match="not a safetensors file"):
        read_saelens(folder)


def test_hooks_and_sites_name_each_other():
    for kind in HOOKS:
        assert site_of(hook_of(f"{kind}.3") or "") == f"{kind}.3"
    assert hook_of("module:model.norm") is None
    assert site_of("blocks.3.attn.hook_z") is None
