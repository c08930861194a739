"""What a coder does with letters: their main latents, and how much of their words others took over.

The formulas are at the top of `absorption.py`. They hold for any concept that a direction stands
for: `planted.py` applies them to concepts that are known.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from sae_lib.evaluate._letter_probes import (
    Letter,
    ProbeRecipe,
    balanced,
    cross_validated,
    f1,
    fit_one_vs_rest,
    num_main,
)

FULL_COSINE, FRACTION_COSINE, SHARE, MOST_ABSORBERS = 0.025, 0.1, 0.4, 3
SILENT = 1e-8
"""SAEBench 0.6, evals/absorption/feature_absorption.py."""


class Absorption(NamedTuple):
    """How much of each word's projection on a concept other latents took over."""

    fraction: Float[Tensor, " words"]
    """Version 0.6, with thresholds."""

    is_full: Bool[Tensor, " words"]
    fraction_v0_3: Float[Tensor, " words"]
    """As it was before there were thresholds."""


def absorption(
    code: Float[Tensor, "words d_sae"],
    W_dec: Float[Tensor, "d_sae d_in"],
    direction: Float[Tensor, " d_in"],
    projection: Float[Tensor, " words"],
    main: Int[Tensor, " main"],
) -> Absorption:
    """Absorption of words that have a concept; the formulas are at the top of `absorption.py`.

    ``direction`` need not have length 1, rows of ``W_dec`` neither; ``projection`` is that on the
    direction of length 1. A projection that is not positive gives 0.
    """
    direction = F.normalize(direction, dim=0)
    cosine = F.normalize(W_dec, dim=1) @ direction
    q = code * (W_dec @ direction)
    is_main = torch.zeros(len(W_dec), dtype=torch.bool).index_fill(0, main, True)
    of_main = q[:, is_main].sum(1)
    others = (q * (~is_main & (cosine >= FRACTION_COSINE))).clamp_min(0)
    taken = others.topk(min(MOST_ABSORBERS, len(W_dec)), dim=1).values.sum(1)
    moved = torch.minimum(taken, projection - of_main)
    fraction = torch.where(of_main <= 0, 1.0, (moved / (moved + of_main)).clamp(0, 1))
    is_none = (of_main >= projection) | (taken < SHARE * projection) | (projection <= 0)
    top, latent = q.max(1)
    is_full = (
        (code[:, is_main] < SILENT).all(1)
        & (cosine[latent] >= FULL_COSINE)
        & (projection > 0)
        & (top >= SHARE * projection)
    )
    written = q.sum(1)
    was_none = (of_main >= projection) | (written <= 0)
    old = ((written - of_main) / written).clamp(0, 1).masked_fill(was_none, 0.0)
    return Absorption(fraction.masked_fill(is_none, 0.0), is_full, old)


class LetterFound(NamedTuple):
    """What one coder does with one letter."""

    letter: Letter
    main: list[int]
    fraction: float | None
    """None where there is no word or no main latent."""

    full: float | None
    old: float | None
    f1_one: float
    f1_main: float
    reason: str | None


def letters_in_coder(
    letters: Sequence[Letter],
    train: Float[Tensor, "train_words d_sae"],
    train_labels: Bool[Tensor, "train_words letters"],
    test: Float[Tensor, "test_words d_sae"],
    test_labels: Bool[Tensor, "test_words letters"],
    W_dec: Float[Tensor, "d_sae d_in"],
    recipe: ProbeRecipe,
) -> list[LetterFound]:
    """Main latents of every letter, and how much of its words others took over.

    Codes are those on unit decoder rows, whatever the norms of ``W_dec``.
    """
    norms = W_dec.norm(dim=1).clamp_min(1e-12)
    train, test, W_dec = train * norms, test * norms, W_dec / norms[:, None]
    sparse = fit_one_vs_rest(
        train,
        train_labels,
        epochs=recipe.epochs,
        batch_words=recipe.sparse_batch_words,
        weight_decay=1e-6,
        l1=recipe.l1,
        seed=recipe.seed,
    )
    is_on = (train > 0).any(0)
    found = []
    for letter in letters:
        weight = sparse.weights[letter.column].masked_fill(~is_on, 0.0)
        ranked = weight.argsort(descending=True, stable=True)
        ranked = ranked[weight[ranked] > 0][: recipe.most_main]
        true = train_labels[:, letter.column]
        if not len(ranked) or not len(letter.words):
            reason = "no latent speaks for it" if len(letter.words) else "the probe gets no word"
            found.append(
                LetterFound(letter, [], None, None, None, 0.0, 0.0, letter.reason or reason)
            )
            continue
        k = num_main(cross_validated(train[:, ranked], true, recipe), len(ranked), recipe.jump)
        scores = {
            size: f1(
                balanced(train[:, ranked[:size]], true, test[:, ranked[:size]]),
                test_labels[:, letter.column],
            )
            for size in {1, k}
        }
        one = absorption(test[letter.words], W_dec, letter.direction, letter.projection, ranked[:k])
        found.append(
            LetterFound(
                letter,
                ranked[:k].tolist(),
                one.fraction.mean().item(),
                one.is_full.double().mean().item(),
                one.fraction_v0_3.mean().item(),
                scores[1],
                scores[k],
                letter.reason,
            )
        )
    return found
