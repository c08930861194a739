"""ProLU: the bias only decides whether a latent is on, so it costs no height.

    m     = W_enc (x - b_dec)
    z     = m where m > 0 and m + b_enc > 0, else 0
    x_hat = W_dec' z + b_dec,   rows of W_dec have unit norm
    loss  = |x - x_hat|^2 + coefficient P(z),   P = sum_i z_i, or sum_i sqrt(z_i + eps) - sqrt(eps)

With b_enc < 0 this is a JumpReLU with the threshold -b_enc, with b_enc >= 0 it is relu(m). The
derivative by b_enc is zero almost everywhere; one of two is put in its place, for an incoming
gradient g where the latent is on:

    relu   g to m,            g to b_enc         (as if z were relu(m + b_enc))
    ste    g (1 + m) to m,    g m to b_enc       (m times a step of m + b_enc with slope 1)

Differs from the source: what it says of first values and of the exact square-root penalty could
not be verified. Here b_enc starts at 0, W_enc at W_dec, b_dec at the geometric median, and
eps = 1e-6 bounds the slope of the root at 0. The coefficient may follow from a target for the
number of latents on, and there may be a term for dead latents.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.papers import Paper
from sae_lib.saes._codes import Code
from sae_lib.saes._control import SparsityControl
from sae_lib.saes._ops import (
    geometric_median,
    normalise_rows_,
    pre_of,
    project_gradient_rows_,
    random_unit_rows,
    squared_error,
)
from sae_lib.saes._penalties import check_dials, power
from sae_lib.saes._revive import Reviver, RevivingConfig
from sae_lib.saes.base import Activations, Latents, SparseCoder, Step, Terms, register


class ProLUConfig(RevivingConfig):
    """Description of a `ProLU`."""

    papers = (
        Paper(
            "Taggart 2024",
            "https://www.alignmentforum.org/posts/HEpufTdakGTTKgoYF/prolu-a-pareto-improvement-for-sparse-autoencoders",
            "ProLU",
        ),
    )
    summary = "ReLU whose bias only switches; a threshold per latent, learnt by a made-up gradient."
    dials = ("coefficient", "target_l0")

    kind: Literal["prolu"] = "prolu"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    gradient: Literal["relu", "ste"] = "ste"
    """What stands in for the derivative by the bias: that of a ReLU, or straight through."""

    penalty: Literal["l1", "sqrt"] = "l1"
    """Sum of latents, or of their square roots, which shrinks large ones less."""

    coefficient: float | None = Field(default=None, ge=0)
    """Loss per unit of penalty, at unit mean square norm; derived where target_l0 is given."""

    target_l0: float | None = Field(default=None, gt=0)
    """Mean number of latents on that the coefficient is steered towards; exactly one is given."""

    l0_rate: float = Field(default=0.01, gt=0, lt=1)
    """Largest share by which the coefficient moves in a step while it is steered."""

    @model_validator(mode="after")
    def _fits(self) -> "ProLUConfig":
        check_dials(self.coefficient, self.target_l0, self.d_sae)
        return self

    @classmethod
    def example(cls) -> "ProLUConfig":
        return cls(d_in=8, d_sae=32, coefficient=0.1)

    @classmethod
    def examples(cls) -> "tuple[ProLUConfig, ...]":
        plain = cls.example()
        return (
            plain,
            plain.but(gradient="relu", coefficient=None, target_l0=5),
            plain.but(penalty="sqrt", coefficient=0.05, revive="aux_k", aux_k=4),
            plain.but(gradient="relu", revive="ghost"),
        )


@register(ProLUConfig)
class ProLU(SparseCoder[ProLUConfig]):
    """Autoencoder whose bias acts in the gate alone."""

    def __init__(self, cfg: ProLUConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_dec = nn.Parameter(random_unit_rows(cfg.d_sae, cfg.d_in, cfg.seed))
        self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))
        self.control = SparsityControl(cfg.coefficient, cfg.target_l0, cfg.l0_rate)
        self.reviver = Reviver(cfg)

    def encode(self, x: Activations) -> Latents:
        m = pre_of(x, self.W_enc, torch.zeros_like(self.b_enc), self.b_dec)
        return prolu(m, self.b_enc, self.cfg.gradient)

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def terms(self, step: Step) -> Terms:
        z = self.encode(step.x)
        self.control.observe_(z, step.warmup)
        coefficient = (step.warmup * self.control.coefficient).clone()
        per_token = coefficient * power(z, 1.0 if self.cfg.penalty == "l1" else 0.5).sum(-1)
        error = step.target - self.decode(z)
        revived = self.reviver(error, step, self.W_enc, self.b_enc, self.b_dec, self.W_dec)
        return Terms(
            Code(z),
            error,
            squared_error(error),
            {"sparsity": per_token.mean(), **revived.extra},
            {"sparsity": per_token, **revived.per_token},
        )

    def numbers(self) -> dict[str, float]:
        return {"coefficient": float(self.control.coefficient)}

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.b_enc.mul_(factor)
        self.b_dec.mul_(factor)
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


def prolu(
    m: Float[Tensor, "*batch d_sae"],
    b: Float[Tensor, " d_sae"],
    gradient: Literal["relu", "ste"],
) -> Float[Tensor, "*batch d_sae"]:
    """``m`` where m > 0 and m + b > 0, else 0, with the chosen stand-in for the derivative."""
    return _ProLU.apply(m, b, gradient == "ste")  # pyright: ignore[reportReturnType]


class _ProLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, m: Tensor, b: Tensor, is_ste: bool) -> Tensor:
        z = m * ((m > 0) & (m + b > 0))
        ctx.save_for_backward(z)  # it has m wherever the gradient needs it
        ctx.is_ste = is_ste
        return z

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (z,) = ctx.saved_tensors
        through = gradients[0] * (z > 0)
        by_b = through * z if ctx.is_ste else through
        by_m = through + by_b if ctx.is_ste else through
        return by_m, by_b.reshape(-1, by_b.shape[-1]).sum(0), None
