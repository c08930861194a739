"""What a training step looks at and what its loss is made of."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_lib.config import Config
from sae_lib.errors import BadInput
from sae_lib.papers import Paper
from sae_lib.registry import Registry
from sae_lib.saes.base import SaeConfig, SparseCoder, Step, Terms


@runtime_checkable
class Batch(Protocol):
    """Activations of the same tokens at every site that somebody asked for."""

    @property
    def x(self) -> Mapping[str, Tensor]:
        """Raw activations per site, (batch, d_in) each, float32."""
        ...

    @property
    def rows(self) -> Tensor:
        """Which tokens these are, (batch,) int64: indices into the split they come from."""
        ...


class SharedBatch:
    """A batch that many coders read: what several of them need is made once."""

    def __init__(self, batch: Batch) -> None:
        self.source, self.x, self.rows = batch, batch.x, batch.rows
        self._scaled: dict[tuple[str, float], Tensor] = {}

    def scaled(self, site: str, scale: float) -> Tensor:
        """Activations of a site times ``scale``; whoever gets them must not change them."""
        if (site, scale) not in self._scaled:
            self._scaled[site, scale] = self.x[site] if scale == 1 else self.x[site] * scale
        return self._scaled[site, scale]


class StepInfo(NamedTuple):
    """Where a coder stands in its training."""

    site: str
    """The place the coder is trained at: a site, or several (`sae_lib.models.places`)."""

    scale: float
    """Factor that brings raw activations to the scale of training."""

    dead: Bool[Tensor, " d_sae"]
    """Latents that have not fired for a while."""

    progress: float
    """Share of training that is done, in [0, 1]."""

    warmup: float
    """Factor on sparsity penalties."""

    number: int
    """Index of the step."""

    dead_in_company: tuple[Bool[Tensor, " d_sae"], ...] = ()
    """Such latents of each coder that is trained along, in their order."""

    scales: Mapping[str, float] = MappingProxyType({})
    """Of a place of several sites the factor of each, where ``scale`` is 1."""


class Objective:
    """Reconstruction of what the coder reads; the others override what they change.

    One is built for each trainee. ``step`` decides which data a step sees; ``terms`` may add to
    the coder's own loss. What an objective has to know in a later step is in ``memory``; nothing
    else of it changes, so a checkpoint needs that and the coders that are trained along.
    """

    def __init__(self, cfg: "ObjectiveConfig") -> None:
        self.cfg = cfg
        self.company: Sequence[SparseCoder[Any]] = ()
        """Coders trained along, which the trainee's optimiser and checkpoint take in."""

        self.company_terms: Sequence[Terms] = ()
        """What the latest step came to for each of them; `terms` sets it."""

        self.memory: dict[str, Tensor] = {}
        """Tensors that outlive a step, changed in place; `join` makes them."""

        self.scales: Mapping[str, float] = MappingProxyType({})
        """Of a place of several sites the factor of each; set before `join`."""

        self.site = ""
        """The place of the trainee; set before `join`."""

    def join(self, coder: SparseCoder[Any]) -> None:
        """Called once, before training, with the fresh coder; may fill ``company``."""

    def step(self, batch: Batch, info: StepInfo) -> Step:
        """What the coder may look at; tensors are on the device of the batch."""
        shared = batch if isinstance(batch, SharedBatch) else SharedBatch(batch)
        x = shared.scaled(info.site, info.scale)
        return Step(
            x=x,
            target=x,
            dead=info.dead,
            progress=info.progress,
            warmup=info.warmup,
            number=info.number,
        )

    def terms(self, coder: SparseCoder[Any], step: Step, batch: Batch, info: StepInfo) -> Terms:
        """The loss of one step, term by term; here exactly what the coder says."""
        return coder.terms(step)

    def starts_anew(self, coder: SparseCoder[Any], terms: Terms, number: int) -> bool:
        """Asked after each step of each coder: whether it is to start again from fresh weights.

        ``terms`` are those of this coder's step.
        """
        return False

    @torch.no_grad()
    def finish_(self, coder: SparseCoder[Any]) -> None:
        """Fold into the coder what only this objective knows; before the scale is folded."""


class ObjectiveConfig(Config):
    """What every objective's description has; an objective adds its own fields."""

    papers: ClassVar[tuple[Paper, ...]] = ()
    summary: ClassVar[str] = ""
    """One line for tables: what the objective is for."""

    needs_model: ClassVar[bool] = False
    """Whether a step runs the language model, so that ``build`` must be given it."""

    takes: ClassVar[Literal["site", "several", "map"]] = "site"
    """What it is trained at: one site, several side by side, or from one to another."""

    reads: ClassVar[Literal["rows", "contexts"]] = "rows"
    """Tokens from everywhere, or whole contexts with their tokens (`ContextBatch`)."""

    kind: str
    """Name in experiment files."""

    def check(self, sae_cfg: SaeConfig) -> None:
        """Refuse a variant this objective makes no sense for, by raising `BadInput`."""
        needed = sae_cfg.needs_objective
        if needed is not None and needed != self.kind:
            raise BadInput(
                f"{sae_cfg.kind} maps one place to another, which only the objective {needed} "
                f"trains; say objective: {{kind: {needed}, ...}}.",
                key="objective",
                value=self.kind,
            )

    def check_places(self, places: Sequence[str], d_model: int) -> None:
        """Refuse places it cannot be trained at together, by raising `BadInput`."""

    def files(self) -> list[str]:
        """Files that decide what is learnt, relative to the experiment file; default none."""
        return []

    def also_reads(self, site: str, sites: Sequence[str]) -> list[str]:
        """Sites of the model's ``sites`` that a step at ``site`` looks at besides; default none."""
        return []

    def build(self, *, model: Any = None) -> Objective:
        """The objective; ``model`` is the language model where ``needs_model``."""
        raise TypeError(f"{type(self).__name__} has no build")


OBJECTIVES: Registry[type[ObjectiveConfig]] = Registry("objective")


ObjectiveClass = TypeVar("ObjectiveClass", bound=type[ObjectiveConfig])


def register(config: ObjectiveClass) -> ObjectiveClass:
    """Class decorator: make an objective known under its ``kind``."""
    OBJECTIVES.add(config.model_fields["kind"].default, config)
    return config
