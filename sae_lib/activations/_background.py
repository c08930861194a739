"""Work that is done beside the caller's, in the order it was handed over."""

from collections.abc import Callable
from queue import Queue
from threading import Thread
from types import TracebackType

DEPTH = 2
"""Jobs that may wait: one hides the time of a write, two also its jitter; each holds a batch."""


class Background:
    """One thread and a short queue. Leaving the block waits for the jobs, or drops them on error.

    An exception of a job is raised in the caller, at its next `submit` or at the end of the
    block; the jobs behind it are not run.
    """

    def __init__(self, depth: int = DEPTH) -> None:
        self._jobs: Queue[Callable[[], None] | None] = Queue(depth)
        self._error: BaseException | None = None
        self._is_cancelled = False
        self._thread = Thread(target=self._work, daemon=True)

    def __enter__(self) -> "Background":
        self._thread.start()
        return self

    def submit(self, job: Callable[[], None]) -> None:
        """Queue ``job``; waits while the queue is full."""
        if self._error is not None:
            raise self._error
        self._jobs.put(job)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._is_cancelled = error is not None
        self._jobs.put(None)
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def _work(self) -> None:
        # never stops reading before the end mark, so that the caller cannot hang in `put`
        while (job := self._jobs.get()) is not None:
            if self._error is None and not self._is_cancelled:
                try:
                    job()
                except BaseException as error:  # noqa: BLE001 - raised again in the caller
                    self._error = error
            del job
