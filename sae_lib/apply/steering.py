"""Steering: does adding a direction make the model write about a concept, and at what price?

    x' = x + s m v        m = mean length of activations at the site, v of length 1, s the strength

Directions of every kind are added at equal lengths. Each strength is scored without a judge (see
`steering_scores`); the strength with the best overall score on half of the prompts (every other
one) is then reported on the other half. Methods: ``latent`` (chosen on training texts),
``difference_in_means``, ``random`` and ``none``. (applications.md sections 2, A.0, A.1.)

Differs from AxBench: strengths are relative to the length of the activations, not to a latent's
largest activation (which every row also states), and no model judges the text.
"""

from typing import ClassVar, Literal, NamedTuple

import numpy as np
from pydantic import Field

from sae_lib.apply.base import ApplicationConfig, Applied, Bench, OnProgress, register
from sae_lib.apply.interventions import Positions
from sae_lib.apply.reading import TextBatch, encode_texts, encoder, pool_texts
from sae_lib.apply.steered_text import NeutralText, Prompts, lexicon_ids, positive_rate
from sae_lib.apply.steering_rows import (
    Trial,
    absent_row,
    best_rows,
    means_over_concepts,
    trial_rows,
)
from sae_lib.apply.steering_scores import Reference
from sae_lib.apply.steering_vectors import (
    SteeringVector,
    best_latent,
    difference_in_means,
    random_direction,
)
from sae_lib.apply.tasks import ConceptConfig, steering_concepts
from sae_lib.errors import NotApplicable
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ApplicationRow


class _Concept(NamedTuple):
    """Everything about a concept that no coder changes."""

    name: str
    prompts: Prompts
    reference: Reference
    neutral: NeutralText


