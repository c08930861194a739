"""Verdicts: does what was measured support a claim, refute it, or leave it open?

SAEs that differ only in seed and sparsity are a *family*. Two families are compared at equal values
of a third quantity, as a rule L0:

    several sparsities in both   curves, linear in log L0 between measured points, averaged over the
                                 range of L0 that all of them cover; never extrapolated
    several in one               its curve at the L0 of the other's points
    one in each                  as they are, if their mean L0s agree within 10 %

The effect is a mean over seeds. Where at least two seeds are shared, differences are taken seed by
seed: d_s = a_s - b_s, interval mean(d) +- t(.975, n - 1) sd(d) / sqrt(n). Otherwise the families
count as independent samples (Welch): se^2 = var(a) / n_a + var(b) / n_b, with

    df = se^4 / ((var(a) / n_a)^2 / (n_a - 1) + (var(b) / n_b)^2 / (n_b - 1))

Relative effects are computed from logarithms and given as a / b - 1. Seeds are the only source of
chance in such an interval: the texts are the same for all.
"""

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from scipy import stats

from sae_lib.claims.base import Claim, Selector
from sae_lib.claims.cells import Cell, read_cells
from sae_lib.claims.listed import CLAIMS
from sae_lib.claims.quantities import L0, Quantity

Verdict = Literal["supported", "refuted", "undecided", "not comparable", "no data"]
VERDICTS: tuple[Verdict, ...] = ("supported", "refuted", "undecided", "not comparable", "no data")

L0_TOLERANCE = 0.10
"""Largest relative difference of mean L0s that are compared as if they were equal."""

FLOPS_TOLERANCE = 0.10
"""The same of operations per token."""

CONFIDENCE = 0.95
GRID_POINTS = 33
"""Points of the matched range over which curves are averaged."""


class ClaimRow(NamedTuple):
    """What the results of one experiment say about one claim, for two families at one site."""

    claim: str
    statement: str
    verdict: Verdict
    place: str
    """The site; empty where no site has both kinds of SAEs."""

    a: str
    """SAEs the claim is about: ids without their seeds, or what would be, where there are none."""

    b: str
    """Those they are compared with, or the number."""

    quantity: str
    direction: str
    """What supports the claim: lower or higher."""

    is_relative: bool
    """Whether the effect is a / b - 1, else it is a - b."""

    least: float
    """Smallest gain that counts; a loss that is let pass where negative."""

    effect: float | None
    low: float | None
    high: float | None
    value_a: float | None
    value_b: float | None
    l0_a: float | None
    l0_b: float | None
    n: int
    """Pairs of seeds; where they are not paired, SAEs or seeds of both together."""

    comparison: str
    """paired, welch, one sample, or none where there is no interval."""

    reason: str
    """The verdict in words."""


class Interval(NamedTuple):
    """An effect and how sure it is."""

    effect: float
    low: float | None
    high: float | None
    n: int
    comparison: Literal["paired", "welch", "one sample", "none"]


class _Incomparable(Exception):
    """Two families that cannot be compared; the text says why."""


class _Family(NamedTuple):
    name: str
    cells: tuple[Cell, ...]


class _Sample(NamedTuple):
    """Values per seed of two families where the matched quantity is equal."""

    a: dict[int, float]
    b: dict[int, float]
    where: str
    """At which values of the matched quantity, in words."""


def evaluate(
    database: Path, experiment: str, claims: Iterable[Claim] | None = None
) -> list[ClaimRow]:
    """What the published results of ``experiment`` say about each of ``claims``.

    Rows come in the order of the claims, one for each site (and pair of families there) that has
    SAEs of both kinds; one without a site where none has. Raises `UnknownName` for an experiment
    that the database does not know, `MissingFile` where nothing was published.
    """
    cells = read_cells(database, experiment)
    chosen = CLAIMS.values() if claims is None else claims
    return [row for claim in chosen for row in judge(claim, cells)]


