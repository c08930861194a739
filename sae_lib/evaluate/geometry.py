"""How the latents' directions lie to one another: near duplicates, clusters, a map.

With c_ij = cos(W_dec_i, W_dec_j), signed, so that antipodes are not alike, and the same for W_enc:

    nearest        mean_i max_{j != i} c_ij      most_negative   mean_i min_{j != i} c_ij
    near_share     share of latents with max_{j != i} c_ij > t, for t = .5, .7, .9
    clusters       connected components of the graph with an edge where c_ij >= .7
    silhouette     of average-linkage clusters on 1 - c, against the same rows with every coordinate
                   shuffled among them, which keeps each coordinate's values and no direction
    co_firing      Jaccard |A & B| / |A | B| of the tokens at which a latent and its nearest fire;
                   high for duplicates, near 0 for a concept that was split

Every number is given for all latents and for those that fire in some text (`alive`), whose rows are
not what initialisation left. `random_directions` is what as many random rows give, about
sqrt(2 ln(latents) / d_in) for `nearest`.

Sources: Bricken et al. 2023, Templeton et al. 2024, Karvonen et al. 2025 (evaluation.md, section
13). Means over all latents of the nearest cosines and of cos(W_enc_i, W_dec_i) are with `weights`.
Differs from SAEBench, which has the nearest cosines alone, dead latents among them.
"""

import math
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import squareform
from sklearn.metrics import silhouette_score
from torch import Tensor
from torch.nn import functional as F

from sae_lib.activations.tokens import NO_DOCUMENT
from sae_lib.activations.world_tokens import enough_documents, read_world
from sae_lib.apply.reading import Encode, encoder
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import LatentScoreRow, Measurement

CHUNK_ELEMENTS = 2**24
"""Cosines or codes in memory at one time."""

BATCH_CONTEXTS = 32
WHOM = {
    "all_latents": "of all latents",
    "alive_latents": "of the latents that fire in the text that was read",
    "random_directions": "of as many random directions",
}
SIDES = ("decoder", "encoder")


def _both(
    name: str,
    text: str,
    better: Literal["higher", "lower", "neither"] = "neither",
    low: float = 0.0,
    high: float = 1.0,
    whom: tuple[str, ...] = tuple(WHOM),
) -> dict[str, Definition]:
    return {
        who: Definition(
            name,
            who,
            f"{text}; {WHOM[who]}",
            better,
            low,
            high,
            role="floor" if who == "random_directions" else "score",
        )
        for who in whom
    }


NEAREST = {
    side: _both(
        f"{side}_nearest_cosine",
        f"mean over latents of the largest cosine with another {side} row",
        "lower",
        -1.0,
    )
    for side in SIDES
}
MOST_NEGATIVE = {
    side: _both(
        f"{side}_most_negative_cosine",
        f"mean over latents of the smallest cosine with another {side} row",
        low=-1.0,
    )
    for side in SIDES
}
NEAR_SHARE = {
    side: _both(
        f"{side}_near_share",
        f"share of latents with another {side} row at a cosine above the threshold",
        "lower",
    )
    for side in SIDES
}
ALIGNED = _both(
    "encoder_decoder_alignment",
    "mean over latents of cos(W_enc_i, W_dec_i)",
    "higher",
    -1.0,
    whom=("alive_latents",),
)
CLUSTERED = _both("clustered_share", "share of latents in a cluster of two or more", "lower")
LARGEST = _both("largest_cluster_share", "share of latents in the largest cluster")
CLUSTERS = _both("num_clusters", "clusters of two or more latents", high=math.inf)
SILHOUETTE = _both(
    "silhouette",
    "mean silhouette, on 1 - cosine, of average-linkage clusters",
    "higher",
    -1.0,
    whom=("alive_latents", "all_latents"),
)
SHUFFLED = SILHOUETTE["all_latents"]._replace(
    definition="shuffled_coordinates",
    text="the same after every coordinate is shuffled among the latents; mean over shuffles",
    role="floor",
)
CO_FIRING = Definition(
    "co_firing",
    "nearest_neighbour_jaccard",
    "mean over alive latents of |A & B| / |A | B|, tokens of the latent and of its nearest alive"
    " neighbour by decoder",
    "lower",
    0.0,
    1.0,
)
CO_FIRING_RANDOM = CO_FIRING._replace(
    definition="random_pair_jaccard",
    text="the same for a partner drawn at random instead of the nearest",
    role="floor",
)
ALIVE = Definition(
    "geometry_alive_share",
    "fires_in_text",
    "share of latents that fire in the text that was read",
    "higher",
    0.0,
    1.0,
)


