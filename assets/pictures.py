"""Small pictures and tables for the metadata of an asset; kept under 30 KB each."""

import base64
from pathlib import Path

CURVES = ("fvu", "l0", "dead_share")
LATENTS_SHOWN = 12
AROUND = 3
INLINE_CHARS = 990
"""Markdown that is longer is shown by the UI only when one asks for it."""

PANELS = 2
"""Sites whose frontier is drawn; the page has all."""


def curve_markdown(curves: Path) -> str:
    """Training curves of one SAE as a picture inside markdown."""
    import polars as pl

    from sae_lib.report.theme import to_png
    from sae_lib.report.thumbnails import small_curves

    frame = pl.read_parquet(curves).filter(pl.col("name").is_in(CURVES))
    if frame.is_empty():
        return "No curve was recorded."
    picture = base64.b64encode(to_png(small_curves(frame), scale=1)).decode()
    return f"![training curves](data:image/png;base64,{picture})"


def frontier_markdown(points: object) -> str:
    """The frontier of a study as a picture inside markdown; empty where nothing is measured."""
    import polars as pl

    from sae_lib.report.plots import frontier
    from sae_lib.report.theme import to_png

    assert isinstance(points, pl.DataFrame)
    first = points["site"].unique().sort().to_list()[:PANELS]
    chart = frontier(points.filter(pl.col("site").is_in(first)))
    if chart is None:
        return ""
    picture = base64.b64encode(to_png(chart, scale=0.7)).decode()
    return f"![sparsity and unexplained variance](data:image/png;base64,{picture})"


def few_latents_markdown(folder: Path) -> str:
    """As many sampled latents as the UI shows without a click."""
    lines = latents_markdown(folder, around=AROUND).splitlines()
    while len(lines) > 3 and sum(map(len, lines)) + len(lines) > INLINE_CHARS:
        lines.pop()
    return "\n".join(lines)


def latents_markdown(folder: Path, *, around: int | None = None) -> str:
    """A sample of latents with label, density and their strongest example.

    Of the example only ``around`` tokens on either side of the strongest are shown, if given.
    """
    import polars as pl

    latents = pl.read_parquet(folder / "latents.parquet").filter(pl.col("density") > 0)
    examples = pl.read_parquet(folder / "examples.parquet").filter(pl.col("rank") == 0)
    if "kind" in examples.columns:
        examples = examples.filter(pl.col("kind").fill_null("top") == "top")
    shown = (
        latents.join(examples, on="latent", how="left", suffix="_example")
        .sort("density", descending=True)
        .gather_every(max(1, latents.height // LATENTS_SHOWN))
        .head(LATENTS_SHOWN)
    )
    lines = ["| latent | label | fires on | strongest example |", "|---|---|---|---|"]
    for row in shown.iter_rows(named=True):
        tokens = row["tokens"] or []
        text = "".join(
            f" **{_plain(token)}**" if index == row["peak"] else f" {_plain(token)}"
            for index, token in enumerate(tokens)
            if around is None or abs(index - row["peak"]) <= around
        )
        label = _plain(row["label"] or "")
        lines.append(f"| {row['latent']} | {label} | {row['density']:.3%} | {text.strip()} |")
    return "\n".join(lines)


def _plain(token: str) -> str:
    """A token that can neither end a table cell nor start markup."""
    visible = token.replace("\n", "⏎").replace("\r", "⏎").strip() or "␣"
    escaped = visible.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\|*_`[]!" else c for c in escaped)
