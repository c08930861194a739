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


@contextmanager
def prefetched(
    batches: BatchSource, first: int, last: int, *, is_model_in_use: bool = False
) -> Iterator[Iterator[tuple[int, Batch]]]:
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
        yield ((i, batches.batch(i)) for i in range(first, last))
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

        def stream() -> Iterator[tuple[int, Batch]]:
            following: Future[Batch] | None = pool.submit(batches.batch, first)
            for i in range(first, last):
                assert following is not None
                batch = following.result()
                following = pool.submit(batches.batch, i + 1) if i + 1 < last else None
                yield i, batch
                del batch

        yield stream()