class Neighbours(NamedTuple):
    """Of each row the nearest other row, and the one that points away most."""

    largest: Float[Tensor, " rows"]
    nearest: Int[Tensor, " rows"]
    smallest: Float[Tensor, " rows"]


def neighbours(rows: Float[Tensor, "rows d"]) -> Neighbours:
    """Signed cosines with other rows, a block at a time; there must be two rows.

    A row of zeros has cosine 0 with everything.
    """
    unit = F.normalize(rows, dim=1, eps=1e-12)
    largest, nearest, smallest = [], [], []
    for start, part in _blocks(unit):
        cosine = part @ unit.mT
        own = torch.arange(len(part)), torch.arange(start, start + len(part))
        cosine[own] = torch.inf
        smallest.append(cosine.amin(1))
        cosine[own] = -torch.inf
        best = cosine.max(1)
        largest.append(best.values)
        nearest.append(best.indices)
    return Neighbours(torch.cat(largest), torch.cat(nearest), torch.cat(smallest))


def graph_clusters(rows: Float[Tensor, "rows d"], threshold: float) -> Int[np.ndarray, " rows"]:
    """Number of each row's connected component, where an edge is a cosine >= ``threshold``."""
    unit = F.normalize(rows, dim=1, eps=1e-12)
    edges = []
    for start, part in _blocks(unit):
        edge = (part @ unit.mT >= threshold).nonzero()
        edges.append(edge + torch.tensor([start, 0]))
    first, second = torch.cat(edges).numpy().T
    graph = coo_matrix((np.ones(len(first)), (first, second)), shape=(len(rows), len(rows)))
    return connected_components(graph, directed=False)[1].astype(np.int64)


def linkage_clusters(rows: Float[Tensor, "rows d"], num: int) -> Int[np.ndarray, " rows"]:
    """At most ``num`` clusters by average linkage on 1 - cosine."""
    return fcluster(linkage(_distances(rows), "average"), num, "maxclust").astype(np.int64)


def silhouette(rows: Float[Tensor, "rows d"], clusters: Int[np.ndarray, " rows"]) -> float | None:
    """Mean silhouette on 1 - cosine; None for one cluster, or as many as rows."""
    if not 1 < len(set(clusters.tolist())) < len(rows):
        return None
    distances = squareform(_distances(rows), checks=False)
    return float(silhouette_score(distances, clusters, metric="precomputed"))


