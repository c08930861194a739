"""The leading words of scores over a vocabulary."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.explain.vocabulary import Vocabulary

_VARIANTS = 4
"""Tokens looked at per wanted word, since variants of one word are merged."""


def leading_words(
    scores: Float[Tensor, "latents vocab"],
    vocabulary: Vocabulary,
    num_words: int,
    *,
    above: float = 0.0,
) -> list[list[tuple[str, float]]]:
    """Per latent the words of the largest scores, largest first, variants listed once.

    Only scores larger than ``above`` count. Ties go to the smaller token id, but for ties at the
    very end.
    """
    scores = scores.masked_fill(~vocabulary.is_word.to(scores.device), -torch.inf)
    num = min(num_words * _VARIANTS, scores.shape[1])
    top = scores.topk(num, dim=1)
    ids, by_id = top.indices.sort(dim=1)
    values, by_value = top.values.gather(1, by_id).sort(dim=1, descending=True, stable=True)
    found = []
    for own, tokens in zip(values.tolist(), ids.gather(1, by_value).tolist(), strict=True):
        words: dict[str, tuple[str, float]] = {}
        for value, token in zip(own, tokens, strict=True):
            if value > above and len(words) < num_words:
                words.setdefault(vocabulary.merged(token), (vocabulary.text[token].strip(), value))
        found.append(list(words.values()))
    return found


def quoted(words: list[str], num: int) -> str:
    """The first ``num`` words in quotation marks, separated by commas."""
    return ", ".join(f'"{word}"' for word in words[:num])
