"""What the language model loses when it reads the reconstruction instead of the activation.

    delta_lm_loss = CE(x_hat spliced in) - CE(clean)                              nats per token
    loss_recovered = (CE(ablated) - CE(spliced)) / (CE(ablated) - CE(clean))
    kl_score       = 1 - KL(clean || spliced) / KL(clean || ablated)

CE is a mean over all counted tokens first; then one ratio is taken. A position counts when its
token is text (no special token, no padding) and the next one is neither BOS nor padding.

Splicing ``kept`` (the default) replaces the activations of text only: special tokens keep theirs,
in the spliced *and* in the ablated pass. ``all`` replaces those of special tokens too. Ablation
puts zeros, or the mean activation of other (training) tokens, in the same places.

Differs from SAEBench, where special tokens are spared in the spliced pass only, and where the
target may be padding; whether the ablated loss is lower or higher with a spared BOS depends on
the model.
"""

from typing import Literal

import torch
from pydantic import Field

from sae_lib.errors import NotApplicable
from sae_lib.evaluate._moments import ContextMoments, Estimate
from sae_lib.evaluate._passes import Positions
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

Ablation = Literal["zero", "mean"]

SPLICES: tuple[Positions, ...] = ("kept", "all")
ABLATIONS: tuple[Ablation, ...] = ("zero", "mean")

CLEAN = Definition(
    "ce_clean", "mean_of_tokens", "cross entropy of the undisturbed model, nats", "neither", 0.0
)


def _where(splice: Positions) -> str:
    return "text only" if splice == "kept" else "all but padding"


def _spliced(name: str, better: Literal["lower", "neither"], text: str) -> dict[str, Definition]:
    return {
        s: Definition(name, f"splice_{s}", f"{text}; replaced at {_where(s)}", better)
        for s in SPLICES
    }


def _ablated(
    name: str, better: Literal["higher", "neither"], text: str, high: float = torch.inf
) -> dict[tuple[str, str], Definition]:
    return {
        (a, s): Definition(
            name,
            f"{a}_ablation_{s}",
            f"{text}; ablated to {'zero' if a == 'zero' else 'the training mean'} at {_where(s)}",
            better,
            high=high,
        )
        for a in ABLATIONS
        for s in SPLICES
    }


CE_SPLICED = _spliced("ce_spliced", "lower", "cross entropy with x_hat spliced in, nats")
DELTA = _spliced("delta_lm_loss", "lower", "CE(spliced) - CE(clean), nats per token")
RELATIVE = _spliced("relative_delta_lm_loss", "lower", "(CE(spliced) - CE(clean)) / CE(clean)")
KL_SPLICED = _spliced("kl_spliced", "lower", "KL(clean || spliced), nats per token")
CE_ABLATED = _ablated("ce_ablated", "neither", "cross entropy of the ablated model, nats")
KL_ABLATED = _ablated("kl_ablated", "neither", "KL(clean || ablated), nats per token")
RECOVERED = _ablated(
    "loss_recovered",
    "higher",
    "(CE(ablated) - CE(spliced)) / (CE(ablated) - CE(clean))",
)
KL_SCORE = _ablated("kl_score", "higher", "1 - KL(clean || spliced) / KL(clean || ablated)", 1.0)


