"""The questions by which descriptions of latents are scored, and the scores of the answers.

Every scorer takes descriptions and windows of the same latents in the same order and gives one
`Scored` per latent. What could not be read is left out of a score and counted.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import numpy as np

from sae_lib.evaluate._judgements import Confusion, agreement, auc, confusion
from sae_lib.evaluate._judges.base import YES, Asked, Description, Excerpt, Judge, Scores
from sae_lib.evaluate._latent_windows import LatentWindows, Window

SILENT = "the method says nothing about the latent"
TOO_FEW = "the latent has too few windows in the held-out text"
UNREAD = "no reply could be read"


class Dials(NamedTuple):
    """What the questions look like."""

    num_random: int = 10
    """Inactive windows in a selection."""

    num_active: int = 4
    """Active windows in a selection."""

    mark_share: float = 0.3
    """Tokens above this share of their window's largest activation are highlighted."""

    wrong_marks: Literal["inactive", "active"] = "inactive"
    """Whether wrong highlights stand in inactive windows or beside the right ones in active."""

    intruder_windows: int = 5
    seed: int = 0


class Scored(NamedTuple):
    """The scores of one latent by one scorer."""

    values: dict[str, float | None] = {}  # noqa: RUF012  (a NamedTuple's default is never changed)
    n: int = 0
    """Windows (or groups of windows) that the scores are of."""

    asked: int = 0
    unread: int = 0
    """Of the asked ones those with no readable reply."""

    reason: str | None = None
    """Why there are no scores."""

    is_constant: bool = False
    """Whether a simulation or the truth had but one value."""

    recall_by_group: tuple[float | None, ...] = ()
    """Share of active windows found, by rank group, the strongest first."""


Descriptions = Sequence[Description | None]
Scorer = Callable[[Judge, Descriptions, Sequence[LatentWindows], Dials], list[Scored]]


class _Question(NamedTuple):
    """The windows that one latent is asked about, in the order in which they are shown."""

    latent: int
    """Place among the latents."""

    asked: Asked
    labels: list[bool]
    windows: list[Window]
    groups: list[int]
    """Rank group of each active window, -1 for inactive ones."""


def selection(
    judge: Judge, descriptions: Descriptions, samples: Sequence[LatentWindows], dials: Dials
) -> list[Scored]:
    """Top, weighted and random windows in one numbered list: which are active?"""
    found = [Scored(reason=SILENT) for _ in samples]
    questions = []
    for i, (description, sample) in enumerate(zip(descriptions, samples, strict=True)):
        active, inactive = [*sample.top, *sample.weighted], sample.inactive[: dials.num_random]
        if description is None:
            continue
        if len(active) < dials.num_active or len(inactive) < dials.num_random:
            found[i] = Scored(reason=TOO_FEW)
            continue
        questions.append(_question(i, description, active, inactive, dials))
    replies = judge.select([question.asked for question in questions])
    for question, reply in zip(questions, replies, strict=True):
        if reply is None:
            found[question.latent] = Scored(asked=1, unread=1, reason=UNREAD)
            continue
        counts = confusion(question.labels, reply)
        values = {
            "autointerp_accuracy": counts.accuracy,
            "autointerp_balanced_accuracy": counts.balanced_accuracy,
        }
        found[question.latent] = Scored(values, counts.total, 1)
    return found


def detection(
    judge: Judge, descriptions: Descriptions, samples: Sequence[LatentWindows], dials: Dials
) -> list[Scored]:
    """Each window by itself: is the latent active in it?"""
    found, questions = _questions(descriptions, samples, dials)
    replies = judge.detect([question.asked for question in questions])
    for question, scores in zip(questions, replies, strict=True):
        found[question.latent] = _judged("detection", question, scores, judge.is_graded)
    return found


def fuzzing(
    judge: Judge, descriptions: Descriptions, samples: Sequence[LatentWindows], dials: Dials
) -> list[Scored]:
    """Each window with highlights: are these the tokens on which the latent is active?"""
    found, questions = _questions(descriptions, samples, dials)
    marked = [_marked(question, dials) for question in questions]
    replies = judge.fuzz([question.asked for question in marked])
    for question, scores in zip(marked, replies, strict=True):
        found[question.latent] = _judged("fuzzing", question, scores, judge.is_graded)
    return found


