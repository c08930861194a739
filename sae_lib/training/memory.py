"""Batches from tensors in memory, in a seeded order that is a pure function of the step."""

from collections.abc import Mapping
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae_lib.errors import BadInput


class MemoryBatch(NamedTuple):
    """Activations of the same rows at every site."""

    x: dict[str, Float[Tensor, "batch d_in"]]
    rows: Int64[Tensor, " batch"]
    """Which rows these are."""


class InMemoryBatches:
    """Endless batches from a few tensors: each pass over the rows has its own permutation.

    A batch may span the end of a pass, so no row is left out. ``batch(i)`` needs no earlier call.
    """

    def __init__(self, x: Mapping[str, Tensor], batch_tokens: int, seed: int = 0) -> None:
        lengths = {site: len(rows) for site, rows in x.items()}
        if len(set(lengths.values())) != 1 or min(lengths.values()) == 0:
            raise BadInput("every site must have the same number of rows, not 0.", value=lengths)
        self.x, self.batch_tokens, self.seed = dict(x), batch_tokens, seed
        self.num_rows = next(iter(lengths.values()))
        self._order: tuple[int, Tensor] | None = None

    def batch(self, i: int) -> MemoryBatch:
        first, last = i * self.batch_tokens, (i + 1) * self.batch_tokens
        pieces = []
        for epoch in range(first // self.num_rows, (last - 1) // self.num_rows + 1):
            begin, end = first - epoch * self.num_rows, last - epoch * self.num_rows
            pieces.append(self._permutation(epoch)[max(begin, 0) : min(end, self.num_rows)])
        rows = torch.cat(pieces)
        return MemoryBatch({site: values[rows] for site, values in self.x.items()}, rows)

    def _permutation(self, epoch: int) -> Tensor:
        if self._order is None or self._order[0] != epoch:
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            self._order = (epoch, torch.randperm(self.num_rows, generator=generator))
        return self._order[1]
