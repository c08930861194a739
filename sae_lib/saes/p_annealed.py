"""p-annealing: an L1 penalty that turns, step by step, into a count of the latents on.

    relu     s = z = relu(W_enc (x - b_dec) + b_enc)
    gated    s = relu(gate), z as in gated.py, and its auxiliary term with a frozen decoder
    loss   = |x - x_hat|^2 + coefficient_p sum_i s_i^p (+ aux),   rows of W_dec have unit norm
    p      = 1 for the first anneal_start of training, then falls to p_end in p_updates equal
             steps at equal distances, the last of which leaves p_end its share of training
    p -> p'  coefficient *= (sum of s^p) / (sum of s^p'), both over the same latest queue batches

So the penalty is worth the same before and after a change, and only its shape differs. Buffers
hold the sums of the queue, under the p in force and under the next one, and no latents.

Differs from the source: squared error where its baseline has the plain norm; powers are
(s + eps)^p - eps^p, eps = 1e-6, since the slope of s^p at 0 is infinite; the shares of training
replace steps (there p = 1 for 10,000 of 36,600). The coefficient may also be steered to a number of
latents on: then the rescaling keeps the penalty's value at a change, and between changes steering
moves the same coefficient, so p changes the shape and target_l0 decides how many are on.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.papers import Paper
from sae_lib.saes._codes import Code
from sae_lib.saes._control import SparsityControl
from sae_lib.saes._gated import frozen_errors, gate_and_latents
from sae_lib.saes._ops import (
    geometric_median,
    latents_of,
    normalise_rows_,
    project_gradient_rows_,
    random_unit_rows,
    squared_error,
)
from sae_lib.saes._penalties import check_dials, power
from sae_lib.saes._revive import Reviver, RevivingConfig
from sae_lib.saes.base import Activations, Latents, SparseCoder, Step, Terms, register


class PAnnealedConfig(RevivingConfig):
    """Description of a `PAnnealed`."""

    papers = (Paper("Karvonen et al. 2024", "https://arxiv.org/abs/2408.00113", "3.2"),)
    summary = "A penalty sum z^p with p falling from 1: ends near a count, so it shrinks less."
    dials = ("coefficient", "target_l0")

    kind: Literal["p_annealed"] = "p_annealed"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    base: Literal["relu", "gated"] = "relu"
    """What is penalised: a ReLU's latents, or the gate of a gated autoencoder."""

    p_end: float = Field(default=0.2, gt=0, le=1)
    """Power at the end of training."""

    anneal_start: float = Field(default=0.27, ge=0, lt=1)
    """Share of training with p = 1."""

    p_updates: int = Field(default=10, gt=0)
    """In how many equal steps p falls."""

    queue: int = Field(default=10, gt=0)
    """Latest batches over which the coefficient is rescaled when p changes."""

    coefficient: float | None = Field(default=None, ge=0)
    """Loss per unit of penalty at p = 1, at unit mean square norm; derived where target_l0 is
    given."""

    target_l0: float | None = Field(default=None, gt=0)
    """Mean number of latents on that the coefficient is steered towards; exactly one is given."""

    l0_rate: float = Field(default=0.01, gt=0, lt=1)
    """Largest share by which the coefficient moves in a step while it is steered."""

    @model_validator(mode="after")
    def _fits(self) -> "PAnnealedConfig":
        check_dials(self.coefficient, self.target_l0, self.d_sae)
        return self

    def power_at(self, level: int) -> float:
        """p after ``level`` changes."""
        return 1 - (1 - self.p_end) * min(level, self.p_updates) / self.p_updates

    def level_at(self, progress: float) -> int:
        """How many changes are due when a share ``progress`` of training is done."""
        share = (progress - self.anneal_start) / (1 - self.anneal_start)
        # a share that is whole but for rounding counts as whole
        return min(self.p_updates, max(0, math.floor(share * self.p_updates + 1e-9) + 1))

    @classmethod
    def example(cls) -> "PAnnealedConfig":
        return cls(d_in=8, d_sae=32, coefficient=0.1)

    @classmethod
    def examples(cls) -> "tuple[PAnnealedConfig, ...]":
        plain = cls.example()
        return (
            plain,
            plain.but(base="gated"),
            plain.but(revive="ghost", p_end=0.5),
            plain.but(base="gated", coefficient=None, target_l0=5, revive="aux_k", aux_k=4),
        )


