"""The order of training rows, a pure function of the step.

Epoch e permutes the contexts with a generator seeded by (seed, e) and cuts them into blocks. Block
j of epoch e permutes its kept rows with a generator seeded by (seed, e, j). The blocks of all
epochs, one after the other, are an endless stream of rows, and batch i is its rows
``i * batch_tokens`` to ``(i + 1) * batch_tokens``: a batch may span blocks and epochs, each row
comes exactly once per epoch, and resuming needs nothing but the number of the step.

Whole contexts are read, so reads stay sequential; two rows of one context meet in a batch about as
often as chance has it among the rows of a block.

An order may be of some of the contexts only (``contexts``): then those are all there is. It is
the order that the chosen contexts would have as a set of their own, whatever their numbers.
"""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from sae_lib.errors import BadInput

EPOCH_TAG, BLOCK_TAG = 1, 2
"""Keep the seeds of epochs and blocks apart: numpy takes (s, e) and (s, e, 0) for one seed."""


class BlockKey(NamedTuple):
    """A block of contexts that is in memory as a whole."""

    epoch: int
    block: int


class Part(NamedTuple):
    """Consecutive rows of a batch that come from one block."""

    key: BlockKey

    rows: Int64[Tensor, " rows"]
    """Numbers among the block's rows, which are those of its contexts in ascending order."""


class _Epoch(NamedTuple):
    contexts: np.ndarray
    ends: np.ndarray
    """Rows of the epoch up to and including each block."""


class Order:
    """Which rows make up batch i."""

    def __init__(
        self,
        kept_per_context: np.ndarray,
        *,
        seed: int,
        block_tokens: int,
        batch_tokens: int,
        contexts: np.ndarray | None = None,
    ) -> None:
        """``block_tokens`` rounds down to whole contexts, but at least one.

        ``kept_per_context`` is of all contexts of the tokens or the store. ``contexts`` are the
        numbers, ascending, of those that are drawn from; by default all.
        """
        self.kept_per_context = np.asarray(kept_per_context, np.int64)
        self.subset = None if contexts is None else _checked(contexts, len(self.kept_per_context))
        """Contexts that are drawn from, ascending; None for all."""
        kept = self.kept_per_context if self.subset is None else self.kept_per_context[self.subset]
        self.num_rows = int(kept.sum())
        """Rows in an epoch."""
        if self.num_rows == 0 or seed < 0 or block_tokens < 1 or batch_tokens < 1:
            raise BadInput(
                "an order needs at least one row, a seed from 0, and blocks and batches of at"
                f" least one token; there are {self.num_rows} rows, seed {seed}, block_tokens"
                f" {block_tokens}, batch_tokens {batch_tokens}."
            )
        self.seed = seed
        self.batch_tokens = batch_tokens
        self.num_contexts = len(kept)
        """Contexts in an epoch."""
        self.block_contexts = max(1, block_tokens // int(kept.max()))
        """Contexts in a block; the last of an epoch may have fewer."""
        self.num_blocks = -(-self.num_contexts // self.block_contexts)
        """Blocks in an epoch."""
        self._epoch = lru_cache(2)(self._draw_epoch)
        self._permutation = lru_cache(2)(self._draw_permutation)

    def batch(self, step: int) -> list[Part]:
        """Batch ``step``, from 0, in the order of its rows."""
        if step < 0:
            raise BadInput("steps are numbered from 0.", key="step", value=step)
        parts = []
        start, stop = step * self.batch_tokens, (step + 1) * self.batch_tokens
        while start < stop:
            key = self.block_of(start)
            place, ends = start % self.num_rows, self._epoch(key.epoch).ends
            before = int(ends[key.block - 1]) if key.block else 0
            take = min(stop - start, int(ends[key.block]) - place)
            rows = self._permutation(key)[place - before : place - before + take]
            parts.append(Part(key, torch.from_numpy(rows)))
            start += take
        return parts

    def contexts(self, key: BlockKey) -> np.ndarray:
        """Contexts of a block, ascending."""
        start = key.block * self.block_contexts
        return np.sort(self._epoch(key.epoch).contexts[start : start + self.block_contexts])

    def num_block_rows(self, key: BlockKey) -> int:
        return int(self.kept_per_context[self.contexts(key)].sum())

    def first_contexts(self, num_rows: int) -> np.ndarray:
        """Contexts, ascending, that hold the first ``num_rows`` rows of the first epoch's order
        of contexts, or all contexts: a random sample of the set."""
        drawn = self._epoch(0).contexts
        rows = np.cumsum(self.kept_per_context[drawn])
        return np.sort(drawn[: int(np.searchsorted(rows, num_rows)) + 1])

    def block_of(self, row: int) -> BlockKey:
        """The block that holds row ``row``, from 0, of the endless stream."""
        number, place = divmod(row, self.num_rows)
        return BlockKey(number, int(np.searchsorted(self._epoch(number).ends, place, side="right")))

    def after(self, key: BlockKey) -> BlockKey:
        """The block that follows ``key`` in the stream."""
        if key.block + 1 < self.num_blocks:
            return BlockKey(key.epoch, key.block + 1)
        return BlockKey(key.epoch + 1, 0)

    def state(self) -> dict[str, Any]:
        """What the order depends on; with the number of the step, all there is to remember."""
        return {
            "seed": self.seed,
            "batch_tokens": self.batch_tokens,
            "block_contexts": self.block_contexts,
            "kept_per_context": hashlib.sha256(self.kept_per_context.tobytes()).hexdigest()[:16],
            "contexts": (
                None
                if self.subset is None
                else hashlib.sha256(self.subset.tobytes()).hexdigest()[:16]
            ),
        }

    def check_state(self, state: Mapping[str, Any]) -> None:
        """Raise `BadInput` where ``state`` is of another order: its steps are other batches."""
        for name, mine in self.state().items():
            if state.get(name) != mine:
                raise BadInput(
                    f"the checkpoint was made with {name} {state.get(name)!r}, and now it is"
                    f" {mine!r}; a run can only go on with the data and the order it began with.",
                    key=name,
                    value=mine,
                )

    def _draw_epoch(self, number: int) -> _Epoch:
        generator = np.random.default_rng([EPOCH_TAG, self.seed, number])
        drawn = generator.permutation(self.num_contexts)
        contexts = drawn if self.subset is None else self.subset[drawn]
        rows = np.cumsum(self.kept_per_context[contexts])
        last = np.minimum(
            np.arange(1, self.num_blocks + 1) * self.block_contexts, self.num_contexts
        )
        return _Epoch(contexts, rows[last - 1])

    def _draw_permutation(self, key: BlockKey) -> np.ndarray:
        generator = np.random.default_rng([BLOCK_TAG, self.seed, *key])
        return generator.permutation(self.num_block_rows(key))


def _checked(contexts: np.ndarray, num_contexts: int) -> np.ndarray:
    """``contexts`` as int64, if they are numbers of contexts, ascending, each once."""
    chosen = np.asarray(contexts)
    if chosen.ndim != 1 or not len(chosen) or not np.issubdtype(chosen.dtype, np.integer):
        raise BadInput(
            "an order of some contexts needs their numbers, a vector of at least one integer; it"
            f" has shape {chosen.shape} and dtype {chosen.dtype}.",
            key="contexts",
        )
    chosen = chosen.astype(np.int64)
    if chosen[0] < 0 or chosen[-1] >= num_contexts or (np.diff(chosen) <= 0).any():
        raise BadInput(
            f"the chosen contexts must ascend, each once, between 0 and {num_contexts - 1}.",
            key="contexts",
            value=[int(i) for i in chosen[:5]],
        )
    return chosen
