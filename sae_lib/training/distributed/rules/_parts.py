"""What the rules have in common: choosing latents across processes, and AuxK.

A choice is made in two rounds: each process names the best of its rows or latents, as many as
could be chosen at most; from everybody's values all draw the same conclusion. So exactly as many
are kept as by one process, and which of several equal ones is arbitrary but agreed.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from sae_lib.saes._codes import Code, is_sparse_faster, sparse_code, top_k_code
from sae_lib.saes._ops import keep_top_k, latents_of
from sae_lib.saes._products import Pattern, ragged_pattern
from sae_lib.saes._select import Choice, Encoder, largest_of_batch, largest_of_rows
from sae_lib.training.distributed.collectives import all_parts, all_sum_
from sae_lib.training.distributed.split import Split

Parameters = tuple[Tensor, Tensor, Tensor]
"""W_enc and b_enc of this process's latents, and b_dec."""

NEVER = -1.0
"""Below every rectified value: fills up for a process that has fewer candidates."""


@dataclass(frozen=True, eq=False)
class SplitCode(Code):
    """This process's share of a code; what fired, and how much, is told of the whole."""

    split: Split | None = None

    def fired(self) -> Bool[Tensor, " d_sae"]:
        assert self.split is not None
        return self.split.fired(super().fired())

    def num_on(self) -> Tensor:
        return all_sum_(super().num_on())


def share_of(code: Code, split: Split) -> SplitCode:
    """``code`` as the share of the code of the whole batch and SAE."""
    return SplitCode(code.dense, code.values, code.pattern, split)


def parameters(coder: Any, split: Split) -> Parameters:
    """The encoder's, for use with this process's latents."""
    return coder.W_enc, coder.b_enc, split.common(coder.b_dec)


def top_k(x: Float[Tensor, "rows d_in"], encoder: Parameters, k: int, split: Split) -> Code:
    """This process's share of the ``k`` largest latents of each token."""
    if not split.is_of_latents:
        return top_k_code(x, *encoder, k)
    return sparse_code(x, *encoder, lambda x, encoder: _largest_across(x, encoder, k, split))


def _largest_across(x: Tensor, encoder: Encoder, k: int, split: Split) -> Choice:
    """Of the ``k`` largest latents of each row, over all processes, those of this one."""
    mine = min(k, len(encoder.W))
    columns = torch.empty(len(x), 0, dtype=torch.int64, device=x.device)
    values = x.new_empty(len(x), 0)
    if mine:
        found = largest_of_rows(x, encoder, mine)
        columns, values = found.pattern.latents.view(-1, mine), found.values.view(-1, mine)
    everybody = torch.cat(all_parts(functional.pad(values, (0, k - mine), value=NEVER)), 1)
    best = everybody.topk(k, dim=1).indices
    is_kept = torch.zeros_like(everybody, dtype=torch.bool).scatter_(1, best, True)
    rows, places = is_kept[:, split.rank * k : split.rank * k + mine].nonzero(as_tuple=True)
    pattern = ragged_pattern(rows, columns[rows, places], (len(x), len(encoder.W)))
    return Choice(pattern, values[rows, places])


def top_of_batch(
    x: Float[Tensor, "rows d_in"], encoder: Parameters, num: int, split: Split
) -> tuple[Code, Float[Tensor, " num"]]:
    """This process's share of the ``num`` largest latents of the batch; all of their values.

    Where fewer are positive, zeros fill up the values.
    """
    kept: list[Tensor] = []

    def select(x: Tensor, encoder: Encoder) -> Choice:
        found = largest_of_batch(x, encoder, num)
        tokens, latents = found.pattern.tokens, found.pattern.latents
        padded = functional.pad(found.values, (0, num - len(found.values)))
        everybody = torch.cat(all_parts(padded))
        best = everybody.topk(num)
        kept.append(best.values)
        is_kept = torch.zeros_like(everybody, dtype=torch.bool)
        is_kept[best.indices] = True
        here = slice(split.rank * num, split.rank * num + len(found.values))
        chosen = (is_kept[here] & (found.values > 0)).nonzero().squeeze(1)
        pattern = ragged_pattern(tokens[chosen], latents[chosen], found.pattern.shape)
        return Choice(pattern, found.values[chosen])

    return sparse_code(x, *encoder, select), kept[0]


def aux(
    error: Float[Tensor, "rows d_in"],
    x: Float[Tensor, "rows d_in"],
    dead: Bool[Tensor, " d_sae"],
    encoder: Parameters,
    W_dec: Float[Tensor, "latents d_in"],
    k: int,
    split: Split,
) -> Float[Tensor, ""]:
    """`aux_k` of the whole batch, from the rows or latents of this process; ``dead`` are all's."""
    num_dead = int(dead.sum())
    k = min(k, num_dead)
    if k == 0:
        return error.new_zeros(())
    rows = split.latents(dead).nonzero().squeeze(1)
    if not split.is_of_latents and not is_sparse_faster(x, k / num_dead):
        W_enc, b_enc, b_dec = encoder
        pre = latents_of(x, W_enc.index_select(0, rows), b_enc.index_select(0, rows), b_dec)
        error_hat = keep_top_k(pre, k) @ W_dec.index_select(0, rows)
    else:
        code = sparse_code(x, *encoder, _among(rows, k, split))
        error_hat = split.over_latents(code.times(W_dec))
    return explained_share(error.detach(), error_hat, split)


def _among(rows: Tensor, k: int, split: Split) -> Callable[[Tensor, Encoder], Choice]:
    """Chooses the ``k`` largest among the latents ``rows`` of each process."""

    def select(x: Tensor, encoder: Encoder) -> Choice:
        few = Encoder(encoder.W.index_select(0, rows), encoder.b.index_select(0, rows))
        across = split.is_of_latents
        found = _largest_across(x, few, k, split) if across else largest_of_rows(x, few, k)
        kept = found.pattern
        shape = (len(x), len(encoder.W))
        return Choice(Pattern(shape, kept.starts, kept.tokens, rows[kept.latents]), found.values)

    return select


def explained_share(error: Tensor, error_hat: Tensor, split: Split) -> Float[Tensor, ""]:
    """`_ops.explained_share` of the whole batch, from the rows of this process."""
    total = num_tokens(error, split)
    mean = split.over_rows(error.sum(0)) / total
    spread = split.over_rows((error - mean).square().sum()) / total
    size = split.over_rows(error.square().sum()) / total
    # a constant residual has a spread of rounding errors, which must not be divided by
    floor = 1e-10 * size + torch.finfo(error.dtype).tiny
    weight = torch.where(spread > floor, 1 / spread.clamp_min(floor), 0.0)
    return weight * squared_error(error - error_hat, split)


def squared_error(error: Float[Tensor, "rows width"], split: Split) -> Float[Tensor, ""]:
    """Squared error of the whole batch: sum over the width, mean over all tokens."""
    return split.over_rows(error.square().sum()) / num_tokens(error, split)


def num_tokens(rows: Tensor, split: Split) -> int:
    """Tokens of the whole batch."""
    return len(rows) if split.is_of_latents else len(rows) * split.count
