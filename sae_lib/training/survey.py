"""The rows of the survey's Table 1, and those beyond it, as entries of an experiment file.

A row is an architecture, a training strategy, or both. What is left open in an entry (width,
sparsity, where) is the experiment's.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from sae_lib.papers import Paper
from sae_lib.saes import VARIANTS
from sae_lib.saes.presets import preset_of
from sae_lib.training.objectives import OBJECTIVES


class Row(NamedTuple):
    """One kind of SAE that people speak of by a name."""

    name: str

    entry: Mapping[str, Any]
    """What an experiment file says to get it."""

    in_table: bool
    """Whether it is a row of Table 1 of the survey."""

    @property
    def kind(self) -> str:
        """The architecture."""
        if "preset" in self.entry:
            return str(preset_of(self.entry["preset"]).sae["kind"])
        return str(self.entry["kind"])

    @property
    def objective(self) -> str:
        """The training strategy."""
        return str(self.entry.get("objective", {"kind": "plain"})["kind"])

    @property
    def summary(self) -> str:
        if "preset" in self.entry:
            return preset_of(self.entry["preset"]).summary
        if self.objective not in ("plain", VARIANTS[self.kind].needs_objective):
            return OBJECTIVES[self.objective].summary
        return VARIANTS[self.kind].summary

    @property
    def papers(self) -> tuple[Paper, ...]:
        if "preset" in self.entry:
            return preset_of(self.entry["preset"]).papers
        if self.objective not in ("plain", VARIANTS[self.kind].needs_objective):
            return OBJECTIVES[self.objective].papers
        return VARIANTS[self.kind].papers


def _row(name: str, in_table: bool, **entry: Any) -> Row:
    return Row(name, entry, in_table)


ROWS = (
    _row("SAE", True, kind="standard"),
    _row("Gated SAE", True, kind="gated"),
    _row("TopK SAE", True, kind="topk"),
    _row("Batch TopK SAE", True, kind="batch_topk"),
    _row("ProLU SAE", True, kind="prolu"),
    _row("JumpReLU SAE", True, kind="jumprelu"),
    _row("Switch SAE", True, kind="switch"),
    _row("Layer Group SAE", True, kind="topk", objective={"kind": "layer_group"}),
    _row("Feature Choice SAE", True, kind="feature_choice"),
    _row("Mutual Choice SAE", True, kind="mutual_choice"),
    _row("Feature Aligned SAE", True, kind="topk", objective={"kind": "feature_aligned"}),
    _row("End-to-end SAE", True, kind="standard", objective={"kind": "end_to_end"}),
    _row("Formal Languages SAE", True, kind="topk", objective={"kind": "formal_causal"}),
    _row("Specialized SAE", True, kind="topk", objective={"kind": "specialized"}),
    _row("Matryoshka SAE", False, kind="matryoshka"),
    _row("p-annealed SAE", False, kind="p_annealed"),
    _row("Transcoder", False, kind="transcoder", objective={"kind": "transcode"}),
    _row("Skip transcoder", False, kind="transcoder", skip=True, objective={"kind": "transcode"}),
    _row("Crosscoder", False, kind="crosscoder", objective={"kind": "crosscode"}),
    _row("Gemma Scope recipe", False, preset="gemma_scope"),
)


def rows_of(kind: str) -> list[Row]:
    """Rows whose architecture is ``kind``."""
    return [row for row in ROWS if row.kind == kind]
