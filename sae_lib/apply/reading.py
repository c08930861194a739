"""Texts become tokens, and activations per text: read once for all coders at a site.

A text is ``[BOS] tokens``, as in the packed corpus, whether or not the tokenizer would add the BOS
itself; encoders get their tokenizer's own special tokens. Special tokens and padding stay out of
every mean and maximum: the mask is explicit, since encode(0) need not be 0.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.errors import BadInput
from sae_lib.models.language_model import LanguageModel
from sae_lib.saes.base import SparseCoder

Encode: TypeAlias = Callable[[Tensor], Tensor]
"""From activations (tokens, d_in) to codes (tokens, d_sae)."""

Pool: TypeAlias = Literal["mean", "max"]

_CHUNK_CODES = 2**24
"""Codes (tokens x latents) held at a time: 64 MiB."""


def encoder(coder: SparseCoder[Any]) -> Encode:
    """The codes of ``coder``, wherever it is."""
    return lambda x: coder.encode(x.to(coder.W_dec.device, torch.float32))


class TextBatch(NamedTuple):
    """Texts as the model takes them."""

    tokens: Int[Tensor, "texts seq"]
    mask: Bool[Tensor, "texts seq"]
    """False on padding."""

    keep: Bool[Tensor, "texts seq"]
    """False on padding and on special tokens."""


class Pooled(NamedTuple):
    """Activations of texts, at one site."""

    x_sum: Float[Tensor, "texts d_in"]
    """Sum over the kept tokens, float64."""

    norm_sum: Float[Tensor, " texts"]
    """Sum of the tokens' lengths |x|, float64."""

    num_tokens: Int[Tensor, " texts"]
    """Kept tokens."""

    z: dict[str, Float[Tensor, "texts _"]]
    """Pooled codes by encoder."""

    l0: dict[str, float]
    """Mean number of codes above 0 per token, by encoder."""

    @property
    def x_mean(self) -> Float[Tensor, "texts d_in"]:
        return self.x_sum / self.num_tokens[:, None]


def encode_texts(
    model: LanguageModel,
    texts: Sequence[str],
    *,
    max_tokens: int,
    padding_side: Literal["left", "right"] = "right",
) -> TextBatch:
    """Tokens of ``texts``, padded; of long ones the first ``max_tokens``, or what the model takes.

    Raises `BadInput` for a text without tokens.
    """
    max_tokens = min(max_tokens, model.info.max_context)
    if not model.is_causal or model.tokenizer.bos_token_id is None:
        tokens, mask = model.encode_text(
            list(texts), max_tokens=max_tokens, padding_side=padding_side
        )
    else:
        tokens, mask = _with_bos(model, list(texts), max_tokens, padding_side)
    special = torch.tensor(sorted(model.special_ids), dtype=torch.long)
    keep = mask & ~torch.isin(tokens, special)
    if not bool(keep.any(1).all()):
        empty = int((~keep.any(1)).nonzero()[0])
        raise BadInput(f"text {empty} has no token that is not special.", value=texts[empty])
    return TextBatch(tokens, mask, keep)


def text_batches(
    model: LanguageModel, texts: Sequence[str], *, max_tokens: int, batch_texts: int
) -> Iterator[tuple[list[int], TextBatch]]:
    """All texts, those of like length together, each batch with the texts' places."""
    order = sorted(range(len(texts)), key=lambda i: (len(texts[i]), i))
    for low in range(0, len(order), batch_texts):
        chosen = order[low : low + batch_texts]
        yield chosen, encode_texts(model, [texts[i] for i in chosen], max_tokens=max_tokens)


@torch.no_grad()
def pool_texts(
    model: LanguageModel,
    site: str,
    texts: Sequence[str],
    encoders: Mapping[str, Encode],
    *,
    pool: Pool,
    max_tokens: int = 128,
    batch_texts: int = 64,
) -> Pooled:
    """One forward per batch of texts, shared by all ``encoders``; results on the CPU."""
    num = len(texts)
    x_sum: Tensor | None = None
    norm_sum = torch.zeros(num, dtype=torch.float64)
    num_tokens = torch.zeros(num, dtype=torch.long)
    z: dict[str, Tensor] = {}
    num_on = dict.fromkeys(encoders, 0)
    for chosen, batch in text_batches(model, texts, max_tokens=max_tokens, batch_texts=batch_texts):
        at = model.capture(batch.tokens, [site], mask=batch.mask)[site]
        x = at[batch.keep.to(at.device)].float()
        text = torch.tensor(chosen)[:, None].expand_as(batch.keep)[batch.keep]
        if x_sum is None:
            x_sum = torch.zeros(num, x.shape[1], dtype=torch.float64)
        x_sum.index_add_(0, text, x.double().cpu())
        norm_sum.index_add_(0, text, x.norm(dim=1).double().cpu())
        num_tokens[chosen] = batch.keep.sum(1)
        for name, encode in encoders.items():
            for where, codes in _codes(encode, x):
                if name not in z:
                    z[name] = torch.zeros(num, codes.shape[1])
                _pool_into(z[name], text[where], codes, pool)
                num_on[name] += int((codes > 0).sum())
    if x_sum is None:
        raise BadInput("there are no texts to read.")
    if pool == "mean":
        z = {name: codes / num_tokens[:, None] for name, codes in z.items()}
    total = int(num_tokens.sum())
    return Pooled(x_sum, norm_sum, num_tokens, z, {name: n / total for name, n in num_on.items()})


def _with_bos(
    model: LanguageModel, texts: list[str], max_tokens: int, padding_side: str
) -> tuple[Int[Tensor, "texts seq"], Bool[Tensor, "texts seq"]]:
    given = model.tokenizer(texts, add_special_tokens=False, return_attention_mask=False)
    bos, pad = model.tokenizer.bos_token_id, model.tokenizer.pad_token_id
    rows = [[bos, *ids[: max_tokens - 1]] for ids in given["input_ids"]]
    longest = max(map(len, rows))
    tokens = torch.full((len(rows), longest), bos if pad is None else pad)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        here = slice(longest - len(row), None) if padding_side == "left" else slice(len(row))
        tokens[i, here] = torch.tensor(row)
        mask[i, here] = True
    return tokens, mask


def _codes(encode: Encode, x: Float[Tensor, "tokens d_in"]) -> Iterator[tuple[slice, Tensor]]:
    """Codes of some tokens at a time; the first call shows how wide they are."""
    first = encode(x[:1])
    rows = max(1, _CHUNK_CODES // first.shape[1])
    for low in range(0, len(x), rows):
        where = slice(low, min(low + rows, len(x)))
        yield where, encode(x[where]).float().cpu()


def _pool_into(
    into: Float[Tensor, "texts d_sae"],
    text: Int[Tensor, " tokens"],
    codes: Float[Tensor, "tokens d_sae"],
    pool: Pool,
) -> None:
    if pool == "mean":
        into.index_add_(0, text, codes)
    else:
        into.scatter_reduce_(0, text[:, None].expand_as(codes), codes, "amax")
