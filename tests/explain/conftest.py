"""A tiny random language model, a corpus of contexts in memory, and coders with known latents."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sae_lib.activations.tokens import TokenRows
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import LanguageModel, load_model

SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
WORDS = [f"w{i:02d}" for i in range(28)]


class InMemory:
    """Contexts that were never written; what a `TokenSplit` gives, from tensors."""

    def __init__(self, tokens, document, position, keep) -> None:
        self.held = TokenRows(tokens, document, position, keep)
        self.num_contexts, self.context = tokens.shape

    def rows(self, indices) -> TokenRows:
        chosen = torch.as_tensor(list(indices), dtype=torch.long)
        return TokenRows(*(part[chosen] for part in self.held))


def pack(documents: list[list[int]], context: int) -> InMemory:
    """Documents as BOS, tokens, EOS, one after the other, cut every ``context`` tokens."""
    tokens, document, position = [], [], []
    for number, ids in enumerate(documents):
        whole = [1, *ids, 2]
        tokens += whole
        document += [number] * len(whole)
        position += range(len(whole))
    num = len(tokens) // context
    shaped = [
        torch.tensor(x[: num * context]).view(num, context) for x in (tokens, document, position)
    ]
    return InMemory(*shaped, shaped[0] > 3)


@pytest.fixture(scope="session")
def model(tmp_path_factory) -> LanguageModel:
    folder: Path = tmp_path_factory.mktemp("tiny-llama")
    words = Tokenizer(
        WordLevel({w: i for i, w in enumerate([*SPECIAL, *WORDS])}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        initializer_range=0.5,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    return load_model(ModelConfig(id=str(folder)))


@pytest.fixture(scope="session")
def corpus() -> InMemory:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 14, (40,), generator=generator).tolist()
    return pack(
        [torch.randint(4, 32, (n,), generator=generator).tolist() for n in lengths], context=16
    )


@pytest.fixture(scope="session")
def packed():
    return pack
