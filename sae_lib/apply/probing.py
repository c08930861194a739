"""Probing: how well do a few latents tell two classes of texts apart, next to plain baselines?

Texts are pooled over their tokens (mean by default), latents chosen on the training texts, and
every probe is scored on test texts nobody has looked at (evaluation.md section 5, applications.md
D.1-D.3). Methods, in the column ``method``:

    sae_probe         the k latents with the largest mean difference, logistic regression
    sae_all_latents   all latents, penalty chosen on a validation part of the training texts
    residual_top_k    as sae_probe, on coordinates of the activation itself
    random_sae_probe  as sae_probe, on a random dictionary of the same width and L0
    dense_probe       all coordinates of the activation, penalty chosen as above
    bag_of_words      token counts, penalty chosen as above
    majority          always the commoner class of the training texts

Differs from SAEBench: its dense probe keeps the epoch with the best *test* accuracy, and it fills
up a selection with latents that differ in nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_lib.activations.labelled import LabelledConfig
from sae_lib.apply.base import ApplicationConfig, Applied, Bench, OnProgress, register
from sae_lib.apply.probes import (
    Features,
    Fitted,
    Labels,
    TestFeatures,
    TestLabels,
    fit,
    fit_dense,
    score,
    top_columns,
)
from sae_lib.apply.reading import Encode, encoder, pool_texts, text_batches
from sae_lib.apply.tasks import ProbeTask, probe_tasks, task_configs
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ApplicationRow, Measurement

ALL_TASKS = "all"
"""Name under which the mean over tasks is listed."""


@register
class ProbingConfig(ApplicationConfig):
    """How texts are classified, and which."""

    papers: ClassVar = (
        Paper("Karvonen et al. 2025", "https://arxiv.org/abs/2503.09532", "sparse probing"),
        Paper("Kantamneni et al. 2025", "https://arxiv.org/abs/2502.16681", "3, baselines"),
        Paper("Gurnee et al. 2023", "https://arxiv.org/abs/2305.01610", "3, mean difference"),
    )
    summary: ClassVar = "Classify texts from a few latents, against plain baselines."
    needs: ClassVar = frozenset({"labelled_texts"})
    headline: ClassVar = "accuracy"
    dials: ClassVar = ("tasks", "k", "pool")

    kind: Literal["probing"] = "probing"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    tasks: tuple[str | LabelledConfig, ...] = ()
    """``world:NAME``, labelled files or hub datasets; none: the world's own, on the world."""

    k: tuple[int, ...] = (1, 2, 5, 10)
    """Numbers of columns that sparse probes may use."""

    pool: Literal["mean", "max"] = "mean"
    """How the codes of a text's tokens become one row; activations are always averaged."""

    train_texts: int = Field(default=400, ge=8)
    """Texts per task to choose and fit on, half of them positive."""

    test_texts: int = Field(default=200, ge=4)
    """Texts per task to score on, half of them positive."""

    max_tokens: int = Field(default=128, gt=1)
    """Tokens of a text that are read, from its beginning."""

    seed: int = Field(default=0, ge=0)
    """Seed of the random dictionaries and of the validation part."""

    def check(self, bench: Bench) -> None:
        task_configs(self.tasks, bench)

    def apply(self, bench: Bench, on_progress: OnProgress) -> dict[str, Applied]:
        tasks = probe_tasks(
            self.tasks,
            bench,
            train_texts=self.train_texts,
            test_texts=self.test_texts,
            seed=self.seed,
        )
        encoders: dict[str, Encode] = {name: encoder(c) for name, c in bench.coders.items()}
        controls: dict[str, str] = {}
        if encoders:
            controls = self._add_controls(bench, tasks[0], encoders)
        rows: dict[str, list[ApplicationRow]] = {name: [] for name in bench.coders}
        shared: list[ApplicationRow] = []
        for done, task in enumerate(tasks):
            on_progress(done, len(tasks))
            for method, found in self._probe(bench, task, encoders):
                if method in rows:
                    rows[method] += found
                elif method in controls.values():
                    for name in (n for n, control in controls.items() if control == method):
                        rows[name] += found
                else:
                    shared += found
        on_progress(len(tasks), len(tasks))
        return {
            name: Applied([*all_rows, *means_over_tasks(all_rows)], [])
            for name, all_rows in ((n, own + shared) for n, own in rows.items())
        }

    def _add_controls(
        self, bench: Bench, task: ProbeTask, encoders: dict[str, Encode]
    ) -> dict[str, str]:
        """Random dictionaries, one per width and L0; by coder the name of its control."""
        sample = pool_texts(
            bench.model,
            bench.site,
            task.train.texts[:64],
            encoders,
            pool="mean",
            max_tokens=self.max_tokens,
        )
        centre = (sample.x_sum.sum(0) / sample.num_tokens.sum()).float()
        controls = {}
        for name, coder in bench.coders.items():
            num_on = max(1, round(sample.l0[name]))
            controls[name] = f"random dictionary {coder.d_sae} {num_on}"
            encoders[controls[name]] = random_dictionary(centre, coder.d_sae, num_on, self.seed)
        return controls

    def _probe(
        self, bench: Bench, task: ProbeTask, encoders: Mapping[str, Encode]
    ) -> Iterable[tuple[str, list[ApplicationRow]]]:
        """Rows of every coder, every random dictionary, and of what needs neither."""
        y_train = np.array(task.train.labels, dtype=np.int64)
        y_test = np.array(task.test.labels, dtype=np.int64)
        train, test = (
            pool_texts(
                bench.model,
                bench.site,
                texts,
                encoders,
                pool=self.pool,
                max_tokens=self.max_tokens,
            )
            for texts in (task.train.texts, task.test.texts)
        )

        def sparse(method: str, a: Features, b: TestFeatures) -> list[ApplicationRow]:
            return [
                r for k in self.k for r in sparse_rows(method, task.name, k, a, y_train, b, y_test)
            ]

        def dense(method: str, a: Features, b: TestFeatures) -> list[ApplicationRow]:
            fitted, penalty = fit_dense(a, y_train, b, seed=self.seed)
            params = {"inverse_penalty": penalty}
            return score_rows(method, task.name, fitted, y_test, "validated_penalty", params)

        for name in encoders:
            a, b = _array(train.z[name]), _array(test.z[name])
            if name in bench.coders:
                yield name, sparse("sae_probe", a, b) + dense("sae_all_latents", a, b)
            else:
                yield name, sparse("random_sae_probe", a, b)
        a, b = _array(train.x_mean), _array(test.x_mean)
        yield "residual_top_k", sparse("residual_top_k", a, b)
        yield "dense_probe", dense("dense_probe", a, b)
        yield "bag_of_words", dense("bag_of_words", *word_counts(bench, task, self.max_tokens))
        yield "majority", majority_rows(task.name, y_train, y_test)


