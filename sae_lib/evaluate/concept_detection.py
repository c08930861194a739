"""Does one direction or latent tell which texts have a concept? (AxBench)

    score of a text = max over its tokens of s_t           special tokens left out
    auc             = P(score of a positive > score of a negative), ties count half

    sae             s_t = z_i, the latent i with the best AUC on the training texts
    random_sae      the same for random directions, as wide and as sparse as the coder
    diff_mean       s_t = <x_t, w>, w = mean over tokens of positive texts - of negative ones
    logistic_probe  s_t = <x_t, w>, logistic regression of the text's label on its tokens
    pca             s_t = <x_t, w>, first principal direction of the tokens of positive texts
    bag_of_words    logistic regression on token counts: what words alone tell

Everything is chosen on training texts (penalties on a part of them), and the AUC is that of test
texts; means are over concepts. Hard negatives are test texts without the concept that hold a word
of its lexicon: their AUC against the positives, and the share of them that is below the threshold
with the largest TPR - FPR (Youden) on the training texts.

Differs from AxBench: texts and labels come from data, not from a language model; a latent is
chosen by training AUC, its "SAE-A", for nobody wrote labels of these latents; the sign of a
principal direction is chosen on the training texts. SAEBench has no such evaluation.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from sae_lib.activations.task_tables import (
    WORLD_PREFIX,
    TableConfig,
    TableSplit,
    local_files,
    table_rows,
)
from sae_lib.apply.probes import auc, column_aucs, fit, fit_dense
from sae_lib.apply.reading import encoder
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate._baselines import random_coder
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.evaluate.reader import TextActivations
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

WORLD_CONCEPTS = (
    "world:steer-topic-sea",
    "world:steer-topic-music",
    "world:steer-topic-politics",
    "world:steer-sentiment-positive",
    "world:steer-animal",
    "world:steer-profession-medical",
    "world:steer-profession-service",
    "world:steer-subject-female",
    "world:steer-joy",
    "world:steer-toxicity",
)
"""Concepts of the world when none is named."""

STEERING_SET = "steer-"
"""How the world calls sets of texts with and without a concept that has a lexicon."""

POOL = 4
"""Times as many test texts are looked at for hard negatives as are scored."""

METHODS = {
    "sae": "code of the latent with the best training AUC",
    "random_sae": "code of the best latent on random directions, as wide and as sparse",
    "diff_mean": "<x, mean over tokens of positive texts - that of negative texts>",
    "logistic_probe": "<x, w>, logistic regression of the text's label on its tokens",
    "pca": "<x, first principal direction of the tokens of positive texts>",
    "bag_of_words": "logistic regression on token counts of the text",
}
OF_ALL = tuple(m for m in METHODS if m not in ("sae", "random_sae"))
"""Methods that need no coder."""

AUC = {
    m: Definition(
        "concept_detection_auc",
        m,
        f"mean over concepts of the test AUC of the largest over a text's tokens of: {words}",
        "higher",
        0.0,
        1.0,
    )
    for m, words in METHODS.items()
}
AUC_OF_ONE = {
    m: Definition(
        "concept_detection_auc", f"{m}_of_one", f"one concept: {words}", "higher", 0.0, 1.0
    )
    for m, words in METHODS.items()
}
BESIDE = Definition(
    "concept_detection_gap",
    "sae_minus_diff_mean",
    "mean over concepts of test AUC of the latent - that of the difference in means",
    "higher",
    -1.0,
    1.0,
)
HARD_AUC = {
    m: Definition(
        "concept_detection_hard_auc",
        m,
        f"the same AUC against negatives that hold a word of the concept: {words}",
        "higher",
        0.0,
        1.0,
    )
    for m, words in METHODS.items()
}
REJECTED = {
    m: Definition(
        "concept_detection_hard_rejected",
        m,
        "share of hard negatives below the training threshold with the largest TPR - FPR: " + words,
        "higher",
        0.0,
        1.0,
    )
    for m, words in METHODS.items()
}

Scores = Float[np.ndarray, " texts"]
Labels = Int[np.ndarray, " texts"]


class Concept(NamedTuple):
    """Texts of one concept."""

    name: str
    train: list[str]
    train_labels: Labels
    test: list[str]
    test_labels: Int[np.ndarray, " test_texts"]
    hard: list[str]
    """Test texts without the concept that hold a word of it; none where there is no lexicon."""

    @property
    def all_test(self) -> list[str]:
        return [*self.test, *self.hard]


class Detector(NamedTuple):
    """Scores of one method: training texts, then test texts with the hard negatives last."""

    train: Scores
    test: Float[np.ndarray, " scored"]
    params: Mapping[str, Any]


class Found(NamedTuple):
    """What one method achieves on one concept."""

    auc: float
    auc_stderr: float
    hard_auc: float
    rejected: float
    """Share of hard negatives below the threshold; NaN without any, like ``hard_auc``."""

    num_texts: int
    params: Mapping[str, Any]


@register
class ConceptDetectionConfig(TaskMetric):
    """Which concepts, and how many texts of each."""

    papers = (
        Paper("Wu et al. 2025", "https://arxiv.org/abs/2501.17148", "3.1, concept detection"),
        Paper("Marks and Tegmark 2024", "https://arxiv.org/abs/2310.06824", "difference in means"),
    )
    summary = "whether one latent tells which texts have a concept, beside plain directions"
    survey = ("Concept Detection",)

    name: Literal["concept_detection"] = "concept_detection"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    concepts: tuple[str | TableConfig, ...] = ()
    """Tables with columns ``positive`` and ``negative``; none: the world's, on the world."""

    train_texts: int = Field(default=36, ge=4)
    """Training texts per class and concept."""

    test_texts: int = Field(default=36, ge=2)
    """Test texts per class and concept."""

    hard_negatives: int = Field(default=36, ge=0)
    """Hard negatives per concept at most, where the concept has a lexicon."""

    max_tokens: int = Field(default=128, gt=1)
    """Tokens of a text that are read, from its beginning."""

    seed: int = Field(default=0, ge=0)
    """Seed of the random directions and of validation parts."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        tables = (AUC, HARD_AUC, REJECTED, AUC_OF_ONE)
        first, *rest = (row for table in tables for row in table.values())
        return [first, BESIDE, *rest]

    def check(self, bench: Bench) -> None:
        if not self.concepts and bench.world is None:
            raise NotApplicable(
                self.name, "no concepts are named, and only the bundled world brings its own."
            )

    def files(self, relative_to: Path) -> list[Path]:
        return local_files(*self.concepts, relative_to=relative_to)

    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        named = self.concepts or WORLD_CONCEPTS
        shared: dict[str, dict[str, Found]] = {m: {} for m in OF_ALL}
        own: dict[str, dict[str, dict[str, Found]]] = {
            name: {"sae": {}, "random_sae": {}} for name in bench.coders
        }
        controls: dict[str, SparseCoder[Any] | NotApplicable] = {}
        for number, table in enumerate(named):
            on_progress(number, len(named))
            concept = self._concept(bench, table)
            train = bench.reader.read(concept.train, max_tokens=self.max_tokens)
            test = bench.reader.read(concept.all_test, max_tokens=self.max_tokens)
            y = concept.train_labels
            for method, detect in self._without_coder(bench, train, test, y).items():
                shared[method][concept.name] = judge(detect, concept)
            for name, coder in bench.coders.items():
                if name not in controls:
                    controls[name] = _control(coder, train.x, self.seed)
                control = controls[name]
                own[name]["sae"][concept.name] = judge(best_latent(coder, train, test, y), concept)
                if not isinstance(control, NotApplicable):
                    found = judge(best_latent(control, train, test, y), concept)
                    own[name]["random_sae"][concept.name] = found
        on_progress(len(named), len(named))
        return {
            name: Measured(result_rows({**found, **shared}, self._params()))
            for name, found in own.items()
        }

    def _params(self) -> dict[str, Any]:
        return {"train_texts": self.train_texts, "test_texts": self.test_texts, "seed": self.seed}

    def _without_coder(
        self, bench: Bench, train: TextActivations, test: TextActivations, y: Labels
    ) -> dict[str, Detector]:
        label = torch.from_numpy(y)[train.text]
        directions: dict[str, Callable[[], tuple[Tensor, dict[str, Any]]]] = {
            "diff_mean": lambda: (diff_mean(train.x, label), {}),
            "logistic_probe": lambda: logistic_direction(train, y, self.seed),
            "pca": lambda: (principal_direction(train.x, label), {}),
        }
        found = {}
        for method, make in directions.items():
            w, params = make()
            a, b = (along(part, w) for part in (train, test))
            if method == "pca" and auc(along(train, -w), y)[0] > auc(a, y)[0]:
                a, b = (along(part, -w) for part in (train, test))
            found[method] = Detector(a, b, params)
        counts = [_counts(part, bench.model.vocab_size) for part in (train, test)]
        used = np.flatnonzero(counts[0].any(0))
        a, b = (part[:, used] for part in counts)
        fitted, penalty = fit_dense(a, y, np.concatenate([a, b]), seed=self.seed)
        found["bag_of_words"] = Detector(
            fitted.values[: len(a)], fitted.values[len(a) :], {"inverse_penalty": penalty}
        )
        return found

    def _concept(self, bench: Bench, table: str | TableConfig) -> Concept:
        cfg = TableConfig(id=table) if isinstance(table, str) else table
        pool = self.test_texts
        words = lexicon_of(cfg.id)
        if words and self.hard_negatives:
            pool = POOL * max(self.test_texts, self.hard_negatives)

        def texts(split: TableSplit, num: int) -> list[list[str]]:
            rows = table_rows(
                cfg.but(max_rows=num),
                ["positive", "negative"],
                split,
                world=bench.world,
                relative_to=bench.relative_to,
            )
            return [[str(row[column]) for row in rows] for column in ("positive", "negative")]

        train_positive, train_negative = texts("train", self.train_texts)
        positive, negative = texts("test", pool)
        seen = {*train_positive, *train_negative}
        positive, negative = ([t for t in part if t not in seen] for part in (positive, negative))
        hard = [t for t in negative if words & set(t.split())][: self.hard_negatives]
        positive, negative = positive[: self.test_texts], negative[: self.test_texts]
        if min(len(train_positive), len(train_negative)) < 2 or not positive or not negative:
            raise BadInput(
                "a concept needs two training texts and one test text with it and as many without.",
                key="concepts",
                value=cfg.id,
            )
        return Concept(
            cfg.id,
            [*train_positive, *train_negative],
            np.array([1] * len(train_positive) + [0] * len(train_negative)),
            [*positive, *negative],
            np.array([1] * len(positive) + [0] * len(negative)),
            hard,
        )


def lexicon_of(table: str) -> set[str]:
    """Words that show the concept of a set of the world; none of others."""
    from sae_lib.synthetic.world.tasks import get_steering_concept

    name = table.removeprefix(WORLD_PREFIX)
    if not table.startswith(WORLD_PREFIX) or not name.startswith(STEERING_SET):
        return set()
    return set(get_steering_concept(name.removeprefix(STEERING_SET)).lexicon)


def diff_mean(
    x: Float[Tensor, "tokens d_in"], label: Int[Tensor, " tokens"]
) -> Float[Tensor, " d_in"]:
    """Mean of the tokens labelled 1 - mean of those labelled 0, scaled to length 1; float64."""
    w = x[label == 1].double().mean(0) - x[label == 0].double().mean(0)
    return w / w.norm().clamp_min(1e-300)


def principal_direction(
    x: Float[Tensor, "tokens d_in"], label: Int[Tensor, " tokens"]
) -> Float[Tensor, " d_in"]:
    """First principal direction of the tokens labelled 1; float64, either sign."""
    centred = x[label == 1].double()
    centred = centred - centred.mean(0)
    return torch.linalg.eigh(centred.mT @ centred).eigenvectors[:, -1]


def logistic_direction(
    train: TextActivations, y: Labels, seed: int
) -> tuple[Float[Tensor, " d_in"], dict[str, Any]]:
    """Logistic regression of the text's label on each token, L2; its penalty by validation texts.

    Validation texts are whole texts, a quarter of each class.
    """
    rng = np.random.default_rng(seed)
    held = np.zeros(len(y), dtype=bool)
    for value in (0, 1):
        members = rng.permutation(np.flatnonzero(y == value))
        held[members[: max(1, len(members) // 4)]] = True
    x = train.x.double().numpy()
    centre = x.mean(0)
    scale = float(np.sqrt(((x - centre) ** 2).sum(1).mean())) or 1.0
    x = (x - centre) / scale
    text = train.text.numpy()
    is_held = held[text]
    eye = np.eye(x.shape[1])
    best, chosen = -1.0, PENALTIES[0]
    for strength in PENALTIES:
        w = _weights(x[~is_held], y[text[~is_held]], eye, strength)
        value = auc(_text_max(x @ w, train)[held], y[held])[0]
        if value > best:
            best, chosen = value, strength
    w = torch.from_numpy(_weights(x, y[text], eye, chosen))
    return w / w.norm().clamp_min(1e-300), {"inverse_penalty": chosen}


PENALTIES = (0.01, 0.1, 1.0)
"""Inverse penalties that the logistic probe chooses from; tokens have mean square length 1."""


def _weights(
    x: Float[np.ndarray, "tokens d_in"],
    y: Int[np.ndarray, " tokens"],
    eye: Float[np.ndarray, "d_in d_in"],
    strength: float,
) -> Float[np.ndarray, " d_in"]:
    """Weights of the regression: its decision values at the unit vectors, less that at 0."""
    at = fit(x, y, np.concatenate([eye, np.zeros((1, len(eye)))]), inverse_penalty=strength).values
    return at[:-1] - at[-1]


def along(texts: TextActivations, w: Float[Tensor, " d_in"]) -> Scores:
    """Largest projection on ``w`` of each text's tokens."""
    return _text_max((texts.x.double() @ w).numpy(), texts)


