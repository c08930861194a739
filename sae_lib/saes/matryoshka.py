"""Matryoshka: BatchTopK whose first latents must also reconstruct alone, at several sizes.

    z       = keep_top_of_batch(relu(W_enc (x - b_dec) + b_enc), k * tokens)   over all latents
    z       = pre where pre > threshold, else 0        after training (as in batch_topk.py)
    x_hat_j = sum over the first m_j latents of z_i W_dec_i + b_dec,   m_1 < ... < m_n = d_sae
    loss    = sum_j |x - x_hat_j|^2 + aux_weight var(x) aux            (aux of x - x_hat_n)
    form random: m_1 ... m_(n-1) are drawn anew in each step, P(m <= l) = (l / d_sae)^prefix_power,
            and "first" goes by the running mean of z_i^2, largest first

The latents that are on are split among blocks between neighbouring sizes; blocks are decoded at
the price of one reconstruction, and running sums over blocks are the x_hat_j.

Differs from the sources: Bussmann et al.'s code adds a reconstruction by b_dec alone; ``loss:
mean`` divides all squared errors by n, which makes AuxK n times as heavy. Nabeshima trains with an
L1 penalty; here both forms select as BatchTopK. His law of sizes is called Pareto and is the power
law above, of density l^-1/2; that is what is drawn. He moves the weights of latents and means to
move Adam's moments with them (his code looks for them where they are not). Here weights stay
where they are and ``place`` says which latent is how manieth, so moments need no moving.
"""

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.papers import Paper
from sae_lib.saes._codes import Code, aux_from, step_flops, top_of_batch_code
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
from sae_lib.saes._products import ragged_pattern, sums_by_latent
from sae_lib.saes._threshold import follow_smallest_, is_set, scale_threshold_, unset_threshold
from sae_lib.saes.base import Activations, Latents, SaeConfig, SparseCoder, Step, Terms, register

SHARES = (1 / 32, 3 / 32, 7 / 32, 15 / 32)
"""Blocks of 1/32, 1/16, 1/8, 1/4 and the rest (Bussmann et al.)."""

ENERGY_MEMORY = 0.95
"""Share of the running mean of squared activations that a step leaves in place (Nabeshima)."""


