"""One prefix of an object store: whole objects in and out, retried, with errors that are ours.

Nothing is renamed on an object store, where a put makes an object visible as a whole. File systems
that can show half a file get a temporary name first.
"""

import logging
import random
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from threading import BoundedSemaphore
from typing import Any, TypeVar

from sae_lib.errors import BadInput
from sae_lib.remote.errors import RemoteUnavailable
from sae_lib.remote.secrets import blanked, refuse_user, resolve

Result = TypeVar("Result")

SHOWS_HALF_FILES = {"file", "local", "sftp", "ssh", "smb", "ftp", "hdfs", "webhdfs", "arrow_hdfs"}
PACKAGES = {
    **dict.fromkeys(("s3", "s3a"), "s3fs"),
    **dict.fromkeys(("gs", "gcs"), "gcsfs"),
    **dict.fromkeys(("az", "abfs", "abfss", "adl"), "adlfs"),
    **dict.fromkeys(("sftp", "ssh"), "paramiko"),
    "smb": "smbprotocol",
    "oss": "ossfs",
}
TEMPORARY = ".writing-"

LARGE_BYTES = 32 << 20
LARGE_AT_ONCE = 2
"""Clients hold tens of MB for each large file on its way."""

LASTING = (
    FileNotFoundError,
    PermissionError,
    IsADirectoryError,
    NotADirectoryError,
    NotImplementedError,
    ValueError,
    TypeError,
    AttributeError,
)
"""Errors that come again when the same is asked again."""

LASTING_NAMES = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
"""The same, of clients that need not be installed."""

log = logging.getLogger(__name__)


