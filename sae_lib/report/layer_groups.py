"""Plots of groups of layers: which merge at what distance, and what each number of groups costs."""

from typing import Any

import altair as alt
import polars as pl
from scipy.cluster.hierarchy import dendrogram as coordinates

from sae_lib.activations.layer_groups import LayerGroups
from sae_lib.report.plots import HEIGHT, WIDTH
from sae_lib.report.theme import GUIDE, PALETTE

ROW = 18
"""Pixels per site."""


def dendrogram(found: LayerGroups, *, num_groups: int = 1) -> Any:
    """The merges as a tree that grows to the right, its leaves the sites; None for one site.

    A merge stands at the largest distance between two of its sites. Merges inside one of the
    ``num_groups`` groups have the group's colour, those above them that of guides. A dashed line
    shows where the tree is cut.
    """
    sites = found.distances.sites
    if len(sites) < 2:
        return None
    tree = coordinates(found.linkage, no_plot=True, labels=list(sites))
    leaves = tree["ivl"]
    group_of = {s: i for i, group in enumerate(found.of(num_groups).groups) for s in group}
    rows = []
    for merge, (ys, xs) in enumerate(zip(tree["icoord"], tree["dcoord"], strict=True)):
        # scipy puts leaf i at 5 + 10 i; a merge spans the leaves between its two arms
        below = {leaves[i] for i in range(len(leaves)) if min(ys) - 5 <= 5 + 10 * i <= max(ys) + 5}
        groups = {group_of[site] for site in below}
        group = f"group {groups.pop() + 1}" if len(groups) == 1 else "between groups"
        about = f"{group}: distance {max(xs):.4g}"
        for corner, (y, x) in enumerate(zip(ys, xs, strict=True)):
            rows.append((merge, corner, (y - 5) / 10, x, group, about))
    columns = ["merge", "corner", "y", "x", "group", "about"]
    names = [*(f"group {i + 1}" for i in range(num_groups)), "between groups"]
    colours = [*(PALETTE[i % len(PALETTE)] for i in range(num_groups)), GUIDE]
    domain = [-0.5, len(leaves) - 0.5]
    labels = " : ".join(f"datum.value == {i} ? '{site}'" for i, site in enumerate(leaves))
    y = alt.Y("y:Q", title=None, scale=alt.Scale(domain=domain, nice=False)).axis(
        values=list(range(len(leaves))), labelExpr=f"{labels} : ''", grid=False, labelLimit=230
    )
    title = "Angular distance" + (" of centred activations" if found.distances.centred else "")
    x = alt.X("x:Q", title=title).scale(zero=True, nice=True).axis(tickCount=5)
    lines = (
        alt.Chart(pl.DataFrame(rows, schema=columns, orient="row"))
        .mark_line(strokeWidth=1.5, interpolate="linear")
        .encode(
            x,
            y,
            alt.Color("group:N", title=None, scale=alt.Scale(domain=names, range=colours)),
            detail="merge:N",
            order="corner:Q",
            description="about:N",
        )
    )
    size = {"width": WIDTH, "height": ROW * len(leaves)}
    if not 1 < num_groups < len(sites):
        return lines.properties(**size)
    heights = found.linkage[:, 2]
    cut = (heights[len(sites) - num_groups - 1] + heights[len(sites) - num_groups]) / 2
    rule = alt.Chart(pl.DataFrame({"x": [float(cut)]}))
    rule = rule.mark_rule(strokeDash=[4, 3], color=GUIDE).encode(alt.X("x:Q", title=title))
    return alt.layer(lines, rule).properties(**size)


def amad_curve(found: LayerGroups) -> Any:
    """AMAD over the number of groups: what is lost as fewer SAEs serve more layers."""
    rows = pl.DataFrame(
        {
            "groups": list(range(1, len(found.groupings) + 1)),
            "amad": [grouping.amad for grouping in found.groupings],
            "about": [
                "; ".join(", ".join(group) for group in grouping.groups)
                for grouping in found.groupings
            ],
        }
    )
    base = alt.Chart(rows).encode(
        alt.X("groups:Q", title="Groups").axis(values=rows["groups"].to_list(), format="d"),
        alt.Y("amad:Q", title="Mean of the largest distance in a group (AMAD)"),
    )
    dots = base.mark_point(size=45, filled=True).encode(description="about:N")
    chart = base.mark_line(strokeWidth=1.5, opacity=0.7) + dots
    return chart.properties(width=WIDTH, height=HEIGHT)
