"""What a reconstruction error does to the output, beside a random error of the same length.

    e_t       = x_t - x_hat_t                      at every kept position at once
    r_t       = |e_t| u_t,                         u_t uniform on the sphere
    KL(v)     = mean over tokens of KL(clean || the model with x - scale v in the place of x)
    ratio     = KL(e) / KL(r)
    per error = KL(v) / (sum |scale v|^2 / sum |x - mean(x)|^2)              nats per unit of FVU

For small ``scale`` KL(v) is scale^2 v' F v / 2, with F the Fisher information of the output about
the activation; so the ratio becomes e' F e / (|e|^2 trace(F) / d): how much the error lies in
directions that the output depends on, in units of what an error without direction would do. 1:
the error harms as much as noise of its length; above 1 it is "pathological" (Gurnee 2024, who
found 2 to 4.5 for SAEs of GPT-2 small at full length); below 1 it lies where little is read.

The mean in the denominator of FVU is that of training tokens. Random errors are drawn with
``seed``, token after token in the order of the text, ``draws`` of them. SAEBench has no such
measurement.
"""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_lib.errors import NotApplicable
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

SMALLEST_KL = 1e-10
"""Nats that a random error must cost to be what others are counted in."""

RATIO = Definition(
    "output_error",
    "kl_ratio_to_random",
    "KL(clean || spliced) over the same with a random error of equal length at every token",
    "lower",
    0.0,
)
LOSS_RATIO = Definition(
    "output_error",
    "loss_ratio_to_random",
    "(CE(spliced) - CE(clean)) over the same with a random error of equal length at every token",
    "lower",
)
PER_ERROR = Definition(
    "output_error",
    "kl_per_fvu",
    "KL(clean || spliced), nats per token, over sum |e|^2 / sum |x - training mean|^2",
    "lower",
    0.0,
)
PER_ERROR_OF_RANDOM = Definition(
    "output_error", "random_kl_per_fvu", "the same for random errors of equal length", "neither", 0
)
KL = Definition(
    "output_error_kl", "coder", "KL(clean || x - scale e), nats per token", "lower", 0.0
)
KL_OF_RANDOM = Definition(
    "output_error_kl",
    "random",
    "KL(clean || x - scale r), nats per token, r random and as long as e",
    "neither",
    0.0,
)


