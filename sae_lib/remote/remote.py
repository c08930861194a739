"""Artefacts on a store that several machines share.

    index/KIND/FOLDER.json              one small object that makes an artefact visible
    artifacts/KIND/FOLDER/SNAPSHOT/...  its files, as they are on disk

An artefact is there if and only if its index object is, and that is written last, in one put. It
holds the manifest and the size and SHA-256 of every file. SNAPSHOT is a hash of those, so that two
machines which push the same identity with other bytes (training is exact on one machine only) do
not mix them: either index names one whole set of files, and the later one stands.
"""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any, NamedTuple, TypeVar

from filelock import FileLock

from sae_lib.config import digest
from sae_lib.errors import BadInput, CorruptData, MissingFile, SaeError
from sae_lib.remote.errors import RemoteUnavailable
from sae_lib.remote.storage import Storage

Item = TypeVar("Item")
Result = TypeVar("Result")

FORMAT_VERSION = 1
MANIFEST = "manifest.json"

LISTING_SECONDS = 60.0
"""How long the list of a kind's artefacts is taken to be the current one."""

PAUSE_SECONDS = 120.0
LONGEST_PAUSE_SECONDS = 1920.0
"""How long a run leaves the store alone after it did not answer, so that it does not wait for each
request; twice as long after each further time."""

AT_ONCE = 8
"""Transfers at a time."""

LOCAL_KINDS = ("activations",)
"""Large, and computed again from tokens and model: not shared unless asked for."""

log = logging.getLogger(__name__)


class Kinds(NamedTuple):
    """Which kinds of artefacts are shared."""

    only: frozenset[str] | None = None
    """None: all but ``never``."""

    never: frozenset[str] = frozenset(LOCAL_KINDS)

    def __contains__(self, kind: object) -> bool:
        return kind not in self.never if self.only is None else kind in self.only

    @staticmethod
    def parse(text: str) -> "Kinds":
        """``sae,metrics`` shares those alone; ``-activations,-tokens`` all but those; ``all``."""
        names = [name.strip() for name in text.split(",") if name.strip()]
        left_out = [name[1:] for name in names if name.startswith("-")]
        if names == ["all"]:
            return Kinds(never=frozenset())
        if left_out and len(left_out) != len(names):
            raise BadInput(
                "Name the kinds to share, or those not to, each with a -, but not both.",
                key="SAE_REMOTE_KINDS",
                value=text,
            )
        return Kinds(never=frozenset(left_out)) if left_out else Kinds(only=frozenset(names))


class Moved(NamedTuple):
    """What one push or pull came to."""

    files: int = 0
    size: int = 0
    """Bytes."""

    was_there: bool = False
    """Whether there was nothing to do."""


