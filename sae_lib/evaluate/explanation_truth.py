"""Do explanations name what is true? On the bundled world the concept of every token is known.

The true concept of a latent is the one at whose tokens it fires most exactly: F1 of truth and of an
activation above a share of its largest (0, .25 or .5, whichever is best), on the training text that
was explained. A latent is *matched* where that F1 is large enough and the concept has words
(concepts of context, such as "this review is positive", have none). Of an explanation the first K
keywords with a positive score are taken, and of a concept the words that occur in the text:

    precision   hits / keywords                          recall  hits / min(K, words of the concept)
    named       the concept whose words give the largest F1 of these two; ties go to the concept
                with fewer words. Right where that is the true one (or has the very same words)

    explanation_named        share of matched latents whose explanation names the true concept
    explanation_precision    mean precision with respect to the true concept's words
    explanation_recall       mean recall
    inventory_precision      of the concepts that any explanation names, share rightly named by one
    inventory_recall         of the true concepts of matched latents, share rightly named by one

The truth is about where a latent fires. Output-based methods say what it promotes, which is mostly
something else: their scores tell how often the two are the same.

A matched latent without an explanation names nothing: it counts as wrong and with recall 0, and
has no precision. Floors: the explanation of another latent, and the most frequent words of the
text. Ceiling: the most frequent words of the true concept. Intervals are in the rows' params:
Wilson for shares, percentiles of a bootstrap over latents for means, both 95 %.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field

from sae_lib.errors import NotApplicable
from sae_lib.evaluate._described import (
    Method,
    chat_models,
    check_corpus,
    check_is_world,
    concept_truth,
    description_of,
    explainers,
    names_of,
)
from sae_lib.evaluate._latent_windows import ContextCodes, num_contexts_of, read_site
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate._naming import (
    Inventory,
    Matches,
    Truth,
    bootstrap_mean,
    firing_f1,
    inventory_of,
    judge,
    match,
    wilson,
)
from sae_lib.evaluate.base import Definition, Role, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.explain.base import read_explainer
from sae_lib.explain.run import explain_site
from sae_lib.explain.vocabulary import read_vocabulary
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ExplanationRow, LatentScoreRow, Measurement

NAME = "explanation_truth"

_BY_LATENT = {
    "explanation_named": "matched latents whose explanation names the true concept",
    "explanation_precision": "mean share of keywords that are words of the true concept",
    "explanation_recall": "mean share of the true concept's words, or of K, among the keywords",
}
_BY_CONCEPT = {
    "inventory_precision": "concepts rightly named by a latent, of all that are named",
    "inventory_recall": "concepts rightly named by a latent, of those matched to one",
}
SCORES = {**_BY_LATENT, **_BY_CONCEPT}
_VARIANTS: dict[str, tuple[str, Role]] = {
    "own": ("first method", "score"),
    "another_latent": ("explanation of another latent, first method", "floor"),
    "frequent_words": ("the most frequent words of the text for every latent", "floor"),
    "concept_words": ("the most frequent words of the true concept", "ceiling"),
    "own_of_one": ("one explanation method", "part"),
    "another_latent_of_one": ("explanation of another latent, one method", "part"),
}
DEFINITIONS = {
    (score, variant): Definition(score, variant, f"{text}; {how}", "higher", 0.0, 1.0, role=role)
    for score, text in SCORES.items()
    for variant, (how, role) in _VARIANTS.items()
}
MATCHED = Definition(
    "explanation_matched", "share_of_live",
    "live latents that fire where a concept with words is true, of all live latents",
    "neither", 0.0, 1.0,
)  # fmt: skip


@register
class ExplanationTruthConfig(TaskMetric):
    """Which explanations are held against the truth, and when a latent has a true concept."""

    papers = (
        Paper("Shu et al. 2025", "https://arxiv.org/abs/2503.05613", "3"),
        Paper("Gao et al. 2025", "https://arxiv.org/abs/2406.04093", "precision and recall of N2G"),
    )
    summary = "whether explanations name the concept of the world that a latent stands for"

    name: Literal["explanation_truth"] = "explanation_truth"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    methods: tuple[Method, ...] = Field(
        default=("max_act", "pruned_max_act", "vocab_proj", "mut_info", "token_change", "contrast",
                 "ensemble"),
        min_length=1,
    )  # fmt: skip
    """Explanation methods, by name or with settings as under ``explain``; the first gives the
    headline."""

    num_words: int = Field(default=10, gt=0)
    """K: keywords of an explanation that count."""

    least_f1: float = Field(default=0.5, gt=0, le=1)
    """F1 of firing and truth from which on a latent has a true concept."""

    min_fired: int = Field(default=10, gt=0)
    """Tokens on which a live latent fires at least."""

    train_tokens: int = Field(default=65_536, gt=0)
    """Training tokens that the methods see, and on which the true concept is looked up."""

    batch_contexts: int = Field(default=32, gt=0)
    """Contexts per forward pass."""

    draws: int = Field(default=1000, gt=0)
    """Samples of the bootstrap."""

    seed: int = Field(default=0, ge=0)
    """Decides which latents exchange explanations, and the bootstrap."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [*DEFINITIONS.values(), MATCHED]

    def check(self, bench: Bench) -> None:
        check_corpus(NAME, bench)
        if bench.world is None:
            raise NotApplicable(NAME, "only the bundled world knows what is true of its tokens.")
        names_of(self.methods)
        for method in self.methods:
            read_explainer(method)

    def models(self) -> list[str]:
        return chat_models(self.methods)

    @torch.no_grad()
    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        assert bench.train is not None  # `check` came first
        assert bench.world is not None
        num_contexts = num_contexts_of(bench.train, self.train_tokens)
        vocabulary = read_vocabulary(
            bench.model.tokenizer, bench.model.vocab_size, bench.model.special_ids
        )
        text = read_site(
            bench.model, bench.train, bench.site,
            num_contexts=num_contexts, batch_contexts=self.batch_contexts,
        )  # fmt: skip
        tokens = ContextCodes(
            text.split, text.row, text.token, text.document, text.position, {}, {}
        )
        check_is_world(tokens, vocabulary, bench.world, "train")
        truth = concept_truth(tokens, bench.world)
        inventory = inventory_of(
            [vocabulary.text[token].strip().lower() for token in text.token.tolist()], truth.ids
        )
        explained = explain_site(
            bench.model, bench.train, bench.site, bench.coders,
            explainers(self.methods, 10),
            batch_contexts=self.batch_contexts, max_contexts=num_contexts,
        )  # fmt: skip
        found = {}
        for done, (name, coder) in enumerate(bench.coders.items()):
            on_progress(done, len(bench.coders))
            own = explained[name]
            largest = torch.tensor([row.max_activation for row in own.latents])
            f1, fired = firing_f1(coder, text.x, truth.matrix, largest)
            matches = match(
                f1, fired, truth.ids, inventory, least_f1=self.least_f1, min_fired=self.min_fired
            )
            found[name] = self._rows(own.explanations, own.not_applicable, matches, inventory)
        on_progress(len(bench.coders), len(bench.coders))
        return found

    def _rows(
        self,
        explanations: Sequence[ExplanationRow],
        reasons: Mapping[str, str],
        matches: Matches,
        inventory: Inventory,
    ) -> Measured:
        names = names_of(self.methods)
        said: dict[str, dict[int, list[str]]] = {method: {} for method in names}
        for row in explanations:
            said[row.method][row.latent] = list(description_of(row).keywords)
        order = np.random.default_rng(self.seed).permutation(len(matches.latents))
        other = np.empty_like(order)
        other[order] = np.roll(order, 1)  # one cycle through all: never the same latent

        def held(keywords: Sequence[Sequence[str]]) -> Truth:
            return judge(keywords, matches, inventory, self.num_words)

        own, others = {}, {}
        for method in names:
            words = [said[method].get(latent, []) for latent in matches.latents]
            own[method] = held(words)
            others[method] = held([words[i] for i in other])
        frequent = inventory.most_frequent[: self.num_words]
        best = [
            sorted(inventory.words[c], key=lambda word: (-inventory.frequency[word], word))
            for c in matches.concepts.tolist()
        ]
        first = names[0]
        rows = self._scores(own[first], "own", reasons.get(first), method=first)
        rows += self._scores(others[first], "another_latent", reasons.get(first), method=first)
        rows += self._scores(held([frequent] * len(matches.latents)), "frequent_words")
        rows += self._scores(held(best), "concept_words")
        for method in names:
            why = reasons.get(method)
            rows += self._scores(own[method], "own_of_one", why, method=method)
            rows += self._scores(others[method], "another_latent_of_one", why, method=method)
        num, live = len(matches.latents), matches.num_live
        share = Estimate(num / live, None, live, "latents") if live else Estimate(
            None, n=0, unit="latents", reason="no latent fires"
        )  # fmt: skip
        rows.insert(len(SCORES), MATCHED.row(share, **self._told(*wilson(num, live))))
        scored = [
            LatentScoreRow(latent, NAME, score, "own", value, told.num_keywords[i], method)
            for method, told in own.items()
            if method not in reasons
            for i, latent in enumerate(matches.latents)
            for score, value in (
                ("explanation_named", float(told.is_right[i])),
                ("explanation_precision", float(told.precision[i])),
                ("explanation_recall", float(told.recall[i])),
            )
            if not math.isnan(value)
        ]
        return Measured(rows, scored)

    def _scores(
        self, told: Truth, variant: str, reason: str | None = None, **params: object
    ) -> list[Measurement]:
        num = len(told.is_right)
        shares = {
            "explanation_named": (int(told.is_right.sum()), num, "latents"),
            "inventory_precision": (len(told.rightly), len(told.named), "concepts"),
            "inventory_recall": (len(told.rightly), len(told.wanted), "concepts"),
        }
        means = {"explanation_precision": told.precision, "explanation_recall": told.recall}
        rows = []
        for score in SCORES:
            definition = DEFINITIONS[score, variant]
            if score in shares:
                hits, total, unit = shares[score]
                interval = wilson(hits, total)
                value = hits / total if total else None
                stderr = None if value is None else math.sqrt(value * (1 - value) / total)
            else:
                known = means[score][~np.isnan(means[score])]
                total, unit = len(known), "latents"
                value = float(known.mean()) if total else None
                stderr = float(known.std(ddof=1) / math.sqrt(total)) if total > 1 else None
                interval = (
                    bootstrap_mean(known, draws=self.draws, seed=self.seed) if total else (0.0, 1.0)
                )
            why = reason or ("no latent is matched" if not num else "no explanation has a keyword")
            estimate = Estimate(value, stderr, total, unit)
            if reason or value is None:
                rows.append(definition.row(Estimate(None, n=0, unit=unit, reason=why), **params))
            else:
                rows.append(definition.row(estimate, **self._told(*interval), **params))
        return rows

    def _told(self, low: float, high: float) -> dict[str, object]:
        """Settings and the interval, for a row."""
        return {
            "low": low, "high": high, "words": self.num_words, "least_f1": self.least_f1,
            "tokens": self.train_tokens,
        }  # fmt: skip
