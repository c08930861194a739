"""Token ids with a meaning of their own, and text as padded rows of tokens."""

from typing import Any, Literal

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lib.errors import BadInput


def special_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Begin, end, padding, class, separator and mask tokens, of those that there are."""
    names = [f"{name}_token_id" for name in ("bos", "eos", "pad", "cls", "sep", "mask")]
    places = (tokenizer, model.config)
    return _ids(*(getattr(place, name, None) for place in places for name in names))


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """Tokens after which a text is over."""
    places = (getattr(model, "generation_config", None), model.config, tokenizer)
    return _ids(*(getattr(place, "eos_token_id", None) for place in places))


def pad_id(tokenizer: Any) -> int:
    """The padding token; where there is none, the end, or 0: masks tell it from text."""
    for known in (tokenizer.pad_token_id, tokenizer.eos_token_id):
        if known is not None:
            return int(known)
    return 0


def padded_rows(
    tokenizer: Any, texts: list[str], max_tokens: int, padding_side: Literal["left", "right"]
) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
    """Tokens and mask, cut to ``max_tokens`` and padded to the longest.

    Raises:
        BadInput: there are no texts, or one of them has no token.
    """
    if not texts or max_tokens < 1:
        raise BadInput("There is no text, or no room for a token.", value=max_tokens)
    rows = tokenizer(texts, truncation=True, max_length=max_tokens)["input_ids"]
    empty = next((i for i, row in enumerate(rows) if not row), None)
    if empty is not None:
        raise BadInput(f"Text {empty} has no token.", value=texts[empty])
    longest = max(map(len, rows))
    tokens = torch.full((len(rows), longest), pad_id(tokenizer))
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        here = slice(0, len(row)) if padding_side == "right" else slice(-len(row), None)
        tokens[i, here] = torch.tensor(row)
        mask[i, here] = True
    return tokens, mask


def _ids(*given: int | list[int] | None) -> frozenset[int]:
    """Configs hold one id, several, or none."""
    return frozenset(
        token
        for some in given
        if some is not None
        for token in ([some] if isinstance(some, int) else some)
        if token >= 0
    )
