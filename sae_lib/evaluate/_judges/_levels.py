"""Judges that give every token a level by looking it up: all their answers follow from levels."""

from abc import ABC, abstractmethod
from collections.abc import Sequence

from sae_lib.evaluate._judges.base import YES, Asked, Description, Excerpt, Judge, Scores

TOP = 10.0
"""Level of a token that fits as well as can be."""


class LevelJudge(Judge, ABC):
    """Says how well each token fits, from 0 to 10; a window is active where any token fits."""

    @abstractmethod
    def levels(self, description: Description, excerpt: Excerpt) -> list[float] | None:
        """One level per token; None where the judge can say nothing about the description."""

    @abstractmethod
    def traits(self, excerpt: Excerpt) -> set[str]:
        """What the highlighted tokens of a window have."""

    def detect(self, asked: Sequence[Asked]) -> Scores:
        return [
            [_yes(self.levels(description, excerpt)) for excerpt in excerpts]
            for description, excerpts in asked
        ]

    def fuzz(self, asked: Sequence[Asked]) -> Scores:
        return [
            [_share(self.levels(description, excerpt), excerpt) for excerpt in excerpts]
            for description, excerpts in asked
        ]

    def simulate(self, asked: Sequence[Asked]) -> list[list[list[float] | None]]:
        return [
            [self.levels(description, excerpt) for excerpt in excerpts]
            for description, excerpts in asked
        ]

    def intrude(self, groups: Sequence[Sequence[Excerpt]]) -> list[int | None]:
        """The window whose highlighted tokens have least in common with those of the others."""
        found: list[int | None] = []
        for group in groups:
            traits = [self.traits(excerpt) for excerpt in group]
            common = [
                sum(_overlap(own, other) for j, other in enumerate(traits) if j != i)
                for i, own in enumerate(traits)
            ]
            found.append(common.index(min(common)) if group else None)
        return found


def _yes(levels: list[float] | None) -> float | None:
    """Above `YES` exactly where a token fits, and more so the better it does."""
    if levels is None:
        return None
    best = max(levels, default=0.0)
    return YES + (1 - YES) * best / TOP if best > 0 else 0.0


def _share(levels: list[float] | None, excerpt: Excerpt) -> float | None:
    """Share of the highlighted tokens that fit."""
    if levels is None or not any(excerpt.marked):
        return None
    marked = [
        level > 0 for level, is_marked in zip(levels, excerpt.marked, strict=True) if is_marked
    ]
    return sum(marked) / len(marked)


def _overlap(one: set[str], other: set[str]) -> float:
    return len(one & other) / max(1, len(one | other))
