"""Fetching the next batch while the coders train on this one."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Protocol, runtime_checkable

import torch

from sae_lib.training.objectives.base import Batch


@runtime_checkable
class BatchSource(Protocol):
    """Batches that are a pure function of their number."""

    def batch(self, i: int, /) -> Batch:
        """Batch ``i``; the same one whenever it is asked for."""
        ...


class Stoppable(Protocol):
    """Work of another thread."""

    def stop(self) -> None:
        """Give it up soon; the thread is joined by whoever started it."""


@runtime_checkable
class ReadsAhead(Protocol):
    """A source that can load, in a thread of its own, what later batches will need."""

    runs_model: bool
    """Whether it runs a language model to do so."""

    def reading_ahead(self, until: int, /) -> AbstractContextManager[Stoppable]:
        """Inside, it does, for batches below ``until``."""
        ...


class Stream(Iterator[tuple[int, Batch]]):
    """Batches one after the other, each fetched while the one before is used.

    Without a ``pool``, a thread of its own, they are fetched by the caller when they are asked for.
    """

    def __init__(
        self, batches: BatchSource, first: int, last: int, pool: ThreadPoolExecutor | None
    ) -> None:
        self._batches, self._pool = batches, pool
        self._steps = self._ahead(first, last) if pool is not None else self._in_turn(first, last)

    def __next__(self) -> tuple[int, Batch]:
        return next(self._steps)

    def look(self, i: int) -> Batch:
        """Any batch, beside those that come in turn: a source is asked by one thread only."""
        if self._pool is None:
            return self._batches.batch(i)
        return self._pool.submit(self._batches.batch, i).result()

    def _in_turn(self, first: int, last: int) -> Iterator[tuple[int, Batch]]:
        return ((i, self._batches.batch(i)) for i in range(first, last))

    def _ahead(self, first: int, last: int) -> Iterator[tuple[int, Batch]]:
        assert self._pool is not None
        following: Future[Batch] | None = self._pool.submit(self._batches.batch, first)
        for i in range(first, last):
            assert following is not None
            batch = following.result()
            following = self._pool.submit(self._batches.batch, i + 1) if i + 1 < last else None
            yield i, batch
            del batch


@contextmanager
def prefetched(
    batches: BatchSource, first: int, last: int, *, is_model_in_use: bool = False
) -> Iterator[Stream]:
    """Batches ``first`` to ``last``, each fetched in a thread while the one before is used.

    At most one batch waits, beside the one in use and what the source holds. A source that reads
    ahead does so until the end of the block. Where ``is_model_in_use`` (the coders' steps run the
    language model) and the source runs it too, everything is done in the caller's thread, in
    turn. The batches are the same either way.

    An exception of a thread is raised, with its traceback, where the batch is asked for. Leaving
    the block, by whatever way (also by Ctrl-C), gives up the work under way at its next piece and
    joins the threads.
    """
    if is_model_in_use and getattr(batches, "runs_model", False):
        yield Stream(batches, first, last, None)
        return
    with ExitStack() as stack:
        # left in the reverse order: say stop, wait for the fetch, wait for the reading
        ahead = None
        if isinstance(batches, ReadsAhead):
            ahead = stack.enter_context(batches.reading_ahead(last))
        pool = stack.enter_context(
            ThreadPoolExecutor(
                1,
                thread_name_prefix="batches",
                initializer=torch.set_num_threads,
                initargs=(torch.get_num_threads(),),
            )
        )
        if ahead is not None:
            stack.callback(ahead.stop)
        yield Stream(batches, first, last, pool)
