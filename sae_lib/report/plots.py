"""Plots of results: functions from data frames to altair charts.

Each takes the rows of a view or table (see `sae_lib.warehouse`) and computes nothing but where to
put them. Where a frame has no row with a value, the chart is None, and the caller says why.
"""

import math
from collections.abc import Sequence
from typing import Any

import altair as alt
import polars as pl

from sae_lib.report.theme import DASHES, GUIDE, PALETTE, SHAPES

WIDTH, HEIGHT = 320, 240

LOSSES = {
    "fvu": "Fraction of variance unexplained",
    "delta_lm_loss": "Loss added by the SAE (nats per token)",
}
CURVES = {
    "fvu": "Fraction of variance unexplained (batch)",
    "loss": "Training loss",
    "reconstruction": "Reconstruction term of the loss",
    "l0": "Latents on per token",
    "dead_share": "Share of latents that are dead",
    "grad_norm": "Norm of the gradient, before clipping",
    "lr": "Learning rate",
    "tokens_per_second": "Tokens per second",
}
"""Titles of axes; other numbers have their own name."""

HEADINGS = {
    "fvu": "Unexplained variance",
    "loss": "Loss",
    "reconstruction": "Reconstruction",
    "l0": "Latents on",
    "dead_share": "Dead latents",
    "grad_norm": "Gradient norm",
    "lr": "Learning rate",
    "tokens_per_second": "Speed",
}
SCORES = {
    "overall": "Overall (harmonic mean)",
    "concept_score": "Concept score",
    "fluency": "Fluency",
}
MOST_NAMED = 8
"""SAEs of one site with a colour each; where there are more, seeds of one family share one."""

SHORT_LABEL = 26
"""Longest label of which two stand side by side in a legend."""

SILENT = -9.5
"""log10 densities below this are those of latents that never fire."""


def frontier(
    points: pl.DataFrame, loss: str = "fvu", *, boundary: pl.DataFrame | None = None
) -> Any:
    """L0 against a loss: a point per SAE, a line through the best of each kind and width.

    Args:
        points: Rows of the view ``frontier``; several sites become a row of panels.
        loss: Column with the loss; ``LOSS_stderr`` gives bars of one standard error.
        boundary: Reference points (site, definition, l0, value) in the unit of ``loss``: principal
            components become a dashed line, the mean predictor a level.
    """
    points = points.filter(pl.col(loss).is_not_null(), pl.col("l0") > 0)
    if points.is_empty():
        return None
    stderr = f"{loss}_stderr"
    points = points.with_columns(
        family=family_name(),
        low=pl.col(loss) - pl.col(stderr),
        high=pl.col(loss) + pl.col(stderr),
        about=pl.format("{}: L0 {}, {} {}", "variant", short("l0"), pl.lit(loss), short(loss)),
    )
    values = points[loss].to_list()
    reference = None
    if boundary is not None:
        reference = boundary.filter(pl.col("value").is_not_null(), pl.col("value") > 0)
        near = (pl.col("l0") <= 4 * points["l0"].max()) & (pl.col("l0") >= points["l0"].min() / 4)  # type: ignore[operator]
        reference = reference.filter(near | (pl.col("definition") == "mean_predictor"))
        values += reference["value"].to_list()
    is_log = min(values) > 0 and max(values) > 5 * min(values)
    x = alt.X("l0:Q", title="Latents on per token (L0)").scale(type="log", nice=False, padding=12)
    y = alt.Y(f"{loss}:Q", title=LOSSES.get(loss, loss))
    y = y.scale(type="log", nice=False, padding=14) if is_log else y.scale(zero=False, padding=8)
    y = y.axis(tickCount=5, format="~g" if is_log else "~r")
    families = points["family"].unique().sort().to_list()
    colour, shape = _colour_and_shape("family", families)
    line = alt.Chart().mark_line(strokeWidth=1.5, opacity=0.7)
    line = line.transform_filter("datum.is_on_line").encode(x, y, colour)
    bars = alt.Chart().mark_rule(opacity=0.6).transform_filter("datum.low != null")
    bars = bars.encode(x, alt.Y("low:Q", title=LOSSES.get(loss, loss)), alt.Y2("high:Q"), colour)
    dots = alt.Chart().mark_point(size=60, filled=True, opacity=0.95)
    dots = dots.encode(
        x,
        y,
        colour,
        shape,
        description="about:N",
    )
    is_on_line = "is_pareto" if loss == "fvu" else "is_pareto_in_loss"
    points = points.with_columns(is_on_line=pl.col(is_on_line))
    layers = [line, bars, dots]
    if reference is not None and not reference.is_empty():
        points, layers = _with_reference(points, reference, x, loss, layers)
    chart = alt.layer(*layers, data=points).properties(width=WIDTH, height=HEIGHT)
    if points["site"].n_unique() == 1:
        return chart
    return chart.facet(alt.Facet("site:N", title=None), columns=2)


