"""The latents of a training step, dense or as the few entries that are on.

A dense step makes six products of batch x d_sae x d_in; only the encoder's needs them all, and
that only to choose. With few latents on, the reconstruction and every gradient are products with
a sparse matrix instead. The dense form stays, as the oracle of the tests and for whatever is not
sparse enough.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae_lib.saes._kernels import can_run
from sae_lib.saes._ops import aux_of, explained_share, keep_top_k, keep_top_of_batch, latents_of
from sae_lib.saes._products import (
    Pattern,
    row_dots,
    sums_by_latent,
    times_rows,
    transposed_times_rows,
    uniform_pattern,
)
from sae_lib.saes._select import Choice, Encoder, largest_of_batch, largest_of_rows

MAX_DENSITY = 1 / 16
"""Share of latents on above which dense products are about as fast."""


@dataclass(frozen=True, eq=False)
class Code:
    """Latents of one batch: dense, or ``values`` at the entries of ``pattern``.

    ``times`` and ``z`` carry gradients.
    """

    dense: Float[Tensor, "batch d_sae"] | None = None
    values: Float[Tensor, " kept"] | None = None
    pattern: Pattern | None = None

    @property
    def z(self) -> Float[Tensor, "batch d_sae"]:
        """All latents; made when it is asked for."""
        if self.dense is not None:
            return self.dense
        values, pattern = self.entries
        z = values.new_zeros(pattern.shape)
        return z.index_put((pattern.tokens, pattern.latents), values)

    @property
    def is_sparse(self) -> bool:
        return self.dense is None

    @property
    def entries(self) -> tuple[Float[Tensor, " kept"], Pattern]:
        """Of a sparse code."""
        assert self.values is not None
        assert self.pattern is not None
        return self.values, self.pattern

    @property
    def on_values(self) -> Tensor:
        """Every latent that may be on, in whatever shape is at hand."""
        return self.dense if self.dense is not None else self.entries[0]

    def times(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        """z W_dec, the reconstruction without its bias."""
        if self.dense is not None:
            return self.dense @ W_dec
        return _Decode.apply(*self.entries, W_dec)  # pyright: ignore[reportReturnType]

    def fired(self) -> Bool[Tensor, " d_sae"]:
        """Which latents are on for at least one token."""
        if self.dense is not None:
            return self.dense.detach().amax(0) > 0
        values, pattern = self.entries
        found = torch.zeros(pattern.shape[1], dtype=torch.bool, device=values.device)
        found[pattern.latents[values.detach() > 0]] = True
        return found

    def num_on(self) -> Int64[Tensor, ""]:
        """Latents that are on, over all tokens."""
        return (self.on_values.detach() > 0).sum()


def top_k_code(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"],
    k: int,
) -> Code:
    """The ``k`` largest latents of each token; see `keep_top_k`."""
    if not is_sparse_faster(x, k / len(W_enc)):
        return Code(keep_top_k(latents_of(x, W_enc, b_enc, b_dec), k))
    return sparse_code(x, W_enc, b_enc, b_dec, lambda x, e: largest_of_rows(x, e, k))


def top_of_batch_code(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"],
    num: int,
) -> Code:
    """The ``num`` largest latents of the batch; see `keep_top_of_batch`."""
    if not is_sparse_faster(x, num / (len(x) * len(W_enc))):
        return Code(keep_top_of_batch(latents_of(x, W_enc, b_enc, b_dec), num))
    return sparse_code(x, W_enc, b_enc, b_dec, lambda x, e: largest_of_batch(x, e, num))


def aux_from(
    error: Float[Tensor, "batch d_out"],
    x: Float[Tensor, "batch d_in"],
    dead: Bool[Tensor, " d_sae"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"],
    W_dec: Float[Tensor, "d_sae d_out"],
    k: int,
) -> Float[Tensor, ""]:
    """`aux_k` where pre-activations are not at hand: computes those of the dead latents alone."""
    rows = dead.nonzero().squeeze(1)
    k = min(k, len(rows))
    if k == 0:
        return error.new_zeros(())
    if not is_sparse_faster(x, k / len(rows)):
        pre = latents_of(x, W_enc.index_select(0, rows), b_enc.index_select(0, rows), b_dec)
        return aux_of(error, pre, W_dec.index_select(0, rows), k)

    def select(centred: Tensor, encoder: Encoder) -> Choice:
        few = Encoder(encoder.W.index_select(0, rows), encoder.b.index_select(0, rows))
        found = largest_of_rows(centred, few, k)
        latents = rows[found.pattern.latents].view(-1, k)
        return Choice(uniform_pattern(latents, len(W_enc)), found.values)

    code = sparse_code(x, W_enc, b_enc, b_dec, select)
    return explained_share(error.detach(), code.times(W_dec))


def step_flops(d_in: int, d_out: int, d_sae: int, num_on: int | float) -> float:
    """Operations of a training step per token with ``num_on`` latents on, on the faster path.

    Sparse: the encoder's product, which chooses, and one row per latent that is on for the
    reconstruction and each gradient. Dense: five products.
    """
    if num_on / d_sae > MAX_DENSITY:
        return 2.0 * d_sae * (2 * d_in + 3 * d_out)
    return 2.0 * d_sae * d_in + 2.0 * num_on * (d_in + 3 * d_out)


def is_sparse_faster(x: Float[Tensor, "batch d_in"], density: float) -> bool:
    """The one place that decides; accelerators without kernels multiply densely."""
    return density <= MAX_DENSITY and (x.device.type == "cpu" or can_run(x))


def sparse_code(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"],
    select: Callable[[Tensor, Encoder], Choice],
) -> Code:
    """relu(W_enc (x - b_dec) + b_enc) where ``select`` says, with gradients from there alone."""
    centred = x - b_dec.detach()
    with torch.no_grad():
        choice = select(centred.detach(), Encoder(W_enc, b_enc))
    values: Tensor = _Encode.apply(centred, W_enc, b_enc, b_dec, *choice)  # pyright: ignore[reportAssignmentType]
    return Code(None, values, choice.pattern)


class _Encode(torch.autograd.Function):
    """Passes ``kept`` on; its gradient is that of relu(W_enc (x - b_dec) + b_enc) there.

    ``centred`` is x - b_dec, for which b_dec was a constant.
    """

    @staticmethod
    def forward(
        ctx: Any,
        centred: Tensor,
        W_enc: Tensor,
        b_enc: Tensor,
        b_dec: Tensor,
        p: Pattern,
        kept: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(centred, W_enc, kept)
        ctx.pattern = p
        return kept.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        centred, W_enc, kept = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        gradient = gradients[0] * (kept > 0)
        needs_x, needs_W, needs_bias, needs_centre, *_ = ctx.needs_input_grad
        by_x = by_W = by_bias = by_centre = None
        if needs_x:
            by_x = times_rows(pattern, gradient, W_enc)
        if needs_W:
            by_W = transposed_times_rows(pattern, gradient, centred)
        if needs_bias or needs_centre:
            by_bias = sums_by_latent(pattern, gradient)
            by_centre = -(by_bias @ W_enc) if needs_centre else None
        return by_x, by_W, by_bias, by_centre, None, None


class _Decode(torch.autograd.Function):
    """The product of a sparse code with the decoder."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, pattern: Pattern, W_dec: Tensor) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pattern = pattern
        return times_rows(pattern, values, W_dec)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, W_dec = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        gradient = gradients[0].contiguous()
        needs_values, _, needs_W = ctx.needs_input_grad
        by_values = row_dots(pattern, gradient, W_dec) if needs_values else None
        by_W = transposed_times_rows(pattern, values, gradient) if needs_W else None
        return by_values, None, by_W
