"""How commands take their common options and print their results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from sae_workflows.home import dagster_home, sae_home

out = Console()
err = Console(stderr=True)

NARROWEST_COLUMN = 7
"""Characters; a table with narrower columns cannot be read."""

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Home = Annotated[
    Path | None,
    typer.Option("--home", help="Folder of artefacts and results; default $SAE_HOME or ./.sae."),
]


def home_of(given: Path | None) -> Path:
    return given.resolve() if given else sae_home()


def fresh_database(home: Path) -> Path:
    """The results database below ``home``, published anew where rows or views are newer."""
    from sae_lib.warehouse.publish import is_stale, publish

    warehouse, database = home / "warehouse", home / "results.duckdb"
    if warehouse.is_dir():
        _land_runs(home)
    if warehouse.is_dir() and is_stale(warehouse, database):
        publish(warehouse, database, None)
    return database


def _land_runs(home: Path) -> None:
    """Put what happened since into the table of runs: a run that failed could not do so."""
    import dagster as dg

    from assets.runs import fail_dead_runs, land_runs
    from assets.store import Store

    if not (home / "dagster" / "history").is_dir():
        return
    with dg.DagsterInstance.from_config(str(dagster_home(home))) as instance:
        fail_dead_runs(instance)
        land_runs(Store(home=str(home)), instance)


def show_rows(rows: Sequence[Mapping[str, Any]], *, title: str, as_json: bool) -> None:
    """A table for people, or JSON for programs."""
    if as_json:
        out.print_json(json.dumps(list(rows), default=str))
        return
    if not rows:
        out.print(f"{title}: none.")
        return
    if len(rows[0]) * NARROWEST_COLUMN > out.width:
        _show_records(rows, title)
        return
    out.print(table_of(rows, title))


def table_of(rows: Sequence[Mapping[str, Any]], title: str) -> Table:
    """``rows``, of which there is at least one, as a table; numbers to the right."""
    table = Table(title=title, title_justify="left", header_style="bold")
    for column in rows[0]:
        is_number = all(isinstance(row[column], int | float | None) for row in rows)
        table.add_column(column, justify="right" if is_number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(_cell(value)) for value in row.values()))
    return table


def _show_records(rows: Sequence[Mapping[str, Any]], title: str) -> None:
    """Rows one below the other, where the terminal is too narrow for their columns."""
    if title:
        out.print(Text(title, style="bold"))
    width = max(map(len, rows[0]))
    for row in rows:
        out.rule(style="dim")
        for column, value in row.items():
            out.print(Text(f"{column:>{width}}  ", style="dim") + Text(_cell(value)))


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return str(value)
