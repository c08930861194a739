"""End-to-end: the reconstruction is judged by what the model makes of it.

    a_hat = reconstruction of the site, put in its place at every kept position
    loss  = kl KL(p(clean) || p(a_hat))  +  downstream D  +  local |a - a_hat|^2  +  the coder's
            own penalties
    KL    = mean over positions of sum_v p_v (log p_v - log q_v), nats
    D     = mean over the later residual streams k of
            sum_n |a_k - a_hat_k|^2 / sum_n |a_k - mean a_k|^2

``local: 0`` (the default) is "e2e" of the paper, ``downstream > 0`` its "e2e + downstream".

Differs from the paper: it writes KL(y_hat, y), its code computes KL(clean || patched), as here.
Any architecture that reconstructs its input may be trained so, not only ReLU with L1. Downstream
errors are shares of the variance at each stream instead of mean squares, so that one weight means
the same at all of them and in all models; the paper's `beta` is spread evenly too. Auxiliary
terms of a coder (AuxK) still look at the local error: they only move dead latents.
"""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional

from sae_lib.errors import BadInput
from sae_lib.papers import Paper
from sae_lib.saes.base import SaeConfig, SparseCoder, Step, Terms
from sae_lib.training.objectives._patched import frozen, run_on, whole_contexts
from sae_lib.training.objectives.base import (
    Batch,
    Objective,
    ObjectiveConfig,
    StepInfo,
    register,
)

STREAM = "resid_post"

REFUSED = {
    "matryoshka": "each of its prefixes reconstructs the site itself, which this would undo",
}


@register
class EndToEndConfig(ObjectiveConfig):
    """Description of the end-to-end objective."""

    papers = (Paper("Braun et al. 2024", "https://arxiv.org/abs/2405.12241", "2"),)
    summary = "Match what the model predicts from the reconstruction, not the activation itself."
    needs_model = True
    reads = "contexts"

    kind: Literal["end_to_end"] = "end_to_end"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    kl: float = Field(default=1.0, ge=0)
    """Loss per nat of divergence of the predictions."""

    downstream: float = Field(default=0.0, ge=0)
    """Loss per unexplained share of the variance of the later residual streams; 0 leaves it out."""

    local: float = Field(default=0.0, ge=0)
    """Loss per unit of the local squared error; 1 adds the ordinary objective."""

    @model_validator(mode="after")
    def _trains_something(self) -> "EndToEndConfig":
        if not (self.kl or self.downstream or self.local):
            raise ValueError("kl, downstream and local are all 0, so nothing would be trained")
        return self

    def check(self, sae_cfg: SaeConfig) -> None:
        super().check(sae_cfg)
        if sae_cfg.kind in REFUSED:
            raise BadInput(
                f"end_to_end does not go with {sae_cfg.kind}: {REFUSED[sae_cfg.kind]}.",
                key="objective",
                value=self.kind,
            )

    def also_reads(self, site: str, sites: Sequence[str]) -> list[str]:
        return later_streams(sites, site) if self.downstream else []

    def build(self, *, model: Any = None) -> Objective:
        return EndToEnd(self, model)


class EndToEnd(Objective):
    """Runs the model on from each reconstruction."""

    cfg: EndToEndConfig

    def __init__(self, cfg: EndToEndConfig, model: Any) -> None:
        super().__init__(cfg)
        self.model = frozen(model)

    def terms(self, coder: SparseCoder[Any], step: Step, batch: Batch, info: StepInfo) -> Terms:
        cfg, whole, terms = self.cfg, whole_contexts(batch), coder.terms(step)
        rows = (step.target - terms.error) / info.scale
        later = later_streams(self.model.sites(), info.site) if cfg.downstream else []
        behind, logits = run_on(self.model, whole, info.site, rows, later)
        extra = dict(terms.extra)
        extra["kl"] = cfg.kl * divergence(whole.logits[whole.keep], logits)
        if later:
            shares = [unexplained(whole.x[site], behind[site]) for site in later]
            extra["downstream"] = cfg.downstream * torch.stack(shares).mean()
        return terms._replace(extra=extra, reconstruction_weight=cfg.local)


def later_streams(sites: Sequence[str], site: str) -> list[str]:
    """Residual streams after ``site``, in order: those that its replacement can change.

    Empty behind the last block, and for sites that are not in the list of the model's.
    """
    if site not in sites:
        return []
    return [one for one in sites[sites.index(site) + 1 :] if one.startswith(f"{STREAM}.")]


def divergence(clean: Tensor, patched: Tensor) -> Tensor:
    """KL(clean || patched) of logits (rows, vocab), nats, mean over rows."""
    return functional.kl_div(
        patched.log_softmax(-1), clean.log_softmax(-1), reduction="batchmean", log_target=True
    )


def unexplained(clean: Tensor, patched: Tensor) -> Tensor:
    """Squared error over the spread of ``clean``, both (rows, width) and summed over everything."""
    spread = (clean - clean.mean(0)).square().sum()
    return (clean - patched).square().sum() / spread.clamp_min(1e-30)
