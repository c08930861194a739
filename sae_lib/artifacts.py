"""Artefacts: directories named by what determines their content, written once, visible when whole.

An `Identity` holds everything that determines an artefact and nothing else, so the same request
finds the same directory from any experiment. `ArtifactStore.build` gives the writer a working
directory beside the final one and renames it when the writer is done; a half-written artefact is
never visible. The working directory survives a killed writer, so that a stage which can resume
finds its own checkpoint there.

With a remote, what other machines have built exists too: it is brought here when its path is asked
for, and what is built here is shared when it is whole.
"""

import json
import os
import platform
import resource
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from sae_lib.config import digest
from sae_lib.errors import CorruptData, SaeError

if TYPE_CHECKING:
    from sae_lib.remote import Remote

FORMAT_VERSION = 1
"""Layout of an artefact directory and its manifest."""

MANIFEST = "manifest.json"


class Busy(SaeError):
    """Another process is writing the same artefact."""

    is_transient = True


@dataclass(frozen=True)
class Identity:
    """What an artefact is: everything that determines its content, and nothing else."""

    kind: str
    """Folder under ``artifacts/``: tokens, activations, sae, ..."""

    name: str
    """Readable part of the directory's name; does not take part in the hash."""

    content: Mapping[str, Any] = field(hash=False)
    """JSON object: resolved config, seeds, parents' hashes, code version of the stage."""

    @property
    def hash(self) -> str:
        return digest({"kind": self.kind, **self.content})

    @property
    def folder(self) -> str:
        return f"{self.name}-{self.hash}"

    def __str__(self) -> str:
        return f"{self.kind}/{self.folder}"


def write_atomically(path: Path, text: str) -> None:
    """Replace ``path`` by a file that holds ``text``; readers see the old or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


@cache
def package_versions() -> dict[str, str]:
    """Versions of the packages that can change a number."""
    versions = {"python": platform.python_version()}
    for name in ("sae-workflows", "torch", "transformers", "numpy", "scikit-learn", "safetensors"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def peak_memory_bytes() -> int:
    """Largest resident set of this process so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class Workspace:
    """The directory a writer fills, and the facts it adds to the manifest."""

    def __init__(self, path: Path, *, resumed: bool) -> None:
        self.path = path
        self.resumed = resumed
        self.facts: dict[str, Any] = {}


class ArtifactStore:
    """All artefacts under one root (``SAE_HOME``), and those that a remote store shares."""

    def __init__(self, root: Path, remote: "Remote | None" = None) -> None:
        self.root, self.remote = root, remote

    def path(self, identity: Identity) -> Path:
        """The directory of an artefact; one that only the remote holds is brought here first.

        Raises an error that names the artefact where that fails.
        """
        local = self.local_path(identity)
        if not self.is_here(identity) and self._is_shared(identity):
            assert self.remote
            self.remote.pull(identity.kind, identity.folder, self.root)
        return local

    def local_path(self, identity: Identity) -> Path:
        """Where the directory of an artefact is on this machine, or would be."""
        return self.root / "artifacts" / identity.kind / identity.folder

    def exists(self, identity: Identity) -> bool:
        """Whether an artefact is here or can be brought here; nothing is moved to find out."""
        return self.is_here(identity) or self._is_shared(identity)

    def is_here(self, identity: Identity) -> bool:
        return (self.local_path(identity) / MANIFEST).is_file()

    def _is_shared(self, identity: Identity) -> bool:
        return self.remote is not None and self.remote.exists(identity.kind, identity.folder)

    def manifest(self, identity: Identity) -> dict[str, Any]:
        """The manifest of an artefact; its files are not moved for it."""
        local = self.local_path(identity)
        if self.remote and not self.is_here(identity) and self._is_shared(identity):
            where = f"{self.remote.url}, {identity}"
            return check_manifest(self.remote.manifest(identity.kind, identity.folder), where)
        return read_manifest(local)

    def manifests(self, kind: str) -> list[dict[str, Any]]:
        """Manifests of all artefacts of ``kind`` on this machine, each with its ``path``."""
        folder = self.root / "artifacts" / kind
        found = sorted(folder.glob(f"*/{MANIFEST}")) if folder.is_dir() else []
        return [
            {**read_manifest(path.parent), "path": str(path.parent)}
            for path in found
            if not path.parent.name.startswith(".")
        ]

    def working_path(self, identity: Identity) -> Path:
        return self.local_path(identity).with_name(f".{identity.folder}.partial")

    @contextmanager
    def build(
        self,
        identity: Identity,
        *,
        parents: Mapping[str, str] | None = None,
        facts: Mapping[str, Any] | None = None,
        can_resume: bool = False,
        device: str = "cpu",
    ) -> Iterator[Workspace]:
        """A working directory that becomes the artefact when the block ends without an error.

        With ``can_resume`` the directory a killed writer left is handed on, else it is emptied.
        Raises `Busy` when another process holds the same artefact. A remote that cannot be reached
        is a warning; the artefact is here all the same.
        """
        final, working = self.local_path(identity), self.working_path(identity)
        final.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(str(final.with_name(f".{identity.folder}.lock")))
        try:
            lock.acquire(timeout=0)
        except Timeout as error:
            raise Busy(
                f"{identity} is being written by another process; wait for it, then run again."
            ) from error
        try:
            resumed = working.is_dir() and can_resume
            if not resumed:
                shutil.rmtree(working, ignore_errors=True)
                working.mkdir(parents=True)
            workspace = Workspace(working, resumed=resumed)
            started, began = time.time(), time.perf_counter()
            yield workspace
            manifest = {
                "format_version": FORMAT_VERSION,
                "kind": identity.kind,
                "name": identity.name,
                "hash": identity.hash,
                "content": dict(identity.content),
                "parents": dict(parents or {}),
                "facts": {**dict(facts or {}), **workspace.facts},
                "packages": package_versions(),
                "device": device,
                "created_at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(started)),
                "seconds": round(time.perf_counter() - began, 3),
                "peak_memory_bytes": peak_memory_bytes(),
                "status": "complete",
            }
            (working / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", "utf-8")
            if self.is_here(identity):  # another process was first; readers may hold its files
                shutil.rmtree(working)
                return
            if final.exists():  # a directory without a manifest: not an artefact, in the way
                shutil.rmtree(final)
            working.replace(final)
        finally:
            lock.release()
        if self.remote:
            self.remote.push_when_up(final)


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest in ``folder``; raises `CorruptData` where it is missing or cannot be read."""
    path = folder / MANIFEST
    remedy = f"Delete {folder} and run again to rebuild it."
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise CorruptData(path, "the manifest is missing.", remedy) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptData(path, f"the manifest is not JSON ({error}).", remedy) from error
    return check_manifest(manifest, path)


def check_manifest(manifest: dict[str, Any], where: Path | str) -> dict[str, Any]:
    """``manifest`` itself; raises `CorruptData` where another version wrote it."""
    found = manifest.get("format_version")
    if found != FORMAT_VERSION:
        raise CorruptData(
            where,
            f"format version {found!r} is not the {FORMAT_VERSION} this version reads.",
            "Read it with the version that wrote it, or rebuild it.",
        )
    return manifest
