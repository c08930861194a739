"""Metrics that put coders to a task: labelled texts, prompts, questions, other corpora.

Such a metric sees all coders of one site at a time, so that what needs no coder (the model's
activations, probes on them, baselines) is computed once.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from jaxtyping import Float
from torch import Tensor

from sae_lib.activations.tokens import TokenSplit
from sae_lib.apply.base import Bench as ApplicationBench
from sae_lib.errors import NotApplicable
from sae_lib.evaluate.base import MetricConfig, Needs
from sae_lib.evaluate.reader import TextReader
from sae_lib.models.language_model import LanguageModel
from sae_lib.saes.base import SparseCoder
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.warehouse.rows import LatentScoreRow, Measurement

OnProgress = Callable[[int, int], None]


class Bench(NamedTuple):
    """All a task metric may use: one site of one model, and the coders that read it."""

    model: LanguageModel
    site: str
    coders: Mapping[str, SparseCoder[Any]]
    """By name. What is found for one does not depend on which others there are."""

    reader: TextReader
    """Activations of texts at the site, read once for all metrics."""

    mean_activation: Float[Tensor, " d_in"]
    """Mean over training tokens."""

    train: TokenSplit | None = None
    """Training contexts of the experiment's corpus; None where there is no corpus."""

    split: TokenSplit | None = None
    """Held-out contexts of the experiment's corpus."""

    world: WorldConfig | None = None
    """The bundled world's settings where the model reads its language; else None."""

    relative_to: Path | None = None
    """Folder below which the paths of an experiment file are."""

    @property
    def for_applications(self) -> ApplicationBench:
        """The same for functions that applications share."""
        return ApplicationBench(
            self.model, self.site, self.coders, self.split, self.world, self.relative_to
        )


class Measured(NamedTuple):
    """What a task metric found for one coder, baselines that it shares with others included."""

    measurements: list[Measurement]
    latents: list[LatentScoreRow] = []  # noqa: RUF012  (a NamedTuple's default is never changed)
    """Scores of single latents, where the metric gives any."""


class TaskMetric(MetricConfig):
    """A metric that puts the coders of a site to a task."""

    needs: ClassVar[Needs] = "tasks"

    code: ClassVar[int] = 1
    """Grows when the numbers of any definition change: results are then computed again."""

    def check(self, bench: Bench) -> None:
        """Raise `NotApplicable` where it has no meaning, before anything is computed."""

    def files(self, relative_to: Path) -> list[Path]:
        """Local files whose content decides the result."""
        return []

    def models(self) -> list[str]:
        """Ids of language models beside the bench's that decide the result."""
        return []

    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        """What was found, by name of the coder."""
        raise TypeError(f"{type(self).__name__} measures nothing")


def measure_task(
    metric: TaskMetric, bench: Bench, on_progress: OnProgress = lambda done, total: None
) -> dict[str, Measured]:
    """What ``metric`` finds for every coder of ``bench``; where it does not apply, why not."""
    try:
        metric.check(bench)
        return metric.measure(bench, on_progress)
    except NotApplicable as error:
        return {name: Measured(metric.absent(error.reason)) for name in bench.coders}