@register
class SteeringConfig(ApplicationConfig):
    """Toward what and how strongly the model is steered."""

    papers: ClassVar = (
        Paper("Wu et al. 2025", "https://arxiv.org/abs/2501.17148", "AxBench, DiffMean and SAE-A"),
        Paper(
            "Templeton et al. 2024",
            "https://transformer-circuits.pub/2024/scaling-monosemanticity",
            "steering",
        ),
        Paper("Chalnev et al. 2024", "https://arxiv.org/abs/2411.02193", "score as a product"),
    )
    summary: ClassVar = "Make the model write about a concept by adding a direction."
    needs: ClassVar = frozenset({"lm_head", "labelled_texts"})
    headline: ClassVar = "overall"
    dials: ClassVar = ("concepts", "strengths", "select_by", "positions")

    kind: Literal["steering"] = "steering"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    concepts: tuple[str | ConceptConfig, ...] = ()
    """``world:NAME``, or concepts given by examples; none: the world's own, on the world."""

    strengths: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.5)
    """Lengths of the added vector, in units of the mean length of activations at the site."""

    select_by: Literal["auroc", "mean_difference"] = "auroc"
    """How the latent is chosen on the training texts, from each text's largest code."""

    positions: Positions = "all_but_special"
    """Where the direction is added: of a prompt, and of what is generated."""

    train_texts: int = Field(default=100, ge=4)
    """Texts per class that directions are made of."""

    num_prompts: int = Field(default=16, ge=4)
    """Prompts per concept; every other one chooses the strength, the rest are scored."""

    max_new_tokens: int = Field(default=16, gt=1)
    """Tokens generated per prompt."""

    samples: int = Field(default=2, ge=2)
    """Continuations per prompt and strength, each with random numbers of its own."""

    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""

    neutral_texts: int = Field(default=8, gt=0)
    """Texts on which side effects are measured."""

    max_tokens: int = Field(default=64, gt=1)
    """Tokens of a training or neutral text that are read, from its beginning."""

    seed: int = Field(default=0, ge=0)
    """Seed of the random direction, and seed of the continuations."""

    def check(self, bench: Bench) -> None:
        if not bench.model.has_lm_head:
            raise NotApplicable(self.kind, "the model has no language-model head to write with.")
        if not bench.model.is_causal:
            raise NotApplicable(self.kind, "the model is an encoder; it does not write text.")
        if not self.concepts and bench.world is None:
            raise NotApplicable(
                self.kind, "no concepts are named, and only the bundled world brings its own."
            )

    def apply(self, bench: Bench, on_progress: OnProgress) -> dict[str, Applied]:
        self.check(bench)
        concepts = steering_concepts(
            self.concepts,
            bench,
            train_texts=self.train_texts,
            num_prompts=self.num_prompts,
        )
        encoders = {name: encoder(coder) for name, coder in bench.coders.items()}
        shared: list[ApplicationRow] = []
        rows: dict[str, list[ApplicationRow]] = {name: [] for name in bench.coders}
        total = len(concepts) * (1 + len(bench.coders))
        for number, given in enumerate(concepts):
            on_progress(number * (1 + len(bench.coders)), total)
            texts = [*given.positive, *given.negative]
            labels = np.array([1] * len(given.positive) + [0] * len(given.negative))
            pooled = pool_texts(
                bench.model, bench.site, texts, encoders, pool="max", max_tokens=self.max_tokens
            )
            length = float(pooled.norm_sum.sum() / pooled.num_tokens.sum())
            concept = self._prepare(bench, given)
            shared += self._unsteered(concept)
            for vector in (
                difference_in_means(pooled, labels),
                random_direction(pooled.x_sum.shape[1], seed=self.seed + number),
            ):
                shared += self._sweep(concept, vector, length)
            for i, (name, coder) in enumerate(bench.coders.items()):
                on_progress(number * (1 + len(bench.coders)) + 1 + i, total)
                try:
                    vector = best_latent(coder, pooled.z[name], labels, select_by=self.select_by)
                except NotApplicable as error:
                    rows[name].append(absent_row("latent", concept.name, error.reason))
                    continue
                rows[name] += self._sweep(concept, vector, length)
        on_progress(total, total)
        return {
            name: Applied([*own, *shared, *means_over_concepts([*own, *shared])], [])
            for name, own in rows.items()
        }

    def _prepare(self, bench: Bench, given: ConceptConfig) -> _Concept:
        lexicon = lexicon_ids(bench.model, given.lexicon)
        prompts = Prompts(
            bench.model,
            bench.site,
            given.prompts,
            lexicon,
            max_new_tokens=self.max_new_tokens,
            num_samples=self.samples,
            temperature=self.temperature,
            seed=self.seed,
            positions=self.positions,
        )
        positive = encode_texts(bench.model, given.positive, max_tokens=self.max_tokens)
        rate = positive_rate(
            positive, lexicon, skip=prompts.typical_length, length=self.max_new_tokens
        )
        plain = prompts.generate(None, 0.0)
        return _Concept(
            given.name,
            prompts,
            Reference(plain.cells, prompts.shuffled_nll(plain), rate),
            NeutralText(bench.model, bench.site, self._neutral(bench, given)),
        )

    def _neutral(self, bench: Bench, given: ConceptConfig) -> TextBatch:
        """Held-out contexts of the corpus, unless the concept brings texts."""
        if given.neutral or bench.split is None:
            texts = given.neutral or given.negative
            return encode_texts(
                bench.model, texts[: self.neutral_texts], max_tokens=self.max_tokens
            )
        held = bench.split.rows(range(min(self.neutral_texts, bench.split.num_contexts)))
        return TextBatch(
            *(
                part[:, : self.max_tokens].contiguous()
                for part in (held.tokens, held.document >= 0, held.keep)
            )
        )

    def _sweep(
        self, concept: _Concept, vector: SteeringVector, length: float
    ) -> list[ApplicationRow]:
        """Every strength, and the one that does best on the first half scored on the second."""
        trials = []
        for strength in self.strengths:
            by = strength * length
            made = concept.prompts.generate(vector.direction, by)
            gain = concept.prompts.lexicon_gain(vector.direction, by)
            side_effect = concept.neutral.side_effect(vector.direction, by)
            trials.append(Trial(strength, made.cells, gain, side_effect))
        fixed = {
            **vector.params,
            "positions": self.positions,
            "positive_rate": concept.reference.positive_rate,
        }
        rows = []
        for trial in trials:
            params = {"strength": trial.strength, "length": trial.strength * length, **fixed}
            if "max_activation" in vector.params:
                unit = vector.params["max_activation"] * vector.params["decoder_norm"]
                params["max_activations"] = params["length"] / unit
            rows += trial_rows(vector.method, concept.name, trial, concept.reference, params)
        return rows + best_rows(vector.method, concept.name, trials, concept.reference, fixed)

    def _unsteered(self, concept: _Concept) -> list[ApplicationRow]:
        plain = concept.reference.plain
        nothing = Trial(0.0, plain, np.zeros(len(plain.tokens)), None)
        params = {"strength": 0.0, "length": 0.0}
        return [
            *trial_rows("none", concept.name, nothing, concept.reference, params),
            *best_rows("none", concept.name, [nothing], concept.reference, {}),
        ]