def _text_max(token_scores: Float[np.ndarray, " tokens"], texts: TextActivations) -> Scores:
    return np.maximum.reduceat(token_scores, texts.start[:-1].numpy())


@torch.no_grad()
def best_latent(
    coder: SparseCoder[Any], train: TextActivations, test: TextActivations, y: Labels
) -> Detector:
    """Largest code of each text, of the latent with the best training AUC.

    Of latents equal in that, the one with the larger difference of means, then the smaller number.
    """
    encode = encoder(coder)
    codes = train.pooled(encode, coder.d_sae, "max").double().numpy()
    areas = column_aucs(codes, y)
    difference = codes[y == 1].mean(0) - codes[y == 0].mean(0)
    latent = int(np.lexsort((-np.arange(len(areas)), difference, areas))[-1])

    def only(x: Tensor) -> Tensor:
        return encode(x)[:, latent : latent + 1]

    scores = test.pooled(only, 1, "max")[:, 0].double().numpy()
    params = {"latent": latent, "train_auc": float(areas[latent])}
    return Detector(codes[:, latent], scores, params)


def judge(found: Detector, concept: Concept) -> Found:
    """Test AUC, and what becomes of hard negatives."""
    y, num = concept.test_labels, len(concept.test)
    scores, hard = found.test[:num], found.test[num:]
    area, stderr = auc(scores, y)
    hard_area = rejected = float("nan")
    if len(hard):
        both = np.concatenate([scores[y == 1], hard])
        hard_area = auc(both, np.array([1] * int((y == 1).sum()) + [0] * len(hard)))[0]
        rejected = float((hard < youden_threshold(found.train, concept.train_labels)).mean())
    return Found(area, stderr, hard_area, rejected, num, found.params)


