"""Unlearning: can latents be clamped so that one domain is forgotten and nothing else?

    s_i        = share of a corpus' tokens on which latent i is on
    selected   = first n latents by s_i(forget), of those with s_i(retain) < tau and s_i(forget) > 0
    f'_i       = -multiplier * unit_i  where a selected latent is on, else f_i
    x'         = x + decode(f') - decode(f)        at every token but special ones
    score      = 1 - min { accuracy on forget : accuracy on retain >= 0.99 },  0 where there is none

Accuracies are those on questions that the unmodified model answers right, so they are 1 without an
intervention; a model that guesses scores 0.75. Two units are told apart, and neither depends on
how a decoder is scaled: ``decoder_norm``, 1 / |W_dec_i|, so that a clamped latent writes a vector
of length ``multiplier`` (SAEBench's unit, where decoder rows have norm 1), and ``mean_on``, the
latent's mean over tokens of the forget corpus on which it is on.

*best_of_grid* takes the best of all settings on the very questions it reports (as SAEBench does,
and too good for that). *chosen_on_half* chooses on one half of the questions and reports the other;
questions about one entity are in one half. Nothing holds the accuracy on retain up on the reported
half: read it beside `unlearning_retain_accuracy`, `chosen_on_half`.

Questions have two forms. ``letter``: options are listed, the answer is the most probable letter,
and a question counts where the unmodified model is right in all orders of its options (24 of four).
``completion``: the answer is the option with the highest log-probability of following the question;
options are not listed, so their order plays no part and "right in all orders" is "right".

Source: Farrell et al. 2024; Karvonen et al. 2025 (SAEBench), section 4 and appendix.

Differs from SAEBench: the unit above, `chosen_on_half`, baselines, and the completion form.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from sae_lib.activations.task_tables import TableConfig, table_files, table_rows
from sae_lib.errors import NotApplicable
from sae_lib.evaluate._clamped_latents import Clamps, Setting, frequencies, select_latents
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate._unlearning_questions import Asked, Form, halves, known, read_questions
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.evaluate.reader import TextActivations
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

Unit = Literal["decoder_norm", "mean_on"]

FEWEST_QUESTIONS = 4
"""Questions of each side without which there is no score."""

WORLD_CORPORA = ("world:unlearning-forget", "world:unlearning-retain")

HOW = {
    "best_of_grid": "the best of all settings, on the questions it is chosen on",
    "chosen_on_half": "of the setting chosen on the other half of the questions",
}
GRIDS = {
    "": "latents by firing frequency, clamped in units of the decoder row's length",
    "mean_on_": "latents by firing frequency, clamped in units of their mean where on",
    "random_latents_": "random latents that fire on the forget corpus: the floor",
    "difference_in_means_": "the difference of the corpora's means is removed; no coder",
}
SCORE = {
    grid + how: Definition(
        "unlearning_score",
        grid + how,
        f"1 - lowest accuracy on forget where that on retain is high; {told}; {what}",
        "higher",
        0.0,
        1.0,
    )
    for grid, what in GRIDS.items()
    for how, told in HOW.items()
}
_BETTER: dict[str, Literal["higher", "lower"]] = {"forget": "lower", "retain": "higher"}
ACCURACY = {
    (side, how): Definition(
        f"unlearning_{side}_accuracy",
        how,
        f"share of {side} questions still answered right, {told}",
        better,
        0.0,
        1.0,
    )
    for how, told in {
        "chosen_on_half": "under the setting chosen on the other half",
        "setting_of_one": "under one setting",
    }.items()
    for side, better in _BETTER.items()
}
KNOWN = Definition(
    "unlearning_known_questions",
    "unmodified",
    "share of questions that the unmodified model answers right; the others are not used",
    "higher",
    0.0,
    1.0,
)


def qualifying(
    forget: Sequence[float], retain: Sequence[float], lowest: float = 0.99
) -> int | None:
    """The setting with the lowest accuracy on forget, of those with ``lowest`` on retain."""
    fine = [i for i, accuracy in enumerate(retain) if accuracy >= lowest]
    return min(fine, key=lambda i: forget[i]) if fine else None


def unlearning_score(
    forget: Sequence[float], retain: Sequence[float], lowest: float = 0.99
) -> float:
    """1 - the lowest accuracy on forget of a setting that harms retain little; else 0."""
    best = qualifying(forget, retain, lowest)
    return 0.0 if best is None else 1 - forget[best]


class Table(NamedTuple):
    """Which questions are still answered right under each setting."""

    settings: list[Setting]
    right: Bool[Tensor, "settings questions"]
    is_forget: Bool[Tensor, " questions"]
    half: Int[Tensor, " questions"]
    """0 or 1: settings are chosen on 0 and reported on 1."""

    def accuracies(self, side: str, half: int | None = None) -> list[float]:
        """Per setting, on all questions of a side or on those of one half."""
        return self.right[:, self._of(side, half)].double().mean(1).tolist()

    def num(self, side: str, half: int | None = None) -> int:
        return int(self._of(side, half).sum())

    def _of(self, side: str, half: int | None) -> Bool[Tensor, " questions"]:
        own = self.is_forget if side == "forget" else ~self.is_forget
        return own if half is None else own & (self.half == half)


@register
class UnlearningConfig(TaskMetric):
    """Forgetting a domain by clamping the latents that fire on it."""

    papers = (
        Paper("Farrell et al. 2024", "https://arxiv.org/abs/2410.19278", "3"),
        Paper("Karvonen et al. 2025", "https://arxiv.org/abs/2503.09532", "4, appendix"),
    )
    summary = "can clamped latents make the model forget one domain only?"
    survey = ("Unlearning",)

    name: Literal["unlearning"] = "unlearning"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    forget_texts: TableConfig | None = None
    """Corpus of what is to be forgotten, with a column text; by default the world's."""

    retain_texts: TableConfig | None = None
    """Corpus of what is to be kept, likewise."""

    forget_questions: tuple[TableConfig, ...] = ()
    """Questions about what is to be forgotten, with question, choices and answer (place of the
    right choice, from 0, or its letter); by default the world's."""

    retain_questions: tuple[TableConfig, ...] = ()
    """Questions about what is to be kept, likewise."""

    form: Form | None = None
    """Whether the answer is a letter or the option itself; by default a letter, and on the bundled
    world, whose model answers letters by chance, the option."""

    prompt: str | None = None
    """What the model reads, with {question} and, for letters, {options} in it; there is a default
    for each form."""

    num_texts: int = Field(default=256, gt=0)
    """Texts of each corpus."""

    max_tokens: int = Field(default=128, gt=1)
    """Tokens of a text that are read."""

    num_questions: int = Field(default=64, ge=FEWEST_QUESTIONS)
    """Questions of each side that the model is asked, at most."""

    retain_thresholds: tuple[float, ...] = Field(default=(0.001, 0.01), min_length=1)
    """Shares of retain tokens: a latent that is on as often is not selected."""

    num_latents: tuple[int, ...] = Field(default=(10, 20), min_length=1)
    """Latents selected, at most."""

    multipliers: tuple[float, ...] = Field(default=(25.0, 50.0, 100.0, 200.0), min_length=1)
    """Negative values of clamped latents, in units of ``decoder_norm``."""

    mean_on_multipliers: tuple[float, ...] = (1.0, 3.0, 10.0)
    """The same in units of ``mean_on``; none leaves that grid out."""

    strengths: tuple[float, ...] = Field(default=(1.0, 2.0, 4.0, 8.0), min_length=1)
    """Multiples of the component along the difference of means that the baseline takes away."""

    retain_accuracy: float = Field(default=0.99, gt=0, le=1)
    """Accuracy on retain questions that a setting must keep."""

    batch_rows: int = Field(default=256, gt=0)
    """Prompts per forward pass."""

    seed: int = Field(default=0, ge=0)
    """Decides the halves and the random latents."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [*SCORE.values(), *ACCURACY.values(), KNOWN]

    def files(self, relative_to: Path) -> list[Path]:
        tables = [self.forget_texts, self.retain_texts]
        tables += [*self.forget_questions, *self.retain_questions]
        return [file for t in tables if t is not None for file in table_files(t, relative_to)]

    def check(self, bench: Bench) -> None:
        if not bench.model.has_lm_head or not bench.model.is_causal:
            raise NotApplicable("unlearning", "the model does not continue texts.")
        named = (
            self.forget_texts,
            self.retain_texts,
            self.forget_questions,
            self.retain_questions,
        )
        if bench.world is None and not all(named):
            raise NotApplicable(
                "unlearning",
                "forget_texts, retain_texts, forget_questions and retain_questions are not all"
                " named, and only the bundled world brings its own.",
            )

    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        todo = len(bench.coders) + 2
        task = _Task(self, bench)
        on_progress(1, todo)
        shared = task.without_coder()
        on_progress(2, todo)
        found = {}
        for done, (name, coder) in enumerate(bench.coders.items(), 3):
            if coder.d_in != coder.d_out:
                reason = "the coder writes another number of values than it reads."
                found[name] = Measured(self.absent(reason))
            else:
                found[name] = Measured(task.of_coder(coder, shared))
            on_progress(done, todo)
        return found


class _Task:
    """Corpora, questions that the unmodified model can answer, and what does not need a coder."""

    def __init__(self, cfg: UnlearningConfig, bench: Bench) -> None:
        self.cfg, self.bench = cfg, bench
        self.forget, self.retain = (
            bench.reader.read(self._texts(named, default), max_tokens=cfg.max_tokens)
            for named, default in zip(
                (cfg.forget_texts, cfg.retain_texts), WORLD_CORPORA, strict=True
            )
        )
        self.form: Form = cfg.form or ("letter" if bench.world is None else "completion")
        asked = read_questions(
            bench,
            cfg.forget_questions,
            cfg.retain_questions,
            most=cfg.num_questions,
            seed=cfg.seed,
        )
        fine = known(bench, asked, self.form, prompt=cfg.prompt, batch_rows=cfg.batch_rows)
        self.num_asked = len(asked)
        self.questions = [question for question, own in zip(asked, fine, strict=True) if own]
        self.is_forget = torch.tensor([question.is_forget for question in self.questions]).bool()
        counts = int(self.is_forget.sum()), int((~self.is_forget).sum())
        if min(counts) < FEWEST_QUESTIONS:
            orders = "in all orders of the options " if self.form == "letter" else ""
            raise NotApplicable(
                "unlearning",
                f"the unmodified model answers {counts[0]} questions on what is to be forgotten"
                f" and {counts[1]} on what is to be kept right {orders}(of {len(asked)});"
                f" {FEWEST_QUESTIONS} of each are needed.",
            )
        self.half = halves(self.questions, cfg.seed)
        self.asked = Asked(
            bench, self.questions, self.form, prompt=cfg.prompt, batch_rows=cfg.batch_rows
        )
        self.x = self.asked.activations()

    def _texts(self, named: TableConfig | None, default: str) -> list[str]:
        table = named or TableConfig(id=default, max_rows=self.cfg.num_texts)
        rows = table_rows(
            table, ("text",), "train", world=self.bench.world, relative_to=self.bench.relative_to
        )
        texts = [str(row["text"]) for row in rows if str(row["text"]).strip()]
        return texts[: self.cfg.num_texts]

    # --- tables ----------------------------------------------------------------------------------

    def without_coder(self) -> list[Measurement]:
        """The difference of means, and what the model knows."""
        mean = {side: found.x.double().mean(0) for side, found in self._corpora().items()}
        direction = (mean["forget"] - mean["retain"]).float()
        direction = (direction / direction.norm().clamp_min(1e-12)).to(self.asked.device)
        centre = mean["retain"].float().to(self.asked.device)
        settings = [Setting(None, None, strength) for strength in self.cfg.strengths]
        right = []
        for setting in settings:
            deltas = [
                -setting.multiplier * ((x - centre) @ direction)[:, None] * direction
                for x in self.x
            ]
            right.append(self.asked.is_right(deltas))
        table = Table(settings, torch.stack(right), self.is_forget, self.half)
        share = _share(len(self.questions) / self.num_asked, self.num_asked)
        answered = KNOWN.row(share, form=self.form)
        return [*self._scores(table, "difference_in_means_"), answered]

    def of_coder(self, coder: SparseCoder[Any], shared: list[Measurement]) -> list[Measurement]:
        """All rows of a coder: its own, then those it shares with others."""
        found = {side: frequencies(coder, own) for side, own in self._corpora().items()}
        share, retain = found["forget"].share, found["retain"].share
        selected = {
            (threshold, num): tuple(select_latents(share, retain, threshold, num))
            for threshold in self.cfg.retain_thresholds
            for num in self.cfg.num_latents
        }
        alive = (share > 0).nonzero()[:, 0]
        order = torch.randperm(len(alive), generator=torch.Generator().manual_seed(self.cfg.seed))
        drawn = {num: tuple(alive[order[:num]].tolist()) for num in self.cfg.num_latents}
        used = sorted({i for own in [*selected.values(), *drawn.values()] for i in own})
        clamps = Clamps(coder, used, self.asked, self.x)
        length = coder.W_dec.detach().norm(dim=1).cpu().clamp_min(1e-12)
        units: dict[Unit, Tensor] = {"decoder_norm": 1 / length, "mean_on": found["forget"].mean_on}

        def grid(multipliers: Iterable[float]) -> list[Setting]:
            return [
                Setting(threshold, num, multiplier, latents)
                for (threshold, num), latents in selected.items()
                for multiplier in multipliers
            ]

        tables = {"": self._table(clamps, grid(self.cfg.multipliers), units["decoder_norm"])}
        if self.cfg.mean_on_multipliers:
            settings = grid(self.cfg.mean_on_multipliers)
            tables["mean_on_"] = self._table(clamps, settings, units["mean_on"])
        settings = [
            Setting(None, num, multiplier, latents)
            for num, latents in drawn.items()
            for multiplier in self.cfg.multipliers
        ]
        tables["random_latents_"] = self._table(clamps, settings, units["decoder_norm"])
        rows = [row for name, table in tables.items() for row in self._scores(table, name)]
        if not self.cfg.mean_on_multipliers:
            missing = Estimate(None, reason="mean_on_multipliers is empty")
            rows += [SCORE[f"mean_on_{how}"].row(missing) for how in HOW]
        rows += shared + self._accuracies(tables[""])
        for name, unit in (("", "decoder_norm"), ("mean_on_", "mean_on")):
            rows += self._whole(tables[name], unit) if name in tables else []
        return rows

    def _corpora(self) -> Mapping[str, TextActivations]:
        return {"forget": self.forget, "retain": self.retain}

    def _table(
        self, clamps: Clamps, settings: list[Setting], unit: Float[Tensor, " d_sae"]
    ) -> Table:
        right = [clamps.is_right(setting, unit) for setting in settings]
        return Table(settings, torch.stack(right), self.is_forget, self.half)

    # --- rows ------------------------------------------------------------------------------------

    def _scores(self, table: Table, grid: str) -> list[Measurement]:
        whole = self._row(table, grid + "best_of_grid", None, None)
        return [whole, self._row(table, grid + "chosen_on_half", 0, 1)]

    def _row(
        self, table: Table, definition: str, choose: int | None, report: int | None
    ) -> Measurement:
        best = self._best(table, choose)
        n = table.num("forget", report)
        if n == 0:
            reason = "no question is in the half that is reported"
            return SCORE[definition].row(Estimate(None, reason=reason))
        value = 0.0 if best is None else 1 - table.accuracies("forget", report)[best]
        chosen = {} if best is None else _told(table.settings[best])
        return SCORE[definition].row(
            _share(value, n),
            form=self.form,
            settings=len(table.settings),
            is_any_fine=best is not None,
            **chosen,
        )

    def _best(self, table: Table, half: int | None) -> int | None:
        if table.num("forget", half) == 0 or table.num("retain", half) == 0:
            return None
        return qualifying(
            table.accuracies("forget", half),
            table.accuracies("retain", half),
            self.cfg.retain_accuracy,
        )

    def _accuracies(self, table: Table) -> list[Measurement]:
        """On the reported half, under the setting chosen on the other."""
        best = self._best(table, 0)
        rows = []
        for side in ("forget", "retain"):
            definition, n = ACCURACY[side, "chosen_on_half"], table.num(side, 1)
            if best is None or n == 0:
                reason = "no setting keeps the accuracy on retain" if n else "there is no question"
                rows.append(definition.row(Estimate(None, n=n, unit="questions", reason=reason)))
                continue
            estimate = _share(table.accuracies(side, 1)[best], n)
            rows.append(definition.row(estimate, **_told(table.settings[best])))
        return rows

    def _whole(self, table: Table, unit: str) -> list[Measurement]:
        rows = []
        for side in ("forget", "retain"):
            for setting, value in zip(table.settings, table.accuracies(side), strict=True):
                estimate = _share(value, table.num(side))
                rows.append(
                    ACCURACY[side, "setting_of_one"].row(estimate, unit=unit, **_told(setting))
                )
        return rows


def _told(setting: Setting) -> dict[str, Any]:
    """A setting as parameters of a row."""
    found: dict[str, Any] = {"multiplier": setting.multiplier}
    if setting.threshold is not None:
        found["retain_threshold"] = setting.threshold
    if setting.num_latents is not None:
        found |= {"num_latents": setting.num_latents, "selected": len(setting.latents)}
    return found


def _share(value: float, n: int) -> Estimate:
    return Estimate(value, math.sqrt(value * (1 - value) / max(n - 1, 1)), n, "questions")
