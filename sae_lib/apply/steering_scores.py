"""What steered text is worth, without a judge (applications.md, section 2).

    C = clip((r(y) - r(y0)) / (r_pos - r(y0)), 0, 1)        r: share of tokens in the lexicon
    F = clip(1 - (nll(y) - nll(y0)) / (nll_bad - nll(y0)), 0, 1) min(1, d2(y) / d2(y0))
    overall = 2 / (1/C + 1/F), 0 where one of them is 0

y is steered, y0 unsteered text for the same prompts and random numbers; nll per token under the
*unsteered* model; nll_bad that of y0 with its tokens shuffled; r_pos the rate in texts that have
the concept, in the stretch where a continuation would be (the opening of a text says little);
d2 the share of distinct bigrams, so that loops, which are fluent, do not count as such. Rates and
nll are ratios of sums over prompts and samples.

Differs from the section: the third factor, keeping to the prompt's topic, is left out, since short
neutral prompts have none; so the mean is of two.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Bool, Float, Int


class Cells(NamedTuple):
    """What the scores need to know of generated texts, one cell per prompt and sample."""

    hits: Float[np.ndarray, "prompts samples"]
    """Tokens in the lexicon."""

    tokens: Float[np.ndarray, "prompts samples"]
    """Tokens of text: neither special nor after the end."""

    nll: Float[np.ndarray, "prompts samples"]
    """Summed over those tokens, in nats, under the unsteered model."""

    distinct: Float[np.ndarray, "prompts samples"]
    """Distinct bigrams per bigram; 1 for a text of fewer than two tokens."""

    def of(self, prompts: Bool[np.ndarray, " prompts"]) -> "Cells":
        """The cells of some prompts."""
        return Cells(*(part[prompts] for part in self))


class Reference(NamedTuple):
    """What steered text is compared with."""

    plain: Cells
    """Unsteered texts for the same prompts and random numbers."""

    shuffled_nll: Float[np.ndarray, "prompts samples"]
    """nll of the unsteered texts with their tokens in random order, summed like ``plain.nll``."""

    positive_rate: float
    """Share of lexicon tokens in texts that have the concept, in [0, 1]."""

    def of(self, prompts: Bool[np.ndarray, " prompts"]) -> "Reference":
        return Reference(self.plain.of(prompts), self.shuffled_nll[prompts], self.positive_rate)


class SteeringScores(NamedTuple):
    """Scores of a set of steered texts; NaN where one is not defined."""

    concept_score: float
    fluency: float
    overall: float
    product: float
    lexicon_rate: float
    success_share: float
    """Share of texts with at least one token of the lexicon."""

    perplexity: float
    """exp of the nll per generated token under the unsteered model."""

    distinct_bigrams: float


def steering_scores(steered: Cells, reference: Reference) -> SteeringScores:
    """Scores over all cells."""
    plain = reference.plain
    rate, plain_rate = _ratio(steered.hits, steered.tokens), _ratio(plain.hits, plain.tokens)
    nll, plain_nll = _ratio(steered.nll, steered.tokens), _ratio(plain.nll, plain.tokens)
    shuffled_nll = _ratio(reference.shuffled_nll, plain.tokens)
    concept = _share(rate - plain_rate, reference.positive_rate - plain_rate)
    loss = _share(nll - plain_nll, shuffled_nll - plain_nll)
    distinct, plain_distinct = float(steered.distinct.mean()), float(plain.distinct.mean())
    guard = min(1.0, distinct / plain_distinct) if plain_distinct > 0 else 1.0
    fluency = (1 - loss) * guard
    return SteeringScores(
        concept_score=concept,
        fluency=fluency,
        overall=harmonic_mean(concept, fluency),
        product=concept * fluency,
        lexicon_rate=rate,
        success_share=float((steered.hits > 0).mean()),
        perplexity=float(np.exp(nll)),
        distinct_bigrams=distinct,
    )


def with_errors(steered: Cells, reference: Reference) -> tuple[SteeringScores, SteeringScores]:
    """Scores, and their standard errors over prompts by the jackknife (NaN for one prompt)."""
    num = len(steered.tokens)
    whole = steering_scores(steered, reference)
    if num < 2:
        return whole, SteeringScores(*[float("nan")] * len(whole))
    each = ~np.eye(num, dtype=bool)
    parts = np.array([steering_scores(steered.of(i), reference.of(i)) for i in each])
    spread = np.sqrt((num - 1) / num * ((parts - parts.mean(0)) ** 2).sum(0))
    return whole, SteeringScores(*spread.tolist())


def harmonic_mean(*parts: float) -> float:
    """0 where one of ``parts`` is 0, NaN where one is NaN."""
    if any(np.isnan(part) for part in parts):
        return float("nan")
    return 0.0 if min(parts) <= 0 else len(parts) / sum(1 / part for part in parts)


def distinct_bigrams(
    tokens: Int[np.ndarray, "texts seq"], is_text: Bool[np.ndarray, "texts seq"]
) -> Float[np.ndarray, " texts"]:
    """Distinct bigrams per bigram of each text; 1 for fewer than two tokens."""
    found = np.ones(len(tokens))
    for i, (row, valid) in enumerate(zip(tokens, is_text, strict=True)):
        text = row[valid].tolist()
        bigrams = list(pairwise(text))
        if bigrams:
            found[i] = len(set(bigrams)) / len(bigrams)
    return found


Setting = TypeVar("Setting")


def best_setting(settings: list[Setting], value: Callable[[Setting], float]) -> Setting | None:
    """The first setting with the largest value; None where no value is a number."""
    known = [setting for setting in settings if not np.isnan(value(setting))]
    return max(known, key=value, default=None)


def _ratio(
    sums: Float[np.ndarray, "prompts samples"], tokens: Float[np.ndarray, "prompts samples"]
) -> float:
    total = float(tokens.sum())
    return float(sums.sum()) / total if total else float("nan")


def _share(part: float, whole: float) -> float:
    """``part / whole`` clipped to [0, 1]; NaN where ``whole`` is not positive."""
    return float(np.clip(part / whole, 0, 1)) if whole > 0 else float("nan")