def shuffled_coordinates(rows: Float[Tensor, "rows d"], seed: int) -> Float[Tensor, "rows d"]:
    """Every column in an order of its own: nothing is left of the rows."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(rows.shape, generator=generator).argsort(0)
    return rows.gather(0, order)


def plane(rows: Float[Tensor, "rows d"]) -> Float[Tensor, "rows 2"]:
    """Unit rows on their two principal axes, for display; the largest entry of an axis is > 0."""
    unit = F.normalize(rows.double(), dim=1, eps=1e-12)
    centred = unit - unit.mean(0)
    axes = torch.linalg.eigh(centred.mT @ centred).eigenvectors[:, -2:].flip(1)
    sign = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()
    return centred @ (axes * sign)


class CoFiring:
    """Counts of tokens at which latents fire, alone and with a partner; a batch at a time."""

    def __init__(self, partners: Int[Tensor, "kinds latents"]) -> None:
        self.partners = partners
        self.fires = torch.zeros(partners.shape[1], dtype=torch.long)
        self.together = torch.zeros(partners.shape, dtype=torch.long)

    def add(self, on: Bool[Tensor, "tokens latents"]) -> None:
        self.fires += on.sum(0)
        for count, partner in zip(self.together, self.partners, strict=True):
            count += (on & on[:, partner]).sum(0)

    @property
    def jaccard(self) -> Float[Tensor, "kinds latents"]:
        """0 where neither fires."""
        either = self.fires + self.fires[self.partners] - self.together
        return self.together.double() / either.clamp_min(1)


@register
class GeometryConfig(TaskMetric):
    """Thresholds, and how much text tells which latents are alive."""

    papers = (
        Paper("Karvonen et al. 2025", "https://arxiv.org/abs/2503.09532", "core evaluation"),
        Paper("Bricken et al. 2023", "https://transformer-circuits.pub/2023/monosemantic-features",
              "clusters and maps"),
    )  # fmt: skip
    summary = "How latents' directions lie: duplicates, clusters, co-firing, a map."
    survey = ("Feature Geometry Analysis",)

    name: Literal["geometry"] = "geometry"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    near: tuple[float, ...] = (0.5, 0.7, 0.9)
    """Cosines above which another latent counts as near."""

    threshold: float = Field(default=0.7, gt=0, lt=1)
    """Cosine from which on two latents are joined in the graph."""

    clusters: int = Field(default=32, ge=2)
    """Average-linkage clusters whose silhouette is taken."""

    max_latents: int = Field(default=4096, ge=4)
    """Latents that are linked at most, drawn at random: memory grows with their square."""

    shuffles: int = Field(default=3, ge=1)
    """Shuffles of the coordinates."""

    tokens: int = Field(default=50_000, ge=1)
    """Tokens that tell which latents are alive and fire together."""

    seed: int = Field(default=0, ge=0)
    """Seed of random rows, shuffles and draws."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        groups = [NEAREST["decoder"], NEAR_SHARE["decoder"], MOST_NEGATIVE["decoder"]]
        groups += [NEAREST["encoder"], NEAR_SHARE["encoder"], MOST_NEGATIVE["encoder"]]
        groups += [ALIGNED, CLUSTERED, LARGEST, CLUSTERS, SILHOUETTE]
        alone = [SHUFFLED, CO_FIRING, CO_FIRING_RANDOM, ALIVE]
        ordered = [row for group in groups for row in group.values()] + alone
        # alive latents are the ones to look at
        return sorted(ordered, key=lambda row: row is not NEAREST["decoder"]["alive_latents"])

    @torch.no_grad()
    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        x = _activations(bench, self.tokens)
        measured = {}
        for done, (name, coder) in enumerate(bench.coders.items()):
            on_progress(done, len(bench.coders))
            reason = _without_rows(coder)
            measured[name] = (
                Measured(self.absent(reason)) if reason is not None else self._of_coder(coder, x)
            )
        on_progress(len(bench.coders), len(bench.coders))
        return measured

    def _of_coder(
        self, coder: SparseCoder[Any], x: Float[Tensor, "tokens d_in"] | None
    ) -> Measured:
        W_dec = coder.W_dec.detach().float().cpu().flatten(1)
        encode = encoder(coder)
        alive, why = None, "no text was read, so nobody knows which latents fire"
        if x is not None:
            on = torch.zeros(coder.d_sae, dtype=torch.bool)
            for codes in _codes(encode, x, coder.d_sae):
                on |= (codes > 0).any(0)
            alive, why = on, "fewer than two latents fire"
        rows: list[Measurement] = []
        for who in ("alive_latents", "all_latents", "random_directions"):
            for side in SIDES:
                directions = W_dec if side == "decoder" else _encoder_rows(coder)
                if who == "random_directions":
                    generator = torch.Generator().manual_seed(self.seed)
                    directions = None if directions is None else torch.randn(
                        directions.shape, generator=generator
                    )  # fmt: skip
                elif who == "alive_latents":
                    directions = None if directions is None or alive is None else directions[alive]
                missing = why if who == "alive_latents" else "there is only one row per latent"
                rows += self._near_rows(side, who, directions, missing)
                if side == "decoder":
                    rows += self._cluster_rows(who, directions, missing)
        rows += self._aligned(coder, alive, why)
        rows += self._silhouettes(W_dec, alive, why)
        rows += self._together(encode, W_dec, x, alive, why)
        return Measured(rows, self._map(W_dec))

    def _near_rows(
        self, side: str, who: str, directions: Float[Tensor, "rows d"] | None, missing: str
    ) -> list[Measurement]:
        nearest, away, share = NEAREST[side][who], MOST_NEGATIVE[side][who], NEAR_SHARE[side][who]
        if directions is None or len(directions) < 2:
            gone = Estimate(None, n=0, unit="latents", reason=missing)
            absent = [share.row(gone, threshold=t) for t in self.near]
            return [nearest.row(gone), away.row(gone), *absent]
        found = neighbours(directions)
        return [
            nearest.row(_mean(found.largest)),
            away.row(_mean(found.smallest), smallest=found.smallest.min().item()),
            *(share.row(_mean((found.largest > t).double()), threshold=t) for t in self.near),
        ]

    def _cluster_rows(
        self, who: str, directions: Float[Tensor, "rows d"] | None, missing: str
    ) -> list[Measurement]:
        params = {"threshold": self.threshold}
        if directions is None or len(directions) < 2:
            gone = Estimate(None, n=0, unit="latents", reason=missing)
            return [d[who].row(gone, **params) for d in (CLUSTERED, LARGEST, CLUSTERS)]
        sizes = np.bincount(graph_clusters(directions, self.threshold))
        num = len(directions)
        joined = sizes[sizes > 1]
        values = (joined.sum() / num, sizes.max() / num, len(joined))
        return [
            group[who].row(Estimate(float(value), None, num, "latents"), **params)
            for group, value in zip((CLUSTERED, LARGEST, CLUSTERS), values, strict=True)
        ]

    def _aligned(
        self, coder: SparseCoder[Any], alive: Bool[Tensor, " d_sae"] | None, why: str
    ) -> list[Measurement]:
        row = ALIGNED["alive_latents"]
        W_enc, W_dec = _encoder_rows(coder), coder.W_dec.detach().float().cpu().flatten(1)
        if W_enc is None or W_enc.shape != W_dec.shape:
            why, alive = "rows of the encoder are not those of the decoder", None
        if W_enc is None or alive is None or not alive.any():
            return [row.row(Estimate(None, n=0, unit="latents", reason=why))]
        return [row.row(_mean(F.cosine_similarity(W_enc[alive], W_dec[alive], dim=1)))]

    def _silhouettes(
        self, W_dec: Float[Tensor, "d_sae d"], alive: Bool[Tensor, " d_sae"] | None, why: str
    ) -> list[Measurement]:
        rows = []
        for who in ("alive_latents", "all_latents"):
            directions = W_dec
            if who == "alive_latents":
                directions = W_dec[:0] if alive is None else W_dec[alive]
            value, num, found = None, len(directions), self._drawn(directions)
            if len(found) > self.clusters:
                value = silhouette(found, linkage_clusters(found, self.clusters))
            reason = why if alive is None and who == "alive_latents" else "too few latents"
            rows.append(
                SILHOUETTE[who].row(
                    Estimate(value, None, num, "latents", None if value is not None else reason),
                    clusters=self.clusters,
                    linked=len(found),
                )
            )
        return [*rows, self._shuffled(self._drawn(W_dec if alive is None else W_dec[alive]))]

    def _shuffled(self, directions: Float[Tensor, "rows d"]) -> Measurement:
        values = []
        for number in range(self.shuffles if len(directions) > self.clusters else 0):
            rows = shuffled_coordinates(directions, self.seed + number)
            value = silhouette(rows, linkage_clusters(rows, self.clusters))
            values += [] if value is None else [value]
        estimate = Estimate(None, n=0, unit="shuffles", reason="too few latents")
        if values:
            estimate = _mean(torch.tensor(values, dtype=torch.float64))._replace(unit="shuffles")
        return SHUFFLED.row(estimate, clusters=self.clusters, linked=len(directions))

    def _drawn(self, directions: Float[Tensor, "rows d"]) -> Float[Tensor, "drawn d"]:
        # a row of zeros has no direction to link by
        directions = directions[directions.norm(dim=1) > 0]
        if len(directions) <= self.max_latents:
            return directions
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(len(directions), generator=generator)[: self.max_latents]
        return directions[chosen.sort().values]

    def _together(
        self,
        encode: Encode,
        W_dec: Float[Tensor, "d_sae d"],
        x: Float[Tensor, "tokens d_in"] | None,
        alive: Bool[Tensor, " d_sae"] | None,
        why: str,
    ) -> list[Measurement]:
        if x is None or alive is None or alive.sum() < 2:
            gone = Estimate(None, n=0, unit="latents", reason=why)
            share = gone if alive is None else _mean(alive.double())
            return [CO_FIRING.row(gone), CO_FIRING_RANDOM.row(gone), ALIVE.row(share)]
        num = int(alive.sum())
        generator = torch.Generator().manual_seed(self.seed)
        # never itself: a step of 1 to num - 1 round the circle
        step = torch.randint(1, num, (num,), generator=generator)
        partners = torch.stack([neighbours(W_dec[alive]).nearest, (torch.arange(num) + step) % num])
        counts = CoFiring(partners)
        for codes in _codes(encode, x, len(alive)):
            counts.add(codes[:, alive] > 0)
        near, random = counts.jaccard
        return [
            CO_FIRING.row(_mean(near), tokens=len(x)),
            CO_FIRING_RANDOM.row(_mean(random), tokens=len(x)),
            ALIVE.row(_mean(alive.double()), tokens=len(x)),
        ]

    def _map(self, W_dec: Float[Tensor, "d_sae d"]) -> list[LatentScoreRow]:
        if len(W_dec) < 2 or W_dec.shape[1] < 2:
            return []
        found = neighbours(W_dec)
        columns = {
            ("map_x", "principal_axis"): plane(W_dec)[:, 0],
            ("map_y", "principal_axis"): plane(W_dec)[:, 1],
            ("decoder_nearest_cosine", "all_latents"): found.largest,
            ("decoder_nearest_latent", "all_latents"): found.nearest,
        }
        return [
            LatentScoreRow(latent, self.name, name, definition, float(value))
            for (name, definition), values in columns.items()
            for latent, value in enumerate(values.tolist())
        ]