def simulation(
    judge: Judge, descriptions: Descriptions, samples: Sequence[LatentWindows], dials: Dials
) -> list[Scored]:
    """Each token: how strongly is the latent active?"""
    found, questions = _questions(descriptions, samples, dials)
    replies = judge.simulate([question.asked for question in questions])
    for question, levels in zip(questions, replies, strict=True):
        largest = max(window.strongest for window in question.windows)
        true, simulated, read = [], [], 0
        for window, given in zip(question.windows, levels, strict=True):
            if given is not None and len(given) == len(window.activations):
                true += [10 * a / largest for a in window.activations]
                simulated += given
                read += 1
        unread = len(levels) - read
        if not read:
            found[question.latent] = Scored(asked=len(levels), unread=unread, reason=UNREAD)
            continue
        fit = agreement(true, simulated)
        values: dict[str, float | None] = {
            "simulation_pearson": fit.pearson,
            "simulation_r2": fit.r2,
        }
        found[question.latent] = Scored(
            values, read, len(levels), unread, is_constant=fit.is_constant
        )
    return found


def surprisal(
    judge: Judge, descriptions: Descriptions, samples: Sequence[LatentWindows], dials: Dials
) -> list[Scored]:
    """Does the description make active windows likelier than inactive ones?"""
    return _ranked("surprisal_auc", judge.surprise, descriptions, samples, dials)


def embedding(
    judge: Judge, descriptions: Descriptions, samples: Sequence[LatentWindows], dials: Dials
) -> list[Scored]:
    """Is the description nearer to active windows than to inactive ones?"""
    return _ranked("embedding_auc", judge.resemble, descriptions, samples, dials)


def intruder(
    judge: Judge, descriptions: Descriptions, samples: Sequence[LatentWindows], dials: Dials
) -> list[Scored]:
    """Windows of one rank group and an inactive one: which does not belong? Without description."""
    del descriptions
    found = [Scored(reason=TOO_FEW) for _ in samples]
    groups: list[list[Excerpt]] = []
    owners: list[tuple[int, int]] = []
    for i, sample in enumerate(samples):
        rng = np.random.default_rng([dials.seed, 5, i])
        others = iter(sample.inactive)
        for windows in sample.quantiles:
            own = windows[: dials.intruder_windows - 1]
            stranger = next(others, None)
            if len(own) < dials.intruder_windows - 1 or stranger is None:
                continue
            shown = [_right(window, dials.mark_share) for window in own]
            num = _typical_marks(shown)
            place = int(rng.integers(dials.intruder_windows))
            shown.insert(place, _random_marks(stranger, num, rng))
            groups.append(shown)
            owners.append((i, place))
    hits: dict[int, list[bool | None]] = {}
    for (i, place), chosen in zip(owners, judge.intrude(groups), strict=True):
        hits.setdefault(i, []).append(None if chosen is None else chosen == place)
    for i, own in hits.items():
        read = [hit for hit in own if hit is not None]
        unread = len(own) - len(read)
        if not read:
            found[i] = Scored(asked=len(own), unread=unread, reason=UNREAD)
            continue
        values: dict[str, float | None] = {"intruder_accuracy": sum(read) / len(read)}
        found[i] = Scored(values, len(read), len(own), unread)
    return found


SCORERS: dict[str, Scorer] = {
    "selection": selection,
    "detection": detection,
    "fuzzing": fuzzing,
    "simulation": simulation,
    "surprisal": surprisal,
    "embedding": embedding,
    "intruder": intruder,
}


def _questions(
    descriptions: Descriptions, samples: Sequence[LatentWindows], dials: Dials
) -> tuple[list[Scored], list[_Question]]:
    found = [Scored(reason=SILENT) for _ in samples]
    questions = []
    for i, (description, sample) in enumerate(zip(descriptions, samples, strict=True)):
        if description is None:
            continue
        if not sample.active or not sample.inactive:
            found[i] = Scored(reason=TOO_FEW)
            continue
        questions.append(
            _question(i, description, sample.active, sample.inactive, dials, sample.quantiles)
        )
    return found, questions


def _question(
    latent: int,
    description: Description,
    active: Sequence[Window],
    inactive: Sequence[Window],
    dials: Dials,
    quantiles: Sequence[Sequence[Window]] = (),
) -> _Question:
    """All windows in random order, which depends on the latent's place alone."""
    windows = [*active, *inactive]
    groups = [g for g, own in enumerate(quantiles) for _ in own] or [0] * len(active)
    groups += [-1] * len(inactive)
    order = np.random.default_rng([dials.seed, 1, latent]).permutation(len(windows)).tolist()
    return _Question(
        latent,
        Asked(description, [windows[k].excerpt for k in order]),
        [k < len(active) for k in order],
        [windows[k] for k in order],
        [groups[k] for k in order],
    )


