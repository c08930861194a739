"""How a crosscoder's latents are spread over its sources: shared ones, and those of one alone.

    share_il  = n_il / sum_l n_il,  n_il = |W_dec_i^l| at the scale of training
    sources_i = exp(-sum_l share_il log share_il)        1: one source alone; L: all L alike
    alone     = share of latents with share_il > 0.9 for some l

With two sources share_i2 tells the same as the relative norm Delta of Minder et al. An L1 penalty
on norms makes latents look specific that are not (their "complete shrinkage"): compare with
`crosscoding.latent_scaling` before believing in one.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.errors import NotApplicable
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import (
    Accumulator,
    Definition,
    EvalBatch,
    EvalContext,
    StreamingMetric,
    register,
)
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import Measurement

ALONE = 0.9
"""Share of the norms above which a latent belongs to one source."""

SOURCES = Definition(
    "latent_sources",
    "exp_entropy_of_norms",
    "mean over latents of exp(entropy of the decoder norms' shares), from 1 to the sources",
    "neither",
    low=1.0,
)
SPECIFIC = Definition(
    "specific_share",
    "norm_share_above_0.9",
    "share of latents with more than 0.9 of their decoder norm in one source",
    "neither",
    low=0.0,
    high=1.0,
)
OF_SOURCE = Definition(
    "source_norm_share",
    "mean_of_latents",
    "mean over latents of the share of the decoder norm that is in the source",
    "neither",
    low=0.0,
    high=1.0,
)


@register
class CrosscoderMetricConfig(StreamingMetric):
    papers = (
        Paper(
            "Lindsey et al. 2024",
            "https://transformer-circuits.pub/2024/crosscoders/index.html",
            "Model Diffing",
        ),
        Paper("Minder et al. 2025", "https://arxiv.org/abs/2504.02922", "2"),
    )
    summary = "how a crosscoder's latents are spread over its sources"
    needs = "weights"

    name: Literal["crosscoder"] = "crosscoder"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [SOURCES, SPECIFIC, OF_SOURCE]

    def start(self, context: EvalContext) -> Accumulator:
        coder: Any = context.coder
        if not hasattr(coder, "source_norms"):
            raise NotApplicable("crosscoder", f"a {coder.cfg.kind} has one source only")
        return SpreadAccumulator(coder.source_norms().detach())


class SpreadAccumulator(Accumulator):
    """Sees no tokens: everything is known at the start."""

    def __init__(self, norms: Float[Tensor, "d_sae sources"]) -> None:
        self.shares = norm_shares(norms)

    def update(self, batch: EvalBatch) -> None:
        pass

    def rows(self) -> list[Measurement]:
        shares, n = self.shares, len(self.shares)
        if not n:
            return [
                definition.row(Estimate(None, reason="no latent has a decoder row"))
                for definition in (SOURCES, SPECIFIC, OF_SOURCE)
            ]
        sources = torch.special.entr(shares).sum(1).exp().mean().item()
        specific = (shares.amax(1) > ALONE).double().mean().item()
        rows = [
            SOURCES.row(Estimate(sources, None, n, "latents")),
            SPECIFIC.row(Estimate(specific, None, n, "latents")),
        ]
        rows += [
            OF_SOURCE.row(Estimate(share, None, n, "latents"), source=source)
            for source, share in enumerate(shares.mean(0).tolist())
        ]
        return rows


def norm_shares(norms: Float[Tensor, "d_sae sources"]) -> Float[Tensor, "with_norm sources"]:
    """Shares of each latent's norms, float64; latents without any norm are left out."""
    norms = norms.double()
    total = norms.sum(1, keepdim=True)
    has_norm = total.squeeze(1) > 0
    return norms[has_norm] / total[has_norm]
