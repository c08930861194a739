"""The files of a warehouse that are shared, here and on the remote."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from sae_lib.remote import Remote
from sae_lib.remote.remote import in_parallel, is_inside
from sae_lib.warehouse.tables import TABLES
from sae_lib.warehouse.write import encode_value

LEDGERS = ".landed"
DECLARED = ".declared"
"""Folder of the declared cells of each experiment, one file for each."""

OWN_TABLES = frozenset({"runs"})
"""What each machine says about itself; shared, one would overwrite the other's."""

PREFIX = "warehouse/"

_VERSION = re.compile(r"(\d{20})-(?:([0-9a-f]{64})-(\d+)\.\w+|deleted)")


class Version(NamedTuple):
    """One version of a file on the remote."""

    stamp: int
    checksum: str
    """SHA-256; empty for a version that says the file is no more."""

    size: int
    name: str
    """Of its object."""

    @property
    def is_deletion(self) -> bool:
        return not self.checksum


class Local(NamedTuple):
    """A file on this machine, as it was when it was looked at."""

    size: int
    modified_ns: int


def local_files(root: Path) -> dict[str, Local]:
    """Everything of a warehouse that is shared, by path relative to its root."""
    found = [
        file
        for name in TABLES
        if name not in OWN_TABLES
        for file in (root / name).rglob("rows*.parquet")
    ]
    found += (root / LEDGERS).rglob("*.json")
    found += (root / DECLARED).glob("*.json")
    files: dict[str, Local] = {}
    for file in found:
        with suppress(FileNotFoundError):  # replaced or deleted meanwhile
            status = file.stat()
            if not file.name.startswith("."):
                name = file.relative_to(root).as_posix()
                files[name] = Local(status.st_size, status.st_mtime_ns)
    return files


def versions_of(remote: Remote, path: str = "") -> dict[str, list[Version]]:
    """Versions of every file on the remote, oldest first; what did not arrive whole is left out."""
    found: dict[str, list[Version]] = {}
    for name, size in sorted(remote.storage.find(f"{PREFIX}{path}").items()):
        file, _, version = name.removeprefix(PREFIX).rpartition("/")
        match = _VERSION.fullmatch(version)
        if not match or not is_inside(file) or not _is_ours(file):
            continue
        stamp, checksum, length = match.groups()
        if length is None or int(length) == size:
            one = Version(int(stamp), checksum or "", int(length or 0), name)
            found.setdefault(file, []).append(one)
    return found


def _is_ours(path: str) -> bool:
    """Whether a path of the remote is one that a warehouse may hold."""
    first, _, rest = path.partition("/")
    name = rest.rpartition("/")[2]
    if first in (LEDGERS, DECLARED):
        return name.endswith(".json") and not name.startswith(".")
    return (
        first in set(TABLES) - OWN_TABLES and name.startswith("rows") and name.endswith(".parquet")
    )


def belongs(path: str, experiment: str | None) -> bool:
    """Whether a file is about ``experiment``; every file is about None."""
    if experiment is None:
        return True
    name = encode_value(experiment)
    return (
        f"/experiment={name}/" in path
        or path.startswith(f"{LEDGERS}/{encode_value(name + '|')}")
        or path == f"{DECLARED}/{name}.json"
    )


def look(file: Path) -> Local | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return Local(status.st_size, status.st_mtime_ns)


def shared_ledgers(remote: Remote, experiment: str) -> list[dict[str, Any]]:
    """What the ledgers of an experiment say on the remote: ``artifact`` and more, for each."""
    newest = [
        versions[-1]
        for path, versions in versions_of(remote).items()
        if path.startswith(f"{LEDGERS}/") and belongs(path, experiment)
    ]

    def read(version: Version) -> dict[str, Any]:
        try:
            found = json.loads(remote.storage.read(version.name))
        except (FileNotFoundError, ValueError):  # one that was replaced meanwhile, or damaged
            return {}
        return found if isinstance(found, dict) else {}

    return in_parallel(read, [one for one in newest if not one.is_deletion])