@register
class ModelLossConfig(StreamingMetric):
    papers = (
        Paper("Karvonen et al. 2025", "https://arxiv.org/abs/2503.09532", "loss recovered"),
        Paper("Lieberum et al. 2024", "https://arxiv.org/abs/2408.05147", "delta LM loss"),
        Paper("Bricken et al. 2023", "https://transformer-circuits.pub/2023/monosemantic-features",
              "loss recovered"),
    )  # fmt: skip
    survey = ("Cross-Entropy Loss", "KL Divergence", "Delta LM Loss")
    summary = "next-token loss and predictions with the reconstruction spliced in"
    needs = "language_model"

    name: Literal["model_loss"] = "model_loss"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    splice: Positions = "kept"
    """Which activations are replaced: those of text (kept), or all but padding."""

    ablations: tuple[Ablation, ...] = ABLATIONS
    """What the scores take as worst: zero, or the mean activation over training tokens."""

    smallest_gap: float = Field(default=1e-3, gt=0)
    """Nats that an ablation must cost, or the scores have no value."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [
            CLEAN,
            *(row for table in (DELTA, CE_SPLICED, RELATIVE, KL_SPLICED) for row in table.values()),
            *(
                row
                for table in (RECOVERED, KL_SCORE, CE_ABLATED, KL_ABLATED)
                for row in table.values()
            ),
        ]

    def absent(self, reason: str) -> list[Measurement]:
        ours = {f"splice_{self.splice}", CLEAN.definition}
        ours |= {f"{ablation}_ablation_{self.splice}" for ablation in self.ablations}
        missing = Estimate(None, reason=reason)
        return [row.row(missing) for row in self.definitions() if row.definition in ours]

    def start(self, context: EvalContext) -> Accumulator:
        if context.no_language_model is not None:
            raise NotApplicable("model_loss", context.no_language_model)
        return ModelLossAccumulator(self, context)


class ModelLossAccumulator(Accumulator):
    def __init__(self, cfg: ModelLossConfig, context: EvalContext) -> None:
        self.cfg, self.coder = cfg, context.coder
        mean = context.mean_activation
        self.vectors = {"zero": torch.zeros_like(mean), "mean": mean}
        per_ablation = ("ce", "gap", "recovered", "kl", "kl_recovered")
        columns = [f"{column}_{name}" for name in cfg.ablations for column in per_ablation]
        self.moments = ContextMoments(
            ["ce_clean", "ce_spliced", "delta", "kl_spliced", *columns], unit=context.unit
        )

    def update(self, batch: EvalBatch) -> None:
        passes = batch.passes
        if passes is None:
            raise NotApplicable("model_loss", "the batch came without a language model")
        clean = passes.clean
        if not len(clean.context):
            return
        where, x_hat = self.cfg.splice, batch.x_hat
        if where == "all":
            x_hat = self.coder(passes.activations("all").to(batch.x))
        spliced = passes.replaced(x_hat, where)
        columns = [clean.ce, spliced.ce, spliced.ce - clean.ce, spliced.kl]
        for name in self.cfg.ablations:
            ablated = passes.ablated(name, self.vectors[name], where)
            columns += [
                ablated.ce,
                ablated.ce - clean.ce,
                ablated.ce - spliced.ce,
                ablated.kl,
                ablated.kl - spliced.kl,
            ]
        self.moments.add(clean.context, batch.num_contexts, *columns)

    def rows(self) -> list[Measurement]:
        ratio, where = self.moments.ratio, self.cfg.splice
        rows = [
            DELTA[where].row(ratio("delta")),
            CE_SPLICED[where].row(ratio("ce_spliced")),
            RELATIVE[where].row(ratio("delta", "ce_clean")),
            KL_SPLICED[where].row(ratio("kl_spliced")),
            CLEAN.row(ratio("ce_clean")),
        ]
        for name in self.cfg.ablations:
            key = name, where
            rows += [
                RECOVERED[key].row(self._score(f"recovered_{name}", f"gap_{name}")),
                KL_SCORE[key].row(self._score(f"kl_recovered_{name}", f"kl_{name}")),
                CE_ABLATED[key].row(ratio(f"ce_{name}")),
                KL_ABLATED[key].row(ratio(f"kl_{name}")),
            ]
        return rows

    def _score(self, numerator: str, gap: str) -> Estimate:
        """The ratio, unless the ablation hardly costs anything: noise over noise is no score."""
        mean_gap = self.moments.ratio(gap)
        if mean_gap.value is not None and mean_gap.value < self.cfg.smallest_gap:
            needed = self.cfg.smallest_gap
            reason = f"ablation costs {mean_gap.value:.2g} nats, less than the {needed:g} needed"
            return mean_gap._replace(value=None, stderr=None, reason=reason)
        return self.moments.ratio(numerator, gap)
