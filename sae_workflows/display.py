"""Progress in a terminal: one line per stage, with what is left and the time it will take."""

import time
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from assets.progress import SECONDS_BETWEEN_LINES, Update


class Display:
    """Bars where the console is a terminal, occasional lines where it is not."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> "Display":
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    def stage(self, stage: str, work: Any | None) -> None:
        """Say what a stage is about to do."""
        if work is None:
            self.console.print(f"{stage}: nothing to do", style="dim")
        else:
            kept = f", {work.found} found" if work.found else ""
            self.console.print(f"{stage}: {work.built} to build{kept}", style="bold")

    def task(self, description: str, unit: str) -> Update:
        if self.console.is_terminal:
            return self._bar(self.progress.add_task(description, total=None, unit=unit))
        return self._lines(description, unit)

    def _bar(self, task: TaskID) -> Update:
        def update(done: int, total: int) -> None:
            self.progress.update(task, completed=done, total=total)

        return update

    def _lines(self, description: str, unit: str) -> Update:
        began = last = time.monotonic()

        def update(done: int, total: int) -> None:
            nonlocal last
            now = time.monotonic()
            if now - last < SECONDS_BETWEEN_LINES:
                return
            last = now
            left = (now - began) / done * (total - done) if done else float("nan")
            self.console.print(
                f"  {description}: {done:,} of {total:,} {unit}, {left:,.0f} s left",
                highlight=False,
            )

        return update
