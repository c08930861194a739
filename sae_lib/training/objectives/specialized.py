"""Specialised SAEs: fine-tuned on a rare domain, with a loss in which hard tokens count more.

    L_t = (1/t) log( (1/N) sum_n exp(t ell_n) ),    dL_t / d ell_n = softmax_n(t ell_n)

with ell_n the loss of token n, error and penalties. t -> 0 gives the mean, t -> infinity the
maximum (tilted empirical risk minimisation, TERM). Terms that are not means over tokens, such as
an auxiliary loss of dead latents, are left as they are. The loss is written as the coder's own,
term by term, plus one term ``tilt`` = L_t - mean(ell) >= 0, so that all terms stay watched and
none counts twice.

t has the unit of 1/loss, so a fixed ``tilt`` means something else for every site and variant;
``tilt_by_spread`` gives t std(ell) instead, with std that of each batch, held constant. At a large
tilt one token of a batch has all of the gradient: use a small ``clip_norm`` and larger batches.

The data are the contexts that are nearest to texts of the domain (`sae_lib.training.retrieval`), or
all.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder, Step, Terms
from sae_lib.training.objectives.base import Batch, Objective, ObjectiveConfig, StepInfo, register

SMALL = 1e-3
"""Range of t ell below which two terms of the series are more exact than the logarithm."""

MOST_TILT = 1e12
"""Largest tilt; the maximum is reached long before."""


@register
class SpecializedConfig(ObjectiveConfig):
    """Description of a specialised SAE: its loss and its data."""

    papers = (
        Paper("Muhamed et al. 2024", "https://arxiv.org/abs/2411.00743", "3"),
        Paper("Li et al. 2021 (TERM)", "https://arxiv.org/abs/2007.01162", "2"),
        Paper("Pruthi et al. 2020 (TracIn)", "https://arxiv.org/abs/2002.08484", "3"),
    )
    summary = "Fine-tune on contexts of a rare domain; a tilted loss makes hard tokens count more."

    kind: Literal["specialized"] = "specialized"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    tilt: float | None = Field(default=None, gt=0, le=MOST_TILT)
    """t, per unit of loss; without it and ``tilt_by_spread`` the loss is the mean."""

    tilt_by_spread: float | None = Field(default=None, gt=0, le=MOST_TILT)
    """t times the standard deviation of the tokens' losses; 0.5, 1 and 5 are mild to strong."""

    retrieve: Literal["none", "bm25", "dense"] = "none"
    """How contexts of the domain are found: by words, by hidden states, or not: all are used."""

    queries: str | None = None
    """File of texts of the domain (.txt, .jsonl, .csv, .parquet), relative to the experiment."""

    column: str = "text"
    """Column of ``queries`` that holds the text, where it is a table."""

    concept: str | None = None
    """Instead of ``queries`` a rare subdomain of the bundled world, such as ``archery``."""

    seeds: int = Field(default=64, gt=0)
    """Most texts of the domain that are used."""

    contexts: int | None = Field(default=None, gt=0)
    """Contexts to keep."""

    k1: float = Field(default=1.5, ge=0)
    """BM25: how late a repeated word stops to count more."""

    b: float = Field(default=0.75, ge=0, le=1)
    """BM25: how much long contexts are held back."""

    encoder: str | None = None
    """Model, by name or directory, that embeds texts for dense retrieval; by default the model
    under study."""

    rerank: Literal["none", "tracin"] = "none"
    """Whether the candidates found are ranked anew by gradients of the general SAE."""

    candidates_per_context: int = Field(default=4, ge=1)
    """Candidates that are reranked, per context that is kept."""

    start: Literal["general", "fresh"] = "general"
    """First weights: those of the same variant trained plainly on all contexts, or new ones."""

    @model_validator(mode="after")
    def _fits(self) -> "SpecializedConfig":
        if self.tilt is not None and self.tilt_by_spread is not None:
            raise ValueError(
                "give at most one of tilt and tilt_by_spread; got "
                f"tilt={self.tilt}, tilt_by_spread={self.tilt_by_spread}"
            )
        if self.retrieve == "none":
            given = [
                key
                for key in ("queries", "concept", "contexts", "encoder")
                if getattr(self, key) is not None
            ]
            given += ["rerank"] if self.rerank != "none" else []
            if given:
                raise ValueError(
                    f"{', '.join(given)} is for retrieve: bm25 or dense; got retrieve: none"
                )
            return self
        if (self.queries is None) == (self.concept is None):
            raise ValueError(
                "give exactly one of queries (a file of texts) and concept (a rare subdomain of "
                f"the world); got queries={self.queries}, concept={self.concept}"
            )
        if self.contexts is None:
            raise ValueError(f"retrieve: {self.retrieve} needs contexts, how many to keep")
        if self.encoder is not None and self.retrieve != "dense":
            raise ValueError(f"encoder is for retrieve: dense; got retrieve: {self.retrieve}")
        if self.rerank == "tracin" and self.start != "general":
            raise ValueError(
                "rerank: tracin takes gradients of the general SAE, so start must be general; "
                f"got start: {self.start}"
            )
        return self

    @model_validator(mode="after")
    def _concept_exists(self) -> "SpecializedConfig":
        if self.concept is not None:
            from sae_lib.synthetic.world.kinds.rare import SUBDOMAINS

            if self.concept not in SUBDOMAINS:
                raise ValueError(
                    f"the world has no rare subdomain {self.concept!r}; it has "
                    f"{', '.join(SUBDOMAINS)}"
                )
        return self

    def files(self) -> list[str]:
        return [] if self.queries is None else [self.queries]

    def build(self, *, model: Any = None) -> Objective:
        return Specialized(self)


