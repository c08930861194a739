"""k-sparse autoencoder: each token keeps its k largest latents.

    pre   = relu(W_enc (x - b_dec) + b_enc)
    z     = keep_top_k(pre, k)
    x_hat = W_dec' z + b_dec,   rows of W_dec have unit norm
    loss  = |x - x_hat|^2 + multi_weight |x - x_hat(multi_multiple k)|^2 + aux_weight var(x) aux
    aux   = |e - e_hat|^2 / |e - mean e|^2,   e = x - x_hat (constant),
            e_hat = W_dec' keep_top_k(pre of dead latents, aux_k)

Differs from the authors' code: that divides the first term by var(x), the squared error of
predicting the mean, and leaves the auxiliary term; here the auxiliary term is multiplied, which
is the same loss times a constant, so the squared error means the same for every variant. var(x)
is measured once, on the sample that also gives b_dec its first value.
"""

from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.papers import Paper
from sae_lib.saes._codes import aux_from, step_flops, top_k_code
from sae_lib.saes._ops import (
    geometric_median,
    half_width,
    keep_top_k,
    latents_of,
    normalise_rows_,
    project_gradient_rows_,
    random_unit_rows,
    rows_of_data,
    spread_of,
    squared_error,
)
from sae_lib.saes.base import Activations, Latents, SaeConfig, SparseCoder, Step, Terms, register


class TopKConfig(SaeConfig):
    """Description of a `TopK`."""

    papers = (Paper("Gao et al. 2024", "https://arxiv.org/abs/2406.04093", "2.3-2.4, A.2"),)
    summary = "Each token keeps its k largest latents; the number on is exact, nothing shrinks."
    dials = ("k",)

    kind: Literal["topk"] = "topk"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    k: int = Field(default=32, gt=0)
    """Latents on per token."""

    directions: Literal["random", "data"] = "random"
    """How decoder and encoder rows begin: drawn at random, or as inputs of the data, centred and
    at unit length. The latter learns faster where inputs are sums of few directions."""

    aux_k: int = Field(default_factory=half_width, ge=0)
    """Dead latents that try to explain what the live ones left over; derived: near d_in / 2."""

    aux_weight: float = Field(default=1 / 32, ge=0)
    """Loss per unit of their normalised error, in units of the variance of x (A.2)."""

    multi_weight: float = Field(default=0.0, ge=0)
    """Weight of the same latents' error with more of them on (2.4); 0 leaves it out."""

    multi_multiple: int = Field(default=4, ge=2)
    """How many times ``k`` are on in that term."""

    @model_validator(mode="after")
    def _fits(self) -> "TopKConfig":
        if self.k > self.d_sae:
            raise ValueError(f"k must be between 1 and d_sae={self.d_sae}; got k={self.k}")
        return self

    @classmethod
    def example(cls) -> "TopKConfig":
        return cls(d_in=8, d_sae=32, k=4, aux_k=4)

    @classmethod
    def examples(cls) -> "tuple[TopKConfig, ...]":
        plain = cls.example()
        return plain, plain.but(multi_weight=1 / 8), plain.but(directions="data")


@register(TopKConfig)
class TopK(SparseCoder[TopKConfig]):
    """k-sparse autoencoder."""

    x_variance: Tensor

    def __init__(self, cfg: TopKConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_dec = nn.Parameter(random_unit_rows(cfg.d_sae, cfg.d_in, cfg.seed))
        self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))
        self.register_buffer("x_variance", torch.ones(()))

    def pre(self, x: Activations) -> Latents:
        return latents_of(x, self.W_enc, self.b_enc, self.b_dec)

    def encode(self, x: Activations) -> Latents:
        return keep_top_k(self.pre(x), self.cfg.k)

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def terms(self, step: Step) -> Terms:
        cfg, encoder = self.cfg, (self.W_enc, self.b_enc, self.b_dec)
        code = top_k_code(step.x, *encoder, cfg.k)
        error = step.target - code.times(self.W_dec) - self.b_dec
        extra = {}
        if cfg.aux_weight:
            aux = aux_from(error, step.x, step.dead, *encoder, self.W_dec, cfg.aux_k)
            extra["aux"] = cfg.aux_weight * self.x_variance * aux
        if cfg.multi_weight:
            more = top_k_code(step.x, *encoder, min(cfg.multi_multiple * cfg.k, cfg.d_sae))
            error_of_more = step.target - more.times(self.W_dec) - self.b_dec
            extra["multi"] = cfg.multi_weight * squared_error(error_of_more)
        return Terms(code, error, squared_error(error), extra)

    def flops_per_token(self) -> float:
        return step_flops(self.d_in, self.d_out, self.d_sae, self.cfg.k)

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.b_enc.mul_(factor)
        self.b_dec.mul_(factor)
        self.x_variance.mul_(factor**2)

    @torch.no_grad()
    def initialise_(self, sample: Tensor) -> None:
        self.b_dec.copy_(geometric_median(sample))
        self.x_variance.copy_(spread_of(sample))
        if self.cfg.directions == "data":
            self.W_dec.copy_(rows_of_data(sample, self.b_dec, self.d_sae, self.cfg.seed))
            self.W_enc.copy_(self.W_dec)

    @torch.no_grad()
    def before_update(self) -> None:
        if self.W_dec.grad is not None:
            project_gradient_rows_(self.W_dec.grad, self.W_dec)

    @torch.no_grad()
    def after_update(self) -> None:
        normalise_rows_(self.W_dec)
