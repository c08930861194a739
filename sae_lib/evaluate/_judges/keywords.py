"""A judge without a language model: a description is its keywords, and a window fits that has one.

Deterministic and offline. It reads nothing but single tokens, so descriptions that say more than
which words there are (order, position, what comes next) do not gain from it.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from sae_lib.evaluate._judges._levels import TOP, LevelJudge
from sae_lib.evaluate._judges.base import (
    Asked,
    Description,
    Excerpt,
    Judge,
    JudgeConfig,
    Scores,
    Sets,
)


class KeywordsConfig(JudgeConfig):
    """Judge by the keywords of a description."""

    kind: Literal["keywords"] = "keywords"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    num_keywords: int = Field(default=10, gt=0)
    """Keywords that are read, the most telling first."""

    min_share: float = Field(default=0.1, ge=0, le=1)
    """Keywords with less than this share of the first one's score are not read."""

    def start(self, bench: Any) -> Judge:
        return KeywordJudge(self)


class KeywordJudge(LevelJudge):
    """A token's level is the score of the keyword that it is, the best keyword having 10."""

    def __init__(self, cfg: KeywordsConfig | None = None) -> None:
        self.cfg = cfg or KeywordsConfig()

    def weights(self, description: Description) -> dict[str, float]:
        """Level by keyword, in lower case; empty where the description has none."""
        words, scores = (
            description.keywords,
            description.scores or (1.0,) * len(description.keywords),
        )
        top = max(scores, default=0.0)
        found: dict[str, float] = {}
        for word, score in list(zip(words, scores, strict=True))[: self.cfg.num_keywords]:
            if score > 0 and score >= self.cfg.min_share * top:
                found.setdefault(word.strip().lower(), TOP * score / top)
        return found

    def levels(self, description: Description, excerpt: Excerpt) -> list[float] | None:
        weights = self.weights(description)
        return [weights.get(token.strip().lower(), 0.0) for token in excerpt.tokens]

    def traits(self, excerpt: Excerpt) -> set[str]:
        marked = zip(excerpt.tokens, excerpt.marked, strict=True)
        return {token.strip().lower() for token, is_marked in marked if is_marked}

    def resemble(self, asked: Sequence[Asked]) -> Scores:
        """Cosine of the keywords' levels with the counts of the window's words."""
        return [
            [
                _cosine(self.weights(description), Counter(t.strip().lower() for t in e.tokens))
                for e in excerpts
            ]
            for description, excerpts in asked
        ]

    def match(self, asked: Sequence[Sets]) -> list[int | None]:
        """The set in which keywords, or else words of the description, occur most often."""
        found: list[int | None] = []
        for description, sets in asked:
            words = list(self.weights(description)) or description.text.split()
            stems = {stem(word) for word in words} - {""}
            counts = [
                sum(stem(word) in stems for text in texts for word in text.split())
                for texts in sets
            ]
            found.append(counts.index(max(counts)) if counts else None)
        return found


def stem(word: str) -> str:
    """A word in lower case without punctuation around it and without the s of a plural."""
    plain = word.strip(".,;:!?'\"()[]<>").lower()
    return (
        plain[:-1] if plain.endswith("s") and not plain.endswith("ss") and len(plain) > 3 else plain
    )


def _cosine(one: dict[str, float], other: Counter[str]) -> float:
    dot = sum(weight * other[word] for word, weight in one.items())
    length = math.hypot(*one.values()) * math.hypot(*other.values())
    return dot / length if length > 0 else 0.0
