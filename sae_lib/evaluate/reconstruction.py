"""How much of an activation the reconstruction holds, in several definitions.

    e     = x - x_hat
    mse   = mean |e|^2                                 per token; per element divides by d_in
    fvu   = sum |e|^2 / sum |x - mean(x)|^2            the mean over all evaluated tokens
    ev    = 1 - fvu
    gamma = sum |x_hat|^2 / sum <x, x_hat>             Rajamanoharan et al. 2024, equation 10

``fvu`` by ``ratio_of_sums`` is the one to use. The others are what libraries and papers have
printed under the same names; they are here so that a published number can be compared with the
right one. Sums run over all evaluated tokens, in float64; batches are never averaged.

Differs from SAEBench 0.6: its ``mse`` is divided by the batch's tokens twice, and its explained
variance can exceed 1; neither is offered.
"""

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.evaluate._moments import ContextMoments, Estimate
from sae_lib.evaluate.base import (
    Accumulator,
    Definition,
    EvalBatch,
    EvalContext,
    StreamingMetric,
    register,
)
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import Measurement

SMALLEST_NORM = 1e-8
"""A shorter vector counts as zero where a cosine is taken."""

SMALLEST_DENOMINATOR = 1e-4
"""A norm below this is replaced by 1 under ``l2_ratio``, as SAEBench does."""

CONSTANT = 1e-12
"""Activations vary if their centred sum of squares exceeds this share of the plain one."""

FAR_CENTRE = 0.05
"""Most that the squared distance between training and evaluation mean may be, as a share of the
variance, for the standard error of ``fvu``, which centres contexts at the training mean."""

MSE_TOKEN = Definition("mse", "per_token", "mean over tokens of |e|^2", "lower", 0.0)
MSE_ELEMENT = Definition("mse", "per_element", "mean over tokens of |e|^2 / d_in", "lower", 0.0)
COSINE = Definition(
    "cosine",
    "mean_of_tokens",
    "mean over tokens of <x, x_hat> / (|x| |x_hat|); a zero vector counts as 0",
    "higher",
    -1.0,
    1.0,
)
ZERO_SHARE = Definition(
    "zero_reconstruction_share",
    "mean_of_tokens",
    "share of tokens whose reconstruction is the zero vector",
    "lower",
    0.0,
    1.0,
)
FVU = Definition("fvu", "ratio_of_sums", "sum |e|^2 / sum |x - mean(x)|^2", "lower", 0.0)
FVU_UNCENTRED = Definition("fvu", "uncentred", "sum |e|^2 / sum |x|^2", "lower", 0.0)
EV = Definition("explained_variance", "ratio_of_sums", "1 - fvu", "higher", high=1.0)
EV_LEGACY = Definition(
    "explained_variance",
    "legacy_mean_of_ratios",
    "mean over tokens of 1 - |e|^2 / |x - mean of the batch|^2; depends on the batch",
    "higher",
    high=1.0,
)
EV_VARIANCE = Definition(
    "explained_variance",
    "variance_of_error",
    "1 - sum_j Var(e_j) / sum_j Var(x_j), as in dictionary_learning; forgives a constant error",
    "higher",
    high=1.0,
)
NORMALIZED_MSE = Definition(
    "normalized_mse", "mean_of_ratios", "mean over tokens of |e|^2 / |x|^2", "lower", 0.0
)
L2_RATIO = Definition(
    "l2_ratio", "mean_of_ratios", "mean over tokens of |x_hat| / |x|; 1 is ideal", "neither", 0.0
)
L2_RATIO_MEANS = Definition(
    "l2_ratio", "ratio_of_means", "mean |x_hat| / mean |x|; 1 is ideal", "neither", 0.0
)
L2_IN = Definition("l2_norm_in", "mean_of_tokens", "mean over tokens of |x|", "neither", 0.0)
L2_OUT = Definition("l2_norm_out", "mean_of_tokens", "mean over tokens of |x_hat|", "neither", 0.0)
GAMMA = Definition(
    "relative_reconstruction_bias",
    "ratio_of_sums",
    "sum |x_hat|^2 / sum <x, x_hat>; below 1 is shrinkage",
    "neither",
    0.0,
)

COLUMNS = (
    "squared_error",
    "centred",
    "squared_norm",
    "squared_norm_out",
    "inner",
    "cosine",
    "norm",
    "norm_out",
    "norm_ratio",
    "error_ratio",
    "legacy",
    "zero",
)


@register
class ReconstructionConfig(StreamingMetric):
    papers = (
        Paper("Karvonen et al. 2025", "https://arxiv.org/abs/2503.09532", "core evaluation"),
        Paper("Rajamanoharan et al. 2024", "https://arxiv.org/abs/2404.16014", "equation 10"),
        Paper("Gao et al. 2024", "https://arxiv.org/abs/2406.04093", "normalised MSE, 2.1"),
    )
    survey = ("Mean Squared Error", "Cosine Similarity", "FVU", "Explained Variance", "L2 Ratio")
    summary = "error, variance and shrinkage of the reconstruction"

    name: Literal["reconstruction"] = "reconstruction"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [
            *(MSE_TOKEN, MSE_ELEMENT, COSINE, ZERO_SHARE, FVU, FVU_UNCENTRED),
            *(EV, EV_LEGACY, EV_VARIANCE, NORMALIZED_MSE),
            *(L2_RATIO, L2_RATIO_MEANS, L2_IN, L2_OUT, GAMMA),
        ]

    def start(self, context: EvalContext) -> Accumulator:
        return ReconstructionAccumulator(context)


