"""The warehouse's files and a remote store that several machines share, brought to one state.

    warehouse/PATH/STAMP-SHA256-SIZE.ext      one version of the file PATH of the warehouse
    warehouse/PATH/STAMP-deleted              ... and that PATH is no more

PATH is a partition (``metrics/experiment=E/site=S/variant=V/rows.parquet``), a ledger below
``.landed`` or the declared cells of one experiment. STAMP is when it was written, in nanoseconds;
the newest version stands, and who writes a newer one takes the older away. A version is one object
that never changes, so one listing says everything, and nothing is there by half.

``.remote.json`` remembers which version each local file was when they last agreed. With it a file
that changed here, one that changed there and one that was deleted are told apart. A ledger says
which rows its landing wrote, and is taken over only together with exactly those: a cell whose rows
come from two landings counts as not landed.
"""

import json
import logging
import time
from collections.abc import Callable, Collection, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Literal, NamedTuple

import polars as pl
from filelock import FileLock

from sae_lib.artifacts import write_atomically
from sae_lib.errors import SaeError
from sae_lib.remote import Remote
from sae_lib.remote.remote import in_parallel, sha256
from sae_lib.warehouse.sync.declarations import join_declarations, split_declarations
from sae_lib.warehouse.sync.files import (
    LEDGERS,
    PREFIX,
    Local,
    Version,
    belongs,
    local_files,
    look,
    versions_of,
)
from sae_lib.warehouse.sync.state import Agreed, State, note_agreed
from sae_lib.warehouse.sync.transfer import get, put, share_newest, take_away, tidy

Action = Literal["push", "pull", "delete here", "delete there"]

SYNC_SECONDS = 60.0
"""How long the warehouse counts as synchronised, for callers that ask often."""

_synced: dict[tuple[Path, str], float] = {}

log = logging.getLogger(__name__)


class Step(NamedTuple):
    """One file that differs, and what is to be done."""

    action: Action
    path: str
    size: int
    """Bytes to be moved."""


class Synced(NamedTuple):
    """What a synchronisation came to."""

    steps: list[Step]
    failures: list[str]
    """A sentence for each file that could not be moved; the next time it is tried again."""

    def count(self, action: Action) -> int:
        return sum(step.action == action for step in self.steps)


