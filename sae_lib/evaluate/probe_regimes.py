"""Are probes on latents worth having where data are scarce, unbalanced, mislabelled or shifted?

A *quiver* of probes on the activation (logistic regression, PCA, nearest neighbours, boosted trees,
a small network) chooses by validation AUC; so does the same quiver with a probe on latents, which
wins ties. Per task and setting

    delta    = test AUC of the choice with latents - of the choice without
    win rate = share of (task, setting) in which delta > 0, those with delta = 0 counting half

    scarcity         few training texts                              quiver
    imbalance        other shares of positives, in training and test quiver
    label_noise      some training labels flipped                    logistic against latents
    covariate_shift  trained on one kind of text, tested on another  logistic against latents

With noisy labels validation is noisy too, and under a shift it is of the wrong kind: there the two
probes are compared as they are. Delta is first averaged over the settings of a task, then over
tasks; settings with fewer than 4 training texts, which have no validation, are not used.
``random_sae`` is the same with codes on random directions, as wide and as sparse as the coder's.

Activations and codes are those of the last token. The probe on latents is an L1 regression on the k
latents with the largest difference of class means, codes divided by their mean when on.

Differs from the authors' code: latents are chosen within the fitted part of each fold; boosted
trees are scikit-learn's; grids are smaller; and the settings are fewer by default. SAEBench's
sparse probing has one setting and no choice.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field

from sae_lib.activations.labelled import LabelledConfig, load_labelled
from sae_lib.activations.task_tables import local_files
from sae_lib.apply.probes import auc
from sae_lib.apply.reading import encoder
from sae_lib.apply.tasks import BinaryTexts, one_against_rest, probe_tasks
from sae_lib.config import Config
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate._baselines import random_coder
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate._quiver import Chosen, Features, Labels, baselines, choose, sparse_probes
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

WORLD_TASKS = (
    "world:review-sentiment",
    "world:topic-sea",
    "world:subject-gender",
    "world:known-entity",
    "world:comment-toxic",
    "world:opinion-mistaken",
)
"""Tasks of the world when none is named."""

WORLD_SHIFTS = (
    ("world:comment-toxic-english", "world:comment-toxic-sindral"),
    ("world:comment-toxic-sindral", "world:comment-toxic-english"),
    ("world:review-sentiment", "world:comment-opinion"),
)
"""From one language to another, and from reviews to comments: the same question of other texts."""

LEAST = 4
"""Training texts below which there is no validation."""

REGIMES = {
    "scarcity": "training texts",
    "imbalance": "share of positives",
    "label_noise": "share of flipped training labels",
    "covariate_shift": "texts of another kind in the test",
}
OF_QUIVER = ("scarcity", "imbalance")
"""Regimes in which probes are chosen among."""

BASELINES = ("logistic", "pca", "knn", "boosting", "mlp")
CODES = ("sae", "random_sae")

_COMPARED = {
    True: "test AUC of the quiver with {} - without",
    False: "test AUC of the probe on {} - of logistic regression on the activation",
}
_CODES = {"sae": "latents", "random_sae": "codes on random directions"}


def _delta(regime: str, codes: str, suffix: str) -> Definition:
    over = "mean over tasks" if not suffix else "one task"
    text = _COMPARED[regime in OF_QUIVER].format(_CODES[codes])
    return Definition(
        f"{regime}_delta",
        f"{codes}{suffix}",
        f"{text}; mean over settings ({REGIMES[regime]}), {over}",
        "higher",
        -1.0,
        1.0,
    )


def _methods(regime: str) -> tuple[str, ...]:
    if regime in OF_QUIVER:
        return (*CODES, *BASELINES, "quiver", "quiver_with_sae", "quiver_with_random_sae")
    return (*CODES, "logistic")


DELTA = {(regime, codes): _delta(regime, codes, "") for regime in REGIMES for codes in CODES}
DELTA_OF_ONE = {
    (regime, codes): _delta(regime, codes, "_of_one") for regime in REGIMES for codes in CODES
}
WIN = {
    (regime, codes): Definition(
        f"{regime}_win_rate",
        codes,
        f"share of tasks and settings with a positive difference, zeros half: {_CODES[codes]}",
        "higher",
        0.0,
        1.0,
    )
    for regime in REGIMES
    for codes in CODES
}
AUC = {
    (regime, method): Definition(
        f"{regime}_auc",
        method,
        f"test AUC of {method.replace('_', ' ')}, mean over tasks; {REGIMES[regime]} in the params",
        "higher",
        0.0,
        1.0,
    )
    for regime in REGIMES
    for method in _methods(regime)
}


class ShiftConfig(Config):
    """Two labelled sets of texts with the same question, class by class in the same order."""

    train: str | LabelledConfig
    """Where training texts come from."""

    test: str | LabelledConfig
    """Where test texts come from."""


class Texts(NamedTuple):
    """Activations and codes of labelled texts, by control or coder."""

    x: Features
    codes: Mapping[str, Features]
    labels: Labels

    def of(self, rows: np.ndarray) -> "Texts":
        """Some of the texts."""
        return Texts(self.x[rows], {n: z[rows] for n, z in self.codes.items()}, self.labels[rows])


class Task(NamedTuple):
    name: str
    train: Texts
    test: Texts


Aucs = dict[str, dict[float, dict[str, float]]]
"""By task and setting, the test AUC of every method."""


@register
class ProbeRegimesConfig(TaskMetric):
    """Which tasks, and which settings of each regime."""

    papers = (
        Paper("Kantamneni et al. 2025", "https://arxiv.org/abs/2502.16681", "3 and 4, quiver"),
        Paper("Gurnee et al. 2023", "https://arxiv.org/abs/2305.01610", "3, mean difference"),
    )
    summary = "probes on latents where data are scarce, unbalanced, mislabelled or shifted"
    survey = ("Data Scarcity", "Class Imbalance", "Label Noise", "Covariate Shift")

    name: Literal["probe_regimes"] = "probe_regimes"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    tasks: tuple[str | LabelledConfig, ...] = ()
    """``world:NAME``, labelled files or hub datasets; none: the world's own, on the world."""

    shifts: tuple[ShiftConfig, ...] = ()
    """Pairs for covariate shift; none: the world's own, on the world, where no task is named."""

    sizes: tuple[int, ...] = (4, 16, 64, 256)
    """Training texts under scarcity, half of them positive; 4 at least."""

    shares: tuple[float, ...] = (0.05, 0.25, 0.75, 0.95)
    """Shares of positives under imbalance."""

    flipped: tuple[float, ...] = (0.0, 0.2, 0.4)
    """Shares of training labels that are flipped under label noise."""

    k: tuple[int, ...] = (16, 128)
    """Numbers of latents that the probe on codes chooses from, where it may choose."""

    fixed_k: int = Field(default=128, gt=0)
    """Latents of the probe on codes under label noise and covariate shift."""

    train_texts: int = Field(default=256, ge=8)
    """Training texts per task, half of them positive."""

    test_texts: int = Field(default=200, ge=20)
    """Test texts per task, half of them positive."""

    max_tokens: int = Field(default=128, gt=1)
    """Tokens of a text that are read, from its beginning."""

    seed: int = Field(default=0, ge=0)
    """Seed of what is drawn, flipped and held out, and of trees, networks and random directions."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [d for table in (DELTA, WIN, AUC, DELTA_OF_ONE) for d in table.values()]

    def check(self, bench: Bench) -> None:
        if not self.tasks and bench.world is None:
            raise NotApplicable(
                self.name, "no tasks are named, and only the bundled world brings its own."
            )
        if any(size < LEAST for size in self.sizes):
            raise BadInput(
                f"with fewer than {LEAST} training texts nothing can be validated.",
                key="sizes",
                value=self.sizes,
            )
        if any(not 0 < share < 1 for share in self.shares):
            raise BadInput("a share lies between 0 and 1.", key="shares", value=self.shares)
        if any(not 0 <= share <= 0.5 for share in self.flipped):
            raise BadInput("up to a half of all labels is flipped.", key="flipped")

    def files(self, relative_to: Path) -> list[Path]:
        pairs = [side for shift in self.shifts for side in (shift.train, shift.test)]
        return local_files(*self.tasks, *pairs, relative_to=relative_to)

    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        codes = _Codes(bench, self.max_tokens, self.seed)
        tasks = [
            Task(task.name, codes.read(task.train), codes.read(task.test))
            for task in probe_tasks(
                self.tasks or WORLD_TASKS,
                bench.for_applications,
                train_texts=self.train_texts,
                test_texts=self.test_texts,
                seed=self.seed,
            )
        ]
        shifted = [
            Task(name, codes.read(train), codes.read(test))
            for name, train, test in self._shifts(bench)
        ]
        found: dict[str, Aucs] = {}
        for number, regime in enumerate(REGIMES):
            on_progress(number, len(REGIMES))
            found[regime] = {
                task.name: self.regime(regime, task)
                for task in (shifted if regime == "covariate_shift" else tasks)
            }
        on_progress(len(REGIMES), len(REGIMES))
        params = {"train_texts": self.train_texts, "seed": self.seed}
        return {
            name: Measured(result_rows(found, name, codes.controls.get(name), params))
            for name in bench.coders
        }

    def regime(self, regime: str, task: Task) -> dict[float, dict[str, float]]:
        """Test AUCs of one task by setting and method; methods on codes are named by coder."""
        rng = np.random.default_rng(self.seed)
        order = _alternating(task.train.labels, rng)
        found: dict[float, dict[str, float]] = {}
        if regime == "scarcity":
            for size in (s for s in self.sizes if s <= len(order)):
                found[float(size)] = self._quiver(task.train.of(order[:size]), task.test)
        elif regime == "imbalance":
            for share in self.shares:
                train = _with_share(task.train.labels, share, len(order) // 2, rng)
                test = _with_share(task.test.labels, share, len(task.test.labels) // 2, rng)
                if train is not None and test is not None:
                    found[share] = self._quiver(task.train.of(train), task.test.of(test))
        elif regime == "label_noise":
            for share in self.flipped:
                flipped = rng.permutation(len(order))[: round(share * len(order))]
                labels = task.train.labels.copy()
                labels[flipped] = 1 - labels[flipped]
                found[share] = self._two(task.train._replace(labels=labels), task.test)
        else:
            found[0.0] = self._two(task.train, task.test)
        return found

    def _quiver(self, train: Texts, test: Texts) -> dict[str, float]:
        """AUC of every probe, of the choice among baselines, and of that with each coder."""
        chosen = {
            name: choose(settings, train.x, train.labels, test.x, self.seed)
            for name, settings in baselines(len(train.labels), train.x.shape[1], self.seed).items()
        }
        settings = sparse_probes(self.k)
        on_codes = {
            name: choose(settings, z, train.labels, test.codes[name], self.seed)
            for name, z in train.codes.items()
        }
        found = {
            name: auc(one.values, test.labels)[0] for name, one in {**chosen, **on_codes}.items()
        }
        best = best_of(chosen)
        found["quiver"] = found[best]
        for name, one in on_codes.items():
            validation = {other: probe.validation_auc for other, probe in chosen.items()}
            validation[name] = one.validation_auc
            found[f"quiver_with_{name}"] = found["quiver"] + quiver_delta(validation, found, name)
        return found

    def _two(self, train: Texts, test: Texts) -> dict[str, float]:
        """AUC of logistic regression on the activation and of the probe on each coder's codes."""
        logistic = baselines(len(train.labels), train.x.shape[1], self.seed)["logistic"]
        found = {"logistic": choose(logistic, train.x, train.labels, test.x, self.seed)}
        settings = sparse_probes((self.fixed_k,))
        for name, z in train.codes.items():
            found[name] = choose(settings, z, train.labels, test.codes[name], self.seed)
        return {name: auc(one.values, test.labels)[0] for name, one in found.items()}

    def _shifts(self, bench: Bench) -> list[tuple[str, BinaryTexts, BinaryTexts]]:
        pairs = [(shift.train, shift.test) for shift in self.shifts]
        if not pairs and not self.tasks and bench.world is not None:
            pairs = list(WORLD_SHIFTS)
        found = []
        for given in pairs:
            train, test = (LabelledConfig(id=t) if isinstance(t, str) else t for t in given)
            sides = (
                load_labelled(train, "train", relative_to=bench.relative_to),
                load_labelled(test, "test", relative_to=bench.relative_to),
            )
            if any(len(side.classes) != 2 for side in sides):
                raise BadInput("a shift is between tasks of two classes.", key="shifts")
            a, b = (
                one_against_rest(side, 1, num, self.seed)
                for side, num in zip(sides, (self.train_texts, self.test_texts), strict=True)
            )
            found.append((f"{train.id} -> {test.id}", a, b))
        return found


