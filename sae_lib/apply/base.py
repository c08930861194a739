"""What every application is given and returns, and the registry that finds the applications."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, TypeVar

from pydantic import ValidationError

from sae_lib.activations.tokens import TokenSplit
from sae_lib.config import Config
from sae_lib.errors import BadInput
from sae_lib.models.language_model import LanguageModel
from sae_lib.papers import Paper
from sae_lib.registry import Registry
from sae_lib.saes.base import SparseCoder
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.warehouse.rows import ApplicationRow, SelectionRow

OnProgress = Callable[[int, int], None]


class Bench(NamedTuple):
    """All an application may use: one site of one model, and the coders that read it."""

    model: LanguageModel
    site: str
    coders: Mapping[str, SparseCoder[Any]]
    """By name. Baselines are listed with every coder, so without one there are no rows."""

    split: TokenSplit | None = None
    """Held-out contexts of the experiment's corpus; None where there is no corpus."""

    world: WorldConfig | None = None
    """The bundled world's settings where the model reads its language; else None."""

    relative_to: Path | None = None
    """Folder below which the paths of an experiment file are."""


class Applied(NamedTuple):
    """What an application found for one coder, baselines that it shares with others included."""

    rows: list[ApplicationRow]
    selections: list[SelectionRow]


class ApplicationConfig(Config):
    """What every application's description has; a file adds its dials and ``apply``."""

    papers: ClassVar[tuple[Paper, ...]] = ()
    summary: ClassVar[str] = ""
    """One line for tables."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """Of "labelled_texts", "lm_head" and "corpus", what it cannot do without."""

    headline: ClassVar[str] = ""
    """The measurement that is recorded as absent, with the reason, where it does not apply."""

    dials: ClassVar[tuple[str, ...]] = ()
    """Fields a reader would want to change first."""

    kind: str
    """Name in experiment files."""

    def check(self, bench: Bench) -> None:
        """Raise `NotApplicable` where it has no meaning, before anything is computed."""

    def apply(self, bench: Bench, on_progress: OnProgress) -> dict[str, Applied]:
        """What was found, by name of the coder."""
        raise TypeError(f"{type(self).__name__} does not apply anything")


APPLICATIONS: Registry[type[ApplicationConfig]] = Registry("application")

AnyApplication = TypeVar("AnyApplication", bound=type[ApplicationConfig])


def register(config: AnyApplication) -> AnyApplication:
    """Class decorator: an application that experiment files may name."""
    APPLICATIONS.add(config.model_fields["kind"].default, config)
    return config


def read_application(raw: str | Mapping[str, Any]) -> ApplicationConfig:
    """What an entry of ``apply:`` describes: a name (defaults), or a mapping with ``kind``."""
    given = {"kind": raw} if isinstance(raw, str) else dict(raw)
    if "kind" not in given:
        raise BadInput(
            f"an entry needs a kind: one of {', '.join(APPLICATIONS)}.", key="apply", value=given
        )
    config = APPLICATIONS[str(given["kind"])]
    try:
        return config.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in ("apply", *first["loc"]))
        raise BadInput(
            f"{first['msg']}; {given['kind']} has {', '.join(config.model_fields)}.",
            key=where,
            value=first["input"],
        ) from error
