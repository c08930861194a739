"""Crosscoder: one set of latents for the activations of several layers or models at a token.

    z     = act(sum_l W_enc^l a^l + b_enc)           which is W_enc x + b_enc of x = [a^1; a^2; ...]
    x_hat = W_dec' z + b_dec,   rows of W_dec free    a_hat^l = W_dec^l' z + b_dec^l
    w_i   = sum_l |W_dec_i^l|                         l1_of_norms
    w_i   = sqrt(sum_l |W_dec_i^l|^2) = |W_dec_i|     l2_of_norms
    relu        loss = |x - x_hat|^2 + l1 sum_i z_i w_i
    batch_topk  keeps the k * tokens largest z_i w_i of a batch, after training those above a
                threshold; loss = |x - x_hat|^2 + aux_weight var(x) aux    (aux as in topk.py)

l1_of_norms presses a latent to live in few sources; l2_of_norms is a norm-weighted SAE of the
concatenation. Errors are summed over sources, each of which is at unit mean square norm.

Differs from the sources: those scale each source to norm sqrt(d), see standard.py for what that
makes of ``l1``; the reference code of BatchTopK reports a loss of norms that are not squared;
latents are chosen for the auxiliary term by z, dead ones having norms that are about equal.
Source scales that are folded are remembered, so that norms mean after training what they meant
in it, and folding changes no choice.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.papers import Paper
from sae_lib.saes._codes import Code, aux_from, is_sparse_faster, sparse_code, step_flops
from sae_lib.saes._control import SparsityControl
from sae_lib.saes._ops import (
    half_width,
    keep_top_k,
    keep_top_of_batch,
    latents_of,
    random_unit_rows,
    spread_of,
    squared_error,
    unit_rows,
)
from sae_lib.saes._select import Choice, Encoder, largest_of_batch
from sae_lib.saes._threshold import follow_smallest_, is_set, scale_threshold_, unset_threshold
from sae_lib.saes.base import Activations, Latents, SaeConfig, SparseCoder, Step, Terms, register

FIRST_NORM = 0.08
"""Norm of each latent's decoder row in each source at the start (Kissane et al.)."""


class CrosscoderConfig(SaeConfig):
    """Description of a `Crosscoder`."""

    papers = (
        Paper(
            "Lindsey et al. 2024",
            "https://transformer-circuits.pub/2024/crosscoders/index.html",
            "Motivations and Setup",
        ),
        Paper("Minder et al. 2025", "https://arxiv.org/abs/2504.02922", "2-3"),
    )
    summary = "One set of latents for several layers or models: tells shared from specific ones."
    dials = ("l1", "target_l0", "k")
    needs_objective = "crosscode"

    kind: Literal["crosscoder"] = "crosscoder"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    num_sources: int = Field(default=2, gt=0)
    """Sites that are read together, all of one width: d_in is num_sources times that."""

    activation: Literal["relu", "batch_topk"] = "relu"
    """What makes it sparse: a penalty (``l1`` or ``target_l0``), or a budget (``k``)."""

    penalty: Literal["l1_of_norms", "l2_of_norms"] = "l1_of_norms"
    """What a latent weighs in the penalty and in the choice: its norms in all sources added up,
    or the norm of all of them together."""

    l1: float | None = Field(default=None, ge=0)
    """Loss per unit of sum_i z_i w_i; of relu, where target_l0 is not given."""

    target_l0: float | None = Field(default=None, gt=0)
    """Mean number of latents on that ``l1`` is steered towards; of relu."""

    l0_rate: float = Field(default=0.01, gt=0, lt=1)
    """Largest share by which ``l1`` moves in a step while it is steered."""

    k: int | None = Field(default=None, gt=0)
    """Latents on per token, on average over a batch; of batch_topk."""

    aux_k: int = Field(default_factory=half_width, ge=0)
    """Dead latents that try to explain what the live ones left over; derived: near d_in / 2."""

    aux_weight: float = Field(default=1 / 32, ge=0)
    """Loss per unit of their normalised error, in units of the variance of x; of batch_topk."""

    threshold_start_steps: int = Field(default=100, ge=0)
    """Batches after which the threshold is averaged; until then it is the latest one."""

    threshold_beta: float = Field(default=0.99, ge=0, lt=1)
    """Share of the threshold that each later batch leaves in place."""

    same_start: bool = False
    """Whether a latent starts with the same direction in all sources: latents then begin shared,
    as wanted where two models are compared."""

    @model_validator(mode="after")
    def _fits(self) -> "CrosscoderConfig":
        given = {name for name in self.dials if getattr(self, name) is not None}
        if self.activation == "relu" and (len(given) != 1 or "k" in given):
            raise ValueError(
                "activation relu takes exactly one of l1 (a coefficient) and target_l0 (latents "
                f"on per token), and no k; got {', '.join(sorted(given)) or 'none'}"
            )
        if self.activation == "batch_topk" and given != {"k"}:
            raise ValueError(
                "activation batch_topk takes k (latents on per token), and neither l1 nor "
                f"target_l0; got {', '.join(sorted(given)) or 'none'}"
            )
        for name in ("k", "target_l0"):
            value = getattr(self, name)
            if value is not None and value > self.d_sae:
                raise ValueError(f"{name} must be at most d_sae={self.d_sae}; got {name}={value}")
        # an experiment file is read with d_in=1 before the width of its sites is known
        if self.d_in > 1 and self.d_in % self.num_sources:
            raise ValueError(
                f"d_in must be num_sources={self.num_sources} times the width of a source; "
                f"got d_in={self.d_in}"
            )
        return self

    @classmethod
    def example(cls) -> "CrosscoderConfig":
        return cls(d_in=8, d_sae=32, l1=0.1)

    @classmethod
    def examples(cls) -> "tuple[CrosscoderConfig, ...]":
        plain = cls.example()
        budget = plain.but(activation="batch_topk", l1=None, k=4, aux_k=4)
        return (
            plain,
            plain.but(penalty="l2_of_norms", l1=None, target_l0=5),
            budget,
            budget.but(penalty="l2_of_norms", num_sources=4),
        )


