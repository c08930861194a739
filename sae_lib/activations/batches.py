"""Training batches in the seeded order, from a store or from the live model.

Both kinds follow the same `Order` and give the same rows in the same places; batch i depends on
nothing but the config and i. Streamed activations are rounded to the format a store would have, so
that whether activations were stored does not show in the numbers (a forward pass over other
neighbours may round differently in its last digit; over the same ones it does not).

Inside `OrderedBatches.reading_ahead` a second thread loads the next block while the current one is
used: from a store it reads, of a stream it runs the model. In memory are then the rows of two
blocks, in the format of the store; outside of it, and where there is nothing to gain, of one.

Where the order is of some of the contexts (`Order`'s ``contexts``), only those are read or run.
"""

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32, Int64
from torch import Tensor

from sae_lib.activations import _shards
from sae_lib.activations.harvest import CapturesSites, StoreDtype, capture_rows
from sae_lib.activations.order import BlockKey, Order
from sae_lib.activations.stats import RunningStats, SiteStats
from sae_lib.activations.store import ActivationStore, JoinedStore
from sae_lib.activations.tokens import TokenSplit
from sae_lib.errors import BadInput, UnknownName

STATS_TOKENS = 1 << 16
"""Rows that statistics of a stream, or of some contexts of a store, are measured on."""

STATS_CONTEXTS = 64
"""Contexts of a store that are read at a time to measure them."""


class Batch(NamedTuple):
    """Activations of the same positions at every site."""

    x: dict[str, Float32[Tensor, "batch _"]]
    """Per site, (batch, d_in)."""

    rows: Int64[Tensor, " batch"]
    """``context * length + position`` in the split, on the CPU."""


class Block(NamedTuple):
    """Rows of some contexts, context by context, in the format of the store."""

    x: dict[str, Tensor]
    rows: Int64[Tensor, " rows"]


class Abandoned(Exception):
    """A block was given up half-loaded, because nobody wants it any more."""


class ReadAhead:
    """A thread that loads blocks, from the beginning of a training to its end."""

    def __init__(self, last: BlockKey) -> None:
        self.last = last
        """The block with the last row that is wanted; nothing behind it is loaded."""

        self.thread = ThreadPoolExecutor(
            1,
            thread_name_prefix="activations",
            initializer=torch.set_num_threads,  # a new thread has the number set last by anybody
            initargs=(torch.get_num_threads(),),
        )
        self._stopped = threading.Event()

    def stop(self) -> None:
        """Make loads under way, in whatever thread, end at their next piece."""
        self._stopped.set()

    def check(self) -> None:
        """Raise `Abandoned` once somebody said `stop`."""
        if self._stopped.is_set():
            raise Abandoned


