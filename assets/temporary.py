"""Files and folders that can go: what killed writers left, and how things are deleted."""

import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

GRACE_SECONDS = 3600.0
"""A temporary file younger than this, of a process number in use, may still be written."""

Kind = Literal["artefact", "unfinished", "temporary", "rows", "lock"]


class Leftover(NamedTuple):
    """Something that can be deleted."""

    kind: Kind
    path: Path
    bytes: int
    why: str


def temporary(root: Path) -> Iterator[Leftover]:
    """Files that a write which was killed left beside their place."""
    for folder in (root / "warehouse", root / "reports", root / "experiments", root / "lineage"):
        for file in sorted(folder.rglob(".*")):
            if not file.is_file() or file.name.endswith(".lock"):
                continue
            pid = _writer(file.name)
            if pid is not None and not _is_running(pid, file):
                yield Leftover("temporary", file, file.stat().st_size, f"process {pid} is gone")


def _writer(name: str) -> int | None:
    """Process that a temporary file is named after: ``.PID-THREAD-N.tmp`` or ``.NAME.PID``."""
    number = name[1:].split("-")[0] if name.endswith(".tmp") else name.rpartition(".")[2]
    return int(number) if number.isdigit() else None


def process_exists(pid: int) -> bool:
    """Whether some process of this machine has the number ``pid`` now."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_running(pid: int, file: Path) -> bool:
    if not process_exists(pid):
        return False
    # a number that came again belongs to a process that did not write this
    return time.time() - file.stat().st_mtime < GRACE_SECONDS


def size(path: Path) -> int:
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())


def sweep(root: Path) -> int:
    """Delete what killed writers left beside finished files; how many files."""
    found = [one for one in temporary(root)]
    delete(found)
    return len(found)


def delete(found: Iterable[Leftover]) -> None:
    """Delete, each at once for whoever looks: a directory is renamed before it is emptied."""
    for one in found:
        if one.path.is_file():
            one.path.unlink(missing_ok=True)
            continue
        if not one.path.is_dir():
            continue
        grave = one.path.with_name(f".{one.path.name.lstrip('.')}.deleted")
        shutil.rmtree(grave, ignore_errors=True)
        one.path.replace(grave)
        shutil.rmtree(grave, ignore_errors=True)
