"""What a model is, without loading it: its place, its sizes, whether it can be used here."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sae_lib.errors import BadInput, MissingFile, nearest
from sae_lib.models._hub import hub_config
from sae_lib.models.config import ModelConfig
from sae_lib.models.families import BY_MODEL_TYPE, Family, Wiring

BUNDLED = Path(__file__).parent / "bundled"

WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = "model.safetensors.index.json"
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


@dataclass(frozen=True)
class ModelInfo:
    """Sizes and abilities of a model, from its ``config.json``."""

    id: str
    """As the user wrote it."""

    path: Path | None
    """The local directory; None for a model of the hub."""

    family: str
    """Name of the layout, one of ``families.FAMILIES``."""

    model_type: str
    """As in ``config.json``."""

    num_layers: int
    d_model: int
    d_mlp: int
    vocab_size: int

    max_context: int
    """The most tokens that one sequence may have."""

    is_causal: bool
    """Whether a token sees only those before it."""

    has_lm_head: bool
    """Whether the model predicts tokens (heads for masked tokens do not count)."""

    wiring: Wiring = "sequential"
    """How attention and MLP are put together; see ``families``."""


def bundled_models() -> list[str]:
    """Names of the models that come with the library."""
    return sorted(folder.parent.name for folder in BUNDLED.glob("*/config.json"))


def resolve_model(cfg: ModelConfig, relative_to: Path | None = None) -> Path | None:
    """The local directory of the model, or None when only the hub can have it.

    Bundled names come first, then directories (below ``relative_to``, by default the working
    directory). A revision of a local model is the directory ``revisions/NAME`` inside it.

    Raises:
        MissingFile: the id can only be a path, and there is nothing; or the local model has no
            such revision.
    """
    folder = (relative_to or Path()) / Path(cfg.id).expanduser()
    if cfg.id in bundled_models():
        folder = BUNDLED / cfg.id
    elif not cfg.id or not folder.is_dir():
        if _can_only_be_a_path(cfg.id):
            raise MissingFile(
                f"There is no directory {folder}. A model is a bundled name"
                f" ({', '.join(bundled_models())}), a directory in Hugging Face form, or a hub"
                " id such as 'openai-community/gpt2'.",
                key="id",
                value=cfg.id,
            )
        return None
    return folder if cfg.revision is None else _local_revision(folder, cfg)


def inspect_model(cfg: ModelConfig, *, relative_to: Path | None = None) -> ModelInfo:
    """What the model is. Of a hub model, only ``config.json`` is downloaded.

    Raises:
        MissingFile: the directory lacks its config, weights or tokenizer.
        BadInput: nobody knows the name, the weights are pickled, or the kind of model is not
            supported.
    """
    path = resolve_model(cfg, relative_to)
    file = hub_config(cfg, bundled_models()) if path is None else path / "config.json"
    if path is not None:
        _check_folder(path)
    raw = _read_json(file)
    family = _family_of(raw, file)
    keys = family.keys
    d_model = _size(raw, file, keys.d_model, "hidden_size")
    d_mlp = _size(raw, file, keys.d_mlp, "intermediate_size", default=4 * d_model)
    max_context = _size(raw, file, keys.max_context, "max_position_embeddings")
    if raw["model_type"] == "roberta":
        # positions are counted from the one after the padding's
        max_context -= int(raw.get("pad_token_id", 1)) + 1
    return ModelInfo(
        id=cfg.id,
        path=path,
        family=family.name,
        model_type=raw["model_type"],
        num_layers=_size(raw, file, keys.num_layers, "num_hidden_layers"),
        d_model=d_model,
        d_mlp=d_mlp,
        vocab_size=_size(raw, file, "vocab_size"),
        max_context=max_context,
        is_causal=family.is_causal,
        has_lm_head=family.is_causal and _predicts_tokens(raw),
        wiring=family.wiring_of(raw),
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a local model, shards in the order of their names.

    Raises:
        MissingFile: there are none, or the index names one that is not there.
        BadInput: there are only pickled weights, or the index cannot be read.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    index = folder / WEIGHTS_INDEX
    if index.is_file():
        shards = _read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not shards:
            raise BadInput("The index has no weight_map.", file=index, key="weight_map")
        files = [folder / name for name in sorted({str(name) for name in shards.values()})]
        for file in files:
            if not file.is_file():
                raise MissingFile(f"The index names {file.name}, which is not there.", file=index)
        return files
    pickled = sorted([*folder.glob("pytorch_model*.bin"), *folder.glob("*.pt")])
    if pickled:
        raise BadInput(
            f"The weights are in {pickled[0].name}, and a pickle can run code when it is read."
            " Convert them once, where you trust them: load the model with transformers and"
            " call save_pretrained, which writes model.safetensors.",
            file=folder,
        )
    raise MissingFile(
        f"The directory has no weights; expected {WEIGHTS}, or {WEIGHTS_INDEX} and its shards.",
        file=folder,
    )


def _can_only_be_a_path(name: str) -> bool:
    return (
        not name
        or name.startswith((".", "~", "/"))
        or name.endswith("/")
        or "\\" in name
        or name.count("/") > 1
    )


def _local_revision(folder: Path, cfg: ModelConfig) -> Path:
    revisions = folder / "revisions"
    known = sorted(found.parent.name for found in revisions.glob("*/config.json"))
    if cfg.revision not in known:
        there = f"It has: {', '.join(known)}." if known else "It has none."
        raise MissingFile(
            f"The local model {cfg.id!r} has no revision {cfg.revision!r}. {there} A revision of"
            " a local model is a directory inside its directory 'revisions'; leave the key out"
            " for the model itself.",
            file=revisions,
            key="revision",
            value=cfg.revision,
        )
    return revisions / str(cfg.revision)


def _check_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise MissingFile(
            "The directory has no config.json; a model directory is what save_pretrained of"
            " transformers writes.",
            file=folder,
        )
    weight_files(folder)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        raise MissingFile(
            "The directory has no tokenizer; expected tokenizer.json, which save_pretrained of"
            " the tokenizer writes.",
            file=folder,
        )


def _read_json(file: Path) -> dict[str, Any]:
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(f"This is not JSON: {error}.", file=file) from error
    if not isinstance(raw, dict):
        raise BadInput("A JSON object was expected.", file=file)
    return raw


def _family_of(raw: Mapping[str, Any], file: Path) -> Family:
    model_type = raw.get("model_type")
    if model_type not in BY_MODEL_TYPE:
        known = sorted(BY_MODEL_TYPE)
        hint = nearest(str(model_type), known)
        if model_type == "gemma3":
            hint = " Of Gemma 3, the text-only form (gemma3_text) is."
        raise BadInput(
            f"Models of this type are not supported. Supported: {', '.join(known)}.{hint}",
            file=file,
            key="model_type",
            value=model_type,
        )
    for key in ("is_decoder", "is_encoder_decoder", "add_cross_attention"):
        family = BY_MODEL_TYPE[model_type]
        if raw.get(key) and not (key == "is_decoder" and family.is_causal):
            raise BadInput(
                "Encoders used as decoders, and models with cross attention, are not supported.",
                file=file,
                key=key,
                value=True,
            )
    return BY_MODEL_TYPE[model_type]


def _predicts_tokens(raw: Mapping[str, Any]) -> bool:
    """A config that does not name its class is taken to be the whole language model's."""
    names = raw.get("architectures") or ["ForCausalLM"]
    return any(str(name).endswith(("ForCausalLM", "LMHeadModel")) for name in names)


def _size(raw: Mapping[str, Any], file: Path, *names: str, default: int | None = None) -> int:
    value = next((raw[name] for name in names if raw.get(name) is not None), default)
    if value is None:
        value = _transformers_default(raw["model_type"], names[0])
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise BadInput(
            "A positive whole number was expected.", file=file, key=names[0], value=value
        )
    return value


def _transformers_default(model_type: str, name: str) -> Any:
    """A config may leave out what its class has as default. Costs the import of torch."""
    from transformers import AutoConfig

    return getattr(AutoConfig.for_model(model_type), name, None)
