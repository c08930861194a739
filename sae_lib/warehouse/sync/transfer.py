"""One file at a time, to the remote or from it."""

import json
import logging
import os
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from sae_lib.errors import CorruptData, SaeError
from sae_lib.remote import Remote
from sae_lib.remote.remote import is_whole, sha256
from sae_lib.warehouse.sync.files import LEDGERS, PREFIX, Local, Version, look, versions_of
from sae_lib.warehouse.sync.state import Agreed, State

PASSING = ".passing"
ABANDONED_SECONDS = 24 * 3600

log = logging.getLogger(__name__)


def share_newest(root: Path, remote: Remote, path: str) -> Agreed | None:
    """Put a file that was written just now: by its very order it is the newest version."""
    versions = versions_of(remote, f"{path}/").get(path, [])
    return put(root, remote, path, versions, versions[-1].stamp + 1 if versions else 0)


def put(
    root: Path, remote: Remote, path: str, versions: list[Version], after: int
) -> Agreed | None:
    """Put a file as a version no older than ``after``, then take older ones away."""
    # what is sent is what was read once: a landing may replace the file meanwhile
    file, copy = root / path, _passing(root)
    try:
        os.link(file, copy)
    except FileNotFoundError:
        return None
    except OSError:  # a file system without hard links
        copy.write_bytes(file.read_bytes())
    try:
        status = copy.stat()
        checksum, modified_ns = sha256(copy), status.st_mtime_ns
        if versions and versions[-1].checksum == checksum:
            return Agreed(versions[-1].name, checksum, status.st_size, modified_ns)
        stamp = max(modified_ns, after)
        name = f"{PREFIX}{path}/{stamp:020}-{checksum}-{status.st_size}{file.suffix}"
        remote.storage.upload(copy, name)
    finally:
        copy.unlink(missing_ok=True)
    take_away(remote, [one for one in versions if one.stamp < stamp])
    return Agreed(name, checksum, status.st_size, modified_ns)


def get(
    root: Path, remote: Remote, path: str, version: Version, seen: Local | None, state: State
) -> Agreed | None:
    """Bring a version here, unless the file changed here meanwhile or a ledger lacks its rows."""
    file, temporary = root / path, _passing(root)
    file.parent.mkdir(parents=True, exist_ok=True)
    try:
        try:
            remote.storage.download(version.name, temporary, size=version.size)
        except FileNotFoundError:
            return None  # a newer one took its place meanwhile; the next time brings that
        if not is_whole(temporary, version.size, version.checksum):
            raise CorruptData(
                remote.storage.address(version.name),
                "its bytes are not those that were pushed.",
                "Delete it, and run `sae push` on a machine that has these rows.",
            )
        if path.startswith(f"{LEDGERS}/") and not _rows_agree(root, temporary, state):
            if look(file) == seen:
                file.unlink(missing_ok=True)
            return None
        if look(file) != seen:
            return None
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
    status = file.stat()
    return Agreed(version.name, version.checksum, status.st_size, status.st_mtime_ns)


def _rows_agree(root: Path, ledger: Path, state: State) -> bool:
    """Whether the rows here are those that the landing of ``ledger`` wrote, where it says so."""
    try:
        written = json.loads(ledger.read_text("utf-8")).get("files", {})
    except (ValueError, AttributeError):
        return False
    for path, checksum in written.items():
        agreed = state.agreed.get(path)
        if agreed is None:
            return False
        if agreed.checksum != checksum or look(root / path) != agreed[2:]:
            return False
    return True


def take_away(remote: Remote, versions: Iterable[Version]) -> None:
    """Delete versions that a newer one replaces; those that stay do no harm."""
    for one in versions:
        try:
            remote.storage.delete(one.name)
        except SaeError as error:
            log.info("An older version stays: %s", error)


def _passing(root: Path) -> Path:
    """A name for a file on its way, on the same file system."""
    folder = root / PASSING
    folder.mkdir(exist_ok=True)
    return folder / uuid.uuid4().hex


def tidy(root: Path) -> None:
    """Delete what killed transfers left."""
    for file in (root / PASSING).glob("*"):
        with suppress(FileNotFoundError):
            if time.time() - file.stat().st_ctime > ABANDONED_SECONDS:
                file.unlink()
