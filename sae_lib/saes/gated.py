"""Gated SAE: one path says which latents are on, a second one, rescaled, how strongly.

    u     = W_enc (x - b_dec)
    gate  = u + b_enc
    z     = relu(exp(r_mag) u + b_mag) where gate > 0, else 0
    x_hat = W_dec' z + b_dec,   rows of W_dec have unit norm
    loss  = |x - x_hat|^2 + l1 sum_i relu(gate_i)
            + |x - (sg[W_dec]' relu(gate) + sg[b_dec])|^2        sg: a constant

The penalty shrinks the gate, not what is reconstructed from. The decision has no gradient, so the
gate learns from the penalty and from the last term, whose decoder is a constant: latents are to
fit the dictionary there, not the other way round. W_enc, and b_dec inside u, do learn from it.

Once trained it is a JumpReLU with threshold max(0, b_mag - exp(r_mag) b_enc): `as_jumprelu`.

Differs from the paper: ``l1`` belongs to an error that is summed over d_in, where the paper's is a
mean (its coefficient is ours / d_in), it may follow from a target for the number of latents on,
and resampling is a setting of the training.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.papers import Paper
from sae_lib.saes._codes import Code
from sae_lib.saes._control import SparsityControl
from sae_lib.saes._gated import frozen_errors, gate_and_latents
from sae_lib.saes._ops import (
    geometric_median,
    normalise_rows_,
    project_gradient_rows_,
    random_unit_rows,
    squared_error,
)
from sae_lib.saes.base import Activations, Latents, SaeConfig, SparseCoder, Step, Terms, register
from sae_lib.saes.jumprelu import JumpReLU, JumpReLUConfig


class GatedConfig(SaeConfig):
    """Description of a `Gated`."""

    papers = (Paper("Rajamanoharan et al. 2024a", "https://arxiv.org/abs/2404.16014", "3.2"),)
    summary = "An L1 penalty that decides what is on, apart from how strongly: nothing shrinks."
    dials = ("l1", "target_l0")

    kind: Literal["gated"] = "gated"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    l1: float | None = Field(default=None, ge=0)
    """Loss per unit of sum_i relu(gate_i), at unit mean square norm; derived where target_l0 is
    given."""

    target_l0: float | None = Field(default=None, gt=0)
    """Mean number of latents on that ``l1`` is steered towards; exactly one of the two is given."""

    l0_rate: float = Field(default=0.01, gt=0, lt=1)
    """Largest share by which ``l1`` moves in a step while it is steered."""

    @model_validator(mode="after")
    def _fits(self) -> "GatedConfig":
        if (self.l1 is None) == (self.target_l0 is None):
            raise ValueError(
                "give exactly one of l1 (a coefficient) and target_l0 (latents on per token); "
                f"got l1={self.l1}, target_l0={self.target_l0}"
            )
        if self.target_l0 is not None and self.target_l0 >= self.d_sae:
            raise ValueError(
                f"target_l0 must be below d_sae={self.d_sae}; got target_l0={self.target_l0}"
            )
        return self

    @classmethod
    def example(cls) -> "GatedConfig":
        return cls(d_in=8, d_sae=32, l1=0.3)

    @classmethod
    def examples(cls) -> "tuple[GatedConfig, ...]":
        return cls.example(), cls.example().but(l1=None, target_l0=5)


@register(GatedConfig)
class Gated(SparseCoder[GatedConfig]):
    """Autoencoder with a gate and a magnitude for each latent."""

    by_latent = (*SparseCoder.by_latent, "r_mag", "b_mag")

    def __init__(self, cfg: GatedConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_dec = nn.Parameter(random_unit_rows(cfg.d_sae, cfg.d_in, cfg.seed))
        self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.r_mag = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_mag = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))
        self.control = SparsityControl(cfg.l1, cfg.target_l0, cfg.l0_rate)

    def gate_and_latents(self, x: Activations) -> tuple[Latents, Latents]:
        """What decides which latents are on, where it is positive; and the latents."""
        weights = self.W_enc, self.b_enc, self.r_mag, self.b_mag, self.b_dec
        return gate_and_latents(x, *weights)

    def encode(self, x: Activations) -> Latents:
        return self.gate_and_latents(x)[1]

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def terms(self, step: Step) -> Terms:
        gate, z = self.gate_and_latents(step.x)
        self.control.observe_(z, step.warmup)
        open_by = gate.relu()
        l1 = (step.warmup * self.control.coefficient).clone() * open_by.sum(1)
        aux = frozen_errors(step.target, open_by, self.W_dec, self.b_dec)
        error = step.target - self.decode(z)
        return Terms(
            Code(z),
            error,
            squared_error(error),
            {"l1": l1.mean(), "aux": aux.mean()},
            {"l1": l1, "aux": aux},
        )

    def flops_per_token(self) -> float:
        """Two products more than the default: the frozen decoder's, and its gradient."""
        return super().flops_per_token() + 2 * 2.0 * self.d_sae * self.d_out

    def numbers(self) -> dict[str, float]:
        return {"l1_coefficient": float(self.control.coefficient)}

    @torch.no_grad()
    def reset_latents_(self, rows: Tensor, directions: Tensor, encoder_norm: Tensor) -> None:
        super().reset_latents_(rows, directions, encoder_norm)
        self.r_mag[rows] = 0  # the two paths agree, as at the start
        self.b_mag[rows] = 0

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        for bias in (self.b_enc, self.b_mag, self.b_dec):
            bias.mul_(factor)

    @torch.no_grad()
    def initialise_(self, sample: Tensor) -> None:
        self.b_dec.copy_(geometric_median(sample))

    @torch.no_grad()
    def before_update(self) -> None:
        if self.W_dec.grad is not None:
            project_gradient_rows_(self.W_dec.grad, self.W_dec)

    @torch.no_grad()
    def after_update(self) -> None:
        normalise_rows_(self.W_dec)


@torch.no_grad()
def as_jumprelu(coder: Gated) -> JumpReLU:
    """The JumpReLU that computes the same latents and reconstructions, by copies of the weights.

    A latent whose threshold would be negative is on where its magnitude is positive, so it gets
    the smallest positive number as its threshold.
    """
    cfg = coder.cfg
    found = JumpReLU(JumpReLUConfig(d_in=cfg.d_in, d_sae=cfg.d_sae, seed=cfg.seed, penalty=0.0))
    found.to(coder.W_enc)
    size = coder.r_mag.exp()
    threshold = coder.b_mag - size * coder.b_enc
    found.W_enc.copy_(size.unsqueeze(1) * coder.W_enc)
    found.b_enc.copy_(coder.b_mag)
    found.W_dec.copy_(coder.W_dec)
    found.b_dec.copy_(coder.b_dec)
    found.log_threshold.copy_(threshold.clamp_min(torch.finfo(threshold.dtype).tiny).log())
    return found.train(coder.training)
