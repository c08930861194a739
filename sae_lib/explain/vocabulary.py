"""Readable forms of a tokenizer's entries, and which of them may appear in an explanation."""

from typing import Any, NamedTuple

import torch
from jaxtyping import Bool
from torch import Tensor

_SPACES = str.maketrans({"Ġ": " ", "▁": " ", "Ċ": "\n"})
"""How byte-level and sentencepiece vocabularies spell a leading space and a newline."""


class Vocabulary(NamedTuple):
    """What each token id looks like to a reader."""

    text: list[str]
    """Text by token id, a leading space kept; an id the tokenizer does not know is empty."""

    is_word: Bool[Tensor, " vocab"]
    """Whether the id may be a keyword: not special, not blank, not a fragment of a character."""

    @property
    def size(self) -> int:
        return len(self.text)

    def merged(self, token: int) -> str:
        """The form under which variants of one word (case, leading space) are the same."""
        return self.text[token].strip().lower()


def read_vocabulary(tokenizer: Any, size: int, special_ids: frozenset[int]) -> Vocabulary:
    """The vocabulary of a Hugging Face ``tokenizer`` for a model with ``size`` embeddings.

    Models often have more embeddings than their tokenizer has tokens; the surplus has no text.
    """
    known = min(size, len(tokenizer))
    pieces = tokenizer.convert_ids_to_tokens(list(range(known)))
    never = special_ids | set(tokenizer.all_special_ids)
    decoded = tokenizer.batch_decode([[i] for i in range(known)], skip_special_tokens=False)
    text = [
        _with_leading_space(piece or "", plain)
        for piece, plain in zip(pieces, decoded, strict=True)
    ] + [""] * (size - known)
    is_word = [
        i not in never and bool(shown.strip()) and "\ufffd" not in shown
        for i, shown in enumerate(text)
    ]
    return Vocabulary(text, torch.tensor(is_word, dtype=torch.bool))


def _with_leading_space(piece: str, decoded: str) -> str:
    """``decoded``, with the leading space that some decoders drop from a lone token."""
    starts_word = piece.translate(_SPACES).startswith(" ")
    return " " + decoded if starts_word and not decoded.startswith(" ") else decoded
