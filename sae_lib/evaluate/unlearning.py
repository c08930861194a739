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

import hashlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from sae_lib.activations.task_tables import Row, TableConfig, table_files, table_rows
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate import _prompts
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.evaluate.reader import TextActivations
from sae_lib.papers import Paper
from sae_lib.saes.base import SparseCoder
from sae_lib.warehouse.rows import Measurement

Unit = Literal["decoder_norm", "mean_on"]
Form = Literal["letter", "completion"]

LETTERS = "ABCDEFGH"
FEWEST_QUESTIONS = 4
"""Questions of each side without which there is no score."""

WORLD_CORPORA = ("world:unlearning-forget", "world:unlearning-retain")
WORLD_QUESTIONS = "world:unlearning-questions"
WORLD_PROMPTS: dict[Form, str] = {
    "completion": "question : {question} answer :",
    "letter": "question : {question} {options} answer : (",
}
PROMPTS: dict[Form, str] = {
    "completion": "Question: {question}\nAnswer:",
    "letter": "{question}\n{options}\nAnswer: (",
}

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


def select_latents(
    forget: Float[Tensor, " d_sae"], retain: Float[Tensor, " d_sae"], threshold: float, num: int
) -> list[int]:
    """The ``num`` latents most often on in ``forget``, of those below ``threshold`` in ``retain``.

    Latents that are never on there are not selected; of equal ones the first comes first.
    """
    allowed = torch.where(retain < threshold, forget, 0.0)
    order = allowed.sort(descending=True, stable=True).indices
    return [int(i) for i in order[:num] if allowed[i] > 0]


def clamped(
    z: Float[Tensor, "*batch latents"], value: Float[Tensor, " latents"]
) -> Float[Tensor, "*batch latents"]:
    """``z`` with minus ``value`` wherever a latent is on; selected latents only."""
    return torch.where(z > 0, -value.to(z), z)


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


class Frequencies(NamedTuple):
    """How often latents are on in a corpus."""

    share: Float[Tensor, " d_sae"]
    """Of the tokens; float64."""
    mean_on: Float[Tensor, " d_sae"]
    """Mean over the tokens on which a latent is on; 0 where it never is."""


@torch.no_grad()
def frequencies(coder: SparseCoder[Any], found: TextActivations) -> Frequencies:
    """Statistics of all latents, a chunk of tokens at a time."""
    on = torch.zeros(coder.d_sae, dtype=torch.float64)
    total = torch.zeros(coder.d_sae, dtype=torch.float64)
    for _, rows in found.chunks(coder.d_sae):
        z = coder.encode(found.x[rows].to(coder.W_dec.device))
        on += (z > 0).sum(0).double().cpu()
        total += z.clamp_min(0).sum(0, dtype=torch.float64).cpu()
    return Frequencies(on / len(found.x), total / on.clamp_min(1))


class Question(NamedTuple):
    """A question with options."""

    text: str
    choices: tuple[str, ...]
    answer: int
    is_forget: bool
    group: str
    """What it is about: questions of one group are in one half."""


class Setting(NamedTuple):
    """One intervention of a grid."""

    threshold: float | None
    num_latents: int | None
    multiplier: float
    latents: tuple[int, ...] = ()


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


class _Options(NamedTuple):
    """Options that rows of a forward pass answer with."""

    number: list[int]
    """Place among all options of all questions."""
    row: Int[Tensor, " options"]
    token: Int[Tensor, "options longest"]
    """The option's tokens, padded on the left; its last is told by the row's last logits."""
    is_token: Bool[Tensor, "options longest"]


class _Batch(NamedTuple):
    """Prompts of one forward pass."""

    rows: list[int]
    padded: _prompts.PaddedPrompts
    keep: Bool[Tensor, "rows seq"]
    """Tokens that are changed: neither padding nor special."""
    options: _Options | None
    """None for letters."""


