"""A tiny random language model and coders, for tests that need a whole site."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_lib.apply.base import Bench
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import LanguageModel, load_model
from sae_lib.saes.topk import TopKConfig

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
WORDS = [f"w{i:02d}" for i in range(28)]


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> LanguageModel:
    """Llama-form, 2 layers, width 8; its tokenizer adds no special tokens itself."""
    folder: Path = tmp_path_factory.mktemp("tiny-llama")
    words = Tokenizer(
        WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=48,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return load_model(ModelConfig(id=str(folder)))


@pytest.fixture(scope="session")
def coders():
    return {
        f"topk-s{seed}": TopKConfig(d_in=8, d_sae=16, k=3, aux_k=4, seed=seed)
        .build()
        .requires_grad_(False)
        for seed in (0, 1)
    }


@pytest.fixture(scope="session")
def bench(model, coders) -> Bench:
    return Bench(model, "resid_post.0", coders)


def sentences(first: int, num: int, seed: int) -> list[str]:
    """Texts of 3 to 9 words; those with ``first`` > 0 draw on words from there on only."""
    generator = torch.Generator().manual_seed(seed)
    return [
        " ".join(
            WORDS[i] for i in torch.randint(first, 28, (int(n),), generator=generator).tolist()
        )
        for n in torch.randint(3, 10, (num,), generator=generator)
    ]


@pytest.fixture(scope="session")
def texts():
    return sentences
