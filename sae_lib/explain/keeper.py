"""The largest keys of each of many cells, found in a stream, and seeded keys to draw with.

A key is one positive integer whose order says what is to be kept: strength, or luck. Luck is a
hash of what is drawn from (`draw`), so the k largest keys of a cell are k of its members drawn
without replacement, which ones depends neither on their order nor on how they were shared out,
and two halves merged are exactly the whole.
"""

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

LAST_ROW = 2**32 - 1
"""Largest index of a token that fits into a key."""

_CHUNK_KEYS = 2**21
"""Keys that are laid out densely at a time: 16 MiB."""

_MAX_CELLS = 2**21
"""Cells up to which each has a place of its own where the best of each is looked for: 16 MiB."""

_MULTIPLIERS = (-7046029254386353131, -4658895280553007687, -7723592293110705685)
"""Odd 64-bit constants of splitmix64, as signed integers."""


def mixed(*parts: Int64[Tensor, "..."] | int) -> Int64[Tensor, "..."]:
    """31 bits that look random, from whole numbers; equal numbers give equal bits."""
    state: Tensor | int = 0
    for part in parts:
        state = (torch.as_tensor(part) + state) * _MULTIPLIERS[0]
        state = state ^ ((state >> 30) & (2**34 - 1))
        state = state * _MULTIPLIERS[1]
        state = state ^ ((state >> 27) & (2**37 - 1))
        state = state * _MULTIPLIERS[2]
        state = state ^ ((state >> 31) & (2**33 - 1))
    return torch.as_tensor(state) & (2**31 - 1)


def pack(
    first: Int64[Tensor, "*entries"], rows: Int64[Tensor, "*entries"]
) -> Int64[Tensor, "*entries"]:
    """Keys that sort by ``first``, 31 bits, and then by the earlier of ``rows``."""
    return (first << 32) | (LAST_ROW - rows)


def rows_of(keys: Int64[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
    """The rows in ``keys``; -1 for a place that holds none."""
    return torch.where(keys > 0, LAST_ROW - (keys & LAST_ROW), -1)


class Keeper:
    """The ``k`` largest keys of each cell, largest first, 0 where there are fewer."""

    def __init__(self, num_cells: int, k: int) -> None:
        self.k = k
        self.keys: Int64[Tensor, "cells k"] = torch.zeros(num_cells, k, dtype=torch.int64)

    def beats(
        self, cells: Int64[Tensor, " entries"], keys: Int64[Tensor, " entries"]
    ) -> Int64[Tensor, " some"]:
        """Places of the entries that are larger than the smallest key their cell holds."""
        if not self.k:
            return cells.new_zeros(0)
        floor = self.keys.view(-1)[cells * self.k + (self.k - 1)]
        return (keys > floor).nonzero().flatten()

    def offer(self, cells: Int64[Tensor, " entries"], keys: Int64[Tensor, " entries"]) -> None:
        """Let new keys compete. No key may be offered to a cell twice."""
        chosen = self.beats(cells, keys)
        if not len(chosen):
            return
        cells, keys = by_cell(cells[chosen], keys[chosen])
        touched, place, sizes = torch.unique_consecutive(
            cells, return_inverse=True, return_counts=True
        )
        rank = torch.arange(len(cells)) - (sizes.cumsum(0) - sizes)[place]
        good = rank < self.k
        keys, place, rank = keys[good], place[good], rank[good]
        ends = sizes.clamp(max=self.k).cumsum(0)
        step = max(1, _CHUNK_KEYS // (2 * self.k))
        for low in range(0, len(touched), step):
            some = touched[low : low + step]
            own = slice(int(ends[low - 1]) if low else 0, int(ends[low + len(some) - 1]))
            fresh = torch.zeros(len(some), self.k, dtype=torch.int64)
            fresh[place[own] - low, rank[own]] = keys[own]
            self.keys[some] = largest(torch.cat([self.keys[some], fresh], 1), self.k)

    def merge(self, other: "Keeper") -> None:
        """Add what ``other`` holds of other members of the same cells."""
        step = max(1, _CHUNK_KEYS // max(1, 2 * self.k))
        for low in range(0, len(self.keys), step):
            own, their = self.keys[low : low + step], other.keys[low : low + step]
            self.keys[low : low + step] = largest(torch.cat([own, their], 1), self.k)


def by_cell(
    cells: Int64[Tensor, " entries"], keys: Int64[Tensor, " entries"]
) -> tuple[Int64[Tensor, " entries"], Int64[Tensor, " entries"]]:
    """Both, ordered by cell and then by the larger key."""
    key, cell = keys.numpy(), cells.numpy()
    order = np.argsort(key)[::-1]
    # place in that order, within its cell: one integer, and sorting those is the quickest
    both = cell[order] * np.int64(len(key)) + np.arange(len(key))
    both.sort()
    order = order[both % max(1, len(key))]
    return torch.from_numpy(cell[order]), torch.from_numpy(key[order])


def best_of_cells(
    cells: Int64[Tensor, " entries"], keys: Int64[Tensor, " entries"], num_cells: int
) -> tuple[Int64[Tensor, " some"], Int64[Tensor, " some"]]:
    """The cells that have entries, ascending, and the largest key of each."""
    if num_cells > _MAX_CELLS:
        cells, keys = by_cell(cells, keys)
        first = torch.ones(len(cells), dtype=torch.bool)
        first[1:] = cells[1:] != cells[:-1]
        return cells[first], keys[first]
    best = np.zeros(num_cells, dtype=np.int64)
    np.maximum.at(best, cells.numpy(), keys.numpy())
    some = np.flatnonzero(best != 0)
    return torch.from_numpy(some), torch.from_numpy(best[some])


def largest(keys: Int64[Tensor, "cells many"], k: int) -> Int64[Tensor, "cells k"]:
    """The ``k`` largest of each row, largest first."""
    return keys.topk(k, dim=1).values
