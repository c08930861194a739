"""ReLU autoencoder with an L1 penalty, in its two classical forms.

    unit_norm      z = relu(W_enc (x - b_dec) + b_enc),  rows of W_dec have unit norm
                   loss = |x - x_hat|^2 + l1 sum_i z_i
    norm_weighted  z = relu(W_enc x + b_enc),            rows of W_dec are free
                   loss = |x - x_hat|^2 + l1 sum_i z_i |W_dec_i|
    x_hat = W_dec' z + b_dec

Differs from the sources: W_enc starts as a copy of W_dec in both forms (Bricken et al. draw it
independently), resampling is a setting of the training, ``l1`` may follow from a target for the
number of latents on, and there may be a term for dead latents (`_revive.py`). ``l1`` is a
coefficient at unit mean square norm of x, the error summed over d_in; where a source scales x to
norm sqrt(d_in), its coefficient is l1 * sqrt(d_in).
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.papers import Paper
from sae_lib.saes._codes import Code
from sae_lib.saes._control import SparsityControl
from sae_lib.saes._ops import (
    geometric_median,
    latents_of,
    normalise_rows_,
    project_gradient_rows_,
    random_unit_rows,
    squared_error,
    unit_rows,
)
from sae_lib.saes._revive import Reviver, RevivingConfig
from sae_lib.saes.base import Activations, Latents, SparseCoder, Step, Terms, register

FREE_NORM = 0.1
"""Norm of decoder rows at the start where they are free; 0.05 to 1 works."""


class StandardConfig(RevivingConfig):
    """Description of a `Standard`."""

    papers = (
        Paper("Cunningham et al. 2023", "https://arxiv.org/abs/2309.08600", "2"),
        Paper(
            "Bricken et al. 2023",
            "https://transformer-circuits.pub/2023/monosemantic-features",
            "Sparse Autoencoder Setup",
        ),
        Paper(
            "Conerly et al. 2024",
            "https://transformer-circuits.pub/2024/april-update",
            "Update on how we train SAEs",
        ),
    )
    summary = "ReLU with an L1 penalty: the baseline, which shrinks what it finds."
    dials = ("l1", "target_l0")

    kind: Literal["standard"] = "standard"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    form: Literal["unit_norm", "norm_weighted"] = "unit_norm"
    """Decoder rows of norm 1 (Bricken, Cunningham), or norms inside the penalty (April 2024)."""

    l1: float | None = Field(default=None, ge=0)
    """Loss per unit of sum_i z_i, at unit mean square norm; derived where target_l0 is given."""

    target_l0: float | None = Field(default=None, gt=0)
    """Mean number of latents on that ``l1`` is steered towards; exactly one of the two is given."""

    l0_rate: float = Field(default=0.01, gt=0, lt=1)
    """Largest share by which ``l1`` moves in a step while it is steered."""

    @model_validator(mode="after")
    def _fits(self) -> "StandardConfig":
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
    def example(cls) -> "StandardConfig":
        return cls(d_in=8, d_sae=32, l1=0.1)

    @classmethod
    def examples(cls) -> "tuple[StandardConfig, ...]":
        plain = cls.example()
        weighted = plain.but(form="norm_weighted")
        return (
            plain,
            weighted,
            plain.but(l1=None, target_l0=5),
            weighted.but(revive="ghost"),
            plain.but(l1=None, target_l0=5, revive="aux_k", aux_k=4),
        )


@register(StandardConfig)
class Standard(SparseCoder[StandardConfig]):
    """ReLU autoencoder with an L1 penalty."""

    def __init__(self, cfg: StandardConfig) -> None:
        super().__init__()
        self.cfg = cfg
        rows = random_unit_rows(cfg.d_sae, cfg.d_in, cfg.seed)
        self.W_dec = nn.Parameter(rows if cfg.form == "unit_norm" else FREE_NORM * rows)
        self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))
        self.control = SparsityControl(cfg.l1, cfg.target_l0, cfg.l0_rate)
        self.reviver = Reviver(cfg)

    @property
    def has_unit_rows(self) -> bool:
        return self.cfg.form == "unit_norm"

    @property
    def input_centre(self) -> Tensor | None:
        return self.b_dec if self.has_unit_rows else None

    def encode(self, x: Activations) -> Latents:
        return latents_of(x, self.W_enc, self.b_enc, self.input_centre)

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def terms(self, step: Step) -> Terms:
        z = self.encode(step.x)
        self.control.observe_(z, step.warmup)
        weights = torch.ones_like(self.b_enc) if self.has_unit_rows else self.W_dec.norm(dim=-1)
        coefficient = (step.warmup * self.control.coefficient).clone()
        per_token = coefficient * (z @ weights)
        error = step.target - self.decode(z)
        revived = self.reviver(error, step, self.W_enc, self.b_enc, self.input_centre, self.W_dec)
        return Terms(
            Code(z),
            error,
            squared_error(error),
            {"l1": per_token.mean(), **revived.extra},
            {"l1": per_token, **revived.per_token},
        )

    def numbers(self) -> dict[str, float]:
        return {"l1_coefficient": float(self.control.coefficient)}

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.b_enc.mul_(factor)
        self.b_dec.mul_(factor)
        self.reviver.scale_(factor)

    @torch.no_grad()
    def reset_latents_(self, rows: Tensor, directions: Tensor, encoder_norm: Tensor) -> None:
        super().reset_latents_(rows, directions, encoder_norm)
        if not self.has_unit_rows:
            self.W_dec[rows] *= FREE_NORM  # as at the start

    @torch.no_grad()
    def fold_norms_(self) -> None:
        if self.has_unit_rows:
            return
        norms = self.W_dec.norm(dim=-1)
        # a latent without a decoder row says nothing: it is switched off rather than blown up
        self.W_enc.mul_(norms.unsqueeze(1))
        self.b_enc.mul_(norms)
        self.W_dec.copy_(unit_rows(self.W_dec))

    @torch.no_grad()
    def initialise_(self, sample: Tensor) -> None:
        if self.has_unit_rows:
            self.b_dec.copy_(geometric_median(sample))
        self.reviver.initialise_(sample)

    @torch.no_grad()
    def before_update(self) -> None:
        if self.has_unit_rows and self.W_dec.grad is not None:
            project_gradient_rows_(self.W_dec.grad, self.W_dec)

    @torch.no_grad()
    def after_update(self) -> None:
        if self.has_unit_rows:
            normalise_rows_(self.W_dec)
