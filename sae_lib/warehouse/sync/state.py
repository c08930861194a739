"""What this machine and the remote held when they last agreed."""

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from sae_lib.artifacts import write_atomically
from sae_lib.remote import Remote

STATE = ".remote.json"
JOURNAL = ".remote.log"
"""What landings shared since the state was written, a line each; any number of processes append."""

MERGING = ".remote.merging"
"""The journal while a synchronisation takes it into the state."""


class Agreed(NamedTuple):
    """What a local file and the remote were when they last agreed."""

    name: str
    """Of the version's object."""

    checksum: str
    size: int
    modified_ns: int


class State:
    """The files that remember what was agreed, for one remote."""

    def __init__(self, root: Path, url: str, agreed: dict[str, Agreed]) -> None:
        self.root, self.url, self.agreed = root, url, agreed

    @staticmethod
    def read(root: Path, remote: Remote) -> "State":
        """Empty where there is none, or it is about another remote: then contents are compared.

        Only one process may read and write at a time. What it forgets costs a comparison.
        """
        try:
            content = json.loads((root / STATE).read_text("utf-8"))
            agreed = {path: Agreed(*fields) for path, fields in content["files"].items()}
            if content["remote"] != remote.url:
                agreed = {}
        except (OSError, ValueError, KeyError, TypeError):
            agreed = {}
        with suppress(FileNotFoundError):
            if not (root / MERGING).exists():  # else one that a killed process was taking in
                (root / JOURNAL).replace(root / MERGING)
        for name in (MERGING, JOURNAL):
            agreed.update(_journal(root / name, remote.url))
        return State(root, remote.url, agreed)

    def write(self) -> None:
        content = {"remote": self.url, "files": self.agreed}
        write_atomically(self.root / STATE, json.dumps(content) + "\n")
        (self.root / MERGING).unlink(missing_ok=True)


def note_agreed(root: Path, remote: Remote, agreed: Mapping[str, Agreed]) -> None:
    """Remember what was shared, without reading or waiting for anything."""
    text = "".join(json.dumps([remote.url, path, *one]) + "\n" for path, one in agreed.items())
    with (root / JOURNAL).open("a", encoding="utf-8") as file:
        file.write(text)


def _journal(file: Path, url: str) -> dict[str, Agreed]:
    found: dict[str, Agreed] = {}
    try:
        lines = file.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return found
    for line in lines:
        with suppress(ValueError, TypeError):  # the last one of a process that was killed
            where, path, *fields = json.loads(line)
            if where == url:
                found[path] = Agreed(*fields)
    return found
