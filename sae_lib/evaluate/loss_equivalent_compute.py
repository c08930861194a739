"""The training compute at which the model itself was as bad as it is with a coder spliced in.

    C(L)  = compute at which the model's training curve first is at L, interpolated in log compute
    share = C(L_end + CE(spliced) - CE(clean)) / C_end

1: splicing costs nothing; 0.1: the spliced model is as good as the model after a tenth of its
training (Gao et al. 2024, section 4.1, gave 10 % for 16 million latents in GPT-4). L_end is the
curve's own end: the increase, not the loss, is looked up, because the evaluation text need not be
as hard as the training text; the share at the spliced loss itself is a row of its own.

The curve is read from ``training.json`` in the model's folder, or given as ``points``. It is made
non-increasing by isotonic regression (the loss of a batch wiggles), and is never extrapolated: a
loss above its first point, or a better one than its last, gives a reason. One run with a falling
learning rate is not a scaling law: halfway, it is worse than a shorter run would be at its end, so
a share from it is an upper bound on what compute-optimal training would say.

Compute is in whatever unit the points have (tokens, FLOPs); the share needs none. SAEBench has no
such measurement.
"""

import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float
from pydantic import Field
from sklearn.isotonic import IsotonicRegression

from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate._moments import ContextMoments, Estimate
from sae_lib.evaluate._passes import Positions, SitePasses
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

RECORD = "training.json"
"""What a model's folder says of its training."""

CLEAN_IS_BETTER = 1e-9
"""Nats by which a spliced loss may be below the curve's end and still count as at it."""

SHARE = Definition(
    "loss_equivalent_compute",
    "equal_increase",
    "C(end of the curve + CE(spliced) - CE(clean)) / C(end): share of the model's training compute",
    "higher",
    0.0,
    1.0,
)
SHARE_AT_LOSS = Definition(
    "loss_equivalent_compute",
    "equal_loss",
    "C(CE(spliced)) / C(end): as if evaluation and training text were equally hard",
    "higher",
    0.0,
    1.0,
)
SHARE_OF_CLEAN = Definition(
    "loss_equivalent_compute",
    "clean_equal_loss",
    "C(CE(clean)) / C(end): the ceiling of equal_loss",
    "neither",
    0.0,
    1.0,
)
COMPUTE = Definition(
    "equivalent_compute",
    "equal_increase",
    "C(end of the curve + CE(spliced) - CE(clean)), in the unit of the curve",
    "higher",
    0.0,
)


class Curve(NamedTuple):
    """A training curve that never rises."""

    compute: Float[np.ndarray, " points"]
    """Ascending, above 0."""

    loss: Float[np.ndarray, " points"]
    unit: str

    @property
    def end(self) -> float:
        return float(self.loss[-1])

    def compute_at(self, loss: float) -> float:
        """Compute at which the curve first is at ``loss``.

        Raises `NotApplicable` outside the curve.
        """
        if not math.isfinite(loss):
            raise NotApplicable("loss_equivalent_compute", "the spliced loss is not finite.")
        if loss > self.loss[0]:
            raise NotApplicable(
                "loss_equivalent_compute",
                f"the curve begins at {self.loss[0]:.4g} nats, below the {loss:.4g} looked up, and"
                " is not extrapolated.",
            )
        if loss < self.end - CLEAN_IS_BETTER:
            raise NotApplicable(
                "loss_equivalent_compute",
                f"the curve ends at {self.end:.4g} nats, above the {loss:.4g} looked up, and is not"
                " extrapolated.",
            )
        # first point at or below the loss; a flat stretch counts from its beginning
        last = int(np.flatnonzero(self.loss <= max(loss, self.end))[0])
        if last == 0:
            return float(self.compute[0])
        high, low = self.loss[last - 1], self.loss[last]
        part = (high - loss) / (high - low)
        before, after = self.compute[last - 1], self.compute[last]
        return float(min(before * (after / before) ** part, after))

    def slope_at(self, loss: float, step: float = 1e-3) -> float:
        """d log C / d loss around ``loss``, within the curve."""
        low, high = max(self.end, loss - step), min(float(self.loss[0]), loss + step)
        if high <= low:
            return 0.0
        return (math.log(self.compute_at(high)) - math.log(self.compute_at(low))) / (high - low)


def training_curve(points: list[tuple[float, float]], unit: str) -> Curve:
    """The curve through (compute, loss), by isotonic regression where the loss rises."""
    if len(points) < 2:
        raise BadInput(
            f"a training curve needs two points at least; there are {len(points)}.", key="points"
        )
    given = sorted(points)
    compute, loss = (np.array(column, dtype=np.float64) for column in zip(*given, strict=True))
    if not (np.isfinite(compute).all() and np.isfinite(loss).all()) or compute[0] <= 0:
        raise BadInput("compute must be above 0, and all numbers finite.", key="points")
    if len(np.unique(compute)) < len(compute):
        raise BadInput("two points have the same compute.", key="points")
    fitted = IsotonicRegression(increasing=False).fit_transform(np.log(compute), loss)
    return Curve(compute, np.asarray(fitted, dtype=np.float64), unit)


