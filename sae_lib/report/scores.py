"""The section about scores: what functional metrics find, beside floors and ceilings.

Only the headline of each metric is drawn, its first score. Where an SAE has it at several settings
of a dial (k latents, n latents, ...), it is a line over the dial.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import altair as alt
import polars as pl
from markupsafe import Markup
from scipy.special import stdtrit

from sae_lib.report.plots import HEIGHT, SHORT_LABEL, WIDTH, short
from sae_lib.report.theme import GUIDE, PALETTE, described, to_svg
from sae_lib.report.variants import CONFIDENCE, LABEL_WIDTH

MAX_PANELS = 60
"""Panels on a page; the table has the scores of all sites."""

MAX_FAMILIES = 12
MAX_LINES = len(PALETTE)
MAX_SETTINGS = 4
"""Settings with a panel each, where they have no order or are too few for a line."""

APART = 0.008
"""Share of the axis between lines next to each other."""

MAX_NAME = 24
"""Letters of a name beside a picture."""

MAX_ROWS = 2000
"""Rows of the table; where there are more, it has the best SAEs at each setting."""

NORMAL = 1.96
FLOOR = "M0,-1L0,1"
"""A plain tick."""

CEILING = "M0,-1L0,1M-0.5,-1L0.5,-1M-0.5,1L0.5,1"
"""A tick with a bar at both ends."""

_DIRECTIONS = {"higher": "higher is better →", "lower": "← lower is better"}


class Panel(NamedTuple):
    """A picture of one score at one site."""

    site: str
    title: str
    note: str
    """What was scored, what floor and ceiling are, how many families are left out."""

    svg: Markup


class _Chart(NamedTuple):
    title: str
    note: str
    chart: Any
    is_tall: bool
    """Tall ones come last, so that those side by side are of one height."""


class Scores(NamedTuple):
    """What the page shows of the scores."""

    panels: list[Panel]
    num_left_out: int
    """Panels that would have been too many."""

    table: list[dict[str, Any]]
    """Rows of single SAEs that have a value."""

    num_best: int | None
    """SAEs at each setting that ``table`` is restricted to, the best; None where it has all."""

    num_values: int
    """Rows that ``table`` would have without restriction."""

    without_value: list[dict[str, Any]]
    """Metric, name, definition, reason, num_saes and the first three saes of what has none."""


def scores(answers: dict[str, pl.DataFrame]) -> Scores:
    """Pictures of the answer to ``scores_over_seeds``, reasons from that to ``scores``."""
    rows = with_intervals(answers["scores_over_seeds"])
    drawn: list[Panel] = []
    num_left_out = 0
    for site in rows["site"].unique().sort().to_list():
        charts = sorted(_charts(rows.filter(site=site)), key=lambda one: one.is_tall)
        for title, note, chart, _ in charts:
            if len(drawn) == MAX_PANELS:
                num_left_out += 1
                continue
            svg = to_svg(chart, theme="inherit", prefix=f"scores{len(drawn)}-")
            drawn.append(Panel(site, title, note, Markup(described(svg, f"{site}: {title}"))))
    found = answers["scores"]
    valued = found.filter(pl.col("value").is_not_null())
    settings = ("site", "metric", "dial")
    num_best = None
    table = valued
    if len(valued) > MAX_ROWS:
        num_best = max(1, MAX_ROWS // valued.select(settings).n_unique())
        table = valued.filter(pl.int_range(pl.len()).over(settings) < num_best)
    rest = _without_value(found)
    return Scores(drawn, num_left_out, table.to_dicts(), num_best, len(valued), rest)


def with_intervals(rows: pl.DataFrame) -> pl.DataFrame:
    """``rows`` with ``half``: value +- half is a 95 % interval, NULL without a standard error.

    By Student's t over seeds where there are several, else 1.96 standard errors.
    """
    spread = rows["num_seeds"].cast(pl.Float64) - 1
    student = pl.Series(stdtrit(spread.clip(lower_bound=1).to_numpy(), (1 + CONFIDENCE) / 2))
    factor = pl.when(pl.col("num_seeds") > 1).then(student).otherwise(NORMAL)
    return rows.with_columns(half=pl.col("stderr") * factor)


def forest(rows: pl.DataFrame) -> Any:
    """A row per family in their order: point, 95 % interval, floor and ceiling.

    Intervals that are far wider than what they are compared with end at the edge.

    Args:
        rows: What `with_intervals` returns, of one score at one site and setting.
    """
    title = [_words(rows["name"][0]), *_direction(rows["better"][0])]
    low, high = _domain(rows)

    def along(column: str) -> Any:  # every layer says it: where one is silent, 0 is on the axis
        x = alt.X(f"{column}:Q", title=title).scale(domain=[low, high], nice=False)
        return x.axis(
            tickCount=4, titleAnchor="end", format="~g", labelOverlap=True, labelSeparation=5
        )

    names = _names(rows)
    rows = rows.select(
        "value",
        "floor",
        "ceiling",
        name=pl.col("family").replace_strict(names),
        low=(pl.col("value") - pl.col("half")).clip(low, high),
        high=(pl.col("value") + pl.col("half")).clip(low, high),
        about=pl.format("{}: {}", "family", short("value")),
        about_floor=pl.format("floor ({}): {}", "floor_is", short("floor")),
        about_ceiling=pl.format("ceiling ({}): {}", "ceiling_is", short("ceiling")),
    )
    y = alt.Y("name:N", title=None, sort=rows["name"].to_list())
    y = y.axis(labelLimit=LABEL_WIDTH, labelFontSize=11, grid=True)
    base = alt.Chart(rows)
    layers = [
        base.transform_filter(f"datum.{bound} != null")
        .mark_point(shape=shape, size=130, filled=False, stroke=GUIDE, strokeWidth=2, opacity=1)
        .encode(along(bound), y, description=f"about_{bound}:N")
        for bound, shape in (("floor", FLOOR), ("ceiling", CEILING))
    ]
    bars = base.transform_filter("datum.low != null")
    bars = bars.mark_rule(strokeWidth=1.5, color=PALETTE[0])
    dots = base.mark_point(size=45, filled=True, color=PALETTE[0], opacity=1)
    layers.append(bars.encode(along("low"), alt.X2("high:Q"), y))
    layers.append(dots.encode(along("value"), y, description="about:N"))
    return alt.layer(*layers).properties(width=WIDTH - LABEL_WIDTH, height={"step": 18})


def lines(rows: pl.DataFrame) -> Any:
    """A line per family over the dial, its floor dotted in the same colour, ceilings dashed.

    Args:
        rows: What `with_intervals` returns, of one score at one site, with the columns turned,
            name of the dial, and setting, a number.
    """
    title = [_words(rows["name"][0]), *_direction(rows["better"][0])]
    low, high = _domain(rows)
    dial = rows["turned"][0]
    names = _names(rows)
    settings = rows["setting"].unique().sort().to_list()
    is_log = settings[0] > 0 and settings[-1] > 10 * settings[0]
    # lines stand a little apart, so that their bars do
    place = {family: i - (len(names) - 1) / 2 for i, family in enumerate(names)}
    apart = APART * pl.col("family").replace_strict(place, return_dtype=pl.Float64)
    if is_log:
        at = pl.col("setting") * (apart * math.log(settings[-1] / settings[0])).exp()
    else:
        at = pl.col("setting") + apart * (settings[-1] - settings[0])
    rows = rows.select(
        "value",
        "floor",
        "ceiling",
        line=pl.col("family").replace_strict(names),
        setting="setting",
        at=at,
        low=(pl.col("value") - pl.col("half")).clip(low, high),
        high=(pl.col("value") + pl.col("half")).clip(low, high),
        about=pl.format("{}, {}: {}", "family", "dial", short("value")),
    ).sort("setting")
    kind = "log" if is_log else "linear"

    def along(column: str) -> Any:
        x = alt.X(f"{column}:Q", title=dial)
        x = x.scale(type=kind, zero=False, nice=False, padding=10)
        return x.axis(values=settings, format="~g", labelOverlap=True, grid=False)

    x = along("at")

    def up(column: str) -> Any:
        y = alt.Y(f"{column}:Q", title=title).scale(domain=[low, high], nice=False)
        return y.axis(tickCount=5, format="~g")

    shown = list(names.values())
    columns = 2 if max(map(len, shown)) <= SHORT_LABEL else 1
    colour = alt.Color(
        "line:N",
        title=None,
        scale=alt.Scale(domain=shown, range=list(PALETTE[: len(shown)])),
        legend=alt.Legend(columns=columns, labelLimit=WIDTH, symbolType="stroke", symbolOpacity=1),
    )
    base = alt.Chart(rows)
    floors = base.transform_filter("datum.floor != null")
    floors = floors.mark_line(strokeWidth=1.2, strokeDash=[1, 3], opacity=0.9)
    ceilings = base.transform_filter("datum.ceiling != null")
    ceilings = ceilings.mark_line(strokeWidth=1.5, strokeDash=[6, 4], color=GUIDE)
    bars = base.transform_filter("datum.low != null").mark_rule(strokeWidth=1, opacity=0.35)
    drawn = base.mark_line(strokeWidth=1.5)
    dots = base.mark_point(size=22, filled=True, opacity=1)
    layers = [
        ceilings.encode(along("setting"), up("ceiling"), alt.Detail("line:N")),
        floors.encode(x, up("floor"), colour),
        bars.encode(x, up("low"), alt.Y2("high:Q"), colour),
        drawn.encode(x, up("value"), colour),
        dots.encode(x, up("value"), colour, description="about:N"),
    ]
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def _names(rows: pl.DataFrame) -> dict[str, str]:
    """What families are called beside a picture, with how many seeds they are the mean of."""
    families = rows.group_by("family", maintain_order=True).agg(pl.col("num_seeds").max())
    called = shortened(families["family"].to_list())
    return {
        family: f"{name} ×{num}" if num > 1 else name
        for (family, num), name in zip(families.iter_rows(), called, strict=True)
    }


def shortened(names: Sequence[str]) -> list[str]:
    """``names`` without the middle of long ones, unless two would look alike."""
    cut = [
        name
        if len(name) <= MAX_NAME
        else f"{name[: MAX_NAME // 2]}…{name[len(name) - MAX_NAME // 2 + 1 :]}"
        for name in names
    ]
    return [
        short_name if cut.count(short_name) == 1 else name
        for name, short_name in zip(names, cut, strict=True)
    ]


def _charts(rows: pl.DataFrame) -> Iterator[_Chart]:
    """Every panel of a site, metric by metric."""
    for (metric,), of_metric in rows.group_by("metric", maintain_order=True):
        title = _words(str(metric))
        settings = of_metric["dial"].unique(maintain_order=True).to_list()
        turned, numbers = _turned(settings)
        if len(numbers) > 2:
            best, left_out = _best(of_metric, MAX_LINES)
            best = best.with_columns(
                turned=pl.lit(turned),
                setting=pl.col("dial").replace_strict(numbers, return_dtype=pl.Float64),
            )
            yield _Chart(f"{title}, by {turned}", _note(best, left_out), lines(best), True)
            continue
        for setting in settings[:MAX_SETTINGS]:
            best, left_out = _best(of_metric.filter(dial=setting), MAX_FAMILIES)
            note = _note(best, left_out, max(0, len(settings) - MAX_SETTINGS))
            heading = f"{title}, {setting}" if len(settings) > 1 else title
            yield _Chart(heading, note, forest(best), False)


def _turned(dials: Sequence[str]) -> tuple[str, dict[str, float]]:
    """The one setting that differs between ``dials``, and its number in each of them.

    No number where none or several differ, or where it is not a number: ``k=5, method=a`` and
    ``k=10, method=a`` differ in k alone.
    """
    said = []
    for dial in dials:
        parts = (part.partition("=") for part in dial.split(", "))
        said.append({name: value for name, _, value in parts})
    differ = [name for name in said[0] if len({one.get(name) for one in said}) > 1]
    if len(differ) != 1 or any(one.keys() != said[0].keys() for one in said):
        return "", {}
    try:
        return differ[0], {d: float(one[differ[0]]) for d, one in zip(dials, said, strict=True)}
    except ValueError:
        return "", {}


def _best(rows: pl.DataFrame, most: int) -> tuple[pl.DataFrame, int]:
    """Rows of the best families by their mean over settings, and how many others there are."""
    is_lower = rows["better"][0] == "lower"
    ranked = rows.group_by("family", maintain_order=True).agg(pl.col("value").mean())
    ranked = ranked.sort("value", descending=not is_lower, maintain_order=True)["family"]
    place = {family: i for i, family in enumerate(ranked)}
    kept = rows.filter(pl.col("family").is_in(ranked.head(most).to_list()))
    kept = kept.sort(pl.col("family").replace_strict(place, return_dtype=pl.Int64))
    return kept, max(0, len(ranked) - most)


def _note(rows: pl.DataFrame, families_left_out: int, settings_left_out: int = 0) -> str:
    parts = [str(rows["definition"][0])]
    for bound in ("floor", "ceiling"):
        named = rows[f"{bound}_is"].drop_nulls().str.split(", ").explode().unique().sort()
        if len(named):
            parts.append(f"{bound}: {' or '.join(map(_words, named))}")
    if families_left_out:
        shown = rows["family"].n_unique()
        which = "highest" if rows["better"][0] == "neither" else "best"
        parts.append(f"the {which} {shown} of {shown + families_left_out}")
    if settings_left_out:
        parts.append(f"{settings_left_out} more settings in the table")
    return "; ".join(parts)


def _domain(rows: pl.DataFrame) -> tuple[float, float]:
    """Ends of the axis, between which all points, floors, ceilings and intervals over samples lie.

    Intervals over two or three seeds may be many times as long: of these half as much again.
    """
    half = pl.when(pl.col("num_seeds") <= 1).then("half").otherwise(0.0).fill_null(0.0)
    value = pl.col("value")
    ends = rows.select(
        low=pl.min_horizontal(value - half, "floor", "ceiling"),
        high=pl.max_horizontal(value + half, "floor", "ceiling"),
        lowest=value - pl.col("half"),
        highest=value + pl.col("half"),
    )
    low, high = min(ends["low"]), max(ends["high"])
    span = (high - low) or abs(high) / 5 or 1.0
    left = max(min([low, *ends["lowest"].drop_nulls()]), low - span / 2)
    right = min(max([high, *ends["highest"].drop_nulls()]), high + span / 2)
    pad = (right - left or span) / 20
    return left - pad, right + pad


def _without_value(rows: pl.DataFrame) -> list[dict[str, Any]]:
    missing = rows.filter(pl.col("value").is_null())
    place = pl.format("{} / {}", "site", "variant")
    return (
        missing.group_by("metric", "name", "definition", "reason", maintain_order=True)
        .agg(num_saes=place.n_unique(), saes=place.unique(maintain_order=True).head(3))
        .to_dicts()
    )


def _direction(better: str) -> list[str]:
    return [_DIRECTIONS[better]] if better in _DIRECTIONS else []


def _words(name: str) -> str:
    return name.replace("_", " ")