def _mean(values: Float[Tensor, " units"]) -> Estimate:
    """Mean over latents and its standard error."""
    n = len(values)
    stderr = values.double().std().item() / math.sqrt(n) if n > 1 else None
    return Estimate(values.double().mean().item(), stderr, n, "latents")


def _blocks(rows: Float[Tensor, "rows d"]) -> Iterator[tuple[int, Float[Tensor, "block d"]]]:
    size = max(1, CHUNK_ELEMENTS // max(1, len(rows)))
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size]


def _distances(rows: Float[Tensor, "rows d"]) -> np.ndarray:
    """1 - cosine of every pair, in scipy's condensed order."""
    unit = F.normalize(rows.double(), dim=1, eps=1e-12)
    square = (1 - unit @ unit.mT).clamp_min(0).numpy()
    np.fill_diagonal(square, 0.0)
    return squareform(square, checks=False)


def _codes(
    encode: Encode, x: Float[Tensor, "tokens d_in"], d_sae: int
) -> Iterator[Float[Tensor, "part d_sae"]]:
    for part in x.split(max(1, CHUNK_ELEMENTS // d_sae)):
        yield encode(part).float().cpu()


def _encoder_rows(coder: SparseCoder[Any]) -> Float[Tensor, "d_sae d"] | None:
    W_enc = getattr(coder, "W_enc", None)  # not every coder has a linear encoder
    if W_enc is None or len(W_enc) != coder.d_sae:
        return None
    return W_enc.detach().float().cpu().flatten(1)


def _without_rows(coder: SparseCoder[Any]) -> str | None:
    if len(coder.W_dec) != coder.d_sae:
        return f"W_dec has {len(coder.W_dec)} rows, not one for each of {coder.d_sae} latents"
    return "there is only one latent" if coder.d_sae < 2 else None


def _activations(bench: Bench, num: int) -> Float[Tensor, "tokens d_in"] | None:
    """Held-out activations, or those of the world's documents; None where there is no text."""
    if bench.split is None and bench.world is None:
        return None
    if bench.split is None:
        assert bench.world is not None
        docs = enough_documents(bench.world, num, split="geometry")
        return read_world(bench.model, [bench.site], docs).x[bench.site][:num]
    parts, total = [], 0
    for _, rows in bench.split.batches(BATCH_CONTEXTS):
        mask = rows.document != NO_DOCUMENT
        at = bench.model.capture(rows.tokens, [bench.site], mask=mask)[bench.site]
        parts.append(at[rows.keep.to(at.device)].float().cpu())
        total += len(parts[-1])
        if total >= num:
            break
    return torch.cat(parts)[:num]
