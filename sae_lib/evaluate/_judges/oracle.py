"""A judge that knows the truth: a description names a concept of the world, and where it holds is
looked up.

It measures how well the named concept itself tells when the latent fires, with nothing lost on the
way through words: the ceiling for descriptions of that concept.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Literal

from sae_lib.activations.corpus import WORLD_SPLITS
from sae_lib.errors import NotApplicable
from sae_lib.evaluate._judges._levels import TOP, LevelJudge
from sae_lib.evaluate._judges.base import Description, Excerpt, Judge, JudgeConfig
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import document

Truth = Callable[[int], list[frozenset[str]]]
"""From the number of a document to the concepts that hold at each of its words."""


class OracleConfig(JudgeConfig):
    """Judge by what is true in the world; descriptions must name a concept."""

    kind: Literal["oracle"] = "oracle"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    def start(self, bench: Any) -> Judge:
        if bench.world is None:
            raise NotApplicable("the oracle", "the truth is known of the bundled world alone.")
        return OracleJudge(world_truth(bench.world, "eval"))


class OracleJudge(LevelJudge):
    """Level 10 where the concept holds, else 0."""

    def __init__(self, truth: Truth, *, num_special: int = 1) -> None:
        self.truth = truth
        self.num_special = num_special
        """Special tokens before the first word of a document."""

    def levels(self, description: Description, excerpt: Excerpt) -> list[float] | None:
        if description.concept is None or excerpt.document < 0:
            return None
        return [TOP if description.concept in at else 0.0 for at in self.concepts(excerpt)]

    def traits(self, excerpt: Excerpt) -> set[str]:
        marked = zip(self.concepts(excerpt), excerpt.marked, strict=True)
        return {concept for at, is_marked in marked if is_marked for concept in at}

    def concepts(self, excerpt: Excerpt) -> list[frozenset[str]]:
        """What holds at each token of the window; nothing at special tokens."""
        held = self.truth(excerpt.document)
        places = [position - self.num_special for position in excerpt.positions]
        return [held[at] if 0 <= at < len(held) else frozenset() for at in places]


def world_truth(world: WorldConfig, side: Literal["train", "eval"]) -> Truth:
    """Concepts of the documents on one side of a corpus made of the world."""

    @lru_cache(maxsize=4096)
    def look_up(number: int) -> list[frozenset[str]]:
        return document(world, number, split=WORLD_SPLITS[side]).concepts

    return look_up
