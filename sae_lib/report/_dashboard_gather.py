"""What a dashboard needs of all latents together, before any of them is looked at alone."""

from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float

from sae_lib.errors import NotApplicable
from sae_lib.report import _dashboard_data as data
from sae_lib.report._dashboard_geometry import FeatureMap, decoder_rows, feature_map, nearest
from sae_lib.report._dashboard_source import Source

BATCH = 2048
"""Latents whose rows are in memory at a time."""


class Gathered(NamedTuple):
    """What is needed of all latents together."""

    listed: pl.DataFrame
    """One row per latent, by number."""

    concepts: dict[int, list[list[Any]]]
    pairs: pl.DataFrame | None
    """Neighbours that were computed, where no rows of them exist."""

    scores: pl.DataFrame
    map: FeatureMap | None
    absent: list[tuple[str, str]]
    """Panel, and why there is nothing in it."""

    sae: dict[str, Any]


def gather(source: Source) -> Gathered:
    columns = ["latent", "density", "max_activation", "label", "histogram"]
    latents = source.rows("latents").select(columns).sort("latent").unique("latent", keep="first")
    latents = latents.sort("latent")
    if latents.is_empty():
        raise NotApplicable("dashboard", f"{source.cell} has no explained latents.")
    said = source.rows("explanations").select(
        "latent", "method", "text", "score", "score_definition",
        keywords=pl.col("keywords").list.head(3),
    )  # fmt: skip
    scores = source.rows("latent_scores")
    sae, absent = source.of_sae(), _absent(source, latents, said, scores)
    concepts = data.true_concepts(source.rows("applications"))
    if not concepts:
        why = "Concepts are known of the bundled world, by the application concepts."
        absent.append(("concept", why))
    found = data.explanation_scores(said, scores)
    best = found.sort("value", descending=True).unique("latent", keep="first", maintain_order=True)
    sure = (
        data.labelled_by(latents, said)
        .join(found, on=["latent", "method"])
        .group_by("latent")
        .agg(confidence=pl.col("value").max())
    )
    top = pl.DataFrame(
        {
            "latent": list(concepts),
            "concept": [own[0][0] for own in concepts.values()],
            "f1": [own[0][1] for own in concepts.values()],
        },
        schema={"latent": pl.Int64, "concept": pl.String, "f1": pl.Float64},
    )
    decoder = decoder_rows(source)
    if decoder is not None and len(decoder) != len(latents):
        decoder = None
    pairs, near = _near(source, latents, decoder)
    if near is None:
        near = scores.filter(name="decoder_nearest_cosine").select("latent", cosine="value")
    listed = latents.drop("histogram")
    for more in (best.select("latent", score="value", what="what"), sure, top, near):
        more = more.unique("latent", keep="first")
        listed = listed.join(more, on="latent", how="left", maintain_order="left")
    placed = _map(listed, decoder, scores)
    if placed is None:
        absent.append(("map", "The SAE's files are not at hand, and no map was measured."))
    else:
        alive = listed.filter(pl.col("density") > 0).select("latent")
        places = alive.with_columns(x=placed.xy[:, 0], y=placed.xy[:, 1])
        listed = listed.join(places, on="latent", how="left", maintain_order="left")
    missing = [pl.lit(None, pl.Float64).alias(n) for n in ("x", "y") if n not in listed.columns]
    shown = scores.filter(~pl.col("name").is_in(data.MAP_SCORES))
    return Gathered(listed.with_columns(missing), concepts, pairs, shown, placed, absent, sae)


def _absent(
    source: Source, latents: pl.DataFrame, said: pl.DataFrame, scores: pl.DataFrame
) -> list[tuple[str, str]]:
    again = "`sae run` the experiment again to have them."
    found = []
    if latents["histogram"].is_null().all():
        found.append(("histogram", f"Histograms of activations were not recorded; {again}"))
    if said.is_empty():
        found.append(("explanations", "No explanation method of the experiment applies."))
    if not said["method"].is_in(data.SIGNED).any():
        found.append(("logits", "No method that reads output words: vocab_proj, token_change."))
    if scores.is_empty():
        found.append(("scores", "No metric scored latents one by one, such as autointerp."))
    first = source.rows("examples", 0, BATCH)["kind"].fill_null("top").unique().to_list()
    for kind, name in (("quantile", "of every strength"), ("silent", "of silence"),
                       ("near_miss", "of near misses")):  # fmt: skip
        if kind not in first:
            found.append((kind, f"Examples {name} were not recorded; {again}"))
    return found


def _near(
    source: Source, latents: pl.DataFrame, decoder: Float[np.ndarray, "d_sae d"] | None
) -> tuple[pl.DataFrame | None, pl.DataFrame | None]:
    """Neighbours where they have to be computed, and each latent's largest decoder cosine."""
    kept = source.rows("latent_pairs").filter(kind="decoder")
    computed = None
    if kept.is_empty() and decoder is not None:
        alive = latents.filter(pl.col("density") > 0)["latent"].to_numpy()
        kept = computed = nearest(decoder, alive)
    if kept.is_empty():
        return None, None
    return computed, kept.group_by("latent").agg(cosine=pl.col("value").max())


def _map(
    listed: pl.DataFrame, decoder: Float[np.ndarray, "d_sae d"] | None, scores: pl.DataFrame
) -> FeatureMap | None:
    """Places of the latents that fire: from decoder rows, or from what the geometry metric kept."""
    alive = listed.filter(pl.col("density") > 0).select("latent")
    if decoder is not None:
        return feature_map(decoder[alive["latent"].to_numpy()])
    axes = []
    for name in ("map_x", "map_y"):
        own = scores.filter(name=name).select("latent", "value").unique("latent", keep="first")
        values = alive.join(own, on="latent", how="left", maintain_order="left")["value"]
        if values.is_empty() or values.has_nulls():
            return None
        axes.append(values.to_numpy())
    xy = np.stack(axes, 1)
    low, high = xy.min(0), xy.max(0)
    how = "two principal axes of the unit decoder rows"
    return FeatureMap((xy - low) / np.where(high > low, high - low, 1), how)
