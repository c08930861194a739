"""Replies on disk, by the hash of what was asked: model, messages and parameters.

The endpoint and the key take no part, so that a model that moves is not asked again. One file per
reply, written aside and renamed: a reader sees all of a reply or none, and a process that is killed
loses at most the replies it was waiting for. A damaged file is asked for again.
"""

import hashlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from sae_lib.config import canonical_json

ENVIRONMENT = "SAE_LLM_CACHE"
_STRIPE = 3
"""Hex digits of a key that share a lock: 4096 lock files at most."""


def default_folder() -> Path:
    """``SAE_LLM_CACHE``, or a folder of the user's caches."""
    if given := os.environ.get(ENVIRONMENT):
        return Path(given).expanduser()
    caches = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(caches).expanduser() / "sae-workflows" / "llm"


def key_of(asked: Mapping[str, Any]) -> str:
    """Name of what was asked."""
    return hashlib.sha256(canonical_json(asked).encode()).hexdigest()


class ReplyCache:
    """Replies below ``folder``; None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def find(self, key: str) -> Any:
        """What was replied; None where that is not known."""
        if self.folder is None:
            return None
        try:
            held = json.loads(self._file(key).read_bytes())
            return held["answer"] if held["key"] == key else None
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def keep(self, key: str, asked: Mapping[str, Any], answer: Any) -> None:
        """Write down a reply beside what was asked."""
        if self.folder is None:
            return
        file = self._file(key)
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside = file.with_name(f".{file.name}.{os.getpid()}.{threading.get_ident()}")
        aside.write_text(json.dumps({"key": key, "asked": asked, "answer": answer}), "utf-8")
        aside.replace(file)

    @contextmanager
    def claimed(self, key: str) -> Iterator[None]:
        """Inside, no other thread or process asks the same."""
        if self.folder is None:
            yield
            return
        locks = self.folder / "locks"
        locks.mkdir(parents=True, exist_ok=True, mode=0o700)
        with FileLock(str(locks / key[:_STRIPE])):
            yield

    def _file(self, key: str) -> Path:
        assert self.folder is not None
        return self.folder / key[:2] / f"{key}.json"
