"""Transcoder: reads the input of a module and reconstructs its output.

    pre   = W_enc (x - b_in) + b_enc
    z     = act(pre)
    y_hat = W_dec' z + b_dec [+ W_skip x],    y the target

    relu        z = relu(pre),                  loss = |y - y_hat|^2 + l1 sum_i z_i |W_dec_i|
    jumprelu    z = pre where pre > theta,      loss = |y - y_hat|^2 + penalty (number on)
    topk        keeps each token's k largest,   loss = |y - y_hat|^2 + aux_weight var(y) aux
    batch_topk  keeps the batch's k * tokens,   the same; a threshold after training

Without ``skip`` rows of W_dec have unit norm. With ``skip`` W_dec and W_skip start at 0, so that
y_hat starts at the mean of y, and rows are free until norms are folded (`sparsify`): a row
without a norm has no direction to keep. The choice is by z as trained, before and after that.

Differs from the sources: b_in starts at the geometric median of x (sparsify and Gemma Scope have
none); W_enc and W_dec start with the same directions where their widths allow it (Gemma Scope
draws them apart); the auxiliary term is AuxK instead of ghost gradients; errors are not divided by
the norm of y, which is at unit mean square norm. What goes through W_skip is not in the latents:
compare ``decode`` with `reconstruct`.
"""

import math
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.papers import Paper
from sae_lib.saes._codes import Code, aux_from, step_flops, top_k_code, top_of_batch_code
from sae_lib.saes._control import SparsityControl
from sae_lib.saes._jump import jump
from sae_lib.saes._ops import (
    geometric_median,
    half_width,
    keep_top_k,
    latents_of,
    normalise_rows_,
    pre_of,
    project_gradient_rows_,
    random_unit_rows,
    spread_of,
    squared_error,
    unit_rows,
)
from sae_lib.saes._threshold import follow_smallest_, is_set, scale_threshold_, unset_threshold
from sae_lib.saes.base import Activations, Latents, SaeConfig, SparseCoder, Step, Terms, register

DIALS_OF = {
    "relu": ("l1", "target_l0"),
    "jumprelu": ("penalty", "target_l0"),
    "topk": ("k",),
    "batch_topk": ("k",),
}
"""Of each activation the fields of which exactly one is given."""


class TranscoderConfig(SaeConfig):
    """Description of a `Transcoder`."""

    papers = (
        Paper("Dunefsky et al. 2024", "https://arxiv.org/abs/2406.11944", "3"),
        Paper("Paulo et al. 2025", "https://arxiv.org/abs/2501.18823", "2"),
    )
    summary = "From a module's input to its output, optionally with a linear way past the latents."
    dials = ("l1", "penalty", "target_l0", "k")
    needs_objective = "transcode"

    kind: Literal["transcoder"] = "transcoder"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    d_out: int | None = Field(default=None, gt=0)
    """Width of what is reconstructed; null: d_in."""

    activation: Literal["relu", "topk", "batch_topk", "jumprelu"] = "topk"
    """What makes it sparse; which of the dials is given follows from it."""

    skip: bool = False
    """Whether a linear map of the input is added to the reconstruction."""

    l1: float | None = Field(default=None, ge=0)
    """Loss per unit of sum_i z_i |W_dec_i|; of relu."""

    penalty: float | None = Field(default=None, ge=0)
    """Loss per latent on; of jumprelu."""

    target_l0: float | None = Field(default=None, gt=0)
    """Mean number of latents on that the coefficient is steered towards; of relu and jumprelu."""

    l0_rate: float = Field(default=0.01, gt=0, lt=1)
    """Largest share by which the coefficient moves in a step while it is steered."""

    k: int | None = Field(default=None, gt=0)
    """Latents on per token; of topk, and on average over a batch of batch_topk."""

    aux_k: int = Field(default_factory=half_width, ge=0)
    """Dead latents that try to explain what the live ones left over; derived: near d_in / 2."""

    aux_weight: float = Field(default=1 / 32, ge=0)
    """Loss per unit of their normalised error, in units of the variance of y; of topk and
    batch_topk."""

    threshold_start_steps: int = Field(default=100, ge=0)
    """Batches after which the threshold of batch_topk is averaged; until then it is the latest."""

    threshold_beta: float = Field(default=0.99, ge=0, lt=1)
    """Share of that threshold that each later batch leaves in place."""

    threshold: float = Field(default=0.05, gt=0)
    """Threshold of every latent of jumprelu at the start."""

    bandwidth: float = Field(default=0.05, gt=0)
    """Width of the window about it within which entries move it."""

    @model_validator(mode="after")
    def _fits(self) -> "TranscoderConfig":
        given = {name for name in self.dials if getattr(self, name) is not None}
        wanted = DIALS_OF[self.activation]
        if len(given) != 1 or not given <= set(wanted):
            raise ValueError(
                f"activation {self.activation} takes exactly one of {', '.join(wanted)}; "
                f"got {', '.join(sorted(given)) or 'none'}"
            )
        for name in ("k", "target_l0"):
            value = getattr(self, name)
            if value is not None and value > self.d_sae:
                raise ValueError(f"{name} must be at most d_sae={self.d_sae}; got {name}={value}")
        return self

    @classmethod
    def example(cls) -> "TranscoderConfig":
        return cls(d_in=8, d_sae=32, k=4, aux_k=4)

    @classmethod
    def examples(cls) -> "tuple[TranscoderConfig, ...]":
        plain = cls.example()
        return (
            plain,
            plain.but(activation="relu", k=None, l1=0.1),
            plain.but(activation="batch_topk"),
            plain.but(activation="jumprelu", k=None, penalty=0.01),
            plain.but(skip=True),
            plain.but(skip=True, activation="batch_topk"),
        )


