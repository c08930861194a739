"""Which layers of a model are alike: angular distances of their activations, and their groups.

    D(p, q) = mean over tokens of (1/pi) arccos(cos(a_p, a_q)),  in [0, 1]
    groups  = agglomerative clustering with complete linkage on D, cut at every number of groups G
    AMAD(G) = mean over groups of the largest D(p, q) inside the group

AMAD falls with G while cost rises with it: the curve to choose G by. After Ghilardi et al. 2024
(https://arxiv.org/abs/2410.21508). Their code subtracts a running mean of each layer before the
cosine; here it is the site's mean over all stored rows, which does not depend on the order of the
tokens. It also hands D to a clustering that takes its rows for vectors; here D is clustered.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float64
from scipy.cluster.hierarchy import linkage
from scipy.spatial.distance import squareform
from torch import Tensor
from torch.nn import functional

from sae_lib.activations.stats import SiteStats
from sae_lib.activations.store import Rows
from sae_lib.errors import BadInput

CHUNK_NUMBERS = 1 << 23
"""Float64 numbers of all sites together that are in memory at a time: 64 MB, and twice that while
they are compared."""

SAMPLE_TAG = 4
"""Keeps the draw of contexts apart from those of the order of the data."""


@runtime_checkable
class HoldsContexts(Protocol):
    """What is asked of a store; `ActivationStore` does it."""

    num_contexts: int

    @property
    def kept_per_context(self) -> np.ndarray: ...

    def width(self, site: str) -> int: ...

    def stats(self, site: str) -> SiteStats: ...

    def contexts(self, site: str, contexts: np.ndarray) -> Rows: ...


class Distances(NamedTuple):
    """How far apart sites are."""

    sites: tuple[str, ...]
    """In the order given, which should be that of the model."""

    matrix: Float64[np.ndarray, "sites sites"]
    """D: symmetric, 0 on the diagonal, 0.5 between orthogonal sites, 1 between opposite ones."""

    num_rows: int
    """Tokens that were compared."""

    centred: bool
    """Whether each site's mean was subtracted."""


class Grouping(NamedTuple):
    """Sites in some number of groups."""

    groups: tuple[tuple[str, ...], ...]
    """In the order of their first sites."""

    amad: float
    """Mean over the groups of the largest distance inside; 0 for groups of one."""


class LayerGroups(NamedTuple):
    """The clustering of sites, at every number of groups."""

    distances: Distances

    linkage: Float64[np.ndarray, "merges 4"]
    """Merges as scipy writes them: two clusters, their distance, sites in both."""

    groupings: tuple[Grouping, ...]
    """With 1, 2, ... groups, to as many as there are sites."""

    def of(self, num_groups: int) -> Grouping:
        """Sites in ``num_groups`` groups. Raises `BadInput` where there are not that many sites."""
        if not 1 <= num_groups <= len(self.groupings):
            raise BadInput(
                f"{len(self.groupings)} sites make between 1 and {len(self.groupings)} groups.",
                key="groups",
                value=num_groups,
            )
        return self.groupings[num_groups - 1]


def angular_distances(
    store: HoldsContexts,
    sites: Sequence[str],
    *,
    tokens: int = 1_000_000,
    centre: bool = True,
    seed: int = 0,
) -> Distances:
    """Distances between all pairs of ``sites`` over about ``tokens`` rows of ``store``.

    Whole contexts are drawn at random, until they hold ``tokens`` rows or there are no more (the
    source has 10 M; a mean of angles needs far fewer). Sums are in float64. A zero vector counts as
    orthogonal to everything.

    Raises:
        BadInput: there is no site or a site stands twice, sites differ in width, or ``tokens`` is
            not positive.
        UnknownName: a site was not harvested.
    """
    widths = {site: store.width(site) for site in sites}
    if not sites or len(widths) < len(sites) or len(set(widths.values())) > 1 or tokens < 1:
        told = ", ".join(f"{site} {width}" for site, width in widths.items())
        raise BadInput(
            "distances need sites, each once and all of one width, and at least one token; there "
            f"are {tokens} tokens and the sites {told or 'none'}.",
            key="sites",
        )
    means = {site: store.stats(site).mean for site in sites} if centre else {}
    chosen = _sample(store.kept_per_context, tokens, seed)
    longest = max(1, int(store.kept_per_context.max()))
    per_context = longest * len(sites) * widths[sites[0]]
    step = max(1, CHUNK_NUMBERS // per_context)
    total = torch.zeros(len(sites), len(sites), dtype=torch.float64)
    num_rows = 0
    for start in range(0, len(chosen), step):
        vectors = []
        for site in sites:
            x = store.contexts(site, chosen[start : start + step]).x.double()
            vectors.append(functional.normalize(x - means[site] if centre else x, dim=-1))
        total += summed_angles(vectors)
        num_rows += len(vectors[0])
    matrix = (total / max(num_rows, 1)).numpy()
    return Distances(tuple(sites), matrix, num_rows, centre)


def summed_angles(vectors: Sequence[Tensor]) -> Float64[Tensor, "sites sites"]:
    """Sums over rows of arccos(cos) / pi between sites, of rows of norm 1, (rows, d) each."""
    count = len(vectors)
    total = torch.zeros(count, count, dtype=torch.float64)
    for p in range(count):
        for q in range(p + 1, count):
            cosine = (vectors[p] * vectors[q]).sum(-1).clamp_(-1, 1)
            total[p, q] = total[q, p] = cosine.acos_().sum() / math.pi
    return total


def layer_groups(distances: Distances) -> LayerGroups:
    """Complete linkage on the distances, and the groups at every number of groups.

    Raises `BadInput` where the matrix is not one of distances.
    """
    matrix, sites = distances.matrix, distances.sites
    is_square = matrix.shape == (len(sites), len(sites)) and len(sites) > 0
    if (
        not is_square
        or not np.isfinite(matrix).all()
        or not np.array_equal(matrix, matrix.T)
        or np.diag(matrix).any()
    ):
        raise BadInput(
            f"distances of {len(sites)} sites are a finite symmetric matrix with a zero diagonal; "
            f"this one has shape {matrix.shape}.",
            key="distances",
        )
    merges = np.zeros((0, 4))
    if len(sites) > 1:
        merges = linkage(squareform(matrix, checks=False), method="complete")
    clusters = {i: [i] for i in range(len(sites))}
    groupings = [_grouping(clusters, distances)]
    for merge, (one, other, *_) in enumerate(merges):
        clusters[len(sites) + merge] = sorted(clusters.pop(int(one)) + clusters.pop(int(other)))
        groupings.append(_grouping(clusters, distances))
    return LayerGroups(distances, merges, tuple(reversed(groupings)))


def _grouping(clusters: dict[int, list[int]], distances: Distances) -> Grouping:
    places = sorted(clusters.values())
    largest = [distances.matrix[np.ix_(place, place)].max() for place in places]
    groups = tuple(tuple(distances.sites[i] for i in place) for place in places)
    return Grouping(groups, float(np.mean(largest)))


def _sample(kept_per_context: np.ndarray, tokens: int, seed: int) -> np.ndarray:
    drawn = np.random.default_rng([SAMPLE_TAG, seed]).permutation(len(kept_per_context))
    rows = np.cumsum(kept_per_context[drawn])
    return np.sort(drawn[: int(np.searchsorted(rows, tokens)) + 1])