class Remote:
    """The shared store; every method may be called from several threads and processes."""

    def __init__(
        self,
        storage: Storage,
        *,
        kinds: Kinds | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.storage, self.kinds, self.clock = storage, kinds or Kinds(), clock
        self._lock = Lock()
        self._listed: dict[str, tuple[float, set[str]]] = {}
        self._indexes: dict[str, dict[str, Any]] = {}
        self._paused_until, self._pause = float("-inf"), PAUSE_SECONDS

    @staticmethod
    def open(
        url: str, options: Mapping[str, Any] | None = None, *, kinds: Kinds | None = None
    ) -> "Remote":
        """The store at ``url``; raises `BadInput` where its protocol or its package is missing."""
        return Remote(Storage(url, options), kinds=kinds)

    def __repr__(self) -> str:
        return f"Remote({self.storage.redact(self.storage.url)!r})"

    @property
    def url(self) -> str:
        """Where it is, in words that may be shown."""
        return self.storage.redact(self.storage.url)

    def exists(self, kind: str, folder: str) -> bool:
        """Whether a finished artefact is there, from a list that is at most a minute old.

        Where the store cannot be reached the answer is no, with a warning: work goes on without.
        """
        if kind not in self.kinds:
            return False
        with self._lock:
            at, names = self._listed.get(kind, (float("-inf"), set()))
            if folder in names:
                return True
            if self.clock() - at > LISTING_SECONDS:
                found: set[str] = set()
                consequence = f"Other machines' artefacts of kind {kind} are not known."
                self.attempt(consequence, lambda: found.update(self._list(kind)))
                names = names | found
                self._listed[kind] = (self.clock(), names)
        return folder in names

    def folders(self, kind: str) -> list[str]:
        """Folder names of all finished artefacts of ``kind``."""
        names = self._list(kind)
        with self._lock:
            self._listed[kind] = (self.clock(), set(names))
        return sorted(names)

    def all_kinds(self) -> list[str]:
        """Every kind that has a finished artefact, shared by these settings or not."""
        return sorted({path.split("/")[1] for path in self.storage.find("index")})

    def manifest(self, kind: str, folder: str) -> dict[str, Any]:
        """The manifest of an artefact, without its files."""
        return self.index(kind, folder)["manifest"]

    def index(self, kind: str, folder: str, *, fresh: bool = False) -> dict[str, Any]:
        """``snapshot``, ``files`` (path to ``[bytes, sha256]``) and ``manifest``."""
        path = index_path(kind, folder)
        if not fresh and path in self._indexes:
            return self._indexes[path]
        remedy = "Push the artefact again with --replace from a machine that has it, or delete it."
        try:
            found = json.loads(self.storage.read(path))
            is_known = found["format_version"] == FORMAT_VERSION
            files = found["files"] if is_known else {}
            are_inside = all(map(is_inside, files)) and is_inside(found["snapshot"])
        except FileNotFoundError:
            problem = f"{kind}/{folder} is not on {self.url}."
        except (ValueError, TypeError, KeyError):
            raise CorruptData(self.storage.address(path), "it is not an index.", remedy) from None
        else:
            if not (is_known and are_inside and isinstance(found["manifest"], dict)):
                raise CorruptData(self.storage.address(path), "it is not a known index.", remedy)
            self._indexes[path] = found
            return found
        raise MissingFile(problem)

    def push(self, folder: Path, *, replace: bool = False) -> Moved:
        """Share a finished artefact ``.../KIND/FOLDER``; one that is there already is left alone.

        What an earlier push that was killed has uploaded is not uploaded again. With ``replace``
        everything is.
        """
        kind, name = folder.parent.name, folder.name
        path = index_path(kind, name)
        if not replace and self.storage.exists(path):
            self._note(kind, name)
            return Moved(was_there=True)
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
        files = {
            one.relative_to(folder).as_posix(): [one.stat().st_size, sha256(one)]
            for one in sorted(folder.rglob("*"))
            if one.is_file()
        }
        snapshot = digest({"files": files})
        base = f"artifacts/{kind}/{name}/{snapshot}"
        there = {} if replace else self.storage.find(base)
        wanted = [one for one in files if there.get(f"{base}/{one}") != files[one][0]]
        in_parallel(lambda one: self.storage.upload(folder / one, f"{base}/{one}"), wanted)
        there = self.storage.find(base)
        short = [one for one in files if there.get(f"{base}/{one}") != files[one][0]]
        if short:
            raise RemoteUnavailable(
                f"Pushing {kind}/{name}", f"{len(short)} files did not arrive whole ({short[0]})."
            )
        if replace or not self.storage.exists(path):  # else another machine was first
            index = {
                "format_version": FORMAT_VERSION,
                "snapshot": snapshot,
                "files": files,
                "manifest": manifest,
            }
            self.storage.write(path, json.dumps(index, indent=1).encode())
            self._indexes.pop(path, None)
        self._note(kind, name)
        return Moved(len(wanted), sum(files[one][0] for one in wanted))

    def push_when_up(self, folder: Path) -> None:
        """Share an artefact of a shared kind; where that fails, say so and go on."""
        if folder.parent.name in self.kinds:
            name = f"{folder.parent.name}/{folder.name}"
            consequence = f"{name} stays on this machine; `sae push` shares it later."
            self.attempt(consequence, lambda: self.push(folder))

    def attempt(self, consequence: str, do: Callable[[], object]) -> None:
        """``do()``; where that fails, a warning says the ``consequence``, and for some minutes
        nothing more is attempted."""
        if self.clock() < self._paused_until:
            log.info("%s The store did not answer lately.", consequence)
            return
        try:
            do()
        except SaeError as error:
            self._paused_until = self.clock() + self._pause
            self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
            log.warning("%s %s", consequence, error)
        else:
            self._pause = PAUSE_SECONDS

    def pull(self, kind: str, folder: str, root: Path) -> Moved:
        """Bring an artefact to ``root/artifacts/KIND/FOLDER``: verified, then renamed.

        Several processes may ask for the same one; the others wait for the first. Raises
        `CorruptData` where the bytes are not those that were pushed.
        """
        final = root / "artifacts" / kind / folder
        final.parent.mkdir(parents=True, exist_ok=True)
        working = final.with_name(f".{folder}.pull")
        with FileLock(str(final.with_name(f".{folder}.pull.lock"))):
            if (final / MANIFEST).is_file():
                return Moved(was_there=True)
            index = self.index(kind, folder, fresh=True)
            files: dict[str, list[Any]] = index["files"]
            base = f"artifacts/{kind}/{folder}/{index['snapshot']}"
            self._clear(working, files)
            wanted = [one for one in files if not is_whole(working / one, *files[one])]

            def fetch(one: str) -> None:
                self._fetch(f"{base}/{one}", working / one, *files[one])

            in_parallel(fetch, wanted)
            if final.exists() and not (final / MANIFEST).is_file():
                shutil.rmtree(final)  # not an artefact, and in the way
            try:
                working.replace(final)
            except OSError:  # one that was built here meanwhile
                if not (final / MANIFEST).is_file():
                    raise
                shutil.rmtree(working, ignore_errors=True)
            return Moved(len(wanted), sum(files[one][0] for one in wanted))

    def delete(self, kind: str, folder: str) -> None:
        """Take an artefact away from everybody: first its index, then its files."""
        path = index_path(kind, folder)
        self.storage.delete(path)
        with self._lock:
            self._indexes.pop(path, None)
            self._listed.pop(kind, None)
        in_parallel(self.storage.delete, self.storage.find(f"artifacts/{kind}/{folder}"))

    def _fetch(self, path: str, file: Path, size: int, checksum: str) -> None:
        try:
            self.storage.download(path, file, size=size)
        except FileNotFoundError:
            problem = "it is missing."
        else:
            if is_whole(file, size, checksum):
                return
            problem = "its bytes are not those that were pushed."
        file.unlink(missing_ok=True)
        raise CorruptData(
            self.storage.address(path),
            problem,
            "Run `sae push --replace` on a machine that has the artefact.",
        )

    def _clear(self, working: Path, files: Mapping[str, Any]) -> None:
        """Leave of an earlier pull only what belongs to this one."""
        for one in sorted(working.rglob("*")) if working.is_dir() else []:
            if one.is_file() and one.relative_to(working).as_posix() not in files:
                one.unlink()
        working.mkdir(parents=True, exist_ok=True)

    def _list(self, kind: str) -> set[str]:
        prefix = f"index/{kind}/"
        return {
            path.removeprefix(prefix).removesuffix(".json") for path in self.storage.find(prefix)
        }

    def _note(self, kind: str, folder: str) -> None:
        with self._lock:
            at, names = self._listed.get(kind, (float("-inf"), set()))
            self._listed[kind] = (at, names | {folder})


def index_path(kind: str, folder: str) -> str:
    return f"index/{kind}/{folder}.json"


def is_inside(path: str) -> bool:
    """Whether ``path`` stays below the folder it is taken from."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\\" not in path


def sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def is_whole(file: Path, size: int, checksum: str) -> bool:
    return file.is_file() and file.stat().st_size == size and sha256(file) == checksum


def in_parallel(do: Callable[[Item], Result], items: Iterable[Item]) -> list[Result]:
    """``do`` of every item, a few at a time; the first error is raised when all have ended."""
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return list(pool.map(do, items))
