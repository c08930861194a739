"""The two paths of a gated autoencoder, for those that have them."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.saes._ops import pre_of


def gate_and_latents(
    x: Float[Tensor, "*batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    r_mag: Float[Tensor, " d_sae"],
    b_mag: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"],
) -> tuple[Float[Tensor, "*batch d_sae"], Float[Tensor, "*batch d_sae"]]:
    """What decides which latents are on, where it is positive; and the latents.

    With u = W_enc (x - b_dec): u + b_enc, and relu(exp(r_mag) u + b_mag) where that is positive.
    """
    shared = pre_of(x, W_enc, torch.zeros_like(b_enc), b_dec)
    gate = shared + b_enc
    magnitude = torch.addcmul(b_mag, r_mag.exp(), shared).relu()
    return gate, magnitude * (gate > 0)


def frozen_errors(
    target: Float[Tensor, "batch d_in"],
    open_by: Float[Tensor, "batch d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
) -> Float[Tensor, " batch"]:
    """Squared error per token of decoding the rectified gate, for which the decoder is constant."""
    return (target - open_by @ W_dec.detach() - b_dec.detach()).square().sum(1)
