"""TracIn: contexts whose gradient of the SAE's loss points where that of the seeds does.

    ell(c)   = mean over the tokens of c of |e|^2,   e = x - x_hat
    g(c)     = grad of ell(c) by W_dec and b_dec, the latents held fixed
             = -2 mean(z e'),  -2 mean(e)
    score(c) = sum over checkpoints of lr mean over seeds s of <g(s), g(c)>

The gradients of the decoder alone have d_sae d_in numbers per context; they are never made. With
S = mean over the seeds of g(s), one matrix, the product is a mean over tokens:

    <S, g(c)> = -2 mean over the tokens of c of  (z S_W + S_b) . e

Differs from the source (Pruthi et al. 2020), which has every parameter: encoder, and b_dec where it
is subtracted before the encoder, are left out, and so are penalties of latents, which say nothing
about the decoder. A coder for raw activations gives the same order as one for scaled ones.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sae_lib.activations.harvest import CapturesSites, capture_rows
from sae_lib.activations.store import ActivationStore
from sae_lib.activations.tokens import TokenSplit
from sae_lib.errors import BadInput
from sae_lib.models.language_model import LanguageModel
from sae_lib.saes.base import SparseCoder

CHUNK_CONTEXTS = 16
"""Contexts whose latents are in memory at a time; of 128 tokens, with 16,384 latents: 134 MB."""


class TokensOf(NamedTuple):
    """Activations of some texts."""

    x: Float[Tensor, "rows d_in"]
    """Raw activations of their tokens."""

    owner: Int64[Tensor, " rows"]
    """Which of the texts each row belongs to, from 0."""

    num_texts: int
    """Texts, also those without a row."""


class Checkpoint(NamedTuple):
    """An SAE at a moment of its training."""

    coder: SparseCoder[Any]
    """For raw activations."""

    lr: float = 1.0
    """The learning rate at that moment."""


Read = Callable[[np.ndarray], TokensOf]


def stored(store: ActivationStore, site: str) -> Read:
    """Reads contexts from a store."""

    def read(contexts: np.ndarray) -> TokensOf:
        found = store.contexts(site, contexts)
        kept = torch.from_numpy(store.kept_per_context[contexts])
        owner = torch.repeat_interleave(torch.arange(len(contexts)), kept)
        return TokensOf(found.x.float(), owner, len(contexts))

    return read


def streamed(model: CapturesSites, split: TokenSplit, site: str) -> Read:
    """Reads contexts by running the model."""

    def read(contexts: np.ndarray) -> TokensOf:
        found, rows = capture_rows(model, split, [site], contexts)
        numbers = rows // split.context
        owner = torch.searchsorted(torch.from_numpy(np.asarray(contexts)), numbers)
        return TokensOf(found[site].float(), owner, len(contexts))

    return read


def read_texts(model: LanguageModel, site: str, texts: Sequence[str]) -> Iterator[TokensOf]:
    """Activations of ``texts``, some at a time, each cut to what the model can take."""
    special = torch.tensor(sorted(model.special_ids))
    for start in range(0, len(texts), CHUNK_CONTEXTS):
        batch = list(texts[start : start + CHUNK_CONTEXTS])
        tokens, mask = model.encode_text(
            batch, max_tokens=model.info.max_context, padding_side="right"
        )
        x = model.capture(tokens, [site], mask=mask)[site]
        keep = mask & ~torch.isin(tokens, special)
        owner = keep.nonzero()[:, 0]
        yield TokensOf(x[keep.to(x.device)].float(), owner, len(batch))


@torch.no_grad()
def tracin_scores(
    checkpoints: Sequence[Checkpoint],
    seeds: Sequence[TokensOf],
    read: Read,
    contexts: np.ndarray,
) -> Float64[np.ndarray, " contexts"]:
    """The score of each of ``contexts``, which ascend.

    Memory holds one matrix of the decoder's shape and the latents of `CHUNK_CONTEXTS` contexts.

    Raises:
        BadInput: there is no seed, no seed has a token, or there is no checkpoint.
    """
    if not checkpoints or not any(len(some.x) for some in seeds):
        raise BadInput("gradients need at least one seed with a token, and one SAE.")
    scores = np.zeros(len(contexts))
    for coder, lr in checkpoints:
        aim_W, aim_b = mean_gradient(coder, seeds)
        for start in range(0, len(contexts), CHUNK_CONTEXTS):
            here = slice(start, start + CHUNK_CONTEXTS)
            some = read(np.asarray(contexts[here]))
            scores[here] += lr * products(coder, some, aim_W, aim_b)
    return scores


def mean_gradient(
    coder: SparseCoder[Any], seeds: Sequence[TokensOf]
) -> tuple[Float[Tensor, "d_sae d_out"], Float[Tensor, " d_out"]]:
    """Mean over the seeds of the gradient of each by W_dec and by b_dec."""
    sum_W, sum_b, count = torch.zeros_like(coder.W_dec), torch.zeros_like(coder.b_dec), 0
    for some in seeds:
        z, error, weight = _parts(coder, some)
        weighted = -2 * weight.unsqueeze(1) * error
        sum_W += z.T @ weighted
        sum_b += weighted.sum(0)
        count += some.num_texts
    return sum_W / count, sum_b / count


def products(
    coder: SparseCoder[Any], some: TokensOf, aim_W: Tensor, aim_b: Tensor
) -> Float64[np.ndarray, " texts"]:
    """<(aim_W, aim_b), gradient of each text>, without the gradients."""
    z, error, weight = _parts(coder, some)
    per_row = -2 * weight * ((z @ aim_W + aim_b) * error).sum(-1)
    total = torch.zeros(some.num_texts, dtype=torch.float64)
    return total.index_add_(0, some.owner.cpu(), per_row.double().cpu()).numpy()


def _parts(coder: SparseCoder[Any], some: TokensOf) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, errors, and for each row one over the rows of its text."""
    x = some.x.to(coder.W_dec)
    z = coder.encode(x)
    error = x - coder.decode(z)
    sizes = torch.bincount(some.owner, minlength=some.num_texts)
    return z, error, sizes.to(x)[some.owner.to(x.device)].reciprocal()