class MatryoshkaConfig(SaeConfig):
    """Description of a `Matryoshka`."""

    papers = (
        Paper("Bussmann et al. 2025", "https://arxiv.org/abs/2503.17547", "3"),
        Paper(
            "Nabeshima 2024",
            "https://github.com/noanabeshima/matryoshka-saes",
            "sae.py",
        ),
    )
    summary = "BatchTopK whose first latents reconstruct alone too, so they stay general."
    dials = ("k",)

    kind: Literal["matryoshka"] = "matryoshka"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    k: int = Field(default=32, gt=0)
    """Latents on per token, on average over a batch, of all latents together."""

    form: Literal["fixed", "random"] = "fixed"
    """The same prefixes in every step (Bussmann), or drawn ones and reordering (Nabeshima)."""

    prefixes: tuple[int | float, ...] = SHARES
    """Sizes of the prefixes, rising: whole numbers of latents, or shares of d_sae below 1. All
    latents together are always the last one and need not be listed; none listed is BatchTopK."""

    num_random: int = Field(default=10, gt=0)
    """Prefixes drawn per step in form random, all latents together being one of them."""

    prefix_power: float = Field(default=0.5, gt=0)
    """Exponent of their law; below 1 short ones are more frequent."""

    reorder_every: int = Field(default=1, gt=0)
    """Steps between reorderings of the latents in form random."""

    loss: Literal["sum", "mean"] = "sum"
    """Squared errors of the prefixes added up, or their mean; AuxK is n times heavier then."""

    aux_k: int = Field(default_factory=half_width, ge=0)
    """Dead latents that try to explain what the live ones left over; derived: near d_in / 2."""

    aux_weight: float = Field(default=1 / 32, ge=0)
    """Loss per unit of their normalised error, in units of the variance of x."""

    threshold_start_steps: int = Field(default=100, ge=0)
    """Batches after which the threshold is averaged; until then it is the latest one."""

    threshold_beta: float = Field(default=0.99, ge=0, lt=1)
    """Share of the threshold that each later batch leaves in place."""

    @model_validator(mode="after")
    def _fits(self) -> "MatryoshkaConfig":
        if self.k > self.d_sae:
            raise ValueError(f"k must be between 1 and d_sae={self.d_sae}; got k={self.k}")
        if self.form == "random":
            if self.prefixes != SHARES:
                raise ValueError(
                    "form random draws its prefixes; leave prefixes out, "
                    f"got prefixes={self.prefixes}"
                )
            if self.num_random > self.d_sae:
                raise ValueError(
                    f"num_random must be between 1 and d_sae={self.d_sae}; "
                    f"got num_random={self.num_random}"
                )
            return self
        are_shares = [isinstance(size, float) for size in self.prefixes]
        if any(are_shares) and not all(are_shares):
            raise ValueError(
                "prefixes are whole numbers of latents or shares such as 0.25, not both; "
                f"got prefixes={self.prefixes}"
            )
        largest = 1 if any(are_shares) else self.d_sae
        is_within = all(0 < size <= largest for size in self.prefixes)
        if not is_within or list(self.prefixes) != sorted(set(self.prefixes)):
            raise ValueError(
                f"prefixes must rise, from above 0 to at most d_sae={self.d_sae} latents, or to at "
                f"most 1.0 as shares; got prefixes={self.prefixes}"
            )
        return self

    @property
    def sizes(self) -> tuple[int, ...]:
        """Sizes of the fixed prefixes in latents, the last one d_sae."""
        found = {
            max(1, round(size * self.d_sae)) if isinstance(size, float) else size
            for size in self.prefixes
        }
        return tuple(sorted(found | {self.d_sae}))

    @classmethod
    def example(cls) -> "MatryoshkaConfig":
        return cls(d_in=8, d_sae=32, k=4, aux_k=4, prefixes=(0.25, 0.5))

    @classmethod
    def examples(cls) -> "tuple[MatryoshkaConfig, ...]":
        plain = cls.example()
        drawn = plain.but(form="random", prefixes=SHARES, num_random=3, reorder_every=2)
        return plain, plain.but(prefixes=(24,), loss="mean"), drawn