def judge(claim: Claim, cells: Sequence[Cell]) -> list[ClaimRow]:
    """The verdicts on one claim from ``cells``, which are SAEs of one experiment."""
    whole = [cell for cell in cells if cell.status == "complete"]
    of_a = _families(whole, claim.a)
    if claim.b is None:
        rows = [_against(claim, site, a) for site, found in of_a.items() for a in found]
        return rows or [_absent(claim, _missing(claim.a, cells))]
    of_b = _families(whole, claim.b)
    rows = []
    for site in (one for one in of_a if one in of_b):
        for a in of_a[site]:
            partners = [b for b in of_b[site] if _share(claim, a, b) and a.cells != b.cells]
            if claim.at is None or claim.equal_flops:
                # costs, and whatever is not compared at equal something, are those of one sparsity
                partners = [_beside(a, b) for b in partners]
            if claim.equal_flops:
                partners = _nearest_cost(a, partners)
            rows += [_compare(claim, site, a, b) for b in partners]
    if rows:
        return rows
    if not of_a or not of_b:
        sides = [one for one, found in ((claim.a, of_a), (claim.b, of_b)) if not found]
        return [_absent(claim, " ".join(_missing(one, cells) for one in sides))]
    common = " and ".join({"kind": "architecture", "d_sae": "width"}[one] for one in claim.same)
    needed = f" with the same {common}" if common else ""
    return [_absent(claim, f"No site has SAEs of both kinds{needed}.")]


def interval(a: Mapping[int, float], b: Mapping[int, float]) -> Interval:
    """Mean difference a - b over seeds with its 95 % interval, if there are seeds enough.

    ``a`` and ``b`` hold a value per seed; each has at least one.
    """
    shared = sorted(a.keys() & b.keys())
    if len(shared) >= 2:
        return _one_sample([a[seed] - b[seed] for seed in shared], "paired")
    x, y = np.array(list(a.values())), np.array(list(b.values()))
    effect, n = float(x.mean() - y.mean()), len(x) + len(y)
    if min(len(x), len(y)) < 2:
        return Interval(effect, None, None, n, "none")
    parts = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    squared = sum(parts)
    if squared == 0:
        return Interval(effect, effect, effect, n, "welch")
    df = squared**2 / (parts[0] ** 2 / (len(x) - 1) + parts[1] ** 2 / (len(y) - 1))
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, df) * math.sqrt(squared))
    return Interval(effect, effect - half, effect + half, n, "welch")


def verdict_of(claim: Claim, found: Interval) -> Verdict:
    """What an effect and its interval say."""
    if found.low is None or found.high is None:
        return "undecided"
    sign = -1.0 if claim.direction == "lower" else 1.0
    gain = sign * found.effect
    low, high = sorted((sign * found.low, sign * found.high))
    if low > min(claim.least, 0.0) and gain >= claim.least:
        return "supported"
    return "refuted" if high < claim.least else "undecided"


def _one_sample(values: list[float], comparison: Literal["paired", "one sample"]) -> Interval:
    x, n = np.array(values), len(values)
    effect = float(x.mean())
    if n < 2:
        return Interval(effect, None, None, n, "none")
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, n - 1) * x.std(ddof=1) / math.sqrt(n))
    return Interval(effect, effect - half, effect + half, n, comparison)


def _families(cells: Iterable[Cell], selector: Selector) -> dict[str, list[_Family]]:
    """Families that ``selector`` matches, by site."""
    together: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    for cell in cells:
        if cell.matches(selector):
            together[cell.site, cell.family].append(cell)
    found: dict[str, list[_Family]] = defaultdict(list)
    for (site, _), members in together.items():
        members.sort(key=lambda cell: cell.values.get("l0", math.inf))
        found[site].append(_family(members))
    return found


def _family(members: Sequence[Cell]) -> _Family:
    names = dict.fromkeys(re.sub(r"-s\d+$", "", cell.variant) for cell in members)
    return _Family(", ".join(names), tuple(members))


def _share(claim: Claim, a: _Family, b: _Family) -> bool:
    return all(getattr(a.cells[0], field) == getattr(b.cells[0], field) for field in claim.same)


