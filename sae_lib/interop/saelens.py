"""SAELens: a folder with ``cfg.json`` and ``sae_weights.safetensors``, of version 6 or before.

    u = factor x - [apply_b_dec_to_input] b_dec,  pre = u W_enc + b_enc
    x_hat = (z W_dec + b_dec) / factor

W_enc is (d_in, d_sae), W_dec (d_sae, d_in). Read are the architectures standard, topk and jumprelu
(as which BatchTopK SAEs are saved too). ``normalize_activations`` may be none, or
expected_average_only_in with the factor given: the files of such SAEs do not hold it. Those that
normalise each token by itself are no function that our coders have, and are refused.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sae_lib.errors import BadInput
from sae_lib.interop.hooks import site_of
from sae_lib.interop.imported import Imported, Weights, coder_of, pick, read_json, read_safetensors

CONFIG = "cfg.json"
TENSORS = "sae_weights.safetensors"

ARCHITECTURES = ("standard", "topk", "jumprelu")


def read_saelens(folder: Path, *, norm_factor: float | None = None) -> Imported:
    """The SAE in ``folder``.

    Args:
        folder: Local folder.
        norm_factor: What inputs are multiplied by, for SAEs whose ``normalize_activations`` is
            expected_average_only_in; the registry of SAELens lists it.

    Raises:
        MissingFile: a file is not there.
        BadInput: an architecture or a normalisation that no coder of ours has, or a factor that is
            missing or not wanted.
        CorruptData: the files do not hold what they should.
    """
    path = folder / CONFIG
    raw = read_json(path)
    cfg = _flat(raw)
    tensors = read_safetensors(folder / TENSORS)
    architecture = _architecture(cfg)
    if architecture not in ARCHITECTURES:
        raise BadInput(
            f"SAEs of these architectures can be read: {', '.join(ARCHITECTURES)}.",
            file=path,
            key="architecture",
            value=architecture,
        )
    at = folder / TENSORS
    scaling = tensors.get("scaling_factor")
    if scaling is not None and not torch.equal(scaling, torch.ones_like(scaling)):
        raise BadInput("scaling factors of latents must all be 1.", file=at, key="scaling_factor")
    weights = Weights(
        W_enc=pick(tensors, "W_enc", at).float().T,
        b_enc=pick(tensors, "b_enc", at).float(),
        W_dec=pick(tensors, "W_dec", at).float(),
        b_dec=pick(tensors, "b_dec", at).float(),
        is_centred=bool(cfg.get("apply_b_dec_to_input", True)),
        threshold=_threshold(tensors, at) if architecture == "jumprelu" else None,
        k=_k(cfg, path) if architecture == "topk" else None,
        ranks_by_norm=bool(cfg.get("rescale_acts_by_decoder_norm", False)),
        factor=_factor(cfg, norm_factor, path),
    )
    hook = cfg.get("hook_name")
    facts = {
        "format": "saelens",
        "architecture": architecture,
        "model": cfg.get("model_name"),
        "hook": hook,
        "site": site_of(hook) if isinstance(hook, str) else None,
        "context": cfg.get("context_size"),
        "sae_lens_version": cfg.get("sae_lens_version"),
        "norm_factor": norm_factor,
    }
    return Imported(coder_of(weights, at), facts)


def _flat(raw: Mapping[str, Any]) -> dict[str, Any]:
    """Settings and metadata at one level, under the names of version 6."""
    cfg = {**{key: value for key, value in raw.items() if key != "metadata"}}
    metadata = raw.get("metadata")
    if isinstance(metadata, Mapping):
        cfg = {**metadata, **cfg}
    renamed = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
    for old, new in renamed.items():
        if old in cfg:
            cfg.setdefault(new, cfg[old])
    return cfg


def _architecture(cfg: Mapping[str, Any]) -> str:
    named = str(cfg.get("architecture", "standard"))
    return "topk" if named == "standard" and cfg.get("activation_fn") == "topk" else named


def _k(cfg: Mapping[str, Any], path: Path) -> int:
    k = cfg.get("k", (cfg.get("activation_fn_kwargs") or {}).get("k"))
    if not isinstance(k, int):
        raise BadInput("a topk SAE needs its number of latents.", file=path, key="k", value=k)
    return k


def _threshold(tensors: Mapping[str, Tensor], path: Path) -> Tensor:
    if "log_threshold" in tensors:
        return tensors["log_threshold"].float().exp()
    return pick(tensors, "threshold", path).float()


def _factor(cfg: Mapping[str, Any], given: float | None, path: Path) -> float:
    said = cfg.get("normalize_activations", "none")
    said = {True: "expected_average_only_in", False: "none", None: "none"}.get(said, said)
    key = "normalize_activations"
    if said == "none":
        if given is not None:
            problem = "this SAE takes activations as they are; leave norm_factor out."
            raise BadInput(problem, file=path, key=key, value=said)
        return 1.0
    if said != "expected_average_only_in":
        problem = "this SAE normalises every token by itself, which no coder here does."
        raise BadInput(problem, file=path, key=key, value=said)
    if given is None or not given > 0:
        problem = (
            "this SAE takes scaled activations and its files do not say by what; give norm_factor, "
            "above 0."
        )
        raise BadInput(problem, file=path, key=key, value=said)
    return given
