"""The contract every metric keeps, and the registry that finds the files which keep it.

A metric is a frozen config. A *streaming* metric starts one accumulator per coder, which sees each
batch of evaluation tokens once and keeps sums in float64. A *table* metric compares what other
metrics found for many coders. Each number carries the `Definition` it was computed by; where there
is no number there is a reason.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, Literal, NamedTuple, TypeVar

from jaxtyping import Bool, Float, Int
from pydantic import ValidationError
from torch import Tensor

from sae_lib.config import Config
from sae_lib.errors import BadInput, SaeError
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate._passes import SitePasses
from sae_lib.papers import Paper
from sae_lib.registry import Registry
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import LatentRow, Measurement

Needs = Literal["activations", "language_model", "weights", "tasks", "other_metrics", "coders"]


Role = Literal["score", "floor", "ceiling", "part"]


class Definition(NamedTuple):
    """What a number is: enough to compute it again, and to know which way is better."""

    name: str
    """What was measured: fvu, l0, loss_recovered, ..."""

    definition: str
    """Which of the definitions in use: ratio_of_sums, mean_of_tokens, ..."""

    text: str
    """Formula and unit in one line."""

    better: Literal["higher", "lower", "neither"]
    low: float = -math.inf
    """Smallest value the definition allows."""

    high: float = math.inf
    """Largest value the definition allows."""

    version: int = 1
    """Grows when the code changes the numbers."""

    role: Role | None = None
    """Where the name of the definition does not tell it; see `role_of`."""

    def row(self, estimate: Estimate, **params: Any) -> Measurement:
        """The measurement of ``estimate``; a number that is not finite becomes a reason."""
        value, stderr, n, unit, reason = estimate
        if value is not None and not math.isfinite(value):
            value, reason = None, f"the result is {value}, not a finite number"
        if value is None:
            stderr, reason = None, reason or "not computed"
        if stderr is not None and not math.isfinite(stderr):
            stderr = None
        return Measurement(
            self.name, value, self.definition, self.version, stderr, n, unit, params, reason
        )


FLOORS = frozenset(
    {
        "always_none",
        "another_latent",
        "chance",
        "coordinates",
        "majority",
        "no_swap",
        "quiver_with_random_sae",
        "random",
        "random_latents_best_of_grid",
        "random_latents_chosen_on_half",
        "random_mask",
        "random_rows",
        "random_sae",
        "random_texts",
        "swap_all",
        "unsteered",
    }
)
"""Definitions of what learned nothing."""

CEILINGS = frozenset(
    {
        "bag_of_words",
        "boosting",
        "dense_probe",
        "diff_mean",
        "difference_in_means",
        "difference_in_means_best_of_grid",
        "difference_in_means_chosen_on_half",
        "full_swap",
        "knn",
        "linear_probes",
        "logistic",
        "logistic_probe",
        "mdas",
        "mlp",
        "pca",
        "quiver",
        "residual_top_k",
    }
)
"""Definitions of what needs no coder: a coder that is of use comes near it."""


def role_of(definition: Definition) -> Role:
    """A score of the coder; what learned nothing scores (floor) or what needs no coder (ceiling),
    to be read beside the score of that name; or one part of a score."""
    if definition.role is not None:
        return definition.role
    if definition.definition.endswith("of_one"):
        return "part"
    if definition.definition in FLOORS:
        return "floor"
    return "ceiling" if definition.definition in CEILINGS else "score"


class EvalBatch(NamedTuple):
    """Some contexts of the evaluation text, and what one coder makes of them."""

    tokens: Int[Tensor, "batch seq"]
    keep: Bool[Tensor, "batch seq"]
    """Positions that count: no special tokens, no padding."""

    x: Float[Tensor, "rows d_in"]
    """Raw activations that the coder reads, at the kept positions, context by context."""

    z: Float[Tensor, "rows d_sae"]
    x_hat: Float[Tensor, "rows d_in"]
    context: Int[Tensor, " rows"]
    """For each kept position its row of ``tokens``; a context lies in one batch as a whole."""

    passes: SitePasses | None = None
    """The model run with this site replaced; None where no metric needs it or it has no loss."""

    y: Float[Tensor, "rows d_out"] | None = None
    """Raw activations that the coder reconstructs, where they are not those it reads."""

    document: Int[Tensor, "batch seq"] | None = None
    """Number of the document at each position; None where every context is a document."""

    @property
    def target(self) -> Float[Tensor, "rows d_out"]:
        """What ``x_hat`` should be."""
        return self.x if self.y is None else self.y

    @property
    def num_contexts(self) -> int:
        return len(self.tokens)


class EvalContext(NamedTuple):
    """What an accumulator knows before the first batch."""

    site: str
    coder: SparseCoder[Any]
    mean_activation: Float[Tensor, " d_in"]
    """Mean raw activation, over other tokens than those evaluated on, of what is reconstructed."""

    batch_contexts: int
    """Contexts per batch; the last batch may be smaller."""

    unit: str = "contexts"
    """What a row of tokens is: the unit of the standard errors."""

    no_language_model: str | None = None
    """Why the model gives no next-token loss; None where it does."""


class NotFinite(SaeError):
    """Activations, latents or a reconstruction hold NaN or infinity."""


class Accumulator(ABC):
    """Running sums of one metric for one coder; memory does not grow with the tokens seen."""

    @abstractmethod
    def update(self, batch: EvalBatch) -> None:
        """Add a batch."""

    @abstractmethod
    def rows(self) -> list[Measurement]:
        """What the batches so far amount to."""

    def per_latent(self) -> list[LatentRow]:
        """Statistics by latent, for the ``latents`` table; most metrics have none."""
        return []


class SiteAccumulator(ABC):
    """Running sums about a site itself, whatever the coders do."""

    @abstractmethod
    def update(self, x: Float[Tensor, "rows d_in"]) -> None:
        """Add the activations of a batch, finite or not."""

    @abstractmethod
    def rows(self) -> list[Measurement]:
        """What the batches so far amount to."""


class MetricConfig(Config):
    """What every metric's description has; a metric adds its dials."""

    papers: ClassVar[tuple[Paper, ...]] = ()
    summary: ClassVar[str] = ""
    """One line for tables."""

    needs: ClassVar[Needs] = "activations"

    survey: ClassVar[tuple[str, ...]] = ()
    """What the survey (sections 4.1, 4.2, appendices D and F) calls what this measures."""

    name: str
    """Name in experiment files."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        """Every definition that a row of this metric may carry."""
        raise TypeError(f"{cls.__name__} defines nothing")

    def absent(self, reason: str) -> list[Measurement]:
        """Rows that say for each definition why there is no number."""
        return [found.row(Estimate(None, reason=reason)) for found in self.definitions()]


class StreamingMetric(MetricConfig):
    """A metric of one coder, computed during the one pass over the evaluation tokens."""

    def start(self, context: EvalContext) -> Accumulator:
        """A fresh accumulator; raises `NotApplicable` where the metric has no meaning."""
        raise TypeError(f"{type(self).__name__} does not start")


class TableMetric(MetricConfig):
    """A metric that compares coders by what other metrics found."""

    needs: ClassVar[Needs] = "other_metrics"

    def start_site(self, site: str, mean_activation: Float[Tensor, " d_in"]) -> SiteAccumulator:
        """What the comparison wants to know about the site itself, from the same pass."""
        raise TypeError(f"{type(self).__name__} does not start")


class GridMetric(MetricConfig):
    """A metric that compares the coders of a site with one another."""

    needs: ClassVar[Needs] = "coders"

    code: ClassVar[int] = 1
    """Grows when the numbers of any definition change: results are then computed again."""

    def compare(
        self, coders: Mapping[str, SparseCoder[Any]], families: Mapping[str, str]
    ) -> dict[str, list[Measurement]]:
        """Rows by name of the coder.

        ``families`` gives every coder's family: members of one differ in their seed alone.
        """
        raise TypeError(f"{type(self).__name__} compares nothing")


METRICS: Registry[type[MetricConfig]] = Registry("metric")

MetricClass = TypeVar("MetricClass", bound=type[MetricConfig])


def register(config: MetricClass) -> MetricClass:
    """Class decorator: a metric that experiment files may name."""
    METRICS.add(config.model_fields["name"].default, config)
    return config


def read_metric(raw: str | Mapping[str, Any]) -> MetricConfig:
    """The metric that an entry of ``evaluate:`` describes: a name, or a mapping with ``name``.

    Raises:
        UnknownName: no metric is called so.
        BadInput: the mapping has no name, a key nobody declared, or a value out of range.
    """
    given = {"name": raw} if isinstance(raw, str) else dict(raw)
    if "name" not in given:
        raise BadInput(
            f"an entry needs a name: one of {', '.join(METRICS)}.", key="evaluate", value=given
        )
    config = METRICS[str(given["name"])]
    try:
        return config.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(
            f"{first['msg']}; {given['name']} has {', '.join(config.model_fields)}.",
            key=f"evaluate.{where}" if where else "evaluate",
            value=first["input"],
        ) from error
