"""A step at a threshold that can be learned: its gradient is an estimate by a kernel.

    z  = pre H(pre - threshold),    on = sum_i H(pre_i - threshold_i),    H(0) = 0

A step is flat wherever it has a slope at all, so the gradient by a threshold is the density of
``pre`` there, estimated from the entries of the batch that are nearer than half a bandwidth
(variants.md 2.8; Rajamanoharan et al. 2024, https://arxiv.org/abs/2407.14435, section 3).
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor


def jump(
    pre: Float[Tensor, "batch d_sae"], threshold: Float[Tensor, " d_sae"], bandwidth: float
) -> tuple[Float[Tensor, "batch d_sae"], Float[Tensor, " batch"]]:
    """Latents that pass their threshold, and how many do in each token.

    With K = 1 within half a ``bandwidth`` of the threshold and 0 elsewhere, the gradients are

        dz/dpre = H(pre - threshold)        dz/dthreshold  = -threshold K / bandwidth
        don/dpre = 0                        don/dthreshold = -K / bandwidth

    Those of ``on`` are taken at ``pre``, not at ``z``: seen from ``z``, which is 0 below the
    threshold, half of the window would be empty.
    """
    return _Jump.apply(pre, threshold, bandwidth)  # pyright: ignore[reportReturnType]


class _Jump(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, pre: Tensor, threshold: Tensor, bandwidth: float
    ) -> tuple[Tensor, Tensor]:
        above = pre - threshold
        is_on = above > 0
        ctx.save_for_backward(is_on, above.abs_() < bandwidth / 2, threshold)
        ctx.bandwidth = bandwidth
        return pre * is_on, is_on.sum(1, dtype=pre.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        is_on, is_near, threshold = ctx.saved_tensors
        by_z, by_on = gradients
        needs_pre, needs_threshold, _ = ctx.needs_input_grad
        by_pre = by_z * is_on if needs_pre else None
        by_threshold = None
        if needs_threshold:
            slopes = threshold * (by_z * is_near).sum(0) + by_on @ is_near.to(by_on.dtype)
            by_threshold = -slopes / ctx.bandwidth
        return by_pre, by_threshold, None
