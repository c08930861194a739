import math

import numpy as np
import pytest

from sae_lib.apply.steering_scores import (
    Cells,
    Reference,
    best_setting,
    distinct_bigrams,
    harmonic_mean,
    steering_scores,
    with_errors,
)


def cells(hits, nll, tokens=10.0, distinct=1.0) -> Cells:
    hits = np.array(hits, dtype=float)
    return Cells(
        hits,
        np.full_like(hits, tokens),
        np.broadcast_to(np.array(nll, dtype=float), hits.shape).copy(),
        np.full_like(hits, distinct),
    )


PLAIN = cells([[0, 0], [1, 1], [0, 0], [1, 1]], 20.0)  # 5 % of words, 2 nats per token
REFERENCE = Reference(PLAIN, np.full((4, 2), 60.0), positive_rate=0.25)


def test_unsteered_text_against_itself_has_no_concept_and_full_fluency():
    found = steering_scores(PLAIN, REFERENCE)
    assert (found.concept_score, found.fluency, found.overall) == (0.0, 1.0, 0.0)
    assert found.perplexity == pytest.approx(math.exp(2.0))


def test_scores_by_hand():
    steered = cells([[1, 1], [2, 2], [1, 1], [2, 2]], 30.0, distinct=0.9)
    found = steering_scores(steered, REFERENCE)
    assert found.lexicon_rate == pytest.approx(0.15)
    assert found.concept_score == pytest.approx((0.15 - 0.05) / (0.25 - 0.05))
    assert found.fluency == pytest.approx((1 - (3 - 2) / (6 - 2)) * 0.9)
    assert found.overall == pytest.approx(2 / (1 / 0.5 + 1 / 0.675))
    assert found.product == pytest.approx(0.5 * 0.675)
    assert found.success_share == 1.0


def test_more_words_of_the_concept_raise_its_score_and_worse_text_lowers_fluency():
    half = steering_scores(cells(np.full((4, 2), 5), 50.0), REFERENCE)
    none = steering_scores(PLAIN, REFERENCE)
    assert half.concept_score == 1.0 > none.concept_score
    assert half.fluency < none.fluency


def test_loops_are_not_fluent_however_likely_they_are():
    loop = cells([[2, 2]] * 4, 1.0, distinct=0.1)
    assert steering_scores(loop, REFERENCE).fluency == pytest.approx(0.1)


def test_the_order_of_prompts_means_nothing():
    rng = np.random.default_rng(0)
    steered = cells(rng.integers(0, 5, (4, 2)), rng.uniform(20, 40, (4, 2)))
    order = np.array([2, 0, 3, 1])

    def reordered(given: Cells) -> Cells:
        return Cells(*(part[order] for part in given))

    shuffled = Reference(reordered(PLAIN), REFERENCE.shuffled_nll[order], 0.25)
    one, other = with_errors(steered, REFERENCE), with_errors(reordered(steered), shuffled)
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b)


def test_prompts_with_no_text_weigh_nothing_and_nothing_at_all_is_no_number():
    silent = cells([[0, 0]], 0.0, tokens=0.0)
    both = Cells(*(np.concatenate(parts) for parts in zip(PLAIN, silent, strict=True)))
    five = Reference(both, np.concatenate([REFERENCE.shuffled_nll, [[0.0, 0.0]]]), 0.25)
    assert steering_scores(both, five).lexicon_rate == pytest.approx(0.05)
    alone = steering_scores(silent, Reference(silent, np.zeros((1, 2)), 0.25))
    assert math.isnan(alone.lexicon_rate)
    assert math.isnan(alone.overall)


def test_a_concept_that_unsteered_text_has_already_has_no_score():
    found = steering_scores(PLAIN, REFERENCE._replace(positive_rate=0.05))
    assert math.isnan(found.concept_score)
    assert math.isnan(found.overall)


def test_the_jackknife_error_of_a_mean_is_the_usual_one():
    rng = np.random.default_rng(0)
    distinct = rng.uniform(0.5, 1, (20, 3))
    steered = Cells(np.ones((20, 3)), np.full((20, 3), 10.0), np.full((20, 3), 20.0), distinct)
    plain = Reference(steered, np.full((20, 3), 60.0), 0.5)
    errors = with_errors(steered, plain)[1]
    per_prompt = distinct.mean(1)
    assert errors.distinct_bigrams == pytest.approx(per_prompt.std(ddof=1) / np.sqrt(20))


def test_harmonic_means():
    assert harmonic_mean(1.0, 2.0, 2.0) == pytest.approx(1.5)
    assert harmonic_mean(0.0, 2.0, 2.0) == 0
    assert harmonic_mean(0.3, 0.3) == pytest.approx(0.3)
    assert math.isnan(harmonic_mean(math.nan, 0.0))


def test_distinct_bigrams_by_hand():
    tokens = np.array([[5, 6, 5, 6], [5, 6, 7, 8], [5, 5, 5, 9], [5, 1, 1, 1]])
    is_text = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 1, 0], [1, 0, 0, 0]], dtype=bool)
    assert distinct_bigrams(tokens, is_text).tolist() == [2 / 3, 1.0, 0.5, 1.0]


def test_the_best_setting_is_the_first_of_the_best_and_none_without_numbers():
    values = {"a": 0.2, "b": math.nan, "c": 0.7, "d": 0.7}
    assert best_setting(list(values), values.__getitem__) == "c"
    assert best_setting(["b"], values.__getitem__) is None
