"""The threshold that stands in, after training, for a budget that a batch shared (variants.md 2.9).

A running mean over batches of where the budget ended. It starts at the first value instead of 0,
follows the latest batch until ``start_steps`` and averages from there on, so early activations,
which are small, never enter it. One number or one per latent; both tensors are buffers of the
coder, so a checkpoint has them.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

UNSET = -1.0
"""Value of a threshold before a batch has set it."""


def unset_threshold(*shape: int) -> tuple[Float[Tensor, "..."], Int64[Tensor, "..."]]:
    """Thresholds that no batch has set, and the numbers of batches that set them: zeros."""
    return torch.full(shape, UNSET), torch.zeros(shape, dtype=torch.int64)


def is_set(threshold: Float[Tensor, "..."]) -> bool:
    """Whether a batch has set any of them."""
    return bool((threshold >= 0).any())


@torch.no_grad()
def follow_(
    threshold: Float[Tensor, "*shape"],
    num: Int64[Tensor, "*shape"],
    cut: Float[Tensor, "*shape"],
    is_known: Bool[Tensor, "*shape"],
    *,
    start_steps: int,
    beta: float,
) -> None:
    """Move thresholds towards where this batch's budget ended, where that ``is_known``.

    ``num`` counts the batches that moved them; ``beta`` is the share that a batch leaves in place.
    """
    keeps = beta * (num >= start_steps)
    keeps = torch.where(threshold >= 0, keeps, 0.0)
    moved = keeps * threshold + (1 - keeps) * cut.to(threshold.dtype)
    threshold.copy_(torch.where(is_known, moved, threshold))
    num.add_(is_known)


@torch.no_grad()
def follow_smallest_(
    threshold: Float[Tensor, ""],
    num: Int64[Tensor, ""],
    z: Float[Tensor, "..."],
    budget: int,
    *,
    start_steps: int,
    beta: float,
) -> None:
    """Move one threshold towards the smallest latent that a batch kept.

    ``z`` are the latents, in any shape, zeros where off. A batch with fewer positive ones than
    its ``budget`` says nothing about where the budget ends and is passed over.
    """
    is_on = z > 0
    smallest = torch.where(is_on, z, torch.inf).min()
    fills_budget = is_on.sum() >= budget
    follow_(threshold, num, smallest, fills_budget, start_steps=start_steps, beta=beta)


@torch.no_grad()
def scale_threshold_(threshold: Float[Tensor, "..."], factor: float) -> None:
    """Thresholds of latents that are ``factor`` times as large; unset ones stay so."""
    threshold.copy_(torch.where(threshold >= 0, factor * threshold, threshold))
