"""Dense retrieval: contexts whose mean hidden state points where those of the seeds do.

    v(c)        = mean over the text's tokens of the hidden state - m
    score(c)    = mean over seeds s of cos(v(s), v(c))

m is the mean over a sample of the contexts: without it all hidden states of a language model lie in
a narrow cone, and every cosine is near 1. The published recipe embeds with Contriever, whose
embedding is a mean of hidden states, too (of the last layer); any encoder in a local directory can
be given. Without one the model under study embeds, at its middle layer.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn import functional

from sae_lib.activations._packing import NO_DOCUMENT
from sae_lib.activations.tokens import TokenSplit
from sae_lib.models.language_model import LanguageModel
from sae_lib.training.retrieval.base import texts_of

CENTRE_CONTEXTS = 4096
"""Contexts, evenly spaced, whose mean is the centre."""

BATCH_CONTEXTS = 32
"""Texts per forward pass."""


def embedding_site(model: LanguageModel, *, is_encoder: bool) -> str:
    """The last layer of an encoder that is made for this, the middle one of a model under study."""
    layer = model.num_layers - 1 if is_encoder else model.num_layers // 2
    return f"resid_post.{layer}"


def dense_scores(
    split: TokenSplit, model: LanguageModel, seeds: Sequence[str], *,
    encoder: LanguageModel | None = None,
) -> Float64[np.ndarray, " contexts"]:  # fmt: skip
    """The score of each context of ``split``, which ``model``'s tokenizer made.

    ``encoder``, if any, reads the contexts' texts; otherwise ``model`` reads their tokens. Memory
    does not grow with the number of contexts, which are read twice at most.
    """
    step = max(1, -(-split.num_contexts // CENTRE_CONTEXTS))
    sample = np.arange(0, split.num_contexts, step)
    total, count = 0.0, 0
    for embedded in _contexts(split, model, encoder, sample):
        total, count = total + embedded.double().sum(0), count + len(embedded)
    centre = total / count
    aim = torch.zeros_like(torch.as_tensor(centre))
    for embedded in _texts(encoder or model, seeds, is_encoder=encoder is not None):
        aim += functional.normalize(embedded.double() - centre, dim=-1).sum(0)
    aim /= len(seeds)
    scores = [
        functional.normalize(embedded.double() - centre, dim=-1) @ aim
        for embedded in _contexts(split, model, encoder, np.arange(split.num_contexts))
    ]
    return torch.cat(scores).cpu().numpy()


def pooled(
    x: Float[Tensor, "batch seq d"], keep: Bool[Tensor, "batch seq"]
) -> Float[Tensor, "batch d"]:
    """The mean over the kept tokens of each row, in float32; 0 where none is kept."""
    weights = keep.to(x.device).float()
    total = torch.einsum("bsd,bs->bd", x.float(), weights)
    return total / weights.sum(1, keepdim=True).clamp(min=1)


def _contexts(
    split: TokenSplit, model: LanguageModel, encoder: LanguageModel | None, chosen: np.ndarray
) -> Iterator[Float[Tensor, "batch d"]]:
    if encoder is not None:
        batch: list[str] = []
        for text in texts_of(split, model.tokenizer, chosen):
            batch.append(text)
            if len(batch) == BATCH_CONTEXTS:
                yield from _texts(encoder, batch, is_encoder=True)
                batch = []
        if batch:
            yield from _texts(encoder, batch, is_encoder=True)
        return
    site = embedding_site(model, is_encoder=False)
    for start in range(0, len(chosen), BATCH_CONTEXTS):
        rows = split.rows(chosen[start : start + BATCH_CONTEXTS])
        mask = None if split.pack == "concat" else rows.document != NO_DOCUMENT
        yield pooled(model.capture(rows.tokens, [site], mask=mask)[site], rows.keep)


def _texts(
    model: LanguageModel, texts: Sequence[str], *, is_encoder: bool
) -> Iterator[Float[Tensor, "batch d"]]:
    site = embedding_site(model, is_encoder=is_encoder)
    special = torch.tensor(sorted(model.special_ids))
    for start in range(0, len(texts), BATCH_CONTEXTS):
        tokens, mask = model.encode_text(
            list(texts[start : start + BATCH_CONTEXTS]),
            max_tokens=model.info.max_context,
            padding_side="right",
        )
        keep = mask & ~torch.isin(tokens, special)
        yield pooled(model.capture(tokens, [site], mask=mask)[site], keep)
