"""What every explanation method is given and returns, and the registry that finds the methods."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, TypeVar

from pydantic import ValidationError

from sae_lib.config import Config
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.explain.examples import ContextSource
from sae_lib.explain.statistics import LatentStatistics
from sae_lib.explain.vocabulary import Vocabulary
from sae_lib.papers import Paper
from sae_lib.registry import Registry
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import ExampleRow, ExplanationRow

OnProgress = Callable[[int, int], None]


class Evidence(NamedTuple):
    """All a method may look at to explain the latents of one coder."""

    model: Any
    """The `LanguageModel` whose activations the coder reads."""

    site: str
    """Where in the model: resid_post.2, ..."""

    coder: SparseCoder[Any]
    statistics: LatentStatistics
    """What the latents did on the corpus."""

    examples: Mapping[int, list[ExampleRow]]
    """Strongest stretches of text per alive latent, strongest first."""

    vocabulary: Vocabulary
    alive: list[int]
    """Latents to explain, ascending: those that fired at least once."""

    corpus: ContextSource | None = None
    """The text that was read; None where only what was kept of it is at hand."""


class ExplainerConfig(Config):
    """What every method's description has; a method adds its dials and ``explain``."""

    papers: ClassVar[tuple[Paper, ...]] = ()
    summary: ClassVar[str] = ""
    """One line for tables."""

    dials: ClassVar[tuple[str, ...]] = ()
    """Fields a reader would want to change first."""

    trust: ClassVar[int] = 0
    """The label of a latent comes from the applied method with the largest of these."""

    method: str
    """Name in experiment files."""

    def check(self, evidence: Evidence) -> None:
        """Raise `NotApplicable` where the method has no meaning; default: it always has."""

    def explain(self, evidence: Evidence) -> list[ExplanationRow]:
        """One row per alive latent that the method can say something about."""
        raise TypeError(f"{type(self).__name__} does not explain")

    def combine(self, evidence: Evidence, rows: Sequence[ExplanationRow]) -> list[ExplanationRow]:
        """Rows made of the ``rows`` of all methods, once those are known; default: none."""
        return []

    def label(self, row: ExplanationRow) -> str | None:
        """Readable short name of a latent from a row of this method; None where it has none."""
        return ", ".join(row.keywords[:3]) or None


def explain_all(
    evidence: Evidence, methods: Sequence[ExplainerConfig]
) -> tuple[list[ExplanationRow], dict[str, str]]:
    """What every method says, then what is combined of that; and why some do not apply."""
    rows: list[ExplanationRow] = []
    not_applicable: dict[str, str] = {}
    for method in methods:
        try:
            method.check(evidence)
            rows += method.explain(evidence)
        except NotApplicable as error:
            not_applicable[method.method] = error.reason
    said = tuple(rows)
    for method in methods:
        if method.method in not_applicable:
            continue
        try:
            rows += method.combine(evidence, said)
        except NotApplicable as error:
            not_applicable[method.method] = error.reason
    return rows, not_applicable


EXPLAINERS: Registry[type[ExplainerConfig]] = Registry("explanation method")


AnyExplainer = TypeVar("AnyExplainer", bound=type[ExplainerConfig])


def register(config: AnyExplainer) -> AnyExplainer:
    """Class decorator: a method that experiment files may name."""
    EXPLAINERS.add(config.model_fields["method"].default, config)
    return config


def read_explainer(raw: str | Mapping[str, Any]) -> ExplainerConfig:
    """The method that an entry of ``explain:`` describes: a name, or a mapping with ``method``."""
    given = {"method": raw} if isinstance(raw, str) else dict(raw)
    if "method" not in given:
        raise BadInput(
            f"an entry needs a method: one of {', '.join(EXPLAINERS)}.", key="explain", value=given
        )
    config = EXPLAINERS[str(given["method"])]
    try:
        return config.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise BadInput(
            f"{first['msg']}; {config.__name__} has {', '.join(config.model_fields)}.",
            key=f"explain.{where}",
            value=first["input"],
        ) from error
