"""Which concept of the world the keywords of an explanation name, and which one a latent has.

What the numbers are is told in `explanation_truth`.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from scipy.sparse import csr_matrix
from torch import Tensor

from sae_lib.saes.base import SparseCoder
from sae_lib.synthetic.world.concepts import CONCEPTS, lexicon

THRESHOLDS = (0.0, 0.25, 0.5)
"""Shares of its largest activation above which a latent may be said to fire."""

_CHUNK_CODES = 2**24
_Z = 1.959963984540054
"""Of a two-sided 95 % interval."""


def wilson(hits: int, total: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score; (0, 1) without a unit."""
    if not total:
        return 0.0, 1.0
    share, weight = hits / total, _Z**2 / total
    middle = (share + weight / 2) / (1 + weight)
    half = _Z / (1 + weight) * math.sqrt(share * (1 - share) / total + weight / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


def bootstrap_mean(
    values: Float[np.ndarray, " units"], *, draws: int, seed: int
) -> tuple[float, float]:
    """95 % percentile interval of the mean, units drawn anew."""
    rng = np.random.default_rng(seed)
    picked = rng.integers(len(values), size=(draws, len(values)))
    low, high = np.quantile(values[picked].mean(1), [0.025, 0.975])
    return float(low), float(high)


class Inventory(NamedTuple):
    """Concepts of the world that have words in the text."""

    ids: list[str]
    words: list[frozenset[str]]
    """Of each concept, those that occur, in lower case."""

    frequency: Mapping[str, int]
    """Occurrences of every word of the text."""

    @property
    def most_frequent(self) -> list[str]:
        """Words of the text, the most frequent first."""
        return sorted(self.frequency, key=lambda word: (-self.frequency[word], word))


class Naming(NamedTuple):
    """What keywords say about concepts, one row per explanation."""

    named: Int[np.ndarray, " rows"]
    """Number of the concept that is named; -1 for none."""

    precision: Float[np.ndarray, "rows concepts"]
    recall: Float[np.ndarray, "rows concepts"]


def name_concepts(keywords: Sequence[Sequence[str]], inventory: Inventory, num: int) -> Naming:
    """Which concept the first ``num`` keywords of each explanation name; see the module."""
    column = {word: i for i, word in enumerate(sorted(set().union(*inventory.words) | {""}))}
    said = [list(dict.fromkeys(word.strip().lower() for word in own))[:num] for own in keywords]
    hits = (_one_hot(said, column) @ _one_hot(inventory.words, column).T).toarray()
    num_said = np.array([len(own) for own in said])[:, None]
    sizes = np.array([len(own) for own in inventory.words])
    precision = hits / np.maximum(num_said, 1)
    recall = hits / np.minimum(sizes, num)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    # ties by fewer words, then by the order of the inventory
    order = np.argsort(sizes, kind="stable")
    best = order[f1[:, order].argmax(1)]
    return Naming(np.where(f1.max(1) > 0, best, -1), precision, recall)


def _one_hot(rows: Sequence[Collection[str]], column: Mapping[str, int]) -> csr_matrix:
    """(rows, words), ones where a row has a word; unknown words are left out."""
    columns = [[column[word] for word in own if word in column] for own in rows]
    ends = np.cumsum([0, *(len(own) for own in columns)])
    flat = np.array([c for own in columns for c in own], dtype=int)
    return csr_matrix((np.ones(len(flat)), flat, ends), shape=(len(rows), len(column)))


def firing_f1(
    coder: SparseCoder[Any],
    x: Float[Tensor, "tokens d_in"],
    truth: csr_matrix,
    largest: Float[Tensor, " d_sae"],
) -> tuple[Float[np.ndarray, "d_sae concepts"], Int[np.ndarray, " d_sae"]]:
    """Best F1 of every latent's firing with every concept, and tokens on which it fires.

    Firing is an activation above one of `THRESHOLDS`, shares of its ``largest``.
    """
    both = np.zeros((len(THRESHOLDS), coder.d_sae, truth.get_shape()[1]), dtype=np.float32)
    fired = np.zeros((len(THRESHOLDS), coder.d_sae), dtype=np.int64)
    step, low = max(1, _CHUNK_CODES // coder.d_sae), 0
    with torch.no_grad():
        for part in x.split(step):
            z = coder.encode(part.to(coder.W_dec.device, torch.float32)).cpu()
            held = truth[low : low + len(part)].astype(np.float32)
            for i, share in enumerate(THRESHOLDS):
                fires = (z > share * largest).numpy()
                both[i] += (csr_matrix(fires.T.astype(np.float32)) @ held).toarray()
                fired[i] += fires.sum(0)
            low += len(part)
    true = np.asarray(truth.sum(0, dtype=np.int64)).ravel()
    f1 = 2 * both / np.maximum(fired[:, :, None] + true, 1)
    return f1.max(0).astype(np.float64), fired[0]


class Matches(NamedTuple):
    """Latents that have a true concept with words."""

    latents: list[int]
    concepts: Int[np.ndarray, " latents"]
    """Of each, its number in the inventory."""

    num_live: int


def match(
    f1: Float[np.ndarray, "d_sae concepts"],
    fired: Int[np.ndarray, " d_sae"],
    ids: Sequence[str],
    inventory: Inventory,
    *,
    least_f1: float,
    min_fired: int,
) -> Matches:
    """The concept each latent fires most exactly at, where it is matched; ties by fewer words."""
    number = {id: i for i, id in enumerate(inventory.ids)}
    sizes = [len(inventory.words[number[id]]) if id in number else math.inf for id in ids]
    order = np.argsort(sizes, kind="stable")
    best: list[int] = order[f1[:, order].argmax(1)].tolist()
    is_live = fired >= min_fired
    latents = [
        latent
        for latent in np.flatnonzero(is_live).tolist()
        if f1[latent, best[latent]] >= least_f1 and ids[best[latent]] in number
    ]
    concepts = np.array([number[ids[best[latent]]] for latent in latents], dtype=int)
    return Matches(latents, concepts, int(is_live.sum()))


class Truth(NamedTuple):
    """What explanations of matched latents come to."""

    is_right: Bool[np.ndarray, " latents"]
    precision: Float[np.ndarray, " latents"]
    """NaN where there is no keyword."""

    recall: Float[np.ndarray, " latents"]
    named: set[frozenset[str]]
    """Concepts that are named, by their words."""

    rightly: set[frozenset[str]]
    wanted: set[frozenset[str]]
    """True concepts of the latents."""

    num_keywords: list[int]


def judge(
    keywords: Sequence[Sequence[str]], matches: Matches, inventory: Inventory, num: int
) -> Truth:
    """``keywords``, one list per matched latent, against the true concepts."""
    naming = name_concepts(keywords, inventory, num)
    rows = np.arange(len(keywords))
    words = inventory.words
    said = [None if c < 0 else words[c] for c in naming.named.tolist()]
    true = [words[c] for c in matches.concepts.tolist()]
    is_right = np.array([a == b for a, b in zip(said, true, strict=True)], dtype=bool)
    having = np.array([bool(own) for own in keywords], dtype=bool)
    precision = np.where(having, naming.precision[rows, matches.concepts], np.nan)
    return Truth(
        is_right,
        precision,
        naming.recall[rows, matches.concepts],
        {own for own in said if own is not None},
        {own for own, right in zip(true, is_right, strict=True) if right},
        set(true),
        [min(len(own), num) for own in keywords],
    )


def inventory_of(text: Sequence[str], ids: Sequence[str]) -> Inventory:
    """Concepts with words among those of ``text``, which are counted."""
    words, counts = np.unique(np.array(text), return_counts=True)
    frequency = dict(zip(words.tolist(), counts.tolist(), strict=True))
    kept, own = [], []
    for id in ids:
        if CONCEPTS[id].scope == "token":
            occurring = frozenset(word.lower() for word in lexicon(id)) & frequency.keys()
            if occurring:
                kept.append(id)
                own.append(frozenset(occurring))
    return Inventory(kept, own, frequency)