class _Codes:
    """Reads texts and encodes them with every coder and every control, which coders may share."""

    def __init__(self, bench: Bench, max_tokens: int, seed: int) -> None:
        self.bench, self.max_tokens, self.seed = bench, max_tokens, seed
        self.controls: dict[str, str] = {}
        """By coder, the name of its random directions; those without any are not listed."""
        self._coders: dict[str, SparseCoder[Any]] = dict(bench.coders)
        self._has_controls = False

    @torch.no_grad()
    def read(self, texts: BinaryTexts) -> Texts:
        read = self.bench.reader.read(texts.texts, max_tokens=self.max_tokens)
        if not self._has_controls:
            self._add_controls(read.x)
        codes = {
            name: read.pooled(encoder(coder), coder.d_sae, "last").double().numpy()
            for name, coder in self._coders.items()
        }
        x = read.pooled_x("last").numpy()
        return Texts(x, codes, np.array(texts.labels, dtype=np.int64))

    def _add_controls(self, x: torch.Tensor) -> None:
        self._has_controls = True
        for name, coder in self.bench.coders.items():
            try:
                control = random_coder(coder, x, seed=self.seed)
            except NotApplicable:
                continue
            self.controls[name] = f"random directions {control.d_sae} {control.cfg.num_on}"
            self._coders.setdefault(self.controls[name], control)


