"""A whole home and the shared store: everything that is missing on one side, moved to it."""

import json
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

from sae_lib.artifacts import MANIFEST, read_manifest
from sae_lib.errors import BadInput, SaeError
from sae_lib.remote import Moved, Remote
from sae_lib.remote.remote import in_parallel
from sae_lib.warehouse.sync import LEDGERS, belongs, shared_ledgers, sync_warehouse

WAREHOUSE = "warehouse"

OnProgress = Callable[[str, int, int], None]
"""Called with what is moved, how much of it is done, and how much there is."""


class Line(NamedTuple):
    """What moved of one kind."""

    what: str
    """A kind of artefacts, or the warehouse."""

    moved: int
    there: int
    """How many the other side had already; of the warehouse only what moved is counted."""

    size: int
    """Bytes that were moved, or would be."""

    failures: list[str]


def mirror_up(
    home: Path,
    remote: Remote,
    *,
    kinds: Collection[str] | None = None,
    experiment: str | None = None,
    replace: bool = False,
    delete: bool = False,
    dry_run: bool = False,
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[Line]:
    """Share what ``home`` has and the store lacks: artefacts, then rows of the warehouse.

    ``kinds`` are the kinds of artefacts, None those the settings share; with an ``experiment`` only
    what its rows were made from. ``replace`` uploads again what is there, ``delete`` takes rows
    that were deleted here away from everybody.
    """
    here = _local_folders(home)
    wanted = {kind for kind in here if _is_wanted(kind, kinds, remote)}
    chosen = _chosen(
        here,
        experiment,
        lambda name: [*_local_ledgers(home, name)],
        lambda kind, folder: read_manifest(home / "artifacts" / kind / folder),
    )
    lines = []
    for kind in sorted(wanted):
        names = sorted(chosen[kind])
        known = set() if replace else set(remote.folders(kind))
        missing = [name for name in names if name not in known]
        there = len(names) - len(missing)

        def push(name: str, kind: str = kind) -> Moved:
            folder = home / "artifacts" / kind / name
            if dry_run:
                files = [one for one in folder.rglob("*") if one.is_file()]
                return Moved(len(files), sum(one.stat().st_size for one in files))
            return remote.push(folder, replace=replace)

        lines.append(_move(kind, missing, there, push, on_progress))
    if kinds is None or WAREHOUSE in kinds:
        lines.append(_rows(home, remote, "push", experiment, delete, dry_run, on_progress))
    return lines


def mirror_down(
    home: Path,
    remote: Remote,
    *,
    kinds: Collection[str] | None = None,
    experiment: str | None = None,
    dry_run: bool = False,
    on_progress: OnProgress = lambda what, done, total: None,
) -> list[Line]:
    """Bring here what the store has and ``home`` lacks; the arguments are those of `mirror_up`."""
    shared = {
        kind: set(remote.folders(kind))
        for kind in remote.all_kinds()
        if experiment is not None or _is_wanted(kind, kinds, remote)
    }
    chosen = _chosen(
        shared,
        experiment,
        lambda name: shared_ledgers(remote, name),
        remote.manifest,
    )
    here = _local_folders(home)
    lines = []
    for kind in sorted(kind for kind in shared if _is_wanted(kind, kinds, remote)):
        missing = sorted(chosen[kind] - here.get(kind, set()))
        there = len(chosen[kind]) - len(missing)

        def pull(name: str, kind: str = kind) -> Moved:
            if dry_run:
                files = remote.index(kind, name)["files"]
                return Moved(len(files), sum(size for size, _ in files.values()))
            return remote.pull(kind, name, home)

        lines.append(_move(kind, missing, there, pull, on_progress))
    if kinds is None or WAREHOUSE in kinds:
        lines.append(_rows(home, remote, "pull", experiment, False, dry_run, on_progress))
    return lines


def _is_wanted(kind: str, kinds: Collection[str] | None, remote: Remote) -> bool:
    return kind in (remote.kinds if kinds is None else kinds)


def _move(
    kind: str,
    names: list[str],
    there: int,
    move: Callable[[str], Moved],
    on_progress: OnProgress,
) -> Line:
    moved: list[Moved] = []
    failures: list[str] = []
    lock = Lock()

    def one(name: str) -> None:
        try:
            found = move(name)
        except SaeError as error:
            with lock:
                failures.append(str(error))
        else:
            with lock:
                moved.append(found)
        on_progress(kind, len(moved) + len(failures), len(names))

    in_parallel(one, names)
    were_there = sum(one.was_there for one in moved)  # another machine was quicker
    size = sum(one.size for one in moved)
    return Line(kind, len(moved) - were_there, there + were_there, size, failures)


def _rows(
    home: Path,
    remote: Remote,
    direction: str,
    experiment: str | None,
    delete: bool,
    dry_run: bool,
    on_progress: OnProgress,
) -> Line:
    synced = sync_warehouse(
        home / "warehouse",
        remote,
        push=direction == "push",
        pull=direction == "pull",
        delete=delete,
        experiment=experiment,
        dry_run=dry_run,
        on_progress=lambda done, total: on_progress(WAREHOUSE, done, total),
    )
    size = sum(step.size for step in synced.steps)
    return Line(WAREHOUSE, len(synced.steps), 0, size, synced.failures)


def _local_folders(home: Path) -> dict[str, set[str]]:
    """Names of the finished artefacts, by kind."""
    found: dict[str, set[str]] = {}
    for file in (home / "artifacts").glob(f"*/*/{MANIFEST}"):
        if not file.parent.name.startswith("."):
            found.setdefault(file.parent.parent.name, set()).add(file.parent.name)
    return found


def _local_ledgers(home: Path, experiment: str) -> Iterable[dict[str, Any]]:
    root = home / "warehouse"
    for file in (root / LEDGERS).rglob("*.json"):
        if belongs(file.relative_to(root).as_posix(), experiment):
            yield json.loads(file.read_text("utf-8"))


def _chosen(
    folders: Mapping[str, set[str]],
    experiment: str | None,
    ledgers: Callable[[str], Iterable[Mapping[str, Any]]],
    manifest: Callable[[str, str], Mapping[str, Any]],
) -> dict[str, set[str]]:
    """Those of ``folders`` that the rows of ``experiment`` were made from, by way of any number of
    parents; all of them where it is None."""
    if experiment is None:
        return dict(folders)
    by_hash = {
        name.rpartition("-")[2]: (kind, name) for kind, names in folders.items() for name in names
    }
    asked = {str(one["artifact"]) for one in ledgers(experiment) if "artifact" in one}
    if not asked:
        raise BadInput(
            "No rows of an experiment of this name have been put into the warehouse; run it, or "
            "leave --experiment out.",
            key="--experiment",
            value=experiment,
        )
    found: dict[str, set[str]] = {kind: set() for kind in folders}
    seen: set[str] = set()
    while fresh := sorted((asked - seen) & set(by_hash)):
        seen |= asked
        for kind, name in (by_hash[one] for one in fresh):
            found[kind].add(name)
        manifests = in_parallel(lambda one: manifest(*by_hash[one]), fresh)
        asked = {str(parent) for one in manifests for parent in one["parents"].values()}
    return found
