"""Which latents a token or a batch keeps, found without looking at all of them twice.

Two ideas, both exact. *Chunk maxima*: the k largest of a row lie in the k chunks with the largest
maxima, and maxima cost one fast pass; what is left to sort is small. *Pieces*: pre-activations are
made a few hundred tokens at a time and forgotten, so a batch x d_sae matrix never exists.

Where the processor multiplies bfloat16 faster (AMX, AVX512-BF16), pre-activations are made in
bfloat16 and only say which latents are candidates; a quarter more than will be kept are computed
again in float32, and the choice is made by those. The difference between the two values of a
candidate shows how far rounding goes: where a latent that was no candidate might have come within
that distance of the cut, the choice is made again, in float32 or among more candidates.
"""

import math
from collections.abc import Callable, Iterator
from functools import cache
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from sae_lib.saes import _kernels
from sae_lib.saes._products import Pattern, ragged_pattern, row_dots, uniform_pattern

PIECE_ENTRIES = 1 << 22
"""Pre-activations that exist at a time: about what a second-level cache holds."""

GPU_PIECE_ENTRIES = 1 << 28
"""The same on a GPU, whose caches hold no piece: enough that each reads the encoder for much."""

MIN_PIECE_ROWS = 256
"""Fewer tokens at a time would read the encoder too often."""

MIN_BF16_PRODUCTS = 1 << 24
"""Multiplications below which rounding the encoder costs what it saves."""

SAMPLED_SHARE = 16
"""One of so many tokens tells where a batch's cut will be."""


class Choice(NamedTuple):
    """Entries that are kept, with their values after rectification."""

    pattern: Pattern
    values: Float[Tensor, " kept"]


class Encoder(NamedTuple):
    """Pre-activations of centred activations are ``x W' + b``."""

    W: Float[Tensor, "d_sae d_in"]
    b: Float[Tensor, " d_sae"]


@torch.no_grad()
def largest_of_rows(x: Float[Tensor, "batch d_in"], encoder: Encoder, k: int) -> Choice:
    """The ``k`` largest entries of each row of relu(x W' + b).

    Which of several equal ones is arbitrary; rows with fewer positive ones are filled with zeros.
    """
    d_sae = len(encoder.W)
    if not rounds(x, encoder):
        found = [largest_columns(pre, k) for _, pre in _pieces(x, encoder)]
        columns = torch.cat([columns for columns, _ in found])
        values = torch.cat([values for _, values in found]).relu_()
        return Choice(uniform_pattern(columns, d_sae), values.reshape(-1))
    many = min(num_candidates(k), d_sae)
    found = [largest_columns(pre, many) for _, pre in _pieces(*_rounded(x, encoder))]
    columns = torch.cat([columns for columns, _ in found])
    rounded = torch.cat([values for _, values in found]).float()
    exact = row_dots(uniform_pattern(columns, d_sae), x, encoder.W).view(-1, many)
    exact += encoder.b[columns]
    values, places = exact.topk(k, dim=-1, sorted=False)
    columns = columns.gather(1, places)
    if many < d_sae:
        error = (exact - rounded).abs().amax(1)
        unsure = (rounded.amin(1) + error > values.amin(1).clamp_min(0)).nonzero().squeeze(1)
        if len(unsure):
            found = [largest_columns(pre, k) for _, pre in _pieces(x[unsure], encoder)]
            columns[unsure] = torch.cat([columns for columns, _ in found])
            values[unsure] = torch.cat([values for _, values in found])
    return Choice(uniform_pattern(columns, d_sae), values.relu_().reshape(-1))


def num_candidates(k: int) -> int:
    """Candidates in bfloat16 for ``k`` latents."""
    return k + k // 4 + 4


@torch.no_grad()
def largest_of_batch(x: Float[Tensor, "batch d_in"], encoder: Encoder, num: int) -> Choice:
    """The ``num`` largest entries of relu(x W' + b), or all positive ones if they are fewer.

    Entries are listed by token and latent. Which of several equal ones is arbitrary.
    """
    shape = (len(x), len(encoder.W))
    if not rounds(x, encoder):
        entries = _at_least(x, encoder, num)
        return _largest(*entries[:3], num, shape)
    low, wanted = _rounded(x, encoder), num + num // 4
    while True:
        tokens, latents, rounded, cut = _at_least(*low, wanted)
        exact = row_dots(ragged_pattern(tokens, latents, shape), x, encoder.W)
        exact += encoder.b[latents]
        choice = _largest(tokens, latents, exact, num, shape)
        if cut == 0 or cut + float((exact - rounded).abs().max()) <= float(choice.values.min()):
            return choice
        wanted *= 2


def _largest(
    tokens: Tensor, latents: Tensor, values: Tensor, num: int, shape: tuple[int, int]
) -> Choice:
    """The ``num`` largest of the given entries, in the order given."""
    if len(values) > num:
        chosen = values.topk(num, sorted=False).indices.sort().values
        tokens, latents, values = tokens[chosen], latents[chosen], values[chosen]
    return Choice(ragged_pattern(tokens, latents, shape), values.relu())


