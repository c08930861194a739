"""Which latents fire on which tokens: the few codes that are on, without the zeros between them.

Any coder: ``encode``, and then the places above 0. A TopK coder on the CPU is read faster, since
its dense codes need not exist. The largest latent of each of a row's chunks of columns says what
the k-th largest is at least, so that only what reaches this bound is looked at. Where the
processor multiplies bfloat16 faster, that is done with rounded numbers, and the few that come
within the error of the bound are computed again in float32. With unit roundoff u = 2^-8 / 2,

    |rounded - exact| <= 2 u |x| max_j |W_j| + u (max |b| + |rounded|)

by Cauchy's inequality, so none of the k largest can be missed.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae_lib.saes._products import ragged_pattern, row_dots
from sae_lib.saes._select import Encoder, rounds
from sae_lib.saes.base import SparseCoder
from sae_lib.saes.topk import TopK

_CHUNK = 8
"""Columns whose maximum is taken first."""

_PIECE_ENTRIES = 2**20
"""Pre-activations that exist at a time where a TopK coder is read: about what caches hold."""

_ROUNDOFF = 2**-8 * 0.51
"""Half a unit in the last place of bfloat16, and a little for sums in float32."""


class Hits(NamedTuple):
    """Codes that are on, by token and then by latent."""

    token: Int64[Tensor, " hits"]
    """Which row of the activations."""

    latent: Int64[Tensor, " hits"]
    value: Float[Tensor, " hits"]
    """float32, above 0."""


@torch.no_grad()
def hits_of(coder: SparseCoder[Any], x: Float[Tensor, "tokens d_in"]) -> Hits:
    """The codes of ``x`` that are on, on the CPU."""
    x = x.to(coder.W_dec.device, torch.float32)
    return _of_top_k(coder, x) if _is_quick(coder) else hits_in(coder.encode(x))


def entries_per_token(coder: SparseCoder[Any]) -> int:
    """Codes that are laid out per token while they are read."""
    return _CHUNK * coder.cfg.k if _is_quick(coder) else coder.d_sae


def _is_quick(coder: SparseCoder[Any]) -> bool:
    return (
        isinstance(coder, TopK)
        and coder.W_dec.device.type == "cpu"
        and coder.d_sae >= _CHUNK * coder.cfg.k
    )


@torch.no_grad()
def hits_in(z: Float[Tensor, "tokens d_sae"]) -> Hits:
    """The entries of dense codes that are not 0; what is not a number is among them."""
    if z.device.type != "cpu":
        token, latent = (z.isnan() | (z > 0)).nonzero(as_tuple=True)
        return Hits(token.cpu(), latent.cpu(), z[token, latent].float().cpu())
    z = z.contiguous()
    flat = torch.from_numpy(np.flatnonzero((~(z <= 0)).numpy()))
    token = flat // z.shape[1]
    return Hits(token, flat - token * z.shape[1], z.view(-1)[flat].float())


def _of_top_k(coder: TopK, x: Float[Tensor, "tokens d_in"]) -> Hits:
    k, shape = coder.cfg.k, (len(x), coder.d_sae)
    centred, W, b = x - coder.b_dec, coder.W_enc, coder.b_enc
    is_rounded = rounds(centred, Encoder(W, b))
    error = torch.zeros(len(x))
    if is_rounded:
        error = 2 * _ROUNDOFF * centred.norm(dim=1) * W.norm(dim=1).max()
        error += _ROUNDOFF * b.abs().max()
    few = (centred.bfloat16(), W.bfloat16(), b.bfloat16()) if is_rounded else (centred, W, b)
    rows = min(len(x), max(64, _PIECE_ENTRIES // coder.d_sae))
    # room that is used again: asking the system for it takes as long as the product
    room = [torch.empty(rows, coder.d_sae, dtype=t) for t in (few[0].dtype, x.dtype, torch.bool)]
    tokens, latents, values = [], [], []
    for first in range(0, len(x), max(1, rows)):
        own = slice(first, first + rows)
        product, pre, passes = (part[: len(x) - first] for part in room)
        torch.addmm(few[2], few[0][own], few[1].T, out=product)
        pre = pre.copy_(product) if is_rounded else product
        if not bool(torch.isfinite(pre.sum())):
            return hits_in(coder.encode(x))  # where it is found out what is wrong
        bound = _bound(pre, k)
        error[own] += (_ROUNDOFF * bound.abs()) if is_rounded else 0.0
        bound = torch.maximum(bound - 2 * error[own], -error[own])
        np.greater_equal(pre.numpy(), bound[:, None].numpy(), out=passes.numpy())
        flat = _places(passes)
        token = flat // coder.d_sae
        tokens.append(token + first)
        latents.append(flat - token * coder.d_sae)
        values.append(pre.view(-1)[flat])
    if not tokens:
        return hits_in(x.new_zeros(shape))
    token, latent, value = torch.cat(tokens), torch.cat(latents), torch.cat(values)
    if is_rounded:
        value = row_dots(ragged_pattern(token, latent, shape), centred, W) + b[latent]
    return _trimmed(Hits(token, latent, value), len(x), k)


def _bound(pre: Float[Tensor, "rows d_sae"], k: int) -> Float[Tensor, " rows"]:
    """The k-th largest chunk maximum of each row, at most the k-th largest entry."""
    num_chunks = pre.shape[1] // _CHUNK
    # a chunk is every num_chunks-th column, so that maxima run along memory
    maxima = pre[:, : _CHUNK * num_chunks].unflatten(1, (_CHUNK, num_chunks)).amax(1)
    at = num_chunks - k
    return torch.from_numpy(np.partition(maxima.numpy(), at, axis=1)[:, at].copy())


def _places(passes: Bool[Tensor, "rows d_sae"]) -> Int64[Tensor, " places"]:
    """Where few flags are set, as places in the flat matrix; eight flags are looked at at once."""
    flags = passes.numpy().reshape(-1)
    if len(flags) % 8:
        return torch.from_numpy(np.flatnonzero(flags))
    eights = flags.view(np.uint64)
    which = np.flatnonzero(eights != 0)
    inside = np.flatnonzero(eights[which].view(np.bool_))
    return torch.from_numpy(which[inside >> 3] * 8 + (inside & 7))


def _trimmed(hits: Hits, num_rows: int, k: int) -> Hits:
    """The ``k`` largest hits of each token that are above 0; of equal ones the first."""
    token, latent, value = hits.token.numpy(), hits.latent.numpy(), hits.value.numpy()
    counts = np.bincount(token, minlength=num_rows)
    if len(token) and (width := int(counts.max())) > k:
        start = np.cumsum(counts) - counts
        padded = np.full((num_rows, width), -np.inf, dtype=np.float32)
        padded.reshape(-1)[np.arange(len(token)) + (np.arange(num_rows) * width - start)[token]] = (
            value
        )
        cut = np.partition(padded, width - k, axis=1)[:, width - k]
        margin = value - cut[token]
        kept = margin >= 0
        token, latent, value, margin = token[kept], latent[kept], value[kept], margin[kept]
        counts = np.bincount(token, minlength=num_rows)
        if (counts > k).any():
            equal = margin == 0
            order = np.cumsum(equal)
            last = np.zeros(num_rows, dtype=np.int64)
            np.maximum.at(last, token, order)
            kept = ~equal | (order <= (last - np.maximum(counts - k, 0))[token])
            token, latent, value = token[kept], latent[kept], value[kept]
    on = value > 0
    if not on.all():
        token, latent, value = token[on], latent[on], value[on]
    return Hits(torch.from_numpy(token), torch.from_numpy(latent), torch.from_numpy(value))