def _with_reference(
    points: pl.DataFrame, reference: pl.DataFrame, x: Any, loss: str, layers: list[Any]
) -> tuple[pl.DataFrame, list[Any]]:
    """``points`` with reference rows below them, and the layers that draw those."""
    place = pl.int_range(pl.len()).over("site", "definition", order_by="l0")
    rows = reference.select(
        "site",
        "definition",
        pl.col("l0").cast(pl.Float64),
        pl.col("value").alias(loss),
        is_named=place == pl.min_horizontal(1, pl.len().over("site", "definition") - 1),
    )
    y = alt.Y(f"{loss}:Q", title=LOSSES.get(loss, loss))
    pca = alt.Chart().transform_filter("datum.definition == 'pca_in_sample'")
    level = alt.Chart().transform_filter("datum.definition == 'mean_predictor'")
    drawn = [
        pca.mark_line(strokeDash=[4, 3], color=GUIDE).encode(x, y),
        pca.transform_filter("datum.is_named")
        .mark_text(align="left", dx=6, dy=-6, color=GUIDE)
        .encode(x, y, text=alt.value("principal components")),
        level.mark_rule(strokeDash=[1, 3], color=GUIDE).encode(y),
        level.mark_text(align="right", dx=-4, dy=9, color=GUIDE).encode(
            y, x=alt.value(WIDTH), text=alt.value("mean predictor")
        ),
    ]
    own = [layer.transform_filter("datum.definition == null") for layer in layers]
    return pl.concat([points, rows], how="diagonal"), [*drawn, *own]


