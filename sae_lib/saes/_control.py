"""The coefficient of a sparsity penalty: given, or steered towards a number of latents on.

Each step with the full penalty, with l0 the running mean number of latents on,

    coefficient *= exp(rate * clamp(log(l0 / target_l0) / BAND, -1, 1))

This is the rule of multiplying by (1 +- rate), softened near the target so that it settles
instead of swinging about it. While penalties are warmed up it only watches.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

BAND = 0.1
"""Within this gap (10 % of the target) the coefficient moves at less than its full rate."""

MEMORY = 0.9
"""Share of the running mean of l0 that a step leaves in place."""

MOST_STEERING = 1e5
"""Factor by which a steered coefficient may leave its first value, either way."""

UNSEEN = -1.0
"""Running mean of l0 before the first batch."""

FIRST_COEFFICIENT = 0.03
"""Where a steered coefficient starts, at unit mean square norm."""


class SparsityControl(nn.Module):
    """Holds the coefficient and the running mean of l0 as buffers: a checkpoint has them.

    Exactly one of ``coefficient`` and ``target_l0`` is given; ``rate`` is the largest share by
    which a steered coefficient moves in a step, ``first`` where it starts.
    """

    coefficient: Tensor
    l0: Tensor

    def __init__(
        self,
        coefficient: float | None,
        target_l0: float | None,
        rate: float,
        first: float = FIRST_COEFFICIENT,
    ) -> None:
        super().__init__()
        self.target_l0, self.rate = target_l0, rate
        start = first if coefficient is None else coefficient
        self.first = float(first)
        self.register_buffer("coefficient", torch.tensor(float(start)))
        self.register_buffer("l0", torch.tensor(UNSEEN))

    @torch.no_grad()
    def observe_(self, z: Float[Tensor, "batch d_sae"], warmup: float) -> None:
        """Steer by the latents of one batch; before ``warmup`` is 1 only remember l0."""
        self.steer_((z > 0).sum().to(self.l0.dtype) / len(z), warmup)

    @torch.no_grad()
    def steer_(self, now: Float[Tensor, ""], warmup: float) -> None:
        """Steer by the mean number of latents on in one batch."""
        if self.target_l0 is None:
            return
        self.l0.copy_(torch.where(self.l0 < 0, now, MEMORY * self.l0 + (1 - MEMORY) * now))
        if warmup >= 1:
            gap = (self.l0.clamp_min(1e-3) / self.target_l0).log()
            self.coefficient.mul_((self.rate * (gap / BAND).clamp(-1, 1)).exp())
            # where the penalty moves nothing it would grow without end, and gradients with it
            self.coefficient.clamp_(self.first / MOST_STEERING, self.first * MOST_STEERING)
