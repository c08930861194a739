"""The learner whose choices some kinds of documents report, and the luck that it meets.

    p(a) = softmax(INVERSE_TEMPERATURE * Q)(a)       for two actions
    Q(a) <- Q(a) + LEARNING_RATE * td                td = target - Q(a),  Q = 0 at first

Rewards come from one Polya urn per action: the chance of the next one is (wins + 1) / (tries + 2).
That is the same distribution as a chance drawn once from Beta(1, 1) and kept to itself, but needs
no such latent. So everything that a choice or a reward depends on stands in the text before it.
"""

from math import exp
from typing import NamedTuple

from sae_lib.synthetic.world.concepts import declare

LEARNING_RATE = 0.3
INVERSE_TEMPERATURE = 3.0
SURPRISE = 0.5
"""A TD error beyond this, up or down, is called a surprise."""
LIKELY = 2 / 3
"""A reward is called likely from here on, and unlikely from one minus this down."""

declare("outcome-word", "The word says what came of a choice.")
declare("reward-word", "The word says that there was a reward.", parents=("outcome-word",))
declare("no-reward-word", "The word says that there was no reward.", parents=("outcome-word",))


class ActionPlace(NamedTuple):
    """A word that reports a choice, and how likely each choice was."""

    place: int
    """Number of words before it."""
    actions: tuple[str, str]
    """The two words that could stand there."""
    probability: float
    """Chance of the first of them."""


def chance(first: float, second: float) -> float:
    """Probability that the learner takes the first of two actions with these values."""
    return 1 / (1 + exp(INVERSE_TEMPERATURE * (second - first)))


class Urn:
    """Rewards of one action."""

    __slots__ = ("tries", "wins")

    def __init__(self) -> None:
        self.wins = self.tries = 0

    @property
    def chance(self) -> float:
        """Probability that the next try is rewarded."""
        return (self.wins + 1) / (self.tries + 2)

    def add(self, reward: bool) -> None:
        self.wins += reward
        self.tries += 1
