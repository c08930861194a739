"""Progress of long work: a live display where somebody watches, log lines where nobody does."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol

Update = Callable[[int, int], None]
"""Called with (done, total)."""

TrainingUpdate = Callable[[str, int, int, Mapping[str, float], str | None], None]
"""Called with the name of an SAE, steps done, steps in all, its numbers, and why it stopped."""

SECONDS_BETWEEN_LINES = 10.0

SHOWN = ("loss", "fvu", "l0", "dead_share", "grad_norm", "tokens_per_second")
"""Numbers of a training that are shown while it runs."""


class Reporter(Protocol):
    """Shows the progress of one named piece of work at a time."""

    def task(self, description: str, unit: str) -> Update: ...

    def training(self, description: str) -> TrainingUpdate:
        """Shows SAEs that train in company, each with its numbers."""
        ...


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


def training_progress(description: str, log: Callable[[str], None]) -> TrainingUpdate:
    """The same for SAEs that train in company."""
    display = reporter.get()
    return display.training(description) if display else training_lines(description, log)


def training_lines(description: str, log: Callable[[str], None]) -> TrainingUpdate:
    """Every so often one message: how far all are, when they will be there, and their numbers.

    A problem is said at once, and so is that everything is done.
    """
    began: float | None = None
    last, first = time.monotonic(), 0
    at: dict[str, tuple[int, int]] = {}
    numbers: dict[str, str] = {}

    def update(
        name: str, step: int, steps: int, values: Mapping[str, float], problem: str | None
    ) -> None:
        nonlocal began, first, last
        now = time.monotonic()
        if problem is not None:
            log(f"{description}: {name} stopped: {problem}")
            at[name] = (step, step)  # nothing is left to wait for
            numbers[name] = "stopped"
        else:
            at[name] = (step, steps)
            numbers[name] = numbers_text(values)
        done, total = (sum(counts) for counts in zip(*at.values(), strict=True))
        if began is None:
            began, first = now, done  # steps of an earlier process say nothing about this one
        if now - last < SECONDS_BETWEEN_LINES and done < total:
            return
        last = now
        rate = (done - first) / (now - began) if now > began else 0.0
        left = f"{(total - done) / rate:,.0f} s left" if rate else "just begun"
        lines = [f"  {one}: step {at[one][0]:,} of {at[one][1]:,}  {numbers[one]}" for one in at]
        log("\n".join([f"{description}: {done:,} of {total:,} steps, {left}", *lines]))

    return update


def numbers_text(numbers: Mapping[str, float]) -> str:
    """``numbers`` as far as they are `SHOWN`, on one line."""
    found = [(name, numbers[name]) for name in SHOWN if name in numbers]
    return "  ".join(f"{name.replace('_', ' ')} {short(value)}" for name, value in found)


def short(value: float) -> str:
    """Three significant digits; thousands from 10,000 on."""
    return f"{value:,.0f}" if abs(value) >= 1e4 else f"{value:.3g}"


def _log_lines(description: str, log: Callable[[str], None], unit: str) -> Update:
    began = last = time.monotonic()

    def update(done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < SECONDS_BETWEEN_LINES and done < total:
            return
        last = now
        rate = done / (now - began) if now > began else 0.0
        left = (
            f"{short(rate)} a second, {(total - done) / rate:,.0f} s left" if rate else "just begun"
        )
        log(f"{description}: {done:,} of {total:,} {unit} ({left})")

    return update