@register(MatryoshkaConfig)
class Matryoshka(SparseCoder[MatryoshkaConfig]):
    """Autoencoder of nested dictionaries."""

    x_variance: Tensor
    threshold: Tensor
    num_thresholds: Tensor
    place: Tensor
    energy: Tensor

    def __init__(self, cfg: MatryoshkaConfig) -> None:
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
        self.register_buffer("place", torch.arange(cfg.d_sae))
        self.register_buffer("energy", torch.zeros(cfg.d_sae))

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

    def prefix_of(self, z: Latents, size: int) -> Latents:
        """``z`` with only the first ``size`` latents on: the code of the SAE that they are.

        Which ones are first says ``place``, the position of each latent in the order of nesting.
        """
        return z * (self.place < size)

    def sizes_at(self, number: int) -> tuple[int, ...]:
        """Sizes of the prefixes in the step with this index."""
        if self.cfg.form == "fixed":
            return self.cfg.sizes
        return drawn_sizes(
            self.d_sae, self.cfg.num_random, self.cfg.prefix_power, (self.cfg.seed, number)
        )

    def terms(self, step: Step) -> Terms:
        cfg, encoder = self.cfg, (self.W_enc, self.b_enc, self.b_dec)
        self.reorder_(step.number)
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
        self.observe_energy_(code, len(step.x))
        sizes = self.sizes_at(step.number)
        errors = step.target - self.b_dec - nested_products(code, self.W_dec, self.place, sizes)
        error, weight = errors[-1], 1 / len(sizes) if cfg.loss == "mean" else 1.0
        extra, per_token = {}, {}
        if len(sizes) > 1:
            per_token["prefixes"] = weight * errors[:-1].square().sum((0, 2))
            extra["prefixes"] = per_token["prefixes"].mean()
        if cfg.aux_weight:
            aux = aux_from(error, step.x, step.dead, *encoder, self.W_dec, cfg.aux_k)
            extra["aux"] = cfg.aux_weight * self.x_variance * aux
        return Terms(code, error, squared_error(error), extra, per_token, weight)

    @torch.no_grad()
    def observe_energy_(self, code: Code, num_tokens: int) -> None:
        """Keep the running mean square of each latent; only form random needs it."""
        if self.cfg.form == "fixed":
            return
        if code.dense is not None:
            now = code.dense.square().mean(0)
        else:
            values, pattern = code.entries
            now = sums_by_latent(pattern, values.square()) / num_tokens
        self.energy.lerp_(now.to(self.energy.dtype), 1 - ENERGY_MEMORY)

    @torch.no_grad()
    def reorder_(self, number: int) -> None:
        """In form random put latents of large mean square first, when their step has come."""
        if self.cfg.form == "fixed" or number == 0 or number % self.cfg.reorder_every:
            return
        order = self.energy.argsort(descending=True, stable=True)
        self.place[order] = torch.arange(self.d_sae, device=order.device)

    def numbers(self) -> dict[str, float]:
        return {"threshold": float(self.threshold)} if self.has_threshold else {}

    def flops_per_token(self) -> float:
        return step_flops(self.d_in, self.d_out, self.d_sae, self.cfg.k)

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.b_enc.mul_(factor)
        self.b_dec.mul_(factor)
        self.x_variance.mul_(factor**2)
        self.energy.mul_(factor**2)
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


def drawn_sizes(d_sae: int, num: int, power: float, seed: tuple[int, int]) -> tuple[int, ...]:
    """``num`` different sizes, rising, the last one ``d_sae``; ``seed`` alone decides them.

    The others are drawn from 1 ... d_sae - 1 without replacement by P(m <= l) ~ l**power.
    """
    if num == 1:
        return (d_sae,)
    weights = np.diff(np.arange(d_sae, dtype=np.float64) ** power)
    drawn = np.random.default_rng(seed).choice(
        np.arange(1, d_sae), size=num - 1, replace=False, p=weights / weights.sum()
    )
    return (*sorted(int(size) for size in drawn), d_sae)


def nested_products(
    code: Code,
    W_dec: Float[Tensor, "d_sae d_out"],
    place: Int64[Tensor, " d_sae"],
    sizes: tuple[int, ...],
) -> Float[Tensor, "prefixes batch d_out"]:
    """For each size the product of ``code`` and ``W_dec`` over the latents of smaller ``place``.

    Costs as many products as the last of them alone: each latent is decoded in its own block.
    """
    if len(sizes) == 1:
        return code.times(W_dec).unsqueeze(0)
    if code.dense is not None:
        order = place.argsort()
        z, rows = code.dense.index_select(1, order), W_dec.index_select(0, order)
        widths = [b - a for a, b in zip((0, *sizes), sizes, strict=False)]
        blocks = zip(z.split(widths, 1), rows.split(widths), strict=True)
        return torch.stack([part @ its_rows for part, its_rows in blocks]).cumsum(0)
    values, pattern = code.entries
    num_tokens, d_sae = pattern.shape
    ends = torch.tensor(sizes, device=place.device)
    block = torch.bucketize(place, ends, right=True)[pattern.latents]
    # one tall code: the tokens once per block, each time with that block's latents alone
    rows, order = (block * num_tokens + pattern.tokens).sort(stable=True)
    tall = ragged_pattern(rows, pattern.latents[order], (len(sizes) * num_tokens, d_sae))
    products = Code(None, values[order], tall).times(W_dec)
    return products.view(len(sizes), num_tokens, -1).cumsum(0)
