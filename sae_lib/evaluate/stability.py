"""Stability: do coders that differ only in their seed find the same directions?

With c_ij = cos(W_dec_i, V_dec_j) between the latents i of a coder and j of a partner:

    to_partner     mean_i max_j c_ij          (MMCS; how much of this coder the partner has)
    from_partner   mean_j max_i c_ij          (how much of the partner this coder has)
    one_to_one     mean of c over the assignment of latents to latents with the largest sum
                   (Hungarian method; over the narrower coder's latents)
    matched_share  share of this coder's latents with max_j c_ij >= tau

A coder's value is the mean over the other seeds of its family. The standard error is over those
partners where there are two or more, else over latents. `random_directions` is what two sets of
random directions of these shapes give: the floor.

Sources: Sharkey et al. 2022 (MMCS); Paulo and Belrose 2025 (one-to-one, shares across seeds);
evaluation.md, section 13. Differs from them: cosines of decoder rows alone decide, both ways and
the assignment are given, and the floor stands beside them. Rows of zeros match nothing. Latents
that never fire are among them: no text is read here, so nobody knows which they are (`match` takes
a mask where somebody does).
"""

import math
from collections.abc import Iterable, Mapping
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torch.nn import functional as F

from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import Definition, GridMetric, register
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

_MEAN = "mean over the other seeds of the family"
TO = Definition(
    "stability_cosine",
    "to_partner",
    f"mean over latents of the largest cosine with a latent of the partner; {_MEAN}",
    "higher",
    -1.0,
    1.0,
)
FROM = TO._replace(
    definition="from_partner",
    text=f"mean over the partner's latents of the largest cosine with one here; {_MEAN}",
)
ONE_TO_ONE = TO._replace(
    definition="one_to_one", text=f"mean cosine of the best one-to-one assignment; {_MEAN}"
)
RANDOM = TO._replace(
    definition="random_directions",
    text="to_partner of random directions of the same shapes",
    role="floor",
)
RANDOM_ONE_TO_ONE = RANDOM._replace(
    definition="random_directions_one_to_one", text="one_to_one of random directions"
)
MATCHED = Definition(
    "stability_matched_share",
    "to_partner",
    f"share of latents whose largest cosine with the partner's reaches the threshold; {_MEAN}",
    "higher",
    0.0,
    1.0,
)
RANDOM_MATCHED = MATCHED._replace(
    definition="random_directions", text="to_partner of random directions", role="floor"
)
TO_ONE = TO._replace(definition="to_partner_of_one", text="to_partner for one partner", role="part")
FROM_ONE = FROM._replace(
    definition="from_partner_of_one", text="from_partner for one partner", role="part"
)
ONE_TO_ONE_ONE = ONE_TO_ONE._replace(
    definition="one_to_one_of_one", text="one_to_one for one partner", role="part"
)

CHUNK_ELEMENTS = 2**24
"""Cosines in memory at one time, but for the assignment, which needs all."""


class Match(NamedTuple):
    """How two sets of directions agree."""

    nearest: Float[np.ndarray, " own"]
    """For each latent here the largest cosine with one there."""

    nearest_there: Float[np.ndarray, " other"]
    assigned: Float[np.ndarray, " narrower"]
    """Cosines of the one-to-one assignment with the largest sum."""

    @property
    def reversed(self) -> "Match":
        return Match(self.nearest_there, self.nearest, self.assigned)