Deltas = Sequence[Float[Tensor, "tokens d_in"]]
"""For each batch what is added at the kept tokens."""


class _Asked:
    """Questions as the model reads them, and which options it takes."""

    def __init__(
        self, cfg: UnlearningConfig, bench: Bench, questions: Sequence[Question], form: Form
    ) -> None:
        self.model, self.site, self.form = bench.model, bench.site, form
        self.questions = list(questions)
        self.device = bench.model.device
        defaults = PROMPTS if bench.world is None else WORLD_PROMPTS
        self.template = cfg.prompt or defaults[form]
        self.on_world = bench.world is not None
        prompts = [_prompts.prompt_ids(self.model, self._text(q)) for q in questions]
        options: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        if form == "completion":
            # options that begin alike are told by one row, and all of one token by the prompt alone
            number = 0
            for question, prompt in zip(questions, prompts, strict=True):
                for choice in question.choices:
                    ids = _prompts.continuation_ids(self.model, self._text(question), choice)
                    options.setdefault((*prompt, *ids[:-1]), []).append((number, ids))
                    number += 1
            rows = [list(row) for row in options]
            self.num_values = number
        else:
            rows = prompts
            self.num_values = len(rows)
        special = torch.tensor(sorted(self.model.special_ids), dtype=torch.long)
        self.batches = []
        for chosen in _prompts.by_length([len(row) for row in rows], cfg.batch_rows):
            padded = _prompts.padded(self.model, [rows[i] for i in chosen])
            keep = padded.mask & ~torch.isin(padded.tokens, special)
            told = _told_by([options[tuple(rows[i])] for i in chosen]) if options else None
            self.batches.append(_Batch(chosen, padded, keep, told))

    def _text(self, question: Question) -> str:
        style, between = ("( {} ) {}", " ") if self.on_world else ("({}) {}", "\n")
        options = between.join(
            style.format(letter, choice)
            for letter, choice in zip(LETTERS, question.choices, strict=False)
        )
        return self.template.replace("{options}", options).replace("{question}", question.text)

    @torch.no_grad()
    def activations(self) -> list[Float[Tensor, "tokens d_in"]]:
        """At the kept tokens of each batch, float32."""
        found = []
        for batch in self.batches:
            at = self.model.capture(batch.padded.tokens, [self.site], mask=batch.padded.mask)
            x = at[self.site]
            found.append(x[batch.keep.to(x.device)].float())
        return found

    @torch.no_grad()
    def is_right(self, deltas: Deltas | None = None) -> Bool[Tensor, " questions"]:
        """Whether each question is answered right, with something added at the site or nothing."""
        scores: list[list[float]] = [[] for _ in range(self.num_values)]
        for i, batch in enumerate(self.batches):
            edits = {} if deltas is None else {self.site: _adding(batch.keep, deltas[i])}
            with self.model.intervene(edits):
                found = self._scores(batch)
            numbers = batch.rows if batch.options is None else batch.options.number
            for number, values in zip(numbers, found.tolist(), strict=True):
                scores[number] = values
        right, place = [], 0
        for i, question in enumerate(self.questions):
            num = len(question.choices)
            if self.form == "letter":
                own = scores[i][:num]
            else:
                own = [value for values in scores[place : place + num] for value in values]
            place += num
            right.append(max(range(num), key=own.__getitem__) == question.answer)
        return torch.tensor(right)

    def _scores(self, batch: _Batch) -> Float[Tensor, "values options"]:
        """Log-probabilities: of each option in a row of its own, or of every letter."""
        options = batch.options
        if options is not None:
            longest = options.token.shape[1]
            found = _prompts.end_logits(self.model, batch.padded, longest).log_softmax(-1)
            where = options.row[:, None], torch.arange(longest)[None], options.token
            own = found[tuple(part.to(found.device) for part in where)]
            return own.masked_fill(~options.is_token.to(own.device), 0.0).sum(1, keepdim=True)
        logits = _prompts.end_logits(self.model, batch.padded, 1)[:, 0]
        spelled = [
            [_prompts.token_ids(self.model, text)[-1] for text in (letter, f" {letter}")]
            for letter in LETTERS
        ]
        return logits.log_softmax(-1)[:, torch.tensor(spelled, device=logits.device)].amax(-1)


