"""JumpReLU: a latent is on where it passes a threshold of its own, and then keeps its full size.

    pre   = W_enc (x - b_dec) + b_enc                  (tanh: W_enc x + b_enc)
    z     = pre where pre > theta, else 0              theta = exp(log_threshold) > 0
    x_hat = W_dec' z + b_dec                           rows of W_dec have unit norm (tanh: free)
    loss  = |x - x_hat|^2 + sparsity + pre_weight sum_i relu(theta_i - pre_i) |W_dec_i|

    form       sparsity
    l0         penalty sum_i H(pre_i - theta_i)
    target_l0  penalty (mean over tokens of sum_i H(pre_i - theta_i) / target_l0 - 1)^2
    tanh       penalty sum_i tanh(slope z_i |W_dec_i|)

The step H has no gradient but by theta, where it is estimated by a kernel (`_jump.py`). It acts on
``pre``: seen from ``z`` half of the kernel's window would be empty, as it is in several
implementations.

Differs from the sources. In l0 (Rajamanoharan et al.), W_dec starts from Gaussian instead of
He-uniform directions, b_dec at the geometric median of the data instead of 0 unless ``bias_start``
says so, and threshold and bandwidth follow from how large a latent will be. The .001 of the paper,
at unit mean square norm, belong to runs of billions of tokens: few entries of a batch are that
near a threshold, so within a few thousand steps thresholds do not move and the number on does not
fall. target_l0 is the penalty of the library dictionary_learning. tanh (Conerly et al., January
2025) is published for x of norm sqrt(d_in): log_threshold 0.1, bandwidth 2, slope 4 and pre_weight
3e-6 are converted to unit mean square norm, and its penalty of 10 to 20 becomes penalty / d_in.
Its gradients reach all parameters, since tanh has some; but the kernel's part goes to the threshold
alone, as the derivatives printed there say. There rows of W_dec are uniform in +-1/sqrt(d_in),
which is a direction times about 1/sqrt(3), and W_enc is d_in / d_sae times W_dec. There 10,000
latents are on per token at first; a small dictionary starts with half of its latents.

A latent that has died does not come back by a smaller penalty, so a steered penalty reaches targets
below the number of directions that the data have on, and may stay below one above that.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.papers import Paper
from sae_lib.saes._codes import Code
from sae_lib.saes._control import SparsityControl
from sae_lib.saes._jump import jump
from sae_lib.saes._ops import (
    geometric_median,
    normalise_rows_,
    pre_of,
    project_gradient_rows_,
    random_unit_rows,
    squared_error,
    unit_rows,
)
from sae_lib.saes.base import Activations, Latents, SaeConfig, SparseCoder, Step, Terms, register

FIRST_PENALTY = {"l0": 0.03, "tanh": 0.003}
"""Where a steered penalty starts, times the target. From below: too much of it at first, above all
where it reaches all parameters as in tanh, and latents die that never come back."""

QUADRATIC_PENALTY = 1.0
"""Penalty of the form target_l0 where none is given (dictionary_learning)."""

FREE_SIZE = 0.3
"""About the size of a latent where nothing is said about how many are on."""

START_ON = 10_000
"""Latents on per token before the first step (January 2025)."""

MAX_SAMPLE = 8192
"""Rows from which quantiles are taken."""


def _root_width(fields: Mapping[str, Any]) -> float:
    """By what x is longer where the tanh form was published."""
    return math.sqrt(fields.get("d_in", 1))


def _size(fields: Mapping[str, Any]) -> float:
    """About how large a latent is that is on: in a token of norm 1 one of L0 has 1 / sqrt(L0).

    A latent is worth its ``penalty`` from sqrt(penalty) on, which turns out to be near a quarter
    of that.
    """
    if fields.get("target_l0"):
        return 1 / math.sqrt(fields["target_l0"])
    return min(1.0, 4 * math.sqrt(fields["penalty"])) if fields.get("penalty") else FREE_SIZE


def _threshold(fields: Mapping[str, Any]) -> float:
    is_tanh = fields.get("form") == "tanh"
    return math.exp(0.1) / _root_width(fields) if is_tanh else 0.15 * _size(fields)


def _bandwidth(fields: Mapping[str, Any]) -> float:
    is_tanh = fields.get("form") == "tanh"
    return 2 / _root_width(fields) if is_tanh else 0.4 * _size(fields)


def _pre_weight(fields: Mapping[str, Any]) -> float:
    is_tanh = fields.get("form") == "tanh"
    return 3e-6 / _root_width(fields) if is_tanh else 0.0


def _bias_start(fields: Mapping[str, Any]) -> str:
    return "zero" if fields.get("form") == "tanh" else "median"


def _start_on(fields: Mapping[str, Any]) -> float | None:
    is_tanh = fields.get("form") == "tanh"
    return min(START_ON, fields.get("d_sae", 2) / 2) if is_tanh else None


class JumpReLUConfig(SaeConfig):
    """Description of a `JumpReLU`. Scales are those of x at unit mean square norm."""

    papers = (
        Paper("Rajamanoharan et al. 2024b", "https://arxiv.org/abs/2407.14435", "2-4"),
        Paper(
            "Conerly et al. 2025",
            "https://transformer-circuits.pub/2025/january-update",
            "Dictionary Learning Optimization Techniques",
        ),
    )
    summary = "A learned threshold per latent and a penalty on how many pass: nothing shrinks."
    dials = ("penalty", "target_l0")

    kind: Literal["jumprelu"] = "jumprelu"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    form: Literal["l0", "target_l0", "tanh"] = "l0"
    """A penalty on the number of latents on, on its distance from a target, or on a smooth count
    of them."""

    penalty: float | None = Field(default=None, ge=0)
    """Loss per latent that is on; derived where target_l0 is given. In the form target_l0 the loss
    when the number on is twice the target or 0; derived: 1."""

    target_l0: float | None = Field(default=None, gt=0)
    """Mean number of latents on. ``penalty`` is steered towards it, and exactly one of the two is
    given; in the form target_l0 the loss holds it."""

    l0_rate: float = Field(default=0.01, gt=0, lt=1)
    """Largest share by which ``penalty`` moves in a step while it is steered."""

    threshold: float = Field(default_factory=_threshold, gt=0)
    """Threshold of every latent at the start; derived: 0.15 / sqrt(target_l0), or
    0.6 sqrt(penalty); tanh: 1.105 / sqrt(d_in)."""

    bandwidth: float = Field(default_factory=_bandwidth, gt=0)
    """Width of the window about a threshold within which entries move it; derived:
    0.4 / sqrt(target_l0), or 1.6 sqrt(penalty); tanh: 2 / sqrt(d_in)."""

    slope: float = Field(default_factory=lambda fields: 4 * _root_width(fields), gt=0)
    """Of the tanh form: how soon a latent counts as one; derived: 4 sqrt(d_in)."""

    pre_weight: float = Field(default_factory=_pre_weight, ge=0)
    """Loss per unit by which a latent misses its threshold, times the norm of its row: what wakes
    dead latents. Derived: 0; tanh: 3e-6 / sqrt(d_in)."""

    pre_latents: Literal["all", "dead"] = "all"
    """Latents whose misses count: all (January 2025), or those that have not fired for a while
    (SAELens)."""

    start_on: float | None = Field(default_factory=_start_on, gt=0)
    """Latents on per token before the first step, by the choice of b_enc; null leaves b_enc at 0.
    Derived: null; tanh: 10,000, at most d_sae / 2."""

    bias_start: Literal["median", "zero"] = Field(default_factory=_bias_start)  # pyright: ignore[reportAssignmentType]
    """Where b_dec starts: at the geometric median of the data, or at 0. Derived: median; tanh:
    zero."""

    @model_validator(mode="after")
    def _fits(self) -> "JumpReLUConfig":
        if self.form == "target_l0" and self.target_l0 is None:
            raise ValueError("form target_l0 needs target_l0 (latents on per token); got none")
        if self.form != "target_l0" and (self.penalty is None) == (self.target_l0 is None):
            raise ValueError(
                "give exactly one of penalty (loss per latent on) and target_l0 (latents on per "
                f"token); got penalty={self.penalty}, target_l0={self.target_l0}"
            )
        for name in ("target_l0", "start_on"):
            value = getattr(self, name)
            if value is not None and value >= self.d_sae:
                raise ValueError(f"{name} must be below d_sae={self.d_sae}; got {name}={value:g}")
        return self

    @classmethod
    def example(cls) -> "JumpReLUConfig":
        return cls(d_in=8, d_sae=32, penalty=0.03)

    @classmethod
    def examples(cls) -> "tuple[JumpReLUConfig, ...]":
        shape: dict[str, Any] = {"d_in": 8, "d_sae": 32}
        return (
            cls.example(),
            cls(**shape, target_l0=5),
            cls(**shape, form="target_l0", target_l0=5),
            # what is derived at the width at which the tests learn a dictionary
            cls(**shape, form="tanh", penalty=0.005, threshold=0.23, bandwidth=0.41, slope=19.6),
            cls(**shape, penalty=0.03, pre_weight=1e-3, pre_latents="dead"),
        )


@register(JumpReLUConfig)
class JumpReLU(SparseCoder[JumpReLUConfig]):
    """Autoencoder whose latents have thresholds."""

    by_latent = (*SparseCoder.by_latent, "log_threshold")

    log_threshold: nn.Parameter

    def __init__(self, cfg: JumpReLUConfig) -> None:
        super().__init__()
        self.cfg = cfg
        rows = random_unit_rows(cfg.d_sae, cfg.d_in, cfg.seed)
        self.W_dec = nn.Parameter(rows if self.has_unit_rows else rows / math.sqrt(3))
        shrunk = 1.0 if self.has_unit_rows else cfg.d_in / cfg.d_sae
        self.W_enc = nn.Parameter(shrunk * self.W_dec.detach())
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))
        self.log_threshold = nn.Parameter(torch.full((cfg.d_sae,), math.log(cfg.threshold)))
        if cfg.form == "target_l0":
            penalty = QUADRATIC_PENALTY if cfg.penalty is None else cfg.penalty
            self.control = SparsityControl(penalty, None, cfg.l0_rate)
        else:
            first = FIRST_PENALTY[cfg.form] / (cfg.target_l0 or 1)
            self.control = SparsityControl(cfg.penalty, cfg.target_l0, cfg.l0_rate, first)

    @property
    def has_unit_rows(self) -> bool:
        return self.cfg.form != "tanh"

    @property
    def threshold(self) -> Tensor:
        """Theta, (d_sae,), positive."""
        return self.log_threshold.exp()

    def pre(self, x: Activations) -> Latents:
        """What is compared with the thresholds."""
        return pre_of(x, self.W_enc, self.b_enc, self.b_dec if self.has_unit_rows else None)

    def encode(self, x: Activations) -> Latents:
        pre = self.pre(x)
        return pre * (pre > self.threshold)

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def terms(self, step: Step) -> Terms:
        cfg, threshold, pre = self.cfg, self.threshold, self.pre(step.x)
        z, on = jump(pre, threshold, cfg.bandwidth)
        norms = torch.ones_like(self.b_enc) if self.has_unit_rows else self.W_dec.norm(dim=-1)
        self.control.steer_(on.detach().mean().to(self.control.l0.dtype), step.warmup)
        penalty = (step.warmup * self.control.coefficient).clone()
        extra, per_token = {}, {}
        if cfg.form == "target_l0":
            assert cfg.target_l0 is not None
            extra["sparsity"] = penalty * (on.mean() / cfg.target_l0 - 1).square()
        else:
            count = on if cfg.form == "l0" else (cfg.slope * z * norms).tanh().sum(1)
            per_token["sparsity"] = penalty * count
        if cfg.pre_weight:
            weights = norms * step.dead if cfg.pre_latents == "dead" else norms
            per_token["pre"] = cfg.pre_weight * ((threshold - pre).relu() @ weights)
        extra |= {name: values.mean() for name, values in per_token.items()}
        error = step.target - self.decode(z)
        return Terms(Code(z), error, squared_error(error), extra, per_token)

    def numbers(self) -> dict[str, float]:
        return {
            "penalty": float(self.control.coefficient),
            "median_threshold": float(self.threshold.detach().median()),
        }

    @torch.no_grad()
    def reset_latents_(self, rows: Tensor, directions: Tensor, encoder_norm: Tensor) -> None:
        super().reset_latents_(rows, directions, encoder_norm)
        # a threshold from before would keep the weak new rows silent
        low = (encoder_norm / 4).clamp(max=self.cfg.threshold)
        self.log_threshold[rows] = low.clamp_min(torch.finfo(low.dtype).tiny).log()

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.b_enc.mul_(factor)
        self.b_dec.mul_(factor)
        self.log_threshold.add_(math.log(factor))

    @torch.no_grad()
    def fold_norms_(self) -> None:
        if self.has_unit_rows:
            return
        norms = self.W_dec.norm(dim=-1)
        # a latent without a decoder row says nothing: it is switched off rather than blown up
        self.W_enc.mul_(norms.unsqueeze(1))
        self.b_enc.mul_(norms)
        self.log_threshold.add_(torch.where(norms > 0, norms, 1.0).log())
        self.W_dec.copy_(unit_rows(self.W_dec))

    @torch.no_grad()
    def initialise_(self, sample: Tensor) -> None:
        if self.cfg.bias_start == "median":
            self.b_dec.copy_(geometric_median(sample))
        if self.cfg.start_on is not None:
            off = 1 - self.cfg.start_on / self.d_sae
            pre = self.pre(sample[:: -(-len(sample) // MAX_SAMPLE)]).T.contiguous()
            rank = min(len(pre.T) - 1, round(off * len(pre.T)))
            self.b_enc.add_(self.threshold - pre.sort(dim=1).values[:, rank])

    @torch.no_grad()
    def before_update(self) -> None:
        if self.has_unit_rows and self.W_dec.grad is not None:
            project_gradient_rows_(self.W_dec.grad, self.W_dec)

    @torch.no_grad()
    def after_update(self) -> None:
        if self.has_unit_rows:
            normalise_rows_(self.W_dec)
