"""Does moving latents move the model's logits along with them, in a straight line?

    t'     = the token of the same document whose latents are nearest to those of t, t' != t
    z_s    = z_t + s (z_t' - z_t),                  s = 1/2
    g_s    = logits with the reconstruction of z_s at every kept position
    target = g_t + s (g_t' - g_t),                  g the undisturbed logits
    causal_linearity = sum_t |g_s - target|^2 / sum_t |g_0 - target|^2

0: the logits follow the latents exactly; 1: moving the latents brings them no nearer to where they
should be than leaving them (g_0, the plain reconstruction) does. Tokens alone in their document
have no neighbour and count for nothing. Logits are compared as they are, as in the objective
`formal_causal`, which trains this distance.

Costs two forward passes per coder and batch, and memory for three sets of logits.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_lib.errors import NotApplicable
from sae_lib.evaluate._moments import ContextMoments
from sae_lib.evaluate._passes import CHUNK_ELEMENTS
from sae_lib.evaluate.base import (
    Accumulator,
    Definition,
    EvalBatch,
    EvalContext,
    StreamingMetric,
    register,
)
from sae_lib.papers import Paper
from sae_lib.training.objectives.formal_causal import nearest_latents
from sae_lib.warehouse.rows import Measurement

LINEARITY = Definition(
    "causal_linearity",
    "half_way_to_nearest",
    "squared distance of the logits from the line between those of two tokens, with latents moved "
    "along it, over the same with latents left; 0 is ideal",
    "lower",
    0.0,
)


@register
class CausalLinearityConfig(StreamingMetric):
    papers = (Paper("Menon et al. 2024", "https://arxiv.org/abs/2410.11767", "4"),)
    summary = "whether logits follow latents that are moved towards those of another token"
    needs = "language_model"

    name: Literal["causal_linearity"] = "causal_linearity"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    shift: float = Field(default=0.5, gt=0, le=1)
    """How far latents move towards the neighbour's."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [LINEARITY]

    def start(self, context: EvalContext) -> Accumulator:
        if context.no_language_model is not None:
            raise NotApplicable("causal_linearity", context.no_language_model)
        return CausalLinearityAccumulator(self, context)


class CausalLinearityAccumulator(Accumulator):
    def __init__(self, cfg: CausalLinearityConfig, context: EvalContext) -> None:
        self.cfg, self.coder = cfg, context.coder
        self.moments = ContextMoments(["moved", "left"], unit=context.unit)

    def update(self, batch: EvalBatch) -> None:
        passes = batch.passes
        if passes is None:
            raise NotApplicable("causal_linearity", "the batch came without a language model")
        document = torch.zeros_like(batch.tokens) if batch.document is None else batch.document
        partner = nearest_latents(batch.z, batch.keep, document)
        has_partner = partner != torch.arange(len(partner), device=partner.device)
        if not has_partner.any():
            return
        z = batch.z + self.cfg.shift * (batch.z[partner] - batch.z)
        moved = passes.logits(self.coder.reconstruct(batch.x, z), "kept")[batch.keep]
        left = passes.logits(batch.x_hat, "kept")[batch.keep]
        clean = passes.clean.logits[batch.keep]
        rows = has_partner.nonzero()[:, 0]
        found = [
            self._distances(clean, moved, left, partner, part)
            for part in rows.split(max(1, CHUNK_ELEMENTS // clean.shape[-1]))
        ]
        columns = (torch.cat(column) for column in zip(*found, strict=True))
        self.moments.add(batch.context[rows], batch.num_contexts, *columns)

    def _distances(
        self, clean: Tensor, moved: Tensor, left: Tensor, partner: Tensor, rows: Tensor
    ) -> tuple[Float[Tensor, " rows"], Float[Tensor, " rows"]]:
        """Squared distances of ``moved`` and ``left`` from the target, means over tokens."""
        precise = torch.promote_types(clean.dtype, torch.float32)
        start = clean[rows].to(precise)
        target = start + self.cfg.shift * (clean[partner[rows]].to(precise) - start)
        of_moved, of_left = (
            (logits[rows].to(precise) - target).square().mean(-1) for logits in (moved, left)
        )
        return of_moved, of_left

    def rows(self) -> list[Measurement]:
        return [LINEARITY.row(self.moments.ratio("moved", "left"), shift=self.cfg.shift)]
