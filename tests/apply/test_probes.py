import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from sae_lib.apply.probes import (
    Fitted,
    auc,
    column_aucs,
    fit,
    fit_dense,
    mean_difference,
    score,
    top_columns,
)

F = np.array([[1, 0, 2], [1, 0, 0], [1, 1, 1], [0, 1, 1], [0, 0, 2], [0, 1, 0]], dtype=float)
Y = np.array([1, 1, 1, 0, 0, 0])


def test_the_worked_example_chooses_latent_0_and_gets_everything_right():
    assert mean_difference(F, Y) == pytest.approx([1, 1 / 3, 0])
    assert top_columns(F, Y, 1).tolist() == [0]
    values = fit(F[:, [0]], Y, np.array([[0.0], [1.0]])).values
    assert values[0] == pytest.approx(-0.5490, abs=1e-4)
    assert values[1] - values[0] == pytest.approx(1.0982, abs=1e-4)
    assert score(fit(F[:, [0]], Y, F[:, [0]]), Y).accuracy == 1.0
    assert score(fit(F[:, [2]], Y, F[:, [2]]), Y).accuracy == 0.5


def test_columns_that_differ_in_nothing_are_never_chosen():
    assert top_columns(F, Y, 3).tolist() == [0, 1]
    assert top_columns(np.zeros((6, 2)), Y, 2).tolist() == []


def test_equal_columns_are_chosen_in_order():
    assert top_columns(np.column_stack([F[:, 1], F[:, 0], F[:, 0]]), Y, 2).tolist() == [1, 2]


def test_area_under_the_curve_of_the_worked_example():
    values = np.array([0.9, 0.4, 0.6, 0.5, 0.1, 0.2])
    assert auc(values, Y)[0] == pytest.approx(8 / 9)
    assert auc(np.zeros(6), Y)[0] == 0.5
    assert auc(-values, Y)[0] == pytest.approx(1 / 9)


def test_the_error_of_the_area_is_the_spread_over_resampled_texts():
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 120)
    values = rng.normal(size=240) + 1.2 * labels
    draws = []
    for _ in range(400):
        positive = rng.choice(np.flatnonzero(labels == 1), 120)
        negative = rng.choice(np.flatnonzero(labels == 0), 120)
        chosen = np.concatenate([positive, negative])
        draws.append(auc(values[chosen], labels[chosen])[0])
    assert auc(values, labels)[1] == pytest.approx(np.std(draws), rel=0.12)


def test_the_area_of_each_column_is_that_of_one_at_a_time_ties_included():
    rng = np.random.default_rng(0)
    features = rng.integers(0, 4, size=(40, 7)).astype(float)
    labels = rng.integers(0, 2, size=40)
    one_by_one = [auc(features[:, i], labels)[0] for i in range(7)]
    assert column_aucs(features, labels) == pytest.approx(one_by_one)


def test_accuracy_counts_and_its_error_is_binomial():
    found = score(Fitted(np.array([1.0, -1, 1, 1]), True), np.array([1, 0, 0, 1]))
    assert found.accuracy == 0.75
    assert found.accuracy_stderr == pytest.approx(np.sqrt(0.75 * 0.25 / 4))


def separable(num: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 2
    features = rng.normal(size=(num, columns))
    features[:, 0] += 2.5 * labels
    return features, labels


def test_more_columns_than_texts_give_the_same_probe_by_the_shorter_way():
    train, y = separable(30, 50, 0)
    test, _ = separable(10, 50, 1)
    found, penalty = fit_dense(train, y, test, seed=0)
    centre = train.mean(0)
    scale = np.sqrt(((train - centre) ** 2).sum(1).mean())
    direct = LogisticRegression(C=penalty, max_iter=5000, tol=1e-8).fit((train - centre) / scale, y)
    assert found.values == pytest.approx(
        direct.decision_function((test - centre) / scale), abs=2e-2 * np.abs(found.values).max()
    )


def test_a_dense_probe_finds_the_direction_and_permuted_labels_give_chance():
    train, y = separable(300, 10, 0)
    test, y_test = separable(300, 10, 1)
    assert score(fit_dense(train, y, test, seed=0)[0], y_test).auc > 0.93
    shuffled = np.random.default_rng(0).permutation(y)
    found = score(fit_dense(train, shuffled, test, seed=0)[0], y_test)
    assert abs(found.auc - 0.5) < 4 * 0.034  # stderr of a random ranking of 150 + 150


def test_the_penalty_is_chosen_without_the_test_texts():
    train, y = separable(60, 20, 0)
    one, other = separable(40, 20, 1)[0], separable(40, 20, 2)[0]
    assert fit_dense(train, y, one, seed=0)[1] == fit_dense(train, y, other, seed=0)[1]
    both = fit_dense(train, y, np.concatenate([one, other]), seed=0)[0].values
    assert both[:40] == pytest.approx(fit_dense(train, y, one, seed=0)[0].values)


def test_a_probe_that_did_not_converge_says_so(monkeypatch):
    train, y = separable(60, 20, 0)
    assert fit(train, y, train).has_converged
    monkeypatch.setattr("sae_lib.apply.probes.MAX_ITERATIONS", 1)
    assert not fit(train, y, train, inverse_penalty=1e4).has_converged
