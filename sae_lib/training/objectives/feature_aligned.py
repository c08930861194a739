"""Mutual feature regularisation: several coders are trained at once and drawn to common features.

    loss = sum_a loss_a + alpha w(t) mean over pairs a < b of (1 - MMCS(W_dec^a, W_dec^b))
    hungarian   MMCS = (1/F) sum_i cos(A_i, B_p(i)),  p the best one-to-one assignment
    max         MMCS = (1/F) sum_i max_j cos(A_i, B_j)
    max_both    the mean of MMCS(A, B) and MMCS(B, A)
    w(t) = (1 + cos(pi (T - t) / T)) / 2 for t < T, then 1

Which rows belong together is a constant for the gradient. A coder starts anew where few latents
take all activations, by mean_i (|rate_i - r| / r)^3, the rates those of a batch.

Differs from the authors' code: any coder that reconstructs will do, where theirs is a tied TopK
without ReLU and bias b_dec, with orthogonal first weights; errors are summed over d_in at unit
mean square norm, theirs averaged over d_in of raw data; the coders have Adam's moments of their
own but share one clipping norm. Theirs fixes r = 0.0625, which is k/F of one task, and starts anew
above 2.5. Here r = k/F, or the measured L0/F; but then one latent that is on for every token, as
real data have, exceeds 2.5 by far. So the limit is half the score of a coder whose k latents are
always on, if that is more than 2.5.
"""

import math
from typing import Any, Literal

import torch
from jaxtyping import Float, Int64
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sae_lib.errors import BadInput
from sae_lib.papers import Paper
from sae_lib.saes._ops import unit_rows
from sae_lib.saes.base import SaeConfig, SparseCoder, Step, Terms
from sae_lib.training.objectives.base import (
    Batch,
    Objective,
    ObjectiveConfig,
    StepInfo,
    register,
)

MAX_ASSIGNED = 4096
"""Latents above which an assignment, whose cost grows with their cube, takes too long."""

CHUNK_ENTRIES = 1 << 24
"""Cosines in memory at one time."""

SEED_STRIDE = 10_007
"""Between the seeds of coders trained along, so that they are not those of a grid of seeds."""

LEAST_LIMIT = 2.5
"""Score of unequal use above which the authors' code starts a coder anew."""


@register
class FeatureAlignedConfig(ObjectiveConfig):
    """Description of mutual feature regularisation."""

    papers = (Paper("Marks et al. 2024", "https://arxiv.org/abs/2411.01220", "3"),)
    summary = "Several coders at once, drawn towards features that they have in common."

    kind: Literal["feature_aligned"] = "feature_aligned"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    num_coders: int = Field(default=2, ge=2)
    """Coders trained together; the first one is kept, the others differ in their seeds."""

    alpha: float = Field(default=0.005, ge=0)
    """Loss per unit of mean distance 1 - MMCS of a pair, in units of the squared error."""

    ramp_steps: int = Field(default=100, ge=0)
    """Steps over which the penalty rises."""

    matching: Literal["hungarian", "max", "max_both"] = "hungarian"
    """Which rows belong together: a best one-to-one assignment (the authors' code), each row's
    nearest (the paper), or the nearest of both sides."""

    match_every: int = Field(default=1, gt=0)
    """Steps for which a matching stays in use; finding one costs d_sae^3 or d_sae^2 d_in."""

    restarts: bool = True
    """Whether a coder starts anew in which few latents take all activations."""

    restart_rate: float | None = Field(default=None, gt=0, lt=1)
    """Share of tokens on which a latent should be on; derived: k/d_sae, or the measured L0/d_sae.
    The authors' code: 0.0625."""

    restart_above: float | None = Field(default=None, gt=0)
    """Score above which a coder starts anew; derived: half that of a coder whose latents are
    always or never on, at least 2.5. The authors' code: 2.5."""

    def check(self, sae_cfg: SaeConfig) -> None:
        super().check(sae_cfg)
        if self.matching == "hungarian" and sae_cfg.d_sae > MAX_ASSIGNED:
            raise BadInput(
                f"a one-to-one assignment of {sae_cfg.d_sae} latents takes too long; above "
                f"{MAX_ASSIGNED} say matching: max_both.",
                key="objective.matching",
                value=self.matching,
            )

    def build(self, *, model: Any = None) -> Objective:
        return FeatureAligned(self)


