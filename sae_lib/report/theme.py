"""How plots look, and how they become files: no network, no browser.

Colours are those of Okabe and Ito that can be told apart by colour-blind readers on a light and on
a dark background (their yellow and black cannot); kinds differ in shape as well.
"""

import re
from html import escape
from typing import Any, Literal, NamedTuple

import altair as alt
import vl_convert

Theme = Literal["light", "dark", "inherit"]
"""``inherit``: no background, and text in the colour of the page around the picture."""

PALETTE = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#8C6BB1",
    "#8A8A8A",
)
DASHES = ((1, 0), (5, 3), (1, 3))
"""Patterns of lines, for the second and third time that a colour is used."""

SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down")
FONT = "Arial, Liberation Sans, Helvetica, sans-serif"
"""What text is measured in, so what it has to be drawn in."""

GUIDE = "#7d8590"
"""Reference lines: in the middle between both backgrounds."""


class _Colours(NamedTuple):
    ink: str
    background: str | None


_COLOURS: dict[Theme, _Colours] = {
    "light": _Colours("#1f2328", "#ffffff"),
    "dark": _Colours("#e6edf3", "#0d1117"),
    "inherit": _Colours("#1f2329", None),
}
_MARK = re.compile(r'<path aria-label="([^"]*)"([^>]*)(?:/>|></path>)')
_ID = re.compile(r'(\bid="|url\(#|href="#)')
_NAMESPACE = re.compile(r'\s+xmlns(:xlink)?="[^"]*"')


def to_svg(chart: Any, *, theme: Theme = "light", prefix: str = "") -> str:
    """``chart`` as SVG text. With ``prefix`` its ids differ from those of other pictures.

    Marks that have a description show it when the pointer rests on them.
    """
    svg = vl_convert.vegalite_to_svg(_spec(chart), config=_config(theme))
    svg = _MARK.sub(r"<path\2><title>\1</title></path>", svg)
    if prefix:
        svg = _ID.sub(rf"\g<1>{prefix}", svg)
    if theme == "inherit":
        svg = _NAMESPACE.sub("", svg.replace(_COLOURS["inherit"].ink, "currentColor"))
    return svg


def to_png(chart: Any, *, theme: Theme = "light", scale: float | int = 2) -> bytes:
    """``chart`` as a PNG of ``scale`` pixels per unit."""
    return vl_convert.vegalite_to_png(_spec(chart), scale=scale, config=_config(theme))


def described(svg: str, text: str) -> str:
    """``svg`` with ``text`` for those who cannot see it."""
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(text)}"', 1)


def _spec(chart: Any) -> dict[str, Any]:
    with alt.data_transformers.disable_max_rows():
        spec = chart.to_dict()
    spec.pop("config", None)  # altair adds its own default
    return spec


def _config(theme: Theme) -> dict[str, Any]:
    ink, background = _COLOURS[theme]
    faint = {"gridColor": ink, "gridOpacity": 0.12, "domainColor": ink, "domainOpacity": 0.4}
    labels = {"labelColor": ink, "titleColor": ink, "labelFontSize": 12, "titleFontSize": 12}
    return {
        "background": background,
        "font": FONT,
        "view": {"stroke": None},
        "line": {"aria": False},  # only points and bars say what they are
        "rule": {"aria": False},
        "axis": {**faint, **labels, "tickColor": ink, "tickOpacity": 0.4, "titleFontWeight": 500},
        "legend": {
            **labels,
            "orient": "bottom",
            "columns": 2,
            "columnPadding": 18,
            "symbolSize": 70,
            "labelLimit": 220,
        },
        "title": {"color": ink, "subtitleColor": ink, "fontSize": 14, "anchor": "start"},
        "header": labels,
        "text": {"color": ink, "fontSize": 11},
        "range": {"category": list(PALETTE), "symbol": list(SHAPES)},
    }