def sync_warehouse(
    root: Path,
    remote: Remote,
    *,
    push: bool = True,
    pull: bool = True,
    delete: bool = False,
    experiment: str | None = None,
    dry_run: bool = False,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Synced:
    """Bring the warehouse at ``root`` and the remote to one state; the newest version of a file
    stands. With ``experiment`` only the files of that one are looked at.

    History that a write of no rows has ended is deleted everywhere. Any other file that is missing
    here is brought back, or with ``delete`` taken away from everybody.
    """
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(str(root / ".remote.lock")):
        state = State.read(root, remote)
        if push and not dry_run:
            split_declarations(root)
        local, there = local_files(root), versions_of(remote)
        paths = [path for path in {*local, *there} if belongs(path, experiment)]
        steps: list[Step] = []
        settled: dict[str, Agreed] = {}
        for path in sorted(paths):
            found = _decide(root, path, local, there.get(path), state, settled, delete)
            is_wanted = found and (push if found.action in ("push", "delete there") else pull)
            if found and is_wanted:
                steps.append(found)
        if dry_run:
            return Synced(steps, [])
        state.agreed.update(settled)
        tidy(root)
        done, failures = _carry_out(root, remote, steps, local, there, state, on_progress)
        state.write()
        join_declarations(root, [step.path for step in done if step.action == "pull"])
    return Synced(done, failures)


def note_landing(
    root: Path,
    ledger: Path,
    facts: Mapping[str, Any],
    files: Collection[Path],
    remote: Remote | None,
) -> None:
    """Write the ledger of a landing that wrote ``files``, and share both.

    A remote that cannot be reached is a warning; the next synchronisation makes up for it.
    """
    written = {file.relative_to(root).as_posix(): sha256(file) for file in files}
    write_atomically(ledger, json.dumps({**facts, "files": written}) + "\n")
    if remote:
        name = ledger.relative_to(root).as_posix()

        def share() -> None:
            shared = dict(zip(written, in_parallel(share_one, written), strict=True))
            shared[name] = share_one(name)
            note_agreed(root, remote, {path: one for path, one in shared.items() if one})

        def share_one(path: str) -> Agreed | None:
            return share_newest(root, remote, path)

        remote.attempt(f"{name} stays on this machine; `sae push` shares it later.", share)


def keep_synced(root: Path, remote: Remote | None, *, at_once: bool = False) -> None:
    """Synchronise unless that was done in the last minute; trouble is a warning, never an error."""
    if remote is None:
        return
    last = _synced.get((root, remote.url), float("-inf"))
    if not at_once and remote.clock() - last < SYNC_SECONDS:
        return

    def sync() -> None:
        for problem in sync_warehouse(root, remote).failures:
            log.warning("%s", problem)

    remote.attempt("Rows are not exchanged; `sae push` and `sae pull` do it later.", sync)
    _synced[root, remote.url] = remote.clock()


def _decide(
    root: Path,
    path: str,
    files: Mapping[str, Local],
    versions: list[Version] | None,
    state: State,
    settled: dict[str, Agreed],
    delete: bool,
) -> Step | None:
    """What to do about one file; where both sides hold the same, that goes into ``settled``."""
    here, there = files.get(path), versions[-1] if versions else None
    base = state.agreed.get(path)
    if here is None and there is None:
        return None
    if there is None:
        assert here
        return Step("push", path, here.size)
    has_changed_there = base is None or base.name != there.name
    if here is None:
        if there.is_deletion:
            return None
        is_deleted_here = delete and base is not None and not has_changed_there
        if is_deleted_here or _is_superseded(root, path, there.stamp, files):
            return Step("delete there", path, 0)
        return Step("pull", path, there.size)
    has_changed_here = base is None or (base.size, base.modified_ns) != here
    if not has_changed_here and not has_changed_there:
        return None
    to_here: Action = "delete here" if there.is_deletion else "pull"
    if not has_changed_here:
        return Step(to_here, path, there.size)
    try:
        checksum = sha256(root / path)
    except FileNotFoundError:  # deleted meanwhile; the next time tells why
        return None
    if checksum == there.checksum:
        settled[path] = Agreed(there.name, checksum, *here)
        return None
    if has_changed_there and (there.stamp, there.checksum) > (here.modified_ns, checksum):
        return Step(to_here, path, there.size)
    return Step("push", path, here.size)


def _is_superseded(root: Path, path: str, stamp: int, files: Mapping[str, Local]) -> bool:
    """Whether a later write of no rows at all deleted this file of history, as such writes do."""
    folder, _, name = path.rpartition("/")
    if not name.startswith("rows-"):
        return False
    later = [
        root / other
        for other, found in files.items()
        if other.startswith(f"{folder}/rows-") and found.modified_ns > stamp
    ]
    return any(pl.scan_parquet(file).select(pl.len()).collect().item() == 0 for file in later)


def _carry_out(
    root: Path,
    remote: Remote,
    steps: list[Step],
    files: Mapping[str, Local],
    there: Mapping[str, list[Version]],
    state: State,
    on_progress: Callable[[int, int], None],
) -> tuple[list[Step], list[str]]:
    """Rows before ledgers, so that a ledger never comes before what it says is there.

    Returns the steps that were done, and what hindered others.
    """
    done: list[Step] = []
    failures: list[str] = []
    tried = count(1)

    def one_step(step: Step) -> None:
        try:
            if _do(root, remote, step, files, there.get(step.path, []), state):
                done.append(step)
        except SaeError as error:
            failures.append(str(error))
        on_progress(next(tried), len(steps))

    rows = [step for step in steps if not step.path.startswith(f"{LEDGERS}/")]
    in_parallel(one_step, rows)
    in_parallel(one_step, [step for step in steps if step.path.startswith(f"{LEDGERS}/")])
    return done, failures


def _do(
    root: Path,
    remote: Remote,
    step: Step,
    files: Mapping[str, Local],
    versions: list[Version],
    state: State,
) -> bool:
    """Carry out one step; False where the file has changed meanwhile, and the next time decides."""
    path, newest = step.path, versions[-1] if versions else None
    if step.action == "push":
        base, after = state.agreed.get(path), 0
        if newest and base and base.name == newest.name:
            after = newest.stamp + 1  # a clock that is behind does not make this the older one
        agreed = put(root, remote, path, versions, after)
        if agreed:
            state.agreed[path] = agreed
        return agreed is not None
    assert newest
    if step.action == "delete there":
        stamp = max(time.time_ns(), newest.stamp + 1)
        remote.storage.write(f"{PREFIX}{path}/{stamp:020}-deleted", b"")
        take_away(remote, versions)
        state.agreed.pop(path, None)
        return True
    seen = files.get(path)
    if step.action == "delete here":
        if look(root / path) != seen:
            return False
        (root / path).unlink(missing_ok=True)
        state.agreed.pop(path, None)
        return True
    agreed = get(root, remote, path, newest, seen, state)
    if agreed:
        state.agreed[path] = agreed
    return agreed is not None
