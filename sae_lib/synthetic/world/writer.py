"""Draws a document and scores it in one go.

Every random choice of a grammar goes through one `Writer`, which samples it and adds its
-log p to ``nll``. Grammars are written so that the finished text (with its end) tells which
choices were made; then p(text) = p(choices), and ``nll`` is exactly the surprise, in nats, of an
ideal predictor that reads the document from its first word to its end mark, whatever it had to
guess on the way: by the chain rule the order in which latent choices come to light does not
matter. A grammar with two derivations for one text would make ``nll`` an upper bound.
"""

import random
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import accumulate
from math import log
from typing import Generic, TypeVar, no_type_check

from sae_lib.errors import BadInput, nearest
from sae_lib.synthetic.world import concepts

Item = TypeVar("Item")
Contexts = tuple[str, ...]


@no_type_check
class Table(Generic[Item]):
    """Items with the probabilities they are drawn with."""

    def __init__(self, items: Iterable[Item], weights: Iterable[float]) -> None:
        pairs = [(item, w) for item, w in zip(items, weights, strict=True) if w > 0]
        total = sum(w for _, w in pairs)
        self.items = [item for item, _ in pairs]
        self.surprises = [-log(w / total) for _, w in pairs]
        self.cumulative = list(accumulate(w / total for _, w in pairs))

    def entropy(self) -> float:
        """Expected surprise of one draw, nats."""
        edges = [0.0, *self.cumulative]
        return sum(
            (high - low) * surprise
            for low, high, surprise in zip(edges, edges[1:], self.surprises, strict=False)
        )


@cache
def _split(text: str) -> tuple[str, ...]:
    parts = tuple(text.split())
    for word in parts:
        if not concepts.is_word(word):
            raise BadInput(
                "no concept declares this word; declare it where the phrase is written."
                + nearest(word, concepts.words()),
                key=text,
                value=word,
            )
    return parts


@no_type_check  # no tensors here, and checked calls would make tests fifty times slower
class Writer:
    """What a grammar writes with."""

    def __init__(self, seed: int) -> None:
        # only random() is used: its sequence is the same in every version of Python
        self._uniform = random.Random(seed).random
        self.nll = 0.0
        """Surprise of all choices so far, nats."""
        self.tokens: list[str] = []
        self.contexts: list[Contexts] = []
        """Per token, the context concepts that were said to hold (ancestors not included)."""
        self.labels: dict[str, str] = {}
        self.marks: dict[str, int] = {}
        """Named places: how many tokens stood there when the mark was set."""
        self.measures: dict[str, list[tuple[int, float]]] = {}
        """Numbers that are true at tokens, such as the value of an action: (token, number)."""
        self.around: Contexts = ()
        """Context concepts that hold for everything written next."""

    def pick(self, items: Sequence[Item]) -> Item:
        """One of ``items``, all equally likely."""
        self.nll += log(len(items))
        return items[int(self._uniform() * len(items))]

    def draw(self, table: Table[Item]) -> Item:
        place = bisect_right(table.cumulative, self._uniform())
        place = min(place, len(table.items) - 1)  # the last sum may end just below one
        self.nll += table.surprises[place]
        return table.items[place]

    def flip(self, p: float) -> bool:
        """True with probability ``p``."""
        outcome = self._uniform() < p
        self.nll -= log(p if outcome else 1 - p)
        return outcome

    def arrange(self, items: Sequence[Item], k: int) -> list[Item]:
        """``k`` different ones of ``items`` in random order."""
        left = list(items)
        chosen = []
        for _ in range(k):
            place = int(self._uniform() * len(left))
            self.nll += log(len(left))
            chosen.append(left.pop(place))
        return chosen

    @contextmanager
    def uncounted(self) -> Iterator[None]:
        """Choices made inside cost nothing; say with `count` what the ideal predictor pays.

        For choices that the text leaves open: sum them out, and count -log of the sum.
        """
        before = self.nll
        yield
        self.nll = before

    def count(self, nats: float) -> None:
        """Add to the surprise."""
        self.nll += nats

    def measure(self, name: str, number: float) -> None:
        """Say that ``number`` is true at the word written last."""
        self.measures.setdefault(name, []).append((len(self.tokens) - 1, float(number)))

    def set_context(self, *ids: str) -> None:
        """From here on these context concepts hold, and no others."""
        self.around = ids

    def add_context(self, *ids: str) -> None:
        self.around += ids

    def tell(self, *ids: str, since: int | None = None) -> None:
        """The word at ``since``, else the last one, told these context concepts: from it on they
        hold."""
        start = len(self.contexts) - 1 if since is None else since
        for at in range(start, len(self.contexts)):
            self.contexts[at] += ids
        self.around += ids

    def say(self, text: str, *ids: str) -> None:
        """Write words; the context concepts ``ids`` hold for them on top of the current ones."""
        parts = _split(text)
        self.tokens += parts
        self.contexts += [self.around + ids if ids else self.around] * len(parts)

    def value(self, attribute: str, text: str, *ids: str) -> None:
        """Write the value of an attribute, and tell the word before that it is coming."""
        self.contexts[-1] += (f"next-{attribute}",)
        self.say(text, f"value-{attribute}", *ids)

    def mark(self, name: str) -> None:
        self.marks[name] = len(self.tokens)
