"""What a dashboard holds: a list of all latents, and chunks with everything about a few of them.

Both are JSON, gzipped and in base64, so that nothing in them can be taken for markup and a browser
reads only the chunks that are looked at. Tokens are numbers into a chunk's own list of strings;
activations are the places and thousandths of the latent's maximum of those tokens that are not 0.
"""

import gzip
import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

CHUNK = 64
"""Latents per chunk."""

DENSE = 0.1
"""A latent that fires on a larger share of tokens is called dense."""

DUPLICATE = 0.9
"""Two latents whose decoder rows have a larger cosine are called duplicates."""

SIGNED = ("vocab_proj", "token_change")
"""Methods whose keywords are what a latent promotes and what it suppresses."""

JUDGED = (
    *("detection_balanced_accuracy", "autointerp_balanced_accuracy", "fuzzing_balanced_accuracy"),
    *("simulation_pearson", "surprisal_auc", "embedding_auc", "explanation_named"),
    *("explanation_recall", "explanation_precision", "input_success", "output_success"),
    *("input_gap", "output_logit_rise"),
)
"""Scores of an explanation that may stand for it where it has none itself, the best first; the
order of the view explanation_scores."""

OWN = ("held_out", "own")
"""Definitions of scores that are about the explanation itself; others are controls."""

MAP_SCORES = ("map_x", "map_y", "decoder_nearest_cosine", "decoder_nearest_latent")


class Level(NamedTuple):
    """How much is shown of each latent; what is beyond is left out of the page."""

    top: int
    per_interval: int
    silent: int
    near_miss: int
    radius: int
    """Tokens on either side of the peak."""

    words: int
    """Keywords per list."""


LEVELS = (
    Level(20, 5, 10, 10, 32, 20),
    Level(10, 3, 5, 5, 16, 20),
    Level(10, 2, 3, 3, 12, 15),
    Level(10, 1, 2, 2, 10, 12),
    Level(8, 1, 2, 2, 10, 10),
    Level(6, 1, 1, 1, 9, 8),
    Level(5, 1, 1, 1, 7, 8),
    Level(4, 1, 0, 0, 7, 6),
    Level(2, 0, 0, 0, 6, 5),
    Level(1, 0, 0, 0, 5, 4),
)
"""From everything to one short example; the first that fits the page is taken."""


class Rows(NamedTuple):
    """Rows of some latents, each frame in the order of latents."""

    latents: pl.DataFrame
    explanations: pl.DataFrame
    examples: pl.DataFrame
    pairs: pl.DataFrame
    scores: pl.DataFrame

    def of(self, latents: Sequence[int]) -> "Rows":
        wanted = pl.Series("latent", latents, dtype=pl.Int64).to_frame()
        return Rows(*(frame.join(wanted, on="latent", how="semi") for frame in self))