def match(
    own: Float[Tensor, "own_latents d"],
    other: Float[Tensor, "other_latents d"],
    own_alive: Bool[Tensor, " own_latents"] | None = None,
    other_alive: Bool[Tensor, " other_latents"] | None = None,
) -> Match:
    """Largest cosines both ways, and the best assignment; of latents that are alive, where given.

    A row of zeros has cosine 0 with everything.
    """
    own = own if own_alive is None else own[own_alive]
    other = other if other_alive is None else other[other_alive]
    if not len(own) or not len(other):
        empty = np.zeros(0)
        return Match(empty, empty, empty)
    a, b = (F.normalize(rows.detach().float().cpu(), dim=1, eps=1e-12) for rows in (own, other))
    cosine = torch.cat([part @ b.mT for part in a.split(max(1, CHUNK_ELEMENTS // len(b)))])
    cosine = cosine.clamp(-1, 1).numpy()
    rows, columns = linear_sum_assignment(cosine, maximize=True)
    found = cosine.max(1), cosine.max(0), cosine[rows, columns]
    return Match(*(values.astype(np.float64) for values in found))


def decoder_rows(coder: SparseCoder[Any]) -> Float[Tensor, "d_sae written"]:
    """What each latent writes, at all places it writes to."""
    return coder.W_dec.detach().flatten(1)


@register
class StabilityConfig(GridMetric):
    """From which cosine on latents count as the same."""

    papers = (
        Paper("Sharkey et al. 2022", "https://www.alignmentforum.org/posts/z6QQJbtpkEAX3Aojj",
              "MMCS"),
        Paper("Paulo & Belrose 2025", "https://arxiv.org/abs/2501.16615", "seeds, one-to-one"),
    )  # fmt: skip
    summary = "Do coders that differ only in their seed find the same directions?"
    survey = ("Feature Geometry Analysis",)

    name: Literal["stability"] = "stability"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    thresholds: tuple[float, ...] = Field(default=(0.7, 0.9), min_length=1)
    """Cosines from which on a latent counts as found again."""

    seed: int = Field(default=0, ge=0)
    """Seed of the random directions."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        of_one = [TO_ONE, FROM_ONE, ONE_TO_ONE_ONE]
        floors = [RANDOM, RANDOM_ONE_TO_ONE, RANDOM_MATCHED]
        return [TO, FROM, ONE_TO_ONE, MATCHED, *floors, *of_one]

    def compare(
        self, coders: Mapping[str, SparseCoder[Any]], families: Mapping[str, str]
    ) -> dict[str, list[Measurement]]:
        partners: dict[str, dict[str, Match]] = {name: {} for name in coders}
        floors: dict[tuple[int, int, int], Match] = {}
        for a, b in same_family(coders, families):
            own, other = decoder_rows(coders[a]), decoder_rows(coders[b])
            if own.shape[1] != other.shape[1]:
                continue
            partners[a][b] = match(own, other)
            partners[b][a] = partners[a][b].reversed
            for x, y in ((own, other), (other, own)):
                shape = len(x), len(y), x.shape[1]
                if shape not in floors:
                    floors[shape] = _random_match(*shape, self.seed)
        rows = {}
        for name, found in partners.items():
            if not found:
                rows[name] = self.absent("there is no other seed of this coder")
                continue
            other = next(iter(found))
            first, second = decoder_rows(coders[name]), decoder_rows(coders[other])
            floor = floors[len(first), len(second), first.shape[1]]
            rows[name] = self._rows(found, floor)
        return rows

    def _rows(self, found: Mapping[str, Match], floor: Match) -> list[Measurement]:
        matches = list(found.values())
        params = {"partners": sorted(found)}
        rows = [
            TO.row(over_partners([one.nearest for one in matches]), **params),
            FROM.row(over_partners([one.nearest_there for one in matches]), **params),
            ONE_TO_ONE.row(over_partners([one.assigned for one in matches]), **params),
        ]
        rows += [
            MATCHED.row(
                over_partners([one.nearest >= tau for one in matches]), threshold=tau, **params
            )
            for tau in self.thresholds
        ]
        rows += [
            RANDOM.row(over_partners([floor.nearest]), seed=self.seed, **params),
            RANDOM_ONE_TO_ONE.row(over_partners([floor.assigned]), seed=self.seed, **params),
        ]
        rows += [
            RANDOM_MATCHED.row(
                over_partners([floor.nearest >= tau]), threshold=tau, seed=self.seed, **params
            )
            for tau in self.thresholds
        ]
        for name, one in sorted(found.items()):
            for row, values in (
                (TO_ONE, one.nearest),
                (FROM_ONE, one.nearest_there),
                (ONE_TO_ONE_ONE, one.assigned),
            ):
                rows.append(row.row(over_partners([values]), partner=name))
        return rows


def same_family(names: Iterable[str], families: Mapping[str, str]) -> list[tuple[str, str]]:
    """All pairs of members of one family."""
    return [(a, b) for a, b in combinations(names, 2) if families[a] == families[b]]


def over_partners(values: list[Any]) -> Estimate:
    """Mean of the partners' means; its error over partners, or over latents where there is one."""
    if not all(len(one) for one in values):
        return Estimate(None, n=0, unit="latents", reason="there is no latent to compare")
    means = np.array([np.mean(one, dtype=np.float64) for one in values])
    spread, unit = (values[0], "latents") if len(values) == 1 else (means, "partners")
    n = len(spread)
    stderr = float(np.std(spread, ddof=1) / math.sqrt(n)) if n > 1 else None
    return Estimate(float(means.mean()), stderr, n, unit)


def _random_match(num: int, num_other: int, width: int, seed: int) -> Match:
    generator = torch.Generator().manual_seed(seed)
    own, other = (torch.randn(rows, width, generator=generator) for rows in (num, num_other))
    return match(own, other)
