"""Sparsity penalties that are powers of latents, and the dials that set how much they weigh."""

from jaxtyping import Float
from torch import Tensor

EPS = 1e-6
"""Added to a latent before it is raised to a power below 1, whose slope at 0 is infinite."""


def power(z: Float[Tensor, "..."], p: float) -> Float[Tensor, "..."]:
    """(z + EPS)^p - EPS^p of latents >= 0: 0 at 0, with a finite slope; exactly z for p = 1."""
    return z if p == 1 else (z + EPS).pow(p) - EPS**p


def check_dials(coefficient: float | None, target_l0: float | None, d_sae: int) -> None:
    """Refuse, by `ValueError`, anything but one of the two, and a target that is always met."""
    if (coefficient is None) == (target_l0 is None):
        raise ValueError(
            "give exactly one of coefficient (loss per unit of penalty) and target_l0 (latents on "
            f"per token); got coefficient={coefficient}, target_l0={target_l0}"
        )
    if target_l0 is not None and target_l0 >= d_sae:
        raise ValueError(f"target_l0 must be below d_sae={d_sae}; got target_l0={target_l0}")
