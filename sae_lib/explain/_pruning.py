"""Shortening a text until a latent would no longer fire as it did.

    P(x) with act(P(x)) >= keep_ratio * act(x)                           (Shu et al. 2025, eq. 5)

A search is a generator: it yields texts to be read and is sent what the latent does on them. So
any number of searches go on together and every round of theirs is one batch for the model. The
limit refers to the original text, not to the last one tried; the activation may rise on the way.

    left          grow to the left from the pivot, one token at a time; the first text on which the
                  pivot is the maximum and the limit is kept (Neuron-to-Graph; every length is
                  tried, and the limit itself is enough)
    greedy_mask   replace by a mask, one at a time, the token that costs least activation
    greedy_delete the same, deleting it
"""

from collections.abc import Callable, Generator, Sequence
from typing import Literal, NamedTuple, TypeAlias, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.explain._latent_reader import Tokens

Strategy: TypeAlias = Literal["left", "greedy_mask", "greedy_delete"]


class Span(NamedTuple):
    """A text and the place in it that is asked about."""

    tokens: Tokens
    pivot: int
    """Where in ``tokens`` the latent is strongest."""

    def replaced(self, place: int, token: int) -> "Span":
        return Span((*self.tokens[:place], token, *self.tokens[place + 1 :]), self.pivot)

    def without(self, place: int) -> "Span":
        """Less one token, which is not the pivot."""
        tokens = (*self.tokens[:place], *self.tokens[place + 1 :])
        return Span(tokens, self.pivot - (place < self.pivot))


class Reading(NamedTuple):
    """What the latent does on a span."""

    at_pivot: float
    strongest: float
    """Largest activation on any token."""

    @property
    def is_peak(self) -> bool:
        """Whether no other token is stronger than the pivot."""
        return self.at_pivot >= self.strongest


class Pruned(NamedTuple):
    """A span that still makes the latent fire."""

    span: Span
    activation: float
    """At the pivot."""

    places: tuple[int, ...]
    """Where in the original text each token of ``span`` was."""

    masked: frozenset[int] = frozenset()
    """Places of ``span`` that hold a mask."""


Result = TypeVar("Result")
Search: TypeAlias = Generator[list[Span], list[Reading], Result]
ReadSpans: TypeAlias = Callable[[list[Span], list[int]], list[Reading]]
"""From spans, and the number of the search that asks about each, to what the latent does there."""


def search_together(searches: Sequence[Search[Result]], read: ReadSpans) -> list[Result]:
    """The results of ``searches``, whose questions of one round are read as one batch."""
    results: dict[int, Result] = {}
    answers: dict[int, list[Reading] | None] = dict.fromkeys(range(len(searches)))
    while answers:
        questions: dict[int, list[Span]] = {}
        for i, readings in answers.items():
            try:
                questions[i] = next(searches[i]) if readings is None else searches[i].send(readings)
            except StopIteration as stop:
                results[i] = stop.value
        owners = [i for i, spans in questions.items() for _ in spans]
        flat = [span for spans in questions.values() for span in spans]
        told = iter(read(flat, owners) if flat else [])
        answers = {i: [next(told) for _ in spans] for i, spans in questions.items()}
    return [results[i] for i in range(len(searches))]


def readings(activations: Float[Tensor, "spans width"], spans: Sequence[Span]) -> list[Reading]:
    """What ``activations``, 0 behind the end of a span, say of each."""
    pivots = torch.tensor([span.pivot for span in spans], dtype=torch.int64)
    at_pivot = activations.gather(1, pivots[:, None])[:, 0].tolist()
    strongest = activations.amax(1).tolist()
    return [Reading(*both) for both in zip(at_pivot, strongest, strict=True)]


def prune(
    span: Span,
    least: float,
    *,
    strategy: Strategy = "left",
    mask: int = 0,
    is_strict: bool = False,
) -> Search[Pruned | None]:
    """The search that shortens ``span`` while its activation is at least ``least``.

    ``is_strict`` asks for more than ``least``, as Neuron-to-Graph does. The result is None where
    not even the whole span reaches it.
    """

    def is_enough(reading: Reading) -> bool:
        return reading.at_pivot > least if is_strict else reading.at_pivot >= least

    if strategy == "left":
        return _left(span, is_enough)
    return _greedy(span, is_enough, None if strategy == "greedy_delete" else mask)


def _left(span: Span, is_enough: Callable[[Reading], bool]) -> Search[Pruned | None]:
    for length in range(1, span.pivot + 2):
        start, end = span.pivot + 1 - length, span.pivot + 1
        shorter = Span(span.tokens[start:end], length - 1)
        [reading] = yield [shorter]
        if reading.is_peak and is_enough(reading):
            return Pruned(shorter, reading.at_pivot, tuple(range(start, end)))
    return None


def _greedy(
    span: Span, is_enough: Callable[[Reading], bool], mask: int | None
) -> Search[Pruned | None]:
    """Masks tokens, or deletes them where ``mask`` is None."""
    [reading] = yield [span]
    if not is_enough(reading):
        return None
    masked: set[int] = set()
    places = list(range(len(span.tokens)))
    while True:
        free = [i for i in range(len(span.tokens)) if i != span.pivot and i not in masked]
        if not free:
            break
        tried = [span.without(i) if mask is None else span.replaced(i, mask) for i in free]
        found = yield tried
        best = max(range(len(free)), key=lambda i: found[i].at_pivot)
        if not is_enough(found[best]):
            break
        span, reading = tried[best], found[best]
        if mask is None:
            del places[free[best]]
        else:
            masked.add(free[best])
    return Pruned(span, reading.at_pivot, tuple(places), frozenset(masked))


def importance(pruned: Pruned, mask: int) -> Search[list[float]]:
    """Per token 1 - activation with it masked / activation; 1 at the pivot, 0 where masked."""
    span = pruned.span
    places = [i for i in range(len(span.tokens)) if i != span.pivot and i not in pruned.masked]
    found = (yield [span.replaced(i, mask) for i in places]) if places else []
    weights = [0.0] * len(span.tokens)
    weights[span.pivot] = 1.0
    for place, reading in zip(places, found, strict=True):
        weights[place] = 1 - reading.at_pivot / pruned.activation
    return weights
