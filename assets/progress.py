"""Progress of long work: a live display where somebody watches, log lines where nobody does."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

Update = Callable[[int, int], None]
"""Called with (done, total)."""

SECONDS_BETWEEN_LINES = 10.0


class Reporter(Protocol):
    """Shows the progress of one named piece of work at a time."""

    def task(self, description: str, unit: str) -> Update: ...


reporter: ContextVar[Reporter | None] = ContextVar("reporter", default=None)
"""Set by whoever watches (the command line); unset, progress goes to the log."""


@contextmanager
def watched_by(display: Reporter) -> Iterator[None]:
    """Progress inside the block goes to ``display``."""
    token = reporter.set(display)
    try:
        yield
    finally:
        reporter.reset(token)


def progress(description: str, log: Callable[[str], None], *, unit: str = "") -> Update:
    """A function to call with (done, total) as often as one likes."""
    display = reporter.get()
    return display.task(description, unit) if display else _log_lines(description, log, unit)


def _log_lines(description: str, log: Callable[[str], None], unit: str) -> Update:
    began = last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES and done < total:
            return
        last = now
        rate = done / (now - began) if now > began else 0.0
        left = (total - done) / rate if rate else float("nan")
        log(
            f"{description}: {done:,} of {total:,} {unit} "
            f"({rate:,.0f} a second, {left:,.0f} s left)"
        )

    return update
