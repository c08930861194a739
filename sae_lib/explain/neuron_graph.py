"""Neuron-to-Graph: the texts that make a latent fire, as a trie that predicts where it will.

A path is read backwards from the token on which the latent fires; a place that does not matter is
a wildcard, which any one token fills. At a token of new text all paths are tried; the longest that
matches gives the predicted activation, of several the one with fewest wildcards, then the largest.

Source: Foote et al. 2023. Differs from it: several branches are followed, not the first that
matches, so that a wildcard never hides a longer path.
"""

from collections.abc import Iterable, Sequence
from typing import NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Path: TypeAlias = tuple[int | None, ...]
"""Token ids from the last to the first; None is a wildcard."""


def path_of(tokens: Sequence[int], pivot: int, weights: Sequence[float], least: float) -> Path:
    """The path of a text up to its pivot; tokens less important than ``least`` are wildcards."""
    return tuple(tokens[i] if weights[i] >= least else None for i in range(pivot, -1, -1))


class NeuronGraph:
    """Paths of one latent and the activation at the end of each."""

    def __init__(self, paths: Iterable[tuple[Path, float]]) -> None:
        """``paths`` with their activations as a share of the latent's largest."""
        self.ends: dict[Path, float] = {}
        for path, activation in paths:
            self.ends[path] = max(activation, self.ends.get(path, 0.0))
        self.ends = dict(sorted(self.ends.items(), key=_rank))

    def predict(self, tokens: Int[Tensor, " tokens"]) -> Float[Tensor, " tokens"]:
        """Predicted activation at each token, a share of the latent's largest; 0 for none."""
        predicted = torch.zeros(len(tokens))
        for path, activation in self.ends.items():  # from the weakest claim to the strongest
            num = len(tokens) - len(path) + 1
            if num <= 0:
                continue
            matches = torch.ones(num, dtype=torch.bool)
            for back, token in enumerate(path):
                if token is not None:
                    first = len(path) - 1 - back
                    matches &= tokens[first : first + num] == token
            predicted[len(path) - 1 :][matches] = activation
        return predicted

    def fires(
        self, tokens: Int[Tensor, " tokens"], *, above: float = 0.5
    ) -> Bool[Tensor, " tokens"]:
        """Where it is predicted to reach the share ``above`` of the latent's largest activation."""
        return self.predict(tokens) >= above


def _rank(end: tuple[Path, float]) -> tuple[int, int, float]:
    path, activation = end
    return len(path), sum(token is not None for token in path), activation


class Agreement(NamedTuple):
    """Predicted firing against true firing."""

    tp: int
    fp: int
    fn: int

    @property
    def precision(self) -> float:
        """0 where nothing was predicted."""
        return self.tp / max(1, self.tp + self.fp)

    @property
    def recall(self) -> float:
        """0 where the latent never fires."""
        return self.tp / max(1, self.tp + self.fn)

    @property
    def f1(self) -> float:
        return 2 * self.tp / max(1, 2 * self.tp + self.fp + self.fn)


def firing_agreement(
    predicted: Float[Tensor, " tokens"], true: Float[Tensor, " tokens"], *, above: float = 0.5
) -> Agreement:
    """How the places where both reach ``above`` agree; activations are shares of the largest."""
    said, is_so = predicted >= above, true >= above
    return Agreement(
        int((said & is_so).sum()), int((said & ~is_so).sum()), int((~said & is_so).sum())
    )
