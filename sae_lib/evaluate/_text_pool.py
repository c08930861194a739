"""Short texts to choose from, in place of a language model that writes them to order.

On the bundled world they are sentences of documents that no corpus holds; elsewhere sentences of
the held-out text. Each is read alone, so what an earlier sentence said is not known in it.
"""

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.errors import NotApplicable
from sae_lib.evaluate._judges.base import Description
from sae_lib.evaluate._judges.keywords import KeywordJudge
from sae_lib.evaluate.bench import Bench
from sae_lib.evaluate.reader import TextActivations
from sae_lib.explain.vocabulary import Vocabulary
from sae_lib.saes.base import SparseCoder
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents

MIN_WORDS, MAX_WORDS = 3, 40

_STREAM = "short-texts/test"


class Sentences(NamedTuple):
    """Different short texts."""

    texts: list[str]
    concepts: list[frozenset[str]]
    """What holds somewhere in each; empty sets where the truth is not known."""


class TextPool(NamedTuple):
    """Short texts with what the model holds on their tokens."""

    sentences: Sentences
    held: TextActivations
    words: list[frozenset[str]]
    """The tokens of each text in lower case."""

    def choose(
        self, description: Description, num: int, *, seed: int
    ) -> tuple[list[int], list[int]] | None:
        """Places of ``num`` texts that fit and of ``num`` that do not; None where too few fit.

        By the concept where one is named and the truth is known, else by keywords, each keyword
        taking its turn.
        """
        rng = np.random.default_rng([seed, len(self.words)])
        order = rng.permutation(len(self.words)).tolist()
        if description.concept is not None and any(self.sentences.concepts):
            has = [description.concept in held for held in self.sentences.concepts]
            fitting = [i for i in order if has[i]]
        else:
            weights = KeywordJudge().weights(description)
            has = [not weights.keys().isdisjoint(words) for words in self.words]
            turns = [[i for i in order if has[i] and w in self.words[i]] for w in weights]
            fitting = _in_turns([turn for turn in turns if turn])
        neutral = [i for i in order if not has[i]]
        if len(fitting) < num or len(neutral) < num:
            return None
        return fitting[:num], neutral[:num]


def text_pool(bench: Bench, vocabulary: Vocabulary, *, num_texts: int, max_tokens: int) -> TextPool:
    """Sentences of the world where the model reads its language, else of the held-out text."""
    if bench.world is not None:
        sentences = world_sentences(bench.world, num_texts)
    else:
        sentences = corpus_sentences(bench, num_texts)
    if not sentences.texts:
        raise NotApplicable("short texts", "the held-out text has no sentence of 3 to 40 words.")
    held = bench.reader.read(sentences.texts, max_tokens=max_tokens)
    return TextPool(sentences, held, words_of(held, vocabulary))


def world_sentences(world: WorldConfig, num_texts: int) -> Sentences:
    """Different sentences of documents of the world that are in no corpus."""
    found: dict[str, frozenset[str]] = {}
    for doc in documents(world, split=_STREAM):
        start = 0
        concepts = doc.concepts
        for end, word in enumerate(doc.tokens):
            if word not in (".", "?", "!") and end + 1 < len(doc.tokens):
                continue
            own = slice(start, end + 1)
            start = end + 1
            if MIN_WORDS <= len(doc.tokens[own]) <= MAX_WORDS:
                found.setdefault(" ".join(doc.tokens[own]), frozenset().union(*concepts[own]))
        if len(found) >= num_texts:
            break
    chosen = list(found.items())[:num_texts]
    return Sentences([text for text, _ in chosen], [held for _, held in chosen])


def corpus_sentences(bench: Bench, num_texts: int) -> Sentences:
    """Different sentences of the held-out contexts, from their beginning."""
    split: Any = bench.split
    found: dict[str, None] = {}
    if split is None:
        return Sentences([], [])
    for number in range(split.num_contexts):
        held = split.rows([number])
        for document in held.document[held.keep].unique().tolist():
            ids = held.tokens[held.keep & (held.document == document)].tolist()
            text = bench.model.tokenizer.decode(ids)
            for sentence in re.split(r"(?<=[.!?])\s+|\n+", text):
                if MIN_WORDS <= len(sentence.split()) <= MAX_WORDS:
                    found.setdefault(sentence.strip())
        if len(found) >= num_texts:
            break
    texts = list(found)[:num_texts]
    return Sentences(texts, [frozenset()] * len(texts))


def words_of(held: TextActivations, vocabulary: Vocabulary) -> list[frozenset[str]]:
    """The tokens of each text, stripped and in lower case."""
    text, token = held.text.tolist(), held.token.tolist()
    found: list[set[str]] = [set() for _ in range(held.num_texts)]
    for i, id in zip(text, token, strict=True):
        found[i].add(vocabulary.merged(id))
    return [frozenset(words) for words in found]


@torch.no_grad()
def text_maxima(
    held: TextActivations, coder: SparseCoder[Any], latents: Int[Tensor, " latents"]
) -> Float[Tensor, "texts latents"]:
    """Largest activation of each latent in each text; special tokens do not count."""
    found = torch.zeros(held.num_texts, len(latents))
    own = latents.to(coder.W_dec.device)
    for texts, rows in held.chunks(coder.d_sae):
        x = held.x[rows].to(coder.W_dec.device, torch.float32)
        z = coder.encode(x)[:, own].float().cpu()
        where = (held.text[rows] - texts.start)[:, None].expand_as(z)
        into = found[texts.start : texts.stop]
        into.scatter_reduce_(0, where, z, "amax", include_self=False)
    return found


def _in_turns(turns: Sequence[Sequence[int]]) -> list[int]:
    """First of each, then second of each, and so on, without repeats."""
    found: dict[int, None] = {}
    for depth in range(max(map(len, turns), default=0)):
        for turn in turns:
            if depth < len(turn):
                found.setdefault(turn[depth])
    return list(found)
