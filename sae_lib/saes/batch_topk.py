"""BatchTopK: a batch keeps its k * tokens largest latents, so tokens share one budget.

    pre   = relu(W_enc (x - b_dec) + b_enc)
    z     = keep_top_of_batch(pre, k * tokens)         in training
    z     = pre where pre > threshold, else 0          after training, token by token
    x_hat = W_dec' z + b_dec,   rows of W_dec have unit norm
    loss  = |x - x_hat|^2 + aux_weight var(x) aux      (aux as in topk.py)
    threshold = running mean, over batches, of the smallest latent that was kept

Differs from the authors' code: that selects over the batch at inference too and has no b_enc.
The running mean skips early activations and batches that cannot spend their budget
(`_threshold.py`). Before any batch has been seen there is no threshold, and ``encode`` keeps each
token's k largest.
"""

from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.papers import Paper
from sae_lib.saes._codes import aux_from, step_flops, top_of_batch_code
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
from sae_lib.saes._threshold import follow_smallest_, is_set, scale_threshold_, unset_threshold
from sae_lib.saes.base import Activations, Latents, SaeConfig, SparseCoder, Step, Terms, register


class BatchTopKConfig(SaeConfig):
    """Description of a `BatchTopK`."""

    papers = (Paper("Bussmann et al. 2024", "https://arxiv.org/abs/2412.06410", "3"),)
    summary = "Tokens share one budget of k latents each on average; a threshold at inference."
    dials = ("k",)

    kind: Literal["batch_topk"] = "batch_topk"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    k: int = Field(default=32, gt=0)
    """Latents on per token, on average over a batch."""

    directions: Literal["random", "data"] = "random"
    """How decoder and encoder rows begin: drawn at random, or as inputs of the data, centred and
    at unit length. The latter learns faster where inputs are sums of few directions."""

    aux_k: int = Field(default_factory=half_width, ge=0)
    """Dead latents that try to explain what the live ones left over; derived: near d_in / 2."""

    aux_weight: float = Field(default=1 / 32, ge=0)
    """Loss per unit of their normalised error, in units of the variance of x."""

    threshold_start_steps: int = Field(default=100, ge=0)
    """Batches after which the threshold is averaged; until then it is the latest one."""

    threshold_beta: float = Field(default=0.99, ge=0, lt=1)
    """Share of the threshold that each later batch leaves in place."""

    @model_validator(mode="after")
    def _fits(self) -> "BatchTopKConfig":
        if self.k > self.d_sae:
            raise ValueError(f"k must be between 1 and d_sae={self.d_sae}; got k={self.k}")
        return self

    @classmethod
    def example(cls) -> "BatchTopKConfig":
        return cls(d_in=8, d_sae=32, k=4, aux_k=4)


@register(BatchTopKConfig)
class BatchTopK(SparseCoder[BatchTopKConfig]):
    """Autoencoder whose sparsity is a budget of the batch."""

    x_variance: Tensor
    threshold: Tensor
    num_thresholds: Tensor

    def __init__(self, cfg: BatchTopKConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_dec = nn.Parameter(random_unit_rows(cfg.d_sae, cfg.d_in, cfg.seed))
        self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))
        self.register_buffer("x_variance", torch.ones(()))
        threshold, num_thresholds = unset_threshold()
        self.register_buffer("threshold", threshold)
        self.register_buffer("num_thresholds", num_thresholds)

    @property
    def has_threshold(self) -> bool:
        """Whether a batch has set the threshold; without it ``encode`` is per-token top-k."""
        return is_set(self.threshold)

    def pre(self, x: Activations) -> Latents:
        return latents_of(x, self.W_enc, self.b_enc, self.b_dec)

    def encode(self, x: Activations) -> Latents:
        pre = self.pre(x)
        if not self.has_threshold:
            return keep_top_k(pre, self.cfg.k)
        return pre * (pre > self.threshold)

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def terms(self, step: Step) -> Terms:
        cfg, encoder = self.cfg, (self.W_enc, self.b_enc, self.b_dec)
        budget = cfg.k * len(step.x)
        code = top_of_batch_code(step.x, *encoder, budget)
        self.observe_threshold_(code.on_values.detach(), budget)
        error = step.target - code.times(self.W_dec) - self.b_dec
        extra = {}
        if cfg.aux_weight:
            aux = aux_from(error, step.x, step.dead, *encoder, self.W_dec, cfg.aux_k)
            extra["aux"] = cfg.aux_weight * self.x_variance * aux
        return Terms(code, error, squared_error(error), extra)

    def observe_threshold_(self, z: Float[Tensor, "..."], budget: int) -> None:
        """Move the threshold towards the smallest latent that this batch kept."""
        follow_smallest_(
            self.threshold,
            self.num_thresholds,
            z,
            budget,
            start_steps=self.cfg.threshold_start_steps,
            beta=self.cfg.threshold_beta,
        )

    def numbers(self) -> dict[str, float]:
        return {"threshold": float(self.threshold)} if self.has_threshold else {}

    def flops_per_token(self) -> float:
        return step_flops(self.d_in, self.d_out, self.d_sae, self.cfg.k)

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.b_enc.mul_(factor)
        self.b_dec.mul_(factor)
        self.x_variance.mul_(factor**2)
        scale_threshold_(self.threshold, factor)

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
