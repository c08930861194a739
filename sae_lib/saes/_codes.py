"""The latents of a training step of the top-k family, computed sparsely where that is faster.

A dense step makes six products of batch x d_sae x d_in; only the encoder's needs them all. With
few latents on, the decoder and every gradient are products with a sparse matrix instead: on one
core, 2,048 tokens, 192 wide, 2,048 latents of which 32 are on, a product takes 1 ms instead of 17.
The dense form stays, as the oracle of the tests and for whatever is not sparse enough.
"""

import warnings
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.nn import functional

from sae_lib.saes._ops import keep_top_k, keep_top_of_batch, latents_of, top_indices

MAX_DENSITY = 1 / 8
"""Share of latents on above which dense products are about as fast."""

Pre: TypeAlias = Float[Tensor, "batch d_sae"]


class Pattern(NamedTuple):
    """Which entries of a batch x d_sae matrix are kept, row by row."""

    shape: tuple[int, int]

    starts: Int64[Tensor, " batch_plus_1"]
    """Where each row begins in ``latents``, and where the last one ends."""

    tokens: Int64[Tensor, " kept"]
    latents: Int64[Tensor, " kept"]

    def matrix(self, values: Float[Tensor, " kept"]) -> Tensor:
        """``values`` as a sparse batch x d_sae matrix."""
        return csr(self.starts, self.latents, values, self.shape)

    def transposed(self, values: Float[Tensor, " kept"]) -> Tensor:
        """``values`` as a sparse d_sae x batch matrix."""
        batch, d_sae = self.shape
        order = torch.argsort(self.latents, stable=True)
        starts = torch.zeros(d_sae + 1, dtype=torch.int64, device=values.device)
        torch.cumsum(torch.bincount(self.latents, minlength=d_sae), 0, out=starts[1:])
        return csr(starts, self.tokens[order], values[order], (d_sae, batch))


class Code(NamedTuple):
    """Latents of one batch; ``times`` and ``z`` carry gradients."""

    z: Float[Tensor, "batch d_sae"]
    values: Float[Tensor, " kept"] | None
    pattern: Pattern | None

    def times(self, W_dec: Float[Tensor, "d_sae d_in"]) -> Float[Tensor, "batch d_in"]:
        """z W_dec, the reconstruction without its bias."""
        if self.values is None:
            return self.z @ W_dec
        return _Decode.apply(self.values, W_dec, self.pattern)  # pyright: ignore[reportReturnType]

    def fired(self) -> Bool[Tensor, " d_sae"]:
        """Which latents are on for at least one token."""
        if self.values is None or self.pattern is None:
            return self.z.amax(0) > 0
        found = torch.zeros(self.pattern.shape[1], dtype=torch.bool, device=self.values.device)
        found[self.pattern.latents[self.values.detach() > 0]] = True
        return found


def top_k_code(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"],
    k: int,
) -> Code:
    """The ``k`` largest latents of each token; see `keep_top_k`."""

    def select(pre: Pre) -> Pattern:
        batch, d_sae = pre.shape
        latents = pre.topk(k, dim=-1, sorted=False).indices.reshape(-1)
        tokens = torch.arange(batch, device=pre.device).repeat_interleave(k)
        starts = torch.arange(0, batch * k + 1, k, device=pre.device)
        return Pattern((batch, d_sae), starts, tokens, latents)

    if not is_sparse_faster(x, k / len(W_enc)):
        return Code(keep_top_k(latents_of(x, W_enc, b_enc, b_dec), k), None, None)
    return sparse_code(x, W_enc, b_enc, b_dec, select)


def top_of_batch_code(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"],
    num: int,
) -> Code:
    """The ``num`` largest latents of the batch; see `keep_top_of_batch`."""

    def select(pre: Pre) -> Pattern:
        batch, d_sae = pre.shape
        flat = top_indices(pre.reshape(-1), num).sort().values
        tokens, latents = flat // d_sae, flat % d_sae
        starts = torch.zeros(batch + 1, dtype=torch.int64, device=pre.device)
        torch.cumsum(torch.bincount(tokens, minlength=batch), 0, out=starts[1:])
        return Pattern((batch, d_sae), starts, tokens, latents)

    if not is_sparse_faster(x, num / (len(x) * len(W_enc))):
        return Code(keep_top_of_batch(latents_of(x, W_enc, b_enc, b_dec), num), None, None)
    return sparse_code(x, W_enc, b_enc, b_dec, select)


def is_sparse_faster(x: Float[Tensor, "batch d_in"], density: float) -> bool:
    """The one place that decides; accelerators multiply densely until they have kernels here."""
    return x.device.type == "cpu" and density <= MAX_DENSITY


def sparse_code(
    x: Float[Tensor, "batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"],
    select: Callable[[Pre], Pattern],
) -> Code:
    """relu(W_enc (x - b_dec) + b_enc) where ``select`` says, with gradients from there alone."""
    quieten()
    centre = b_dec.detach()
    bias = b_enc + W_enc.detach() @ (centre - b_dec)  # as in `latents_of`
    centred = x - centre
    with torch.no_grad():
        pre = functional.linear(centred, W_enc, bias).relu_()
        pattern = select(pre)
        flat = pattern.tokens * pattern.shape[1] + pattern.latents
        kept = pre.view(-1)[flat]
    values: Tensor = _Encode.apply(centred, W_enc, bias, kept, pattern)  # pyright: ignore[reportAssignmentType]
    z = pre.zero_().view(-1).scatter(0, flat, values).view(pattern.shape)
    return Code(z, values, pattern)


class _Encode(torch.autograd.Function):
    """Passes ``kept`` on; its gradient is that of relu(x W_enc' + bias) at those entries."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, W_enc: Tensor, bias: Tensor, kept: Tensor, p: Pattern
    ) -> Tensor:
        ctx.save_for_backward(x, W_enc, kept)
        ctx.pattern = p
        return kept.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        x, W_enc, kept = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        gradient = gradients[0] * (kept > 0)
        needs_x, needs_W, needs_bias, *_ = ctx.needs_input_grad
        by_x = pattern.matrix(gradient) @ W_enc if needs_x else None
        by_W = pattern.transposed(gradient) @ x if needs_W else None
        by_bias = None
        if needs_bias:
            by_bias = gradient.new_zeros(pattern.shape[1]).index_add_(0, pattern.latents, gradient)
        return by_x, by_W, by_bias, None, None


class _Decode(torch.autograd.Function):
    """The product of a sparse code with the decoder."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, W_dec: Tensor, pattern: Pattern) -> Tensor:
        ctx.save_for_backward(values, W_dec)
        ctx.pattern = pattern
        return pattern.matrix(values) @ W_dec

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        values, W_dec = ctx.saved_tensors
        pattern: Pattern = ctx.pattern
        gradient = gradients[0].contiguous()
        needs_values, needs_W, _ = ctx.needs_input_grad
        by_values = None
        if needs_values:
            empty = pattern.matrix(torch.zeros_like(values))
            by_values = torch.sparse.sampled_addmm(empty, gradient, W_dec.mT, beta=0.0).values()
        by_W = pattern.transposed(values) @ gradient if needs_W else None
        return by_values, by_W, None


def csr(starts: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]) -> Tensor:
    return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


@cache
def quieten() -> None:
    """Let torch say once, unheard, that compressed sparse tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        csr(torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1))
