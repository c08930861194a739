"""Which family of coders loses least at equal sparsity.

A *family* is one architecture at one site and width under several sparsity settings; with a seed
it is a curve through its Pareto points (L0, loss), interpolated linearly in log L0 and never
extrapolated.

    loss_at_l0       the curve's value at a given L0
    loss_difference  loss_b - loss_a at a given L0                     positive: a is better
    dominance        mean of loss_b - loss_a over a log-spaced grid of the common L0 range
    frontier_area    area under the curve over the L0 range common to all families of the site,
                     divided by the length of the range (log L0)

L0 is the measured one. Standard errors are over seeds; differences are taken seed by seed where
the families share seeds.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field, field_validator
from torch import Tensor

from sae_lib.evaluate._covariance import Covariance
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import METRICS, Definition, SiteAccumulator, TableMetric, register
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import Measurement

PARETO = Definition(
    "pareto_loss",
    "all_families",
    "loss of a coder that no coder of the site beats at equal or smaller L0",
    "lower",
)
AT_L0 = Definition(
    "loss_at_l0",
    "pareto_interpolated",
    "loss at a given L0, linear in log L0 between Pareto points, mean over seeds",
    "lower",
)
DIFFERENCE = Definition(
    "loss_difference_at_l0",
    "pareto_interpolated",
    "loss of family_b minus loss of family_a at a given L0; positive: family_a is better",
    "neither",
)
DOMINANCE = Definition(
    "dominance",
    "mean_of_log_grid",
    "mean over the common L0 range of loss of family_b minus loss of family_a",
    "neither",
)
AREA = Definition(
    "frontier_area",
    "trapezoid_log_l0",
    "area under the loss over the common log L0 range, divided by its length",
    "lower",
)
MEAN_PREDICTOR = Definition(
    "boundary_loss", "mean_predictor", "the mean activation for every token", "lower", 0.0
)
IDENTITY = Definition("boundary_loss", "identity", "the activation itself", "lower", 0.0)
PCA = Definition(
    "boundary_loss",
    "pca_in_sample",
    "l0 principal components, fitted on the evaluated tokens themselves",
    "lower",
    0.0,
    1.0,
)


class FrontierPoint(NamedTuple):
    """What other metrics found for one coder."""

    family: str
    """Coders that differ only in sparsity and seed share it: topk-w2048."""

    site: str
    loss_name: str
    """Which loss: fvu, delta_lm_loss, ... Lower must be better."""

    l0: float
    """Measured, not nominal."""

    loss: float
    seed: int = 0


class Curve(NamedTuple):
    """Pareto points of one family and seed, by ascending L0 (so by descending loss)."""

    l0: tuple[float, ...]
    loss: tuple[float, ...]


def pareto(points: Iterable[tuple[float, float]]) -> Curve:
    """The points (l0, loss) that no other beats in one respect and equals or beats in the other.

    Points with L0 0 or a number that is not finite have no place on a log axis and are left out.
    """
    best = math.inf
    kept: list[tuple[float, float]] = []
    for l0, loss in sorted(p for p in points if p[0] > 0 and all(map(math.isfinite, p))):
        if loss < best:
            best = loss
            kept.append((float(l0), float(loss)))
    return Curve(tuple(l0 for l0, _ in kept), tuple(loss for _, loss in kept))


def loss_at(curve: Curve, l0: float) -> float | None:
    """Linear in log L0 between neighbours; None outside the curve's range."""
    if not curve.l0 or not curve.l0[0] <= l0 <= curve.l0[-1]:
        return None
    return float(np.interp(math.log(l0), np.log(curve.l0), curve.loss))


def common_range(curves: Iterable[Curve]) -> tuple[float, float] | None:
    """L0 values that every curve covers; None where that is no more than a point."""
    curves = list(curves)
    if not curves or any(not curve.l0 for curve in curves):
        return None
    low, high = max(curve.l0[0] for curve in curves), min(curve.l0[-1] for curve in curves)
    return (low, high) if low < high else None


def dominance(a: Curve, b: Curve, *, grid_points: int = 65) -> float | None:
    """Mean of loss_b - loss_a over a log-spaced L0 grid; None without a common range."""
    covered = common_range([a, b])
    if covered is None:
        return None
    at = np.linspace(math.log(covered[0]), math.log(covered[1]), grid_points)
    loss_a, loss_b = (np.interp(at, np.log(curve.l0), curve.loss) for curve in (a, b))
    return float((loss_b - loss_a).mean())


def area(curve: Curve, low: float, high: float) -> float:
    """Mean of the curve over log L0 from ``low`` to ``high``, which it must cover."""
    knots = np.log([low, *(l0 for l0 in curve.l0 if low < l0 < high), high])
    losses = np.interp(knots, np.log(curve.l0), curve.loss)
    return float(np.trapezoid(losses, knots) / (knots[-1] - knots[0]))


