"""Probes of letters: on activations one per letter, on a few latents to choose the main ones.

    loss = mean of  -w y log p - (1 - y) log(1 - p)  over words and letters
           + l1 * mean over letters of sum |weights|             (on codes)
    p    = sigmoid(x . weights + bias),  w = #negatives / #positives

The latents with the largest weights on codes are candidates. How many of them are main ones is
decided by F1 of logistic regression, cross-validated on the training words.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

MAX_ITERATIONS = 500
FOLDS = 5


class OneVsRest(NamedTuple):
    """One linear probe per letter."""

    weights: Float[Tensor, "letters columns"]
    bias: Float[Tensor, " letters"]

    def logits(self, x: Float[Tensor, "words columns"]) -> Float[Tensor, "words letters"]:
        return x @ self.weights.mT + self.bias


@torch.no_grad()
def fit_one_vs_rest(
    x: Float[Tensor, "words columns"],
    labels: Bool[Tensor, "words letters"],
    *,
    epochs: int = 50,
    batch_words: int = 64,
    weight_decay: float = 1e-4,
    l1: float = 0.0,
    seed: int = 0,
) -> OneVsRest:
    """Binary cross-entropy per letter, positives weighted by #negatives / #positives, by Adam.

    The learning rate falls exponentially from 0.01 to 1e-5 over the epochs; ``l1`` is added once
    per unit of the mean over letters of the sum of |weight|. Weights start at 0.
    """
    x = x.float()
    num, letters = labels.shape
    weights, bias = torch.zeros(letters, x.shape[1]), torch.zeros(letters)
    positive = labels.sum(0).float().clamp_min(1)
    heavier = (num - positive) / positive
    optimiser = torch.optim.Adam([weights, bias], lr=0.01, weight_decay=weight_decay, fused=True)
    generator = torch.Generator().manual_seed(seed)
    for epoch in range(epochs):
        for group in optimiser.param_groups:
            group["lr"] = 0.01 * 1e-3 ** (epoch / max(1, epochs - 1))
        order = torch.randperm(num, generator=generator)
        for rows in order.split(batch_words):
            u, true = x[rows], labels[rows].float()
            chance = (u @ weights.mT + bias).sigmoid()
            # gradient of the weighted cross-entropy, mean over words and letters
            error = (chance * (1 - true) - (1 - chance) * true * heavier) / true.numel()
            weights.grad = error.mT @ u + l1 / letters * weights.sign()
            bias.grad = error.sum(0)
            optimiser.step()
    return OneVsRest(weights, bias)


def f1(predicted: Bool[Tensor, " words"], true: Bool[Tensor, " words"]) -> float:
    """2 TP / (predicted + true); 0 where there is neither."""
    return float(2 * (predicted & true).sum() / max(1, int(predicted.sum() + true.sum())))


def num_main(scores: Callable[[int], float], most: int, jump: float) -> int:
    """How many latents are main: k grows while F1 at k exceeds that at k - 1 by more than ``jump``.

    ``scores(k)`` is asked for no k after the first that fails.
    """
    k, best = 1, scores(1)
    while k < most:
        score = scores(k + 1)
        if score <= best + jump:
            break
        k, best = k + 1, score
    return k


class Letter(NamedTuple):
    """What the activations say of one letter, before any coder."""

    name: str
    column: int
    """Its place among the labels."""

    direction: Float[Tensor, " d_in"]
    words: Int[Tensor, " found"]
    """Test words that start with it and that the probe gets right."""

    projection: Float[Tensor, " found"]
    probe_f1: float
    reason: str | None
    """Why it is left out; None where it is kept."""


class Words(NamedTuple):
    """Activations at words, and which letter each starts with."""

    x: Float[Tensor, "words d_in"]
    labels: Bool[Tensor, "words letters"]


class ProbeRecipe(NamedTuple):
    """How the probes are fitted."""

    epochs: int = 50
    batch_words: int = 64
    l1: float = 0.01
    sparse_batch_words: int = 128
    jump: float = 0.03
    most_main: int = 10
    seed: int = 0


def letters_of(
    names: Sequence[str],
    train: Words,
    test: Words,
    recipe: ProbeRecipe,
    *,
    min_f1: float = 0.6,
    min_words: int = 5,
) -> list[Letter]:
    """Probe every letter and list the test words that its absorption is measured on."""
    probe = fit_one_vs_rest(
        train.x,
        train.labels,
        epochs=recipe.epochs,
        batch_words=recipe.batch_words,
        seed=recipe.seed,
    )
    said = probe.logits(test.x.float()) > 0
    found = []
    for column, name in enumerate(names):
        true = test.labels[:, column]
        words = (true & said[:, column]).nonzero()[:, 0]
        score = f1(said[:, column], true)
        direction = F.normalize(probe.weights[column].to(test.x.dtype), dim=0)
        num = int(true.sum())
        reason = None
        if int(train.labels[:, column].sum()) < min_words or num < min_words:
            reason = f"fewer than {min_words} words"
        elif score <= min_f1:
            reason = f"probe F1 is not above {min_f1:g}"
        projection = test.x[words] @ direction
        found.append(Letter(name, column, direction, words, projection, score, reason))
    return found


def cross_validated(
    features: Float[Tensor, "words columns"], true: Bool[Tensor, " words"], recipe: ProbeRecipe
) -> Callable[[int], float]:
    """F1 on the first k columns, each word judged by a probe that has not seen it."""
    rng = np.random.default_rng(recipe.seed)
    fold = torch.zeros(len(true), dtype=torch.long)
    for members in (true.nonzero()[:, 0], (~true).nonzero()[:, 0]):
        # dealt class by class, so that every fold has its share of a rare letter
        fold[members] = torch.from_numpy(rng.permutation(len(members)) % FOLDS)

    def score(k: int) -> float:
        said = torch.zeros_like(true)
        for number in range(FOLDS):
            own = fold == number
            if true[~own].any() and own.any():
                said[own] = balanced(features[~own, :k], true[~own], features[own, :k])
        return f1(said, true)

    return score


def balanced(
    train: Float[Tensor, "train_words columns"],
    true: Bool[Tensor, " train_words"],
    test: Float[Tensor, "test_words columns"],
) -> Bool[Tensor, " test_words"]:
    """What logistic regression with balanced classes says of the test rows."""
    fitted = LogisticRegression(max_iter=MAX_ITERATIONS, class_weight="balanced")
    fitted.fit(train.double().numpy(), true.numpy())
    return torch.from_numpy(fitted.predict(test.double().numpy()))
