"""Sparse probing: how well do the k best latents tell a class of texts from the rest?

    pooled    mean of the latents over a text's tokens, decoder rows of length 1
    chosen    the k largest |mean over the class - mean over the rest| on the training texts
    probe     logistic regression on these, L2 penalty, C = 1, no standardisation
    numbers   accuracy, area under the ROC curve and F1 on test texts, half of them positive

Of a data set with several classes at most five are each told from as many texts of the others;
numbers are means over classes, then over data sets. A latent that does not differ is never chosen.
Rows:

    top_k           the coder's k best latents
    all_latents     all of them, the penalty chosen on a validation part of the training texts
    dense_probe     all coordinates of the activation, likewise
    residual_top_k  the k best coordinates of the activation
    random_sae      the k best latents of a random coder of the same width and L0: the floor
    majority        always the commoner class, the positive one in a tie

Source: Karvonen et al. 2025 (evaluation.md, section 5). Probes are those of `sae_lib.apply.probes`.

Differs from SAEBench: its dense probe keeps the epoch with the best *test* accuracy; its masked
positions are found by sums of 0, here by the reader's mask; there are fewer texts.
"""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from pydantic import Field
from scipy.stats import rankdata
from torch import Tensor

from sae_lib.activations.task_tables import table_files
from sae_lib.apply.probes import Fitted, fit, fit_dense, top_columns
from sae_lib.apply.tasks import WORLD_TASKS
from sae_lib.errors import BadInput
from sae_lib.evaluate._class_probes import (
    FEWEST,
    ClassSet,
    check_has_sets,
    class_set,
    class_texts,
    floor_sample,
    floors,
    one_against_rest,
    pooled_codes,
    world_class_sets,
)
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.evaluate.reader import TextActivations
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

NUMBERS = ("accuracy", "auc", "f1")
_TEXTS = {
    "accuracy": "share of the test texts told right",
    "auc": "area under the ROC curve, ties count half",
    "f1": "2 TP / (2 TP + FP + FN) of the positive class",
}
_WHO = {
    "top_k": "logistic regression on the k latents with the largest difference of means",
    "all_latents": "logistic regression on all latents, penalty chosen on validation texts",
    "dense_probe": "logistic regression on the activation, penalty chosen on validation texts",
    "residual_top_k": "logistic regression on the k coordinates with the largest difference of"
    " means",
    "random_sae": "top_k for a random coder of the same width and L0: the floor",
    "majority": "always the commoner class, the positive one in a tie",
}
DEFINITIONS = {
    (number, who, is_one): Definition(
        f"sparse_probing_{number}",
        f"{who}_of_one" if is_one else who,
        f"{_TEXTS[number]}; {_WHO[who]}; mean over classes"
        + (" of one data set" if is_one else ", then over data sets"),
        "higher",
        0.0,
        1.0,
    )
    for is_one in (False, True)
    for who in _WHO
    for number in NUMBERS
}

Key = tuple[str, int | None]
"""Who is scored, and k."""


class Scored(NamedTuple):
    """Numbers of one probe, and how each test text moves them."""

    values: Float[np.ndarray, " numbers"]
    """As in `NUMBERS`."""
    influence: Float[np.ndarray, "numbers texts"]
    """Linear part of what each text adds; its sum of squares is the squared standard error."""


class OfSet(NamedTuple):
    """Numbers of one data set, means over its classes."""

    values: Float[np.ndarray, " numbers"]
    errors: Float[np.ndarray, " numbers"]
    """Standard errors over texts."""
    num_texts: int


class Task(NamedTuple):
    """Texts of one data set, read, and each class against the rest; rows begin with the class."""

    name: str
    train: TextActivations
    test: TextActivations
    train_rows: Int[Tensor, "tasks train_members"]
    test_rows: Int[Tensor, "tasks test_members"]


def scored(values: Float[np.ndarray, " texts"], labels: Int[np.ndarray, " texts"]) -> Scored:
    """Accuracy and F1 at decision value 0, and the area under the curve (DeLong et al. 1988).

    Both classes must be there. F1 is 0 where there is no true positive.
    """
    is_positive, said = labels == 1, values > 0
    right = (said == is_positive).astype(float)
    accuracy = right.mean()
    num_positive, num_negative = int(is_positive.sum()), int((~is_positive).sum())
    ranks = rankdata(values)
    below = np.empty(len(values))
    # of a positive the share of negatives below it, of a negative that of positives above it
    below[is_positive] = (ranks - _ranks_within(values, is_positive))[is_positive] / num_negative
    below[~is_positive] = (
        1 - (ranks - _ranks_within(values, ~is_positive))[~is_positive] / num_positive
    )
    auc = below[is_positive].mean()
    both = (said & is_positive).astype(float)
    either = said.astype(float) + is_positive
    f1 = 2 * both.sum() / either.sum()
    influence = np.stack(
        [
            (right - accuracy) / len(values),
            (below - auc) / np.where(is_positive, num_positive, num_negative),
            (2 * both - f1 * either) / either.sum(),
        ]
    )
    return Scored(np.array([accuracy, auc, f1]), influence)


