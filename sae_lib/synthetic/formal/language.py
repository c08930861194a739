"""What formal languages have in common: seeded strings in disjoint splits, and their floor.

String *i* of a split depends on the config and on (split, i) only. Every text belongs to one split,
by its hash, so that no test string occurs in training; derivations of other splits' texts are
thrown away, as are those that are shorter or longer than the config allows. What is left follows
the grammar given that length: p(text) = p_grammar(text) / P(length is allowed). That a split lacks
the texts of the others is not taken into account: nobody can know it but by memorising texts. This
is harmless as long as no text is common, which is what the shortest length is for: one in six
strings of the bare Dyck grammar is ``( )``, and they would all be in one split.
"""

import hashlib
import random
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import log
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from sae_lib.config import Config
from sae_lib.errors import BadInput, UnknownName
from sae_lib.synthetic.formal.pcfg import Grammar, Rules

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MOST_ATTEMPTS = 100_000


@dataclass(frozen=True, slots=True)
class Truth:
    """What holds at each token of a string, as far as the tokens up to it tell."""

    concepts: tuple[frozenset[str], ...]
    """Per token, ids of the concepts that hold; the language describes them."""
    measures: dict[str, tuple[int, ...]]
    """Per name, one number for each token."""


@dataclass(frozen=True, slots=True)
class FormalString:
    """A string of a language."""

    index: int
    split: str
    tokens: tuple[str, ...]


class FormalLanguage(Config):
    """Dials of a language, and the language they make."""

    concepts: ClassVar[dict[str, str]]
    """Description of each concept that `truth` may name."""

    measures: ClassVar[dict[str, str]]
    """Description of each number that `truth` gives."""

    seed: int = 0
    """Decides all strings; string i of a split depends on this, i and the dials only."""

    min_tokens: int = Field(default=1, ge=1)
    """Shorter strings are drawn again."""

    max_tokens: int = Field(default=128, ge=1)
    """Longer strings are drawn again, and do not exist for the floor either."""

    @model_validator(mode="after")
    def _strings_exist(self) -> "FormalLanguage":
        if self.min_tokens > self.max_tokens:
            raise ValueError("min_tokens must not exceed max_tokens")
        _ = self.grammar  # dials that make strings endless are refused here
        return self

    @abstractmethod
    def rules(self) -> Rules:
        """The grammar; it starts with ``S``."""

    @abstractmethod
    def truth(self, tokens: Sequence[str]) -> Truth:
        """What holds at each token. Raises `BadInput` where a token cannot follow the others."""

    @cached_property
    def grammar(self) -> Grammar:
        """The rules, ready to be drawn from."""
        return Grammar(self.rules())

    @cached_property
    def log_allowed(self) -> float:
        """Log of the share of the grammar's strings that have an allowed length."""
        shares = self.grammar.length_probs(self.max_tokens)
        return log(shares[self.min_tokens :].sum())


def split_of_text(text: str) -> Split:
    """Six eighths of all texts are for training, one for validation, one for tests."""
    place = hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 8
    return "train" if place < 6 else "validation" if place == 6 else "test"


def formal_string(language: FormalLanguage, index: int, *, split: Split = "train") -> FormalString:
    """String ``index`` of ``split``. Raises `BadInput` where the dials leave the split no text."""
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    if index < 0:
        raise BadInput("strings are numbered from 0", key="index", value=index)
    stream = f"{language.seed}/{split}/{index}".encode()
    # only random() is used: its sequence is the same in every version of Python
    seed = int.from_bytes(hashlib.blake2b(stream, digest_size=8).digest())
    uniform = random.Random(seed).random
    grammar, least, most = language.grammar, language.min_tokens, language.max_tokens
    for _ in range(MOST_ATTEMPTS):
        words = grammar.derive(uniform, most)
        if words and len(words) >= least and split_of_text(" ".join(words)) == split:
            return FormalString(index, split, tuple(words))
    raise BadInput(
        f"no string of {least} to {most} tokens is in the split {split}; allow more lengths",
        key="min_tokens",
        value=least,
    )


def formal_strings(
    language: FormalLanguage, start: int = 0, stop: int | None = None, *, split: Split = "train"
) -> Iterator[FormalString]:
    """Strings ``start`` to ``stop`` (not included) of ``split``; without end if None."""
    index = start
    while stop is None or index < stop:
        yield formal_string(language, index, split=split)
        index += 1


def surprises(language: FormalLanguage, strings: Sequence[Sequence[str]]) -> list[float]:
    """Per string, -log p(string and its end) in nats; inf for what the language does not have."""
    return [
        language.log_allowed - log_p
        if language.min_tokens <= len(words) <= language.max_tokens
        else float("inf")
        for words, log_p in zip(strings, language.grammar.log_probs(strings), strict=True)
    ]


def floor(language: FormalLanguage, num_strings: int, *, split: Split = "test") -> float:
    """Mean surprise of an ideal predictor, nats per predicted token (the end mark included)."""
    strings = [one.tokens for one in formal_strings(language, 0, num_strings, split=split)]
    return sum(surprises(language, strings)) / sum(len(words) + 1 for words in strings)
