"""Safetensors files that are written as a stream and read through a memory map.

The format is the public one (8 bytes of header length, JSON header, raw tensors), so any
safetensors reader opens these files. Writing it here lets rows go to disk as they come: the
header needs only their number, which is known beforehand.
"""

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from sae_lib.config import Config
from sae_lib.errors import CorruptData

OPEN_MAPS = 64
"""Files one reader holds open at once; a process may usually have 1024."""

MAX_HEADER_BYTES = 1 << 20

NUMPY_DTYPES = {
    "BF16": np.dtype("<i2"),  # numpy has no bfloat16: its bits travel as integers
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
    "F64": np.dtype("<f8"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
    "BOOL": np.dtype("?"),
}

STORE_DTYPES = {
    "bfloat16": ("BF16", torch.bfloat16),
    "float16": ("F16", torch.float16),
    "float32": ("F32", torch.float32),
}
"""Formats activations can be stored in: their name in safetensors, and torch's type."""


class FileRecord(Config):
    """What a manifest knows about one file."""

    name: str
    """File name inside the folder of the manifest."""

    num_bytes: int = Field(ge=0)
    """Size of the whole file."""

    sha256: str
    """Checksum of the whole file, hex."""


class TensorSpec(NamedTuple):
    """Type and shape of one tensor in a file."""

    dtype: str
    """Name in `NUMPY_DTYPES`."""

    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        return prod(self.shape) * NUMPY_DTYPES[self.dtype].itemsize


def header(specs: Mapping[str, TensorSpec]) -> bytes:
    """The first bytes of a file whose tensors follow each other in the order of ``specs``."""
    entries, start = {}, 0
    for name, spec in specs.items():
        stop = start + spec.num_bytes
        entries[name] = {
            "dtype": spec.dtype,
            "shape": list(spec.shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # tensors start at a multiple of eight bytes
    return len(text).to_bytes(8, "little") + text


class StreamWriter:
    """A file that is written front to back and appears under its name when it is whole."""

    def __init__(self, path: Path, specs: Mapping[str, TensorSpec]) -> None:
        self._path = path
        self._partial = path.with_name(f".{path.name}.partial")
        self._left = sum(spec.num_bytes for spec in specs.values())
        self._hash = hashlib.sha256()
        self._num_bytes = 0
        self._file = self._partial.open("wb")
        self._put(header(specs))

    def write(self, values: np.ndarray) -> None:
        """The next values, in the order of the tensors and of their rows."""
        self._left -= values.nbytes
        if values.size:  # an empty view cannot be cast
            self._put(np.ascontiguousarray(values).data.cast("B"))

    def close(self) -> FileRecord:
        """Make the file visible. Everything the header promised must have been written."""
        assert self._left == 0, f"{self._path}: {self._left} bytes short of what the header says"
        self._file.close()
        self._partial.replace(self._path)
        return FileRecord(
            name=self._path.name, num_bytes=self._num_bytes, sha256=self._hash.hexdigest()
        )

    def abandon(self) -> None:
        """Remove what was written."""
        self._file.close()
        self._partial.unlink(missing_ok=True)

    def _put(self, raw: bytes | memoryview) -> None:
        self._file.write(raw)
        self._hash.update(raw)
        self._num_bytes += len(raw)


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> FileRecord:
    """Write ``arrays`` to ``path`` in one go."""
    names = {dtype: name for name, dtype in NUMPY_DTYPES.items() if name != "BF16"}
    writer = StreamWriter(
        path, {name: TensorSpec(names[a.dtype], a.shape) for name, a in arrays.items()}
    )
    for values in arrays.values():
        writer.write(values)
    return writer.close()


def to_bits(x: Tensor) -> np.ndarray:
    """``x`` as the array that is written to disk; bfloat16 as its bits."""
    x = x.detach().cpu().contiguous()
    return (x.view(torch.int16) if x.dtype == torch.bfloat16 else x).numpy()


def from_bits(values: np.ndarray, dtype: str) -> Tensor:
    """The inverse of `to_bits`; ``dtype`` is a name in `STORE_DTYPES`. No copy is made."""
    x = torch.from_numpy(values)
    return x.view(torch.bfloat16) if dtype == "bfloat16" else x


def check_size(folder: Path, record: FileRecord, *, remedy: str) -> None:
    """Raise `CorruptData` where the file is missing or not as long as its record says."""
    path = folder / record.name
    if not path.is_file():
        raise CorruptData(path, "the file is missing.", remedy)
    if (found := path.stat().st_size) != record.num_bytes:
        raise CorruptData(
            path, f"it has {found} bytes, not the {record.num_bytes} that were written.", remedy
        )


def check_content(folder: Path, record: FileRecord, *, remedy: str) -> None:
    """Raise `CorruptData` where any byte differs from what was written. Reads the file."""
    check_size(folder, record, remedy=remedy)
    path = folder / record.name
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != record.sha256:
        raise CorruptData(path, f"its checksum is {found[:16]}, not {record.sha256[:16]}.", remedy)


def map_tensors(
    path: Path, specs: Mapping[str, TensorSpec], *, remedy: str
) -> dict[str, np.ndarray]:
    """Read-only maps of the tensors of ``path``; they must be exactly ``specs``.

    Raises `CorruptData` where the header cannot be read, promises something else, or promises
    more than the file holds.
    """
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= MAX_HEADER_BYTES:
                raise CorruptData(path, f"a header of {length} bytes makes no sense.", remedy)
            entries = json.loads(file.read(length))
        start = 8 + length
        maps = {}
        for name, spec in specs.items():
            entry = entries[name]
            first, last = entry["data_offsets"]
            found = TensorSpec(entry["dtype"], tuple(entry["shape"]))
            if found != spec or last - first != spec.num_bytes:
                raise CorruptData(path, f"{name} is {found}, not {spec}.", remedy)
            if first < 0 or start + last > path.stat().st_size:
                raise CorruptData(path, f"{name} ends behind the end of the file.", remedy)
            maps[name] = _map(path, NUMPY_DTYPES[spec.dtype], start + first, spec.shape)
    except FileNotFoundError as error:
        raise CorruptData(path, "the file is missing.", remedy) from error
    except (KeyError, TypeError, ValueError) as error:
        raise CorruptData(
            path, f"its header is damaged ({type(error).__name__}: {error}).", remedy
        ) from error
    return maps


def _map(path: Path, dtype: np.dtype, offset: int, shape: tuple[int, ...]) -> np.ndarray:
    if prod(shape) == 0:  # nothing can be mapped
        return np.empty(shape, dtype)
    return np.memmap(path, dtype, "r", offset, shape)


class Maps:
    """The maps of many files, opened when needed; the least recently used are let go."""

    def __init__(
        self, paths: Sequence[Path], specs: Sequence[Mapping[str, TensorSpec]], *, remedy: str
    ) -> None:
        self._paths, self._specs, self._remedy = paths, specs, remedy
        self._open: OrderedDict[int, dict[str, np.ndarray]] = OrderedDict()

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        if index not in self._open:
            self._open[index] = map_tensors(
                self._paths[index], self._specs[index], remedy=self._remedy
            )
            if len(self._open) > OPEN_MAPS:
                self._open.popitem(last=False)
        self._open.move_to_end(index)
        return self._open[index]

    def __len__(self) -> int:
        return len(self._paths)
