import ast
import inspect
import math
from typing import get_args

import pytest

from sae_lib.errors import BadInput, UnknownName
from sae_lib.evaluate import (
    METRICS,
    Definition,
    GridMetric,
    StreamingMetric,
    TableMetric,
    TaskMetric,
    read_metric,
)
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import MetricConfig, Needs
from sae_lib.evaluate.model_loss import ModelLossConfig
from sae_lib.evaluate.sparsity import SparsityConfig

SHARE = Definition("share", "of_all", "part / whole", "higher", 0.0, 1.0, version=3)

every_metric = pytest.mark.parametrize("config", METRICS.values(), ids=METRICS)


def test_the_metrics_of_an_experiment_file_are_there():
    assert {"reconstruction", "model_loss", "sparsity", "frontier", "weights"} <= set(METRICS)


@every_metric
def test_every_metric_says_what_it_is_and_where_it_is_from(config):
    assert config.summary
    assert config.papers
    assert config.needs in get_args(Needs)
    assert isinstance(config(), StreamingMetric | TableMetric | TaskMetric | GridMetric)


@every_metric
def test_every_definition_is_told_from_the_others(config):
    keys = [(d.name, d.definition) for d in config.definitions()]
    assert len(set(keys)) == len(keys)
    assert all(d.text and d.low < d.high and d.version >= 1 for d in config.definitions())


@every_metric
def test_every_field_says_what_it_means(config):
    body = ast.parse(inspect.getsource(config)).body[0]
    assert isinstance(body, ast.ClassDef)
    for field, after in zip(body.body, [*body.body[1:], None], strict=True):
        if isinstance(field, ast.AnnAssign):
            described = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
            assert described, f"{config.__name__}.{ast.unparse(field.target)} has no sentence"


@every_metric
def test_where_a_metric_has_no_value_every_row_says_why(config):
    rows = config().absent("because of this")
    assert rows
    assert {(r.value, r.stderr, r.reason) for r in rows} == {(None, None, "because of this")}


def test_no_two_metrics_define_the_same_thing():
    keys = [(d.name, d.definition) for m in METRICS.values() for d in m.definitions()]
    assert len(set(keys)) == len(keys)


def test_a_row_carries_its_definition_and_the_settings():
    row = SHARE.row(Estimate(0.5, 0.1, 7, "contexts"), threshold=0.01)
    assert row[:7] == ("share", 0.5, "of_all", 3, 0.1, 7, "contexts")
    assert row.params == {"threshold": 0.01}
    assert row.reason is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_becomes_a_reason(value):
    row = SHARE.row(Estimate(value, 0.1, 7, "contexts"))
    assert (row.value, row.stderr) == (None, None)
    assert row.reason == f"the result is {value}, not a finite number"


def test_a_standard_error_that_is_not_finite_is_left_out():
    row = SHARE.row(Estimate(0.5, math.nan, 7, "contexts"))
    assert (row.value, row.stderr) == (0.5, None)


def test_a_metric_is_read_from_a_name_or_from_a_mapping():
    assert read_metric("model_loss") == ModelLossConfig()
    found = read_metric({"name": "sparsity", "dense_above": [0.2]})
    assert isinstance(found, SparsityConfig)
    assert found.dense_above == (0.2,)


def test_a_misspelt_metric_is_answered_with_the_right_one():
    with pytest.raises(UnknownName, match="Did you mean 'sparsity'"):
        read_metric("sparsty")


def test_a_key_that_nobody_declared_is_answered_with_those_that_are():
    with pytest.raises(BadInput, match=r"evaluate\.splise.*splice, ablations"):
        read_metric({"name": "model_loss", "splise": "all"})


def test_an_entry_without_a_name_is_answered_with_the_names():
    with pytest.raises(BadInput, match=r"one of .*causal_linearity, .*frontier, .*model_loss"):
        read_metric({"splice": "all"})


def test_two_metrics_of_one_name_are_an_error_at_import():
    class Again(MetricConfig):
        name: str = "sparsity"

    with pytest.raises(ValueError, match="two metrics are called 'sparsity'"):
        METRICS.add("sparsity", Again)