def _told_by(by_row: Sequence[Sequence[tuple[int, list[int]]]]) -> _Options:
    """The options of each row, with their numbers."""
    flat = [(row, number, ids) for row, own in enumerate(by_row) for number, ids in own]
    longest = max(len(ids) for _, _, ids in flat)
    token = torch.zeros(len(flat), longest, dtype=torch.long)
    is_token = torch.zeros(len(flat), longest, dtype=torch.bool)
    for i, (_, _, ids) in enumerate(flat):
        token[i, longest - len(ids) :] = torch.tensor(ids)
        is_token[i, longest - len(ids) :] = True
    row = torch.tensor([row for row, _, _ in flat])
    return _Options([number for _, number, _ in flat], row, token, is_token)


def _adding(
    keep: Bool[Tensor, "rows seq"], delta: Float[Tensor, "tokens d_in"]
) -> Callable[[Tensor], Tensor]:
    def edit(x: Tensor) -> Tensor:
        where = keep.to(x.device)
        moved = x.clone()
        moved[where] = (x[where].float() + delta.to(x.device)).to(x)
        return moved

    return edit


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
        asked = self._questions()
        known = self._known(asked)
        self.num_asked = len(asked)
        self.questions = [question for question, fine in zip(asked, known, strict=True) if fine]
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
        self.half = _halves(self.questions, cfg.seed)
        self.asked = _Asked(cfg, bench, self.questions, self.form)
        self.x = self.asked.activations()

    def _texts(self, named: TableConfig | None, default: str) -> list[str]:
        table = named or TableConfig(id=default, max_rows=self.cfg.num_texts)
        rows = self._rows(table, ("text",), "train")
        texts = [str(row["text"]) for row in rows if str(row["text"]).strip()]
        return texts[: self.cfg.num_texts]

    def _rows(self, table: TableConfig, wanted: Sequence[str], split: Any) -> list[Row]:
        return table_rows(
            table, wanted, split, world=self.bench.world, relative_to=self.bench.relative_to
        )

    def _questions(self) -> list[Question]:
        most = self.cfg.num_questions
        found: list[Question] = []
        for is_forget, tables in (
            (True, self.cfg.forget_questions),
            (False, self.cfg.retain_questions),
        ):
            own = [
                _question(row, is_forget, str(row["question"]), table)
                for table in tables
                for row in self._rows(table, ("question", "choices", "answer"), "test")
            ]
            if not tables:
                table = TableConfig(id=WORLD_QUESTIONS, max_rows=4 * most)
                wanted = ("question", "choices", "answer", "domain", "entity")
                own = [
                    _question(row, is_forget, str(row["entity"]), table)
                    for row in self._rows(table, wanted, "test")
                    if row["domain"] == ("forget" if is_forget else "retain")
                ]
            # spread over tables, the same ones every time
            found += sorted(own, key=lambda q: _hash(f"{self.cfg.seed} {q.text} {q.choices}"))[
                :most
            ]
        return found

    def _known(self, asked: Sequence[Question]) -> list[bool]:
        """Whether the unmodified model is right in all orders of the options."""
        if not asked or self.form == "completion":
            return (
                _Asked(self.cfg, self.bench, asked, self.form).is_right().tolist() if asked else []
            )
        reordered, of = [], []
        for i, question in enumerate(asked):
            for order in permutations(range(len(question.choices))):
                choices = tuple(question.choices[place] for place in order)
                answer = order.index(question.answer)
                reordered.append(question._replace(choices=choices, answer=answer))
                of.append(i)
        right = _Asked(self.cfg, self.bench, reordered, self.form).is_right().tolist()
        known = [True] * len(asked)
        for i, fine in zip(of, right, strict=True):
            known[i] &= fine
        return known

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
        share = len(self.questions) / self.num_asked
        error = math.sqrt(share * (1 - share) / max(self.num_asked - 1, 1))
        known = KNOWN.row(Estimate(share, error, self.num_asked, "questions"), form=self.form)
        return [*self._scores(table, "difference_in_means_"), known]

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
        clamps = _Clamps(coder, used, self.asked, self.x)
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
        self, clamps: "_Clamps", settings: list[Setting], unit: Float[Tensor, " d_sae"]
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
        error = math.sqrt(value * (1 - value) / max(n - 1, 1))
        chosen = {} if best is None else _told(table.settings[best])
        return SCORE[definition].row(
            Estimate(value, error, n, "questions"),
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


class _Clamps:
    """The codes of some latents on the questions, and what clamping them does."""

    @torch.no_grad()
    def __init__(
        self, coder: SparseCoder[Any], used: Sequence[int], asked: _Asked, x: Deltas
    ) -> None:
        self.asked, self.place = asked, {latent: i for i, latent in enumerate(used)}
        device, columns = coder.W_dec.device, torch.tensor(used, dtype=torch.long)
        self.rows = coder.W_dec.detach()[columns.to(device)]
        self.z = [
            torch.cat(
                [coder.encode(part.to(device))[:, columns.to(device)] for part in own.split(2048)]
            )
            for own in x
        ]
        self.known: dict[tuple[Any, ...], Tensor] = {}

    def is_right(
        self, setting: Setting, unit: Float[Tensor, " d_sae"]
    ) -> Bool[Tensor, " questions"]:
        """Which questions are right; equal interventions are made once."""
        latents = torch.tensor(sorted(setting.latents), dtype=torch.long)
        value = setting.multiplier * unit[latents]
        key = tuple(latents.tolist()), tuple(value.tolist())
        if key not in self.known:
            columns = torch.tensor([self.place[i] for i in latents.tolist()], dtype=torch.long)
            columns = columns.to(self.rows.device)
            deltas = []
            for own in self.z:
                z = own[:, columns]
                moved = clamped(z, value.to(z)) - z
                deltas.append((moved @ self.rows[columns]).to(self.asked.device))
            self.known[key] = self.asked.is_right(deltas)
        return self.known[key]


def _question(row: Row, is_forget: bool, group: str, table: TableConfig) -> Question:
    choices = row["choices"]
    if isinstance(choices, str) or not 2 <= len(choices) <= len(LETTERS):
        raise BadInput(
            f"choices must be a list of 2 to {len(LETTERS)} texts.",
            key=f"{table.id}: choices",
            value=choices,
        )
    given = row["answer"]
    if isinstance(given, str) and given.strip() in LETTERS[: len(choices)] and given.strip():
        answer = LETTERS.index(given.strip())
    elif str(given).isdecimal() and int(given) < len(choices):
        answer = int(given)
    else:
        raise BadInput(
            f"the answer must be the place of one of {len(choices)} choices, from 0, or its"
            " letter.",
            key=f"{table.id}: answer",
            value=given,
        )
    return Question(str(row["question"]), tuple(map(str, choices)), answer, is_forget, group)


def _halves(questions: Sequence[Question], seed: int) -> Int[Tensor, " questions"]:
    """0 or 1 by group, so that of each side every other group is in either half."""
    half: dict[tuple[bool, str], int] = {}
    for side in (True, False):
        groups = sorted(
            {question.group for question in questions if question.is_forget == side},
            key=lambda group: _hash(f"{seed} {group}"),
        )
        half |= {(side, group): place % 2 for place, group in enumerate(groups)}
    return torch.tensor([half[question.is_forget, question.group] for question in questions])


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


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
