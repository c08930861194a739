"""Rows of the steering application: every strength, and the one that was chosen.

Prompts are halved: every other one, from the first, chooses the strength ("dev"), the rest score
it ("test"). Standard errors are over prompts, of side effects over texts.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from sae_lib.apply.steered_text import SideEffect
from sae_lib.apply.steering_scores import (
    Cells,
    Reference,
    SteeringScores,
    best_setting,
    with_errors,
)
from sae_lib.warehouse.rows import ApplicationRow, Measurement

STEERING = "steering"

ALL_CONCEPTS = "all"
"""Name under which the mean over concepts is listed."""

_DEFINITIONS = {
    "concept_score": "lexicon_rate_against_same_stretch_of_positive_texts",
    "fluency": "nll_against_shuffled_times_distinct_bigrams",
    "overall": "harmonic_mean_of_concept_and_fluency",
    "product": "concept_times_fluency",
    "lexicon_rate": "share_of_generated_tokens",
    "success_share": "texts_with_a_lexicon_word",
    "perplexity": "generated_tokens_unsteered_model",
    "distinct_bigrams": "mean_over_texts",
}
_SUMMARISED = ("overall", "concept_score", "fluency", "product", "lexicon_rate", "success_share")
_BEST = "best_"
_RELATIVE = ("concept_score", "fluency", "overall", "product")


class Trial(NamedTuple):
    """One direction at one strength."""

    strength: float
    """In units of the mean length of activations."""

    cells: Cells
    lexicon_gain: Float[np.ndarray, " prompts"]
    side_effect: SideEffect | None
    """None for unsteered text."""


def trial_rows(
    method: str, task: str, trial: Trial, reference: Reference, params: dict[str, Any]
) -> list[ApplicationRow]:
    """All that was measured at one strength, for either half of the prompts."""
    rows = []
    for split, chosen in halves(len(trial.cells.tokens)).items():
        scores, errors = with_errors(trial.cells.of(chosen), reference.of(chosen))
        here = {**params, "split": split}
        num = int(chosen.sum())
        found = [_scored(name, scores, errors, num, here) for name in SteeringScores._fields]
        found.append(_mean("lexicon_gain", trial.lexicon_gain[chosen], "prompts", here))
        rows += [ApplicationRow(STEERING, method, task, one) for one in found]
    if trial.side_effect is not None:
        kl, increase, tokens = trial.side_effect
        for name, sums in (("kl", kl), ("ce_increase", increase)):
            found = ratio_of_sums(name, sums, tokens, params)
            rows.append(ApplicationRow(STEERING, method, task, found))
    return rows


def best_rows(
    method: str, task: str, trials: Sequence[Trial], reference: Reference, params: dict[str, Any]
) -> list[ApplicationRow]:
    """Scores on the test prompts at the strength that is best on the development prompts.

    Of equally good strengths the first is taken.
    """
    half = halves(len(reference.plain.tokens))

    def on(split: str, trial: Trial) -> tuple[SteeringScores, SteeringScores]:
        return with_errors(trial.cells.of(half[split]), reference.of(half[split]))

    best = best_setting(list(trials), lambda trial: on("dev", trial)[0].overall)
    if best is None:
        return [absent_row(method, task, "no strength has a score on the development prompts")]
    scores, errors = on("test", best)
    params = {"strength": best.strength, "split": "test", "chosen_on": "dev", **params}
    num = int(half["test"].sum())
    found = [_scored(name, scores, errors, num, params) for name in _SUMMARISED]
    return [
        ApplicationRow(STEERING, method, task, one._replace(name=f"{_BEST}{one.name}"))
        for one in found
    ]


def absent_row(method: str, task: str, reason: str) -> ApplicationRow:
    """The headline number, which there is not."""
    found = Measurement(f"{_BEST}overall", None, _DEFINITIONS["overall"], reason=reason)
    return ApplicationRow(STEERING, method, task, found)


def means_over_concepts(rows: Sequence[ApplicationRow]) -> list[ApplicationRow]:
    """Per method, the mean over concepts of what was found at the chosen strength."""
    values: dict[tuple[str, str, str], list[float]] = {}
    for row in rows:
        m = row.measurement
        if m.name.startswith(_BEST) and m.value is not None:
            values.setdefault((row.method, m.name, m.definition), []).append(m.value)
    found = []
    for (method, name, definition), some in values.items():
        mean = _mean(name, np.array(some), "concepts", {})
        mean = mean._replace(definition=f"mean_of_concepts_{definition}")
        found.append(ApplicationRow(STEERING, method, ALL_CONCEPTS, mean))
    return found


def halves(num_prompts: int) -> dict[str, Bool[np.ndarray, " prompts"]]:
    """Which prompts choose a strength ("dev") and which score it ("test")."""
    is_dev = np.arange(num_prompts) % 2 == 0
    return {"dev": is_dev, "test": ~is_dev}


def ratio_of_sums(
    name: str,
    sums: Float[np.ndarray, " texts"],
    tokens: Float[np.ndarray, " texts"],
    params: dict[str, Any],
) -> Measurement:
    """Nats per token; the standard error is over texts, by linearisation."""
    num, total = len(sums), float(tokens.sum())
    if not total:
        return Measurement(name, None, "mean_over_tokens", params=params, reason="no tokens")
    value = float(sums.sum()) / total
    rest = sums - value * tokens
    stderr = float(np.sqrt(num / (num - 1) * (rest**2).sum()) / total) if num > 1 else None
    return Measurement(
        name, value, "mean_over_tokens", stderr=stderr, n=num, unit="texts", params=params
    )


def _scored(
    name: str,
    scores: SteeringScores,
    errors: SteeringScores,
    num_prompts: int,
    params: dict[str, Any],
) -> Measurement:
    value, stderr = getattr(scores, name), getattr(errors, name)
    found = Measurement(
        name, None, _DEFINITIONS[name], n=num_prompts, unit="prompts", params=params
    )
    if np.isfinite(value):
        return found._replace(value=value, stderr=stderr if np.isfinite(stderr) else None)
    if name in _RELATIVE:
        return found._replace(
            reason="unsteered text has the concept's words as often as texts about it,"
            " or is no likelier than its own words shuffled"
        )
    return found._replace(reason="no text was generated")


def _mean(
    name: str, values: Float[np.ndarray, " units"], unit: str, params: dict[str, Any]
) -> Measurement:
    num = len(values)
    stderr = float(np.std(values, ddof=1) / np.sqrt(num)) if num > 1 else None
    return Measurement(
        name,
        float(np.mean(values)),
        f"mean_over_{unit}",
        stderr=stderr,
        n=num,
        unit=unit,
        params=params,
    )
