"""What every reader of a foreign format ends with: weights in one form, and the coder of them.

    pre   = W_enc (x - [is_centred] b_dec) + b_enc
    z     = relu(pre);  the k largest of it;  or pre where pre > threshold and pre > 0
    x_hat = W_dec' z + b_dec

`coder_of` makes the coder that takes raw activations. Decoder rows get unit norm, which leaves
every reconstruction as it is, unless latents are ranked (TopK) by activations without those norms.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_lib.errors import BadInput, CorruptData, MissingFile
from sae_lib.saes import VARIANTS, SaeConfig, SparseCoder
from sae_lib.saes._ops import unit_rows

REMEDY = "Fetch the SAE again."


class Weights(NamedTuple):
    """An SAE in the one form that readers bring it into; rows belong to latents."""

    W_enc: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_dec: Float[Tensor, " d_in"]
    is_centred: bool
    """Whether b_dec is subtracted from the input."""

    threshold: Float[Tensor, " d_sae"] | None = None
    """Of JumpReLU, per latent."""

    k: int | None = None
    """Of TopK."""

    ranks_by_norm: bool = False
    """Whether TopK ranks z_i |W_dec_i| instead of z_i."""

    factor: float = 1.0
    """The input is multiplied by this first, and the reconstruction divided."""


class Imported(NamedTuple):
    """A released SAE as a coder of ours, and what its files say of its origin."""

    coder: SparseCoder[Any]
    """Takes raw activations; float32, on the CPU, without gradients."""

    facts: dict[str, Any]
    """format, model, hook, site, ...: None where the files do not say."""


@torch.no_grad()
def coder_of(weights: Weights, where: Path) -> SparseCoder[Any]:
    """The coder of raw activations; raises `CorruptData` where shapes or numbers do not fit."""
    _check(weights, where)
    d_sae, d_in = weights.W_enc.shape
    # in float64, since biases of uncentred SAEs are sums of large terms that nearly cancel
    W_enc, W_dec = weights.W_enc.double(), weights.W_dec.double()
    b_enc, b_dec = weights.b_enc.double(), weights.b_dec.double()
    threshold = None if weights.threshold is None else weights.threshold.double()
    if not weights.is_centred:
        b_enc = b_enc + W_enc @ b_dec
    if weights.k is None or weights.ranks_by_norm:
        norms = W_dec.norm(dim=-1)
        W_enc, b_enc, W_dec = W_enc * norms[:, None], b_enc * norms, unit_rows(W_dec)
        # a latent that writes nothing never fires: its threshold may be anything
        threshold = None if threshold is None else threshold * torch.where(norms > 0, norms, 1.0)
    tensors = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if threshold is not None:
        # whether latents below 0 fire is for relu to say, and ours has a logarithm to store
        tensors["log_threshold"] = threshold.clamp_min(torch.finfo(torch.float32).tiny).log()
    coder = _config(weights, d_in, d_sae).build()
    given = {name: value.float().contiguous() for name, value in tensors.items()}
    coder.load_state_dict({**coder.state_dict(), **given}, assign=True)
    coder.scale_(1 / weights.factor)
    return coder.eval().requires_grad_(False)


def _config(weights: Weights, d_in: int, d_sae: int) -> SaeConfig:
    if weights.k is not None:
        return VARIANTS["topk"].model_validate({"d_in": d_in, "d_sae": d_sae, "k": weights.k})
    if weights.threshold is not None:
        raw = {"d_in": d_in, "d_sae": d_sae, "penalty": 0.0}
        return VARIANTS["jumprelu"].model_validate(raw)
    return VARIANTS["standard"].model_validate({"d_in": d_in, "d_sae": d_sae, "l1": 0.0})


def _check(weights: Weights, where: Path) -> None:
    d_sae, d_in = weights.W_enc.shape
    expected = {"b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,), "threshold": (d_sae,)}
    for name, shape in expected.items():
        found = getattr(weights, name)
        if found is not None and tuple(found.shape) != shape:
            problem = f"{name} has shape {tuple(found.shape)}, not {shape} as W_enc asks."
            raise CorruptData(where, problem, REMEDY)
    for name in ("W_enc", *expected):
        found = getattr(weights, name)
        if found is not None and not bool(torch.isfinite(found).all()):
            raise CorruptData(where, f"{name} holds numbers that are not finite.", REMEDY)
    if weights.k is not None and not 1 <= weights.k <= d_sae:
        raise BadInput(f"k must be between 1 and {d_sae}.", file=where, key="k", value=weights.k)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `MissingFile` or `CorruptData`."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise MissingFile(f"there is no SAE here: {path.name} is missing.", file=path) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptData(path, f"this is not JSON ({error}).", REMEDY) from error
    if not isinstance(found, dict):
        raise CorruptData(path, "this is no JSON object.", REMEDY)
    return found


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors by name; raises `MissingFile` or `CorruptData`."""
    if not path.is_file():
        raise MissingFile(f"there is no SAE here: {path.name} is missing.", file=path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CorruptData(path, f"this is not a safetensors file ({error}).", REMEDY) from error


def pick(tensors: Mapping[str, Tensor], name: str, path: Path) -> Tensor:
    """A tensor that must be there; raises `CorruptData`."""
    if name not in tensors:
        there = ", ".join(sorted(tensors))
        raise CorruptData(path, f"tensor {name} is missing; there are {there}.", REMEDY)
    return tensors[name]
