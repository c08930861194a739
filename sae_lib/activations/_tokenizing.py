"""What is asked of a tokenizer: ids without its own special tokens, and where those would stand."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from sae_lib.activations._packing import Piece, padded_document, whole_document
from sae_lib.activations.corpus import CorpusConfig
from sae_lib.errors import BadInput

EARLY_CHECK_TOKENS, EARLY_CHECK_DOCUMENTS = 10_000, 2_000
"""A tokenizer that has found no known token in so many tokens or documents will find none."""


def special_ids(tokenizer: Any) -> frozenset[int]:
    """Ids of BOS, EOS, PAD, CLS, SEP and MASK, as far as the tokenizer has them."""
    names = ("bos", "eos", "pad", "cls", "sep", "mask")
    ids = (getattr(tokenizer, f"{name}_token_id", None) for name in names)
    return frozenset(int(i) for i in ids if i is not None)


class Found:
    """What the tokenizer made of the text so far."""

    def __init__(self, *, unknown_id: int | None, vocab_size: int) -> None:
        self.num_documents = self.num_tokens = self.num_unknown = 0
        self._unknown_id, self._vocab_size = unknown_id, vocab_size

    def add(self, ids: Sequence[int]) -> None:
        self.num_documents += 1
        self.num_tokens += len(ids)
        self.num_unknown += 0 if self._unknown_id is None else ids.count(self._unknown_id)
        if ids and max(ids) >= self._vocab_size:
            raise BadInput(
                f"the tokenizer gives the id {max(ids)}, and the model knows {self._vocab_size}"
                " tokens; they do not belong together.",
                key="model.id",
            )

    def check_early(self, cfg: CorpusConfig) -> None:
        if self.num_tokens >= EARLY_CHECK_TOKENS or self.num_documents >= EARLY_CHECK_DOCUMENTS:
            self.check(cfg)

    def check(self, cfg: CorpusConfig) -> None:
        if self.num_documents and self.num_tokens == self.num_unknown:
            made = "only unknown tokens" if self.num_tokens else "no tokens at all"
            raise BadInput(
                f"the tokenizer makes {made} of the first {self.num_documents} documents; the text"
                " is not of the language or alphabet the model was made for.",
                key="corpus.id",
                value=cfg.id,
            )


def layout(
    cfg: CorpusConfig, tokenizer: Any, pack: Literal["concat", "document"], special: np.ndarray
) -> Callable[[Sequence[int], int], Piece]:
    """The function that turns the ids of a document, and its number, into positions."""
    if pack == "concat":
        bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        if bos == eos:  # GPT-2: one token separates documents
            eos = None
        return lambda ids, document: whole_document(
            ids, document, bos=bos, eos=eos, special=special
        )
    prefix, suffix = _own_special_tokens(tokenizer)
    if cfg.context <= len(prefix) + len(suffix):
        raise BadInput(
            f"the tokenizer's {len(prefix) + len(suffix)} special tokens leave no room for text.",
            key="corpus.context",
            value=cfg.context,
        )
    pad = next(
        (i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None),
        0,  # any id will do: padding is masked
    )
    return lambda ids, document: padded_document(
        ids,
        document,
        context=cfg.context,
        prefix=prefix,
        suffix=suffix,
        pad=pad,
        special=special,
    )


def _own_special_tokens(tokenizer: Any) -> tuple[list[int], list[int]]:
    """What the tokenizer puts before and behind a text of its own accord."""
    text = "a a"
    (inner,) = tokenize(tokenizer, [text])
    whole = list(tokenizer(text, add_special_tokens=True, verbose=False)["input_ids"])
    for start in range(len(whole) - len(inner) + 1):
        if whole[start : start + len(inner)] == inner:
            return whole[:start], whole[start + len(inner) :]
    return [], []


def tokenize(tokenizer: Any, texts: list[str]) -> list[list[int]]:
    """Ids of the texts alone: a tokenizer may add BOS itself (Llama's does), and we add ours."""
    return tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)[
        "input_ids"
    ]