def probe_columns(
    train: Float[np.ndarray, "train_texts columns"],
    y_train: Int[np.ndarray, " train_texts"],
    test: Float[np.ndarray, "test_texts columns"],
    k: int,
) -> Fitted:
    """Decision values on ``test`` of a probe on the ``k`` columns that differ most on ``train``.

    Where no column differs there is only an offset left, which cannot tell balanced classes apart:
    every value is 0.
    """
    columns = top_columns(train, y_train, k)
    if not len(columns):
        return Fitted(np.zeros(len(test)), has_converged=True)
    return fit(train[:, columns], y_train, test[:, columns])


def mean_of_tasks(
    some: Sequence[Scored], rows: Int[Tensor, "tasks members"], num_texts: int
) -> OfSet:
    """Means over the classes of a data set, and standard errors over its test texts.

    A text that is negative in several tasks is one text: what it adds to all of them is summed.
    """
    total = np.zeros((len(NUMBERS), num_texts))
    for one, own in zip(some, rows.numpy(), strict=True):
        total[:, own] += one.influence / len(some)  # no text comes twice in one task
    num = len(np.unique(rows.numpy()))
    errors = np.sqrt((total**2).sum(1) * num / max(num - 1, 1))
    return OfSet(np.mean([one.values for one in some], axis=0), errors, num)