class OrderedBatches(ABC):
    """What training asks of its data; a subclass says where the rows of a block come from."""

    runs_model: bool
    """Whether loading a block runs a language model, which then nobody else should use."""

    def __init__(self, sites: Sequence[str], order: Order, widths: Mapping[str, int]) -> None:
        self.sites = list(sites)
        self.order = order
        self._widths = dict(widths)
        self._current: tuple[BlockKey, Block] | None = None
        self._coming: tuple[BlockKey, Future[Block]] | None = None
        self._ahead: ReadAhead | None = None

    @abstractmethod
    def stats(self, site: str) -> SiteStats:
        """Mean, variance and norms of the activations, in the format of the store."""

    @abstractmethod
    def _load(self, contexts: np.ndarray, ahead: ReadAhead | None) -> Block:
        """The rows of these contexts, which ascend; ``ahead.check()`` is called between pieces."""

    def _reserved(self) -> AbstractContextManager[None]:
        """Held while another thread may load."""
        return nullcontext()

    @property
    def gains_from_overlap(self) -> bool:
        """Whether a second thread can load while this one computes."""
        return True

    @contextmanager
    def reading_ahead(self, until: int) -> Iterator[ReadAhead]:
        """Inside, the next block is loaded in a thread while batches of the current one are used.

        The batches are the same, bit for bit. Nothing is loaded that only steps from ``until`` on
        would use. An exception of the thread is raised, with its traceback, by the `batch` that
        needs the block. Leaving the context, by whatever way, ends the load under way at its next
        piece (of a stream: after one forward pass) and joins the thread.
        """
        if self._ahead is not None:
            raise BadInput("these batches are being read ahead already, by another training.")
        ahead = ReadAhead(self.order.block_of(max(until * self.order.batch_tokens - 1, 0)))
        with self._reserved():
            self._ahead = ahead
            try:
                yield ahead
            finally:
                ahead.stop()
                ahead.thread.shutdown(wait=True, cancel_futures=True)
                self._ahead = self._coming = None

    @property
    def num_rows(self) -> int:
        """Rows per epoch."""
        return self.order.num_rows

    @property
    def rows_in_memory(self) -> int:
        """Rows of the blocks that are held or being loaded, per site."""
        held = [entry[0] for entry in (self._current, self._coming) if entry]
        return sum(self.order.num_block_rows(key) for key in held)

    def width(self, site: str) -> int:
        return self._widths[site]

    def batch(self, step: int) -> Batch:
        """Batch ``step``, from 0; any step may be asked for, ascending ones are fast."""
        parts = [self._part(key, rows) for key, rows in self.order.batch(step)]
        if len(parts) == 1:
            return parts[0]
        return Batch(
            {site: torch.cat([part.x[site] for part in parts]) for site in self.sites},
            torch.cat([part.rows for part in parts]),
        )

    def starting_at(self, step: int) -> Iterator[Batch]:
        """Batches ``step``, ``step + 1`` and so on, without end."""
        while True:
            yield self.batch(step)
            step += 1

    def __iter__(self) -> Iterator[Batch]:
        return self.starting_at(0)

    def state(self) -> dict[str, Any]:
        """What a checkpoint notes beside its step; see `Order.check_state`."""
        return self.order.state()

    def _part(self, key: BlockKey, rows: Int64[Tensor, " rows"]) -> Batch:
        # a function of its own, so that no name holds this block while the next one is loaded
        block = self._block(key)
        x = {
            site: values.index_select(0, rows.to(values.device)).float()
            for site, values in block.x.items()
        }
        return Batch(x, block.rows[rows])

    def _block(self, key: BlockKey) -> Block:
        key = self._same_rows(key)
        if self._current is None or self._current[0] != key:
            self._current = None  # let go before the next one is taken in
            self._current = (key, self._take(key))
        ahead, following = self._ahead, self._same_rows(self.order.after(key))
        if ahead is not None and self.gains_from_overlap and self._coming is None:
            ahead.check()
            if following != key and following <= ahead.last:
                contexts = self.order.contexts(following)
                self._coming = (following, ahead.thread.submit(self._load, contexts, ahead))
        return self._current[1]

    def _take(self, key: BlockKey) -> Block:
        coming, self._coming = self._coming, None
        if coming is not None:
            wait([coming[1]])  # also an unwanted one: two loads at once would hold three blocks
            if coming[0] == key:
                return coming[1].result()
        del coming
        return self._load(self.order.contexts(key), self._ahead)

    def _same_rows(self, key: BlockKey) -> BlockKey:
        """Where one block is the whole set, it is the same in every epoch."""
        return BlockKey(0, 0) if self.order.num_blocks == 1 else key


