"""What the weights alone say about the latents: norms, biases, and how near neighbours are.

    encoder_decoder_cosine_i = cos(W_enc_i, W_dec_i)
    max_decoder_cosine_i     = max_{j != i} cos(W_dec_i, W_dec_j)       signed; same for W_enc

A maximum near 1 means that two latents write almost the same direction.
"""

from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from sae_lib.errors import NotApplicable
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import (
    Accumulator,
    Definition,
    EvalBatch,
    EvalContext,
    StreamingMetric,
    register,
)
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

QUANTILES = (0.05, 0.5, 0.95)

CHUNK_ELEMENTS = 2**24
"""Cosines in memory at one time."""

STATISTICS = {
    "encoder_norm": "|W_enc_i|",
    "decoder_norm": "|W_dec_i|",
    "encoder_bias": "b_enc_i",
    "encoder_decoder_cosine": "cos(W_enc_i, W_dec_i)",
    "max_decoder_cosine": "max over j != i of cos(W_dec_i, W_dec_j)",
    "max_encoder_cosine": "max over j != i of cos(W_enc_i, W_enc_j)",
}

MEANS = {
    name: Definition(name, "mean_of_latents", f"mean of {formula}", "neither")
    for name, formula in STATISTICS.items()
}
QUANTILE = {
    name: Definition(name, "quantile_of_latents", f"a quantile of {formula}", "neither")
    for name, formula in STATISTICS.items()
}


class WeightStatistics(NamedTuple):
    """One number per latent and statistic."""

    encoder_norm: Float[Tensor, " d_sae"]
    decoder_norm: Float[Tensor, " d_sae"]
    encoder_bias: Float[Tensor, " d_sae"]
    encoder_decoder_cosine: Float[Tensor, " d_sae"]
    max_decoder_cosine: Float[Tensor, " d_sae"]
    max_encoder_cosine: Float[Tensor, " d_sae"]


@register
class WeightsConfig(StreamingMetric):
    papers = (Paper("Karvonen et al. 2025", "https://arxiv.org/abs/2503.09532", "core evaluation"),)
    survey = ("Feature Geometry Analysis",)
    summary = "norms, biases and nearest neighbours of the latents' directions"
    needs = "weights"

    name: Literal["weights"] = "weights"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [*MEANS.values(), *QUANTILE.values()]

    def start(self, context: EvalContext) -> Accumulator:
        return WeightsAccumulator(context.coder)


class WeightsAccumulator(Accumulator):
    """Sees no tokens: everything is known at the start."""

    def __init__(self, coder: SparseCoder[Any]) -> None:
        self.statistics = weight_statistics(coder)

    def update(self, batch: EvalBatch) -> None:
        pass

    def rows(self) -> list[Measurement]:
        rows = []
        for name, values in self.statistics._asdict().items():
            if not len(values):
                reason = "there is only one latent"
                rows += [MEANS[name].row(Estimate(None, reason=reason))]
                continue
            n = len(values)
            rows.append(MEANS[name].row(Estimate(values.mean().item(), None, n, "latents")))
            for q in QUANTILES:
                at = _quantile(values, q)
                rows.append(QUANTILE[name].row(Estimate(at, None, n, "latents"), quantile=q))
        return rows


@torch.no_grad()
def weight_statistics(coder: SparseCoder[Any]) -> WeightStatistics:
    """Statistics of the weights in float64; a coder with one latent has no nearest neighbours.

    Raises `NotApplicable` for a coder whose latents are not one row of W_enc and one of W_dec.
    """
    expected = coder.d_sae, coder.d_in
    parts = {name: getattr(coder, name, None) for name in ("W_enc", "W_dec", "b_enc")}
    if any(part is None for part in parts.values()):
        missing = ", ".join(name for name, part in parts.items() if part is None)
        raise NotApplicable("weights", f"the coder has no {missing}")
    if tuple(coder.W_enc.shape) != expected or tuple(coder.W_dec.shape) != expected:
        shapes = f"{tuple(coder.W_enc.shape)} and {tuple(coder.W_dec.shape)}"
        raise NotApplicable("weights", f"W_enc and W_dec have shapes {shapes}, not {expected}")
    W_enc, W_dec = coder.W_enc.double(), coder.W_dec.double()
    return WeightStatistics(
        encoder_norm=W_enc.norm(dim=-1),
        decoder_norm=W_dec.norm(dim=-1),
        encoder_bias=coder.b_enc.double(),
        encoder_decoder_cosine=F.cosine_similarity(W_enc, W_dec, dim=-1),
        max_decoder_cosine=max_cosine(coder.W_dec),
        max_encoder_cosine=max_cosine(coder.W_enc),
    )


def max_cosine(directions: Float[Tensor, "latents d_in"]) -> Float[Tensor, " neighboured"]:
    """For each row the largest cosine with another row, float64; empty where there is one row.

    A zero row has cosine 0 with everything. Computed in the rows' own precision, a block at a
    time.
    """
    num = len(directions)
    if num < 2:
        return directions.new_zeros(0, dtype=torch.float64)
    unit = F.normalize(directions, dim=-1, eps=1e-12)
    size = max(1, CHUNK_ELEMENTS // num)
    best = []
    for start in range(0, num, size):
        cosine = unit[start : start + size] @ unit.mT
        rows = torch.arange(len(cosine), device=cosine.device)
        cosine[rows, rows + start] = -torch.inf
        best.append(cosine.amax(-1))
    return torch.cat(best).double()


def _quantile(values: Float[Tensor, " latents"], q: float) -> float:
    # torch.quantile refuses more than 16 M values; a sort does not
    ordered = values.sort().values
    place = q * (len(values) - 1)
    low = int(place)
    high = min(low + 1, len(values) - 1)
    return torch.lerp(ordered[low], ordered[high], place - low).item()
