"""What every way to score contexts shares: their texts, and the choice of the best."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from sae_lib.activations.tokens import TokenSplit
from sae_lib.errors import BadInput

CHUNK_CONTEXTS = 256
"""Contexts whose tokens are in memory at a time."""


class Chosen(NamedTuple):
    """Contexts that were chosen, and why."""

    contexts: np.ndarray
    """Their numbers, int64, ascending."""

    scores: np.ndarray
    """The score of each, float64; more is nearer to the seeds."""


def best(scores: np.ndarray, count: int, numbers: np.ndarray | None = None) -> Chosen:
    """The ``count`` contexts of the highest scores; of equal ones the lower number goes first.

    ``numbers`` are those of the contexts that were scored, ascending; by default 0, 1 and so on.
    Raises `BadInput` where there are fewer contexts, or a score is not a number.
    """
    scores = np.asarray(scores, np.float64)
    numbers = np.arange(len(scores)) if numbers is None else np.asarray(numbers, np.int64)
    if not 1 <= count <= len(scores):
        raise BadInput(
            f"between 1 and {len(scores)} contexts can be chosen.", key="contexts", value=count
        )
    if np.isnan(scores).any():
        raise BadInput(
            "a context has no score; are the activations or weights finite?",
            value=int(numbers[np.isnan(scores).argmax()]),
        )
    order = np.argsort(-scores, kind="stable")[:count]
    chosen = np.sort(order)
    return Chosen(numbers[chosen].astype(np.int64), scores[chosen])


def texts_of(
    split: TokenSplit, tokenizer: Any, contexts: np.ndarray | None = None
) -> Iterator[str]:
    """The text of each context (by default of all), special tokens and padding left out."""
    chosen = np.arange(split.num_contexts) if contexts is None else np.asarray(contexts)
    for start in range(0, len(chosen), CHUNK_CONTEXTS):
        rows = split.rows(chosen[start : start + CHUNK_CONTEXTS])
        for tokens, keep in zip(rows.tokens, rows.keep, strict=True):
            yield tokenizer.decode(tokens[keep].tolist())