def rounds(x: Tensor, encoder: Encoder) -> bool:
    """Whether candidates are found in bfloat16."""
    products = len(x) * encoder.W.numel()
    return x.dtype == torch.float32 and products >= MIN_BF16_PRODUCTS and has_fast_bf16(x.device)


def has_fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are faster than float32 ones there."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _cpu_has_fast_bf16()


@cache
def _cpu_has_fast_bf16() -> bool:
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def largest_columns(
    pre: Float[Tensor, "rows columns"], k: int
) -> tuple[Int64[Tensor, "rows k"], Float[Tensor, "rows k"]]:
    """Columns and values of the ``k`` largest entries of each row, in no order."""
    if _kernels.can_run(pre):
        return _kernels.kernels().largest_columns(pre, k)
    num_columns = pre.shape[1]
    size = chunk_size(num_columns, k)
    if size == 1:
        values, columns = pre.topk(k, dim=-1, sorted=False)
        return columns, values
    # a chunk is every (columns / size)-th column, so that maxima run along memory
    num_chunks = num_columns // size
    chunks = pre[:, : size * num_chunks].unflatten(1, (size, num_chunks))
    best, _ = largest_columns(chunks.amax(1), k)
    columns = best.unsqueeze(1) + num_chunks * torch.arange(size, device=best.device).unsqueeze(1)
    columns = columns.flatten(1)
    if num_columns % size:
        rest = torch.arange(size * num_chunks, num_columns, device=best.device)
        columns = torch.cat([columns, rest.expand(len(pre), -1)], 1)
    places, values = largest_columns(pre.gather(1, columns), k)
    return columns.gather(1, places), values


def chunk_size(num_columns: int, k: int) -> int:
    """Columns per chunk: balances the maxima that are left with the candidates; 1 is none."""
    size = 1 << max(0, round(math.log2(max(1.0, math.sqrt(num_columns / k)))))
    return size if size >= 4 else 1


def _rounded(x: Tensor, encoder: Encoder) -> tuple[Tensor, Encoder]:
    return x.bfloat16(), Encoder(encoder.W.bfloat16(), encoder.b.bfloat16())


def _pieces(x: Tensor, encoder: Encoder) -> Iterator[tuple[int, Tensor]]:
    """Pre-activations of consecutive tokens, with the number of the first."""
    entries = GPU_PIECE_ENTRIES if x.is_cuda else PIECE_ENTRIES
    rows = max(MIN_PIECE_ROWS, entries // len(encoder.W))
    for first in range(0, len(x), rows):
        yield first, functional.linear(x[first : first + rows], encoder.W, encoder.b)


def _at_least(x: Tensor, encoder: Encoder, num: int) -> tuple[Tensor, Tensor, Tensor, float]:
    """At least the ``num`` largest positive entries: tokens, latents, values, and their cut.

    The cut is guessed from some tokens. A guess that was too high is lowered, at last to 0, so
    it decides how much work there is and never what is found.
    """
    sample = functional.linear(x[::SAMPLED_SHARE], encoder.W, encoder.b).view(-1)
    expected = num * len(x[::SAMPLED_SHARE]) / len(x)
    rank = math.ceil(expected + 6 * math.sqrt(expected) + 6)
    while True:
        cut = 0.0
        if rank < sample.numel():
            cut = max(0.0, float(smallest_of_largest(sample, rank)))
        found = [
            (first + rows, columns, values)
            for first, pre in _pieces(x, encoder)
            for rows, columns, values in [_above(pre, cut)]
        ]
        tokens, latents, values = (torch.cat(part) for part in zip(*found, strict=True))
        if cut == 0 or len(values) >= num:
            return tokens, latents, values, cut
        rank *= 2


def smallest_of_largest(flat: Float[Tensor, " entries"], num: int) -> Tensor:
    """The ``num``-th largest entry."""
    return flat.topk(num, sorted=False).values.min()


def _above(pre: Float[Tensor, "rows columns"], cut: float) -> tuple[Tensor, Tensor, Tensor]:
    """Rows, columns and values of the entries above ``cut`` (or at it, unless it is 0)."""
    passes: Callable[[Tensor], Tensor] = (lambda v: v >= cut) if cut else (lambda v: v > 0)
    num_columns = pre.shape[1]
    size = 16 if num_columns >= 256 else 1
    num_chunks = num_columns // size
    chunks = pre[:, : size * num_chunks].unflatten(1, (size, num_chunks))
    rows, chunk = passes(chunks.amax(1)).nonzero(as_tuple=True)
    inside = chunks[rows, :, chunk]
    entry, place = passes(inside).nonzero(as_tuple=True)
    rest_rows, rest_columns = passes(pre[:, size * num_chunks :]).nonzero(as_tuple=True)
    rows = torch.cat([rows[entry], rest_rows])
    columns = torch.cat([place * num_chunks + chunk[entry], rest_columns + size * num_chunks])
    flat = (rows * num_columns + columns).sort().values
    rows, columns = flat // num_columns, flat % num_columns
    return rows, columns, pre[rows, columns]
