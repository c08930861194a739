"""Which experiment files came, changed or went since the last look."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

Snapshot = Mapping[Path, tuple[int, int]]
"""Size in bytes and time of the last change in nanoseconds, of every file that is there."""


class Changes(NamedTuple):
    """What differs between two snapshots; each part is sorted."""

    added: tuple[Path, ...] = ()
    edited: tuple[Path, ...] = ()
    removed: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return "; ".join(
            f"{what}: {', '.join(file.name for file in files)}"
            for what, files in zip(self._fields, self, strict=True)
            if files
        )


def changes(before: Snapshot, after: Snapshot) -> Changes:
    """What happened between two snapshots; all parts are empty when nothing did."""
    return Changes(
        added=tuple(sorted(after.keys() - before.keys())),
        edited=tuple(sorted(file for file in before.keys() & after if before[file] != after[file])),
        removed=tuple(sorted(before.keys() - after.keys())),
    )


def snapshot(files: Iterable[Path]) -> Snapshot:
    """Size and time of the last change of those of ``files`` that exist."""
    found = {}
    for file in files:
        try:
            status = file.stat()
        except OSError:  # it went while we looked
            continue
        found[file] = (status.st_size, status.st_mtime_ns)
    return found


def watched_files(home: Path) -> list[Path]:
    """Files that decide what the graph of ``home`` shows: experiments and records of them."""
    from sae_workflows.home import experiment_files

    records = [file for file in (home / "experiments").glob("*") if file.name[0] != "."]
    return [*experiment_files(home), *records]
