"""Probabilistic context-free grammars: strings, their exact probabilities, their lengths.

A string may have many derivations (in ``S -> S S`` three pairs of brackets side by side have two);
its probability is the sum over all of them. The inside algorithm finds it, on the grammar in
binary form: rules that only rename a symbol are summed out in closed form, longer rules become
chains of pairs. The same recursion without the words gives the distribution of lengths.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from math import inf, isclose, log

import numpy as np

from sae_lib.errors import BadInput

Rules = Mapping[str, Sequence[tuple[float, tuple[str, ...]]]]
"""Per symbol that is rewritten, its expansions with their probabilities; all else is words."""

CHART_STRINGS = 32
"""Strings of one length that are scored together; a chart of 128 words takes about a megabyte."""


class Grammar:
    """A grammar whose strings are finite and have a finite expected length.

    Raises `BadInput` where probabilities do not sum to one, an expansion is empty, or symbols
    multiply as fast as they end.
    """

    def __init__(self, rules: Rules, start: str = "S") -> None:
        self.rules = {
            symbol: [(p, parts) for p, parts in expansions if p > 0]
            for symbol, expansions in rules.items()
        }
        self.start = start
        for symbol, expansions in self.rules.items():
            total = sum(p for p, _ in expansions)
            if not isclose(total, 1, abs_tol=1e-9) or not all(parts for _, parts in expansions):
                raise BadInput(
                    f"the probabilities of {symbol} must sum to one, and no expansion may be empty",
                    value=list(expansions),
                )
        self.words = tuple(
            dict.fromkeys(
                part
                for expansions in self.rules.values()
                for _, parts in expansions
                for part in parts
                if part not in self.rules
            )
        )
        self.expected_length = self._expected_length()
        self._choices = {
            symbol: (list(accumulate(p for p, _ in found)), [parts[::-1] for _, parts in found])
            for symbol, found in self.rules.items()
        }
        self._binarise()

    def _expected_length(self) -> float:
        """Expected words of a string; finite where a symbol leaves fewer than one behind it."""
        order = {symbol: i for i, symbol in enumerate(self.rules)}
        children = np.zeros((len(order), len(order)))
        words = np.zeros(len(order))
        for symbol, expansions in self.rules.items():
            for p, parts in expansions:
                for part in parts:
                    if part in order:
                        children[order[symbol], order[part]] += p
                    else:
                        words[order[symbol]] += p
        growth = max(abs(np.linalg.eigvals(children)))
        if growth >= 1 - 1e-9:
            raise BadInput(
                "the grammar's strings have no finite expected length: each symbol is replaced by"
                f" {growth:.3f} on average; make recursive expansions rarer"
            )
        lengths = np.linalg.solve(np.eye(len(order)) - children, words)
        return float(lengths[order[self.start]])

    def _binarise(self) -> None:
        symbols: dict[str, int] = {}
        lexical: list[tuple[int, str, float]] = []
        unary: list[tuple[int, int, float]] = []
        binary: list[tuple[int, int, int, float]] = []

        def number(name: str) -> int:
            return symbols.setdefault(name, len(symbols))

        def child(part: str) -> int:
            if part in self.rules:
                return number(part)
            name = f"word {part}"
            if name not in symbols:
                lexical.append((number(name), part, 1.0))
            return number(name)

        for symbol, expansions in self.rules.items():
            for place, (p, parts) in enumerate(expansions):
                parent = number(symbol)
                if len(parts) == 1:
                    if parts[0] in self.rules:
                        unary.append((parent, number(parts[0]), p))
                    else:
                        lexical.append((parent, parts[0], p))
                    continue
                for done, part in enumerate(parts[:-2], 1):
                    rest = number(f"{symbol}, expansion {place} after {done}")
                    binary.append((parent, child(part), rest, p))
                    parent, p = rest, 1.0
                binary.append((parent, child(parts[-2]), child(parts[-1]), p))
        size = len(symbols)
        renamed = np.zeros((size, size))
        for parent, only, p in unary:
            renamed[parent, only] += p
        closure = np.linalg.inv(np.eye(size) - renamed)
        self._root = symbols[self.start]
        self._left = np.array([left for _, left, _, _ in binary], np.int64)
        self._right = np.array([right for _, _, right, _ in binary], np.int64)
        self._upward = np.zeros((len(binary), size))
        for row, (parent, _, _, p) in enumerate(binary):
            self._upward[row] = p * closure[:, parent]
        emitted = {word: np.zeros(size) for word in self.words}
        for symbol, word, p in lexical:
            emitted[word][symbol] += p
        self._emitted = {word: closure @ vector for word, vector in emitted.items()}

    def derive(
        self,
        uniform: Callable[[], float],
        most: int,
        choices: list[tuple[str, int]] | None = None,
    ) -> list[str] | None:
        """Words of one random string, or None where there would be more than ``most``.

        ``uniform`` gives numbers in [0, 1). ``choices`` is filled with the rules that were
        applied, leftmost first: symbol and place of its expansion.
        """
        words: list[str] = []
        open_symbols = [self.start]
        tables = self._choices
        while open_symbols:
            symbol = open_symbols.pop()
            if symbol not in tables:
                words.append(symbol)
                continue
            edges, expansions = tables[symbol]
            place = min(bisect_right(edges, uniform()), len(edges) - 1)
            if choices is not None:
                choices.append((symbol, place))
            open_symbols += expansions[place]
            if len(words) + len(open_symbols) > most:
                return None
        return words

    def log_probs(self, strings: Sequence[Sequence[str]]) -> list[float]:
        """Per string, log of the sum of the probabilities of its derivations; -inf if none."""
        found = [-inf] * len(strings)
        groups: dict[int, list[int]] = {}
        for i, words in enumerate(strings):
            if words and all(word in self._emitted for word in words):
                groups.setdefault(len(words), []).append(i)
        # a factor per word keeps long strings far from the smallest number
        factor = float(len(self.words))
        for length, members in groups.items():
            for first in range(0, len(members), CHART_STRINGS):
                part = members[first : first + CHART_STRINGS]
                leaves = np.array([[self._emitted[word] for word in strings[i]] for i in part])
                for i, p in zip(part, self._inside(factor * leaves), strict=True):
                    if p > 0:
                        found[i] = log(p) - length * log(factor)
        return found

    def _inside(self, leaves: np.ndarray) -> np.ndarray:
        """Mass of the start symbol over whole strings; ``leaves`` is (string, word, symbol)."""
        length = leaves.shape[1]
        spans = leaves
        # per number of words, all spans of so many, as first and as second part of a pair
        lefts, rights = [leaves[:, :, self._left]], [leaves[:, :, self._right]]
        for size in range(2, length + 1):
            starts = length - size + 1
            pairs = np.zeros((len(leaves), starts, len(self._left)))
            for first in range(1, size):
                pairs += (
                    lefts[first - 1][:, :starts] * rights[size - first - 1][:, first:][:, :starts]
                )
            spans = pairs @ self._upward
            lefts.append(spans[:, :, self._left])
            rights.append(spans[:, :, self._right])
        return spans[:, 0, self._root]

    def length_probs(self, most: int) -> np.ndarray:
        """P(a string has n words) for n = 0 to ``most``; exact, by dynamic programming."""
        masses = np.zeros((most + 1, self._upward.shape[1]))
        masses[1] = sum(self._emitted.values())
        for size in range(2, most + 1):
            lefts = masses[1:size, self._left]
            rights = masses[size - 1 : 0 : -1, self._right]
            masses[size] = (lefts * rights).sum(0) @ self._upward
        return masses[:, self._root]
