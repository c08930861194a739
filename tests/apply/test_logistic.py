import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score

from sae_lib.apply.logistic import WHITEN, fit_logistic


def problem(seed: int, num: int = 4000, width: int = 6, offsets=(-1.0, 0.5, -3.0)):
    """Correlated inputs far from the origin, and labels drawn from true log odds."""
    draw = np.random.default_rng(seed)
    x = draw.normal(size=(num, width)) @ draw.normal(size=(width, width)) + 5
    directions = draw.normal(size=(width, len(offsets))) / 2
    odds = (x - x.mean(0)) @ directions + np.array(offsets)
    truth = draw.random(odds.shape) < 1 / (1 + np.exp(-odds))
    return x, truth


def whitened(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(0)
    variances, directions = np.linalg.eigh(centred.T @ centred / len(x))
    assert variances.min() > WHITEN * variances.mean(), "no direction is clamped in these tests"
    return centred @ (directions / np.sqrt(variances)) @ directions.T


@pytest.mark.parametrize("strength", [1.0, 0.01])
@pytest.mark.parametrize(("batch", "epochs", "off"), [(4000, 1000, 1e-3), (500, 60, 0.02)])
def test_chances_are_those_of_scikit_learn_on_whitened_inputs(strength, batch, epochs, off):
    x, truth = problem(0)
    found = fit_logistic(
        torch.from_numpy(x),
        csr_matrix(truth),
        strength=strength,
        epochs=epochs,
        batch=batch,
        lr=0.1,
    )
    chances = found.log_odds(torch.from_numpy(x)).sigmoid().numpy()
    for column in range(truth.shape[1]):
        theirs = LogisticRegression(C=strength, tol=1e-8, max_iter=1000)
        theirs.fit(whitened(x), truth[:, column])
        expected = theirs.predict_proba(whitened(x))[:, 1]
        assert np.abs(chances[:, column] - expected).max() < off


def test_rare_concepts_are_found_on_other_tokens_beside_common_ones():
    draw = np.random.default_rng(0)

    def tokens(num: int):
        truth = np.stack(
            [draw.random(num) < 0.4, draw.random(num) < 0.003, np.zeros(num, dtype=bool)], 1
        )
        x = truth[:, :1] * np.eye(8)[0] * 3 + truth[:, 1:2] * np.eye(8)[1] * 6
        return torch.from_numpy(x + draw.normal(size=(num, 8))).float(), truth

    (x, truth), (y, other) = tokens(20_000), tokens(20_000)
    assert 20 < truth[:, 1].sum() < 100
    found = fit_logistic(x, csr_matrix(truth.astype(np.int8)), epochs=20)
    predicted = found.log_odds(y).numpy() > 0
    assert f1_score(other[:, 0], predicted[:, 0]) > 0.85
    assert f1_score(other[:, 1], predicted[:, 1]) > 0.85
    assert found.log_odds(y)[:, 2].max() < -6, "what is never true is never likely"


def test_the_same_seed_gives_the_same_weights_and_another_gives_others():
    x, truth = problem(1, num=1500)
    x, truth = torch.from_numpy(x), csr_matrix(truth)
    first, again, other = (fit_logistic(x, truth, epochs=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first.weights, again.weights)
    assert torch.equal(first.bias, again.bias)
    assert not torch.equal(first.weights, other.weights)


def test_a_direction_without_variance_gets_no_weight_to_speak_of():
    x, truth = problem(2)
    flat = np.concatenate([x, np.full((len(x), 1), 7.0)], axis=1)
    found = fit_logistic(torch.from_numpy(flat), csr_matrix(truth))
    assert found.weights.isfinite().all()
    assert found.weights[-1].abs().max() < 1e-3