class StoredBatches(OrderedBatches):
    """Batches from a store."""

    runs_model = False

    def __init__(
        self,
        store: ActivationStore | JoinedStore,
        sites: Sequence[str],
        order: Order,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        """Blocks and batches are on ``device``. Raises `UnknownName` for a site not harvested."""
        _check_order(order, store.kept_per_context)
        super().__init__(sites, order, {site: store.width(site) for site in sites})
        self._store, self._device = store, torch.device(device)
        self._measured: dict[str, SiteStats] = {}

    def stats(self, site: str) -> SiteStats:
        """Of all stored rows. Where the order is of some contexts, of the first `STATS_TOKENS` rows
        of its first epoch, in whole contexts."""
        if self.order.subset is None:
            return self._store.stats(site)
        if site not in self._measured:
            running = RunningStats(self.width(site))
            chosen = self.order.first_contexts(STATS_TOKENS)
            for start in range(0, len(chosen), STATS_CONTEXTS):
                running.add(self._store.contexts(site, chosen[start : start + STATS_CONTEXTS]).x)
            self._measured[site] = running.result()
        return self._measured[site]

    def _load(self, contexts: np.ndarray, ahead: ReadAhead | None) -> Block:
        x, rows = {}, torch.empty(0, dtype=torch.int64)
        for site in self.sites:
            if ahead is not None:
                ahead.check()
            found = self._store.contexts(site, contexts)
            x[site], rows = found.x.to(self._device), found.rows
        return Block(x, rows)


@runtime_checkable
class StreamsSites(CapturesSites, Protocol):
    """What is asked of a model that is run in another thread while SAEs train."""

    def reserved(self) -> AbstractContextManager[None]:
        """Held while that thread may run it: nobody changes what the model computes."""
        ...


class StreamedBatches(OrderedBatches):
    """Batches from the live model; nothing is stored, every epoch runs the model again.

    Forward passes run with as many threads as the caller's computations, whichever thread they
    are in, since sums can depend on that number.
    """

    runs_model = True

    def __init__(
        self,
        model: StreamsSites,
        tokens: TokenSplit,
        sites: Sequence[str],
        order: Order,
        *,
        batch_contexts: int,
        dtype: StoreDtype = "bfloat16",
        stats_tokens: int = STATS_TOKENS,
    ) -> None:
        """Blocks and batches are on the device of ``model``, ``batch_contexts`` per forward."""
        _check_order(order, tokens.kept_per_context)
        super().__init__(sites, order, {site: model.width(site) for site in sites})
        if batch_contexts < 1 or stats_tokens < 1:
            raise BadInput(
                "batch_contexts and stats_tokens must be at least 1; they are"
                f" {batch_contexts} and {stats_tokens}."
            )
        self._model, self._tokens = model, tokens
        self._batch_contexts, self._stats_tokens = batch_contexts, stats_tokens
        self._dtype = _shards.STORE_DTYPES[dtype][1]

    def stats(self, site: str) -> SiteStats:
        """Of the first ``stats_tokens`` rows of the first epoch, in whole contexts: a random
        sample of the contexts, the same in every run."""
        if site not in self._measured:
            raise UnknownName("site of this stream", site, self._measured)
        return self._measured[site]

    @cached_property
    def _measured(self) -> dict[str, SiteStats]:
        running = {site: RunningStats(self.width(site), self._model.device) for site in self.sites}
        for x, _ in self._forwards(self.order.first_contexts(self._stats_tokens)):
            for site, rows in x.items():
                running[site].add(rows)
        return {site: stats.result() for site, stats in running.items()}

    def _forwards(self, contexts: np.ndarray) -> Iterator[tuple[dict[str, Tensor], Tensor]]:
        for start in range(0, len(contexts), self._batch_contexts):
            chosen = contexts[start : start + self._batch_contexts]
            x, rows = capture_rows(self._model, self._tokens, self.sites, chosen)
            yield {site: values.to(self._dtype) for site, values in x.items()}, rows

    def _reserved(self) -> AbstractContextManager[None]:
        return self._model.reserved()

    @property
    def gains_from_overlap(self) -> bool:
        """Not on a single core, where only memory would be spent."""
        return torch.device(self._model.device).type != "cpu" or num_cores() > 1

    def _load(self, contexts: np.ndarray, ahead: ReadAhead | None) -> Block:
        num_rows = int(self._tokens.kept_per_context[contexts].sum())
        rows = torch.empty(num_rows, dtype=torch.int64)
        x = {
            site: torch.empty(
                num_rows, self.width(site), dtype=self._dtype, device=self._model.device
            )
            for site in self.sites
        }
        done = 0
        for values, places in self._forwards(contexts):
            if ahead is not None:
                ahead.check()
            here = slice(done, done + len(places))
            rows[here] = places
            for site in self.sites:
                x[site][here] = values[site]
            done = here.stop
        return Block(x, rows)


def num_cores() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_order(order: Order, kept_per_context: np.ndarray) -> None:
    if not np.array_equal(order.kept_per_context, kept_per_context):
        raise BadInput(
            "the order was made for other contexts than these; make it from the"
            " kept_per_context of the same tokens or store."
        )
