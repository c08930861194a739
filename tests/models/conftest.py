"""Tiny randomly initialised models of every family, saved once per run like real ones."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedTokenizerFast,
)

from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import LanguageModel, load_model

NUM_LAYERS, D_MODEL, D_MLP, VOCAB, CONTEXT = 3, 16, 24, 37, 24
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}

_COMMON = {"vocab_size": VOCAB, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_USUAL = {
    **_COMMON,
    "hidden_size": D_MODEL,
    "num_hidden_layers": NUM_LAYERS,
    "num_attention_heads": 4,
    "intermediate_size": D_MLP,
    "max_position_embeddings": CONTEXT,
}
_GROUPED = {**_USUAL, "num_key_value_heads": 2, "head_dim": 4}
_GPT_2 = {
    **_COMMON,
    "n_embd": D_MODEL,
    "n_layer": NUM_LAYERS,
    "n_head": 4,
    "n_positions": CONTEXT,
    "n_inner": D_MLP,
}
_OPT = {
    **_USUAL,
    "ffn_dim": D_MLP,
    "word_embed_proj_dim": D_MODEL,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", _GPT_2),
    "gpt_neo": (
        "gpt_neo",
        {
            **_COMMON,
            "hidden_size": D_MODEL,
            "num_layers": NUM_LAYERS,
            "num_heads": 4,
            "intermediate_size": D_MLP,
            "max_position_embeddings": CONTEXT,
            "attention_types": [[["global", "local", "global"], 1]],
            "window_size": 4,
        },
    ),
    "gpt_neox": ("gpt_neox", _USUAL),
    "gpt_neox_sequential": ("gpt_neox", {**_USUAL, "use_parallel_residual": False}),
    "gptj": ("gptj", {**_GPT_2, "rotary_dim": 2}),
    "phi": ("phi", _USUAL),
    "llama": ("llama", _GROUPED),
    "mistral": ("mistral", {**_GROUPED, "sliding_window": 4}),
    "qwen2": ("qwen2", {**_USUAL, "num_key_value_heads": 2}),
    "qwen3": ("qwen3", _GROUPED),
    "phi3": ("phi3", {**_USUAL, "num_key_value_heads": 2}),
    "gemma": ("gemma", _GROUPED),
    "gemma2": ("gemma2", {**_GROUPED, "sliding_window": 4}),
    "gemma3": ("gemma3_text", {**_GROUPED, "sliding_window": 4}),
    "opt": ("opt", _OPT),
    "opt_post_norm": ("opt", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 8}),
    "bert": ("bert", _USUAL),
    "roberta": ("roberta", {**_USUAL, "max_position_embeddings": CONTEXT + 1}),
    "distilbert": (
        "distilbert",
        {
            **_COMMON,
            "dim": D_MODEL,
            "n_layers": NUM_LAYERS,
            "n_heads": 4,
            "hidden_dim": D_MLP,
            "max_position_embeddings": CONTEXT,
        },
    ),
}
ENCODERS = ("bert", "roberta", "distilbert")
LAYOUTS = ("llama", "gemma2", "gpt2", "gpt_neox", "opt", "opt_post_norm", "bert", "distilbert")
CAUSAL = tuple(name for name in FAMILIES if name not in ENCODERS)


def save_tiny(name: str, folder: Path) -> Path:
    """A model of the family with weights that make every part of it matter, and a tokenizer."""
    model_type, sizes = FAMILIES[name]
    config = AutoConfig.for_model(model_type, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kind = AutoModelForMaskedLM if name in ENCODERS else AutoModelForCausalLM
        model = kind.from_config(config)
        for parameter in model.parameters():
            # norms and biases start at 1 and 0, where a forgotten one would not be noticed
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    words = [*SPECIAL.values(), *(f"w{i}" for i in range(VOCAB - len(SPECIAL)))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def folder_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Where the tiny model of a family is; made when it is first asked for."""
    made: dict[str, Path] = {}

    def find(name: str) -> Path:
        if name not in made:
            made[name] = save_tiny(name, tmp_path_factory.mktemp(name))
        return made[name]

    return find


@pytest.fixture(scope="session")
def tiny(folder_of: Callable[[str], Path]) -> Callable[[str], LanguageModel]:
    """The tiny model of a family, loaded once."""
    loaded: dict[str, LanguageModel] = {}

    def load(name: str) -> LanguageModel:
        if name not in loaded:
            loaded[name] = load_model(ModelConfig(id=str(folder_of(name))))
        return loaded[name]

    return load


@pytest.fixture(params=FAMILIES)
def lm(request: pytest.FixtureRequest, tiny: Callable[[str], LanguageModel]) -> LanguageModel:
    """Every family in turn."""
    return tiny(request.param)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tiny: Callable[[str], LanguageModel]) -> LanguageModel:
    """One family of each layout in turn, for what does not hang on the rest."""
    return tiny(request.param)


@pytest.fixture(params=CAUSAL)
def causal(request: pytest.FixtureRequest, tiny: Callable[[str], LanguageModel]) -> LanguageModel:
    """Every family that predicts tokens, in turn."""
    return tiny(request.param)


@pytest.fixture
def tokens() -> torch.Tensor:
    """Two sequences of seven tokens without special ones."""
    return torch.randint(4, VOCAB, (2, 7), generator=torch.Generator().manual_seed(1))
