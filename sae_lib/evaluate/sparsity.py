"""How many latents are on, how often each one is, and how unevenly.

    l0  = mean over tokens of the number of latents above 0
    l1  = mean over tokens of the sum of all latents
    p_i = share of tokens on which latent i is above 0 (its density);  sum_i p_i = l0

A latent is on when it is above 0, exactly; none may be below. What counts as dead depends on how
long one listens: a density of p is told from 0 with 95 % confidence only after 3 / p tokens (rule
of three), so each share below a threshold says whether the tokens were enough (``resolvable``).
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_lib.errors import NotApplicable
from sae_lib.evaluate._moments import ContextMoments, Estimate
from sae_lib.evaluate.base import (
    Accumulator,
    Definition,
    EvalBatch,
    EvalContext,
    StreamingMetric,
    register,
)
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import LatentRow, Measurement

LOG_OFFSET = 1e-10
"""Added to a density before its logarithm, so that a silent latent is at -10 (SAELens)."""

LOWEST_LOG = -10.0

RULE_OF_THREE = 3.0

L0 = Definition("l0", "mean_of_tokens", "mean over tokens of the number of z > 0", "neither", 0.0)
L1 = Definition("l1", "mean_of_tokens", "mean over tokens of sum z", "neither", 0.0)
ON_MEAN = Definition(
    "activation_when_on", "mean_of_firings", "sum z / number of z > 0", "neither", 0.0
)
ALIVE = Definition(
    "alive_share", "fired_once", "share of latents with density above 0", "higher", 0.0, 1.0
)
DEAD = Definition("dead_share", "never_fired", "share of latents with density 0", "lower", 0.0, 1.0)
DEAD_BELOW = Definition(
    "dead_share", "density_below", "share of latents with density < threshold", "lower", 0.0, 1.0
)
DENSE = Definition(
    "dense_share", "density_above", "share of latents with density > threshold", "lower", 0.0, 1.0
)
MASS = Definition(
    "density_mass",
    "density_above",
    "sum of densities above the threshold over the sum of all; 0 where nothing fires",
    "lower",
    0.0,
    1.0,
)
CONSISTENT = Definition(
    "consistent_activation",
    "mean_of_alive_latents",
    "firings per context in which the latent fires at all, mean over alive latents",
    "neither",
    1.0,
)
HISTOGRAM = Definition(
    "log10_density_histogram",
    "share_of_latents",
    "share of latents with low <= log10(p + 1e-10) < high; bins without one are left out",
    "neither",
    0.0,
    1.0,
)


@register
class SparsityConfig(StreamingMetric):
    papers = (
        Paper("Karvonen et al. 2025", "https://arxiv.org/abs/2503.09532", "core evaluation"),
        Paper("He et al. 2024", "https://arxiv.org/abs/2410.20526", "latent firing frequency"),
    )
    survey = ("L0 Sparsity", "Latent Firing Frequency", "Feature Density Statistics")
    summary = "latents on per token, densities, dead and dense latents"

    name: Literal["sparsity"] = "sparsity"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    dead_below: tuple[float, ...] = (1e-5, 1e-6, 1e-7)
    """Densities, shares of tokens, below which a latent is counted as dead."""

    dense_above: tuple[float, ...] = (0.01, 0.1)
    """Densities, shares of tokens, above which a latent is counted as dense."""

    histogram_bins: int = Field(default=100, gt=0)
    """Bins of the histogram of log10 density between -10 and 0."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [L0, L1, ON_MEAN, ALIVE, DEAD, DEAD_BELOW, DENSE, MASS, CONSISTENT, HISTOGRAM]

    def start(self, context: EvalContext) -> Accumulator:
        return SparsityAccumulator(self, context)