class Storage:
    """Objects below ``url``, by their path from there."""

    def __init__(
        self,
        url: str,
        options: Mapping[str, Any] | None = None,
        *,
        tries: int = 4,
        delay: float = 0.5,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.tries, self.delay, self.sleep = tries, delay, sleep
        self._large = BoundedSemaphore(LARGE_AT_ONCE)
        self.url = url.rstrip("/")
        resolved, self._secrets = resolve(options or {})
        self.fs, self._shows_half = _open(self.url, resolved, self.redact)
        self._root = str(self.fs._strip_protocol(self.url)).rstrip("/")

    def __repr__(self) -> str:
        return f"Storage({self.redact(self.url)!r})"

    def redact(self, text: str) -> str:
        return blanked(text, self._secrets)

    def address(self, path: str) -> str:
        return self.redact(f"{self.url}/{path}")

    def find(self, path: str) -> dict[str, int]:
        """Size in bytes of every object below ``path``, by its path from the root."""

        def listed() -> dict[str, Any]:
            self.fs.invalidate_cache()
            found = self.fs.find(f"{self._root}/{path}", detail=True)
            assert isinstance(found, dict) or not found
            return dict(found)

        try:
            found = self._try(f"Listing {self.address(path)}", listed)
        except FileNotFoundError:
            return {}
        start = len(self._root) + 1
        names = {str(self.fs._strip_protocol(name))[start:]: one for name, one in found.items()}
        return {
            name: int(one["size"])
            for name, one in names.items()
            if one.get("type") != "directory" and TEMPORARY not in name
        }

    def exists(self, path: str) -> bool:
        def asked() -> bool:
            self.fs.invalidate_cache()
            try:
                self.fs.info(f"{self._root}/{path}")
            except FileNotFoundError:
                return False
            return True

        return self._try(f"Looking for {self.address(path)}", asked)

    def read(self, path: str) -> bytes:
        """Raises `FileNotFoundError` where there is no such object."""
        target = f"{self._root}/{path}"
        return self._try(f"Reading {self.address(path)}", lambda: self.fs.cat_file(target))

    def write(self, path: str, data: bytes) -> None:
        """Put an object; readers see the old one or the new one."""
        self._put(path, lambda target: self.fs.pipe_file(target, data))

    def upload(self, file: Path, path: str) -> None:
        with self._large if file.stat().st_size > LARGE_BYTES else nullcontext():
            self._put(path, lambda target: self.fs.put_file(str(file), target))

    def download(self, path: str, file: Path, *, size: int = 0) -> None:
        """Raises `FileNotFoundError` where there is no such object."""
        target = f"{self._root}/{path}"
        file.parent.mkdir(parents=True, exist_ok=True)
        with self._large if size > LARGE_BYTES else nullcontext():
            self._try(f"Reading {self.address(path)}", lambda: self.fs.get_file(target, str(file)))

    def delete(self, path: str) -> None:
        """An object that is gone already is fine."""
        try:
            self._try(
                f"Deleting {self.address(path)}", lambda: self.fs.rm_file(f"{self._root}/{path}")
            )
        except FileNotFoundError:
            return

    def _put(self, path: str, put: Callable[[str], None]) -> None:
        target = f"{self._root}/{path}"

        def aside() -> None:
            folder, _, name = target.rpartition("/")
            temporary = f"{folder}/{TEMPORARY}{uuid.uuid4().hex[:8]}-{name[:100]}"
            self.fs.makedirs(folder, exist_ok=True)
            put(temporary)
            self.fs.mv(temporary, target)

        what = f"Writing {self.address(path)}"
        try:
            self._try(what, aside if self._shows_half else lambda: put(target))
        except FileNotFoundError as error:
            problem = f"there is no such bucket or folder ({error})."
        else:
            return
        raise BadInput(problem, key="SAE_REMOTE", value=self.address(path))

    def _try(self, what: str, do: Callable[[], Result]) -> Result:
        """``do()``, again after a pause where that can help.

        Our errors are raised outside of any handler: what a client raised, with whatever it
        quotes, must not hang on to them as their context.
        """
        problem, last, is_missing = "", False, False
        for attempt in range(self.tries):
            try:
                return do()
            except Exception as error:  # noqa: BLE001  every client has errors of its own
                problem = self.redact(f"{type(error).__name__}: {error}".rstrip(". ") + ".")
                is_missing = isinstance(error, FileNotFoundError)
                last = isinstance(error, LASTING) or type(error).__name__ in LASTING_NAMES
            if last:
                break
            if attempt + 1 < self.tries:
                log.info("%s failed (%s); trying again", what, problem)
                self.sleep(self.delay * 2**attempt * (1 + random.random() / 4))
        if is_missing:
            raise FileNotFoundError(problem)
        if last:
            raise BadInput(f"{what} is refused: {problem}", key="SAE_REMOTE")
        raise RemoteUnavailable(what, problem)


def _open(url: str, options: Mapping[str, Any], redact: Callable[[str], str]) -> tuple[Any, bool]:
    """The file system of ``url``, and whether it can show half a file."""
    import fsspec

    refuse_user(url, "SAE_REMOTE")
    protocol, _, rest = url.partition("://")
    if not rest or not protocol:
        raise BadInput(
            "It must be a URL, such as s3://bucket/prefix, gs://bucket/prefix or file:///mnt/share.",
            key="SAE_REMOTE",
            value=redact(url),
        )
    problem = ""
    try:
        defaults: dict[str, Any] = {"auto_mkdir": True} if protocol in ("file", "local") else {}
        if protocol in ("s3", "s3a"):
            defaults["use_listings_cache"] = False
        return (
            fsspec.filesystem(protocol, **{**defaults, **options}),
            protocol in SHOWS_HALF_FILES,
        )
    except ImportError:
        package = PACKAGES.get(protocol)
        install = f"`pip install {package}`" if package else "install its fsspec package"
        problem = f"{protocol}:// needs a package that is not there; {install}."
    except ValueError as error:
        known = "s3, gs, az, file and memory are some that are known"
        problem = redact(f"The store cannot be opened ({error}); {known}.")
    except Exception as error:  # noqa: BLE001  every client has errors of its own
        problem = redact(f"The store cannot be opened ({type(error).__name__}: {error}).")
    raise BadInput(problem, key="SAE_REMOTE", value=redact(url))
