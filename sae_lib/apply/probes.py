"""Linear probes of binary labels, and how well they do on texts they have not seen.

A probe is logistic regression with an L2 penalty. Those on few columns follow SAEBench: columns
with the largest |mean of the positives - mean of the negatives| on the training texts, C = 1, no
standardisation. Those on all columns choose C on a validation part of the *training* texts and are
then fitted to all of them. (evaluation.md, section 5; applications.md, D.1)
"""

import warnings
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import rankdata
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

STRENGTHS = (0.1, 1.0, 10.0, 100.0, 1000.0)
"""Inverse penalties C a dense probe chooses from; rows have mean square length 1."""

VALIDATION_SHARE = 0.25
MAX_ITERATIONS = 1000

Features = Float[np.ndarray, "texts columns"]
Labels = Int[np.ndarray, " texts"]
TestFeatures = Float[np.ndarray, "test_texts columns"]
TestLabels = Int[np.ndarray, " test_texts"]


class Scores(NamedTuple):
    """How a probe does on the test texts."""

    accuracy: float
    accuracy_stderr: float
    auc: float
    auc_stderr: float
    """DeLong et al. (1988)."""

    num_texts: int
    has_converged: bool


class Fitted(NamedTuple):
    """A probe's decision values, positive for the positive class."""

    values: Float[np.ndarray, " texts"]
    has_converged: bool


def mean_difference(features: Features, labels: Labels) -> Float[np.ndarray, " columns"]:
    """|mean over the positives - mean over the negatives|, per column."""
    is_positive = labels == 1
    return np.abs(features[is_positive].mean(0) - features[~is_positive].mean(0))


def top_columns(features: Features, labels: Labels, k: int) -> Int[np.ndarray, " chosen"]:
    """At most ``k`` columns by mean difference, largest first, ties by the smaller number.

    Columns whose difference is 0 are not chosen, so a dead latent never is.
    """
    difference = mean_difference(features, labels)
    order = np.argsort(-difference, kind="stable")[:k]
    return order[difference[order] > 0]


def fit(
    train: Features, labels: Labels, test: TestFeatures, *, inverse_penalty: float = 1.0
) -> Fitted:
    """Logistic regression on ``train``, applied to ``test``."""
    probe = LogisticRegression(C=inverse_penalty, max_iter=MAX_ITERATIONS)
    with warnings.catch_warnings():
        # whether it converged is part of the result
        warnings.simplefilter("ignore", ConvergenceWarning)
        probe.fit(train, labels)
    return Fitted(probe.decision_function(test), bool((probe.n_iter_ < MAX_ITERATIONS).all()))


def fit_dense(
    train: Features, labels: Labels, test: TestFeatures, *, seed: int
) -> tuple[Fitted, float]:
    """A probe on all columns, and the inverse penalty it chose.

    Columns are centred and divided by one number, so their relative scale stays.
    """
    train, test = _in_span(*_scaled(train, test))
    is_validation = _validation(labels, seed)
    best, chosen = -1.0, STRENGTHS[0]
    for strength in STRENGTHS:
        found = fit(
            train[~is_validation],
            labels[~is_validation],
            train[is_validation],
            inverse_penalty=strength,
        )
        value = auc(found.values, labels[is_validation])[0]
        if value > best:
            best, chosen = value, strength
    return fit(train, labels, test, inverse_penalty=chosen), chosen


def auc(values: Float[np.ndarray, " texts"], labels: Labels) -> tuple[float, float]:
    """Area under the ROC curve and its standard error over texts (DeLong); ties count half.

    Both are NaN where a class is missing, the error also where a class has one text.
    """
    positive, negative = values[labels == 1], values[labels == 0]
    if not len(positive) or not len(negative):
        return float("nan"), float("nan")
    gap = positive[:, None] - negative[None, :]
    above = (gap > 0) + 0.5 * (gap == 0)
    if min(above.shape) < 2:
        return float(above.mean()), float("nan")
    variance = above.mean(1).var(ddof=1) / len(positive) + above.mean(0).var(ddof=1) / len(negative)
    return float(above.mean()), float(np.sqrt(variance))


def column_aucs(features: Features, labels: Labels) -> Float[np.ndarray, " columns"]:
    """Area under the ROC curve of every column as a detector of the positives; ties count half."""
    is_positive = labels == 1
    num_positive, num_negative = int(is_positive.sum()), int((~is_positive).sum())
    ranks = rankdata(features, axis=0)[is_positive].sum(0)
    return (ranks - num_positive * (num_positive + 1) / 2) / (num_positive * num_negative)


def score(fitted: Fitted, labels: Labels) -> Scores:
    """Accuracy at decision value 0 and area under the curve."""
    num = len(labels)
    accuracy = float(((fitted.values > 0) == (labels == 1)).mean())
    area, area_stderr = auc(fitted.values, labels)
    return Scores(
        accuracy,
        float(np.sqrt(accuracy * (1 - accuracy) / num)),
        area,
        area_stderr,
        num,
        fitted.has_converged,
    )


def _validation(labels: Labels, seed: int) -> Bool[np.ndarray, " texts"]:
    """A share of each class, drawn with ``seed``, at least one text of it."""
    rng = np.random.default_rng(seed)
    chosen = np.zeros(len(labels), dtype=bool)
    for value in (0, 1):
        members = rng.permutation(np.flatnonzero(labels == value))
        chosen[members[: max(1, round(VALIDATION_SHARE * len(members)))]] = True
    return chosen


def _scaled(train: Features, test: TestFeatures) -> tuple[Features, TestFeatures]:
    centre = train.mean(0)
    scale = np.sqrt(((train - centre) ** 2).sum(1).mean()) or 1.0
    return (train - centre) / scale, (test - centre) / scale


def _in_span(
    train: Features, test: TestFeatures
) -> tuple[Float[np.ndarray, "texts span"], Float[np.ndarray, "test_texts span"]]:
    """Both in a basis of the span of ``train``'s rows, which an L2 penalty cannot tell apart.

    With more columns than texts this is far smaller, and the fitted probe is the same.
    """
    if train.shape[1] <= train.shape[0]:
        return train, test
    values, vectors = np.linalg.eigh(train @ train.T)
    solid = values > values[-1] * 1e-12
    basis = vectors[:, solid] / np.sqrt(values[solid])
    return (train @ train.T) @ basis, (test @ train.T) @ basis
