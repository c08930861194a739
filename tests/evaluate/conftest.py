"""A tiny language model, token contexts in memory, and coders whose effect is known."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    PreTrainedTokenizerFast,
)

from sae_lib.activations.tokens import TokenRows
from sae_lib.evaluate.base import Accumulator, EvalBatch, EvalContext, StreamingMetric
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import LanguageModel, load_model
from sae_lib.saes.base import Activations, Latents, SaeConfig, SparseCoder, Step, Terms
from sae_lib.warehouse.rows import Measurement

PAD, BOS, EOS, FIRST_WORD = 0, 1, 2, 4
VOCAB, D_MODEL, CONTEXT = 23, 8, 12
SPECIAL = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
    "hidden_size": D_MODEL,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 12,
    "max_position_embeddings": 2 * CONTEXT,
}


class PlainConfig(SaeConfig):
    kind: Literal["plain_for_tests"] = "plain_for_tests"  # pyright: ignore[reportIncompatibleVariableOverride]


class PlainCoder(SparseCoder[PlainConfig]):
    """relu(W_enc x + b_enc) W_dec + b_dec with the weights it is given."""

    def __init__(self, W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, b_dec: Tensor) -> None:
        super().__init__()
        self.cfg = PlainConfig(d_in=W_enc.shape[1], d_sae=W_enc.shape[0])
        self.W_enc, self.W_dec = nn.Parameter(W_enc), nn.Parameter(W_dec)
        self.b_enc, self.b_dec = nn.Parameter(b_enc), nn.Parameter(b_dec)

    def encode(self, x: Activations) -> Latents:
        return (x @ self.W_enc.mT + self.b_enc).relu()

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def terms(self, step: Step) -> Terms:
        raise NotImplementedError

    def scale_(self, factor: float) -> None:
        raise NotImplementedError


class TokensInMemory:
    """What an evaluation uses of a `TokenSplit`."""

    def __init__(self, tokens: Tensor) -> None:
        self.tokens = tokens
        self.num_contexts = len(tokens)

    def batches(self, batch_contexts: int) -> Iterator[tuple[range, TokenRows]]:
        for start in range(0, self.num_contexts, batch_contexts):
            part = self.tokens[start : start + batch_contexts]
            document = torch.zeros_like(part).masked_fill(part == PAD, -1)
            rows = TokenRows(part, document, document, part >= FIRST_WORD)
            yield range(start, start + len(part)), rows


def coder_of(W_enc: Tensor, W_dec: Tensor, b_enc: Tensor, b_dec: Tensor) -> PlainCoder:
    return PlainCoder(W_enc, W_dec, b_enc, b_dec)


def random_coder(d_in: int = D_MODEL, d_sae: int = 20, seed: int = 0) -> PlainCoder:
    generator = torch.Generator().manual_seed(seed)
    W_dec = nn.functional.normalize(torch.randn(d_sae, d_in, generator=generator), dim=-1)
    bias = 0.1 * torch.randn(d_sae, generator=generator)
    return PlainCoder(W_dec.clone(), W_dec, bias, torch.zeros(d_in))


def random_tokens(num_contexts: int = 6, seed: int = 3) -> Tensor:
    """Documents behind BOS and before EOS, cut anywhere."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(FIRST_WORD, VOCAB, (num_contexts, CONTEXT), generator=generator)
    tokens[:, 0] = BOS
    tokens[::2, 5], tokens[::2, 6] = EOS, BOS
    tokens[1::2, 7] = BOS  # as in GPT-2, where nothing but BOS separates documents
    return tokens


class Values(dict[tuple[str, str], Measurement]):
    """Measurements by name and definition; several with one key are an error."""

    def __init__(self, rows: list[Measurement]) -> None:
        super().__init__()
        for row in rows:
            key = row.name, row.definition
            assert key not in self, f"two rows are {key}"
            self[key] = row


def run_metric(
    metric: StreamingMetric,
    batches: list[EvalBatch],
    *,
    mean: Tensor | None = None,
    coder: SparseCoder[Any] | None = None,
) -> Accumulator:
    """The metric's accumulator after these batches."""
    d_in, d_sae = batches[0].x.shape[1], batches[0].z.shape[1]
    context = EvalContext(
        site="resid_post.0",
        coder=coder or random_coder(d_in, d_sae),
        mean_activation=torch.zeros(d_in) if mean is None else mean,
        batch_contexts=batches[0].num_contexts,
    )
    accumulator = metric.start(context)
    for batch in batches:
        accumulator.update(batch)
    return accumulator


def batch_of(
    x: Tensor, x_hat: Tensor | None = None, z: Tensor | None = None, context: Tensor | None = None
) -> EvalBatch:
    """A batch that holds these rows; every row is a context of its own unless said otherwise."""
    context = torch.arange(len(x)) if context is None else context
    num = int(context.max()) + 1 if len(context) else 1
    tokens = torch.full((num, 1), FIRST_WORD)
    x_hat = x.clone() if x_hat is None else x_hat
    z = torch.zeros(len(x), 3) if z is None else z
    return EvalBatch(tokens, tokens >= FIRST_WORD, x, z, x_hat, context)


class Tools:
    """The helpers above, for tests that cannot import this file."""

    PlainCoder, TokensInMemory, Values = PlainCoder, TokensInMemory, Values
    coder_of, random_coder = staticmethod(coder_of), staticmethod(random_coder)
    random_tokens, run_metric = staticmethod(random_tokens), staticmethod(run_metric)
    batch_of = staticmethod(batch_of)
    pad, bos, eos, first_word, vocab, d_model = PAD, BOS, EOS, FIRST_WORD, VOCAB, D_MODEL


@pytest.fixture(scope="session")
def tools() -> type[Tools]:
    return Tools


@pytest.fixture(scope="session")
def load_tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], LanguageModel]:
    """A fresh tiny model of a type, in float32, whose predictions are far from uniform."""
    folders: dict[str, Path] = {}

    def load(model_type: str) -> LanguageModel:
        if model_type not in folders:
            folders[model_type] = _save(model_type, tmp_path_factory.mktemp(model_type))
        return load_model(ModelConfig(id=str(folders[model_type])))

    return load


@pytest.fixture
def model(load_tiny: Callable[[str], LanguageModel]) -> LanguageModel:
    return load_tiny("llama")


def _save(model_type: str, folder: Path) -> Path:
    config = AutoConfig.for_model(model_type, **SIZES)
    kind = AutoModelForMaskedLM if model_type == "bert" else AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = kind.from_config(config)
        for parameter in made.parameters():
            parameter.data += 0.4 * torch.randn_like(parameter)
    made.save_pretrained(folder)
    words = [*SPECIAL.values(), *(f"w{i}" for i in range(VOCAB - len(SPECIAL)))]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **SPECIAL).save_pretrained(folder)
    return folder
