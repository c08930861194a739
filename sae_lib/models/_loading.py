"""From a directory or the hub to a model and its tokenizer, quietly and without pickles."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError

from sae_lib.errors import BadInput
from sae_lib.models._hub import hub_commit
from sae_lib.models.config import ModelConfig
from sae_lib.models.inspect import ModelInfo, bundled_models

if TYPE_CHECKING:  # seconds to import, and most commands load no model
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def check_device(device: str) -> torch.device:
    """The device; an error when this machine has none of that name."""
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, ValueError) as error:
        raise BadInput(
            "There is no such device here; 'cpu' always is.", key="device", value=device
        ) from error
    return found


def read_model(cfg: ModelConfig, info: ModelInfo, device: torch.device) -> "PreTrainedModel":
    """The weights in the form of the config, on ``device``, frozen, in evaluation mode.

    Raises:
        BadInput: the weights do not fit the config: some are missing or have another shape, or
            a hub model has none in safetensors.
    """
    from transformers import AutoModel, AutoModelForCausalLM

    source, options = _source(cfg, info)
    family: Any = AutoModelForCausalLM if info.has_lm_head else AutoModel
    if info.model_type in ("bert", "roberta"):
        options["add_pooling_layer"] = False  # unused, and missing from many files
    try:
        with _quiet():
            model, report = family.from_pretrained(
                source,
                dtype=getattr(torch, cfg.dtype),
                use_safetensors=True,
                output_loading_info=True,
                **options,
            )
    except (OSError, RuntimeError, SafetensorError, ValueError) as error:
        raise BadInput(
            f"The model cannot be loaded: {error}", file=info.path, key="id", value=cfg.id
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise BadInput(
            "The weights lack what the config promises, which would be random numbers:"
            f" {', '.join(missing[:5])}{' and more' if len(missing) > 5 else ''}.",
            file=info.path,
            key="id",
            value=cfg.id,
        )
    return model.to(device).eval().requires_grad_(False)


def read_tokenizer(cfg: ModelConfig, info: ModelInfo) -> "PreTrainedTokenizerBase":
    """The tokenizer that comes with the model."""
    from transformers import AutoTokenizer

    source, options = _source(cfg, info)
    try:
        with _quiet():
            return AutoTokenizer.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise BadInput(
            f"The tokenizer cannot be loaded: {error}", file=info.path, key="id", value=cfg.id
        ) from error


def _source(cfg: ModelConfig, info: ModelInfo) -> tuple[str, dict[str, Any]]:
    options: dict[str, Any] = {"trust_remote_code": cfg.trust_remote_code}
    if info.path is not None:
        return str(info.path), {**options, "local_files_only": True}
    return cfg.id, {**options, "revision": hub_commit(cfg, bundled_models())}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and remarks of transformers; what matters of them is raised here."""
    from transformers.utils import logging

    verbosity, had_bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()
