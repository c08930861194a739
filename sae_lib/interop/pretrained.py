"""An SAE that somebody else trained, as an experiment file names it: evaluated like our own.

    {kind: pretrained, format: gemma_scope, path: google/gemma-scope-2b-pt-res,
     folder: layer_12/width_16k/average_l0_82, d_sae: 16384}

``path`` is a local folder or a repository of the Hugging Face hub. Weights are read by
`sae_lib.interop`'s readers, which never unpickle, and become a coder of raw activations.
"""

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from sae_lib.errors import BadInput, MissingFile
from sae_lib.interop.gemma_scope import read_gemma_scope
from sae_lib.interop.imported import Imported
from sae_lib.interop.llama_scope import read_llama_scope
from sae_lib.interop.saelens import read_saelens
from sae_lib.saes.base import SaeConfig
from sae_lib.saes.files import load_sae, read_description

KIND = "pretrained"

Format = Literal["saelens", "gemma_scope", "llama_scope", "sae-workflows"]


class PretrainedConfig(SaeConfig):
    """Where a trained SAE comes from."""

    summary: ClassVar[str] = "An SAE that was trained elsewhere, evaluated like our own."

    kind: Literal["pretrained"] = KIND  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    format: Format
    """Whose files they are."""

    path: str = Field(min_length=1)
    """A local folder, or the id of a repository of the Hugging Face hub."""

    folder: str = ""
    """Folder inside it."""

    revision: str | None = None
    """Commit, branch or tag of the repository."""

    name: str | None = Field(default=None, min_length=1)
    """What it is called in results; derived: the last folder."""

    norm_factor: float | None = Field(default=None, gt=0)
    """Factor on activations before they are encoded, where the files do not say it (SAELens)."""


def local_folder(cfg: PretrainedConfig, base: Path) -> Path | None:
    """The local folder of the files; None where they are on the hub.

    Raises `MissingFile` for a path that looks like a local one and is not there.
    """
    root = base / Path(cfg.path).expanduser()
    if root.is_dir():
        folder = root / cfg.folder
        if not folder.is_dir():
            raise MissingFile("there is no such folder.", key="folder", value=str(folder))
        return folder
    is_hub_id = cfg.path.count("/") == 1 and not cfg.path.startswith((".", "/", "~"))
    if not is_hub_id:
        raise MissingFile(
            "there is no such folder; give one, or the id of a hub repository (OWNER/NAME).",
            key="path",
            value=cfg.path,
        )
    return None


def fetched_folder(cfg: PretrainedConfig, base: Path) -> Path:
    """The folder of the files, fetched from the hub where they are not local.

    Raises `BadInput` where the hub does not give them.
    """
    found = local_folder(cfg, base)
    if found is not None:
        return found
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [f"{cfg.folder}/*", f"{cfg.folder}/**/*"] if cfg.folder else None
    try:
        root = snapshot_download(cfg.path, revision=cfg.revision, allow_patterns=patterns)
    except (OSError, ValueError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        raise BadInput(
            f"the hub does not give it ({error}); fetch it where there is a network, and name the"
            " local folder.",
            key="path",
            value=cfg.path,
        ) from error
    folder = Path(root) / cfg.folder
    if not folder.is_dir():
        raise BadInput(f"{cfg.path} has no such folder.", key="folder", value=cfg.folder)
    return folder


def read_pretrained(cfg: PretrainedConfig, base: Path) -> Imported:
    """The SAE as a coder of raw activations; raises `BadInput`, `MissingFile` or `CorruptData`."""
    folder = fetched_folder(cfg, base)
    found = READERS[cfg.format](folder, cfg)
    if cfg.norm_factor is not None and cfg.format != "saelens":
        raise BadInput(
            f"files of {cfg.format} say their own factor; leave norm_factor out.",
            key="norm_factor",
            value=cfg.norm_factor,
        )
    if (found.coder.d_in, found.coder.d_sae) != (cfg.d_in, cfg.d_sae):
        raise BadInput(
            f"the SAE reads {found.coder.d_in} numbers and has {found.coder.d_sae} latents; asked"
            f" for are {cfg.d_in} and {cfg.d_sae}.",
            file=folder,
            key="d_sae",
            value=cfg.d_sae,
        )
    return found


def shape_of(raw: Mapping[str, Any], base: Path) -> tuple[int, int] | None:
    """(d_in, d_sae) that the local files of an entry have; None where they are on the hub."""
    cfg = PretrainedConfig.model_validate({"d_in": 1, "d_sae": 1, **raw})
    folder = local_folder(cfg, base)
    if folder is None:
        return None
    coder = READERS[cfg.format](folder, cfg).coder
    return coder.d_in, coder.d_sae


def files_fingerprint(cfg: PretrainedConfig, base: Path) -> str:
    """Tells two SAEs apart: a hash of the local files, or where on the hub they are."""
    folder = local_folder(cfg, base)
    if folder is None:
        return f"hub {cfg.path}@{cfg.revision or 'main'}/{cfg.folder}"
    digest = hashlib.sha256()
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        digest.update(str(file.relative_to(folder)).encode())
        with file.open("rb") as content:
            digest.update(hashlib.file_digest(content, "sha256").digest())
    return digest.hexdigest()[:32]


def _read_own(folder: Path) -> Imported:
    facts = read_description(folder)["facts"]
    return Imported(load_sae(folder), {"format": "sae-workflows", **dict(facts)})


READERS: dict[str, Callable[[Path, PretrainedConfig], Imported]] = {
    "saelens": lambda folder, cfg: read_saelens(folder, norm_factor=cfg.norm_factor),
    "gemma_scope": lambda folder, cfg: read_gemma_scope(folder),
    "llama_scope": lambda folder, cfg: read_llama_scope(folder),
    "sae-workflows": lambda folder, cfg: _read_own(folder),
}
"""What reads each format."""