@register
class FrontierConfig(TableMetric):
    papers = (
        Paper("Gao et al. 2024", "https://arxiv.org/abs/2406.04093", "sparsity against fidelity"),
        Paper("Lieberum et al. 2024", "https://arxiv.org/abs/2408.05147", "FVU and delta LM loss"),
    )
    survey = ("Sparsity-fidelity Trade-off",)
    summary = "loss at matched L0, dominance and area between families of coders"

    name: Literal["frontier"] = "frontier"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    losses: tuple[str, ...] = Field(default=("fvu", "delta_lm_loss"), min_length=1)
    """Measurements to draw against L0, by name; of each, lower must be better."""

    at_l0: tuple[float, ...] = (16.0, 32.0, 64.0, 128.0)
    """Values of L0 at which families are compared."""

    grid_points: int = Field(default=65, ge=2)
    """Points of the log-spaced grid over which dominance is averaged."""

    @field_validator("at_l0")
    @classmethod
    def _positive(cls, at_l0: tuple[float, ...]) -> tuple[float, ...]:
        if any(l0 <= 0 for l0 in at_l0):
            raise ValueError(f"every L0 must be above 0; got {at_l0}")
        return at_l0

    @field_validator("losses")
    @classmethod
    def _lower_is_better(cls, losses: tuple[str, ...]) -> tuple[str, ...]:
        known = [row for metric in METRICS.values() for row in metric.definitions()]
        scores = {row.name for row in known if row.better == "higher"}
        if wrong := [name for name in losses if name in scores]:
            raise ValueError(
                f"of {', '.join(wrong)} more is better, so it is no loss; take one of "
                + ", ".join(sorted({row.name for row in known if row.better == "lower"}))
            )
        return losses

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [PARETO, AT_L0, DIFFERENCE, DOMINANCE, AREA, MEAN_PREDICTOR, IDENTITY, PCA]

    def start_site(self, site: str, mean_activation: Float[Tensor, " d_in"]) -> SiteAccumulator:
        return BoundaryAccumulator(self, site, mean_activation)

    def points(
        self, measurements: Sequence[Measurement], *, family: str, site: str, seed: int
    ) -> list[FrontierPoint]:
        """One coder's points, from its measurements: the first row of each name counts.

        A loss that was not measured or has no value gives no point.
        """
        values: dict[str, float] = {}
        for row in measurements:
            if row.value is not None:
                values.setdefault(row.name, row.value)
        return [
            FrontierPoint(family, site, name, values["l0"], values[name], seed)
            for name in self.losses
            if "l0" in values and name in values
        ]

    def compare(self, points: Sequence[FrontierPoint]) -> list[Measurement]:
        """Rows for every site and loss in ``points``; params say which, and which families."""
        tables: dict[tuple[str, str], list[FrontierPoint]] = defaultdict(list)
        for point in points:
            tables[point.site, point.loss_name].append(point)
        return [
            row
            for (site, loss_name), table in sorted(tables.items())
            for row in self._compare(table, {"site": site, "loss": loss_name})
        ]

    def _compare(self, table: list[FrontierPoint], where: dict[str, str]) -> list[Measurement]:
        families: dict[str, dict[int, Curve]] = {
            family: {
                seed: pareto((p.l0, p.loss) for p in table if (p.family, p.seed) == (family, seed))
                for seed in sorted({p.seed for p in table if p.family == family})
            }
            for family in sorted({p.family for p in table})
        }
        return [
            *_pareto_rows(table, where),
            *self._at_l0(families, where),
            *self._between(families, where),
            *_areas(families, where),
        ]

    def _at_l0(
        self, families: dict[str, dict[int, Curve]], where: dict[str, str]
    ) -> list[Measurement]:
        rows = []
        for family, curves in families.items():
            for l0 in self.at_l0:
                values = [loss_at(curve, l0) for curve in curves.values()]
                missing = f"{family} has {_covered(curves.values())}, and {l0:g} lies outside"
                rows.append(
                    AT_L0.row(_over_seeds(values, missing), family=family, at_l0=l0, **where)
                )
        return rows

    def _between(
        self, families: dict[str, dict[int, Curve]], where: dict[str, str]
    ) -> list[Measurement]:
        rows = []
        for a, b in combinations(families, 2):
            params = {"family_a": a, "family_b": b, **where}
            pairs = _pairs(families[a], families[b])
            ranges = (
                f"{a} has {_covered(families[a].values())}, {b} {_covered(families[b].values())}"
            )
            scores = [dominance(x, y, grid_points=self.grid_points) for x, y in pairs]
            missing = f"no common range of L0: {ranges}"
            rows.append(DOMINANCE.row(_over_seeds(scores, missing), **params))
            for l0 in self.at_l0:
                at = [(loss_at(x, l0), loss_at(y, l0)) for x, y in pairs]
                gaps = [None if x is None or y is None else y - x for x, y in at]
                missing = f"{l0:g} is not in the range of both: {ranges}"
                rows.append(DIFFERENCE.row(_over_seeds(gaps, missing), at_l0=l0, **params))
        return rows