@register
class SparseProbingConfig(TaskMetric):
    """Which texts are told apart, and by how many latents."""

    papers = (
        Paper("Karvonen et al. 2025", "https://arxiv.org/abs/2503.09532", "sparse probing"),
        Paper("Gurnee et al. 2023", "https://arxiv.org/abs/2305.01610", "3, mean difference"),
    )
    summary = "Tell classes of texts apart by the k best latents."
    survey = ("Sparse Probing",)

    name: Literal["sparse_probing"] = "sparse_probing"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    datasets: tuple[str | ClassSet, ...] = ()
    """``world:NAME``, files or hub data sets with classes; none: the world's own, on the world."""

    k: tuple[int, ...] = Field(default=(1, 2, 5, 10, 20, 50, 100), min_length=1)
    """Numbers of latents; those above the width of a coder are left out."""

    train_texts: int = Field(default=400, ge=2 * FEWEST, multiple_of=2)
    """Texts per class to choose and fit on, half of them of the class."""

    test_texts: int = Field(default=200, ge=2 * FEWEST, multiple_of=2)
    """Texts per class to score on, half of them of the class."""

    max_tokens: int = Field(default=128, gt=1)
    """Tokens of a text that are read, from its beginning."""

    seed: int = Field(default=0, ge=0)
    """Seed of the draws of texts, of the validation parts and of the random coders."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return list(DEFINITIONS.values())

    def check(self, bench: Bench) -> None:
        check_has_sets(self.datasets, bench, self.name, "data sets")
        if min(self.k) < 1:
            raise BadInput("numbers of latents are at least 1.", key="k", value=self.k)

    def files(self, relative_to: Path) -> list[Path]:
        return [f for given in self.datasets for f in table_files(class_set(given), relative_to)]

    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        width = bench.model.width(bench.site)
        reasons = {
            name: f"the coder reads {coder.d_in} values where the site has {width}"
            for name, coder in bench.coders.items()
            if coder.d_in != width
        }
        tasks = [
            self._read(given, bench, place)
            for place, given in enumerate(self.datasets or world_datasets())
        ]
        coders: dict[str, SparseCoder[Any]] = {
            name: coder for name, coder in bench.coders.items() if name not in reasons
        }
        # a coder of other places than it reads has no random counterpart, but is probed alike
        plain = {name: coder for name, coder in coders.items() if coder.d_in == coder.d_out}
        sample = torch.cat([floor_sample(task.train) for task in tasks])
        floor = floors(plain, sample, self.seed)
        coders |= floor.coders
        shared: list[_Numbers] = []
        found: dict[str, list[_Numbers]] = {name: [] for name in coders}
        total = len(tasks) * (len(coders) + 1)
        for done, (task, name) in enumerate(product(tasks, [None, *coders])):
            on_progress(done, total)
            if name is None:
                shared.append(self._without_coder(task))
            else:
                is_floor = name in floor.coders
                found[name].append(self._with_coder(task, coders[name], is_floor=is_floor))
        on_progress(total, total)
        result = {}
        for name in bench.coders:
            if name in reasons:
                result[name] = Measured(self.absent(reasons[name]))
                continue
            parts = [found[name], shared]
            if name in floor.of:
                parts.append(found[floor.of[name]])
            merged = [
                {key: value for one in of_task for key, value in one.items()}
                for of_task in zip(*parts, strict=True)
            ]
            result[name] = Measured(_rows([task.name for task in tasks], merged))
        return result

    def _read(self, given: str | ClassSet, bench: Bench, place: int) -> Task:
        texts = class_texts(
            given,
            bench,
            train=self.train_texts // 2,
            test=self.test_texts // 2,
            seed=self.seed,
            key=f"datasets.{place}",
        )
        train, test = (
            bench.reader.read([text for own in side for text in own], max_tokens=self.max_tokens)
            for side in (texts.train, texts.test)
        )
        rows = [
            one_against_rest(len(side), len(side[0]), seed=self.seed + offset)
            for offset, side in enumerate((texts.train, texts.test))
        ]
        if len(texts.classes) == 2:  # the second class against the first is the whole task
            rows = [own[1:] for own in rows]
        return Task(texts.name, train, test, rows[0], rows[1])

    def _with_coder(self, task: Task, coder: SparseCoder[Any], *, is_floor: bool) -> "_Numbers":
        train, test = (pooled_codes(coder, side) for side in (task.train, task.test))
        who = "random_sae" if is_floor else "top_k"
        numbers = self._sparse(task, who, train, test)
        if not is_floor:
            numbers["all_latents", None] = self._dense(task, train, test)
        return numbers

    def _without_coder(self, task: Task) -> "_Numbers":
        train, test = task.train.pooled_x(), task.test.pooled_x()
        numbers = self._sparse(task, "residual_top_k", train, test)
        numbers["dense_probe", None] = self._dense(task, train, test)
        num = task.test_rows.shape[1]
        always = [scored(np.ones(num), _labels(num)) for _ in task.test_rows]
        numbers["majority", None] = mean_of_tasks(always, task.test_rows, task.test.num_texts)
        return numbers

    def _sparse(
        self,
        task: Task,
        who: str,
        train: Float[Tensor, "train_texts columns"],
        test: Float[Tensor, "test_texts columns"],
    ) -> "_Numbers":
        sizes = [k for k in sorted(set(self.k)) if k <= train.shape[1]]
        some: dict[int, list[Scored]] = {k: [] for k in sizes}
        for a, b in zip(task.train_rows, task.test_rows, strict=True):
            x, y = train[a].double().numpy(), test[b].double().numpy()
            for k in sizes:
                fitted = probe_columns(x, _labels(len(x)), y, k)
                some[k].append(scored(fitted.values, _labels(len(y))))
        return {
            (who, k): mean_of_tasks(some[k], task.test_rows, task.test.num_texts) for k in sizes
        }

    def _dense(
        self,
        task: Task,
        train: Float[Tensor, "train_texts columns"],
        test: Float[Tensor, "test_texts columns"],
    ) -> OfSet:
        some = []
        for a, b in zip(task.train_rows, task.test_rows, strict=True):
            x, y = train[a].double().numpy(), test[b].double().numpy()
            fitted, _ = fit_dense(x, _labels(len(x)), y, seed=self.seed)
            some.append(scored(fitted.values, _labels(len(y))))
        return mean_of_tasks(some, task.test_rows, task.test.num_texts)


def world_datasets() -> tuple[str | ClassSet, ...]:
    """Probed on the bundled world when none is named."""
    return (*WORLD_TASKS, *world_class_sets())


_Numbers = dict[Key, OfSet]


def _rows(names: list[str], by_task: list[_Numbers]) -> list[Measurement]:
    """Means over data sets, then each data set."""
    rows = []
    for who, k in sorted(by_task[0], key=_place):
        params = {} if k is None else {"k": k}
        values = np.array([one[who, k].values for one in by_task])
        for i, number in enumerate(NUMBERS):
            error = None
            if len(values) > 1:
                error = float(values[:, i].std(ddof=1) / np.sqrt(len(values)))
            estimate = Estimate(float(values[:, i].mean()), error, len(values), "data sets")
            rows.append(DEFINITIONS[number, who, False].row(estimate, **params))
    for name, one in zip(names, by_task, strict=True):
        for who, k in sorted(one, key=_place):
            params = {"dataset": name} if k is None else {"dataset": name, "k": k}
            found = one[who, k]
            for i, number in enumerate(NUMBERS):
                estimate = Estimate(
                    float(found.values[i]), float(found.errors[i]), found.num_texts, "texts"
                )
                rows.append(DEFINITIONS[number, who, True].row(estimate, **params))
    return rows


def _place(key: Key) -> tuple[int, int]:
    return list(_WHO).index(key[0]), key[1] or 0


def _labels(num: int) -> Int[np.ndarray, " texts"]:
    """Positives first, half of all."""
    return (np.arange(num) < num // 2).astype(np.int64)


def _ranks_within(
    values: Float[np.ndarray, " texts"], chosen: np.ndarray
) -> Float[np.ndarray, " texts"]:
    """Rank of each chosen value among the chosen ones; 0 elsewhere."""
    found = np.zeros(len(values))
    found[chosen] = rankdata(values[chosen])
    return found
