"""Reconstruct the activations that are read: the objective of nearly every published SAE."""

from typing import Any, Literal

from sae_lib.training.objectives.base import Objective, ObjectiveConfig, register


@register
class PlainConfig(ObjectiveConfig):
    """Description of the plain objective."""

    summary = "Reconstruct the activations that are read."

    kind: Literal["plain"] = "plain"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    def build(self, *, model: Any = None) -> Objective:
        return Objective(self)
