"""Feature choice: each latent keeps the tokens on which it is largest, a number of its own.

    pre   = relu(W_enc (x - b_dec) + b_enc)
    z     = for latent i the m_i largest positive entries over the batch       in training
    z     = pre where pre > threshold_i, else 0        after training, token by token
    x_hat = W_dec' z + b_dec,   rows of W_dec have unit norm
    loss  = |x - x_hat|^2 + aux_weight var(x) aux_zipf       (aux_zipf as in mutual_choice.py)
    sum_i m_i = k * tokens;  m_i equal (uniform), or by Zipf's law over the ranks of latents (zipf)
    threshold_i = running mean, over batches, of where latent i's budget ended

For the first ``mutual_share`` of training the batch's largest entries are kept whoever they belong
to (mutual choice); ranks then follow from how often each latent was on. Later they follow from how
often it would be on if one in 8 tokens chose so, and are taken anew every ``rerank_every`` batches.

The paper gives the two forms of budgets and the order of phases, neither code nor numbers: law,
ranks, auxiliary loss and thresholds are ours (variants.md 3.9). Whole budgets sum exactly to
k * tokens (`_zipf.py`); where some latent would never get a token they are drawn in each step.
A threshold lies midway between the smallest entry kept and the largest left out: the mean of the
smallest kept alone is too high, by half a token of m_i where entries fall off exponentially.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.papers import Paper
from sae_lib.saes._codes import Code, aux_from, step_flops, top_of_batch_code
from sae_lib.saes._columns import num_on_by_latent, top_of_columns_code
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
from sae_lib.saes._select import Encoder, largest_of_batch
from sae_lib.saes._threshold import follow_, is_set, scale_threshold_, unset_threshold
from sae_lib.saes._zipf import (
    as_large_as_k,
    follow_rates_,
    ranks_of,
    underused,
    whole_quotas,
    zipf_quotas,
)
from sae_lib.saes.base import Activations, Latents, SaeConfig, SparseCoder, Step, Terms, register

SAMPLE_EVERY = 8
"""One of so many tokens tells how often latents would be on without budgets of their own."""


class FeatureChoiceConfig(SaeConfig):
    """Description of a `FeatureChoice`."""

    papers = (Paper("Ayonrinde 2024", "https://arxiv.org/abs/2411.02124", "3"),)
    summary = "Each latent has a budget of tokens, so none can die; by Zipf's law, or all alike."
    dials = ("k",)

    kind: Literal["feature_choice"] = "feature_choice"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    k: int = Field(default=32, gt=0)
    """Latents on per token, on average over a batch."""

    budgets: Literal["zipf", "uniform"] = "zipf"
    """More tokens for latents that are frequent, or the same number for all."""

    zipf_exponent: float = Field(default=1.0, ge=0)
    """How fast budgets fall with the rank of a latent."""

    zipf_offset: float = Field(default_factory=as_large_as_k, ge=0)
    """Added to ranks, so that the first ones are more alike; derived: k."""

    mutual_share: float = Field(default=0.1, ge=0, lt=1)
    """Share of training, at its start, in which the batch's largest entries are kept."""

    rerank_every: int = Field(default=1000, gt=0)
    """Batches with budgets after which latents are ranked anew; the first one ranks them too."""

    underused_share: float = Field(default=0.1, ge=0, le=1)
    """A latent below this share of its expected rate takes part in the auxiliary loss; at 0 only
    dead ones do."""

    rate_beta: float = Field(default=0.99, ge=0, lt=1)
    """Share of the running means of rates that each batch leaves in place."""

    aux_k: int = Field(default_factory=half_width, ge=0)
    """Underused latents that try to explain what is left over; derived: near d_in / 2."""

    aux_weight: float = Field(default=1 / 32, ge=0)
    """Loss per unit of their normalised error, in units of the variance of x."""

    threshold_start_steps: int = Field(default=100, ge=0)
    """Batches with budgets after which thresholds are averaged; until then the latest counts."""

    threshold_beta: float = Field(default=0.99, ge=0, lt=1)
    """Share of a threshold that each later batch leaves in place."""

    @model_validator(mode="after")
    def _fits(self) -> "FeatureChoiceConfig":
        if self.k > self.d_sae:
            raise ValueError(f"k must be between 1 and d_sae={self.d_sae}; got k={self.k}")
        return self

    @classmethod
    def example(cls) -> "FeatureChoiceConfig":
        return cls(d_in=8, d_sae=32, k=4, aux_k=4, mutual_share=0.2, rerank_every=100)

    @classmethod
    def examples(cls) -> "tuple[FeatureChoiceConfig, ...]":
        plain = cls.example()
        return plain, plain.but(budgets="uniform", mutual_share=0), plain.but(mutual_share=0.9)


