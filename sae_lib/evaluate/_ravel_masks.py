"""Masks over latents or coordinates: how they are learned, and what an exchange under them writes.

    x' = decode((1 - mu) f_b + mu f_s)                      over latents
    x' = b + R^T (mu R (s - b))                             over coordinates in the basis of R
    mu = sigmoid(a / T) in training,  [a > 0] afterwards,   a = 0 at first

T falls from 1 to 1e-4 in equal steps of its logarithm.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.saes.base import SparseCoder

Losses = Callable[[Float[Tensor, "rows width"], Int[Tensor, " rows"]], Float[Tensor, " rows"]]
"""From soft masks of some pairs, and which pairs, to the loss of each."""

Change = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""From base, source, masks and the masks' numbers, row by row, to what replaces the base."""


def temperatures(steps: int, first: float = 1.0, last: float = 1e-4) -> Float[Tensor, " steps"]:
    """``steps`` temperatures from ``first`` to ``last``, evenly spaced in their logarithm."""
    return torch.from_numpy(np.geomspace(first, last, steps)).float()


def exchange(
    base: Float[Tensor, "rows width"],
    source: Float[Tensor, "rows width"],
    mask: Float[Tensor, "*#rows width"],
) -> Float[Tensor, "rows width"]:
    """``base`` with the share ``mask`` of each entry taken from ``source``; exact at 0 and 1."""
    return base * (1 - mask) + source * mask


def train_masks(
    losses: Losses,
    group: Int[Tensor, " pairs"],
    num_masks: int,
    width: int,
    *,
    epochs: int,
    batch_pairs: int,
    lr: float,
    seed: int,
    others: Sequence[Tensor] = (),
) -> Float[Tensor, "masks width"]:
    """The parameters ``a`` of all masks after training; a mask takes what lies above 0.

    Masks are trained side by side and do not touch one another: each step takes ``batch_pairs``
    pairs of every mask (``group``), and the loss is the sum over masks of the mean over its pairs.

    Args:
        losses: The loss of some pairs under soft masks.
        group: Which mask each pair is for; every mask has pairs.
        num_masks: How many masks there are.
        width: Entries of a mask.
        epochs: How often each pair is seen, by the mask with the most pairs.
        batch_pairs: Pairs of one mask per step.
        lr: Step size of Adam.
        seed: Decides the order of the pairs.
        others: More tensors to train along, which ``losses`` uses.
    """
    draw = np.random.default_rng(seed)
    members = [np.flatnonzero(group.numpy() == mask) for mask in range(num_masks)]
    steps_per_epoch = math.ceil(max(map(len, members)) / batch_pairs)
    a = torch.zeros(num_masks, width, device=others[0].device if others else None)
    trained = [a.requires_grad_(), *(other.requires_grad_() for other in others)]
    adam = torch.optim.Adam(trained, lr=lr)
    for step, temperature in enumerate(temperatures(epochs * steps_per_epoch).tolist()):
        place = step % steps_per_epoch
        if place == 0:
            members = [draw.permutation(own) for own in members]
        rows = np.stack(
            [own[(place * batch_pairs + np.arange(batch_pairs)) % len(own)] for own in members]
        )
        of = torch.from_numpy(rows.flatten())
        with torch.enable_grad():
            soft = torch.sigmoid(a / temperature)[group[of].to(a.device)]
            loss = losses(soft, of).sum() / batch_pairs
            gradients = torch.autograd.grad(loss, trained)
        for parameter, gradient in zip(trained, gradients, strict=True):
            parameter.grad = gradient
        adam.step()
    return a.detach()


def swapped(
    coder: SparseCoder[Any],
    base: Float[Tensor, "rows d_in"],
    source: Float[Tensor, "rows d_in"],
    mask: Float[Tensor, "*#rows d_sae"],
    *,
    with_error: bool = False,
) -> Float[Tensor, "rows d_in"]:
    """The base's activation after the latents in ``mask`` were exchanged."""
    with torch.no_grad():
        z, other = coder.encode(base), coder.encode(source)
        error = base - coder.reconstruct(base, z) if with_error else None
    found = coder.reconstruct(base, exchange(z, other, mask))
    return found if error is None else found + error


def rotated(
    turns: Float[Tensor, "masks d_in d_in"],
    group: Int[Tensor, " rows"],
    base: Float[Tensor, "rows d_in"],
    source: Float[Tensor, "rows d_in"],
    mask: Float[Tensor, "rows d_in"],
) -> Float[Tensor, "rows d_in"]:
    """The base's activation with coordinates in ``mask`` exchanged, in the basis of its turn."""
    found = base.clone()
    for i in group.unique().tolist():
        own = (group == i).nonzero()[:, 0].to(base.device)
        moved = (mask[own] * ((source[own] - base[own]) @ turns[i].mT)) @ turns[i]
        found = found.index_add(0, own, moved)
    return found


def orthonormal(free: Float[Tensor, "masks d d"]) -> Float[Tensor, "masks d d"]:
    """The rotation that each matrix stands for: Q of its QR decomposition."""
    return torch.linalg.qr(free).Q.mT


def random_masks(
    differs: Bool[Tensor, "masks d_sae"], sizes: Int[Tensor, " masks"], seed: int
) -> Float[Tensor, "masks d_sae"]:
    """Masks of the same sizes, drawn from latents that an exchange could change."""
    drawn = torch.rand(differs.shape, generator=torch.Generator().manual_seed(seed))
    order = drawn.masked_fill(~differs, -1.0).argsort(1, descending=True).argsort(1)
    return (order < sizes[:, None]).float()