def training_curves(curves: pl.DataFrame, name: str, *, max_points: int = 40) -> Any:
    """One number over the tokens seen, a line per variant; at most ``max_points`` of each line."""
    curves = curves.filter(pl.col("name") == name, pl.col("value").is_not_null())
    if curves.is_empty():
        return None
    place = pl.int_range(pl.len()).over("site", "variant", order_by="step")
    count = pl.len().over("site", "variant")
    stride = (count / max_points).ceil().cast(pl.Int64)
    curves = curves.filter((place % stride == 0) | (place == count - 1))
    curves = _named(curves)
    value = curves["value"]
    is_log = name != "dead_share" and value.min() > 0 and value.max() > 20 * value.min()  # type: ignore[operator]
    y = alt.Y("value:Q", title=CURVES.get(name, name))
    y = y.scale(type="log") if is_log else y.scale(zero=name == "dead_share")
    y = y.axis(tickCount=5, format="~g" if is_log else "~r")
    chart = (
        alt.Chart(curves.select("site", "variant", "line", "tokens", "value"))
        .mark_line(strokeWidth=1.5)
        .encode(
            alt.X("tokens:Q", title="Tokens seen").axis(format="~s", tickCount=5),
            y,
            *_lines(curves),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
    return _by_site(chart, curves)


def curve_names(curves: pl.DataFrame) -> list[str]:
    """Every number that was recorded: those with a heading first, then the others by name."""
    found = set(curves.filter(pl.col("value").is_not_null())["name"])
    return [name for name in HEADINGS if name in found] + sorted(found - HEADINGS.keys())


def density_histogram(bins: pl.DataFrame) -> Any:
    """Share of latents by log10 of their density, an outline per variant.

    ``bins`` has site, variant, low, high and value; empty bins may be missing, and bins of latents
    that never fire are left out.
    """
    bins = bins.filter(pl.col("value").is_not_null(), pl.col("low") > SILENT)
    if bins.is_empty():
        return None
    width = (bins["high"] - bins["low"]).min()
    assert isinstance(width, float)
    first, last = bins["low"].min(), bins["high"].max()
    assert isinstance(first, float)
    assert isinstance(last, float)
    edges = pl.DataFrame({"place": range(-1, round((last - first) / width) + 1)}).with_columns(
        low=first + pl.col("place") * width
    )
    placed = bins.with_columns(place=((pl.col("low") - first) / width).round().cast(pl.Int64))
    outline = (
        bins.select("site", "variant")
        .unique(maintain_order=True)
        .join(edges, how="cross")
        .join(placed.drop("low", "high"), on=["site", "variant", "place"], how="left")
        .with_columns(pl.col("value").fill_null(0.0))
    )
    outline = _named(outline)
    chart = (
        alt.Chart(outline.select("site", "variant", "line", "low", "value"))
        .mark_line(interpolate="step-after", strokeWidth=1.5)
        .encode(
            alt.X("low:Q", title="log10 of the share of tokens a latent fires on").axis(
                tickCount=6, format="~g"
            ),
            alt.Y("value:Q", title="Share of latents").axis(format="~%", tickCount=5),
            *_lines(outline),
        )
        .properties(width=WIDTH, height=HEIGHT)
    )
    return _by_site(chart, outline)


def steering_sweep(rows: pl.DataFrame, name: str) -> Any:
    """One score over the strength, a line per method (label), with bars of one standard error.

    ``rows`` has label, name, strength, value and stderr.
    """
    return _sweep(
        rows.filter(pl.col("name") == name),
        alt.X("strength:Q", title="Strength (share of the mean activation norm)"),
        SCORES.get(name, name),
    )


def selection_coverage(rows: pl.DataFrame) -> Any:
    """Share of latents covered over the number of chosen documents, a line per selector (label)."""
    x = alt.X("strength:Q", title="Documents chosen").scale(type="log", nice=False, padding=8)
    return _sweep(rows.rename({"n": "strength"}), x, "Share of latents covered", domain=(0.0, 1.0))


def probe_bars(rows: pl.DataFrame, *, title: str = "Accuracy on test texts") -> Any:
    """A bar per method (label), best first, with one standard error; ``is_sae`` sets the colour."""
    rows = rows.filter(pl.col("value").is_not_null())
    if rows.is_empty():
        return None
    rows = rows.with_columns(
        low=pl.col("value") - pl.col("stderr"),
        high=pl.col("value") + pl.col("stderr"),
        group=pl.when("is_sae").then(pl.lit("SAE")).otherwise(pl.lit("baseline or control")),
        about=pl.format("{}: {}", "label", short("value")),
    )
    order = rows.sort("value", descending=True)["label"].to_list()
    y = alt.Y("label:N", title=None, sort=order).axis(labelLimit=230)
    base = alt.Chart(rows)
    bars = base.mark_bar(height={"band": 0.7}).encode(
        alt.X("value:Q", title=title).scale(domain=[0, 1]),
        y,
        alt.Color("group:N", title=None).scale(domain=["SAE", "baseline or control"]),
        description="about:N",
    )
    errors = base.mark_rule(strokeWidth=1.5, color=GUIDE).transform_filter("datum.low != null")
    errors = errors.encode(alt.X("low:Q", title=title), alt.X2("high:Q"), y)
    return (bars + errors).properties(width=WIDTH - 80, height={"step": 20})


def _sweep(rows: pl.DataFrame, x: Any, title: str, *, domain: Sequence[float] = ()) -> Any:
    rows = rows.filter(pl.col("value").is_not_null())
    if rows.is_empty():
        return None
    rows = rows.with_columns(
        low=pl.col("value") - pl.col("stderr"),
        high=pl.col("value") + pl.col("stderr"),
        about=pl.format("{}: {} at {}", "label", short("value"), short("strength")),
    )
    scale = alt.Scale(domain=domain) if domain else alt.Scale(zero=False, padding=8)
    y = alt.Y("value:Q", title=title, scale=scale).axis(tickCount=5)
    labels = rows["label"].unique().sort().to_list()
    colour, shape = _colour_and_shape("label", labels)
    base = alt.Chart(rows)
    lines = base.mark_line(strokeWidth=1.5, opacity=0.7).encode(x, y, colour)
    bars = base.mark_rule(opacity=0.6).transform_filter("datum.low != null")
    bars = bars.encode(x, alt.Y("low:Q", title=title), alt.Y2("high:Q"), colour)
    dots = base.mark_point(size=45, filled=True).encode(
        x,
        y,
        colour,
        shape,
        description="about:N",
    )
    return (lines + bars + dots).properties(width=WIDTH, height=HEIGHT)


def _colour_and_shape(field: str, names: Sequence[str]) -> tuple[Any, Any]:
    """Encodings with explicit scales, without which layers would split the legend in two."""
    places = range(len(names))
    colours = alt.Scale(domain=names, range=[PALETTE[i % len(PALETTE)] for i in places])
    shapes = alt.Scale(domain=names, range=[SHAPES[i % len(SHAPES)] for i in places])
    legend = _legend(names)
    return (
        alt.Color(f"{field}:N", title=None, scale=colours, legend=legend),
        alt.Shape(f"{field}:N", title=None, scale=shapes, legend=legend),
    )


def _named(rows: pl.DataFrame) -> pl.DataFrame:
    """``rows`` with the name of the line that each belongs to: its SAE, or the SAE's family."""
    own = pl.col("variant")
    if rows["variant"].n_unique() > MOST_NAMED:
        own = own.str.replace(r"-s\d+$", "")
    return rows.with_columns(line=own)


def _lines(rows: pl.DataFrame) -> tuple[Any, ...]:
    """A colour per name, dashed where colours come around again, and a line per SAE."""
    names = rows["line"].unique().sort().to_list()
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(names))]
    dashes = [DASHES[i // len(PALETTE) % len(DASHES)] for i in range(len(names))]
    legend = _legend(names)
    colour = alt.Color(
        "line:N", title=None, scale=alt.Scale(domain=names, range=colours), legend=legend
    )
    if len(names) <= len(PALETTE):
        return colour, alt.Detail("variant:N")
    dash = alt.StrokeDash(
        "line:N", title=None, scale=alt.Scale(domain=names, range=dashes), legend=legend
    )
    return colour, dash, alt.Detail("variant:N")


def _legend(names: Sequence[str]) -> Any:
    """Long names one below the other: a legend must not be wider than its picture."""
    if max(map(len, names), default=0) <= SHORT_LABEL:
        return alt.Legend(columns=2)
    return alt.Legend(columns=1, labelLimit=WIDTH)


def family_name() -> pl.Expr:
    """Architecture and width, and the training strategy where it is not the plain one."""
    objective = pl.col("objective").fill_null("plain")
    extra = pl.when(objective == "plain").then(pl.lit("")).otherwise(pl.format(", {}", objective))
    return pl.format("{} {}{}", "kind", "d_sae", extra)


def _by_site(chart: Any, rows: pl.DataFrame) -> Any:
    if rows["site"].n_unique() == 1:
        return chart
    return chart.facet(alt.Facet("site:N", title=None), columns=2)


def short(column: str) -> pl.Expr:
    """A number as readers like it: four significant digits."""

    def text(value: float) -> str:
        if value == 0 or not math.isfinite(value):
            return str(value)
        return f"{value:.4g}"

    return pl.col(column).cast(pl.Float64).map_elements(text, return_dtype=pl.String)
