"""Training strategies: one file each, found and registered when the package is imported."""

from sae_lib.registry import import_members
from sae_lib.training.objectives.base import (
    OBJECTIVES,
    Batch,
    Objective,
    ObjectiveConfig,
    StepInfo,
    register,
)

import_members(__name__, __path__)

__all__ = ["OBJECTIVES", "Batch", "Objective", "ObjectiveConfig", "StepInfo", "register"]