@register
class OutputErrorConfig(StreamingMetric):
    """How an error is scaled, and how often a random one is drawn."""

    papers = (
        Paper(
            "Gurnee 2024",
            "https://www.lesswrong.com/posts/rZPiuFxESMxCDHe4B",
            "SAE reconstruction errors are (empirically) pathological",
        ),
        Paper("Gao et al. 2024", "https://arxiv.org/abs/2406.04093", "4.1, downstream loss"),
    )
    summary = "what the reconstruction error does to predictions, beside random errors as long"
    needs = "language_model"
    survey = ("KL Divergence", "Delta LM Loss")

    name: Literal["output_error"] = "output_error"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    scale: float = Field(default=1.0, gt=0, le=1)
    """Part of the error that is put in; small for the limit in which errors do not interact."""

    draws: int = Field(default=1, gt=0)
    """Random errors per token."""

    seed: int = Field(default=0, ge=0)
    """Seed of the random errors."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [RATIO, LOSS_RATIO, PER_ERROR, PER_ERROR_OF_RANDOM, KL, KL_OF_RANDOM]

    def start(self, context: EvalContext) -> Accumulator:
        if context.no_language_model is not None:
            raise NotApplicable("output_error", context.no_language_model)
        return OutputErrorAccumulator(self, context)


class OutputErrorAccumulator(Accumulator):
    """Divergences over counted positions, squared lengths over kept ones."""

    def __init__(self, cfg: OutputErrorConfig, context: EvalContext) -> None:
        self.cfg, self.mean = cfg, context.mean_activation
        self.generator = np.random.default_rng([cfg.seed, 0x0E])
        self.moments = ContextMoments(
            ["kl", "random_kl", "loss", "random_loss", "error", "spread"], unit=context.unit
        )

    def update(self, batch: EvalBatch) -> None:
        passes = batch.passes
        if passes is None:
            raise NotApplicable("output_error", "the batch came without a language model")
        clean, target = passes.clean, batch.target
        error = self.cfg.scale * (target - batch.x_hat)
        spliced = passes.replaced(target - error, "kept")
        columns = [spliced.kl, spliced.ce - clean.ce]
        kl, loss = torch.zeros_like(clean.ce), torch.zeros_like(clean.ce)
        for rows in self._random(error):
            other = passes.replaced(target - rows, "kept")
            kl, loss = kl + other.kl, loss + other.ce - clean.ce
        columns[1:1] = [kl / self.cfg.draws]
        columns.append(loss / self.cfg.draws)
        per_position = torch.stack([torch.ones_like(clean.ce), *columns], 1).double()
        mean = self.mean.to(target)
        squared = [error.double().square().sum(1), (target - mean).double().square().sum(1)]
        sums = torch.zeros(
            batch.num_contexts, per_position.shape[1], dtype=torch.float64, device=target.device
        ).index_add_(0, clean.context, per_position)
        lengths = torch.zeros(
            batch.num_contexts, 2, dtype=torch.float64, device=target.device
        ).index_add_(0, batch.context, torch.stack(squared, 1))
        self.moments.add_sums(*sums.unbind(1), *lengths.unbind(1))

    def _random(self, error: Float[Tensor, "rows d_out"]) -> list[Float[Tensor, "rows d_out"]]:
        """Errors as long as ``error``, each in random directions; the next of the stream."""
        shape = (len(error), self.cfg.draws, error.shape[1])
        drawn = torch.from_numpy(self.generator.standard_normal(shape, dtype=np.float32))
        unit = drawn / drawn.norm(dim=-1, keepdim=True).clamp_min(1e-30)
        length = error.norm(dim=1, keepdim=True)
        return [unit[:, i].to(error) * length for i in range(self.cfg.draws)]

    def rows(self) -> list[Measurement]:
        params = {"scale": self.cfg.scale, "draws": self.cfg.draws, "seed": self.cfg.seed}
        ratio = self.moments.ratio
        return [
            RATIO.row(self._beside_random("kl", "random_kl"), **params),
            LOSS_RATIO.row(self._beside_random("loss", "random_loss"), **params),
            PER_ERROR.row(self._per_error("kl"), **params),
            PER_ERROR_OF_RANDOM.row(self._per_error("random_kl"), **params),
            KL.row(ratio("kl"), **params),
            KL_OF_RANDOM.row(ratio("random_kl"), **params),
        ]

    def _beside_random(self, of_coder: str, of_random: str) -> Estimate:
        """The ratio, unless a random error does nothing: nothing over nothing is no ratio."""
        random = self.moments.ratio(of_random)
        if random.value is not None and random.value < SMALLEST_KL:
            reason = (
                f"random errors of that length cost {random.value:.2g} nats: no unit to count in"
            )
            return random._replace(value=None, stderr=None, reason=reason)
        return self.moments.ratio(of_coder, of_random)

    def _per_error(self, column: str) -> Estimate:
        """Mean of ``column`` over positions / (sum of squared errors / spread)."""
        error = self.moments.ratio("error", "spread")
        if error.value is None or error.value <= 0:
            reason = error.reason or "the reconstruction has no error"
            return error._replace(value=None, stderr=None, reason=reason)
        return ratio_of_products(self.moments, [column, "spread"], ["tokens", "error"])


def ratio_of_products(moments: ContextMoments, above: list[str], below: list[str]) -> Estimate:
    """Product of the sums of some columns over that of as many others, by the delta method.

        value = prod A / prod B,  stderr = |value| sqrt(n / (n - 1) sum_c (sum a_c/A - sum b_c/B)^2)

    A zero sum below gives a reason, one above the value 0 without an error.
    """
    n, unit = moments.num_contexts, moments.unit
    if moments.num_tokens == 0:
        return Estimate(None, n=0, unit=unit, reason="no token was kept")
    for name in below:
        if moments.total(name) == 0:
            reason = f"the sum of {name.replace('_', ' ')} is 0"
            return Estimate(None, n=n, unit=unit, reason=reason)
    value = math.prod(map(moments.total, above)) / math.prod(map(moments.total, below))
    if value == 0 or n < 2:
        return Estimate(value, None, n, unit)
    weights = torch.zeros(len(moments.columns), dtype=torch.float64)
    for sign, names in ((1.0, above), (-1.0, below)):
        for name in names:
            weights[moments.columns[name]] += sign / moments.total(name)
    squares = float(weights @ moments.products @ weights)
    return Estimate(value, abs(value) * math.sqrt(n / (n - 1) * max(squares, 0.0)), n, unit)