def _beside(a: _Family, b: _Family) -> _Family:
    """Of several sparsities of ``b`` those at about the L0 of ``a``; all where none is."""
    l0 = _mean(a, "l0")
    near = tuple(
        cell
        for cell in b.cells
        if l0 and abs(cell.values.get("l0", math.inf) / l0 - 1) <= L0_TOLERANCE
    )
    if not near or len(near) == len(b.cells):
        return b
    return _family(near)


def _nearest_cost(a: _Family, partners: list[_Family]) -> list[_Family]:
    """Of ``partners`` the one that costs most nearly what ``a`` does; none where costs lack."""
    cost = _mean(a, "flops_per_token")
    known = [(b, _mean(b, "flops_per_token")) for b in partners]
    ratios = [(abs(math.log(other / cost)), b) for b, other in known if other and cost]
    return [min(ratios, key=lambda pair: pair[0])[1]] if ratios else partners[:1]


def _compare(claim: Claim, site: str, a: _Family, b: _Family) -> ClaimRow:
    row = _row(claim, site, a.name, b.name)._replace(
        l0_a=_mean(a, "l0"),
        l0_b=_mean(b, "l0"),
        value_a=_mean(a, claim.quantity),
        value_b=_mean(b, claim.quantity),
    )
    for family in (a, b):
        for quantity in claim.needs:
            if _mean(family, quantity.name) is None:
                reason = f"The {quantity.text} of {family.name} was not measured."
                return row._replace(verdict="no data", reason=reason)
    try:
        if claim.equal_flops:
            _check_close(a, b, "flops_per_token", "operations per token", FLOPS_TOLERANCE)
        sample = _sample(claim, a, b)
    except _Incomparable as why:
        return row._replace(verdict="not comparable", reason=str(why))
    found = interval(sample.a, sample.b)
    seeds = sorted(sample.a.keys() & sample.b.keys()) if found.comparison == "paired" else None
    value_a, value_b = (
        float(np.mean([values[seed] for seed in seeds or values]))
        for values in (sample.a, sample.b)
    )
    if claim.relative:
        value_a, value_b = math.exp(value_a), math.exp(value_b)
        effect, low, high = (
            None if x is None else math.expm1(x) for x in (found.effect, found.low, found.high)
        )
        assert effect is not None
        found = found._replace(effect=effect, low=low, high=high)
    row = row._replace(value_a=value_a, value_b=value_b)
    return _concluded(claim, row, found, sample.where)


def _against(claim: Claim, site: str, a: _Family) -> ClaimRow:
    assert claim.against is not None
    mean = _mean(a, claim.quantity)
    row = _row(claim, site, a.name, f"{claim.against:g}")._replace(
        l0_a=_mean(a, "l0"), value_a=mean, value_b=claim.against
    )
    if mean is None:
        reason = f"The {claim.measured.text} of {a.name} was not measured."
        return row._replace(verdict="no data", reason=reason)
    by_seed = _mean_by_seed(a, claim.quantity)
    found = _one_sample([value - claim.against for value in by_seed.values()], "one sample")
    return _concluded(claim, row, found, "")


def _concluded(claim: Claim, row: ClaimRow, found: Interval, where: str) -> ClaimRow:
    verdict = verdict_of(claim, found)
    other = row.b if claim.b is not None else f"the limit {row.b}"
    sentences = [
        f"The {claim.measured.text} of {row.a} is {_amount(found.effect, claim.relative)} "
        f"than {'that of ' if claim.b is not None else ''}{other}{where}"
    ]
    if found.low is None or found.high is None:
        sentences.append("one seed gives no interval")
    else:
        low, high = (_signed(x, claim.relative) for x in (found.low, found.high))
        by = {"paired": "pairs of seeds", "welch": "SAEs", "one sample": "seeds"}[found.comparison]
        sentences.append(f"95 % interval {low} to {high} from {found.n} {by}")
    sentences.append(_needed(claim))
    return row._replace(
        verdict=verdict,
        effect=found.effect,
        low=found.low,
        high=found.high,
        n=found.n,
        comparison=found.comparison,
        reason="; ".join(sentences) + ".",
    )


