"""Checkpoints: everything a training needs to go on as if nothing had happened, in one file.

Tensors are stored as safetensors; the rest is JSON in the header of the same file. One file is
replaced in one step, so whoever reads it sees the old checkpoint or the new one, whole.
"""

import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sae_lib.errors import CorruptData

FORMAT_VERSION = 1

CHECKPOINT = "checkpoint.safetensors"


class Checkpoint(NamedTuple):
    """One moment of a training."""

    tensors: dict[str, Tensor]
    """Weights, buffers, moments of the optimiser and counters, by name."""

    state: dict[str, Any]
    """JSON object: step, status, curves so far, seconds, and whose training it is."""


def write_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Replace the checkpoint in ``folder``; it survives a power failure once this returns."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CHECKPOINT
    temporary = folder / f".{CHECKPOINT}.{os.getpid()}"
    state = {"format_version": FORMAT_VERSION, **checkpoint.state}
    tensors = {name: tensor.detach().contiguous() for name, tensor in checkpoint.tensors.items()}
    save_file(tensors, temporary, metadata={"state": json.dumps(state, allow_nan=False)})
    with temporary.open("rb") as written:
        os.fsync(written.fileno())
    temporary.replace(path)


def read_checkpoint(folder: Path) -> Checkpoint | None:
    """The checkpoint in ``folder``, on the CPU; None where none was ever written.

    Raises `CorruptData` for a file that is damaged or of another format version.
    """
    path = folder / CHECKPOINT
    if not path.is_file():
        return None
    remedy = f"Delete {path} to train from the start."
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        state = json.loads(metadata["state"])
    except (SafetensorError, OSError, KeyError, json.JSONDecodeError) as error:
        raise CorruptData(path, f"this is not a checkpoint ({error}).", remedy) from error
    version = state.pop("format_version", None)
    if version != FORMAT_VERSION:
        raise CorruptData(
            path, f"format version {version!r} is not the {FORMAT_VERSION} this reads.", remedy
        )
    return Checkpoint(tensors, state)
