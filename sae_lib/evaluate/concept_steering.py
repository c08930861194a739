"""Does a direction make the model write about a concept, to the point and fluently? (AxBench)

    x' = x + strength m w      w of length 1, m = the largest activation along w on training texts
                               (of a latent: its largest code times the length of its decoder row;
                               50 where nothing is above 0)

Each continuation gets three ratings of 0, 1 or 2, without a judge that is a language model:

    concept      0: no word of the concept's lexicon; 2: at least half the rate of such words in
                 texts that have the concept; else 1
    instruction  g = log p(y | prompt) - log p(y | nothing), per token, of the unsteered model: does
                 the text go on with *this* prompt? 2: at least half of what unsteered text has;
                 1: above 0; else 0
    fluency      nll per token under the unsteered model. 2: no more than nine in ten unsteered
                 texts have; 0: no less than nine in ten of the same texts with their words
                 shuffled, or fewer than half the distinct bigrams; else 1

    overall      harmonic mean of the three, 0 where one is 0; then the mean over texts

The strength with the best overall rating on every other prompt is reported on the rest; means are
over concepts. Methods: the latent with the best AUC on training texts (``sae``), the difference in
means, a random direction, and no steering. Random numbers are those of the prompt, whatever the
direction.

Differs from AxBench: the judge, short prompts in the place of instructions, a latent chosen by AUC
("SAE-A"), and fewer strengths by default. SAEBench has no such evaluation. The application
`steering` scores the same texts on continuous scales and along lengths of activations.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_lib.apply.interventions import Positions
from sae_lib.apply.reading import encode_texts, encoder
from sae_lib.apply.steered_text import Generated, Prompts, lexicon_ids, positive_rate
from sae_lib.apply.steering_scores import Cells
from sae_lib.apply.steering_vectors import best_latent, random_direction
from sae_lib.apply.tasks import ConceptConfig, steering_concepts
from sae_lib.errors import NotApplicable
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.evaluate.concept_detection import diff_mean
from sae_lib.evaluate.reader import TextActivations
from sae_lib.models.language_model import LanguageModel
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

WORLD_CONCEPTS = ("world:sentiment-positive", "world:topic-sea", "world:animal", "world:joy")
"""Concepts of the world when none is named."""

NO_ACTIVATION = 50.0
"""What stands in for the largest activation where none is above 0 (AxBench)."""

PARTS = ("concept", "instruction", "fluency")

METHODS = {
    "sae": "decoder row of the latent with the best training AUC",
    "diff_mean": "mean over tokens of positive - of negative texts",
    "random": "a random direction",
    "unsteered": "no direction",
}


def _definitions(part: str, text: str) -> dict[str, Definition]:
    return {
        f"{method}{suffix}": Definition(
            f"concept_steering_{part}",
            f"{method}{suffix}",
            f"{text}, 0 to 2, at the strength chosen on other prompts, {over}: {words}",
            "higher",
            0.0,
            2.0,
        )
        for suffix, over in (("", "mean over concepts"), ("_of_one", "one concept"))
        for method, words in METHODS.items()
    }


DEFINITIONS = {
    "overall": _definitions("overall", "harmonic mean of concept, instruction and fluency"),
    "concept": _definitions("concept", "words of the concept"),
    "instruction": _definitions("instruction", "whether the text goes on with its prompt"),
    "fluency": _definitions("fluency", "likelihood under the unsteered model, loops excepted"),
}
GAP = Definition(
    "concept_steering_gap",
    "sae_minus_diff_mean",
    "mean over concepts of the overall rating of the latent - that of the difference in means",
    "higher",
    -2.0,
    2.0,
)

Ratings = Float[np.ndarray, "prompts samples 3"]


class Yardstick(NamedTuple):
    """What ratings are measured by: unsteered text and texts that have the concept."""

    positive_rate: float
    """Share of lexicon words in texts with the concept."""

    fluent: float
    """nll per token that nine in ten unsteered texts do not exceed."""

    garbled: float
    """nll per token that nine in ten shuffled texts reach."""

    distinct: float
    """Mean share of distinct bigrams of unsteered texts."""

    gain: float
    """Mean of log p(y | prompt) - log p(y), nats per token, over unsteered texts."""


class Trial(NamedTuple):
    """A strength and the ratings of what was written with it."""

    strength: float
    ratings: Ratings


class Direction(NamedTuple):
    """A direction of length 1 and the largest activation along it."""

    w: Float[Tensor, " d_in"]
    unit: float
    params: Mapping[str, Any]


class _Prepared(NamedTuple):
    """Everything about a concept that no direction changes."""

    name: str
    texts: TextActivations
    labels: np.ndarray
    prompts: Prompts
    yardstick: Yardstick
    plain: Trial


@register
class ConceptSteeringConfig(TaskMetric):
    """Toward what and how strongly the model is steered."""

    papers = (
        Paper("Wu et al. 2025", "https://arxiv.org/abs/2501.17148", "3.2, model steering"),
        Paper("Templeton et al. 2024", "https://transformer-circuits.pub/2024/scaling-monosemanticity",
              "steering"),
    )  # fmt: skip
    summary = "whether adding a latent's direction makes the model write about a concept"
    survey = ("Concept Steering",)

    name: Literal["concept_steering"] = "concept_steering"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    concepts: tuple[str | ConceptConfig, ...] = ()
    """``world:NAME``, or concepts given by examples; none: the world's own, on the world."""

    strengths: tuple[float, ...] = Field(default=(0.4, 0.8, 1.2, 2.0, 4.0), min_length=1)
    """Lengths of what is added, in units of the largest activation along it."""

    positions: Positions = "all_but_special"
    """Where the direction is added: of a prompt, and of what is generated."""

    train_texts: int = Field(default=72, ge=4)
    """Texts per class that directions are made of."""

    num_prompts: int = Field(default=10, ge=4)
    """Prompts per concept; every other one chooses the strength, the rest are reported."""

    max_new_tokens: int = Field(default=16, gt=1)
    """Tokens generated per prompt."""

    samples: int = Field(default=2, ge=1)
    """Continuations per prompt and strength, each with random numbers of its own."""

    temperature: float = Field(default=1.0, gt=0)
    """Of sampling."""

    max_tokens: int = Field(default=64, gt=1)
    """Tokens of a training text that are read, from its beginning."""

    seed: int = Field(default=0, ge=0)
    """Seed of the random direction and of the continuations."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        means = [table[m] for table in DEFINITIONS.values() for m in METHODS]
        ones = [table[f"{m}_of_one"] for table in DEFINITIONS.values() for m in METHODS]
        return [means[0], GAP, *means[1:], *ones]

    def check(self, bench: Bench) -> None:
        if not bench.model.has_lm_head:
            raise NotApplicable(self.name, "the model has no language-model head to write with.")
        if not bench.model.is_causal:
            raise NotApplicable(self.name, "the model is an encoder; it does not write text.")
        if bench.model.tokenizer.bos_token_id is None:
            raise NotApplicable(self.name, "the model has no BOS to judge a text without prompt.")
        if not self.concepts and bench.world is None:
            raise NotApplicable(
                self.name, "no concepts are named, and only the bundled world brings its own."
            )

    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        concepts = steering_concepts(
            self.concepts or WORLD_CONCEPTS,
            bench.for_applications,
            train_texts=self.train_texts,
            num_prompts=self.num_prompts,
        )
        shared: dict[str, list[Outcome]] = {"diff_mean": [], "random": [], "unsteered": []}
        own: dict[str, list[Outcome]] = {name: [] for name in bench.coders}
        for number, given in enumerate(concepts):
            on_progress(number, len(concepts))
            concept = self._prepare(bench, given)
            shared["unsteered"].append(best_outcome(concept.name, [concept.plain], {}))
            w = diff_mean(concept.texts.x, torch.from_numpy(concept.labels)[concept.texts.text])
            random = random_direction(len(w), seed=self.seed + number).direction
            shared["diff_mean"].append(self._steer(concept, along(concept.texts, w.float())))
            shared["random"].append(self._steer(concept, along(concept.texts, random)))
            for name, coder in bench.coders.items():
                try:
                    own[name].append(self._steer(concept, latent_direction(coder, concept)))
                except NotApplicable as error:
                    own[name].append(Outcome(concept.name, None, {}, error.reason))
        on_progress(len(concepts), len(concepts))
        return {
            name: Measured(result_rows({"sae": found, **shared}, self._params()))
            for name, found in own.items()
        }

    def _params(self) -> dict[str, Any]:
        return {"max_new_tokens": self.max_new_tokens, "seed": self.seed}

    def _prepare(self, bench: Bench, given: ConceptConfig) -> _Prepared:
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
        alone = self._alone(bench.model, prompts, plain)
        yardstick = yardstick_of(plain.cells, prompts.shuffled_nll(plain), alone, rate)
        texts = [*given.positive, *given.negative]
        return _Prepared(
            given.name,
            bench.reader.read(texts, max_tokens=self.max_tokens),
            np.array([1] * len(given.positive) + [0] * len(given.negative)),
            prompts,
            yardstick,
            Trial(0.0, ratings(plain.cells, alone, yardstick)),
        )

    def _steer(self, concept: _Prepared, direction: Direction) -> "Outcome":
        """Every strength, and what the one chosen on some prompts is worth on the others."""
        trials = []
        for strength in self.strengths:
            made = concept.prompts.generate(direction.w, strength * direction.unit)
            alone = self._alone(concept.prompts.model, concept.prompts, made)
            trials.append(Trial(strength, ratings(made.cells, alone, concept.yardstick)))
        params = {**direction.params, "max_activation": direction.unit}
        return best_outcome(concept.name, trials, params)

    def _alone(
        self, model: LanguageModel, prompts: Prompts, made: Generated
    ) -> Float[np.ndarray, "prompts samples"]:
        nll = nll_alone(model, made)
        return nll.view(prompts.num_samples, -1).T.contiguous().numpy()


class Outcome(NamedTuple):
    """What one method achieves on one concept."""

    concept: str
    scores: Float[np.ndarray, "prompts 4"] | None
    """Per reported prompt the means over its texts: overall, concept, instruction, fluency."""

    params: Mapping[str, Any]
    reason: str = ""


@torch.no_grad()
def nll_alone(model: LanguageModel, made: Generated) -> Float[Tensor, " rows"]:
    """Summed nll of each continuation behind nothing but a BOS; float64."""
    bos = torch.full((len(made.new), 1), int(model.tokenizer.bos_token_id))
    tokens = torch.cat([bos, made.new], dim=1)
    mask = torch.cat([torch.ones_like(bos, dtype=torch.bool), made.is_text], dim=1)
    logits = model.logits(tokens, mask=mask)[:, :-1].float().cpu()
    nll = -logits.log_softmax(-1).gather(-1, made.new.unsqueeze(-1)).squeeze(-1).double()
    return (nll * made.is_text).sum(1)


def yardstick_of(
    plain: Cells,
    shuffled_nll: Float[np.ndarray, "prompts samples"],
    alone_nll: Float[np.ndarray, "prompts samples"],
    rate: float,
) -> Yardstick:
    """What unsteered texts say about what is fluent and to the point.

    Raises `NotApplicable` where prompts do not matter to the unsteered model.
    """
    is_text = plain.tokens > 0
    if not is_text.any():
        raise NotApplicable("concept_steering", "the model writes nothing after these prompts.")
    tokens = plain.tokens[is_text]
    gain = float(((alone_nll - plain.nll)[is_text] / tokens).mean())
    if gain <= 0:
        raise NotApplicable(
            "concept_steering", "what the unsteered model writes is as likely without its prompt."
        )
    fluent = float(np.quantile(plain.nll[is_text] / tokens, 0.9))
    garbled = float(np.quantile(shuffled_nll[is_text] / tokens, 0.1))
    distinct = float(plain.distinct[is_text].mean())
    return Yardstick(rate, fluent, max(garbled, fluent), distinct, gain)


def ratings(
    cells: Cells, alone_nll: Float[np.ndarray, "prompts samples"], by: Yardstick
) -> Ratings:
    """0, 1 or 2 for concept, instruction and fluency of every text; a text without words has 0."""
    is_text = cells.tokens > 0
    tokens = np.maximum(cells.tokens, 1)
    rate, nll = cells.hits / tokens, cells.nll / tokens
    gain = (alone_nll - cells.nll) / tokens
    concept = np.where(cells.hits == 0, 0, np.where(rate >= by.positive_rate / 2, 2, 1))
    instruction = np.where(gain <= 0, 0, np.where(gain >= by.gain / 2, 2, 1))
    is_bad = ((nll >= by.garbled) & (nll > by.fluent)) | (cells.distinct < by.distinct / 2)
    fluency = np.where(is_bad, 0, np.where(nll <= by.fluent, 2, 1))
    found = np.stack([concept, instruction, fluency], axis=-1)
    return np.where(is_text[..., None], found, 0).astype(np.float64)


def overall(given: Float[np.ndarray, "*texts 3"]) -> Float[np.ndarray, "*texts"]:
    """Harmonic mean of the three ratings, 0 where one is 0."""
    least = given.min(-1)
    return np.where(least > 0, given.shape[-1] / (1 / np.maximum(given, 1e-9)).sum(-1), 0.0)


def best_outcome(concept: str, trials: Sequence[Trial], params: Mapping[str, Any]) -> Outcome:
    """The strength best on even prompts, on the odd ones; of equals the weakest."""

    def scores(trial: Trial, first: int) -> Float[np.ndarray, "prompts 4"]:
        part = trial.ratings[first::2]
        return np.concatenate([overall(part)[..., None], part], axis=-1).mean(1)

    chosen = max(trials, key=lambda t: (float(scores(t, 0)[:, 0].mean()), -t.strength))
    return Outcome(concept, scores(chosen, 1), {**params, "strength": chosen.strength})


def along(texts: TextActivations, w: Float[Tensor, " d_in"]) -> Direction:
    """The direction ``w`` with the largest projection of a token on it."""
    largest = float((texts.x @ w).max())
    return Direction(w, largest if largest > 0 else NO_ACTIVATION, {})


@torch.no_grad()
def latent_direction(coder: SparseCoder[Any], concept: _Prepared) -> Direction:
    """The decoder row of the latent with the best AUC on the training texts."""
    codes = concept.texts.pooled(encoder(coder), coder.d_sae, "max")
    vector = best_latent(coder, codes, concept.labels, select_by="auroc")
    if len(vector.direction) != concept.texts.x.shape[1]:
        raise NotApplicable("latent", "the coder writes another place than it reads.")
    unit = vector.params["max_activation"] * vector.params["decoder_norm"]
    params = {k: vector.params[k] for k in ("latent", "train_auroc")}
    return Direction(vector.direction, unit if unit > 0 else NO_ACTIVATION, params)


def result_rows(
    found: Mapping[str, Sequence[Outcome]], params: Mapping[str, Any]
) -> list[Measurement]:
    """Means over concepts first, then every concept."""
    means: list[Measurement] = []
    ones: list[Measurement] = []
    reached = {
        (method, one.concept): one.scores.mean(0)
        for method, outcomes in found.items()
        for one in outcomes
        if one.scores is not None
    }
    for column, (_, table) in enumerate(DEFINITIONS.items()):
        for method in METHODS:
            values = [s[column] for (name, _), s in reached.items() if name == method]
            reasons = [one.reason for one in found[method] if one.reason]
            means.append(table[method].row(_mean(values, "; ".join(reasons)), **params))
            for one in found[method]:
                estimate = Estimate(None, unit="prompts", reason=one.reason or None)
                if one.scores is not None:
                    own = one.scores[:, column]
                    num = len(own)
                    stderr = float(own.std(ddof=1) / np.sqrt(num)) if num > 1 else None
                    estimate = Estimate(float(own.mean()), stderr, num, "prompts")
                more = {"concept": one.concept, **one.params}
                ones.append(table[f"{method}_of_one"].row(estimate, **params, **more))
    gap = [
        scores[0] - reached["diff_mean", concept][0]
        for (method, concept), scores in reached.items()
        if method == "sae" and ("diff_mean", concept) in reached
    ]
    means.insert(1, GAP.row(_mean(gap, "no latent could be chosen"), **params))
    return means + ones


def _mean(values: Sequence[float], missing: str) -> Estimate:
    if not values:
        return Estimate(None, n=0, unit="concepts", reason=missing or "no concept has a value")
    known = np.array(values)
    stderr = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
    return Estimate(float(known.mean()), stderr, len(known), "concepts")