def _needed(claim: Claim) -> str:
    least = _unsigned(claim.least, claim.relative)
    if claim.least < 0:
        opposite = "higher" if claim.direction == "lower" else "lower"
        return f"up to {least} {opposite} is let pass"
    return (
        f"at least {least} {claim.direction} counts"
        if claim.least
        else (f"any amount {claim.direction} counts")
    )


def _amount(effect: float, relative: bool) -> str:
    return f"{_unsigned(effect, relative)} {'higher' if effect >= 0 else 'lower'}"


def _unsigned(value: float, relative: bool) -> str:
    return f"{abs(value) * 100:.3g} %" if relative else f"{abs(value):.3g}"


def _signed(value: float, relative: bool) -> str:
    return f"{value * 100:+.3g} %" if relative else f"{value:+.3g}"


def _sample(claim: Claim, a: _Family, b: _Family) -> _Sample:
    """Values of both families, per seed, where the matched quantity is the same."""
    if claim.matched is None:
        both = (_mean_by_seed(one, claim.quantity) for one in (a, b))
        of_a, of_b = ({s: _scaled(claim, y) for s, y in one.items()} for one in both)
        return _Sample(of_a, of_b, "")
    curves = [_curves(claim, claim.matched, one) for one in (a, b)]
    seeds = curves[0].keys() & curves[1].keys()
    if len(seeds) >= 2:  # the same that are paired
        curves = [{seed: found[seed] for seed in found if seed in seeds} for found in curves]
    is_curve = [any(len(points) > 1 for points in found.values()) for found in curves]
    if not any(is_curve):
        return _as_they_are(claim, claim.matched, a, b, curves)
    if all(is_curve):
        return _over_common_range(claim.matched, a, b, curves)
    single, other = (0, 1) if is_curve[1] else (1, 0)
    at = {seed: points[0][0] for seed, points in curves[single].items()}
    mean = float(np.mean(list(at.values())))
    values = [
        {seed: _at(points, at.get(seed, mean), (a, b)[other], claim.matched)}
        for seed, points in curves[other].items()
    ]
    fixed = {seed: points[0][1] for seed, points in curves[single].items()}
    moving = {seed: value for one in values for seed, value in one.items()}
    pair = (fixed, moving) if single == 0 else (moving, fixed)
    return _Sample(*pair, f" at {claim.matched.text} {_plain(claim.matched, mean)}")


Points = list[tuple[float, float]]
"""(matched quantity, value), ascending, L0 and relative values as logarithms."""


def _as_they_are(
    claim: Claim, matched: Quantity, a: _Family, b: _Family, curves: list[dict[int, Points]]
) -> _Sample:
    if matched is not L0:
        raise _Incomparable(
            f"To compare at equal {matched.text}, at least one of them needs several sparsities; "
            f"{a.name} and {b.name} have one each."
        )
    means = [np.mean([math.exp(points[0][0]) for points in one.values()]) for one in curves]
    if max(means) > (1 + L0_TOLERANCE) * min(means):
        raise _Incomparable(
            f"L0 is {means[0]:.3g} for {a.name} and {means[1]:.3g} for {b.name}: more than "
            f"{L0_TOLERANCE:.0%} apart, and with one sparsity each there is nothing to "
            "interpolate."
        )
    values = [{seed: points[0][1] for seed, points in one.items()} for one in curves]
    return _Sample(values[0], values[1], f" at L0 {means[0]:.3g} and {means[1]:.3g}")


def _over_common_range(
    matched: Quantity, a: _Family, b: _Family, curves: list[dict[int, Points]]
) -> _Sample:
    every = [points for found in curves for points in found.values()]
    low = max(points[0][0] for points in every)
    high = min(points[-1][0] for points in every)
    if low > high:
        ranges = [
            f"{family.name} from {_plain(matched, min(p[0][0] for p in found.values()))} to "
            f"{_plain(matched, max(p[-1][0] for p in found.values()))}"
            for family, found in zip((a, b), curves, strict=True)
        ]
        raise _Incomparable(
            f"No {matched.text} is covered by every seed of both: {ranges[0]}, {ranges[1]}."
        )
    grid = np.linspace(low, high, GRID_POINTS).tolist()
    values = [
        {
            seed: float(np.mean([_interpolated(points, x) for x in grid]))
            for seed, points in found.items()
        }
        for found in curves
    ]
    span = f" at {matched.text} {_plain(matched, low)} to {_plain(matched, high)}"
    return _Sample(values[0], values[1], span)