def best_of(chosen: Mapping[str, Chosen]) -> str:
    """The method with the best validation AUC, the first of equals."""
    return max(chosen, key=lambda name: chosen[name].validation_auc)


def quiver_delta(validation: Mapping[str, float], test: Mapping[str, float], extra: str) -> float:
    """Test AUC of the choice among all - among all but ``extra``, which wins ties."""
    others = {name: value for name, value in validation.items() if name != extra}
    best = max(others, key=lambda name: others[name])
    with_extra = extra if validation[extra] >= others[best] else best
    return test[with_extra] - test[best]


def _alternating(labels: Labels, rng: np.random.Generator) -> np.ndarray:
    """Positives and negatives in turn, each in random order: every prefix is balanced."""
    sides = [rng.permutation(np.flatnonzero(labels == value)) for value in (1, 0)]
    num = min(map(len, sides))
    return np.stack([side[:num] for side in sides], axis=1).ravel()


def _with_share(
    labels: Labels, share: float, num: int, rng: np.random.Generator
) -> np.ndarray | None:
    """``num`` texts with a share of positives, two of each class at least, where there are."""
    positives = min(max(round(share * num), 2), num - 2)
    sides = [rng.permutation(np.flatnonzero(labels == value)) for value in (1, 0)]
    if len(sides[0]) < positives or len(sides[1]) < num - positives:
        return None
    return rng.permutation(np.concatenate([sides[0][:positives], sides[1][: num - positives]]))


