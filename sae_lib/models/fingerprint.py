"""Which model this is, by content: other weights, config or tokenizer give another fingerprint.

The number format in which a model is loaded is not part of it (it is in the config).
"""

import hashlib
import json
from pathlib import Path
from tempfile import NamedTemporaryFile

from sae_lib.config import canonical_json, digest
from sae_lib.models._hub import hub_commit
from sae_lib.models.config import ModelConfig
from sae_lib.models.inspect import bundled_models, inspect_model, resolve_model, weight_files

LENGTH = 16

PATTERNS = (
    "config.json",
    "generation_config.json",
    "model.safetensors.index.json",
    "tokenizer*.json",
    "tokenizer*.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template*",
    "vocab.*",
    "merges.txt",
    "spiece.model",
    "*.py",
)
"""Files beside the weights that decide what the model computes or how text becomes tokens."""


def fingerprint(cfg: ModelConfig, relative_to: Path | None = None, memo: Path | None = None) -> str:
    """Sixteen hex digits that change when the model does, and not when its files are touched.

    A local model is read in full, unless ``memo`` (a file, made when missing) remembers a file
    of the same path, size and times. A hub model is its commit, asked of the hub, or of the
    local cache when the hub cannot be reached.

    Raises:
        MissingFile: the directory lacks what a model needs.
        BadInput: nobody knows the model.
    """
    folder = resolve_model(cfg, relative_to)
    if folder is None:
        return hub_commit(cfg, bundled_models())[:LENGTH]
    inspect_model(cfg, relative_to=relative_to)
    files = {file for pattern in PATTERNS for file in folder.glob(pattern) if file.is_file()}
    remembered = _read_memo(memo)
    hashes = {}
    for file in sorted(files | set(weight_files(folder))):
        place, times = str(file.resolve()), _times(file)
        known = remembered.get(place)
        if known is None or known[:-1] != times:
            with file.open("rb") as stream:
                remembered[place] = [*times, hashlib.file_digest(stream, "sha256").hexdigest()]
        hashes[file.name] = remembered[place][-1]
    if memo is not None:
        _write_memo(memo, remembered)
    return digest(hashes, length=LENGTH)


def _times(file: Path) -> list[int]:
    """Size and times. The time of the last change of status is among them because a copy that
    keeps the time of modification would otherwise pass for the file it replaced."""
    state = file.stat()
    return [state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _read_memo(memo: Path | None) -> dict[str, list]:
    if memo is None:
        return {}
    try:
        known = json.loads(memo.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}  # it only saves time, so a damaged one is a missing one
    if not isinstance(known, dict):
        return {}
    return {
        place: entry
        for place, entry in known.items()
        if isinstance(entry, list)
        and len(entry) == len(("size", "mtime", "ctime", "sha256"))
        and isinstance(entry[-1], str)
    }


def _write_memo(memo: Path, content: dict[str, list]) -> None:
    memo.parent.mkdir(parents=True, exist_ok=True)
    with NamedTemporaryFile("w", dir=memo.parent, delete=False, encoding="utf-8") as temporary:
        temporary.write(canonical_json(content))
    Path(temporary.name).replace(memo)