class FeatureAligned(Objective):
    """Coders of one kind and several seeds."""

    cfg: FeatureAlignedConfig

    def join(self, coder: SparseCoder[Any]) -> None:
        device = coder.W_dec.device
        seeds = [coder.cfg.seed + SEED_STRIDE * i for i in range(1, self.cfg.num_coders)]
        self.company = tuple(coder.cfg.but(seed=seed).build().to(device) for seed in seeds)
        sides = 2 if self.cfg.matching == "max_both" else 1
        shape = len(self.pairs), sides, coder.d_sae
        self.memory = {
            "matches": torch.zeros(shape, dtype=torch.int64, device=device),
            "is_stale": torch.ones((), dtype=torch.bool, device=device),
        }

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """The coders two by two, by number."""
        num = self.cfg.num_coders
        return [(a, b) for a in range(num) for b in range(a + 1, num)]

    def terms(self, coder: SparseCoder[Any], step: Step, batch: Batch, info: StepInfo) -> Terms:
        own = coder.terms(step)
        self.company_terms = [
            one.terms(step._replace(dead=dead))
            for one, dead in zip(self.company, info.dead_in_company, strict=True)
        ]
        rows = [unit_rows(one.W_dec) for one in (coder, *self.company)]
        if info.number % self.cfg.match_every == 0 or bool(self.memory["is_stale"]):
            self.match_(rows)
        distances = [
            1 - torch.stack([cosines_of(*sides, match).mean() for sides, match in ways]).mean()
            for (a, b), matches in zip(self.pairs, self.memory["matches"], strict=True)
            for ways in [list(zip(((rows[a], rows[b]), (rows[b], rows[a])), matches, strict=False))]
        ]
        weight = self.cfg.alpha * ramp(info.number, self.cfg.ramp_steps)
        extra = {
            "company": torch.stack([terms.loss for terms in self.company_terms]).sum(),
            "alignment": weight * torch.stack(distances).mean(),
        }
        return own._replace(extra={**own.extra, **extra})

    @torch.no_grad()
    def match_(self, rows: list[Float[Tensor, "d_sae d_out"]]) -> None:
        """Find which rows belong together."""
        for (a, b), matches in zip(self.pairs, self.memory["matches"], strict=True):
            if self.cfg.matching == "hungarian":
                matches[0] = assigned(rows[a], rows[b])
                continue
            matches[0] = nearest_rows(rows[a], rows[b])
            if self.cfg.matching == "max_both":
                matches[1] = nearest_rows(rows[b], rows[a])
        self.memory["is_stale"].fill_(False)

    def starts_anew(self, coder: SparseCoder[Any], terms: Terms, number: int) -> bool:
        if not self.cfg.restarts:
            return False
        rates = firing_rates(terms)
        num_on = getattr(coder.cfg, "k", None) or float(rates.sum())
        rate = self.cfg.restart_rate or num_on / coder.d_sae
        if not 0 < rate < 1:  # nothing is on, or everything: no latents take from others
            return False
        limit = self.cfg.restart_above
        if limit is None:
            limit = max(LEAST_LIMIT, collapsed_score(num_on / coder.d_sae, rate) / 2)
        is_collapsed = float(unequal_use(rates, rate)) > limit
        if is_collapsed:
            self.memory["is_stale"].fill_(True)
        return is_collapsed


def ramp(number: int, steps: int) -> float:
    """Factor on the penalty in step ``number``: rises from 0 along half a cosine, then 1."""
    if number >= steps:
        return 1.0
    return (1 + math.cos(math.pi * (steps - number) / steps)) / 2


def cosines_of(
    A: Float[Tensor, "rows width"], B: Float[Tensor, "others width"], match: Int64[Tensor, " rows"]
) -> Float[Tensor, " rows"]:
    """Of each row of ``A`` the cosine with the row of ``B`` that belongs to it; both unit rows."""
    return torch.linalg.vecdot(A, B.index_select(0, match))


@torch.no_grad()
def assigned(
    A: Float[Tensor, "rows width"], B: Float[Tensor, "rows width"]
) -> Int64[Tensor, " rows"]:
    """The one-to-one assignment of rows of ``B`` to rows of ``A`` with the largest cosines."""
    cosines = (A @ B.mT).double().cpu().numpy()
    _, columns = linear_sum_assignment(cosines, maximize=True)
    return torch.as_tensor(columns, dtype=torch.int64, device=A.device)


@torch.no_grad()
def nearest_rows(
    A: Float[Tensor, "rows width"], B: Float[Tensor, "others width"]
) -> Int64[Tensor, " rows"]:
    """For each row of ``A`` the row of ``B`` with the largest cosine; both unit rows."""
    size = max(1, CHUNK_ENTRIES // len(B))
    return torch.cat([(part @ B.mT).argmax(1) for part in A.split(size)])


@torch.no_grad()
def firing_rates(terms: Terms) -> Float[Tensor, " d_sae"]:
    """Share of the batch's tokens on which each latent is on."""
    code, num_tokens = terms.code, len(terms.error)
    if code.dense is not None:
        return (code.dense > 0).float().mean(0)
    values, pattern = code.entries
    counts = torch.bincount(pattern.latents[values > 0], minlength=pattern.shape[1])
    return counts.float() / num_tokens


def unequal_use(rates: Float[Tensor, " d_sae"], rate: float) -> Float[Tensor, ""]:
    """mean_i (|rate_i - rate| / rate)^3: 0 where all latents are on equally often."""
    return ((rates - rate).abs() / rate).pow(3).mean()


def collapsed_score(share: float, rate: float) -> float:
    """`unequal_use` where a ``share`` of the latents is always on and the others never are."""
    return share * ((1 - rate) / rate) ** 3 + (1 - share)
