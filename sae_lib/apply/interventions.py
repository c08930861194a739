"""Edits of activations: pure functions of x, and where in a sequence they act.

    add             x + a v
    add_latent      x + a max_j d_j
    set_latent      x + (c - z_j) d_j          clamp, error kept; equals decode(z, z_j := c) + error
    scale_latent    x + (g - 1) z_j d_j        g = 0 is ablation, error kept
    project_out     x - (x . v^) v^,  v^ = v / |v|
    norm_preserving edit(x) |x| / |edit(x)|

Formulas: applications.md, section 0.2. x is raw activation (saved coders take raw activations),
d_j a decoder row as it is, z_j the code as ``encode`` gives it. A code that is overwritten is not
selected again: a top-k coder then has up to k + 1 latents on.
"""

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lib.errors import BadInput
from sae_lib.saes.base import SparseCoder

Edit: TypeAlias = Callable[[Tensor], Tensor]
"""From activations (batch, seq, d_in) to their replacement."""

Positions: TypeAlias = Literal["all", "all_but_special", "prompt_only", "generated_only", "last"]
"""Where an edit acts; "all_but_special" includes what is generated, "last" is the prompt's end."""


def add(
    x: Float[Tensor, "*batch d_in"], v: Float[Tensor, "*#batch d_in"], strength: float
) -> Float[Tensor, "*batch d_in"]:
    """``x`` moved by ``strength`` times ``v``, in units of the activations."""
    return x + (strength * v).to(x)


def add_latent(
    x: Float[Tensor, "*batch d_in"],
    coder: SparseCoder[Any],
    latent: int,
    *,
    max_activation: float,
    strength: float,
) -> Float[Tensor, "*batch d_in"]:
    """``x`` moved along a decoder row by ``strength`` times the latent's largest activation."""
    return add(x, coder.W_dec.detach()[latent], strength * max_activation)


def set_latent(
    x: Float[Tensor, "*batch d_in"], coder: SparseCoder[Any], latent: int, value: float
) -> Float[Tensor, "*batch d_in"]:
    """``x`` with one code set to ``value`` and everything else, the error included, kept."""
    return _move(x, coder, latent, value - _code(x, coder, latent))


def scale_latent(
    x: Float[Tensor, "*batch d_in"], coder: SparseCoder[Any], latent: int, factor: float
) -> Float[Tensor, "*batch d_in"]:
    """``x`` with one code multiplied by ``factor``; 0 takes the latent out."""
    return _move(x, coder, latent, (factor - 1) * _code(x, coder, latent))


def project_out(
    x: Float[Tensor, "*batch d_in"], v: Float[Tensor, " d_in"]
) -> Float[Tensor, "*batch d_in"]:
    """``x`` without its component along ``v``; a zero ``v`` changes nothing."""
    unit = (v / v.norm().clamp_min(torch.finfo(v.dtype).tiny)).to(x)
    return x - (x @ unit).unsqueeze(-1) * unit


def norm_preserving(edit: Edit) -> Edit:
    """``edit``, and then each token scaled back to the length it had."""

    def scaled(x: Tensor) -> Tensor:
        edited = edit(x)
        length = edited.norm(dim=-1, keepdim=True)
        return edited * x.norm(dim=-1, keepdim=True) / length.clamp_min(1e-12)

    return scaled


def at_positions(
    edit: Edit,
    positions: Positions,
    *,
    mask: Bool[Tensor, "batch seq"],
    keep: Bool[Tensor, "batch seq"],
) -> Edit:
    """``edit``, acting only at ``positions`` of prompts with this ``mask`` and ``keep``.

    ``mask`` is False on padding, ``keep`` also on special tokens. A forward over as many tokens as
    the prompts have is a forward over the prompts; one over a single token is a step of
    generation, unless the prompts have one token, and then the first such forward is the prompt.
    One edit serves one generation. Padding is never edited.
    """
    is_last = torch.zeros_like(mask)
    is_last[:, -1] = mask[:, -1]
    at_prompt = {
        "all": mask,
        "all_but_special": keep,
        "prompt_only": keep,
        "generated_only": torch.zeros_like(mask),
        "last": is_last,
    }[positions]
    at_generated = positions in ("all", "all_but_special", "generated_only")
    prompt_seen = False

    def somewhere(x: Tensor) -> Tensor:
        nonlocal prompt_seen
        if not prompt_seen:
            if x.shape[:2] != mask.shape:
                raise BadInput(
                    f"the edit was made for prompts of shape {tuple(mask.shape)}, and the model"
                    f" runs over {tuple(x.shape[:2])}."
                )
            prompt_seen = True
            return torch.where(at_prompt.to(x.device).unsqueeze(-1), edit(x), x)
        if x.shape[1] != 1:
            raise BadInput(
                "the edit has seen its prompts; make a new one for another forward pass."
            )
        return edit(x) if at_generated else x

    return somewhere


def _code(
    x: Float[Tensor, "*batch d_in"], coder: SparseCoder[Any], latent: int
) -> Float[Tensor, "*batch 1"]:
    with torch.no_grad():
        z = coder.encode(x.to(coder.W_dec.device, torch.float32))
    return z[..., latent : latent + 1]


def _move(
    x: Float[Tensor, "*batch d_in"],
    coder: SparseCoder[Any],
    latent: int,
    by: Float[Tensor, "*batch 1"],
) -> Float[Tensor, "*batch d_in"]:
    return x + (by * coder.W_dec.detach()[latent]).to(x)
