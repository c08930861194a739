"""`sae curves`: how trainings are doing, while they run and afterwards."""

import json
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import typer

from assets.study import Study
from sae_lib.artifacts import ArtifactStore
from sae_lib.errors import BadInput
from sae_workflows.console import AsJson, Home, home_of, out, show_rows
from sae_workflows.home import study_at

SHOWN = ("loss", "fvu", "l0", "dead_share", "grad_norm", "tokens_per_second")
REFRESH_SECONDS = 2.0
BARS, BAR_COUNT = "▁▂▃▄▅▆▇█", 16


def curves(
    experiment: Annotated[
        Path, typer.Argument(help="Experiment file, or the name of a bundled experiment.")
    ],
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until every SAE is trained.")
    ] = False,
    points: Annotated[
        bool, typer.Option("--points", help="Every point, as in the table curves.")
    ] = False,
    name: Annotated[
        list[str] | None, typer.Option("--name", help="Only this number, such as fvu; repeatable.")
    ] = None,
    sae: Annotated[str, typer.Option("--sae", help="Only variants like this, such as topk-*.")] = (
        "*"
    ),
    home: Home = None,
    as_json: AsJson = False,
):
    """Training curves, also of SAEs that are being trained just now by another process."""
    folder = home_of(home)
    study = study_at(folder, experiment)
    if not any(fnmatchcase(variant.id, sae) for variant in study.variants):
        raise BadInput(
            f"no variant is like this; there are {', '.join(v.id for v in study.variants)}.",
            key="--sae",
            value=sae,
        )
    if follow and (points or as_json):
        raise BadInput("following shows a table; leave out --points and --json.", key="--follow")
    if points:
        rows = point_rows(study, folder, names=name, pattern=sae)
        show_rows(rows, title=f"{study.name}: training curves", as_json=as_json)
    elif follow:
        follow_table(study, folder, sae, name or SHOWN)
    else:
        rows = state_rows(study, folder, sae, name or SHOWN)
        show_rows(rows, title=f"{study.name}: trainings", as_json=as_json)


def follow_table(study: Study, home: Path, pattern: str, names: Sequence[str]) -> None:
    """Show `state_rows` again and again, until nothing is left to train.

    A terminal shows one table that changes; elsewhere a line is printed when an SAE moves.
    """
    from rich.live import Live

    from sae_workflows.console import table_of

    if out.is_terminal:
        with Live(console=out, auto_refresh=False) as live:
            while True:
                rows = state_rows(study, home, pattern, names)
                live.update(table_of(rows, f"{study.name}: trainings"), refresh=True)
                if is_over(rows):
                    return
                time.sleep(REFRESH_SECONDS)
    said: dict[tuple[str, str], Any] = {}
    while True:
        rows = state_rows(study, home, pattern, names)
        for row in rows:
            cell, now = (row["site"], row["variant"]), (row["state"], row["step"])
            if said.get(cell) != now and row["state"] != "not begun":
                out.print_json(json.dumps(row), indent=None)
            said[cell] = now
        if is_over(rows):
            return
        time.sleep(REFRESH_SECONDS)


def is_over(rows: Sequence[dict[str, Any]]) -> bool:
    return all(row["state"] in ("complete", "diverged") for row in rows)


def state_rows(
    study: Study, home: Path, pattern: str = "*", names: Sequence[str] = SHOWN
) -> list[dict[str, Any]]:
    """A row per SAE: its state, how far it is, and the last value of each of ``names``.

    ``state`` is "not begun", "under way" (its numbers are from ``seconds_ago``; a stopped process
    leaves it so as well, to be gone on with), "stopped" (its loss was not finite; others of its
    company still train), or how the training ended: "complete" or "diverged".
    """
    return [
        _state_row(study, ArtifactStore(home), site, variant, names)
        for site, variant in study.cells()
        if fnmatchcase(variant.id, pattern)
    ]


def _state_row(
    study: Study, store: ArtifactStore, site: str, variant: Any, names: Sequence[str]
) -> dict[str, Any]:
    found = _points(study, store, site, variant)
    row: dict[str, Any] = {"site": site, "variant": variant.id, "state": "not begun", "step": 0}
    row["steps"] = study.resolved_train(variant, site).steps
    row |= dict.fromkeys(names)
    row |= {"fvu so far": "", "seconds_left": None, "seconds_ago": None, "problem": None}
    identity = study.sae(site, variant)
    for point in found:
        row |= {name: point["numbers"][name] for name in names if name in point["numbers"]}
    row["fvu so far"] = bars([p["numbers"]["fvu"] for p in found if "fvu" in p["numbers"]])
    if store.exists(identity):
        facts = store.manifest(identity)["facts"]
        row |= {"state": facts["status"], "step": facts["steps"], "problem": facts.get("reason")}
    elif found:
        last = found[-1]
        row |= {"state": "stopped" if last["problem"] else "under way", "step": last["step"]}
        row |= {"problem": last["problem"], "seconds_ago": round(time.time() - last["seconds"], 1)}
        speed = last["numbers"].get("tokens_per_second")
        if speed:
            left = (last["steps"] - last["step"]) * variant.train.batch_tokens
            row["seconds_left"] = round(left / speed)
    return row


def point_rows(
    study: Study, home: Path, *, names: Sequence[str] | None = None, pattern: str = "*"
) -> list[dict[str, Any]]:
    """The points so far as the table ``curves`` has them: a row per number and step."""
    store = ArtifactStore(home)
    return [
        {
            "site": site,
            "variant": variant.id,
            "step": point["step"],
            "tokens": point["tokens"],
            "name": name,
            "value": value,
        }
        for site, variant in study.cells()
        if fnmatchcase(variant.id, pattern)
        for point in _points(study, store, site, variant)
        for name, value in point["numbers"].items()
        if names is None or not names or name in names
    ]


def _points(study: Study, store: ArtifactStore, site: str, variant: Any) -> list[Any]:
    """Points of a finished SAE from its rows, of one under way from beside its checkpoint."""
    from sae_lib.training.live import LivePoint, read_points

    identity = study.sae(site, variant)
    if not store.exists(identity):
        return read_points(store.working_path(identity) / "checkpoint")
    import polars as pl

    points: dict[int, LivePoint] = {}
    frame = pl.read_parquet(store.path(identity) / "curves.parquet").sort("step")
    for step, tokens, name, value in frame.select("step", "tokens", "name", "value").iter_rows():
        point = points.setdefault(
            step,
            LivePoint(step=step, steps=step, tokens=tokens, seconds=0, numbers={}, problem=None),
        )
        if value is not None:
            point["numbers"][name] = value
    return list(points.values())


def bars(values: Sequence[float]) -> str:
    """``values`` as a row of small bars, the last of each of `BAR_COUNT` equal parts."""
    count = min(BAR_COUNT, len(values))
    picked = [values[(i + 1) * len(values) // count - 1] for i in range(count)]
    low, high = min(picked, default=0.0), max(picked, default=0.0)
    scale = (len(BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(BARS[round((value - low) * scale)] for value in picked)
