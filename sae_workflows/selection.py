"""Which part of an experiment a command is about: stages, in the graph's own words, and cells."""

import re
import warnings
from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import NamedTuple

import dagster as dg

from assets.freshness import State
from assets.grid import Outline
from assets.reports import DATABASE, study_key
from sae_lib.errors import BadInput, nearest

RESULTS = "results"

WORD = re.compile(r'[\w]+:"[^"]*"|"[^"]*"|[\w:./*-]+')
OPERATORS = ("and", "or", "not", "roots", "sinks")


class Wanted(NamedTuple):
    """What is wanted of an experiment; by default everything that is missing or stale."""

    selected: frozenset[str] | None = None
    """Stages, ``results`` among them; None for all."""

    only_stale: bool = False
    """Whether what was never built is left alone."""

    sites: tuple[str, ...] = ()
    """Patterns such as ``resid_post.*``; none for all."""

    variants: tuple[str, ...] = ()

    @property
    def results(self) -> bool:
        """Whether the database and the page are among what is wanted."""
        return self.selected is None or RESULTS in self.selected

    @property
    def is_partial(self) -> bool:
        """Whether cells are left out that are due."""
        return self.only_stale or bool(self.sites or self.variants)

    def stages(self, all_stages: Sequence[str]) -> list[str]:
        if self.selected is None:
            return list(all_stages)
        return [stage for stage in all_stages if stage in self.selected]

    def has_cell(self, state: State) -> bool:
        """Whether a state is of a wanted cell; what is about no cell always is."""
        site_fits = not self.sites or not state.site or _fits(state.site, self.sites)
        return site_fits and (
            not self.variants or not state.variant or _fits(state.variant, self.variants)
        )


def _fits(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)


def selected_stages(
    text: str, outline: Outline, definitions: dg.Definitions, stages: Sequence[str]
) -> frozenset[str]:
    """Stages that ``text`` selects: names of stages with ``+`` before and after, ``and``, ``or``,
    ``not``, parentheses, and whatever else the orchestrator's selections know.

    Raises `BadInput` naming the word that is no stage.
    """
    keys = {stage: dg.AssetKey([outline.name, stage]) for stage in stages}
    keys |= {RESULTS: DATABASE, "study": study_key(outline.name)}

    def spelled_out(match: re.Match[str]) -> str:
        word = match.group()
        if word.startswith('"') or ":" in word or word in OPERATORS or not word.isidentifier():
            return word
        if word in keys:
            return f'key:"{keys[word].to_user_string()}"'
        raise BadInput(
            f"no stage of {outline.name} is called {word!r}. "
            f"There are {', '.join(keys)}.{nearest(word, keys)}",
            key="select",
            value=text,
        )

    full = WORD.sub(spelled_out, text)
    try:
        with warnings.catch_warnings():  # `not` is built on something that is beta
            warnings.simplefilter("ignore", dg.BetaWarning)
            selection = dg.AssetSelection.from_string(full)
            found = selection.resolve(definitions.resolve_asset_graph())
    except Exception as error:  # the orchestrator raises several kinds
        raise BadInput(
            "this is no selection. Say for example metrics, 'metrics+' (and what is made from "
            "it), '+metrics' (and what it is made from), 'saes or metrics'.",
            key="select",
            value=text,
        ) from error
    names = {key: RESULTS if stage == "study" else stage for stage, key in keys.items()}
    chosen = frozenset(names[key] for key in found if key in names)
    if not chosen:
        raise BadInput(
            f"this selects no stage of {outline.name}. There are {', '.join(keys)}.",
            key="select",
            value=text,
        )
    return chosen