def packed(content: Any) -> str:
    """``content`` as JSON, gzipped, in base64; half a surrogate pair stays one."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return b64encode(gzip.compress(text.encode("ascii"), 6, mtime=0)).decode("ascii")


def unpacked(text: str) -> Any:
    """The inverse of `packed`."""
    from base64 import b64decode

    return json.loads(gzip.decompress(b64decode(text)))


def significant(values: Any, digits: int = 3) -> list[float | None]:
    """Numbers rounded to so many significant digits, which makes them short; NULL stays NULL."""
    x = np.asarray(values, dtype=float)
    size = np.where((x == 0) | ~np.isfinite(x), 1.0, np.abs(x))
    power = digits - 1 - np.floor(np.log10(size)).astype(int)
    # a power of ten that is divided by, not multiplied with, rounds to the nearest short number
    scale = 10.0 ** np.abs(power)
    rounded = np.where(power >= 0, np.rint(x * scale) / scale, np.rint(x / scale) * scale)
    return [value if value == value else None for value in rounded.tolist()]


def chunk(rows: Rows, latents: Sequence[int], level: Level, concepts: Mapping[int, Any]) -> Any:
    """Everything about ``latents`` as one JSON object: ``t`` the tokens, ``l`` per latent."""
    mine = rows.of(latents)
    found: dict[int, dict[str, Any]] = {latent: {"e": [], "x": [], "n": []} for latent in latents}
    _put_statistics(found, mine.latents)
    _put_explanations(found, mine.explanations, level.words)
    columns = _short(mine.pairs, ("kind", "other", "value", "num_tokens", "share", "lift"))
    for latent, *own in zip(mine.pairs["latent"].to_list(), *columns, strict=True):
        found[latent]["n"].append(own)
    columns = _short(
        mine.scores, ("metric", "name", "definition", "method", "value", "n", "reason")
    )
    for latent, *own in zip(mine.scores["latent"].to_list(), *columns, strict=True):
        found[latent].setdefault("q", []).append(own)
    for latent in latents:
        if latent in concepts:
            found[latent]["c"] = concepts[latent]
    table, shown = _examples(mine, level)
    for latent, example in shown:
        found[latent]["x"].append(example)
    return {"t": table, "l": [found[latent] for latent in latents]}


def _short(frame: pl.DataFrame, columns: Sequence[str]) -> list[list[Any]]:
    """Values by column, numbers that are not whole rounded; a column that is not there is NULL."""
    found = []
    for name in columns:
        if name not in frame.columns:
            found.append([None] * len(frame))
        elif frame[name].dtype.is_float():
            found.append(significant(frame[name].to_numpy()))
        else:
            found.append(frame[name].to_list())
    return found


def _put_statistics(found: dict[int, dict[str, Any]], latents: pl.DataFrame) -> None:
    mean, std = (
        significant(latents[f"{name}_activation"].to_numpy(), 4) for name in ("mean", "std")
    )
    edges = _rounded(latents["histogram_edges"], 4)
    counts = latents["histogram"].cast(pl.List(pl.Int64)).to_list()
    numbers = latents["latent"].to_list()
    for latent, m, s, own, ends in zip(numbers, mean, std, counts, edges, strict=True):
        found[latent] |= {"m": m, "s": s}
        if own is not None and ends is not None:
            found[latent]["h"] = [own, ends]


def _put_explanations(found: dict[int, dict[str, Any]], said: pl.DataFrame, words: int) -> None:
    columns = ("latent", "method", "text", "score", "score_definition")
    scores = _rounded(said["keyword_scores"])
    rows = zip(*_short(said, columns), said["keywords"].to_list(), scores, strict=True)
    for latent, method, text, score, what, keywords, own in rows:
        kept = _listed(method, keywords or [], own or [], words)
        found[latent]["e"].append([method, text, score, what, *kept])


def _rounded(lists: pl.Series, digits: int = 3) -> list[list[Any] | None]:
    """A column of lists of numbers, each number rounded."""
    lengths = lists.list.len().fill_null(0).to_list()
    values = significant(lists.drop_nulls().explode(empty_as_null=False).to_numpy(), digits)
    found, start = [], 0
    for length, is_null in zip(lengths, lists.is_null().to_list(), strict=True):
        found.append(None if is_null else values[start : start + length])
        start += length
    return found


def _listed(
    method: str, words: list[str], scores: list[float], most: int
) -> tuple[list[str], list[float]]:
    """The first keywords of a row; of what is promoted and of what is suppressed each so many."""
    if method not in SIGNED:
        return words[:most], scores[:most]
    pairs = list(zip(words, scores, strict=True))
    kept = [p for p in pairs if p[1] > 0][:most] + [p for p in pairs if p[1] < 0][:most]
    return [word for word, _ in kept], [score for _, score in kept]


def _examples(rows: Rows, level: Level) -> tuple[list[str], list[tuple[int, list[Any]]]]:
    """Distinct tokens, the most frequent first, and the examples that ``level`` lets through."""
    frame = rows.examples.with_columns(kind=pl.col("kind").fill_null("top")).filter(
        pl.col("tokens").list.len() > 0,
        ((pl.col("kind") == "top") & (pl.col("rank") < level.top))
        | ((pl.col("kind") == "quantile") & (pl.col("rank") < level.per_interval))
        | ((pl.col("kind") == "silent") & (pl.col("rank") < level.silent))
        | ((pl.col("kind") == "near_miss") & (pl.col("rank") < level.near_miss)),
    )
    if frame.is_empty():
        return [], []
    start = (pl.col("peak") - level.radius).clip(lower_bound=0)
    length = pl.col("peak") + level.radius + 1 - start
    strongest = rows.latents.select("latent", strongest="max_activation")
    frame = (
        frame.with_columns(
            tokens=pl.col("tokens").list.slice(start, length),
            activations=pl.col("activations").list.slice(start, length),
            peak=pl.col("peak") - start,
        )
        .join(strongest, on="latent", how="left", maintain_order="left")
        .with_columns(
            strongest=pl.when(pl.col("strongest") > 0)
            .then(pl.col("strongest"))
            .otherwise(pl.col("activations").list.max())
        )
    )
    tokens = frame.select(token=pl.col("tokens").explode())
    table = tokens["token"].value_counts(sort=True).sort("count", "token", descending=[True, False])
    table = table.select("token").with_row_index("id")
    ids = tokens.join(table, on="token", how="left", maintain_order="left")["id"].to_numpy()
    lengths = frame["tokens"].list.len().to_numpy().astype(np.int64)
    ends = lengths.cumsum()
    owner = np.repeat(np.arange(len(lengths)), lengths)
    values = frame["activations"].explode().to_numpy().astype(float)
    scale = frame["strongest"].fill_null(1.0).to_numpy()[owner]
    share = np.rint(1000 * values / np.where(scale > 0, scale, 1)).clip(-1000, 1000)
    share = np.where((values != 0) & (share == 0), np.sign(values), share).astype(np.int64)
    on = share.nonzero()[0]
    place = on - (ends - lengths)[owner[on]]
    pairs = np.stack([place, share[on]], 1).ravel()
    number_on = 2 * np.bincount(owner[on], minlength=len(lengths))
    own_ids = _cut(ids.tolist(), lengths.tolist())
    own_shares = _cut(pairs.tolist(), number_on.tolist())
    short = {name: significant(frame[name].to_numpy()) for name in ("low", "high", "share")} | {
        "max_activation": significant(frame["max_activation"].to_numpy(), 4)
    }
    shown = []
    plain = frame.select("latent", "kind", "document", "position", "peak", "interval", "other")
    for i, row in enumerate(plain.iter_rows()):
        latent, kind, document, position, peak, interval, other = row
        example = [kind, own_ids[i], own_shares[i], peak, short["max_activation"][i]]
        example += [document, position]
        if kind == "quantile":
            example += [interval, short["low"][i], short["high"][i], short["share"][i]]
        elif kind == "near_miss":
            example.append(other)
        shown.append((latent, example))
    return table["token"].to_list(), shown


def _cut(values: list[int], lengths: list[int]) -> list[list[int]]:
    found, start = [], 0
    for length in lengths:
        found.append(values[start : start + length])
        start += length
    return found


def explanation_scores(explanations: pl.DataFrame, scores: pl.DataFrame) -> pl.DataFrame:
    """One score per explanation: its own, or else what a judge found; with its name.

    Columns latent, method, value, what. Scores of controls, and of what is no method of the
    experiment, are left out.
    """
    own = explanations.filter(pl.col("score").is_not_null()).select(
        "latent",
        "method",
        value="score",
        what=pl.col("score_definition").fill_null("score"),
        place=pl.lit(-1, pl.Int32),
    )
    place = pl.Series(JUDGED).to_frame("name").with_row_index("place")
    judged = (
        scores.filter(pl.col("value").is_not_null() & pl.col("definition").is_in(OWN))
        .join(place, on="name")
        .join(explanations.select("latent", "method").unique(), on=["latent", "method"], how="semi")
        .select("latent", "method", "value", what="name", place=pl.col("place").cast(pl.Int32))
    )
    return (
        pl.concat([own, judged])
        .sort("latent", "method", "place")
        .unique(["latent", "method"], keep="first", maintain_order=True)
        .drop("place")
    )


def labelled_by(latents: pl.DataFrame, explanations: pl.DataFrame) -> pl.DataFrame:
    """Methods from whose explanation a label is: its text, or its first three keywords."""
    three = pl.col("keywords").list.head(3).list.join(", ")
    return (
        explanations.select("latent", "method", "text", three=three)
        .join(latents.select("latent", "label"), on="latent")
        .filter((pl.col("label") == pl.col("three")) | (pl.col("label") == pl.col("text")))
        .select("latent", "method")
    )


def true_concepts(applications: pl.DataFrame) -> dict[int, list[list[Any]]]:
    """Concepts of the bundled world by latent, the best first: concept, F1, precision, recall, how.

    ``how`` is "own" where latent and concept are matched one to one, "best" where the latent is
    the best for the concept though another was matched with it.
    """
    found: dict[int, list[list[Any]]] = {}
    rows = applications.filter(
        (pl.col("application") == "concepts")
        & (pl.col("method") == "sae")
        & (pl.col("name") == "f1")
        & pl.col("value").is_not_null()
    )
    for concept, f1, params in rows.select("task", "value", "params").iter_rows():
        said = json.loads(params)
        latent, best = said.get("latent"), said.get("best_latent")
        if latent is not None and f1 > 0:
            own = [concept, *significant([f1, said.get("precision"), said.get("recall")]), "own"]
            found.setdefault(latent, []).append(own)
        if best is not None and best != latent and said.get("best_f1", 0) > 0:
            own = [concept, *significant([said["best_f1"]]), None, None, "best"]
            found.setdefault(best, []).append(own)
    return {latent: sorted(own, key=lambda one: -one[1])[:5] for latent, own in found.items()}
