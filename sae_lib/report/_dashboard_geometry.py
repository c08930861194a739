"""What a dashboard shows of decoder rows: a map of them, and their nearest neighbours."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float, Int

from sae_lib.report._dashboard_source import Source

MAX_TSNE = 2048
"""Latents up to which t-SNE takes seconds; more are drawn on their two principal axes."""

_COMPONENTS = 50
NUM_NEAR = 5


class FeatureMap(NamedTuple):
    """Places of latents in the plane; near ones have decoder rows that point alike."""

    xy: Float[np.ndarray, "latents 2"]
    """Each axis in [0, 1]."""

    how: str
    """Method in words."""


def feature_map(
    rows: Float[np.ndarray, "latents d"], *, seed: int = 0, max_tsne: int = MAX_TSNE
) -> FeatureMap | None:
    """The map of unit decoder ``rows``, the same for the same rows; None for fewer than three.

    Principal axes (van der Maaten and Hinton 2008 begin with them too), then t-SNE where it is
    cheap. The largest entry of an axis is positive, so that signs do not depend on the solver.
    """
    from sklearn.decomposition import PCA

    if len(rows) < 3 or rows.shape[1] < 2:
        return None
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)
    num = min(_COMPONENTS, *unit.shape)
    is_tall = len(unit) >= unit.shape[1]
    pca = PCA(num, svd_solver="covariance_eigh" if is_tall else "full").fit(unit)
    axes = np.asarray(pca.components_)
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    held = (unit - unit.mean(0)) @ (axes * np.where(largest < 0, -1, 1)).T
    explained = float(pca.explained_variance_ratio_[:2].sum())
    if not len(rows) <= max_tsne:
        how = f"two principal axes of the unit decoder rows, {explained:.0%} of their variance"
        return FeatureMap(_fitted(held[:, :2]), how)
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(rows) - 1) / 3)
    tsne = TSNE(init="pca", perplexity=perplexity, max_iter=600, random_state=seed, n_jobs=1)
    how = f"t-SNE of {num} principal axes of the unit decoder rows, perplexity {perplexity:.0f}"
    return FeatureMap(_fitted(tsne.fit_transform(held)), how)


def _fitted(xy: Float[np.ndarray, "latents 2"]) -> Float[np.ndarray, "latents 2"]:
    low, high = xy.min(0), xy.max(0)
    return (xy - low) / np.where(high > low, high - low, 1)


def nearest(
    rows: Float[np.ndarray, "d_sae d"], latents: Int[np.ndarray, " latents"], n: int = NUM_NEAR
) -> pl.DataFrame:
    """The ``n`` of ``latents`` nearest to each by cosine, as rows of the table latent_pairs."""
    import torch

    from sae_lib.explain.cofiring import decoder_neighbours

    wanted = torch.from_numpy(latents.astype(np.int64))
    other, cosine = decoder_neighbours(torch.from_numpy(rows), wanted, n)
    count = len(latents)
    return pl.DataFrame(
        {
            "latent": np.repeat(latents, n),
            "other": other.numpy().ravel(),
            "kind": ["decoder"] * (count * n),
            "rank": np.tile(np.arange(n), count),
            "value": cosine.numpy().ravel().astype(float),
        }
    ).filter(pl.col("other") >= 0)


def decoder_rows(source: Source) -> Float[np.ndarray, "d_sae d"] | None:
    """Decoder rows of the SAE, as wide as what it writes; None where its files are not at hand."""
    said = source.of_sae().get("path")
    if not said:
        return None
    # a home that was moved, or filled by another machine, keeps its folders' names
    for folder in (Path(said), source.home / "artifacts" / "sae" / Path(said).name):
        if (folder / "sae.json").is_file():
            from sae_lib.saes.files import load_sae

            return load_sae(folder).W_dec.detach().flatten(1).float().numpy()
    return None
