"""What a study over variants shows: families of SAEs with intervals over seeds, groups of layers.

A family is what the view ``variants`` has a row for: SAEs that differ in their seed alone.
"""

import json
import re
from typing import Any, NamedTuple

import altair as alt
import polars as pl
from scipy.special import stdtrit

from sae_lib.report.plots import HEIGHT, WIDTH, short
from sae_lib.report.theme import GUIDE, PALETTE, SHAPES

CONFIDENCE = 0.95

LABEL_WIDTH = 150
"""Pixels for names beside a picture."""

AXES = {
    "fvu": "Fraction of variance unexplained",
    "loss_recovered": "Loss recovered (against zero ablation)",
}

RECOVERY = {
    "concept_coverage": "concept coverage",
    "mmcs": "MMCS",
    "recovered_share": "directions found",
}
"""Columns of what is known to be true, which only some experiments measure."""


def are_compared(families: pl.DataFrame) -> bool:
    """Whether there is more than one architecture or training strategy to tell apart."""
    return max(families["kind"].n_unique(), families["objective"].n_unique()) > 1


def with_intervals(families: pl.DataFrame) -> pl.DataFrame:
    """Rows of the view ``variants``, numbered by site, with X_half for each X_stderr.

    mean +- X_half is a 95 % interval over seeds by Student's t with num_seeds - 1 degrees of
    freedom; NULL where there is no standard error.
    """
    spread = families["num_seeds"].cast(pl.Float64) - 1
    factor = pl.Series(stdtrit(spread.clip(lower_bound=1).to_numpy(), (1 + CONFIDENCE) / 2))
    errors = [name for name in families.columns if name.endswith("_stderr")]
    halves = [
        (pl.col(name) * factor).alias(f"{name.removesuffix('_stderr')}_half") for name in errors
    ]
    number = pl.int_range(1, pl.len() + 1).over("site")
    return families.with_columns(pl.col("objective").fill_null("plain"), *halves, number=number)


def families_at_l0(families: pl.DataFrame, value: str) -> Any:
    """``value`` over L0, a point with 95 % intervals per family; None where there is no value.

    Colour is the architecture (hollow from the ninth on), shape the training strategy. Points bear
    the number of their row.

    Args:
        families: What `with_intervals` returns, of one site.
        value: ``fvu`` or ``loss_recovered``.
    """
    rows = families.filter(pl.col(value).is_not_null(), pl.col("l0") > 0)
    if rows.is_empty():
        return None
    half, half_l0 = pl.col(f"{value}_half"), pl.col("l0_half")
    rows = rows.select(
        "kind",
        "objective",
        "number",
        "l0",
        value,
        low=pl.col(value) - half,
        high=pl.col(value) + half,
        # the axis is logarithmic, so what reaches 0 ends at half of the mean
        left=pl.max_horizontal(pl.col("l0") - half_l0, pl.col("l0") / 2),
        right=pl.col("l0") + half_l0,
        about=pl.format(
            "{} {}: L0 {}, {} {}",
            pl.lit("no.") + pl.col("number").cast(pl.String),
            "family",
            short("l0"),
            pl.lit(value.replace("_", " ")),
            short(value),
        ),
    )
    title = AXES[value]
    x = alt.X("l0:Q", title="Latents on per token (L0)")
    x = x.scale(type="log", nice=False, padding=16).axis(tickCount=5, format="~g")
    y = alt.Y(f"{value}:Q", title=title).scale(zero=False, padding=10).axis(tickCount=5)
    kinds = rows["kind"].unique().sort().to_list()
    objectives = rows["objective"].unique().sort().to_list()
    colours = [PALETTE[i % len(PALETTE)] for i in range(len(kinds))]
    fills = [c if i < len(PALETTE) else "transparent" for i, c in enumerate(colours)]
    stroke = alt.Stroke(
        "kind:N", title="architecture", scale=alt.Scale(domain=kinds, range=colours)
    )
    shapes = [SHAPES[i % len(SHAPES)] for i in range(len(objectives))]
    shape = alt.Shape(
        "objective:N", title="training", scale=alt.Scale(domain=objectives, range=shapes)
    )
    legend = alt.Legend(symbolStrokeColor=GUIDE, symbolFillColor="transparent", columns=1)
    shape = shape.legend(legend if len(objectives) > 1 else None)
    base = alt.Chart(rows)
    upright = base.transform_filter("datum.low != null").mark_rule(strokeWidth=1.5, opacity=0.7)
    upright = upright.encode(x, alt.Y("low:Q", title=title), alt.Y2("high:Q"), stroke)
    across = base.transform_filter("datum.right != null").mark_rule(strokeWidth=1.5, opacity=0.7)
    across = across.encode(alt.X("left:Q", title="Latents on per token (L0)"), y, stroke)
    across = across.encode(alt.X2("right:Q"))
    dots = base.mark_point(size=60, strokeWidth=2, filled=False).encode(
        x,
        y,
        stroke,
        shape,
        fill=alt.Fill("kind:N", title="architecture", scale=alt.Scale(domain=kinds, range=fills)),
        description="about:N",
    )
    numbers = base.mark_text(align="left", dx=8, dy=-7, fontSize=10).encode(x, y, text="number:N")
    layers = alt.layer(upright, across, dots, numbers)
    return layers.properties(width=WIDTH, height=HEIGHT)


