"""Progress in a terminal: a line per piece of work and per SAE, with the time it will take."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from assets.progress import (
    SECONDS_BETWEEN_LINES,
    TrainingUpdate,
    Update,
    numbers_text,
    training_lines,
)

SPEED_SECONDS = 300.0
"""The time left is estimated from so many seconds; points of a long training are far apart."""


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
            TextColumn("{task.fields[numbers]}", style="cyan"),
            console=console,
            speed_estimate_period=SPEED_SECONDS,
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
            task = self.progress.add_task(description, total=None, unit=unit, numbers="")
            return self._bar(task)
        return self._lines(description, unit)

    def training(self, description: str) -> TrainingUpdate:
        """A bar for each SAE with its latest numbers; where nobody sees bars, lines."""

        def say(text: str) -> None:
            self.console.print(text, highlight=False, markup=False, soft_wrap=True)

        if not self.console.is_terminal:
            return training_lines(f"  {description}", say)
        say(description)
        bars: dict[str, TaskID] = {}

        def update(
            name: str, step: int, steps: int, numbers: Mapping[str, float], problem: str | None
        ) -> None:
            if name not in bars:
                label = f"  {escape(name)}"
                bars[name] = self.progress.add_task(label, total=steps, unit="steps", numbers="")
            if problem is None:
                self.progress.update(bars[name], completed=step, numbers=numbers_text(numbers))
            else:
                say(f"{description}: {name} stopped: {problem}")
                self.progress.update(bars[name], numbers="[red]stopped[/red]")
                self.progress.stop_task(bars[name])

        return update

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
            left = f"{(now - began) / done * (total - done):,.0f} s left" if done else "just begun"
            self.console.print(
                f"  {description}: {done:,} of {total:,} {unit}, {left}", highlight=False
            )

        return update
