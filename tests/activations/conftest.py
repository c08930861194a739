"""A word-level tokenizer, a model whose activations can be computed by hand, and small corpora."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.tokens import Tokens, build_tokens
from sae_lib.models.inspect import ModelInfo

WORDS = [f"w{i}" for i in range(40)]
VOCAB = {word: i for i, word in enumerate(["<pad>", "<bos>", "<eos>", "<unk>", *WORDS])}
WIDTHS = {"resid_post.0": 8, "resid_post.1": 8, "mlp_act.1": 12}


class FakeModel:
    """Looks every token up and averages over what came before; counts its forward passes.

    A row depends on nothing but its own sequence, bit for bit, so stored and streamed rows can
    be compared exactly.
    """

    device = torch.device("cpu")
    special_ids = frozenset({0, 1, 2})
    is_causal = True

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.calls: list[tuple[int, tuple[str, ...]]] = []
        self.masks: list[Tensor | None] = []
        self.fail_at: int | None = None
        self.reservations = 0
        generator = torch.Generator().manual_seed(0)
        self._tables = {
            site: torch.randn(len(VOCAB), width, generator=generator) * (1 + i) + 3 * i
            for i, (site, width) in enumerate(WIDTHS.items())
        }

    def width(self, site: str) -> int:
        return WIDTHS[site]

    def capture(
        self, tokens: Tensor, sites: Sequence[str], *, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        if self.fail_at is not None and len(self.calls) >= self.fail_at:
            raise RuntimeError("killed")
        self.calls.append((len(tokens), tuple(sites)))
        self.masks.append(mask)
        return {site: self.by_hand(tokens, site) for site in sites}

    @contextmanager
    def reserved(self) -> Iterator[None]:
        self.reservations += 1
        yield
        self.reservations -= 1

    def by_hand(self, tokens: Tensor, site: str) -> Tensor:
        x = self._tables[site][tokens]
        steps = torch.arange(1, tokens.shape[1] + 1)[None, :, None]
        return x + torch.stack([row.cumsum(0) for row in x]) / steps

    def encode_text(
        self, texts: list[str], *, max_tokens: int, padding_side: str
    ) -> tuple[Tensor, Tensor]:
        assert padding_side == "right"
        rows = [
            self.tokenizer(t, add_special_tokens=False)["input_ids"][:max_tokens] for t in texts
        ]
        longest = max(map(len, rows))
        tokens = torch.tensor([row + [0] * (longest - len(row)) for row in rows])
        mask = torch.tensor([[i < len(row) for i in range(longest)] for row in rows])
        return tokens, mask


def word_level(**special: str) -> PreTrainedTokenizerFast:
    words = Tokenizer(WordLevel(VOCAB, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", **special)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """BOS, EOS and PAD; adds none of them itself."""
    return word_level(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")


@pytest.fixture
def bos_adding_tokenizer() -> PreTrainedTokenizerFast:
    """Puts BOS in front of every text, as those of Llama do."""
    tokenizer = word_level(bos_token="<bos>", eos_token="<eos>", pad_token="<pad>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    return tokenizer


@pytest.fixture
def encoder_tokenizer() -> PreTrainedTokenizerFast:
    """CLS (id 1) and SEP (id 2) around every text."""
    tokenizer = word_level(cls_token="<bos>", sep_token="<eos>", pad_token="<pad>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    return tokenizer


@pytest.fixture
def make_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    return word_level


@pytest.fixture
def model(tokenizer: PreTrainedTokenizerFast) -> FakeModel:
    return FakeModel(tokenizer)


@pytest.fixture
def make_info() -> Callable[..., ModelInfo]:
    def make(**changes: Any) -> ModelInfo:
        fields: dict[str, Any] = {
            "id": "fake",
            "path": None,
            "family": "llama",
            "model_type": "llama",
            "num_layers": 2,
            "d_model": 8,
            "d_mlp": 12,
            "vocab_size": len(VOCAB),
            "max_context": 64,
            "is_causal": True,
            "has_lm_head": True,
        }
        return ModelInfo(**{**fields, **changes})

    return make


@pytest.fixture
def write_corpus(tmp_path: Path) -> Callable[..., Path]:
    def write(documents: Sequence[str], name: str = "corpus.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in documents))
        return path

    return write


@pytest.fixture
def documents() -> list[str]:
    """120 documents of 3 to 21 words; the first word tells them apart."""
    generator = torch.Generator().manual_seed(1)
    texts = []
    for i in range(120):
        length = 3 + int(torch.randint(0, 19, (), generator=generator))
        drawn = torch.randint(0, len(WORDS), (length,), generator=generator).tolist()
        texts.append(" ".join(WORDS[j] for j in [i % len(WORDS), *drawn[1:]]))
    return texts


@pytest.fixture
def tokens(
    documents: list[str],
    write_corpus: Callable[..., Path],
    tokenizer: PreTrainedTokenizerFast,
    make_info: Callable[..., ModelInfo],
    tmp_path: Path,
) -> Tokens:
    """Contexts of 16: about 60 to train on, in shards of 16, and 20 held out."""
    cfg = CorpusConfig(id=str(write_corpus(documents)), tokens=960, context=16, eval_tokens=320)
    build_tokens(cfg, tokenizer, make_info(), tmp_path / "tokens", shard_tokens=256)
    return Tokens.open(tmp_path / "tokens")