@register(CrosscoderConfig)
class Crosscoder(SparseCoder[CrosscoderConfig]):
    """Sparse coder of several sources at once."""

    x_variance: Tensor
    threshold: Tensor
    num_thresholds: Tensor
    source_scales: Tensor

    def __init__(self, cfg: CrosscoderConfig) -> None:
        super().__init__()
        self.cfg = cfg
        self.W_dec = nn.Parameter(FIRST_NORM * first_rows(cfg))
        self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))
        is_steered = cfg.activation == "relu"
        self.control = SparsityControl(
            cfg.l1 if is_steered else 0.0, cfg.target_l0 if is_steered else None, cfg.l0_rate
        )
        self.register_buffer("x_variance", torch.ones(()))
        threshold, num = unset_threshold()
        self.register_buffer("threshold", threshold)
        self.register_buffer("num_thresholds", num)
        self.register_buffer("source_scales", torch.ones(cfg.num_sources))

    @property
    def input_centre(self) -> None:
        return None

    def by_source(self, rows: Float[Tensor, "*rows d_in"]) -> Float[Tensor, "*rows sources width"]:
        """Concatenated rows, cut into those of each source."""
        return rows.unflatten(-1, (self.cfg.num_sources, -1))

    def source_norms(self) -> Float[Tensor, "d_sae sources"]:
        """Norm of each latent's decoder row in each source, at the scale of training."""
        return self.by_source(self.W_dec).norm(dim=-1) / self.source_scales

    def weights(self) -> Float[Tensor, " d_sae"]:
        """What a unit of each latent weighs in the penalty and in the choice."""
        norms = self.source_norms()
        return norms.sum(-1) if self.cfg.penalty == "l1_of_norms" else norms.norm(dim=-1)

    def encode(self, x: Activations) -> Latents:
        z = latents_of(x, self.W_enc, self.b_enc, None)
        if self.cfg.activation == "relu":
            return z
        weighed = z * self.weights()
        if is_set(self.threshold):
            return z * (weighed > self.threshold)
        assert self.cfg.k is not None
        return z * (keep_top_k(weighed, self.cfg.k) > 0)

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def terms(self, step: Step) -> Terms:
        return self.penalised(step) if self.cfg.activation == "relu" else self.budgeted(step)

    def penalised(self, step: Step) -> Terms:
        """The terms of relu."""
        z = self.encode(step.x)
        self.control.observe_(z, step.warmup)
        coefficient = (step.warmup * self.control.coefficient).clone()
        per_token = coefficient * (z @ self.weights())
        error = step.target - self.decode(z)
        return Terms(
            Code(z), error, squared_error(error), {"l1": per_token.mean()}, {"l1": per_token}
        )

    def budgeted(self, step: Step) -> Terms:
        """The terms of batch_topk."""
        cfg = self.cfg
        assert cfg.k is not None
        budget, weights = cfg.k * len(step.x), self.weights().detach()
        code, weighed = self.top_of_batch(step.x, weights, budget)
        follow_smallest_(
            self.threshold,
            self.num_thresholds,
            weighed,
            budget,
            start_steps=cfg.threshold_start_steps,
            beta=cfg.threshold_beta,
        )
        error = step.target - code.times(self.W_dec) - self.b_dec
        extra = {}
        if cfg.aux_weight:
            encoder = self.W_enc, self.b_enc, torch.zeros_like(self.b_dec)
            aux = aux_from(error, step.x, step.dead, *encoder, self.W_dec, cfg.aux_k)
            extra["aux"] = cfg.aux_weight * self.x_variance * aux
        return Terms(code, error, squared_error(error), extra)

    def top_of_batch(
        self, x: Float[Tensor, "batch d_in"], weights: Float[Tensor, " d_sae"], num: int
    ) -> tuple[Code, Tensor]:
        """The latents whose weighed values are the ``num`` largest, and these values."""
        if not is_sparse_faster(x, num / (len(x) * self.d_sae)):
            z = latents_of(x, self.W_enc, self.b_enc, None)
            weighed = keep_top_of_batch(z.detach() * weights, num)
            return Code(z * (weighed > 0)), weighed

        def select(x: Tensor, encoder: Encoder) -> Choice:
            # relu(w u) = w relu(u) for w >= 0: the choice among weighed latents is one among
            # those of a weighed encoder
            heavy = Encoder(encoder.W * weights.unsqueeze(1), encoder.b * weights)
            pattern, weighed = largest_of_batch(x, heavy, num)
            by = weights[pattern.latents]
            return Choice(pattern, torch.where(by > 0, weighed / by, 0.0))

        code = sparse_code(x, self.W_enc, self.b_enc, torch.zeros_like(self.b_dec), select)
        values, pattern = code.entries
        return code, values.detach() * weights[pattern.latents]

    def numbers(self) -> dict[str, float]:
        if self.cfg.activation == "relu":
            return {"l1_coefficient": float(self.control.coefficient)}
        return {"threshold": float(self.threshold)} if is_set(self.threshold) else {}

    def flops_per_token(self) -> float:
        if self.cfg.k is None:
            return super().flops_per_token()
        return step_flops(self.d_in, self.d_out, self.d_sae, self.cfg.k)

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.b_enc.mul_(factor)
        self.b_dec.mul_(factor)
        self.x_variance.mul_(factor**2)
        scale_threshold_(self.threshold, factor)

    @torch.no_grad()
    def scale_sources_(self, factors: Sequence[float]) -> None:
        """Turn a coder of [a^1; a^2; ...] into the coder of [f_1 a^1; f_2 a^2; ...].

        Latents stay as they are; `source_norms` goes on telling norms at the scale of training.
        """
        by = torch.tensor(factors, dtype=self.W_dec.dtype, device=self.W_dec.device)
        by_entry = by.repeat_interleave(self.d_in // self.cfg.num_sources)
        self.W_enc.div_(by_entry)
        self.W_dec.mul_(by_entry)
        self.b_dec.mul_(by_entry)
        self.source_scales.mul_(by)

    @torch.no_grad()
    def fold_norms_(self) -> None:
        norms = self.W_dec.norm(dim=-1)
        # a latent without a decoder row says nothing: it is switched off rather than blown up
        self.W_enc.mul_(norms.unsqueeze(1))
        self.b_enc.mul_(norms)
        # weighed latents stay the same, and so does their threshold
        self.W_dec.copy_(unit_rows(self.W_dec))

    @torch.no_grad()
    def initialise_(self, sample: Tensor) -> None:
        self.x_variance.copy_(spread_of(sample))


def first_rows(cfg: CrosscoderConfig) -> Float[Tensor, "d_sae d_in"]:
    """Directions of norm 1 in each source: the same in all, or one drawn for each."""
    width = cfg.d_in // cfg.num_sources
    if cfg.same_start:
        return random_unit_rows(cfg.d_sae, width, cfg.seed).repeat(1, cfg.num_sources)
    drawn = random_unit_rows(cfg.d_sae, cfg.d_in, cfg.seed).view(-1, width)
    return unit_rows(drawn).view(cfg.d_sae, cfg.d_in)