def recorded_curve(folder: Path) -> Curve:
    """The curve of ``training.json`` in a model's folder, compute in tokens."""
    file = folder / RECORD
    if not file.exists():
        raise NotApplicable(
            "loss_equivalent_compute",
            f"the model's folder has no {RECORD}, and no points of its training are given.",
        )
    record: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    curve, tokens, steps = (record.get(key) for key in ("curve", "num_tokens", "num_steps"))
    if not curve or not tokens or not steps:
        raise NotApplicable(
            "loss_equivalent_compute", f"{RECORD} has no curve, num_tokens and num_steps."
        )
    return training_curve(
        [(point["step"] * tokens / steps, point["loss"]) for point in curve], "tokens"
    )


@register
class LossEquivalentComputeConfig(StreamingMetric):
    """Where the training curve comes from, and how a coder is spliced in."""

    papers = (Paper("Gao et al. 2024", "https://arxiv.org/abs/2406.04093", "4.1, downstream loss"),)
    summary = "share of the model's training compute that is left when it reads the reconstruction"
    needs = "language_model"
    survey = ("Delta LM Loss",)

    name: Literal["loss_equivalent_compute"] = "loss_equivalent_compute"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    points: tuple[tuple[float, float], ...] = ()
    """(compute, loss in nats per token) along the training; none: the model folder's record."""

    unit: str = Field(default="tokens", min_length=1)
    """What compute is counted in, where points are given: tokens, FLOPs, ..."""

    splice: Positions = "kept"
    """Which activations are replaced: those of text (kept), or all but padding."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [SHARE, SHARE_AT_LOSS, SHARE_OF_CLEAN, COMPUTE]

    def start(self, context: EvalContext) -> Accumulator:
        if context.no_language_model is not None:
            raise NotApplicable("loss_equivalent_compute", context.no_language_model)
        return LossEquivalentComputeAccumulator(self, context)


class LossEquivalentComputeAccumulator(Accumulator):
    """Clean and spliced losses; the curve comes with the first batch, which knows the model."""

    def __init__(self, cfg: LossEquivalentComputeConfig, context: EvalContext) -> None:
        self.cfg, self.coder = cfg, context.coder
        self.curve: Curve | None = None
        if cfg.points:
            self.curve = training_curve(list(cfg.points), cfg.unit)
        self.moments = ContextMoments(["clean", "spliced", "increase"], unit=context.unit)

    def update(self, batch: EvalBatch) -> None:
        passes = batch.passes
        if passes is None:
            raise NotApplicable("loss_equivalent_compute", "the batch came without a model")
        if self.curve is None:
            self.curve = _curve_of(passes)
        clean, x_hat = passes.clean, batch.x_hat
        if not len(clean.context):
            return
        if self.cfg.splice == "all":
            x_hat = self.coder(passes.activations("all").to(batch.x))
        spliced = passes.replaced(x_hat, self.cfg.splice)
        self.moments.add(
            clean.context, batch.num_contexts, clean.ce, spliced.ce, spliced.ce - clean.ce
        )

    def rows(self) -> list[Measurement]:
        if self.curve is None:
            return self.cfg.absent("no token was kept")
        params = {"splice": self.cfg.splice, "curve_end": self.curve.end, "curve_unit": self.unit}
        increase = self.moments.ratio("increase")
        above_end = increase
        if increase.value is not None:
            # a coder that helps by a hair's breadth is at the end of the curve
            above_end = increase._replace(value=self.curve.end + max(increase.value, 0.0))
        whole = float(self.curve.compute[-1])
        return [
            SHARE.row(self._looked_up(above_end, whole), **params),
            SHARE_AT_LOSS.row(self._looked_up(self.moments.ratio("spliced"), whole), **params),
            SHARE_OF_CLEAN.row(self._looked_up(self.moments.ratio("clean"), whole), **params),
            COMPUTE.row(self._looked_up(above_end, 1.0), **params),
        ]

    @property
    def unit(self) -> str:
        return "tokens" if self.curve is None else self.curve.unit

    def _looked_up(self, loss: Estimate, whole: float) -> Estimate:
        """Compute at ``loss`` over ``whole``; the error follows the curve's slope."""
        if loss.value is None or self.curve is None:
            return loss
        try:
            value = self.curve.compute_at(loss.value) / whole
        except NotApplicable as error:
            return loss._replace(value=None, stderr=None, reason=error.reason)
        stderr = None
        if loss.stderr is not None:
            step = max(loss.stderr, 1e-6)
            stderr = value * abs(self.curve.slope_at(loss.value, step)) * loss.stderr
        return loss._replace(value=value, stderr=stderr)


def _curve_of(passes: SitePasses) -> Curve:
    """The recorded curve of the model that ``passes`` run."""
    info = getattr(passes.model, "info", None)
    path = getattr(info, "path", None)
    if path is None:
        raise NotApplicable(
            "loss_equivalent_compute",
            f"the model has no folder here with a {RECORD}, and no points are given.",
        )
    return recorded_curve(path)
