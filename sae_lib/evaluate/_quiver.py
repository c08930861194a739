"""Probes of many kinds, chosen by validation: the quiver of Kantamneni et al. (2025).

Columns are standardised with the mean and the spread of the texts a probe is fitted to. A setting
is chosen by the mean AUC over the folds of `folds`, and the probe is then fitted to all training
texts. Whatever looks at labels, the choice of latents included, sees the fitted part of a fold
only.
"""

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from sklearn.decomposition import PCA
from sklearn.ensemble import GradientBoostingClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.neural_network import MLPClassifier

from sae_lib.apply.probes import auc

Features = Float[np.ndarray, "texts columns"]
Labels = Int[np.ndarray, " texts"]
Values = Float[np.ndarray, " scored"]
Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""From training features, labels and other features to decision values of those."""

PENALTIES = (1e-4, 1e-2, 1.0, 1e2)
"""Inverse penalties of logistic regressions on standardised columns."""

SPARSE_PENALTIES = (1e-2, 1e-1, 1.0, 10.0)
"""The same of L1 regressions on codes."""

FEW, MANY = 12, 128
"""Up to so many texts two are left out at a time; from so many on a fifth is held out."""

NUM_FOLDS = 3
MOST_PAIRS = 9
HELD_OUT = 0.2


class Chosen(NamedTuple):
    """A probe, by validation, and what it says of the test texts."""

    validation_auc: float
    values: np.ndarray


def folds(labels: Labels, seed: int) -> list[Bool[np.ndarray, " texts"]]:
    """Which texts are held out, each fold with both classes; none where a class has one text."""
    rng = np.random.default_rng([seed, len(labels)])
    members = [rng.permutation(np.flatnonzero(labels == value)) for value in (0, 1)]
    fewest = min(map(len, members))
    if fewest < 2:
        return []
    if len(labels) <= FEW:
        pairs = [(a, b) for a in members[0] for b in members[1]]
        chosen = rng.permutation(len(pairs))[:MOST_PAIRS]
        parts = [np.array(pairs[i]) for i in chosen]
    elif len(labels) < MANY:
        num = min(NUM_FOLDS, fewest)
        dealt = [np.array_split(own, num) for own in members]
        parts = [np.concatenate([own[i] for own in dealt]) for i in range(num)]
    else:
        parts = [np.concatenate([own[: max(1, round(HELD_OUT * len(own)))] for own in members])]
    found = []
    for part in parts:
        held = np.zeros(len(labels), dtype=bool)
        held[part] = True
        found.append(held)
    return found


def choose(
    settings: Mapping[str, Fit], train: Features, labels: Labels, test: np.ndarray, seed: int
) -> Chosen:
    """The setting with the best validation AUC, the first of equals; 1 where there is no fold."""
    held_out = folds(labels, seed)
    best, validation = next(iter(settings)), 1.0
    if held_out:
        mean = {
            name: float(
                np.mean(
                    [
                        auc(fit(train[~held], labels[~held], train[held]), labels[held])[0]
                        for held in held_out
                    ]
                )
            )
            for name, fit in settings.items()
        }
        best = max(mean, key=lambda name: mean[name])
        validation = mean[best]
    return Chosen(validation, settings[best](train, labels, test))


def baselines(num_texts: int, width: int, seed: int) -> dict[str, dict[str, Fit]]:
    """Settings of every probe on activations, by method."""
    fitted = num_texts - max(1, round(num_texts / NUM_FOLDS))
    components = [k for k in (2, 8, 32) if k < fitted and k <= width] or [1]
    neighbours = [k for k in (1, 5, 15) if k <= max(1, fitted // 2)]
    return {
        "logistic": {f"C={c:g}": partial(_logistic, c) for c in PENALTIES},
        "pca": {f"k={k}": partial(_pca, k) for k in components},
        "knn": {f"k={k}": partial(_knn, k) for k in neighbours},
        "boosting": {"rate=0.1": partial(_boosting, 0.1, seed)},
        "mlp": {"32": partial(_mlp, 32, seed)},
    }


def sparse_probes(k: tuple[int, ...]) -> dict[str, Fit]:
    """Settings of the probe on codes: how many latents, and the L1 penalty."""
    return {f"k={n} C={c:g}": partial(_top_latents, n, c) for n in k for c in SPARSE_PENALTIES}


def _scaled(train: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    centre, spread = train.mean(0), train.std(0)
    spread = np.where(spread > 1e-12, spread, 1.0)
    return (train - centre) / spread, (other - centre) / spread


def _quietly(probe: LogisticRegression | MLPClassifier, x: np.ndarray, y: np.ndarray) -> None:
    with warnings.catch_warnings():
        # one that has not converged is scored as it is
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(x, y)


def _logistic(strength: float, train: np.ndarray, y: np.ndarray, other: np.ndarray) -> np.ndarray:
    train, other = _scaled(train, other)
    probe = LogisticRegression(C=strength / len(y), max_iter=200)
    _quietly(probe, train, y)
    return probe.decision_function(other)


def _pca(num: int, train: np.ndarray, y: np.ndarray, other: np.ndarray) -> np.ndarray:
    train, other = _scaled(train, other)
    num = min(num, len(train) - 1, train.shape[1])
    if num < 1:
        return np.zeros(len(other))
    basis = PCA(num, svd_solver="full").fit(train)
    return _logistic(1e2, basis.transform(train), y, basis.transform(other))


def _knn(num: int, train: np.ndarray, y: np.ndarray, other: np.ndarray) -> np.ndarray:
    train, other = _scaled(train, other)
    probe = KNeighborsClassifier(min(num, len(train)), weights="distance").fit(train, y)
    return np.asarray(probe.predict_proba(other))[:, 1]


def _boosting(
    rate: float, seed: int, train: np.ndarray, y: np.ndarray, other: np.ndarray
) -> np.ndarray:
    probe = GradientBoostingClassifier(
        learning_rate=rate, n_estimators=30, max_depth=3, max_features="sqrt", random_state=seed
    )
    return probe.fit(train, y).decision_function(other)


def _mlp(width: int, seed: int, train: np.ndarray, y: np.ndarray, other: np.ndarray) -> np.ndarray:
    train, other = _scaled(train, other)
    probe = MLPClassifier((width,), max_iter=60, learning_rate_init=0.01, random_state=seed)
    _quietly(probe, train, y)
    return np.asarray(probe.predict_proba(other))[:, 1]


def _top_latents(
    k: int, strength: float, train: np.ndarray, y: np.ndarray, other: np.ndarray
) -> np.ndarray:
    """L1 regression on the ``k`` latents whose class means differ most.

    Codes are divided by the mean of those that are not 0, so that latents are compared alike. A
    latent that does not differ is not chosen; without any, all texts have the value 0.
    """
    on = (train != 0).sum(0)
    scale = np.where(on > 0, np.abs(train).sum(0) / np.maximum(on, 1), 1.0)
    a = train / scale
    difference = np.abs(a[y == 1].mean(0) - a[y == 0].mean(0))
    columns = np.argsort(-difference, kind="stable")[:k]
    columns = columns[difference[columns] > 0]
    if not len(columns):
        return np.zeros(len(other))
    a, b = _scaled(a[:, columns], other[:, columns] / scale[columns])
    probe = LogisticRegression(
        C=strength, l1_ratio=1.0, solver="liblinear", max_iter=200, random_state=0
    )
    _quietly(probe, a, y)
    return probe.decision_function(b)