def _curves(claim: Claim, matched: Quantity, family: _Family) -> dict[int, Points]:
    """For each seed the points of its curve; equal places are averaged."""
    found: dict[int, dict[float, list[float]]] = defaultdict(lambda: defaultdict(list))
    for cell in family.cells:
        x, y = cell.values.get(matched.name), cell.values.get(claim.quantity)
        if x is None or y is None:
            continue
        if matched is L0:
            if x <= 0:
                continue
            x = math.log(x)
        found[cell.seed][x].append(_scaled(claim, y))
    if not found:
        raise _Incomparable(
            f"No SAE of {family.name} has both {matched.text} above 0 and {claim.measured.text}."
        )
    return {
        seed: [(x, float(np.mean(ys))) for x, ys in sorted(points.items())]
        for seed, points in found.items()
    }


def _at(points: Points, x: float, family: _Family, matched: Quantity) -> float:
    if not points[0][0] <= x <= points[-1][0]:
        raise _Incomparable(
            f"{matched.text[0].upper() + matched.text[1:]} {_plain(matched, x)} lies outside what "
            f"{family.name} covers, {_plain(matched, points[0][0])} to "
            f"{_plain(matched, points[-1][0])}."
        )
    return _interpolated(points, x)


def _interpolated(points: Points, x: float) -> float:
    """Linear between neighbours; ``x`` lies in their range."""
    return float(np.interp(x, [at for at, _ in points], [y for _, y in points]))


def _scaled(claim: Claim, value: float) -> float:
    if not claim.relative:
        return value
    if value <= 0:
        raise _Incomparable(
            f"A relative difference needs values above 0; the {claim.measured.text} is {value:.3g}."
        )
    return math.log(value)


def _plain(matched: Quantity, x: float) -> str:
    return f"{math.exp(x) if matched is L0 else x:.3g}"


def _check_close(a: _Family, b: _Family, name: str, text: str, tolerance: float) -> None:
    first, second = _mean(a, name), _mean(b, name)
    assert first is not None
    assert second is not None
    if max(first, second) > (1 + tolerance) * min(first, second):
        raise _Incomparable(
            f"{a.name} costs {first:.3g} {text}, and {b.name}, the nearest there is, {second:.3g}: "
            f"more than {tolerance:.0%} apart."
        )


def _mean_by_seed(family: _Family, name: str) -> dict[int, float]:
    found: dict[int, list[float]] = defaultdict(list)
    for cell in family.cells:
        if name in cell.values:
            found[cell.seed].append(cell.values[name])
    return {seed: float(np.mean(values)) for seed, values in found.items()}


def _mean(family: _Family, name: str) -> float | None:
    found = [cell.values[name] for cell in family.cells if name in cell.values]
    return float(np.mean(found)) if found else None


def _missing(selector: Selector, cells: Sequence[Cell]) -> str:
    stopped = sum(cell.matches(selector) for cell in cells if cell.status != "complete")
    if stopped:
        return f"Training of all {stopped} SAEs of {selector} stopped early."
    return f"The experiment has no SAE of {selector}."


def _row(claim: Claim, site: str, a: str, b: str) -> ClaimRow:
    return ClaimRow(
        claim=claim.name,
        statement=claim.statement,
        verdict="no data",
        place=site,
        a=a,
        b=b,
        quantity=claim.quantity,
        direction=claim.direction,
        is_relative=claim.relative,
        least=claim.least,
        effect=None,
        low=None,
        high=None,
        value_a=None,
        value_b=None,
        l0_a=None,
        l0_b=None,
        n=0,
        comparison="none",
        reason="",
    )


def _absent(claim: Claim, reason: str) -> ClaimRow:
    b = f"{claim.against:g}" if claim.b is None else str(claim.b)
    return _row(claim, "", str(claim.a), b)._replace(reason=reason)
