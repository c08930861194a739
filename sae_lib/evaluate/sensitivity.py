"""Sensitivity: does a latent fire on other text that is similar to its examples?

    rate = share of n texts, similar to the latent's strongest examples, on which it fires anywhere

The texts are either written by the judge, which sees the examples with the active tokens marked, or
chosen among short texts by cosine: examples as the words that carry the activation, weighted by
their share of it and by inverse document frequency, against the words of each text.

Beside it stands the rate on random texts and on texts similar to *another* latent's examples: a
latent that is always on fires on all of them. Complements the detection scores, which ask whether
it fires only there. Source: Tian et al. 2025 (sensitivity is the rate on generated text); the
choice among short texts is a stand-in for its language model. Differs from the paper in that, and
in the two controls.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from scipy.sparse import csr_matrix
from torch import Tensor

from sae_lib.evaluate._described import Evidence, check_corpus, read_evidence
from sae_lib.evaluate._judgements import over, share_of
from sae_lib.evaluate._judges import AnyJudge, Excerpt, Judge, KeywordsConfig, shown
from sae_lib.evaluate._text_pool import TextPool, text_maxima, text_pool
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.explain.vocabulary import read_vocabulary
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ExampleRow, LatentScoreRow

NAME = "sensitivity"
_OVERSAMPLE = 3
"""Texts looked at per wanted text, since those that are part of an example are left out."""

_UNIT = ("higher", 0.0, 1.0)
SIMILAR = Definition(
    "sensitivity_rate", "similar_texts", "share of texts similar to its examples that it fires on",
    *_UNIT,
)  # fmt: skip
RANDOM = Definition(
    "sensitivity_rate", "random_texts", "share of random texts that it fires on", *_UNIT
)
OTHER = Definition(
    "sensitivity_rate", "another_latent",
    "share of texts similar to another latent's examples that it fires on", *_UNIT,
)  # fmt: skip
GAIN = Definition(
    "sensitivity_gain", "over_random_texts", "rate on similar texts less rate on random ones",
    "higher", -1.0, 1.0,
)  # fmt: skip
UNREAD = Definition(
    "sensitivity_unreadable", "share_of_latents", "latents for which no text was written or found",
    "lower", 0.0, 1.0,
)  # fmt: skip


def firing_rate(
    maxima: Float[Tensor, " texts"], largest: float, *, threshold: float = 0.0
) -> float:
    """Share of texts in which the latent exceeds ``threshold`` times its largest activation."""
    return float((maxima > threshold * largest).double().mean())


def active_words(examples: Sequence[ExampleRow]) -> dict[str, float]:
    """How much of the examples' activation falls on each word, in lower case; sums to 1."""
    found: dict[str, float] = {}
    for row in examples:
        for token, activation in zip(row.tokens, row.activations, strict=True):
            if activation > 0:
                word = token.strip().lower()
                found[word] = found.get(word, 0.0) + activation
    total = sum(found.values())
    return {word: share / total for word, share in found.items()}


def most_similar(
    queries: Sequence[dict[str, float]], texts: Sequence[frozenset[str]], num: int
) -> list[list[int]]:
    """Per query the ``num`` texts of the largest cosine above 0; ties go to the earlier text."""
    column = {word: i for i, word in enumerate(sorted(frozenset().union(*texts)))}
    known = _matrix([dict.fromkeys(words, 1.0) for words in texts], column)
    idf = np.log(len(texts) / np.asarray(known.sum(0)).ravel())
    asked, held = _matrix(queries, column).multiply(idf).tocsr(), known.multiply(idf).tocsr()
    length = np.sqrt(np.asarray(held.multiply(held).sum(1)).ravel())
    cosine = (asked @ held.T).toarray() / np.maximum(length, 1e-12)
    order = np.argsort(-cosine, axis=1, kind="stable")[:, :num]
    return [[int(i) for i in row if cosine[q, i] > 0] for q, row in enumerate(order)]


