"""Latents as JSON in the form that Neuronpedia and SAEDashboard exchange.

One file per batch of latents, `batch-0.json`, ...: what the batch is about, and under ``features``
an object per latent. Every field of the format is there; one that the warehouse has no rows for is
null, not guessed:

    neuron_alignment_*        largest entries of the decoder row; null without the SAE's files
    correlated_features_*     indices are those of the latents that fire together with it most
                              often (by Jaccard); l1 and pearson are null, being of activations
    correlated_neurons_*      null: correlations with neurons are not measured
    pos_*, neg_*              from vocab_proj; null where that method was not asked for
    freq_hist_data_bar_*      tokens by activation; values are centres of buckets that grow by an
                              eighth of an octave, not 50 equal ones
    logits_hist_data_bar_*    null: only the extreme words are kept
    n_prompts_total           contexts that were asked to be read; a smaller text has fewer
    activations               strongest examples (bin_* null), then those drawn from intervals of
                              activation; dfa_* null: nothing is attributed
    decoder_weights_dist      null: shares of attention heads are not kept
    vector                    the decoder row, where asked for

Source of the fields: the JSON that SAEDashboard writes for Neuronpedia.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import polars as pl
from jaxtyping import Float

from sae_lib.artifacts import write_atomically
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.report._dashboard_data import significant
from sae_lib.report._dashboard_geometry import decoder_rows
from sae_lib.report._dashboard_source import Source

FIELDS = (
    "feature_index",
    *("neuron_alignment_indices", "neuron_alignment_values", "neuron_alignment_l1"),
    *("correlated_neurons_indices", "correlated_neurons_l1", "correlated_neurons_pearson"),
    *("correlated_features_indices", "correlated_features_l1", "correlated_features_pearson"),
    *("neg_str", "neg_values", "pos_str", "pos_values", "frac_nonzero"),
    *("freq_hist_data_bar_heights", "freq_hist_data_bar_values"),
    *("logits_hist_data_bar_heights", "logits_hist_data_bar_values"),
    *("n_prompts_total", "n_tokens_in_prompt", "dataset", "activations"),
    *("decoder_weights_dist", "vector"),
)
"""Of a latent, in the order in which they are written."""

ACTIVATION_FIELDS = (
    *("bin_min", "bin_max", "bin_contains", "tokens", "values", "qualifying_token_index"),
    *("dfa_values", "dfa_targetIndex", "dfa_maxValue"),
)
"""Of one example."""

NUM_ALIGNED = 3
NUM_WORDS = 10


class Exported(NamedTuple):
    """Files that were written."""

    files: list[Path]
    num_latents: int
    nulls: list[str]
    """Fields that are null for every latent."""


def export(source: Source, folder: Path, *, batch: int = 128, vectors: bool = False) -> Exported:
    """Write the latents that ``source`` has rows of into ``folder``, ``batch`` to a file.

    Existing files of these names are replaced, and batches of an earlier, longer export deleted.
    Raises `NotApplicable` where there are no latents.
    """
    if batch < 1:
        raise BadInput("a file has at least one latent.", key="batch", value=batch)
    numbers = source.rows("latents").select("latent").unique().sort("latent")["latent"].to_list()
    if not numbers:
        raise NotApplicable("neuronpedia", f"{source.cell} has no explained latents.")
    sae, about = source.of_sae(), _about(source)
    decoder = decoder_rows(source)
    head = {
        "model_id": sae.get("model"),
        "layer": source.cell.site,
        "sae_set": f"{source.cell.experiment}/{source.cell.variant}",
        "sae_id": sae.get("sae_id"),
    }
    files, filled = [], set()
    for place, start in enumerate(range(0, len(numbers), batch)):
        features = _features(source, numbers[start : start + batch], about, decoder, vectors)
        filled |= {name for one in features for name in FIELDS if one[name] is not None}
        file = folder / f"batch-{place}.json"
        content = {**head, **about, "features": features}
        # what is half of a surrogate pair stays one; every reader takes such escapes
        write_atomically(file, json.dumps(content, allow_nan=False) + "\n")
        files.append(file)
    for older in folder.glob("batch-*.json"):
        if older not in files:
            older.unlink()
    return Exported(files, len(numbers), [name for name in FIELDS if name not in filled])


def _about(source: Source) -> dict[str, Any]:
    """What was read: the same for every latent."""
    found = source.of_experiment()
    config = json.loads(found["config"][0]) if len(found) else {}
    context = config.get("corpus", {}).get("context")
    tokens = config.get("explain_tokens")
    return {
        "n_prompts_total": max(1, tokens // context) if tokens and context else None,
        "n_tokens_in_prompt": context,
        "dataset": config.get("corpus", {}).get("id"),
    }


def _features(
    source: Source,
    latents: list[int],
    about: Mapping[str, Any],
    decoder: Float[np.ndarray, "d_sae d"] | None,
    vectors: bool,
) -> list[dict[str, Any]]:
    low, high = min(latents), max(latents) + 1
    found: dict[int, dict[str, Any]] = {
        latent: {**dict.fromkeys(FIELDS), "feature_index": latent} for latent in latents
    }
    for row in source.rows("latents", low, high).iter_rows(named=True):
        own = found[row["latent"]]
        own |= {"frac_nonzero": row["density"], "activations": [], **about}
        if row["histogram"] is not None and row["histogram_edges"] is not None:
            edges = np.asarray(row["histogram_edges"], dtype=float)
            own["freq_hist_data_bar_heights"] = [int(count) for count in row["histogram"]]
            own["freq_hist_data_bar_values"] = significant((edges[1:] + edges[:-1]) / 2, 5)
    said = source.rows("explanations", low, high).filter(method="vocab_proj")
    for row in said.iter_rows(named=True):
        pairs = list(zip(row["keywords"] or [], row["keyword_scores"] or [], strict=True))
        up = [pair for pair in pairs if pair[1] > 0][:NUM_WORDS]
        down = [pair for pair in pairs if pair[1] < 0][:NUM_WORDS]
        for name, some in (("pos", up), ("neg", down)):
            found[row["latent"]][f"{name}_str"] = [word for word, _ in some]
            found[row["latent"]][f"{name}_values"] = significant([v for _, v in some], 5)
    pairs = source.rows("latent_pairs", low, high).filter(kind="cofire").sort("latent", "rank")
    for latent, others in pairs.group_by("latent", maintain_order=True).agg("other").iter_rows():
        found[latent]["correlated_features_indices"] = others
    for row in _shown(source, low, high).iter_rows(named=True):
        found[row["latent"]]["activations"].append(_example(row))
    if decoder is not None and high <= len(decoder):
        rows = decoder[latents].astype(np.float64)
        size = np.abs(rows)
        first = np.argsort(-size, axis=1, kind="stable")[:, :NUM_ALIGNED]
        total = size.sum(1, keepdims=True)
        share = np.take_along_axis(size, first, 1) / np.where(total > 0, total, 1)
        values = np.take_along_axis(rows, first, 1)
        for i, latent in enumerate(latents):
            found[latent] |= {
                "neuron_alignment_indices": first[i].tolist(),
                "neuron_alignment_values": significant(values[i], 6),
                "neuron_alignment_l1": significant(share[i], 6),
            }
            if vectors:
                found[latent]["vector"] = significant(rows[i], 7)
    return [found[latent] for latent in latents]


def _shown(source: Source, low: int, high: int) -> pl.DataFrame:
    """Strongest examples first, then those of intervals, from the strongest interval down."""
    kind = pl.col("kind").fill_null("top")
    return (
        source.rows("examples", low, high)
        .with_columns(kind=kind)
        .filter(kind.is_in(["top", "quantile"]))
        .sort(
            "latent", kind == "quantile", "interval", "rank", descending=[False, False, True, False]
        )
    )


def _example(row: Mapping[str, Any]) -> dict[str, Any]:
    is_drawn = row["kind"] == "quantile"
    values = [row["low"], row["high"], row["share"]] if is_drawn else [None] * 3
    return {
        "bin_min": values[0],
        "bin_max": values[1],
        "bin_contains": values[2],
        "tokens": row["tokens"],
        "values": significant(row["activations"], 5),
        "qualifying_token_index": row["peak"],
        "dfa_values": None,
        "dfa_targetIndex": None,
        "dfa_maxValue": None,
    }