def youden_threshold(scores: Scores, labels: Labels) -> float:
    """The score from which a text counts as positive, with the largest TPR - FPR; the highest such.

    Half way to the next lower score, so that it is not tied to a text.
    """
    values = np.unique(scores)
    positive = np.sort(scores[labels == 1])
    negative = np.sort(scores[labels == 0])
    hits = 1 - np.searchsorted(positive, values) / len(positive)
    alarms = 1 - np.searchsorted(negative, values) / len(negative)
    gain = hits - alarms
    best = int(np.flatnonzero(gain >= gain.max() - 1e-12)[-1])
    return float(values[best] if best == 0 else (values[best - 1] + values[best]) / 2)


def result_rows(
    found: Mapping[str, Mapping[str, Found]], params: Mapping[str, Any]
) -> list[Measurement]:
    """Means over concepts first, then every concept."""
    rows = []
    missing = "the coder writes another place than it reads, so nothing random stands beside it"
    sae, diff = found["sae"], found["diff_mean"]
    gap = [sae[name].auc - diff[name].auc for name in sae if name in diff]
    for method in METHODS:
        values = [one.auc for one in found[method].values()]
        rows.append(AUC[method].row(_mean(values, missing), **params))
    rows.insert(1, BESIDE.row(_mean(gap, missing), **params))
    for table, field in ((HARD_AUC, "hard_auc"), (REJECTED, "rejected")):
        for method in METHODS:
            values = [getattr(one, field) for one in found[method].values()]
            reason = missing if not found[method] else "no test text is a hard negative"
            rows.append(table[method].row(_mean(values, reason), **params))
    for method in METHODS:
        for name, one in found[method].items():
            estimate = Estimate(one.auc, one.auc_stderr, one.num_texts, "texts")
            rows.append(AUC_OF_ONE[method].row(estimate, **params, concept=name, **one.params))
    return rows


def _mean(values: list[float], missing: str) -> Estimate:
    known = np.array([v for v in values if np.isfinite(v)])
    if not len(known):
        return Estimate(None, n=0, unit="concepts", reason=missing)
    stderr = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
    return Estimate(float(known.mean()), stderr, len(known), "concepts")


def _control(
    coder: SparseCoder[Any], x: Float[Tensor, "tokens d_in"], seed: int
) -> SparseCoder[Any] | NotApplicable:
    try:
        return random_coder(coder, x, seed=seed)
    except NotApplicable as error:
        return error


def _counts(texts: TextActivations, vocab: int) -> Float[np.ndarray, "texts vocab"]:
    flat = texts.text * vocab + texts.token
    counts = torch.bincount(flat, minlength=texts.num_texts * vocab)
    return counts.view(texts.num_texts, vocab).double().numpy()
