"""Mutual choice: a batch keeps its k * tokens largest latents; rare latents are kept in use.

    z     = keep_top_of_batch(relu(W_enc (x - b_dec) + b_enc), k * tokens)     in training
    z     = pre where pre > threshold, else 0        after training (as in batch_topk.py)
    x_hat = W_dec' z + b_dec,   rows of W_dec have unit norm
    loss  = |x - x_hat|^2 + aux_weight var(x) aux_zipf
    aux_zipf = aux of topk.py over the latents that are dead, or that fire at less than
               underused_share of the rate which Zipf's law gives to their rank

The selection is that of BatchTopK; the auxiliary loss differs, and is BatchTopK's own at
underused_share = 0. The paper gives neither code nor the formula of aux_zipf, which it describes
as AuxK generalised to dying latents; rates, law and share are ours. The budget is one per batch,
where the paper speaks of the whole data.
"""

from typing import Literal

import torch
from jaxtyping import Bool
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.papers import Paper
from sae_lib.saes._codes import aux_from, step_flops, top_of_batch_code
from sae_lib.saes._columns import num_on_by_latent
from sae_lib.saes._ops import (
    geometric_median,
    half_width,
    keep_top_k,
    latents_of,
    normalise_rows_,
    project_gradient_rows_,
    random_unit_rows,
    spread_of,
    squared_error,
)
from sae_lib.saes._threshold import follow_smallest_, is_set, scale_threshold_, unset_threshold
from sae_lib.saes._zipf import as_large_as_k, follow_rates_, ranks_of, underused, zipf_quotas
from sae_lib.saes.base import Activations, Latents, SaeConfig, SparseCoder, Step, Terms, register


class MutualChoiceConfig(SaeConfig):
    """Description of a `MutualChoice`."""

    papers = (Paper("Ayonrinde 2024", "https://arxiv.org/abs/2411.02124", "3"),)
    summary = "Tokens share one budget as in BatchTopK; latents below Zipf's law get help."
    dials = ("k",)

    kind: Literal["mutual_choice"] = "mutual_choice"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    k: int = Field(default=32, gt=0)
    """Latents on per token, on average over a batch."""

    zipf_exponent: float = Field(default=1.0, ge=0)
    """How fast the expected rate of latents falls with their rank."""

    zipf_offset: float = Field(default_factory=as_large_as_k, ge=0)
    """Added to ranks, so that the first ones are more alike; derived: k."""

    underused_share: float = Field(default=0.1, ge=0, le=1)
    """A latent below this share of its expected rate takes part in the auxiliary loss; at 0 only
    dead ones do."""

    rate_beta: float = Field(default=0.99, ge=0, lt=1)
    """Share of the running mean of rates that each batch leaves in place."""

    aux_k: int = Field(default_factory=half_width, ge=0)
    """Underused latents that try to explain what is left over; derived: near d_in / 2."""

    aux_weight: float = Field(default=1 / 32, ge=0)
    """Loss per unit of their normalised error, in units of the variance of x."""

    threshold_start_steps: int = Field(default=100, ge=0)
    """Batches after which the threshold is averaged; until then it is the latest one."""

    threshold_beta: float = Field(default=0.99, ge=0, lt=1)
    """Share of the threshold that each later batch leaves in place."""

    @model_validator(mode="after")
    def _fits(self) -> "MutualChoiceConfig":
        if self.k > self.d_sae:
            raise ValueError(f"k must be between 1 and d_sae={self.d_sae}; got k={self.k}")
        return self

    @classmethod
    def example(cls) -> "MutualChoiceConfig":
        return cls(d_in=8, d_sae=32, k=4, aux_k=4)

    @classmethod
    def examples(cls) -> "tuple[MutualChoiceConfig, ...]":
        return cls.example(), cls.example().but(underused_share=0, zipf_exponent=0.0)


@register(MutualChoiceConfig)
class MutualChoice(SparseCoder[MutualChoiceConfig]):
    """Autoencoder in which tokens and latents choose each other."""

    x_variance: Tensor
    threshold: Tensor
    num_thresholds: Tensor
    rates: Tensor
    num_rates: Tensor
    expected: Tensor

    def __init__(self, cfg: MutualChoiceConfig) -> None:
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
        self.register_buffer("rates", torch.zeros(cfg.d_sae))
        self.register_buffer("num_rates", torch.zeros((), dtype=torch.int64))
        # firings per token by rank, which follow from the settings and need no storing
        quotas = zipf_quotas(cfg.d_sae, cfg.k, cfg.zipf_exponent, cfg.zipf_offset, 1)
        self.register_buffer("expected", quotas.float(), persistent=False)

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

    def underused(self, dead: Bool[Tensor, " d_sae"]) -> Bool[Tensor, " d_sae"]:
        """Latents that take part in the auxiliary loss."""
        expected = self.expected[ranks_of(self.rates)]
        return underused(self.rates, expected, dead, self.cfg.underused_share)

    def terms(self, step: Step) -> Terms:
        cfg, encoder = self.cfg, (self.W_enc, self.b_enc, self.b_dec)
        budget = cfg.k * len(step.x)
        code = top_of_batch_code(step.x, *encoder, budget)
        follow_smallest_(
            self.threshold,
            self.num_thresholds,
            code.on_values.detach(),
            budget,
            start_steps=cfg.threshold_start_steps,
            beta=cfg.threshold_beta,
        )
        now = num_on_by_latent(code) / len(step.x)
        follow_rates_(self.rates, self.num_rates, now, cfg.rate_beta)
        error = step.target - code.times(self.W_dec) - self.b_dec
        extra = {}
        if cfg.aux_weight:
            rows = self.underused(step.dead)
            aux = aux_from(error, step.x, rows, *encoder, self.W_dec, cfg.aux_k)
            extra["aux_zipf"] = cfg.aux_weight * self.x_variance * aux
        return Terms(code, error, squared_error(error), extra)

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

    @torch.no_grad()
    def before_update(self) -> None:
        if self.W_dec.grad is not None:
            project_gradient_rows_(self.W_dec.grad, self.W_dec)

    @torch.no_grad()
    def after_update(self) -> None:
        normalise_rows_(self.W_dec)