@register
class SensitivityConfig(TaskMetric):
    papers = (Paper("Tian et al. 2025", "https://arxiv.org/abs/2509.23717", "feature sensitivity"),)
    summary = "whether latents fire on other text that is similar to their examples"

    name: Literal["sensitivity"] = "sensitivity"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    judge: AnyJudge = KeywordsConfig()
    """Who writes texts, where ``writer`` is judge: local or openai."""

    writer: Literal["pool", "judge"] = "pool"
    """Whether similar texts are chosen among short texts, or written by the judge."""

    num_latents: int = Field(default=100, gt=0)
    """Latents that are drawn."""

    num_examples: int = Field(default=5, gt=0)
    """Strongest stretches of training text that stand for a latent."""

    num_texts: int = Field(default=10, gt=0)
    """Similar texts per latent."""

    random_texts: int = Field(default=200, gt=0)
    """Random texts, the same for all latents."""

    threshold: float = Field(default=0.0, ge=0, lt=1)
    """Share of its largest activation on training text above which a latent fires."""

    pool_texts: int = Field(default=3000, gt=0)
    """Short texts to choose from."""

    text_tokens: int = Field(default=64, gt=1)
    """Tokens of a text that are read."""

    min_activations: int = Field(default=15, gt=0)
    """Tokens of training and of held-out text on which a latent that is drawn fires at least."""

    train_tokens: int = Field(default=32_768, gt=0)
    """Training tokens that examples are taken from, at most."""

    held_out_tokens: int = Field(default=16_384, gt=0)
    """Held-out tokens on which latents must fire to be drawn, at most."""

    radius: int = Field(default=10, gt=0)
    """Tokens of an example on either side of the strongest one."""

    batch_contexts: int = Field(default=32, gt=0)
    """Contexts per forward pass."""

    seed: int = Field(default=0, ge=0)
    """Decides which latents and random texts are drawn."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [SIMILAR, RANDOM, OTHER, GAIN, UNREAD]

    def check(self, bench: Bench) -> None:
        check_corpus(NAME, bench)

    def models(self) -> list[str]:
        return self.judge.models()

    @torch.no_grad()
    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        read = read_evidence(
            bench,
            ["max_act"],
            num_latents=self.num_latents,
            at_least=self.min_activations,
            train_tokens=self.train_tokens,
            held_out_tokens=self.held_out_tokens,
            batch_contexts=self.batch_contexts,
            radius=self.radius,
            with_truth=False,
            seed=self.seed,
        )
        vocabulary = read_vocabulary(
            bench.model.tokenizer, bench.model.vocab_size, bench.model.special_ids
        )
        judge = self.judge.start(bench)
        pool = text_pool(bench, vocabulary, num_texts=self.pool_texts, max_tokens=self.text_tokens)
        found = {}
        for done, name in enumerate(bench.coders):
            on_progress(done, len(bench.coders))
            found[name] = self._score(bench, read, name, judge, pool)
        on_progress(len(bench.coders), len(bench.coders))
        return found

    def _score(
        self, bench: Bench, read: Evidence, name: str, judge: Judge, pool: TextPool
    ) -> Measured:
        latents = read.codes.latents[name]
        examples = [
            read.described[name].examples.get(latent, [])[: self.num_examples]
            for latent in latents.tolist()
        ]
        largest = read.described[name].largest[latents]
        on_pool = text_maxima(pool.held, bench.coders[name], latents)
        texts, maxima = self._texts(bench, name, judge, pool, examples, on_pool, latents)

        def rate(latent: int, chosen: Sequence[int], values: Tensor) -> float | None:
            if not chosen:
                return None
            own = values[torch.tensor(chosen), latent]
            return firing_rate(own, float(largest[latent]), threshold=self.threshold)

        draw = torch.Generator().manual_seed(self.seed)
        random = torch.randperm(len(on_pool), generator=draw)[: self.random_texts].tolist()
        num = len(latents)
        similar = [rate(i, texts[i], maxima) for i in range(num)]
        anything = [rate(i, random, on_pool) for i in range(num)]
        other = [rate(i, texts[(i + 1) % num], maxima) if num > 1 else None for i in range(num)]
        gain = [
            a - b for a, b in zip(similar, anything, strict=True) if a is not None and b is not None
        ]
        told = {"writer": self.writer, "threshold": self.threshold, "seed": self.seed}
        none = "no latent has similar texts"
        unread = sum(not own for own in texts)
        return Measured(
            [
                SIMILAR.row(over(similar, "latents", none=none), **told),
                RANDOM.row(over(anything, "latents", none=none), **told),
                OTHER.row(over(other, "latents", none=none), **told),
                GAIN.row(over(gain, "latents", none=none), **told),
                UNREAD.row(share_of(unread, num, "latents"), **told),
            ],
            [
                LatentScoreRow(
                    latent, NAME, SIMILAR.name, SIMILAR.definition, value, len(own), self.writer,
                    None if value is not None else none,
                )
                for latent, value, own in zip(latents.tolist(), similar, texts, strict=True)
            ],
        )  # fmt: skip

    def _texts(
        self,
        bench: Bench,
        name: str,
        judge: Judge,
        pool: TextPool,
        examples: Sequence[Sequence[ExampleRow]],
        on_pool: Float[Tensor, "texts latents"],
        latents: Int[Tensor, " latents"],
    ) -> tuple[list[list[int]], Float[Tensor, "more_texts latents"]]:
        """Places of the texts similar to each latent's examples, and what latents do on all."""
        if self.writer == "pool":
            queries = [active_words(rows) for rows in examples]
            near = most_similar(queries, pool.words, _OVERSAMPLE * self.num_texts)
            texts = pool.sentences.texts
            return [
                _others(own, texts, [shown(r.tokens) for r in rows])[: self.num_texts]
                for own, rows in zip(near, examples, strict=True)
            ], on_pool
        marked = [
            [
                Excerpt(tuple(r.tokens), marked=tuple(a > 0 for a in r.activations)).marked_text
                for r in rows
            ]
            for rows in examples
        ]
        written = [own or [] for own in judge.continue_like(marked, self.num_texts)]
        places, flat = [], []
        for own in written:
            places.append(list(range(len(flat), len(flat) + len(own))))
            flat += own
        if not flat:
            return places, torch.zeros(0, len(latents))
        held = bench.reader.read(flat, max_tokens=self.text_tokens)
        return places, text_maxima(held, bench.coders[name], latents)


def _others(places: Sequence[int], texts: Sequence[str], examples: Sequence[str]) -> list[int]:
    """Places of texts that are not part of an example."""
    return [i for i in places if not any(texts[i] in example for example in examples)]


def _matrix(rows: Sequence[dict[str, float]], column: dict[str, int]) -> csr_matrix:
    cells = [
        (i, column[word], value)
        for i, row in enumerate(rows)
        for word, value in row.items()
        if word in column
    ]
    i, j, values = zip(*cells, strict=True) if cells else ((), (), ())
    shape = (len(rows), len(column))
    return csr_matrix(
        (np.array(values, dtype=float), (np.array(i, dtype=int), np.array(j, dtype=int))),
        shape=shape,
    )