class Specialized(Objective):
    """The coder's loss, tilted towards tokens of high loss."""

    cfg: SpecializedConfig

    def terms(self, coder: SparseCoder[Any], step: Step, batch: Batch, info: StepInfo) -> Terms:
        terms = coder.terms(step)
        if self.cfg.tilt is None and self.cfg.tilt_by_spread is None:
            return terms
        losses = per_token_loss(terms)
        if self.cfg.tilt is not None:
            surplus = tilt_surplus(losses, losses.new_tensor(self.cfg.tilt))
        else:
            assert self.cfg.tilt_by_spread is not None
            spread = losses.detach().std(correction=0)
            # equal losses have no spread, and their surplus is 0 whatever the tilt
            surplus = tilt_surplus(losses, self.cfg.tilt_by_spread / spread.clamp(min=1e-12))
        return terms._replace(extra={**terms.extra, "tilt": surplus})


def per_token_loss(terms: Terms) -> Float[Tensor, " batch"]:
    """ell: the loss of each token, squared error and those penalties that are means over tokens."""
    losses = terms.reconstruction_weight * terms.error.square().sum(-1)
    for values in terms.per_token.values():
        losses = losses + values
    return losses


def tilt_surplus(losses: Float[Tensor, " batch"], tilt: Float[Tensor, ""]) -> Float[Tensor, ""]:
    """L_t - mean(ell), at least 0. Its gradient by ell is softmax(t ell) - 1/N."""
    centred = losses - losses.mean()
    tilted = tilt * centred
    exact = (torch.logsumexp(tilted, 0) - math.log(len(losses))) / tilt
    series = tilt / 2 * centred.square().mean()
    is_small = tilted.max() - tilted.min() < SMALL
    return torch.where(is_small, series, exact)


def tilted_mean(losses: Float[Tensor, " batch"], tilt: float) -> Float[Tensor, ""]:
    """L_t. Between the mean (t -> 0) and the maximum (t -> infinity), and rising with t."""
    return losses.mean() + tilt_surplus(losses, losses.new_tensor(tilt))
