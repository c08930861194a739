"""Which pictures a study report has, site by site, and which lines are left out of crowded ones."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl
from markupsafe import Markup

from sae_lib.report import plots, variants
from sae_lib.report.theme import described, to_svg
from sae_lib.report.variants import Clustering

MAX_SITES = 8
"""Sites with plots; the tables have all of them."""

FIRST_CURVES = ("fvu", "l0", "dead_share")
"""Curves that stand open on the page; the others are one click away."""

MAX_BARS = 14
MAX_LINES = 8


class Figure(NamedTuple):
    """A picture and what it shows."""

    site: str
    title: str
    svg: Markup


def figures(
    answers: dict[str, pl.DataFrame], clusterings: Sequence[Clustering]
) -> dict[str, list[Figure]]:
    """Pictures by section, site by site."""
    drawn: dict[str, list[Figure]] = defaultdict(list)
    sites = answers["leaderboard"]["site"].unique().sort().to_list()[:MAX_SITES]
    for site in sites:
        here = {
            name: answer.filter(site=site)
            for name, answer in answers.items()
            if "site" in answer.columns
        }
        points, boundary = here["frontier"], here["boundary"]
        charts = {
            "frontier": [
                ("L0 and unexplained variance", plots.frontier(points, boundary=boundary)),
                ("L0 and loss added", plots.frontier(points, "delta_lm_loss")),
            ],
            "variants": _variants(here["variants"]),
            "curves": _curves(here["curves"], is_first=True),
            "more_curves": _curves(here["curves"], is_first=False),
            "density": [("How often latents fire", plots.density_histogram(here["density"]))],
            "probing": [("Probing, mean over tasks", plots.probe_bars(_bars(here["probing"])))],
            "steering": [
                (heading, plots.steering_sweep(_sweeps(here["steering"]), name))
                for name, heading in plots.SCORES.items()
            ],
            "selection": [_coverage(here)],
        }
        for section, made in charts.items():
            for heading, chart in made:
                if chart is not None:
                    drawn[section].append(
                        _figure(f"{section}{len(drawn[section])}", site, heading, chart)
                    )
    drawn["layer_groups"] = _layer_groups(clusterings)
    return dict(drawn)


def _figure(name: str, site: str, heading: str, chart: Any) -> Figure:
    svg = described(to_svg(chart, theme="inherit", prefix=f"{name}-"), f"{site}: {heading}")
    return Figure(site, heading, Markup(svg))


def _variants(families: pl.DataFrame) -> list[tuple[str, Any]]:
    """Families of a site against each other; of a single one the table says enough."""
    if len(families) < 2:
        return []
    return [
        ("L0 and unexplained variance", variants.families_at_l0(families, "fvu")),
        ("Unexplained variance, least first", variants.forest(families, "fvu")),
        ("L0 and loss recovered", variants.families_at_l0(families, "loss_recovered")),
        ("Loss recovered", variants.forest(families, "loss_recovered")),
    ]


def _layer_groups(clusterings: Sequence[Clustering]) -> list[Figure]:
    from sae_lib.report.layer_groups import amad_curve, dendrogram  # loads torch

    made = []
    for one in clusterings:
        charts = [
            (f"Cut into {number} groups" if number > 1 else "Which layers are alike", tree)
            for number in one.cuts
            if (tree := dendrogram(one.found, num_groups=number)) is not None
        ]
        charts.append(("What each number of groups costs", amad_curve(one.found)))
        for heading, chart in charts:
            made.append(_figure(f"layer_groups{len(made)}", ", ".join(one.sites), heading, chart))
    return made


def _curves(curves: pl.DataFrame, *, is_first: bool) -> list[tuple[str, Any]]:
    """Every number that was recorded in training: those one looks at first, or the others."""
    return [
        (plots.HEADINGS.get(name, name.replace("_", " ")), plots.training_curves(curves, name))
        for name in plots.curve_names(curves)
        if (name in FIRST_CURVES) is is_first
    ]


def _bars(probing: pl.DataFrame) -> pl.DataFrame:
    """Bars of one site: sparse probes at the largest k, and everything that has no k."""
    largest = pl.col("k").max()
    kept = probing.filter(pl.col("k").is_null() | (pl.col("k") == largest)).with_columns(
        is_sae=pl.col("method").is_in(["sae_probe", "sae_all_latents"])
    )
    own = pl.col("method").is_in(["sae_probe", "sae_all_latents", "random_sae_probe"])
    how = pl.col("method").str.replace_many(
        {
            "random_sae_probe": "random",
            "sae_probe": "latents",
            "sae_all_latents": "all latents",
            "residual_top_k": "coordinates of the activation",
            "dense_probe": "whole activation",
            "bag_of_words": "bag of words",
            "majority": "majority class",
        }
    )
    many = pl.when(pl.col("k").is_null()).then(how).otherwise(pl.format("{} {}", "k", how))
    labelled = kept.with_columns(
        label=pl.when(own).then(pl.format("{}, {}", "variant", many)).otherwise(many)
    ).unique("label", maintain_order=True)
    if len(labelled) <= MAX_BARS:
        return labelled
    others = labelled.filter(~own)
    best = labelled.filter(method="sae_probe").top_k(max(1, MAX_BARS - len(others)), by="value")
    return pl.concat([best, others])


def _sweeps(steering: pl.DataFrame) -> pl.DataFrame:
    """Lines of one site: the latent of each SAE, and methods that need none."""
    own = pl.col("method") == "latent"
    labelled = steering.filter(pl.col("strength").is_not_null()).with_columns(
        label=pl.when(own)
        .then(pl.format("{}, latent", "variant"))
        .otherwise(pl.col("method").str.replace_all("_", " "))
    )
    labelled = labelled.unique(["label", "name", "strength"], maintain_order=True)
    drawn = labelled["label"].unique(maintain_order=True).to_list()
    if len(drawn) > MAX_LINES:
        shared = labelled.filter(~own)["label"].unique().to_list()
        mean = pl.col("value").filter(pl.col("name") == "overall").max()
        best = labelled.filter(own).group_by("label").agg(mean)
        drawn = [*best.top_k(MAX_LINES - len(shared), by="value")["label"], *shared]
    return labelled.filter(pl.col("label").is_in(drawn), pl.col("strength") > 0)


def _coverage(here: dict[str, pl.DataFrame]) -> tuple[str, Any]:
    """Coverage by the latents of one SAE: the first on the leaderboard that has any."""
    have = set(here["selection"].filter(pl.col("value").is_not_null())["variant"])
    ranked = [name for name in here["leaderboard"]["variant"] if name in have]
    if not ranked:
        return "", None
    rows = (
        here["selection"]
        .filter(pl.col("n").is_not_null(), variant=ranked[0])
        .with_columns(
            label=pl.col("method").str.replace_all("_", " ").str.replace("sae greedy", "greedy")
        )
    )
    return f"Documents covering the latents of {ranked[0]}", plots.selection_coverage(rows)