def forest(families: pl.DataFrame, value: str) -> Any:
    """``value`` of every family with its 95 % interval, one below the other in their order.

    Names are short, numbers tell families of one architecture and training apart.
    """
    rows = families.filter(pl.col(value).is_not_null())
    if rows.is_empty():
        return None
    half = pl.col(f"{value}_half")
    plain = pl.col("objective") == "plain"
    trained = pl.when(plain).then(pl.lit("")).otherwise(pl.format(", {}", "objective"))
    rows = rows.select(
        value,
        name=pl.format("{}{}  {}", "kind", trained, "number"),
        low=pl.col(value) - half,
        high=pl.col(value) + half,
        about=pl.format("{}: {}", "family", short(value)),
    )
    y = alt.Y("name:N", title=None, sort=rows["name"].to_list())
    y = y.axis(labelLimit=LABEL_WIDTH, labelFontSize=11, grid=True)
    x = alt.X(f"{value}:Q", title=AXES[value]).scale(zero=False, padding=10).axis(tickCount=4)
    base = alt.Chart(rows)
    bars = base.transform_filter("datum.low != null").mark_rule(strokeWidth=1.5, color=GUIDE)
    bars = bars.encode(alt.X("low:Q", title=AXES[value]), alt.X2("high:Q"), y)
    dots = base.mark_point(size=45, filled=True).encode(x, y, description="about:N")
    return (bars + dots).properties(width=WIDTH - LABEL_WIDTH, height={"step": 18})


class Clustering(NamedTuple):
    """How the sites of layer groups were clustered, and how variants divide them."""

    sites: tuple[str, ...]

    found: Any
    """`sae_lib.activations.layer_groups.LayerGroups`, which loads torch."""

    divided: dict[str, tuple[tuple[str, ...], ...]]
    """Groups of sites that share an SAE, by family."""

    cuts: tuple[int, ...]
    """Numbers of groups that families left to the clustering, ascending; at least (1,)."""


def clusterings(answers: dict[str, pl.DataFrame]) -> list[Clustering]:
    """Every set of sites that an experiment clustered, the tree made again from its distances."""
    if answers["site_distances"].is_empty():
        return []
    # not at the top: it loads torch, which pages without layer groups do not need
    import numpy as np

    from sae_lib.activations.layer_groups import Distances, layer_groups

    made = []
    for (together,), distances in answers["site_distances"].group_by("sites", maintain_order=True):
        groups = answers["layer_groups"].filter(sites=together)
        alone = groups.filter(pl.col("num_groups") == pl.col("num_groups").max()).sort("group")
        sites = tuple(alone["member"])  # groups of one, in the order of the model
        matrix = np.zeros((len(sites), len(sites)))
        for row in distances.iter_rows(named=True):
            i, j = sites.index(row["site_a"]), sites.index(row["site_b"])
            matrix[i, j] = matrix[j, i] = row["distance"]
        found = layer_groups(Distances(sites, matrix, int(distances["num_tokens"][0]), True))
        divided, cuts = {}, {1}
        for family, asked in _asked_groups(answers["experiment"], sites).items():
            if isinstance(asked, int):
                divided[family] = found.of(asked).groups
                cuts.add(asked)
            else:
                divided[family] = tuple(tuple(group) for group in asked)
        shown = tuple(sorted(cuts - {1})) or (1,)
        made.append(Clustering(sites, found, divided, shown))
    return made


def _asked_groups(experiment: pl.DataFrame, sites: tuple[str, ...]) -> dict[str, Any]:
    """What layer-group families over exactly these sites say of their groups, by family."""
    asked = {}
    for text in experiment["config"]:
        for one in json.loads(text)["saes"]:
            objective = one["objective"]
            if objective["kind"] == "layer_group" and set(one["sites"]) == set(sites):
                asked[re.sub(r"-s\d+$", "", one["variant"])] = objective["groups"]
    return asked
