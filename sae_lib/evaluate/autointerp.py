"""Automated interpretability: does a description of a latent tell on which text it fires?

Descriptions come from training text; what is scored is held-out text, of latents drawn at random
among those that fire often enough on both. A judge, which sees no activations, is asked

    selection   14 windows at once (2 top, 2 drawn by activation^2, 10 silent): which are active?
                accuracy = right / 14, and balanced accuracy
    detection   window by window: active?          balanced accuracy, precision, recall, F1, AUC
    fuzzing     are the highlighted tokens those on which the latent is active?      the same
    simulation  activation of every token, 0 to 10: Pearson r, R2 = 1 - mean(err^2) / mean(true^2)
    surprisal   does the description lower the loss of active windows more?          AUC
    embedding   is the description nearer to active windows?                         AUC
    intruder    which of n windows is not active, without description?   accuracy, chance 1 / n

Beside each score stands that of the description of *another* latent: the gap is what the
description is worth. Answering "none" always gives 10 / 14 in the selection. On the bundled world
`oracle` is the score of the true concept that fits a latent best, looked up in the truth.

Sources: SAEBench `evals/autointerp` (selection), delphi (detection to intruder), Bills et al. 2023
(simulation). Differs from SAEBench: windows are held out from whoever explains; random windows are
checked to be silent; the judge is not told how many are active; latents and windows are drawn with
a seed; unreadable replies are counted. Differs from delphi: no window is shown to both explainer
and judge; a window lies around the strongest token of its stretch of document; a correlation with a
constant is 0 and counted.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch
from pydantic import Field

from sae_lib.errors import NotApplicable
from sae_lib.evaluate._described import (
    BEST_CONCEPT,
    Described,
    Evidence,
    Method,
    chat_models,
    check_corpus,
    names_of,
    of_another,
    read_evidence,
)
from sae_lib.evaluate._judgements import frequency_weighted, over, share_of
from sae_lib.evaluate._judges import AnyJudge, Description, Judge, KeywordsConfig, OracleConfig
from sae_lib.evaluate._latent_windows import LatentWindows, Wanted, sample_windows
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate._scorers import SCORERS, Dials, Scored
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.explain.base import read_explainer
from sae_lib.explain.vocabulary import read_vocabulary
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import LatentScoreRow, Measurement

NAME = "autointerp"

_JUDGED = ("balanced_accuracy", "f1", "auc", "precision", "recall")

SCORES: dict[str, tuple[str, float, float, str]] = {
    "autointerp_accuracy": ("selection", 0.0, 1.0, "right answers / 14 windows"),
    "autointerp_balanced_accuracy": ("selection", 0.0, 1.0, "(TPR + TNR) / 2 over 14 windows"),
    **{f"detection_{s}": ("detection", 0.0, 1.0, f"{s} over single windows") for s in _JUDGED},
    **{f"fuzzing_{s}": ("fuzzing", 0.0, 1.0, f"{s} over highlighted windows") for s in _JUDGED},
    "simulation_pearson": ("simulation", -1.0, 1.0, "correlation with simulated activations"),
    "simulation_r2": ("simulation", float("-inf"), 1.0, "1 - mean(error^2) / mean(true^2)"),
    "surprisal_auc": ("surprisal", 0.0, 1.0, "AUC of the fall in loss, active against silent"),
    "embedding_auc": ("embedding", 0.0, 1.0, "AUC of the cosine, active against silent"),
    "intruder_accuracy": ("intruder", 0.0, 1.0, "share of silent windows found among active ones"),
}
"""By score: who asks, lowest and highest value, formula."""

OWN, OTHER = "held_out", "another_latent"

_VARIANTS = {
    OWN: "mean over latents, first method",
    OTHER: "the same with the description of another latent",
    f"{OWN}_of_one": "the same of one explanation method",
    f"{OTHER}_of_one": "the same of one method, with the description of another latent",
    "oracle": "the same of the best true concept, looked up in the truth",
}


def _definition(score: str, variant: str) -> Definition:
    _, low, high, formula = SCORES[score]
    return Definition(score, variant, f"{formula}; {_VARIANTS[variant]}", "higher", low, high)


DEFINITIONS = {
    (score, variant): _definition(score, variant)
    for score, (scorer, *_) in SCORES.items()
    for variant in _VARIANTS
    if scorer != "intruder" or variant in (OWN, "oracle")  # no description, nothing to exchange
}
GAP = Definition(
    "autointerp_gap", OWN,
    "balanced accuracy (14 windows) less that with the description of another latent",
    "higher", -1.0, 1.0,
)  # fmt: skip
GAP_OF_ONE = GAP._replace(definition=f"{OWN}_of_one", text=f"{GAP.text}; of one method")
NONE = Definition(
    "autointerp_accuracy", "always_none", "accuracy of answering that no window is active",
    "higher", 0.0, 1.0,
)  # fmt: skip
CHANCE = Definition(
    "intruder_accuracy", "chance", "1 / windows in a group", "higher", 0.0, 1.0
)  # fmt: skip
WEIGHTED = Definition(
    "detection_weighted_f1", OWN, "sum p_i F1_i / sum p_i, p_i how often latent i fires", "higher",
    0.0, 1.0,
)  # fmt: skip
QUANTILE = Definition(
    "detection_recall", "quantile_of_one", "share of active windows found in one rank group",
    "higher", 0.0, 1.0,
)  # fmt: skip
UNREAD_SHARE = Definition(
    "autointerp_unreadable", "share_of_questions", "questions whose reply could not be read",
    "lower", 0.0, 1.0,
)  # fmt: skip
CONSTANT = Definition(
    "autointerp_constant_simulations", "share_of_latents", "latents whose simulated or true "
    "activations have one value", "neither", 0.0, 1.0,
)  # fmt: skip
COVERAGE = Definition(
    "autointerp_scored_latents", "share_of_sampled", "sampled latents that have a score", "higher",
    0.0, 1.0,
)  # fmt: skip
ELIGIBLE = Definition(
    "autointerp_eligible_latents", "share_of_all", "latents that fire often enough to be sampled",
    "neither", 0.0, 1.0,
)  # fmt: skip
_EXTRA = (
    GAP,
    GAP_OF_ONE,
    NONE,
    CHANCE,
    WEIGHTED,
    QUANTILE,
    UNREAD_SHARE,
    CONSTANT,
    COVERAGE,
    ELIGIBLE,
)


class _Run(NamedTuple):
    """The answers about one set of descriptions: by scorer one `Scored` per latent, or why none."""

    scored: dict[str, list[Scored]]
    reasons: dict[str, str]

    def values(self, score: str) -> list[float | None]:
        scorer = SCORES[score][0]
        return [found.values.get(score) for found in self.scored.get(scorer, ())]

    def estimate(self, score: str) -> Estimate:
        scorer = SCORES[score][0]
        if scorer in self.reasons:
            return Estimate(None, n=0, unit="latents", reason=self.reasons[scorer])
        if scorer not in self.scored:
            return Estimate(None, n=0, unit="latents", reason=f"the scorer {scorer} was not asked")
        reasons = [found.reason for found in self.scored[scorer] if found.reason]
        none = max(set(reasons), key=reasons.count) if reasons else "the judge gives no such score"
        return over(self.values(score), "latents", none=none)


@register
class AutointerpConfig(TaskMetric):
    papers = (
        Paper(
            "Karvonen et al. 2025",
            "https://arxiv.org/abs/2503.09532",
            "SAEBench, automated interpretability",
        ),
        Paper(
            "Paulo et al. 2024",
            "https://arxiv.org/abs/2410.13928",
            "detection, fuzzing, simulation, surprisal, embedding",
        ),
        Paper(
            "Bills et al. 2023",
            "https://openaipublic.blob.core.windows.net/neuron-explainer/paper/index.html",
            "simulation",
        ),
    )
    summary = "whether descriptions of latents tell on which held-out text they fire"
    survey = ("Automated Interpretability",)

    name: Literal["autointerp"] = "autointerp"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    judge: AnyJudge = KeywordsConfig()
    """Who answers: keywords, oracle, local or openai."""

    methods: tuple[Method, ...] = Field(default=("max_act", "vocab_proj"), min_length=1)
    """Explanation methods whose descriptions are scored, by name or with settings as under
    ``explain``; the first gives the headline. On the world also best_concept, which is all that
    the judge oracle can read."""

    scorers: tuple[
        Literal[
            "selection", "detection", "fuzzing", "simulation", "surprisal", "embedding", "intruder"
        ],
        ...,
    ] = Field(
        default=(
            "selection",
            "detection",
            "fuzzing",
            "simulation",
            "surprisal",
            "embedding",
            "intruder",
        ),
        min_length=1,
    )
    """Questions that are asked."""

    oracle: bool = True
    """Whether the best true concept is scored too, where the text is the bundled world's."""

    num_latents: int = Field(default=100, gt=0)
    """Latents that are drawn."""

    min_activations: int = Field(default=15, gt=0)
    """Tokens of training and of held-out text on which a latent that is drawn fires at least."""

    train_tokens: int = Field(default=32_768, gt=0)
    """Training tokens that the explanation methods see, at most."""

    held_out_tokens: int = Field(default=32_768, gt=0)
    """Held-out tokens that windows are taken from, at most."""

    radius: int = Field(default=10, gt=0)
    """Tokens of a window on either side of the one it lies around."""

    num_top: int = Field(default=2, gt=0)
    """Windows of a selection in which the latent is strongest."""

    num_weighted: int = Field(default=2, gt=0)
    """Windows of a selection that are drawn by the squared activation."""

    num_random: int = Field(default=10, gt=0)
    """Windows of a selection in which the latent is silent."""

    num_quantiles: int = Field(default=5, gt=0)
    """Rank groups from which the active windows of the other questions are drawn."""

    per_quantile: int = Field(default=4, gt=0)
    """Active windows from each rank group; as many silent windows are shown as active ones."""

    mark_share: float = Field(default=0.3, ge=0, lt=1)
    """Tokens above this share of their window's largest activation are highlighted."""

    wrong_marks: Literal["inactive", "active"] = "inactive"
    """Whether wrong highlights stand in silent windows or beside the right ones in active."""

    intruder_windows: int = Field(default=5, ge=3)
    """Windows of which one does not belong."""

    batch_contexts: int = Field(default=32, gt=0)
    """Contexts per forward pass."""

    seed: int = Field(default=0, ge=0)
    """Decides which latents and windows are drawn and in which order they are shown."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [*DEFINITIONS.values(), *_EXTRA]

    def check(self, bench: Bench) -> None:
        check_corpus(NAME, bench)
        for name, method in zip(names_of(self.methods), self.methods, strict=True):
            if name != BEST_CONCEPT:
                read_explainer(method)
            elif bench.world is None:
                raise NotApplicable(NAME, "best_concept needs the bundled world.")
        if isinstance(self.judge, OracleConfig) and bench.world is None:
            raise NotApplicable(NAME, "the truth is known of the bundled world alone.")

    def models(self) -> list[str]:
        return [*self.judge.models(), *chat_models(self.methods)]

    @property
    def used_methods(self) -> tuple[str, ...]:
        """The oracle reads nothing but names of concepts."""
        is_oracle = isinstance(self.judge, OracleConfig)
        return (BEST_CONCEPT,) if is_oracle else names_of(self.methods)

    @torch.no_grad()
    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        read = read_evidence(
            bench,
            [
                method
                for name, method in zip(names_of(self.methods), self.methods, strict=True)
                if name != BEST_CONCEPT and name in self.used_methods
            ],
            num_latents=self.num_latents,
            at_least=self.min_activations,
            train_tokens=self.train_tokens,
            held_out_tokens=self.held_out_tokens,
            batch_contexts=self.batch_contexts,
            radius=self.radius,
            with_truth=self.oracle or BEST_CONCEPT in self.used_methods,
            seed=self.seed,
        )
        judge = self.judge.start(bench)
        oracle = OracleConfig().start(bench) if read.true and self.oracle else None
        vocabulary = read_vocabulary(
            bench.model.tokenizer, bench.model.vocab_size, bench.model.special_ids
        )
        found = {}
        for done, name in enumerate(bench.coders):
            on_progress(done, len(bench.coders))
            samples = sample_windows(
                read.codes,
                name,
                vocabulary,
                self.wanted,
                seed=self.seed,
                seen=read.described[name].seen(),
            )
            found[name] = self._score(read, name, samples, judge, oracle)
        on_progress(len(bench.coders), len(bench.coders))
        return found

    @property
    def wanted(self) -> Wanted:
        active = self.num_quantiles * self.per_quantile
        return Wanted(
            self.num_top,
            self.num_weighted,
            max(self.num_random, active),
            self.num_quantiles,
            self.per_quantile,
            self.radius,
        )

    @property
    def dials(self) -> Dials:
        return Dials(
            num_random=self.num_random,
            num_active=self.num_top + self.num_weighted,
            mark_share=self.mark_share,
            wrong_marks=self.wrong_marks,
            intruder_windows=self.intruder_windows,
            seed=self.seed,
        )

    def _score(
        self,
        read: Evidence,
        name: str,
        samples: Sequence[LatentWindows],
        judge: Judge,
        oracle: Judge | None,
    ) -> Measured:
        latents = read.codes.latents[name].tolist()
        described = read.described[name]
        params = {"judge": self.judge.kind, "seed": self.seed}
        sets = {m: read.descriptions(name, m) for m in self.used_methods}
        runs: dict[tuple[str, str], _Run] = {}
        for method, own in sets.items():
            reason = described.reasons.get(method)
            runs[method, OWN] = self._ask(judge, own, samples, reason)
            runs[method, OTHER] = self._ask(judge, of_another(own), samples, reason, is_own=False)
        rows: list[Measurement] = []
        first = self.used_methods[0]
        told = {**params, "method": first}
        for score in SCORES:
            rows.append(DEFINITIONS[score, OWN].row(runs[first, OWN].estimate(score), **told))
            if SCORES[score][0] != "intruder":
                rows.append(
                    DEFINITIONS[score, OTHER].row(runs[first, OTHER].estimate(score), **told)
                )
        rows += self._summary(runs[first, OWN], runs[first, OTHER], described, latents, told)
        rows += self._shares(runs, read, name, params)
        if oracle is not None:
            best = self._ask(oracle, read.descriptions(name, BEST_CONCEPT), samples, None)
            rows += [DEFINITIONS[s, "oracle"].row(best.estimate(s), seed=self.seed) for s in SCORES]
            runs["oracle", OWN] = best
        for (method, which), run in runs.items():
            if method == "oracle":
                continue
            told = {**params, "method": method}
            for score in SCORES:
                if SCORES[score][0] == "intruder":
                    continue
                rows.append(DEFINITIONS[score, f"{which}_of_one"].row(run.estimate(score), **told))
            if which == OWN:
                gap = _gap(run, runs[method, OTHER])
                rows.append(GAP_OF_ONE.row(gap, **told))
        return Measured(rows, _latent_rows(latents, runs))

    def _ask(
        self,
        judge: Judge,
        descriptions: Sequence[Description | None],
        samples: Sequence[LatentWindows],
        reason: str | None,
        *,
        is_own: bool = True,
    ) -> _Run:
        scored: dict[str, list[Scored]] = {}
        reasons: dict[str, str] = {}
        for scorer in self.scorers:
            if reason is not None:
                reasons[scorer] = reason
                continue
            if scorer == "intruder" and not is_own:
                continue
            try:
                scored[scorer] = SCORERS[scorer](judge, descriptions, samples, self.dials)
            except NotApplicable as error:
                reasons[scorer] = error.reason
        return _Run(scored, reasons)

    def _summary(
        self,
        own: _Run,
        other: _Run,
        described: Described,
        latents: Sequence[int],
        told: Mapping[str, object],
    ) -> list[Measurement]:
        num_active = self.num_top + self.num_weighted
        share = self.num_random / (num_active + self.num_random)
        f1 = own.values("detection_f1")
        known = [
            (v, float(described.fired[i]))
            for v, i in zip(f1, latents, strict=False)
            if v is not None
        ]
        weighted = frequency_weighted([v for v, _ in known], [p for _, p in known])
        rows = [
            GAP.row(_gap(own, other), **told),
            NONE.row(Estimate(share, n=num_active + self.num_random, unit="windows")),
            CHANCE.row(
                Estimate(1 / self.intruder_windows, n=self.intruder_windows, unit="windows")
            ),
            WEIGHTED.row(
                Estimate(
                    weighted,
                    n=len(known),
                    unit="latents",
                    reason="no latent was scored" if weighted is None else None,
                ),
                **told,
            ),
        ]
        found = own.scored.get("detection", [])
        for group in range(self.num_quantiles):
            recalls = [
                scored.recall_by_group[group]
                for scored in found
                if len(scored.recall_by_group) == self.num_quantiles
            ]
            none = "no latent has windows in all groups"
            rows.append(QUANTILE.row(over(recalls, "latents", none=none), **told, quantile=group))
        return rows

    def _shares(
        self,
        runs: Mapping[tuple[str, str], _Run],
        read: Evidence,
        name: str,
        params: Mapping[str, object],
    ) -> list[Measurement]:
        everything = [s for run in runs.values() for found in run.scored.values() for s in found]
        asked, unread = sum(s.asked for s in everything), sum(s.unread for s in everything)
        own = runs[self.used_methods[0], OWN]
        simulated = [s for s in own.scored.get("simulation", ()) if s.values]
        latents = len(read.codes.latents[name])
        has_score = [any(v is not None for v in found) for found in _by_latent(own)]
        return [
            UNREAD_SHARE.row(share_of(unread, asked, "questions"), **params),
            CONSTANT.row(
                share_of(sum(s.is_constant for s in simulated), len(simulated), "latents"), **params
            ),
            COVERAGE.row(share_of(sum(has_score), latents, "latents"), **params),
            ELIGIBLE.row(
                share_of(read.num_eligible[name], len(read.described[name].fired), "latents"),
                min_activations=self.min_activations,
            ),
        ]


def _gap(own: _Run, other: _Run) -> Estimate:
    score = "autointerp_balanced_accuracy"
    none = own.estimate(score).reason or other.estimate(score).reason or "nothing was scored"
    pairs = zip(own.values(score), other.values(score), strict=False)
    return over([a - b for a, b in pairs if a is not None and b is not None], "latents", none=none)


def _by_latent(run: _Run) -> list[list[float | None]]:
    return [
        [v for s in own for v in s.values.values()]
        for own in zip(*run.scored.values(), strict=True)
    ]


def _latent_rows(
    latents: Sequence[int], runs: Mapping[tuple[str, str], _Run]
) -> list[LatentScoreRow]:
    rows = []
    for (method, which), run in runs.items():
        for score, (scorer, *_) in SCORES.items():
            for latent, scored in zip(latents, run.scored.get(scorer, ()), strict=False):
                value = scored.values.get(score)
                if value is None and scored.reason is None:
                    continue
                shown = "oracle" if method == "oracle" else which
                rows.append(
                    LatentScoreRow(
                        latent,
                        NAME,
                        score,
                        shown,
                        value,
                        scored.n,
                        method,
                        scored.reason if value is None else None,
                    )
                )
    return rows
