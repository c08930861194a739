"""Products of a sparse code with dense matrices: what a step of the top-k family is made of.

A code is a `Pattern` (which latents each token keeps) and one value per kept entry. Nothing of
size batch x d_sae is made. Sums run over the entries of a row in a fixed order, so results are
the same for any number of threads. On CUDA the same four products are Triton kernels.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional

from sae_lib.saes import _kernels


class Rows(NamedTuple):
    """Kept entries listed latent by latent: the pattern of the transposed code."""

    order: Int64[Tensor, " kept"]
    """Numbers of the entries, latent by latent and within a latent by token."""

    starts: Int64[Tensor, " d_sae_plus_1"]
    """Where each latent begins in ``order``, and where the last one ends."""

    tokens: Int64[Tensor, " kept"]


@dataclass(frozen=True, eq=False)
class Pattern:
    """Which entries of a batch x d_sae matrix are kept, row by row."""

    shape: tuple[int, int]

    starts: Int64[Tensor, " batch_plus_1"]
    """Where each row begins in ``latents``, and where the last one ends."""

    tokens: Int64[Tensor, " kept"]
    latents: Int64[Tensor, " kept"]

    @cached_property
    def by_latent(self) -> Rows:
        """Sorted once for all gradients that need it."""
        order = torch.argsort(self.latents, stable=True)
        starts = torch.zeros(self.shape[1] + 1, dtype=torch.int64, device=order.device)
        torch.cumsum(torch.bincount(self.latents, minlength=self.shape[1]), 0, out=starts[1:])
        return Rows(order, starts, self.tokens[order])


def uniform_pattern(latents: Int64[Tensor, "batch k"], d_sae: int) -> Pattern:
    """The pattern of a code with the same number of entries in each row."""
    batch, k = latents.shape
    tokens = torch.arange(batch, device=latents.device).repeat_interleave(k)
    starts = torch.arange(0, batch * k + 1, k, device=latents.device)
    return Pattern((batch, d_sae), starts, tokens, latents.reshape(-1))


def ragged_pattern(
    tokens: Int64[Tensor, " kept"], latents: Int64[Tensor, " kept"], shape: tuple[int, int]
) -> Pattern:
    """The pattern of entries that are sorted by token."""
    starts = torch.zeros(shape[0] + 1, dtype=torch.int64, device=tokens.device)
    torch.cumsum(torch.bincount(tokens, minlength=shape[0]), 0, out=starts[1:])
    return Pattern(shape, starts, tokens, latents)


def times_rows(
    pattern: Pattern, values: Float[Tensor, " kept"], W: Float[Tensor, "d_sae width"]
) -> Float[Tensor, "batch width"]:
    """Code times matrix: for each token the sum of its latents' rows of ``W``."""
    return _sums_of_rows(W, pattern.latents, pattern.starts, values)


def transposed_times_rows(
    pattern: Pattern, values: Float[Tensor, " kept"], x: Float[Tensor, "batch width"]
) -> Float[Tensor, "d_sae width"]:
    """Transposed code times matrix: for each latent the sum of its tokens' rows of ``x``."""
    rows = pattern.by_latent
    return _sums_of_rows(x, rows.tokens, rows.starts, values[rows.order])


def row_dots(
    pattern: Pattern, x: Float[Tensor, "batch width"], W: Float[Tensor, "d_sae width"]
) -> Float[Tensor, " kept"]:
    """For each entry the scalar product of its token's row of ``x`` and its latent's of ``W``."""
    if _kernels.can_run(x):
        order = pattern.by_latent.order
        return _kernels.kernels().row_dots(x, W, pattern.tokens, pattern.latents, order)
    _kernels.quieten()
    nothing = torch.sparse_csr_tensor(
        pattern.starts,
        pattern.latents,
        x.new_zeros(len(pattern.latents)),
        pattern.shape,
        check_invariants=False,
    )
    return torch.sparse.sampled_addmm(nothing, x, W.mT, beta=0.0).values()


def sums_by_latent(pattern: Pattern, values: Float[Tensor, " kept"]) -> Float[Tensor, " d_sae"]:
    """For each latent the sum of its values."""
    rows = pattern.by_latent
    return torch.segment_reduce(values[rows.order], "sum", offsets=rows.starts, initial=0)


def _sums_of_rows(matrix: Tensor, rows: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    if _kernels.can_run(matrix):
        return _kernels.kernels().sums_of_rows(matrix, rows, starts, weights)
    return functional.embedding_bag(
        rows, matrix, starts, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
