"""Other tokens that might stand at a place of a text: predicted by the model, or like the token."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F

from sae_lib.explain._latent_reader import Tokens

_CHUNK_LOGITS = 2**25
"""Logits held at a time: 128 MiB."""


@torch.no_grad()
def predicted(
    model: Any, prefixes: Sequence[Tokens], num: int, is_word: Bool[Tensor, " vocab"]
) -> list[list[int]]:
    """Per text before a place the ``num`` likeliest words there, likeliest first.

    Nothing where there is no text before, not even a BOS.
    """
    bos = model.tokenizer.bos_token_id
    before = () if bos is None else (int(bos),)
    unique = sorted({before + text for text in prefixes} - {()}, key=lambda text: (len(text), text))
    likely: dict[Tokens, list[int]] = {(): []}
    low = 0
    while low < len(unique):
        length = len(unique[low])
        high = low + 1
        most = low + max(1, _CHUNK_LOGITS // (length * model.vocab_size))
        while high < min(most, len(unique)) and len(unique[high]) == length:
            high += 1
        tokens = torch.tensor(unique[low:high]).to(model.device)
        last = model.logits(tokens)[:, -1].float().cpu()
        top = last.masked_fill(~is_word, -torch.inf).topk(min(num, int(is_word.sum())), dim=1)
        likely |= dict(zip(unique[low:high], top.indices.tolist(), strict=True))
        low = high
    return [likely[before + text] for text in prefixes]


@torch.no_grad()
def neighbours(
    model: Any, tokens: Sequence[int], num: int, is_word: Bool[Tensor, " vocab"]
) -> dict[int, list[int]]:
    """Per token the ``num`` words whose input embeddings have the largest cosine with its own."""
    unique = sorted(set(tokens))
    embedding = F.normalize(model.model.get_input_embeddings().weight.detach().float().cpu(), dim=1)
    size = len(is_word)
    found: dict[int, list[int]] = {}
    for part in torch.tensor(unique, dtype=torch.int64).split(max(1, _CHUNK_LOGITS // size)):
        cosine = (embedding[part] @ embedding[:size].mT).masked_fill(~is_word, -torch.inf)
        cosine[torch.arange(len(part)), part] = -torch.inf
        top = cosine.topk(min(num, size), dim=1).indices
        found |= dict(zip(part.tolist(), top.tolist(), strict=True))
    return found
