"""The word-level tokenizer of the world, in the standard format."""

from collections.abc import Iterator
from functools import cache
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from sae_lib.synthetic.word_level import BOS, EOS, number_words, word_level_tokenizer
from sae_lib.synthetic.world import concepts
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents
from sae_lib.synthetic.world.kinds import KINDS

MAX_CONTEXT = 256
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ ' ' if not loop.first }}<{{ message['role'] }}> {{ message['content'] }}"
    "{% endfor %}{{ ' <assistant>' if add_generation_prompt }}"
)
"""Roles are user and assistant, as in documents that are drawn with the dial ``chat``."""


@cache
def vocabulary() -> dict[str, int]:
    """Ids of the special tokens and of every declared word."""
    assert len(KINDS) > 0  # importing the kinds declares their words
    return number_words(concepts.words())


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Splits at spaces; words nobody declared become ``<unk>``. Adds no special tokens itself."""
    tokenizer = word_level_tokenizer(vocabulary(), max_length=MAX_CONTEXT)
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tokenizer(folder: Path) -> None:
    build_tokenizer().save_pretrained(folder)


def encode(tokens: tuple[str, ...]) -> list[int]:
    """Ids of the words, no special tokens."""
    ids = vocabulary()
    return [ids[word] for word in tokens]


def token_stream(
    cfg: WorldConfig, start: int = 0, *, split: str = "train"
) -> Iterator[tuple[int, list[int]]]:
    """Without end: the next document's number, and the ids of one document ``<bos> .. <eos>``."""
    for doc in documents(cfg, start, split=split):
        yield doc.index + 1, [BOS, *encode(doc.tokens), EOS]
