"""The command `sae status`: what is fresh, what is stale and why, what is missing or failed."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import dagster as dg
import typer
from rich.text import Text

from assets.freshness import State, states
from assets.grid import cell_key
from assets.runs import covers, fail_dead_runs, failures
from assets.store import Store
from assets.study import Study
from sae_lib.errors import BadInput, nearest
from sae_workflows.console import AsJson, Home, home_of, out, show_rows
from sae_workflows.home import dagster_home, outlines, study_at
from sae_workflows.selection import Wanted

Row = dict[str, Any]

ORDER = ("failed", "stale", "missing", "kept", "fresh")


def status(
    experiment: Annotated[
        Path | None, typer.Argument(help="Experiment file or name; without it, all in a line each.")
    ] = None,
    cells: Annotated[bool, typer.Option("--cells", help="A line per cell, not per stage.")] = False,
    home: Home = None,
    as_json: AsJson = False,
):
    """Say what is fresh, stale and why, missing, or failed.

    Where something is stale or missing the exit code is 0 all the same: it is a state, no error.
    """
    folder = home_of(home)
    if experiment is None:
        rows, title = overview(folder), "experiments"
        show_rows(rows, title=title, as_json=as_json)
        orphans = orphaned(folder)
        if orphans and not as_json:
            text = (
                f"Rows of {len(orphans)} cells belong to no experiment any more: "
                f"{', '.join(orphans[:3])}{', ...' if len(orphans) > 3 else ''}. They are kept, "
                "and left out of the views; `sae gc` removes what nothing needs."
            )
            out.print(Text(text, style="yellow"), soft_wrap=True)
        return
    study = study_at(folder, experiment)
    found = states_with_failures(study, folder)
    rows = [one._asdict() for one in found] if cells else by_stage(found)
    show_rows(rows, title=f"{study.name}: status", as_json=as_json)


def states_with_failures(study: Study, home: Path) -> list[State]:
    """The state of every cell; what is not there because its last run failed is ``failed``."""
    found = list(states(study, Store(home=str(home))))
    if not (home / "dagster" / "dagster.yaml").is_file():
        return found
    stages = {one.stage for one in found}
    with dg.DagsterInstance.from_config(str(dagster_home(home))) as instance:
        fail_dead_runs(instance)
        failed = failures(instance, study.name, stages)
    keys = [cell_key(site, variant.id) for site, variant in study.cells()]
    return [_failed(one, failed.get(one.stage), keys) for one in found]


def _failed(state: State, failure: Row | None, keys: Sequence[str]) -> State:
    if failure is None or state.state in ("fresh", "kept"):
        return state
    if state.variant and not covers(failure["tags"], keys, cell_key(state.site, state.variant)):
        return state
    why = f"{failure['cause']} (run {failure['run_id'][:8]})"
    return state._replace(state="failed", why=why)


def by_stage(found: Sequence[State]) -> list[Row]:
    """A row per stage, state and reason, with the number of cells."""
    counts = Counter((one.stage, one.state, one.why) for one in found)
    return [
        {"stage": stage, "state": state, "cells": number, "why": why}
        for (stage, state, why), number in counts.items()
    ]


def overview(home: Path) -> list[Row]:
    """A row per experiment that has ever been run here."""
    known, broken = outlines(home)
    store = Store(home=str(home))
    rows = []
    for outline in known:
        if not store.has_rows_of(outline.name):
            continue
        found = states_with_failures(study_at(home, Path(outline.file)), home)
        counts: dict[str, int] = defaultdict(int)
        for one in found:
            counts[one.state] += 1
        why = next((one.why for state in ORDER for one in found if one.state == state), "")
        rows.append(
            {"experiment": outline.name, **{state: counts[state] for state in ORDER}, "why": why}
        )
    rows += [
        {"experiment": Path(file).stem, **dict.fromkeys(ORDER), "why": reason}
        for file, reason in broken.items()
    ]
    return rows


def orphaned(home: Path) -> list[str]:
    """Cells that have rows in the warehouse and that no experiment declares any more."""
    from sae_lib.warehouse.write import decode_value

    known, _ = outlines(home)
    declared = {f"{outline.name}|{key}" for outline in known for key in outline.cells}
    names = {outline.name for outline in known}
    found = []
    for folder in sorted((home / "warehouse" / ".landed").glob("*")):
        parts = [decode_value(part) for part in decode_value(folder.name).split("|")]
        if len(parts) != 3:
            continue
        experiment, site, variant = parts
        is_whole = not variant and experiment in names
        if not is_whole and f"{experiment}|{site}|{variant}" not in declared:
            found.append("|".join(parts))
    return found


def check_patterns(study: Study, wanted: Wanted) -> None:
    """Raise `BadInput` where ``--site`` or ``--variant`` fits nothing."""
    from fnmatch import fnmatchcase

    sites = list(dict.fromkeys(site for site, _ in study.cells()))
    variants = list(dict.fromkeys(variant.id for _, variant in study.cells()))
    for option, patterns, known in (
        ("site", wanted.sites, sites),
        ("variant", wanted.variants, variants),
    ):
        for pattern in patterns:
            if not any(fnmatchcase(name, pattern) for name in known):
                raise BadInput(
                    f"no {option} of {study.name} is like this. There are {', '.join(known[:20])}"
                    f"{', ...' if len(known) > 20 else ''}.{nearest(pattern, known)}",
                    key=f"--{option}",
                    value=pattern,
                )