def _judged(
    prefix: str, question: _Question, scores: Sequence[float | None], is_graded: bool
) -> Scored:
    read = [k for k, score in enumerate(scores) if score is not None]
    unread = len(scores) - len(read)
    if not read:
        return Scored(asked=len(scores), unread=unread, reason=UNREAD)
    labels = [question.labels[k] for k in read]
    given = [float(scores[k] or 0.0) for k in read]
    said = [score > YES for score in given]
    counts = confusion(labels, said)
    values = {
        f"{prefix}_balanced_accuracy": counts.balanced_accuracy,
        f"{prefix}_precision": counts.precision,
        f"{prefix}_recall": counts.recall,
        f"{prefix}_f1": counts.f1,
        f"{prefix}_auc": auc(labels, given) if is_graded else None,
    }
    groups = [question.groups[k] for k in read]
    recalls = tuple(
        Confusion(
            sum(yes for yes, g in zip(said, groups, strict=True) if g == group),
            sum(not yes for yes, g in zip(said, groups, strict=True) if g == group),
            0,
            0,
        ).recall
        for group in range(max(question.groups) + 1)
    )
    return Scored(values, len(read), len(scores), unread, recall_by_group=recalls)


def _ranked(
    name: str,
    score: Callable[[Sequence[Asked]], Scores],
    descriptions: Descriptions,
    samples: Sequence[LatentWindows],
    dials: Dials,
) -> list[Scored]:
    found, questions = _questions(descriptions, samples, dials)
    replies = score([question.asked for question in questions])
    for question, scores in zip(questions, replies, strict=True):
        pairs = zip(question.labels, scores, strict=True)
        read = [(label, value) for label, value in pairs if value is not None]
        unread = len(scores) - len(read)
        value = auc([label for label, _ in read], [value for _, value in read])
        found[question.latent] = Scored(
            {name: value}, len(read), len(scores), unread, None if read else UNREAD
        )
    return found


def _marked(question: _Question, dials: Dials) -> _Question:
    """The same with highlights, right ones in active windows and wrong ones in the others.

    With wrong highlights in active windows, the inactive ones give way to copies of these.
    """
    rng = np.random.default_rng([dials.seed, 3, question.latent])
    right = {
        k: _right(window, dials.mark_share)
        for k, window in enumerate(question.windows)
        if question.labels[k]
    }
    num = _typical_marks(list(right.values()))
    actives = list(right)
    excerpts = []
    for k, window in enumerate(question.windows):
        if question.labels[k]:
            excerpts.append(right[k])
        elif dials.wrong_marks == "inactive":
            excerpts.append(_random_marks(window, num, rng))
        else:
            other = actives[int(rng.integers(len(actives)))]
            excerpts.append(_beside(question.windows[other], right[other], num, rng))
    return question._replace(asked=Asked(question.asked.description, excerpts))


def _right(window: Window, share: float) -> Excerpt:
    """Highlights where the latent is active."""
    limit = share * window.strongest
    return window.excerpt._replace(marked=tuple(a > limit for a in window.activations))


def _random_marks(window: Window, num: int, rng: np.random.Generator) -> Excerpt:
    """Highlights at the token in the middle, as active windows have one, and at random ones."""
    others = [k for k in range(len(window.activations)) if k != window.peak]
    chosen = {window.peak, *rng.permutation(others)[: num - 1].tolist()}
    marks = tuple(k in chosen for k in range(len(window.activations)))
    return window.excerpt._replace(marked=marks)


def _beside(window: Window, right: Excerpt, num: int, rng: np.random.Generator) -> Excerpt:
    """Highlights at random tokens on which the latent is not, or hardly, active."""
    others = [k for k, is_marked in enumerate(right.marked) if not is_marked]
    chosen = set(rng.permutation(others)[:num].tolist())
    marks = tuple(k in chosen for k in range(len(window.activations)))
    return window.excerpt._replace(marked=marks)


def _typical_marks(excerpts: Sequence[Excerpt]) -> int:
    """Mean number of highlights, rounded up."""
    return max(1, math.ceil(sum(sum(e.marked) for e in excerpts) / max(1, len(excerpts))))
