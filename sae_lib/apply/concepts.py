"""Concept recovery: which of the world's true concepts have a latent of their own?

A latent *predicts* a concept at the tokens where its activation exceeds a threshold. For every
pair of latent and concept the best of a few thresholds is found on one half of the text; concepts
and latents are then matched one to one so that the sum of F1 is largest (Hungarian method), and
each match is scored on the other half, which nobody has looked at:

    F1 = 2 TP / (tokens predicted + tokens true)

``coverage`` at tau is the share of *all* concepts of the inventory whose match reaches F1 >= tau;
a concept that hardly occurs in the text counts as not recovered. Concepts that are active at
exactly the same tokens (a kind of document, and that it has some topic) are one concept, listed
under the first of their names. A dictionary may
split a concept over several latents (one per word, say): ``union`` scores the best few latents
together, predicting the concept where any of them does, chosen greedily on the first half.
``purity`` is the mean over live latents of the best F1 with any concept.

Methods, in the column ``method``: ``sae``; as a ceiling for one direction and one threshold per
concept ``linear_probes`` (logistic regression on the labels of text of its own, `PROBE_TEXT` times
as much as either half; thresholds come from the first half, as for everybody); and as floors
``random_dictionary`` (same width, same number of latents on) and ``coordinates`` (each coordinate
of the activation, both signs). The ceiling and the coordinates have no unions.

Sources: Huben et al. 2023 (ground-truth recovery), Karvonen et al. 2024 (coverage of known board
properties, F1 over thresholds). Differs from them: one latent for one concept, thresholds and
matches chosen on other text than is scored.
"""

from collections.abc import Sequence
from functools import cached_property
from itertools import pairwise
from math import sqrt
from typing import ClassVar, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix
from torch import Tensor

from sae_lib.activations.world_tokens import WorldTokens, enough_documents, read_world
from sae_lib.apply.base import ApplicationConfig, Applied, Bench, OnProgress, register
from sae_lib.apply.logistic import fit_logistic
from sae_lib.apply.probing import random_dictionary
from sae_lib.apply.reading import Encode, encoder
from sae_lib.errors import NotApplicable
from sae_lib.papers import Paper
from sae_lib.synthetic.world.concepts import CONCEPTS
from sae_lib.warehouse.rows import ApplicationRow, Measurement

