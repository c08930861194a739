"""Which method explains which latents best, from rows whose answers can be seen at a glance."""

import math
from importlib import import_module

import pytest

from sae_lib.warehouse.rows import ExplanationRow, LatentScoreRow

DETECTION = "detection_balanced_accuracy"


def scores(name, definition, metric="autointerp", **by_method):
    """Rows from lists of values by method, of latents 0, 1, ...; None is a missing value."""
    return [
        LatentScoreRow(
            latent, metric, name, definition, value, 10, method, None if value is not None else "?"
        )
        for method, values in by_method.items()
        for latent, value in enumerate(values)
    ]


@pytest.fixture
def filled_views(warehouse):
    rows = scores(
        DETECTION, "held_out", llm=[0.9, 0.7, None], max_act=[0.6, 0.7, 0.8], best_concept=[1.0] * 3
    )
    rows += scores(DETECTION, "another_latent", llm=[0.5, 0.6, None], max_act=[0.5, 0.5, 0.6])
    rows += scores("simulation_pearson", "held_out", llm=[0.3])
    rows += scores("explanation_recall", "own", "explanation_truth", max_act=[0.25, 0.5])
    rows += scores("input_success", "own", "descriptions", vocab_proj=[1.0])
    # neither of these is about an explanation
    rows += scores("sensitivity_rate", "similar_texts", "sensitivity", pool=[0.4])
    rows += scores(DETECTION, "oracle", oracle=[1.0])
    warehouse.write("latent_scores", rows)
    said = [
        ExplanationRow(0, "llm", "dogs", ["dog"], [1.0]),
        ExplanationRow(1, "llm", "cats", ["cat"], [1.0]),
        ExplanationRow(2, "llm", "no answer: refused", [], [], None, "no_answer"),
        ExplanationRow(3, "max_act", "fires on a", ["a"], [1.0]),
    ]
    warehouse.write("explanations", said)
    warehouse.publish()
    return warehouse


def test_every_latent_and_method_is_one_row_with_each_score_in_a_column(filled_views):
    found = filled_views.ask(
        f"select latent, method, text, no_answer, {DETECTION}, simulation_pearson, "
        "explanation_recall, input_success from explanation_scores"
    )
    assert found.rows() == [
        (0, "best_concept", None, None, 1.0, None, None, None),
        (0, "llm", "dogs", None, 0.9, 0.3, None, None),
        (0, "max_act", None, None, 0.6, None, 0.25, None),
        (0, "vocab_proj", None, None, None, None, None, 1.0),
        (1, "best_concept", None, None, 1.0, None, None, None),
        (1, "llm", "cats", None, 0.7, None, None, None),
        (1, "max_act", None, None, 0.7, None, 0.5, None),
        (2, "best_concept", None, None, 1.0, None, None, None),
        (2, "llm", None, "no answer: refused", None, None, None, None),
        (2, "max_act", None, None, 0.8, None, None, None),
        (3, "max_act", "fires on a", None, None, None, None, None),
    ]


def test_the_best_method_of_a_latent_has_its_margin_and_ties_are_told(filled_views):
    found = filled_views.ask(
        "select latent, method, methods, value, num_tied, margin, num_methods, is_main "
        f"from best_explanation where name = '{DETECTION}'"
    ).rows()
    assert found == [
        (0, "llm", ["llm"], 0.9, 1, pytest.approx(0.3), 2, True),
        (1, None, ["llm", "max_act"], 0.7, 2, 0.0, 2, True),
        (2, "max_act", ["max_act"], 0.8, 1, None, 1, True),  # nobody to be better than
    ]
    others = filled_views.ask(
        f"select distinct is_main from best_explanation where name <> '{DETECTION}'"
    )
    assert others.rows() == [(False,)]


def test_methods_are_compared_by_means_floors_and_shares(filled_views):
    found = filled_views.ask(
        "select method, is_ceiling, value, stderr, n, floor, gap, gap_stderr, share_best, "
        f"num_compared, num_explained, num_no_answer from explanation_methods "
        f"where name = '{DETECTION}'"
    ).rows()
    assert [row[0] for row in found] == ["best_concept", "llm", "max_act"]
    concept, llm, max_act = found
    assert concept[1:] == (True, 1.0, 0.0, 3, None, None, None, None, 2, None, None)
    # 0.9, 0.7: deviations of 0.1, so a variance of 0.02 and an error of 0.1; gaps 0.4 and 0.1
    assert llm[1:] == (
        False, pytest.approx(0.8), pytest.approx(0.1), 2, pytest.approx(0.55),
        pytest.approx(0.25), pytest.approx(0.15), 0.75, 2, 2, 1,
    )  # fmt: skip
    # 0.6, 0.7, 0.8; gaps 0.1, 0.2, 0.2
    assert max_act[1:] == (
        False, pytest.approx(0.7), pytest.approx(0.1 / math.sqrt(3)), 3, pytest.approx(1.6 / 3),
        pytest.approx(0.5 / 3), pytest.approx(math.sqrt(0.02 / 3 / 2 / 3)), 0.25, 2, 1, 0,
    )  # fmt: skip


def test_shares_of_a_score_sum_to_one(filled_views):
    sums = filled_views.ask(
        "select sum(share_best) from explanation_methods where num_compared > 0 group by name"
    )
    assert sums.rows() == [(1.0,)]  # detection: the only score that two methods have


def test_a_score_of_one_method_alone_is_compared_with_nothing(filled_views):
    row = filled_views.ask(
        "select share_best, num_compared, stderr, n from explanation_methods "
        "where name = 'simulation_pearson'"
    ).row(0)
    assert row == (None, None, None, 1)


def test_saes_are_compared_each_by_itself(warehouse):
    warehouse.write("latent_scores", scores(DETECTION, "held_out", a=[0.9], b=[0.1]), variant="v")
    warehouse.write("latent_scores", scores(DETECTION, "held_out", a=[0.2], b=[0.3]), variant="w")
    warehouse.publish()
    found = warehouse.ask("select variant, method from best_explanation order by variant")
    assert found.rows() == [("v", "a"), ("w", "b")]


def test_the_scores_are_those_that_metrics_have(warehouse):
    warehouse.publish()
    names = set(warehouse.ask("select name from stored.explanation_score_names")["name"])
    known = {
        definition.name
        for metric in ("autointerp", "descriptions", "explanation_truth")
        for definition in import_module("sae_lib.evaluate").METRICS[metric].definitions()
    }
    assert names <= known
    assert names <= set(warehouse.ask("from explanation_scores").columns)
