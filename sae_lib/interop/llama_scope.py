"""Llama Scope: ``hyperparams.json`` and ``checkpoints/final.safetensors``.

    s = sqrt(d_in) / dataset_average_activation_norm,  u = s x [- b_dec]
    pre = (W_enc u + b_enc) [|W_dec_i|]
    z   = pre where pre > s jump_relu_threshold;  or the top_k largest
    x_hat = (W_dec' z [/ |W_dec_i|] + b_dec) / s

The brackets are for ``apply_decoder_bias_to_pre_encoder`` and ``sparsity_include_decoder_norm``.
The threshold is one number, compared with activations on the scale of x: that is the order in which
the authors' loader folds norm, then decoder rows, then applies it. Read without those factors the
same files have several times as many latents on. Only SAEs of one place can be read.

He et al. 2024, https://arxiv.org/abs/2410.20526
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from sae_lib.errors import BadInput
from sae_lib.interop.hooks import site_of
from sae_lib.interop.imported import Imported, Weights, coder_of, pick, read_json, read_safetensors

CONFIG = "hyperparams.json"
TENSORS = Path("checkpoints") / "final.safetensors"

ACTIVATIONS = ("jumprelu", "topk", "relu")
DATASET_WISE = "dataset-wise"
NORMS = (DATASET_WISE, "inference", "none")
"""Normalisations that are read; inference: it is in the weights."""


def read_llama_scope(folder: Path) -> Imported:
    """The SAE in ``folder``.

    Raises:
        MissingFile: a file is not there.
        BadInput: a transcoder, or a setting that no coder of ours has.
        CorruptData: the files do not hold what they should.
    """
    path, at = folder / CONFIG, folder / TENSORS
    cfg = read_json(path)
    tensors = read_safetensors(at)
    if cfg.get("hook_point_out", cfg.get("hook_point_in")) != cfg.get("hook_point_in"):
        raise BadInput(
            "this is a transcoder; SAEs of one place can be read.",
            file=path,
            key="hook_point_out",
            value=cfg.get("hook_point_out"),
        )
    activation = str(cfg.get("act_fn", "relu")).lower()
    if activation not in ACTIVATIONS:
        problem = f"these activation functions can be read: {', '.join(ACTIVATIONS)}."
        raise BadInput(problem, file=path, key="act_fn", value=activation)
    W_enc = pick(tensors, "encoder.weight", at).float()
    W_dec = pick(tensors, "decoder.weight", at).float().T
    factor = _factor(cfg, W_enc.shape[1], path)
    by_norm = bool(cfg.get("sparsity_include_decoder_norm", False))
    threshold = None
    if activation == "jumprelu":
        # on the scale of the weights, and of z without the norm of its decoder row
        threshold = torch.full((len(W_enc),), factor * _number(cfg, "jump_relu_threshold", path))
        if by_norm:
            norms = W_dec.norm(dim=-1)
            threshold = threshold / torch.where(norms > 0, norms, 1.0)
    has_bias = cfg.get("use_decoder_bias", "decoder.bias" in tensors)
    b_dec = pick(tensors, "decoder.bias", at).float() if has_bias else torch.zeros(W_enc.shape[1])
    weights = Weights(
        W_enc=W_enc,
        b_enc=pick(tensors, "encoder.bias", at).float(),
        W_dec=W_dec,
        b_dec=b_dec,
        is_centred=bool(cfg.get("apply_decoder_bias_to_pre_encoder", False)),
        threshold=threshold,
        k=int(_number(cfg, "top_k", path)) if activation == "topk" else None,
        ranks_by_norm=by_norm,
        factor=factor,
    )
    hook = cfg.get("hook_point_in")
    facts = {
        "format": "llama_scope",
        "architecture": activation,
        "model": None,
        "hook": hook,
        "site": site_of(hook) if isinstance(hook, str) else None,
        "norm_factor": factor,
    }
    return Imported(coder_of(weights, at), facts)


def _factor(cfg: Mapping[str, Any], d_in: int, path: Path) -> float:
    said = cfg.get("norm_activation", "none")
    if said not in NORMS:
        problem = f"these normalisations can be read: {', '.join(NORMS)}."
        raise BadInput(problem, file=path, key="norm_activation", value=said)
    if said != DATASET_WISE:
        return 1.0
    norms = cfg.get("dataset_average_activation_norm")
    if not isinstance(norms, Mapping):
        problem = "a dataset-wise SAE needs the mean norm of its activations."
        raise BadInput(problem, file=path, key="dataset_average_activation_norm", value=norms)
    norm_in, norm_out = _number(norms, "in", path), _number(norms, "out", path)
    if norm_in <= 0 or not math.isclose(norm_in, norm_out, rel_tol=1e-6):
        problem = "of one place the norms in and out must be the same number, above 0."
        raise BadInput(problem, file=path, key="dataset_average_activation_norm", value=norms)
    return math.sqrt(d_in) / norm_in


def _number(cfg: Mapping[str, Any], key: str, path: Path) -> float:
    value = cfg.get(key)
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise BadInput("a number is needed here.", file=path, key=key, value=value)
    return float(value)
