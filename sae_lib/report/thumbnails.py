"""Pictures small enough to stand inside a table or a page of metadata."""

from typing import Any

import altair as alt
import polars as pl

PANEL_WIDTH, PANEL_HEIGHT = 150, 90
"""Pixels; three panels side by side stay well under 30 KB as PNG."""


def small_curves(curves: pl.DataFrame) -> Any:
    """One panel per number over the tokens seen, each with a scale of its own.

    ``curves`` has the columns of the table ``curves`` for one SAE. Its ``name`` orders the panels.
    """
    panels = [
        alt.Chart(part.select("tokens", "value"), title=str(name))
        .mark_line(strokeWidth=1.5)
        .encode(
            alt.X("tokens:Q", title=None, axis=alt.Axis(format="~s", tickCount=3)),
            alt.Y("value:Q", title=None, axis=alt.Axis(tickCount=4)).scale(zero=False),
        )
        .properties(width=PANEL_WIDTH, height=PANEL_HEIGHT)
        for (name,), part in curves.group_by("name", maintain_order=True)
    ]
    return alt.hconcat(*panels)
