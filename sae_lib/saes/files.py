"""A sparse coder on disk: ``sae.safetensors`` with its tensors, ``sae.json`` with the rest.

The JSON file is written last and holds the digest of the other, so a folder in which a writer
was killed, or whose files do not belong together, is noticed.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lib.artifacts import write_atomically
from sae_lib.errors import BadInput, CorruptData, MissingFile, nearest
from sae_lib.saes.base import VARIANTS, SparseCoder

FORMAT_VERSION = 1

TENSORS = "sae.safetensors"
DESCRIPTION = "sae.json"

REMEDY = "Train or fetch the SAE again."


def save_sae(coder: SparseCoder[Any], folder: Path, *, facts: Mapping[str, Any]) -> None:
    """Write ``coder``, which takes raw activations, and JSON ``facts`` about it to ``folder``.

    Raises `BadInput` where a tensor is not finite: such a coder is of no use to anybody.
    """
    tensors = {name: value.detach().contiguous() for name, value in coder.state_dict().items()}
    for name, value in coder.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise BadInput("this SAE has weights that are not finite.", file=folder, key=name)
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{TENSORS}.{os.getpid()}"
    save_file(tensors, temporary)
    temporary.replace(folder / TENSORS)
    description = {
        "format_version": FORMAT_VERSION,
        "kind": coder.cfg.kind,
        "config": coder.cfg.model_dump(mode="json"),
        "dtype": str(coder.W_enc.dtype).removeprefix("torch."),
        "is_normalisation_folded": True,
        "sha256": sha256(folder / TENSORS),
        "facts": dict(facts),
    }
    write_atomically(folder / DESCRIPTION, json.dumps(description, indent=2) + "\n")


def load_sae(folder: Path) -> SparseCoder[Any]:
    """The coder in ``folder``, on the CPU, in evaluation mode and without gradients.

    Raises `MissingFile` where there is none, `BadInput` for a variant or a setting this version
    does not know, `CorruptData` for files that do not fit each other or the config.
    """
    description = read_description(folder)
    kind, path = description["kind"], folder / DESCRIPTION
    if kind not in VARIANTS:
        raise BadInput(
            f"no SAE variant has this name; known: {', '.join(VARIANTS)}.{nearest(kind, VARIANTS)}",
            file=path,
            key="kind",
            value=kind,
        )
    try:
        cfg = VARIANTS[kind].model_validate(description["config"])
    except ValidationError as error:
        raise BadInput(
            f"the config is not one of {kind!r}: {error}", file=path, key="config"
        ) from error
    coder = cfg.build()
    tensors = read_tensors(folder, description["sha256"])
    fits(coder.state_dict(), tensors, folder / TENSORS)
    coder.load_state_dict(tensors, assign=True)
    return coder.eval().requires_grad_(False)


def read_description(folder: Path) -> dict[str, Any]:
    """What ``sae.json`` says: kind, config, dtype, digest, and the ``facts`` of who saved it."""
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise MissingFile(
            f"there is no SAE here: {DESCRIPTION} is missing.", file=folder
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CorruptData(path, f"this is not JSON ({error}).", REMEDY) from error
    version = description.get("format_version") if isinstance(description, dict) else None
    if version != FORMAT_VERSION:
        raise BadInput(
            f"this version reads format version {FORMAT_VERSION}.",
            file=path,
            key="format_version",
            value=version,
        )
    missing = {"kind", "config", "sha256", "facts"} - set(description)
    if missing:
        raise CorruptData(path, f"keys are missing: {', '.join(sorted(missing))}.", REMEDY)
    return description


def read_tensors(folder: Path, digest: str) -> dict[str, Tensor]:
    """The tensors in ``folder``; raises where their file has not the ``digest`` it should have."""
    path = folder / TENSORS
    if not path.is_file():
        raise MissingFile(f"there is no SAE here: {TENSORS} is missing.", file=folder)
    if sha256(path) != digest:
        raise CorruptData(path, f"its digest is not the one in {DESCRIPTION}.", REMEDY)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise CorruptData(path, f"this is not a safetensors file ({error}).", REMEDY) from error


def fits(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], path: Path) -> None:
    """Raise `CorruptData` unless both have the same names and shapes."""
    for name, tensor in expected.items():
        if name not in found:
            raise CorruptData(path, f"tensor {name} is missing.", REMEDY)
        if found[name].shape != tensor.shape:
            shapes = f"{tuple(found[name].shape)}, not {tuple(tensor.shape)}"
            raise CorruptData(path, f"tensor {name} has shape {shapes}.", REMEDY)
    if extra := sorted(set(found) - set(expected)):
        raise CorruptData(path, f"tensors nobody asked for: {', '.join(extra)}.", REMEDY)


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