def random_dictionary(
    centre: Float[Tensor, " d_in"], num_latents: int, num_on: int, seed: int
) -> Encode:
    """Codes on random unit directions from ``centre``; a token keeps its ``num_on`` largest."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(num_latents, len(centre), generator=generator)
    directions /= directions.norm(dim=1, keepdim=True)

    def encode(x: Tensor) -> Tensor:
        along = ((x.float().cpu() - centre) @ directions.mT).relu()
        largest = along.topk(min(num_on, num_latents), dim=1)
        return torch.zeros_like(along).scatter(1, largest.indices, largest.values)

    return encode


def word_counts(bench: Bench, task: ProbeTask, max_tokens: int) -> tuple[Features, TestFeatures]:
    """Counts of the token types that occur in the training texts."""
    train = _token_counts(bench, task.train.texts, max_tokens)
    used = np.flatnonzero(train.any(0))
    return train[:, used], _token_counts(bench, task.test.texts, max_tokens)[:, used]


def sparse_rows(
    method: str,
    task: str,
    k: int,
    train: Features,
    y_train: Labels,
    test: TestFeatures,
    y_test: TestLabels,
) -> list[ApplicationRow]:
    """The probe on the ``k`` columns that differ most on the training texts."""
    columns = top_columns(train, y_train, k)
    params: dict[str, Any] = {"k": k, "columns": columns.tolist()}
    definition = "mean_difference_top_k"
    if not len(columns):
        reason = "no column differs between the classes on the training texts"
        return _absent_rows(method, task, definition, params, reason)
    fitted = fit(train[:, columns], y_train, test[:, columns])
    return score_rows(method, task, fitted, y_test, definition, params)


def score_rows(
    method: str,
    task: str,
    fitted: Fitted,
    y_test: TestLabels,
    definition: str,
    params: dict[str, Any],
) -> list[ApplicationRow]:
    """Accuracy and area under the curve on the test texts."""
    found = score(fitted, y_test)
    if not found.has_converged:
        params = {**params, "converged": False}
    return [
        _row(method, task, name, value, definition, stderr, len(y_test), "texts", params)
        for name, value, stderr in (
            ("accuracy", found.accuracy, found.accuracy_stderr),
            ("auc", found.auc, found.auc_stderr),
        )
    ]


def majority_rows(task: str, y_train: Labels, y_test: TestLabels) -> list[ApplicationRow]:
    """The floor: always the commoner class of the training texts (the positive one in a tie)."""
    value = 1.0 if (y_train == 1).mean() >= 0.5 else -1.0
    fitted = Fitted(np.full(len(y_test), value), has_converged=True)
    return score_rows("majority", task, fitted, y_test, "commoner_class", {})


def means_over_tasks(rows: list[ApplicationRow]) -> list[ApplicationRow]:
    """Per method, measurement and k, the mean over tasks, its standard error over tasks."""
    groups: dict[tuple[str, str, str, int | None], list[float]] = {}
    for row in rows:
        m = row.measurement
        values = groups.setdefault((row.method, m.name, m.definition, m.params.get("k")), [])
        if m.value is not None:
            values.append(m.value)
    return [
        _row(
            method,
            ALL_TASKS,
            name,
            float(np.mean(values)),
            f"mean_of_tasks_{definition}",
            float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None,
            len(values),
            "tasks",
            {} if k is None else {"k": k},
        )
        for (method, name, definition, k), values in groups.items()
        if values
    ]


def _row(
    method: str,
    task: str,
    name: str,
    value: float | None,
    definition: str,
    stderr: float | None,
    n: int,
    unit: str,
    params: dict[str, Any],
) -> ApplicationRow:
    found = Measurement(
        name=name,
        value=value,
        definition=definition,
        stderr=stderr,
        n=n,
        unit=unit,
        params=params,
    )
    return ApplicationRow("probing", method, task, found)


def _absent_rows(
    method: str, task: str, definition: str, params: dict[str, Any], reason: str
) -> list[ApplicationRow]:
    return [
        ApplicationRow(
            "probing",
            method,
            task,
            Measurement(name, None, definition, params=params, reason=reason),
        )
        for name in ("accuracy", "auc")
    ]


def _token_counts(bench: Bench, texts: list[str], max_tokens: int) -> Features:
    counts = torch.zeros(len(texts), bench.model.vocab_size)
    for chosen, batch in text_batches(bench.model, texts, max_tokens=max_tokens, batch_texts=256):
        text = torch.tensor(chosen)[:, None].expand_as(batch.keep)[batch.keep]
        where = (text, batch.tokens[batch.keep])
        counts.index_put_(where, torch.ones(len(text)), accumulate=True)
    return _array(counts)


def _array(rows: Tensor) -> Features:
    return rows.double().numpy()
