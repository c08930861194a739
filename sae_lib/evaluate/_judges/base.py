"""What every judge is asked and answers.

A judge sees descriptions and windows, never activations. Requests of many latents come together,
so that a judge may batch them. A window about which nothing readable was said has None.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from sae_lib.config import Config
from sae_lib.errors import NotApplicable
from sae_lib.llm.quoting import marked_text, running_text

YES = 0.5
"""Scores above this mean yes."""


class Description(NamedTuple):
    """What is said about a latent."""

    text: str
    """One line for readers."""

    keywords: tuple[str, ...] = ()
    """Words, most telling first."""

    scores: tuple[float, ...] = ()
    """One positive number per keyword."""

    concept: str | None = None
    """Id of the concept of the world that it names, where it names one."""


class Excerpt(NamedTuple):
    """A window of text as a judge sees it."""

    tokens: tuple[str, ...]
    document: int = -1
    """Number of the document in its corpus; -1 for text that is in none."""

    positions: tuple[int, ...] = ()
    """Place of each token in its document, special tokens counted."""

    marked: tuple[bool, ...] = ()
    """Which tokens are highlighted."""

    @property
    def text(self) -> str:
        """Its tokens as running text."""
        return shown(self.tokens)

    @property
    def marked_text(self) -> str:
        """The same, each run of highlighted tokens between double angle brackets."""
        return marked_text(self.tokens, self.marked)


class Asked(NamedTuple):
    """A description and the windows it is to be held against."""

    description: Description
    excerpts: Sequence[Excerpt]


class Sets(NamedTuple):
    """A description and sets of texts, one of which it is about."""

    description: Description
    sets: Sequence[Sequence[str]]


Scores = list[list[float | None]]
"""Per request and window a number, larger for a better fit; None where nothing was readable."""


class Judge:
    """Answers questions; a judge that cannot answer one says so with `NotApplicable`."""

    is_graded: bool = True
    """Whether scores are more than yes and no, so that windows can be ranked by them."""

    def detect(self, asked: Sequence[Asked]) -> Scores:
        """How likely the latent is active in each window, in [0, 1]."""
        raise _cannot("detection", "this judge does not read windows.")

    def select(self, asked: Sequence[Asked]) -> list[list[bool] | None]:
        """Which windows of a numbered list are active; None where the reply says nothing."""
        return [
            None if None in found else [score > YES for score in found if score is not None]
            for found in self.detect(asked)
        ]

    def fuzz(self, asked: Sequence[Asked]) -> Scores:
        """How likely the highlights of each window are right, in [0, 1]."""
        raise _cannot("fuzzing", "this judge does not read highlights.")

    def simulate(self, asked: Sequence[Asked]) -> list[list[list[float] | None]]:
        """Activation of each token, from 0 to 10."""
        raise _cannot("simulation", "this judge does not simulate activations.")

    def surprise(self, asked: Sequence[Asked]) -> Scores:
        """By how much the description lowers the loss of each window, in nats."""
        raise _cannot("surprisal", "this judge gives no likelihoods of texts.")

    def resemble(self, asked: Sequence[Asked]) -> Scores:
        """Cosine between description and each window."""
        raise _cannot("embedding", "this judge gives no embeddings.")

    def intrude(self, groups: Sequence[Sequence[Excerpt]]) -> list[int | None]:
        """Place of the window that does not belong, per group."""
        raise _cannot("intruder", "this judge does not compare windows.")

    def write(
        self, descriptions: Sequence[Description], num: int, *, fitting: bool
    ) -> list[list[str] | None]:
        """``num`` texts per description that fit it, or that have nothing to do with it."""
        raise _cannot("writing", "this judge writes no texts.")

    def continue_like(self, examples: Sequence[Sequence[str]], num: int) -> list[list[str] | None]:
        """``num`` new texts per list of examples, with what their highlights have in common."""
        raise _cannot("writing", "this judge writes no texts.")

    def match(self, asked: Sequence[Sets]) -> list[int | None]:
        """Place of the set of texts that the description is about."""
        raise _cannot("matching", "this judge does not compare sets of texts.")


class JudgeConfig(Config):
    """Which judge, and its dials."""

    kind: str
    """Name in experiment files."""

    def start(self, bench: Any) -> Judge:
        """A judge, ready; ``bench`` is the metric's. Raises `NotApplicable` where it cannot be."""
        raise TypeError(f"{type(self).__name__} does not start")

    def models(self) -> list[str]:
        """Language models whose weights decide the answers."""
        return []


def shown(tokens: Sequence[str]) -> str:
    """Tokens as running text; newlines are made visible."""
    return running_text(tokens)


def _cannot(scorer: str, reason: str) -> NotApplicable:
    return NotApplicable(scorer, reason)