@register(PAnnealedConfig)
class PAnnealed(SparseCoder[PAnnealedConfig]):
    """Autoencoder whose penalty is annealed from L1 towards L0."""

    by_latent = (*SparseCoder.by_latent, "r_mag", "b_mag")

    level: Tensor
    sums: Tensor
    num_sums: Tensor

    def __init__(self, cfg: PAnnealedConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_dec = nn.Parameter(random_unit_rows(cfg.d_sae, cfg.d_in, cfg.seed))
        self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))
        if self.is_gated:
            self.r_mag = nn.Parameter(torch.zeros(cfg.d_sae))
            self.b_mag = nn.Parameter(torch.zeros(cfg.d_sae))
        self.control = SparsityControl(cfg.coefficient, cfg.target_l0, cfg.l0_rate)
        self.reviver = Reviver(cfg)
        # changes of p so far; per batch of the queue the sums under this p and the next; how many
        self.register_buffer("level", torch.zeros((), dtype=torch.int64))
        self.register_buffer("sums", torch.zeros(2, cfg.queue))
        self.register_buffer("num_sums", torch.zeros((), dtype=torch.int64))

    @property
    def is_gated(self) -> bool:
        return self.cfg.base == "gated"

    @property
    def p(self) -> float:
        """The power in force."""
        return self.cfg.power_at(int(self.level))

    def penalised_and_latents(self, x: Activations) -> tuple[Latents, Latents]:
        """What the penalty looks at, >= 0, and the latents; the same for the base relu."""
        if self.is_gated:
            weights = self.W_enc, self.b_enc, self.r_mag, self.b_mag, self.b_dec
            gate, z = gate_and_latents(x, *weights)
            return gate.relu(), z
        z = latents_of(x, self.W_enc, self.b_enc, self.b_dec)
        return z, z

    def encode(self, x: Activations) -> Latents:
        return self.penalised_and_latents(x)[1]

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def terms(self, step: Step) -> Terms:
        s, z = self.penalised_and_latents(step.x)
        self.anneal_(step.progress)
        self.control.observe_(z, step.warmup)
        coefficient = (step.warmup * self.control.coefficient).clone()
        per_token = {"sparsity": coefficient * power(s, self.p).sum(-1)}
        self.remember_(s)
        if self.is_gated:
            per_token["gate"] = frozen_errors(step.target, s, self.W_dec, self.b_dec)
        error = step.target - self.decode(z)
        revived = self.reviver(error, step, self.W_enc, self.b_enc, self.b_dec, self.W_dec)
        means = {name: values.mean() for name, values in per_token.items()}
        return Terms(
            Code(z),
            error,
            squared_error(error),
            {**means, **revived.extra},
            {**per_token, **revived.per_token},
        )

    @torch.no_grad()
    def anneal_(self, progress: float) -> None:
        """Change p if that is due, once at most, and the coefficient so that the penalty stays.

        A run too short for one step between changes makes them one after the other.
        """
        if int(self.level) >= self.cfg.level_at(progress):
            return
        now, then = self.sums.sum(1)
        self.control.coefficient.mul_(torch.where(then > 0, now / then.clamp_min(1e-30), 1.0))
        self.level.add_(1)
        # what was measured under another pair of powers says nothing about the next change
        self.sums.zero_()
        self.num_sums.zero_()

    @torch.no_grad()
    def remember_(self, s: Float[Tensor, "batch d_sae"]) -> None:
        """Enter a batch into the queue, in the place of the oldest."""
        level = int(self.level)
        if level >= self.cfg.p_updates:
            return
        on = s.detach()[s.detach() > 0]
        powers = (self.cfg.power_at(level), self.cfg.power_at(level + 1))
        column = torch.stack([power(on, p).sum() / len(s) for p in powers])
        self.sums[:, int(self.num_sums) % self.cfg.queue] = column.to(self.sums.dtype)
        self.num_sums.add_(1)

    def flops_per_token(self) -> float:
        """The gated base has two products more: the frozen decoder's, and its gradient."""
        frozen = 2 * 2.0 * self.d_sae * self.d_out if self.is_gated else 0.0
        return super().flops_per_token() + frozen

    def numbers(self) -> dict[str, float]:
        return {"coefficient": float(self.control.coefficient), "p": self.p}

    @torch.no_grad()
    def reset_latents_(self, rows: Tensor, directions: Tensor, encoder_norm: Tensor) -> None:
        super().reset_latents_(rows, directions, encoder_norm)
        if self.is_gated:  # the two paths agree, as at the start
            self.r_mag[rows] = 0
            self.b_mag[rows] = 0

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        for bias in (self.b_enc, self.b_dec, *([self.b_mag] if self.is_gated else [])):
            bias.mul_(factor)
        self.reviver.scale_(factor)

    @torch.no_grad()
    def initialise_(self, sample: Tensor) -> None:
        self.b_dec.copy_(geometric_median(sample))
        self.reviver.initialise_(sample)

    @torch.no_grad()
    def before_update(self) -> None:
        if self.W_dec.grad is not None:
            project_gradient_rows_(self.W_dec.grad, self.W_dec)

    @torch.no_grad()
    def after_update(self) -> None:
        normalise_rows_(self.W_dec)