class ReconstructionAccumulator(Accumulator):
    def __init__(self, context: EvalContext) -> None:
        self.moments = ContextMoments(COLUMNS, unit=context.unit)
        self.batch_contexts = context.batch_contexts
        self.centre = context.mean_activation.double()
        self.error_sum = torch.zeros_like(self.centre)
        self.deviation_sum = torch.zeros_like(self.centre)
        self.num_zero_x = self.num_at_batch_mean = 0

    def update(self, batch: EvalBatch) -> None:
        if not len(batch.x):
            return
        x, x_hat = batch.target.double(), batch.x_hat.double()
        self.centre = self.centre.to(x.device)
        error, deviation = x - x_hat, x - self.centre
        self.error_sum = self.error_sum.to(x.device) + error.sum(0)
        self.deviation_sum = self.deviation_sum.to(x.device) + deviation.sum(0)

        squared_error, squared_norm = _squares(error), _squares(x)
        from_batch_mean = _squares(x - x.mean(0))
        inner, norm, norm_out = (x * x_hat).sum(-1), squared_norm.sqrt(), _squares(x_hat).sqrt()
        at_batch_mean = from_batch_mean <= CONSTANT * squared_norm
        self.num_zero_x += int((squared_norm == 0).sum())
        self.num_at_batch_mean += int(at_batch_mean.sum())
        self.moments.add(
            batch.context,
            batch.num_contexts,
            squared_error,
            _squares(deviation),
            squared_norm,
            norm_out**2,
            inner,
            inner / (norm.clamp_min(SMALLEST_NORM) * norm_out.clamp_min(SMALLEST_NORM)),
            norm,
            norm_out,
            norm_out / norm.masked_fill(norm < SMALLEST_DENOMINATOR, 1.0),
            squared_error / squared_norm.masked_fill(squared_norm == 0, 1.0),
            1 - squared_error / from_batch_mean.masked_fill(at_batch_mean, 1.0),
            (norm_out < SMALLEST_NORM).double(),
        )

    def rows(self) -> list[Measurement]:
        ratio, d_in = self.moments.ratio, len(self.centre)
        fvu = self._fvu()
        return [
            MSE_TOKEN.row(ratio("squared_error")),
            MSE_ELEMENT.row(_scaled(ratio("squared_error"), 1 / d_in)),
            COSINE.row(ratio("cosine")),
            ZERO_SHARE.row(ratio("zero")),
            FVU.row(fvu),
            FVU_UNCENTRED.row(ratio("squared_error", "squared_norm")),
            EV.row(_one_minus(fvu)),
            EV_LEGACY.row(
                _unless(
                    self.num_at_batch_mean,
                    "tokens lie at the mean of their batch, where the ratio has no value",
                    ratio("legacy"),
                ),
                batch_contexts=self.batch_contexts,
            ),
            EV_VARIANCE.row(self._variance_of_error()),
            NORMALIZED_MSE.row(
                _unless(
                    self.num_zero_x,
                    "tokens have the zero vector as activation, where the ratio has no value",
                    ratio("error_ratio"),
                )
            ),
            L2_RATIO.row(ratio("norm_ratio")),
            L2_RATIO_MEANS.row(ratio("norm_out", "norm")),
            L2_IN.row(ratio("norm")),
            L2_OUT.row(ratio("norm_out")),
            GAMMA.row(self._gamma()),
        ]

    def _total_variation(self) -> float | None:
        """Sum of |x - mean(x)|^2 over all tokens; None where the activations do not vary."""
        num_tokens = self.moments.num_tokens
        total = self.moments.total("centred") - self._shift() * num_tokens
        return total if total > CONSTANT * self.moments.total("squared_norm") else None

    def _shift(self) -> float:
        """Squared distance between the mean of the evaluated tokens and the given centre."""
        mean = self.deviation_sum / max(self.moments.num_tokens, 1)
        return mean.square().sum().item()

    def _fvu(self) -> Estimate:
        around_centre = self.moments.ratio("squared_error", "centred")
        total = self._total_variation()
        if self.moments.num_tokens == 0:
            return around_centre
        if total is None:
            return self._constant()
        value = self.moments.total("squared_error") / total
        is_far = self._shift() * self.moments.num_tokens > FAR_CENTRE * total
        return around_centre._replace(
            value=value, stderr=None if is_far else around_centre.stderr, reason=None
        )

    def _variance_of_error(self) -> Estimate:
        moments, total = self.moments, self._total_variation()
        if moments.num_tokens == 0:
            return moments.ratio("squared_error")
        if total is None:
            return self._constant()
        bias = self.error_sum.square().sum().item() / moments.num_tokens
        value = 1 - (moments.total("squared_error") - bias) / total
        return Estimate(value, None, moments.num_contexts, moments.unit)

    def _constant(self) -> Estimate:
        n, unit = self.moments.num_contexts, self.moments.unit
        return Estimate(None, None, n, unit, "the activations are the same for all tokens")

    def _gamma(self) -> Estimate:
        found = self.moments.ratio("squared_norm_out", "inner")
        if found.value is not None and self.moments.total("inner") <= 0:
            reason = "the reconstruction points away from the activation: sum <x, x_hat> < 0"
            return found._replace(value=None, stderr=None, reason=reason)
        return found


def _squares(rows: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
    return rows.square().sum(-1)


def _scaled(estimate: Estimate, factor: float) -> Estimate:
    value, stderr = estimate.value, estimate.stderr
    return estimate._replace(
        value=None if value is None else value * factor,
        stderr=None if stderr is None else stderr * factor,
    )


def _one_minus(estimate: Estimate) -> Estimate:
    return estimate._replace(value=None if estimate.value is None else 1 - estimate.value)


def _unless(number: int, problem: str, estimate: Estimate) -> Estimate:
    if not number or estimate.value is None:
        return estimate
    return estimate._replace(value=None, stderr=None, reason=f"{number} {problem}")