class BoundaryAccumulator(SiteAccumulator):
    """Reference points that every plot of a site should show, from the evaluated tokens."""

    def __init__(self, cfg: FrontierConfig, site: str, centre: Float[Tensor, " d_in"]) -> None:
        self.cfg, self.site = cfg, site
        self.covariance = Covariance(centre)

    def update(self, x: Float[Tensor, "rows d_in"]) -> None:
        self.covariance.add(x)

    def rows(self) -> list[Measurement]:
        d_in, n = len(self.covariance.centre), self.covariance.num_tokens
        where = {"site": self.site, "loss": "fvu"}
        fvu = self.covariance.pca_fvu()
        if fvu is None:
            finite = self.covariance.sum.isfinite().all()
            reason = "the activations do not vary" if finite else "some activations are not finite"
            missing = Estimate(None, n=n, unit="tokens", reason=reason)
            return [found.row(missing, **where) for found in (MEAN_PREDICTOR, IDENTITY, PCA)]
        ranks = {2**i for i in range(d_in.bit_length())} | {int(l0) for l0 in self.cfg.at_l0}
        chosen = sorted(k for k in ranks if 0 < k < d_in)
        at = {k: Estimate(fvu[k].item(), None, n, "tokens") for k in (0, *chosen, d_in)}
        return [
            MEAN_PREDICTOR.row(at[0], l0=0, **where),
            *(PCA.row(at[k], l0=k, **where) for k in chosen),
            IDENTITY.row(at[d_in], l0=d_in, **where),
        ]


def _pareto_rows(table: list[FrontierPoint], where: dict[str, str]) -> list[Measurement]:
    front = pareto((p.l0, p.loss) for p in table)
    on_front = set(zip(front.l0, front.loss, strict=True))
    return [
        PARETO.row(Estimate(p.loss), family=p.family, seed=p.seed, l0=p.l0, **where)
        for p in sorted(table, key=lambda p: p.l0)
        if (p.l0, p.loss) in on_front
    ]


def _areas(families: dict[str, dict[int, Curve]], where: dict[str, str]) -> list[Measurement]:
    # a family of one point has no curve; it must not rob the others of their common range
    curves = [curve for seeds in families.values() for curve in seeds.values()]
    covered = common_range(curve for curve in curves if len(curve.l0) > 1)
    rows = []
    for family, seeds in families.items():
        drawn = [curve for curve in seeds.values() if len(curve.l0) > 1]
        values = [area(curve, *covered) for curve in drawn] if covered else []
        params: dict[str, float] = {}
        if covered:
            params = {"low_l0": covered[0], "high_l0": covered[1]}
        missing = (
            "the families of this site have no common range of L0"
            if drawn
            else f"{family} has {_covered(seeds.values())}: a curve needs two Pareto points"
        )
        rows.append(AREA.row(_over_seeds(values, missing), family=family, **params, **where))
    return rows


def _pairs(a: dict[int, Curve], b: dict[int, Curve]) -> list[tuple[Curve, Curve]]:
    """Curves of equal seed; where no seed is shared, the curves through all points of each."""
    shared = sorted(a.keys() & b.keys())
    if shared:
        return [(a[seed], b[seed]) for seed in shared]
    return [(_pooled(a), _pooled(b))]


def _pooled(curves: dict[int, Curve]) -> Curve:
    return pareto(
        point for curve in curves.values() for point in zip(curve.l0, curve.loss, strict=True)
    )


def _over_seeds(values: Iterable[float | None], missing: str) -> Estimate:
    """Mean and its standard error over the seeds that have a value."""
    found = np.array([value for value in values if value is not None])
    if not len(found):
        return Estimate(None, n=0, unit="seeds", reason=missing)
    stderr = float(found.std(ddof=1) / math.sqrt(len(found))) if len(found) > 1 else None
    return Estimate(float(found.mean()), stderr, len(found), "seeds")


def _covered(curves: Iterable[Curve]) -> str:
    values = [l0 for curve in curves for l0 in curve.l0]
    return f"L0 {min(values):.4g} to {max(values):.4g}" if values else "no point above L0 0"
