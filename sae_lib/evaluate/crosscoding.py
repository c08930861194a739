"""Which latents of a crosscoder belong to one of two sources, and which of these truly do.

    relative norm  Delta_i = ((n_i^b - n_i^a) / max(n_i^a, n_i^b) + 1) / 2,  n_i^l = |W_dec_i^l|
                   0: of the first source alone; .5: shared; 1: of the second alone
    scaling        beta_i(h) = argmin_beta sum_n |beta z_ni d_i - h_n|^2
                             = sum_n z_ni (d_i . h_n) / (|d_i|^2 sum_n z_ni^2),  d_i = W_dec_i^b
    nu_error          beta_i(error of a) / beta_i(error of b), the latent's own share put back
    nu_reconstruction beta_i(reconstruction of a) / beta_i(reconstruction of b)

A latent of the second source has both ratios near 0. A large nu_error says that the norm in the
first source was shrunk away though the feature is there; a large nu_reconstruction that other
latents carry it there (Minder et al. 2025, https://arxiv.org/abs/2504.02922, section 2).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor


class LatentScaling(NamedTuple):
    """Ratios of scaling per latent; NaN where a latent is never on or explains nothing of b."""

    nu_error: Float[Tensor, " d_sae"]
    nu_reconstruction: Float[Tensor, " d_sae"]


def relative_norms(
    first: Float[Tensor, " d_sae"], second: Float[Tensor, " d_sae"]
) -> Float[Tensor, " d_sae"]:
    """Delta of each latent from its norms in two sources; .5 where both are 0."""
    largest = torch.maximum(first, second)
    return ((second - first) / torch.where(largest > 0, largest, 1.0) + 1) / 2


def scaling(
    z: Float[Tensor, "tokens d_sae"],
    directions: Float[Tensor, "d_sae width"],
    h: Float[Tensor, "tokens width"],
) -> Float[Tensor, " d_sae"]:
    """beta of each latent: how much of its direction best explains ``h``; NaN where never on."""
    explained = torch.linalg.vecdot(z.mT @ h, directions)
    return explained / (directions.square().sum(1) * z.square().sum(0))


def latent_scaling(
    z: Float[Tensor, "tokens d_sae"],
    x_first: Float[Tensor, "tokens width"],
    x_second: Float[Tensor, "tokens width"],
    x_hat_first: Float[Tensor, "tokens width"],
    x_hat_second: Float[Tensor, "tokens width"],
    W_first: Float[Tensor, "d_sae width"],
    W_second: Float[Tensor, "d_sae width"],
) -> LatentScaling:
    """Ratios of scaling of every latent, all at the scale of training, in float64."""
    z, W_first, W_second = z.double(), W_first.double(), W_second.double()
    x_hats = x_hat_first.double(), x_hat_second.double()
    errors = x_first.double() - x_hats[0], x_second.double() - x_hats[1]
    # putting z_i W_i back into the error adds its own scaling to beta
    own = torch.linalg.vecdot(W_first, W_second) / W_second.square().sum(1)
    of_first, of_second = (scaling(z, W_second, error) for error in errors)
    made_first, made_second = (scaling(z, W_second, x_hat) for x_hat in x_hats)
    return LatentScaling((of_first + own) / (of_second + 1), made_first / made_second)
