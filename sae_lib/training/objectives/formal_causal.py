"""Causal objective: moving the latents between two tokens moves the logits along with them.

    t'       = the token of the same document whose latents are nearest to those of t, t' != t
    f_int    = f_t + s (f_t' - f_t),     s from U(0, 1), one draw per step, or fixed
    g_int    = logits with the reconstruction of f_int in the place of every kept position
    target   = g_t + s (g_t' - g_t),     g the undisturbed logits, constants
    loss     = the coder's own + weight * distance(g_int, target), mean over positions
    distance = mean over the vocabulary of the squared difference ("mse"), or
               KL(softmax target || softmax g_int) ("kl")

Differs from the authors' code: the reconstruction goes through the whole decoder, biases and
scale included, to the positions that the latents come from; documents are kept apart where
several lie in one context; the squared difference is a mean over the vocabulary, so the weight
does not depend on its size. Tokens alone in their document have no neighbour and stay as they are.
"""

import random
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field
from torch import Tensor

from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder, Step, Terms
from sae_lib.training.objectives._patched import frozen, run_on, whole_contexts
from sae_lib.training.objectives.base import Batch, Objective, ObjectiveConfig, StepInfo, register
from sae_lib.training.objectives.end_to_end import divergence


@register
class FormalCausalConfig(ObjectiveConfig):
    """Description of the causal objective."""

    papers = (Paper("Menon et al. 2024", "https://arxiv.org/abs/2410.11767", "4"),)
    summary = "Latents must move the model's logits the way that they themselves are moved."
    needs_model = True
    reads = "contexts"

    kind: Literal["formal_causal"] = "formal_causal"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    weight: float = Field(default=1.0, ge=0)
    """Loss per unit of the distance between the logits and where they should have moved."""

    ramp: float = Field(default=0.0, ge=0, le=1)
    """Share of training over which the weight rises from 0."""

    shift: float | None = Field(default=None, ge=0, le=1)
    """How far latents move towards the neighbour's; None draws it anew in each step."""

    distance: Literal["mse", "kl"] = "mse"
    """How logits are compared."""

    seed: int = Field(default=0, ge=0)
    """Seed of the shifts that are drawn."""

    def build(self, *, model: Any = None) -> Objective:
        return FormalCausal(self, model)


class FormalCausal(Objective):
    """Runs the model on from moved latents."""

    cfg: FormalCausalConfig

    def __init__(self, cfg: FormalCausalConfig, model: Any) -> None:
        super().__init__(cfg)
        self.model = frozen(model)

    def terms(self, coder: SparseCoder[Any], step: Step, batch: Batch, info: StepInfo) -> Terms:
        cfg, whole, terms = self.cfg, whole_contexts(batch), coder.terms(step)
        ramp = min(1.0, info.progress / cfg.ramp) if cfg.ramp else 1.0
        z = terms.z
        partner = nearest_latents(z.detach(), whole.keep, whole.document)
        shift = self.shift(info.number)
        moved = coder.decode(z + shift * (z[partner] - z)) / info.scale
        _, logits = run_on(self.model, whole, info.site, moved)
        clean = whole.logits[whole.keep]
        wanted = clean + shift * (clean[partner] - clean)
        if cfg.distance == "kl":
            distance = divergence(wanted, logits)
        else:
            distance = (logits - wanted).square().mean()
        extra = {**terms.extra, "causal": ramp * cfg.weight * distance}
        return terms._replace(extra=extra)

    def shift(self, number: int) -> float:
        """How far latents move in step ``number``."""
        if self.cfg.shift is not None:
            return self.cfg.shift
        return random.Random(f"shift {self.cfg.seed} {number}").random()


def nearest_latents(
    z: Float[Tensor, "rows d_sae"],
    keep: Bool[Tensor, "contexts length"],
    document: Int64[Tensor, "contexts length"],
) -> Int64[Tensor, " rows"]:
    """For each kept position the row of the other one in its document with the nearest latents.

    Rows are the kept positions, context by context. Ties go to the first; a position without
    company in its document gets its own row. Contexts are compared one at a time, so memory is
    bounded by the square of a context.
    """
    partner, first = torch.arange(len(z), device=z.device), 0
    for kept, documents in zip(keep, document, strict=True):
        last = first + int(kept.sum())
        own = documents[kept]
        distance = torch.cdist(z[first:last], z[first:last])
        is_other = own.unsqueeze(0) != own.unsqueeze(1)
        is_other.fill_diagonal_(True)
        distance = distance.masked_fill(is_other, torch.inf)
        has_company = ~is_other.all(1)
        if last > first:
            found = distance.argmin(1) + first
            partner[first:last] = torch.where(has_company, found, partner[first:last])
        first = last
    return partner
