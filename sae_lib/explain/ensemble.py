"""Ensemble: what several methods say about a latent, put together, and how far they agree.

Methods that look at what makes a latent fire (input side) and at what it makes the model say
(output side) explain different halves of it. Their keywords are fused by rank, not by score:

    score(w) = mean over methods of (k + 1) / (k + rank of w),  0 where a method does not list it

within each side, and then over both sides. The text joins the two descriptions, as the ensemble by
concatenation of Gur-Arieh et al. 2025. It begins with a label: the leading words, and after an
arrow what they lead to where that is something else.

    agreement    mean over pairs of methods of one side of the share of leading words in common
    confidence   mean of the agreement and of the scores that methods' explanations have, in [0, 1]

Suppressed words, whose scores are below 0, take no part; words count alike whatever their case.
"""

from collections.abc import Sequence
from itertools import combinations
from typing import ClassVar, Literal, NamedTuple

from pydantic import Field

from sae_lib.errors import BadInput, NotApplicable
from sae_lib.explain._words import quoted
from sae_lib.explain.base import Evidence, ExplainerConfig, register
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ExplanationRow

_RANK_OFFSET = 5
"""How slowly the weight falls with rank: the sixth place has about half that of the first."""

_SHOWN = 5
_IN_LABEL = 3
_AFTER_LABEL = " | "


class Fused(NamedTuple):
    """Words of one side of a latent, best first."""

    words: list[str]
    scores: list[float]
    agreement: float | None
    """Share of leading words in common; None with fewer than two methods."""

    num_methods: int


@register
class EnsembleConfig(ExplainerConfig):
    """Which methods belong to which side."""

    papers: ClassVar = (
        Paper("Gur-Arieh et al. 2025", "https://arxiv.org/abs/2501.08319", "ensembles"),
    )
    summary: ClassVar = "What the other methods say, put together, with a label and a confidence."
    dials: ClassVar = ("inputs", "outputs", "num_compared", "num_keywords")
    trust: ClassVar = 3

    method: Literal["ensemble"] = "ensemble"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    inputs: tuple[str, ...] = ("max_act", "pruned_max_act", "contrast")
    """Methods that say on what a latent fires; those that were not run are passed over."""

    outputs: tuple[str, ...] = ("vocab_proj", "token_change", "mut_info")
    """Methods that say what a latent promotes."""

    num_keywords: int = Field(default=20, gt=0)
    """Words listed per latent."""

    num_compared: int = Field(default=10, gt=0)
    """Leading words of two methods that are compared for the agreement."""

    def check(self, evidence: Evidence) -> None:
        twice = sorted(set(self.inputs) & set(self.outputs))
        if twice:
            raise BadInput("a method is on one side, not on both.", key="inputs", value=twice[0])

    def explain(self, evidence: Evidence) -> list[ExplanationRow]:
        return []

    def combine(self, evidence: Evidence, rows: Sequence[ExplanationRow]) -> list[ExplanationRow]:
        own = [row for row in rows if row.method in (*self.inputs, *self.outputs)]
        if len({row.method for row in own}) < 2:
            raise NotApplicable(
                self.method,
                "it needs rows of two or more of the methods "
                f"{', '.join((*self.inputs, *self.outputs))}.",
            )
        by_latent: dict[int, list[ExplanationRow]] = {}
        for row in own:
            by_latent.setdefault(row.latent, []).append(row)
        return [self._combined(latent, said) for latent, said in sorted(by_latent.items())]

    def _combined(self, latent: int, rows: Sequence[ExplanationRow]) -> ExplanationRow:
        reads, writes = (
            fuse([row for row in rows if row.method in side], self.num_compared)
            for side in (self.inputs, self.outputs)
        )
        found = both_sides(reads, writes)[: self.num_keywords]
        scores = [row.score for row in rows if row.score is not None]
        said = [f"fires on {quoted(reads.words, _SHOWN)}"] if reads.words else []
        said += [f"promotes {quoted(writes.words, _SHOWN)}"] if writes.words else []
        label = _label(reads.words, writes.words)
        agreement = _mean([a for a in (reads.agreement, writes.agreement) if a is not None])
        return ExplanationRow(
            latent,
            self.method,
            f"{label}{_AFTER_LABEL}{'; '.join(said)}" if said else "no method names a word",
            [word for word, _ in found],
            [score for _, score in found],
            confidence(agreement, scores),
            "confidence",
        )

    def label(self, row: ExplanationRow) -> str | None:
        return row.text.rpartition(_AFTER_LABEL)[0] or None


def _label(reads: Sequence[str], writes: Sequence[str]) -> str:
    """Leading words it fires on, and what they lead to where that is something else."""
    before = list(reads[:_IN_LABEL])
    known = {word.lower() for word in before}
    after = [word for word in writes[:_IN_LABEL] if word.lower() not in known]
    sides = [", ".join(words) for words in (before, after) if words]
    return " -> ".join(sides)


def fuse(rows: Sequence[ExplanationRow], num_compared: int) -> Fused:
    """The keywords of methods that say the same kind of thing."""
    ranked = [list(_promoted(row)) for row in rows]
    totals: dict[str, float] = {}
    for words in ranked:
        for rank, word in enumerate(words):
            totals[word] = totals.get(word, 0.0) + (_RANK_OFFSET + 1) / (_RANK_OFFSET + 1 + rank)
    best = sorted(totals.items(), key=lambda pair: (-pair[1], pair[0]))
    shown = {}
    for row in rows:
        for word, original in _promoted(row).items():
            shown.setdefault(word, original)
    return Fused(
        [shown[word] for word, _ in best],
        [score / len(rows) for _, score in best],
        _mean([overlap(a[:num_compared], b[:num_compared]) for a, b in combinations(ranked, 2)]),
        len(rows),
    )


def overlap(first: Sequence[str], second: Sequence[str]) -> float:
    """Share of the shorter list that is in the longer; 0 where one is empty."""
    shorter = min(len(first), len(second))
    return len(set(first) & set(second)) / shorter if shorter else 0.0


def both_sides(reads: Fused, writes: Fused) -> list[tuple[str, float]]:
    """Words of both sides, best first; a side that no method spoke for does not count."""
    sides = [side for side in (reads, writes) if side.num_methods]
    totals: dict[str, float] = {}
    shown: dict[str, str] = {}
    for side in sides:
        for word, score in zip(side.words, side.scores, strict=True):
            shown.setdefault(word.lower(), word)
            totals[word.lower()] = totals.get(word.lower(), 0.0) + score / len(sides)
    ranked = sorted(totals.items(), key=lambda pair: (-pair[1], pair[0]))
    return [(shown[word], score) for word, score in ranked]


def confidence(agreement: float | None, scores: Sequence[float]) -> float | None:
    """Mean of what is known: the agreement of methods, and the scores of their explanations."""
    return _mean([*([] if agreement is None else [agreement]), *scores])


def _promoted(row: ExplanationRow) -> dict[str, str]:
    """Keywords with a score that is not below 0, in lower case, with their own spelling."""
    found: dict[str, str] = {}
    for word, score in zip(row.keywords, row.keyword_scores, strict=True):
        if score >= 0 and word.strip():
            found.setdefault(word.strip().lower(), word.strip())
    return found


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
