"""The commands `sae push` and `sae pull`: a home and the store that machines share."""

from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn
from rich.text import Text

from sae_lib.errors import BadInput
from sae_lib.remote import Remote, remote_from_env
from sae_workflows.console import AsJson, Home, err, home_of, show_rows
from sae_workflows.mirror import Line, OnProgress, mirror_down, mirror_up

ExperimentName = Annotated[
    str | None,
    typer.Option(
        "--experiment", help="Only the rows of this experiment and the artefacts behind them."
    ),
]
OnlyKinds = Annotated[
    list[str] | None,
    typer.Option(
        "--kind",
        help="Only artefacts of this kind, such as sae, or the warehouse; repeatable. Default: "
        "what SAE_REMOTE_KINDS says (all but activations), and the warehouse.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Say what would move; move nothing.")]


def push(
    experiment: ExperimentName = None,
    kind: OnlyKinds = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Upload artefacts again that are there already.")
    ] = False,
    delete: Annotated[
        bool,
        typer.Option(
            "--delete", help="Take rows that were deleted here away from every machine as well."
        ),
    ] = False,
    dry_run: DryRun = False,
    home: Home = None,
    as_json: AsJson = False,
):
    """Share artefacts and results that $SAE_REMOTE lacks; exit code 1 when something failed."""
    remote, folder = configured(), home_of(home)

    def move(on_progress: OnProgress) -> list[Line]:
        return mirror_up(
            folder,
            remote,
            kinds=kind,
            experiment=experiment,
            replace=replace,
            delete=delete,
            dry_run=dry_run,
            on_progress=on_progress,
        )

    show("to", remote, move, dry_run=dry_run, as_json=as_json)


def pull(
    experiment: ExperimentName = None,
    kind: OnlyKinds = None,
    dry_run: DryRun = False,
    home: Home = None,
    as_json: AsJson = False,
):
    """Bring artefacts and results here from $SAE_REMOTE; exit code 1 when something failed."""
    remote, folder = configured(), home_of(home)

    def move(on_progress: OnProgress) -> list[Line]:
        return mirror_down(
            folder,
            remote,
            kinds=kind,
            experiment=experiment,
            dry_run=dry_run,
            on_progress=on_progress,
        )

    show("from", remote, move, dry_run=dry_run, as_json=as_json)


def configured() -> Remote:
    """The store the environment names; raises `BadInput` where it names none."""
    remote = remote_from_env()
    if remote is None:
        raise BadInput(
            "Say which store: a URL such as s3://bucket/prefix or file:///mnt/share/sae.",
            key="SAE_REMOTE",
        )
    return remote


def show(
    preposition: str,
    remote: Remote,
    move: Callable[[OnProgress], list[Line]],
    *,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Move with a bar for each kind, then say what moved."""
    with _Bars(err) as bars:
        lines = move(bars.update)
    moved = "would move" if dry_run else "moved"
    rows = [
        {
            "what": line.what,
            moved: line.moved,
            "there already": None if line.what == "warehouse" else line.there,
            "MB": round(line.size / 1e6, 3),
            "failed": len(line.failures),
        }
        for line in lines
    ]
    show_rows(rows, title=f"{moved} {preposition} {remote.url}", as_json=as_json)
    failures = [failure for line in lines for failure in line.failures]
    for failure in failures:
        err.print(Text(failure, style="red"), soft_wrap=True)
    if failures:
        raise typer.Exit(1)


class _Bars:
    """One bar for each kind that is moved, where the console is a terminal."""

    def __init__(self, console: Console) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        self.progress = Progress(*columns, console=console, disable=not console.is_terminal)
        self.bars: dict[str, TaskID] = {}

    def __enter__(self) -> "_Bars":
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def update(self, what: str, done: int, total: int) -> None:
        if what not in self.bars:
            self.bars[what] = self.progress.add_task(what, total=total)
        self.progress.update(self.bars[what], completed=done, total=total)