QUANTILES = (0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Thresholds to try, as quantiles of a latent's activations where it is on; 0 is any activation."""

FRACTIONS = (0.1, 0.2, 0.3, 0.5, 0.7)
"""Further ones, as fractions of the activation that a twentieth of those where it is on exceed."""

NUM_LEVELS = len(QUANTILES) + len(FRACTIONS)

BANDS = (0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Edges of the frequency bands, shares of tokens."""

CHUNK_ROWS = 8192
WITHOUT_UNIONS = ("linear_probes", "coordinates")
"""Methods that have a latent on at nearly every token, or one for each concept."""

PROBE_TEXT = 2
"""Words that linear probes are fitted on, as a multiple of those that thresholds are chosen on.

Probes fitted on the very words that their thresholds are chosen on are too sure of them."""

LEAST_CHANCE = 0.05
"""Chance of a concept from which on its linear probe is on."""

MOST_CANDIDATES = 64
"""Latents that a union is chosen from: those that hit the concept most often."""


class Found(NamedTuple):
    """One concept and the latent matched to it."""

    concept: str
    frequency: float
    """Share of scored tokens at which the concept is active."""

    num_true: int
    """Scored tokens at which it is active."""

    latent: int | None
    """The matched latent; None when latents ran out."""

    f1: float
    """Of the match, on the scored half; 0 where there is nothing to score."""

    precision: float
    recall: float
    best_latent: int | None
    """The best latent when several concepts may share one."""

    best_f1: float
    union_f1: float
    """Of up to ``union`` latents together."""


class Recovery(NamedTuple):
    """What was found for one dictionary."""

    concepts: list[Found]
    purity: float | None
    """Mean best F1 of the live latents; None when none is live."""

    num_live: int

    def coverage(self, tau: float, *, shared: bool = False) -> float:
        """Share of concepts with F1 >= ``tau``."""
        values = [one.best_f1 if shared else one.f1 for one in self.concepts]
        return sum(value >= tau for value in values) / len(values)


@register
class ConceptsConfig(ApplicationConfig):
    """How concepts are matched with latents."""

    papers: ClassVar = (
        Paper(
            "Huben et al. 2023", "https://arxiv.org/abs/2309.08600", "recovery of known features"
        ),
        Paper("Karvonen et al. 2024", "https://arxiv.org/abs/2408.00113", "coverage"),
    )
    summary: ClassVar = "Which of the world's true concepts have a latent of their own."
    needs: ClassVar = frozenset({"labelled_texts"})
    headline: ClassVar = "coverage"
    dials: ClassVar = ("tokens", "f1")

    kind: Literal["concepts"] = "concepts"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    tokens: int = Field(default=100_000, ge=1000)
    """Words to choose thresholds and matches on, and as many others to score them on; linear
    probes are fitted on twice as many others."""

    f1: tuple[float, ...] = (0.5, 0.7, 0.8, 0.9)
    """Values of F1 from which on a concept counts as recovered."""

    union: int = Field(default=10, ge=1)
    """Latents that may share a concept where splitting is forgiven."""

    min_true: int = Field(default=10, ge=1)
    """Concepts with fewer true tokens in either half count as not recovered."""

    seed: int = Field(default=0, ge=0)
    """Seed of the random dictionary, and of the order in which linear probes see words."""

    def check(self, bench: Bench) -> None:
        if bench.world is None:
            raise NotApplicable(
                self.kind, "only the bundled world knows what is true of its tokens"
            )

    def apply(self, bench: Bench, on_progress: OnProgress) -> dict[str, Applied]:
        assert bench.world is not None  # `check` came first

        def read(split: str, num_tokens: int) -> WorldTokens:
            assert bench.world is not None
            docs = enough_documents(bench.world, num_tokens, split=f"concepts/{split}")
            return read_world(bench.model, [bench.site], docs)

        probes = _linear(read("train", PROBE_TEXT * self.tokens), bench.site, self.seed)
        chosen, scored = read("validation", self.tokens), read("test", self.tokens)
        steps = 2 * len(bench.coders) + 1
        on_progress(1, steps)
        floor = self._rows(
            "linear_probes",
            recover(probes, chosen, scored, bench.site, self.min_true, 0),
        )
        floor += self._rows(
            "coordinates",
            recover(_both_signs, chosen, scored, bench.site, self.min_true, 0),
        )
        applied = {}
        for done, (name, coder) in enumerate(bench.coders.items()):
            encode = encoder(coder)
            rows = self._rows(
                "sae", recover(encode, chosen, scored, bench.site, self.min_true, self.union)
            )
            on_progress(2 * done + 2, steps)
            x = chosen.x[bench.site]
            num_on = max(1, round(float((encode(x[:4096]) > 0).sum(1).float().mean())))
            control = random_dictionary(x.mean(0), coder.d_sae, num_on, self.seed)
            rows += self._rows(
                "random_dictionary",
                recover(control, chosen, scored, bench.site, self.min_true, self.union),
            )
            on_progress(2 * done + 3, steps)
            applied[name] = Applied([*rows, *floor], [])
        return applied

    def _rows(self, method: str, found: Recovery) -> list[ApplicationRow]:
        rows = []

        def add(task: str, measurement: Measurement) -> None:
            rows.append(ApplicationRow(self.kind, method, task, measurement))

        for tau in self.f1:
            for group, members in groups(found.concepts).items():
                for definition, values in (
                    ("one_to_one", [one.f1 for one in members]),
                    ("shared", [one.best_f1 for one in members]),
                    (f"union_of_{self.union}", [one.union_f1 for one in members]),
                ):
                    if definition.startswith("union") and method in WITHOUT_UNIONS:
                        continue
                    share = sum(value >= tau for value in values) / len(values)
                    error = sqrt(share * (1 - share) / len(values))
                    add(group, Measurement("coverage", share, definition, stderr=error,
                                           n=len(values), unit="concepts",
                                           params={"f1": tau, "tokens": self.tokens}))  # fmt: skip
        add("all", Measurement("purity", found.purity, "best_f1_of_live_latents",
                               n=found.num_live, unit="latents",
                               params={"tokens": self.tokens},
                               reason=None if found.num_live else "no latent fires"))  # fmt: skip
        if method == "sae":
            for one in found.concepts:
                reason = None
                if one.num_true < self.min_true:
                    reason = f"true of {one.num_true} tokens only"
                add(one.concept, Measurement(
                    "f1", None if reason else one.f1, "one_to_one", n=one.num_true, unit="tokens",
                    params={"latent": one.latent, "precision": round(one.precision, 4),
                            "recall": round(one.recall, 4), "frequency": one.frequency,
                            "best_latent": one.best_latent, "best_f1": round(one.best_f1, 4),
                            "union_f1": round(one.union_f1, 4),
                            "tokens": self.tokens},
                    reason=reason,
                ))  # fmt: skip
        return rows


def groups(found: Sequence[Found]) -> dict[str, list[Found]]:
    """All concepts, those of each scope, and those of each frequency band."""
    grouped: dict[str, list[Found]] = {"all": list(found)}
    for one in found:
        grouped.setdefault(f"scope:{CONCEPTS[one.concept].scope}", []).append(one)
    for low, high in pairwise(BANDS):
        members = [
            one for one in found if low <= one.frequency < high or one.frequency == high == 1
        ]
        if members:
            grouped[f"frequency:{low:g}-{high:g}"] = members
    return grouped


def _linear(fitted: WorldTokens, site: str, seed: int = 0) -> Encode:
    """One latent per concept: its chance by a logistic probe, less `LEAST_CHANCE`."""
    probes = fit_logistic(fitted.x[site], fitted.truth, seed=seed)
    return lambda x: (probes.log_odds(x).sigmoid() - LEAST_CHANCE).relu()


def _both_signs(x: Tensor) -> Tensor:
    """Each coordinate's excess over 0 and below 0: the neurons as a dictionary."""
    return torch.cat([x.relu(), (-x).relu()], dim=-1)


@torch.no_grad()
def _codes(encode: Encode, x: Tensor) -> csr_matrix:
    """Positive activations as a sparse matrix, float32."""
    parts_value, parts_column, counts = [], [], []
    width = 0
    for low in range(0, len(x), CHUNK_ROWS):
        z = encode(x[low : low + CHUNK_ROWS]).float().cpu()
        width = z.shape[1]
        rows, columns = (z > 0).nonzero(as_tuple=True)
        parts_value.append(z[rows, columns].numpy())
        parts_column.append(columns.numpy().astype(np.int32))
        counts.append(torch.bincount(rows, minlength=len(z)).numpy())
    ends = np.concatenate([[0], np.cumsum(np.concatenate(counts))])
    return csr_matrix(
        (np.concatenate(parts_value), np.concatenate(parts_column), ends), shape=(len(x), width)
    )


def _thresholds(z: csr_matrix) -> np.ndarray:
    """Thresholds of each latent, (levels, latents); infinite for one that is never on."""
    columns = z.tocsc()
    num_latents = len(columns.indptr) - 1
    order = np.lexsort((columns.data, np.repeat(np.arange(num_latents), np.diff(columns.indptr))))
    values = columns.data[order]
    starts, sizes = columns.indptr[:-1], np.diff(columns.indptr)
    out = np.full((NUM_LEVELS, num_latents), np.inf, dtype=np.float32)
    live = sizes > 0

    def at(level: float) -> np.ndarray:
        places = starts[live] + np.minimum((level * sizes[live]).astype(int), sizes[live] - 1)
        return values[places]

    for number, level in enumerate(QUANTILES):
        out[number, live] = at(level) if level else 0
    for number, fraction in enumerate(FRACTIONS, start=len(QUANTILES)):
        out[number, live] = fraction * at(0.95)
    return out


def _hits(
    z: csr_matrix, thresholds: np.ndarray, truth: csr_matrix
) -> tuple[np.ndarray, np.ndarray]:
    """True positives (concepts, latents) and predictions (latents) at one threshold per latent."""
    on = z.data > thresholds[z.indices]
    fired = csr_matrix((on.astype(np.float32), z.indices, z.indptr), shape=z.shape, copy=True)
    fired.eliminate_zeros()
    hits = np.asarray((truth.T.astype(np.float32) @ fired).todense())
    return hits, np.asarray(fired.sum(0)).ravel()


def _twins(*truths: csr_matrix) -> set[int]:
    """Concepts that are active at exactly the tokens of one that comes before them."""
    columns = [truth.tocsc() for truth in truths]
    seen: set[tuple[bytes, ...]] = set()
    twins = set()
    for number in range(len(columns[0].indptr) - 1):
        places = tuple(
            np.sort(c.indices[c.indptr[number] : c.indptr[number + 1]]).tobytes() for c in columns
        )
        if any(places) and places in seen:
            twins.add(number)
        seen.add(places)
    return twins


class _Fired:
    """Where each latent is above its thresholds, and where each concept is true."""

    def __init__(self, z: csr_matrix, levels: np.ndarray, truth: csr_matrix) -> None:
        self._z, self._levels, self._truth = z.tocsc(), levels, truth.tocsc()
        self.num_tokens = len(z.indptr) - 1

    def true(self, concept: int) -> np.ndarray:
        """Tokens at which the concept is active, as a mask."""
        mask = np.zeros(self.num_tokens, dtype=bool)
        start, end = self._truth.indptr[concept : concept + 2]
        mask[self._truth.indices[start:end]] = True
        return mask

    def on(self, latent: int, level: int) -> np.ndarray:
        """Tokens at which the latent is above its threshold of that level."""
        start, end = self._z.indptr[latent : latent + 2]
        return self._z.indices[start:end][self._z.data[start:end] > self._levels[level, latent]]

    def common(self, concept: int) -> np.ndarray:
        """The latents that are on most often where the concept is true."""
        rows = np.flatnonzero(self.true(concept))
        counts = np.zeros(self._levels.shape[1], dtype=np.int64)
        inside = np.zeros(self.num_tokens, dtype=bool)
        inside[rows] = True
        np.add.at(counts, self._column_of[inside[self._z.indices]], 1)
        order = np.argsort(-counts, kind="stable")[:MOST_CANDIDATES]
        return order[counts[order] > 0]

    @cached_property
    def _column_of(self) -> np.ndarray:
        return np.repeat(np.arange(self._levels.shape[1]), np.diff(self._z.indptr))

    def f1_of(self, concept: int, latents: Sequence[int], level_of: np.ndarray) -> float:
        """F1 of predicting the concept wherever one of the latents is on."""
        true, covered = self.true(concept), np.zeros(self.num_tokens, dtype=bool)
        for latent in latents:
            covered[self.on(latent, int(level_of[latent]))] = True
        return float(2 * (true & covered).sum() / max(1, true.sum() + covered.sum()))


def _union(fired: _Fired, concept: int, level_of: np.ndarray, most: int) -> list[int]:
    """Latents that together predict the concept best, added one by one while F1 rises."""
    true = fired.true(concept)
    num_true, hits, predicted, best = int(true.sum()), 0, 0, 0.0
    left = {int(j): fired.on(int(j), int(level_of[j])) for j in fired.common(concept)}
    covered = np.zeros(fired.num_tokens, dtype=bool)
    members: list[int] = []
    while left and len(members) < most:
        scores = {}
        for latent, tokens in left.items():
            new = tokens[~covered[tokens]]
            more = int(true[new].sum())
            f1 = 2 * (hits + more) / max(1, num_true + predicted + len(new))
            scores[latent] = (f1, more, len(new))
        latent = max(scores, key=lambda one: scores[one][0])
        f1, more, new = scores[latent]
        if f1 <= best:
            break
        best, hits, predicted = f1, hits + more, predicted + new
        covered[left.pop(latent)] = True
        members.append(latent)
    return members


def recover(
    encode: Encode,
    chosen: WorldTokens,
    scored: WorldTokens,
    site: str,
    min_true: int = 10,
    union: int = 10,
) -> Recovery:
    """Match concepts with latents on ``chosen`` and score the matches on ``scored``."""
    z, truth = _codes(encode, chosen.x[site]), chosen.truth
    true = np.asarray(truth.sum(0, dtype=np.int64)).ravel()
    levels = _thresholds(z)
    best = np.zeros((len(true), levels.shape[1]), dtype=np.float32)
    level_of = np.zeros(best.shape, dtype=np.int8)
    for number in range(NUM_LEVELS):
        hits, predicted = _hits(z, levels[number], truth)
        f1 = 2 * hits / np.maximum(1, predicted[None, :] + true[:, None])
        better = f1 > best
        best[better] = f1[better]
        level_of[better] = number
    twins = _twins(truth, scored.truth)
    best[true < min_true] = 0
    best[list(twins)] = 0
    concepts, latents = linear_sum_assignment(best, maximize=True)
    matched = dict(zip(concepts.tolist(), latents.tolist(), strict=True))
    shared = best.argmax(1)

    again, truth_again = _codes(encode, scored.x[site]), scored.truth
    true_again = np.asarray(truth_again.sum(0, dtype=np.int64)).ravel()
    precision = np.zeros_like(best)
    recall = np.zeros_like(best)
    for number in range(NUM_LEVELS):
        hits, predicted = _hits(again, levels[number], truth_again)
        here = level_of == number
        precision[here] = (hits / np.maximum(1, predicted[None, :]))[here]
        recall[here] = (hits / np.maximum(1, true_again[:, None]))[here]
    f1 = 2 * precision * recall / np.maximum(1e-12, precision + recall)
    enough = (true >= min_true) & (true_again >= min_true)
    f1[~enough] = 0
    live = np.bincount(again.indices, minlength=best.shape[1]) > 0
    # a latent's own best concept is chosen on the first half as well
    purity = f1[best.argmax(0), np.arange(best.shape[1])][live]
    first, second = (_Fired(z, levels, truth), _Fired(again, levels, truth_again))
    found = []
    for row, name in enumerate(chosen.concepts):
        if row in twins:
            continue
        members = _union(first, row, level_of[row], union) if enough[row] and union else []
        latent, other = matched.get(row), int(shared[row])
        found.append(
            Found(
                name,
                float(true_again[row] / len(scored.x[site])),
                int(true_again[row]),
                latent,
                0.0 if latent is None else float(f1[row, latent]),
                0.0 if latent is None else float(precision[row, latent]),
                0.0 if latent is None else float(recall[row, latent]),
                other,
                float(f1[row, other]),
                second.f1_of(row, members, level_of[row]) if members else 0.0,
            )
        )
    return Recovery(found, float(purity.mean()) if live.any() else None, int(live.sum()))