def result_rows(
    found: Mapping[str, Aucs], coder: str, control: str | None, params: Mapping[str, Any]
) -> list[Measurement]:
    """Deltas, win rates, AUCs by setting, then every task."""
    own = {"sae": coder, "random_sae": control}
    deltas: dict[tuple[str, str], dict[str, list[float]]] = {}
    for regime, tasks in found.items():
        for codes, name in own.items():
            deltas[regime, codes] = {
                task: [d for at in settings.values() for d in _deltas(regime, at, name)]
                for task, settings in tasks.items()
            }
    rows = []
    for key, of_tasks in deltas.items():
        means = [float(np.mean(d)) for d in of_tasks.values() if d]
        rows.append(DELTA[key].row(_mean(means), **params))
    for key, of_tasks in deltas.items():
        wins = [float(np.mean(np.sign(d) / 2 + 0.5)) for d in of_tasks.values() if d]
        rows.append(WIN[key].row(_mean(wins), **params))
    for regime, method in AUC:
        name = _column(method, own)
        settings = sorted({s for task in found[regime].values() for s in task})
        for setting in settings or [None]:
            values = [
                t[setting][name]
                for t in found[regime].values()
                if setting in t and name in t[setting]
            ]
            more = {} if setting is None else {"setting": setting}
            rows.append(AUC[regime, method].row(_mean(values), **params, **more))
    for key, of_tasks in deltas.items():
        for task, values in of_tasks.items():
            rows.append(DELTA_OF_ONE[key].row(_mean(values, "settings"), **params, task=task))
    return rows


def _column(method: str, own: Mapping[str, str | None]) -> str:
    """Under which name the AUCs of a coder have a method."""
    for codes in ("random_sae", "sae"):
        if method.endswith(codes):
            return method.removesuffix(codes) + str(own[codes])
    return method


def _deltas(regime: str, at: Mapping[str, float], name: str | None) -> list[float]:
    if name is None or name not in at:
        return []
    if regime in OF_QUIVER:
        return [at[f"quiver_with_{name}"] - at["quiver"]]
    return [at[name] - at["logistic"]]


def _mean(values: Sequence[float], unit: str = "tasks") -> Estimate:
    known = np.array([v for v in values if np.isfinite(v)])
    if not len(known):
        return Estimate(None, n=0, unit=unit, reason="no task has enough texts of both classes")
    stderr = float(known.std(ddof=1) / np.sqrt(len(known))) if len(known) > 1 else None
    return Estimate(float(known.mean()), stderr, len(known), unit)
