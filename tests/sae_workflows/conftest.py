"""A tiny causal model, a tiny encoder and a text, on disk, for whole runs in seconds."""

import random
from pathlib import Path
from textwrap import dedent

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BertConfig,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = [f"w{index}" for index in range(60)]


def save_tokenizer(folder: Path) -> int:
    specials = ["<pad>", "<bos>", "<eos>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate(specials + WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = WhitespaceSplit()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    ).save_pretrained(folder)
    return len(vocabulary)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Llama form, 3 layers, width 16, contexts of 64."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    vocab_size = save_tokenizer(folder)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=64,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        LlamaForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """BERT form without a language-model head, 2 layers, width 16."""
    folder = tmp_path_factory.mktemp("models") / "encoder"
    vocab_size = save_tokenizer(folder)
    config = BertConfig(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 12,000 words in 300 documents, a line each."""
    rng = random.Random(0)
    file = tmp_path_factory.mktemp("text") / "text.jsonl"
    lines = []
    for _ in range(300):
        start = rng.randrange(len(WORDS))
        words = [WORDS[(start + rng.randrange(8)) % len(WORDS)] for _ in range(40)]
        lines.append('{"text": "' + " ".join(words) + '"}')
    file.write_text("\n".join(lines) + "\n")
    return file


@pytest.fixture
def write(tmp_path: Path, tiny_model: Path, text: Path):
    """Writes an experiment file; keyword arguments replace top-level parts, None leaves one out."""

    def write_file(name: str = "study", **parts: str | None) -> Path:
        content = {
            "name": name,
            "model": f"{{id: {tiny_model}}}",
            "corpus": f"{{id: {text}, tokens: 8000, context: 32, eval_tokens: 1500}}",
            "sites": "[resid_post.0, resid_post.1]",
            "saes": "[{kind: topk, d_sae: 32, k: [2, 4]}]",
            "train": "{batch_tokens: 256, tokens: 8192}",
            "explain": "[max_act]",
            **parts,
        }
        file = tmp_path / f"{name}.yaml"
        lines = [f"{key}: {value}" for key, value in content.items() if value is not None]
        file.write_text(dedent("\n".join(lines)) + "\n")
        return file

    return write_file