class SparsityAccumulator(Accumulator):
    def __init__(self, cfg: SparsityConfig, context: EvalContext) -> None:
        self.cfg = cfg
        self.moments = ContextMoments(("on", "sum"), unit=context.unit)
        shape, device = context.coder.d_sae, context.mean_activation.device
        self.fires = torch.zeros(shape, dtype=torch.int64, device=device)
        self.contexts = torch.zeros_like(self.fires)
        self.sum = torch.zeros(shape, dtype=torch.float64, device=device)
        self.max = torch.zeros(shape, dtype=torch.float64, device=device)

    def update(self, batch: EvalBatch) -> None:
        z = batch.z
        if not len(z):
            return
        if z.amin() < 0:
            raise NotApplicable("sparsity", "some latents are negative; all must be >= 0")
        # float32 sums within a context, float64 beyond: counts stay exact, and index_add of floats
        # is ten times as fast as reductions of booleans or into float64
        on = torch.gt(z, 0, out=torch.empty_like(z))
        by_context = z.new_zeros(batch.num_contexts, z.shape[-1])
        firings = by_context.index_add(0, batch.context, on)
        magnitudes = by_context.index_add(0, batch.context, z)
        self.moments.add_sums(
            torch.bincount(batch.context, minlength=batch.num_contexts).double(),
            firings.sum(-1, dtype=torch.float64),
            magnitudes.sum(-1, dtype=torch.float64),
        )
        self.fires += firings.sum(0, dtype=torch.float64).long()
        self.contexts += (firings > 0).sum(0)
        self.sum += magnitudes.sum(0, dtype=torch.float64)
        self.max = torch.maximum(self.max, z.amax(0).double())

    def density(self) -> Float[Tensor, " d_sae"]:
        """Share of tokens on which each latent was on, float64."""
        return self.fires.double() / max(self.moments.num_tokens, 1)

    def rows(self) -> list[Measurement]:
        tokens = self.moments.num_tokens
        if tokens == 0:
            return self.cfg.absent("no token was kept")
        p = self.density()
        is_alive = p > 0
        return [
            L0.row(self.moments.ratio("on")),
            L1.row(self.moments.ratio("sum")),
            ON_MEAN.row(self.moments.ratio("sum", "on")),
            ALIVE.row(_share(is_alive), num_tokens=tokens),
            DEAD.row(_share(~is_alive), num_tokens=tokens),
            *(
                DEAD_BELOW.row(
                    _share(p < threshold),
                    threshold=threshold,
                    num_tokens=tokens,
                    resolvable=tokens >= RULE_OF_THREE / threshold,
                )
                for threshold in self.cfg.dead_below
            ),
            *(
                DENSE.row(_share(p > threshold), threshold=threshold)
                for threshold in self.cfg.dense_above
            ),
            *(
                MASS.row(_mass(p, threshold), threshold=threshold)
                for threshold in self.cfg.dense_above
            ),
            CONSISTENT.row(self._consistent()),
            *self._histogram(p),
        ]

    def per_latent(self) -> list[LatentRow]:
        p = self.density()
        means = (self.sum / self.fires.clamp_min(1)).tolist()
        columns = zip(p.tolist(), self.fires.tolist(), means, self.max.tolist(), strict=True)
        return [
            LatentRow(latent, density, mean if fires else None, largest, None)
            for latent, (density, fires, mean, largest) in enumerate(columns)
        ]

    def _consistent(self) -> Estimate:
        alive = self.contexts > 0
        num_alive = int(alive.sum())
        if num_alive == 0:
            return Estimate(None, n=0, unit="latents", reason="no latent fired")
        per_latent = self.fires[alive].double() / self.contexts[alive]
        return Estimate(per_latent.mean().item(), None, num_alive, "latents")

    def _histogram(self, p: Float[Tensor, " d_sae"]) -> list[Measurement]:
        bins = self.cfg.histogram_bins
        width = -LOWEST_LOG / bins
        place = ((torch.log10(p + LOG_OFFSET) - LOWEST_LOG) / width).floor().long()
        # a silent latent is at -10 up to rounding, one that always fires a hair above 0
        counts = torch.bincount(place.clamp(0, bins - 1), minlength=bins).tolist()
        return [
            HISTOGRAM.row(
                Estimate(count / len(p), None, len(p), "latents"),
                low=round(LOWEST_LOG + i * width, 10),
                high=round(LOWEST_LOG + (i + 1) * width, 10),
            )
            for i, count in enumerate(counts)
            if count
        ]


def _share(chosen: Tensor) -> Estimate:
    return Estimate(chosen.double().mean().item(), None, len(chosen), "latents")


def _mass(p: Float[Tensor, " d_sae"], threshold: float) -> Estimate:
    total = p.sum().item()
    above = p[p > threshold].sum().item()
    return Estimate(above / total if total else 0.0, None, len(p), "latents")
