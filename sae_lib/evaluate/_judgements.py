"""How well answers about windows, or simulated activations, agree with what the latent did.

    balanced accuracy = (TP / (TP + FN) + TN / (TN + FP)) / 2,   F1 = 2 TP / (2 TP + FP + FN)
    AUC               = P(score of an active window > of an inactive one) + P(equal) / 2
    weighted F1       = sum_i p_i F1_i / sum_i p_i,              p_i how often latent i fires
    R2                = 1 - mean(error^2) / mean(true^2)         about zero, not about the mean

Pure functions of small arrays: nothing here knows of coders or judges.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import rankdata

from sae_lib.evaluate._moments import Estimate

Numbers = Sequence[float | int] | np.ndarray
"""One number or truth value per window, token or latent."""


class Confusion(NamedTuple):
    """Windows by what they are and what was answered."""

    tp: int
    fn: int
    tn: int
    fp: int

    @property
    def total(self) -> int:
        return sum(self)

    @property
    def accuracy(self) -> float | None:
        """Share of right answers; None without a window."""
        return (self.tp + self.tn) / self.total if self.total else None

    @property
    def balanced_accuracy(self) -> float | None:
        """Mean of the shares right among active and among inactive; None where one is missing."""
        active, inactive = self.tp + self.fn, self.tn + self.fp
        if not active or not inactive:
            return None
        return (self.tp / active + self.tn / inactive) / 2

    @property
    def precision(self) -> float:
        """Share of windows called active that are; 0 where none was."""
        return self.tp / max(1, self.tp + self.fp)

    @property
    def recall(self) -> float | None:
        """Share of active windows that were called so; None where none is active."""
        return self.tp / (self.tp + self.fn) if self.tp + self.fn else None

    @property
    def f1(self) -> float:
        """0 where nothing is active and nothing was called so."""
        return 2 * self.tp / max(1, 2 * self.tp + self.fp + self.fn)


def confusion(labels: Numbers, answers: Numbers) -> Confusion:
    """Counts of ``answers`` (truth values) against ``labels``."""
    truth, said = np.asarray(labels, bool), np.asarray(answers, bool)
    tp, fn = int((truth & said).sum()), int((truth & ~said).sum())
    return Confusion(tp, fn, int((~truth & ~said).sum()), int((~truth & said).sum()))


def auc(labels: Numbers, scores: Numbers) -> float | None:
    """Chance that an active window has the larger score, ties half; None where one is missing."""
    truth = np.asarray(labels, bool)
    active, inactive = int(truth.sum()), int((~truth).sum())
    if not active or not inactive:
        return None
    ranks = rankdata(np.asarray(scores, float))
    return float((ranks[truth].sum() - active * (active + 1) / 2) / (active * inactive))


def frequency_weighted(values: Numbers, frequencies: Numbers) -> float | None:
    """Mean of ``values`` weighted by ``frequencies``; None where all of these are 0."""
    weights = np.asarray(frequencies, float)
    total = float(weights.sum())
    return float(np.asarray(values, float) @ weights / total) if total > 0 else None


class Agreement(NamedTuple):
    """How simulated activations agree with true ones."""

    pearson: float
    """0 where a side is constant."""

    r2: float | None
    """None where the latent is silent on every token."""

    is_constant: bool
    """Whether a side has but one value, so that there is no correlation."""


def agreement(true: Numbers, simulated: Numbers) -> Agreement:
    """Pearson correlation and R2 about zero of ``simulated``, in the unit of ``true``."""
    a, b = np.asarray(true, float), np.asarray(simulated, float)
    is_constant = not len(a) or bool((a == a[0]).all() or (b == b[0]).all())
    pearson = 0.0
    if not is_constant:
        a0, b0 = a - a.mean(), b - b.mean()
        pearson = float(a0 @ b0 / np.sqrt((a0 @ a0) * (b0 @ b0)))
    power = float((a**2).mean()) if len(a) else 0.0
    r2 = 1 - float(((a - b) ** 2).mean()) / power if power > 0 else None
    return Agreement(pearson, r2, is_constant)


def expected_level(probabilities: Mapping[int, float]) -> float | None:
    """Mean level under probabilities that need not sum to 1; None where all are 0."""
    total = sum(probabilities.values())
    return sum(level * p for level, p in probabilities.items()) / total if total > 0 else None


def levels(activations: Numbers, largest: float, *, upwards: bool = False) -> np.ndarray:
    """Activations as whole numbers from 0 to 10: 10 a / ``largest`` rounded down, or up."""
    scaled = 10 * np.clip(np.asarray(activations, float), 0, None) / largest
    return np.clip(np.ceil(scaled) if upwards else np.floor(scaled), 0, 10).astype(int)


def importance_weights(activations: Numbers, num_top: int) -> np.ndarray:
    """Chances proportional to the squared activation, 0 from the ``num_top`` largest upwards.

    All 0 where nothing is left to draw.
    """
    a = np.clip(np.asarray(activations, float), 0, None)
    if num_top:
        a = np.where(a >= np.sort(a)[::-1][:num_top].min(), 0, a)
    squares = a**2
    return squares / squares.sum() if squares.sum() > 0 else squares


def rank_groups(num: int, num_groups: int) -> list[range]:
    """Ranks from the strongest down in equal groups; the few weakest that are left over are out."""
    size = num // num_groups
    return [range(group * size, (group + 1) * size) for group in range(num_groups)]


def over(
    values: Sequence[float | None], unit: str, *, none: str = "nothing was scored"
) -> Estimate:
    """Mean over the units that have a value, with its standard error."""
    known = np.array([value for value in values if value is not None], float)
    if not len(known):
        return Estimate(None, n=0, unit=unit, reason=none)
    stderr = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
    return Estimate(float(known.mean()), stderr, len(known), unit)


def share_of(part: int, whole: int, unit: str) -> Estimate:
    """``part`` of ``whole`` with its binomial standard error; without a whole there is none."""
    if not whole:
        return Estimate(None, n=0, unit=unit, reason=f"there are no {unit}")
    share = part / whole
    return Estimate(share, (share * (1 - share) / whole) ** 0.5, whole, unit)