@register(FeatureChoiceConfig)
class FeatureChoice(SparseCoder[FeatureChoiceConfig]):
    """Autoencoder in which latents choose tokens."""

    x_variance: Tensor
    threshold: Tensor
    num_thresholds: Tensor
    rates: Tensor
    num_rates: Tensor
    wishes: Tensor
    num_wishes: Tensor
    ranks: Tensor
    num_choices: Tensor
    expected: Tensor

    def __init__(self, cfg: FeatureChoiceConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_dec = nn.Parameter(random_unit_rows(cfg.d_sae, cfg.d_in, cfg.seed))
        self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))
        self.register_buffer("x_variance", torch.ones(()))
        threshold, num_thresholds = unset_threshold(cfg.d_sae)
        self.register_buffer("threshold", threshold)
        self.register_buffer("num_thresholds", num_thresholds)
        # how often each latent is on, and how often it would be without a budget of its own
        for name in ("rates", "wishes"):
            self.register_buffer(name, torch.zeros(cfg.d_sae))
            self.register_buffer(f"num_{name}", torch.zeros((), dtype=torch.int64))
        self.register_buffer("ranks", torch.arange(cfg.d_sae))
        self.register_buffer("num_choices", torch.zeros((), dtype=torch.int64))
        # firings per token by rank, which follow from the settings and need no storing
        self.register_buffer("expected", self.quotas(cfg.k, 1).float(), persistent=False)

    @property
    def has_threshold(self) -> bool:
        """Whether any latent has a threshold; without one ``encode`` is per-token top-k."""
        return is_set(self.threshold)

    def pre(self, x: Activations) -> Latents:
        return latents_of(x, self.W_enc, self.b_enc, self.b_dec)

    def encode(self, x: Activations) -> Latents:
        pre = self.pre(x)
        if not self.has_threshold:
            return keep_top_k(pre, self.cfg.k)
        # a latent that never had a budget stays off
        return pre * (pre > torch.where(self.threshold >= 0, self.threshold, torch.inf))

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def quotas(self, total: int, cap: int) -> Float[Tensor, " d_sae"]:
        """What each rank gets of ``total`` firings, at most ``cap``; not whole numbers."""
        exponent = self.cfg.zipf_exponent if self.cfg.budgets == "zipf" else 0.0
        return zipf_quotas(self.d_sae, total, exponent, self.cfg.zipf_offset, cap)

    def counts(self, num_tokens: int, number: int) -> Int64[Tensor, " d_sae"]:
        """The budget of each latent in the step with this index, on the CPU."""
        total = self.cfg.k * num_tokens
        draw = float(np.random.default_rng((self.cfg.seed, number)).random())
        by_rank = whole_quotas(self.quotas(total, num_tokens), total, draw)
        return by_rank[self.ranks.cpu()]

    def underused(self, dead: Bool[Tensor, " d_sae"], is_mutual: bool) -> Bool[Tensor, " d_sae"]:
        """Latents that take part in the auxiliary loss."""
        ranks = ranks_of(self.rates) if is_mutual else self.ranks
        return underused(self.rates, self.expected[ranks], dead, self.cfg.underused_share)

    def terms(self, step: Step) -> Terms:
        cfg, encoder = self.cfg, (self.W_enc, self.b_enc, self.b_dec)
        is_mutual = step.progress < cfg.mutual_share
        if is_mutual:
            code = top_of_batch_code(step.x, *encoder, cfg.k * len(step.x))
        else:
            code = self.chosen_(step)
        now = num_on_by_latent(code) / len(step.x)
        follow_rates_(self.rates, self.num_rates, now, cfg.rate_beta)
        if is_mutual:
            follow_rates_(self.wishes, self.num_wishes, now, cfg.rate_beta)
        error = step.target - code.times(self.W_dec) - self.b_dec
        extra = {}
        if cfg.aux_weight:
            rows = self.underused(step.dead, is_mutual)
            aux = aux_from(error, step.x, rows, *encoder, self.W_dec, cfg.aux_k)
            extra["aux_zipf"] = cfg.aux_weight * self.x_variance * aux
        return Terms(code, error, squared_error(error), extra)

    def chosen_(self, step: Step) -> Code:
        """The code in which each latent spends its budget; ranks and thresholds follow."""
        self.observe_wishes_(step.x)
        if int(self.num_choices) % self.cfg.rerank_every == 0:
            self.ranks.copy_(ranks_of(self.wishes))
        self.num_choices.add_(1)
        counts = self.counts(len(step.x), step.number)
        code, cuts = top_of_columns_code(step.x, self.W_enc, self.b_enc, self.b_dec, counts)
        follow_(
            self.threshold,
            self.num_thresholds,
            cuts,
            (counts > 0).to(cuts.device),
            start_steps=self.cfg.threshold_start_steps,
            beta=self.cfg.threshold_beta,
        )
        return code

    @torch.no_grad()
    def observe_wishes_(self, x: Float[Tensor, "batch d_in"]) -> None:
        """Note which latents some of the tokens would keep by mutual choice."""
        sample = x[::SAMPLE_EVERY] - self.b_dec
        found = largest_of_batch(sample, Encoder(self.W_enc, self.b_enc), self.cfg.k * len(sample))
        on = found.pattern.latents[found.values > 0]
        now = torch.bincount(on, minlength=self.d_sae) / len(sample)
        follow_rates_(self.wishes, self.num_wishes, now, self.cfg.rate_beta)

    def numbers(self) -> dict[str, float]:
        if not self.has_threshold:
            return {}
        return {"mean_threshold": float(self.threshold[self.threshold >= 0].mean())}

    def flops_per_token(self) -> float:
        """As in topk.py, and the encoder's product for some tokens where latents choose."""
        wishes = (1 - self.cfg.mutual_share) * 2.0 * self.d_sae * self.d_in / SAMPLE_EVERY
        return step_flops(self.d_in, self.d_out, self.d_sae, self.cfg.k) + wishes

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
