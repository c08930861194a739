"""Metrics: one file per metric, found and registered when the package is imported."""

from sae_lib.evaluate.base import (
    METRICS,
    Accumulator,
    Definition,
    EvalBatch,
    EvalContext,
    GridMetric,
    MetricConfig,
    StreamingMetric,
    TableMetric,
    read_metric,
    register,
)
from sae_lib.evaluate.bench import Bench, Measured, TaskMetric, measure_task
from sae_lib.evaluate.run import EvaluationResult, evaluate_site
from sae_lib.registry import import_members

import_members(__name__, __path__)

__all__ = [
    "METRICS",
    "Accumulator",
    "Bench",
    "Definition",
    "EvalBatch",
    "EvalContext",
    "EvaluationResult",
    "GridMetric",
    "Measured",
    "MetricConfig",
    "StreamingMetric",
    "TableMetric",
    "TaskMetric",
    "evaluate_site",
    "measure_task",
    "read_metric",
    "register",
]