@register(TranscoderConfig)
class Transcoder(SparseCoder[TranscoderConfig]):
    """Sparse coder from one place to another."""

    target_variance: Tensor
    threshold: Tensor
    num_thresholds: Tensor
    units: Tensor

    def __init__(self, cfg: TranscoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        drawn = random_unit_rows(cfg.d_sae, cfg.d_in + self.d_out, cfg.seed)
        rows = unit_rows(drawn[:, cfg.d_in :])
        is_square = self.d_out == cfg.d_in
        self.W_enc = nn.Parameter(rows.clone() if is_square else unit_rows(drawn[:, : cfg.d_in]))
        self.W_dec = nn.Parameter(torch.zeros_like(rows) if cfg.skip else rows)
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_in = nn.Parameter(torch.zeros(cfg.d_in))
        self.b_dec = nn.Parameter(torch.zeros(self.d_out))
        if cfg.skip:
            self.W_skip = nn.Parameter(torch.zeros(self.d_out, cfg.d_in))
        if cfg.activation == "jumprelu":
            start = torch.full((cfg.d_sae,), math.log(cfg.threshold))
            self.log_threshold = nn.Parameter(start)
        if cfg.k is None:
            given = cfg.penalty if cfg.activation == "jumprelu" else cfg.l1
            self.control = SparsityControl(given, cfg.target_l0, cfg.l0_rate)
        self.register_buffer("target_variance", torch.ones(()))
        threshold, num = unset_threshold()
        self.register_buffer("threshold", threshold)
        self.register_buffer("num_thresholds", num)
        # norms that were folded: latents divided by them are those that were chosen by in training
        self.register_buffer("units", torch.ones(cfg.d_sae))

    @property
    def d_out(self) -> int:
        return self.cfg.d_in if self.cfg.d_out is None else self.cfg.d_out

    @property
    def has_unit_rows(self) -> bool:
        return not self.cfg.skip

    @property
    def input_centre(self) -> Tensor:
        return self.b_in

    def encode(self, x: Activations) -> Latents:
        cfg = self.cfg
        if cfg.activation == "jumprelu":
            pre = pre_of(x, self.W_enc, self.b_enc, self.b_in)
            return pre * (pre > self.log_threshold.exp())
        z = latents_of(x, self.W_enc, self.b_enc, self.b_in)
        if cfg.activation == "relu":
            return z
        as_trained = z / self.units
        if cfg.activation == "batch_topk" and is_set(self.threshold):
            return z * (as_trained > self.threshold)
        assert cfg.k is not None
        return z * (keep_top_k(as_trained, cfg.k) > 0)

    def decode(self, z: Latents) -> Float[Tensor, "*batch d_out"]:
        return z @ self.W_dec + self.b_dec

    def reconstruct(self, x: Activations, z: Latents) -> Float[Tensor, "*batch d_out"]:
        return self.decode(z) + x @ self.W_skip.mT if self.cfg.skip else self.decode(z)

    def terms(self, step: Step) -> Terms:
        cfg = self.cfg
        extra, per_token = {}, {}
        if cfg.k is not None:
            code = self.chosen(step.x, cfg.k)
        elif cfg.activation == "relu":
            z = self.encode(step.x)
            self.control.observe_(z, step.warmup)
            norms = torch.ones_like(self.b_enc) if self.has_unit_rows else self.W_dec.norm(dim=-1)
            per_token["l1"] = (step.warmup * self.control.coefficient).clone() * (z @ norms)
            code = Code(z)
        else:
            pre = pre_of(step.x, self.W_enc, self.b_enc, self.b_in)
            z, on = jump(pre, self.log_threshold.exp(), cfg.bandwidth)
            self.control.steer_(on.detach().mean().to(self.control.l0.dtype), step.warmup)
            per_token["sparsity"] = (step.warmup * self.control.coefficient).clone() * on
            code = Code(z)
        error = step.target - code.times(self.W_dec) - self.b_dec
        if cfg.skip:
            error = error - step.x @ self.W_skip.mT
        if cfg.k is not None and cfg.aux_weight:
            encoder = self.W_enc, self.b_enc, self.b_in
            aux = aux_from(error, step.x, step.dead, *encoder, self.W_dec, cfg.aux_k)
            extra["aux"] = cfg.aux_weight * self.target_variance * aux
        extra |= {name: values.mean() for name, values in per_token.items()}
        return Terms(code, error, squared_error(error), extra, per_token)

    def chosen(self, x: Float[Tensor, "batch d_in"], k: int) -> Code:
        """Latents of topk and batch_topk in training."""
        encoder = self.W_enc, self.b_enc, self.b_in
        if self.cfg.activation == "topk":
            return top_k_code(x, *encoder, k)
        budget = k * len(x)
        code = top_of_batch_code(x, *encoder, budget)
        follow_smallest_(
            self.threshold,
            self.num_thresholds,
            code.on_values.detach(),
            budget,
            start_steps=self.cfg.threshold_start_steps,
            beta=self.cfg.threshold_beta,
        )
        return code

    def numbers(self) -> dict[str, float]:
        if self.cfg.k is None:
            return {"coefficient": float(self.control.coefficient)}
        return {"threshold": float(self.threshold)} if is_set(self.threshold) else {}

    def flops_per_token(self) -> float:
        cfg, past = self.cfg, 4.0 * self.d_in * self.d_out * self.cfg.skip
        if cfg.k is None:
            return super().flops_per_token() + past
        return step_flops(self.d_in, self.d_out, self.d_sae, cfg.k) + past

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        for bias in (self.b_enc, self.b_in, self.b_dec):
            bias.mul_(factor)
        self.target_variance.mul_(factor**2)
        scale_threshold_(self.threshold, factor)
        if self.cfg.activation == "jumprelu":
            self.log_threshold.add_(math.log(factor))

    @torch.no_grad()
    def scale_output_(self, factor: float) -> None:
        """Turn a coder of ``y`` from x into the coder of ``factor * y`` from the same x.

        Latents stay as they are; `fold_norms_` gives rows their norm again.
        """
        self.W_dec.mul_(factor)
        self.b_dec.mul_(factor)
        self.target_variance.mul_(factor**2)
        if self.cfg.skip:
            self.W_skip.mul_(factor)

    @torch.no_grad()
    def fold_norms_(self) -> None:
        norms = self.W_dec.norm(dim=-1)
        # a latent without a decoder row says nothing: it is switched off rather than blown up
        self.W_enc.mul_(norms.unsqueeze(1))
        self.b_enc.mul_(norms)
        positive = torch.where(norms > 0, norms, 1.0)
        self.units.mul_(positive)
        if self.cfg.activation == "jumprelu":
            self.log_threshold.add_(positive.log())
        self.W_dec.copy_(unit_rows(self.W_dec))

    @torch.no_grad()
    def initialise_(self, sample: Tensor) -> None:
        self.b_in.copy_(geometric_median(sample))

    @torch.no_grad()
    def initialise_target_(self, target: Tensor) -> None:
        self.b_dec.copy_(target.mean(0))
        self.target_variance.copy_(spread_of(target))

    @torch.no_grad()
    def before_update(self) -> None:
        if self.has_unit_rows and self.W_dec.grad is not None:
            project_gradient_rows_(self.W_dec.grad, self.W_dec)

    @torch.no_grad()
    def after_update(self) -> None:
        if self.has_unit_rows:
            normalise_rows_(self.W_dec)
