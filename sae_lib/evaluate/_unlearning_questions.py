"""Questions with options about what is to be forgotten and what is to be kept, put to the model.

``letter``: options are listed and the answer is the most probable letter. ``completion``: options
are not listed, and the answer is the one with the highest log-probability of following the
question. Something may be added to the activations at every token but special ones.
"""

import hashlib
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.activations.task_tables import Row, TableConfig, table_rows
from sae_lib.errors import BadInput
from sae_lib.evaluate import _prompts
from sae_lib.evaluate.bench import Bench

Form = Literal["letter", "completion"]

LETTERS = "ABCDEFGH"
WORLD_QUESTIONS = "world:unlearning-questions"
WORLD_PROMPTS: dict[Form, str] = {
    "completion": "question : {question} answer :",
    "letter": "question : {question} {options} answer : (",
}
PROMPTS: dict[Form, str] = {
    "completion": "Question: {question}\nAnswer:",
    "letter": "{question}\n{options}\nAnswer: (",
}


class Question(NamedTuple):
    """A question with options."""

    text: str
    choices: tuple[str, ...]
    answer: int
    is_forget: bool
    group: str
    """What it is about: questions of one group are in one half."""


def read_questions(
    bench: Bench,
    forget: Sequence[TableConfig],
    retain: Sequence[TableConfig],
    *,
    most: int,
    seed: int,
) -> list[Question]:
    """At most ``most`` questions of each side; of a side without tables, the world's."""

    def rows(table: TableConfig, *more: str) -> list[Row]:
        wanted = ("question", "choices", "answer", *more)
        return table_rows(table, wanted, "test", world=bench.world, relative_to=bench.relative_to)

    found: list[Question] = []
    for is_forget, tables in ((True, forget), (False, retain)):
        own = [
            question_of(row, is_forget, str(row["question"]), table)
            for table in tables
            for row in rows(table)
        ]
        if not tables:
            table = TableConfig(id=WORLD_QUESTIONS, max_rows=4 * most)
            own = [
                question_of(row, is_forget, str(row["entity"]), table)
                for row in rows(table, "domain", "entity")
                if row["domain"] == ("forget" if is_forget else "retain")
            ]
        # spread over tables, the same ones every time
        found += sorted(own, key=lambda q: _hash(f"{seed} {q.text} {q.choices}"))[:most]
    return found


def question_of(row: Row, is_forget: bool, group: str, table: TableConfig) -> Question:
    """What a row of a table asks; its answer is the place of a choice, from 0, or a letter."""
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


def halves(questions: Sequence[Question], seed: int) -> Int[Tensor, " questions"]:
    """0 or 1 by group, so that of each side every other group is in either half."""
    half: dict[tuple[bool, str], int] = {}
    for side in (True, False):
        groups = sorted(
            {question.group for question in questions if question.is_forget == side},
            key=lambda group: _hash(f"{seed} {group}"),
        )
        half |= {(side, group): place % 2 for place, group in enumerate(groups)}
    return torch.tensor([half[question.is_forget, question.group] for question in questions])


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


class Asked:
    """Questions as the model reads them, and which options it takes."""

    def __init__(
        self,
        bench: Bench,
        questions: Sequence[Question],
        form: Form,
        *,
        prompt: str | None,
        batch_rows: int,
    ) -> None:
        self.model, self.site, self.form = bench.model, bench.site, form
        self.questions = list(questions)
        self.device = bench.model.device
        defaults = PROMPTS if bench.world is None else WORLD_PROMPTS
        self.template = prompt or defaults[form]
        self.on_world = bench.world is not None
        ids_of = [_prompts.prompt_ids(self.model, self._text(q)) for q in questions]
        options: dict[tuple[int, ...], list[tuple[int, list[int]]]] = {}
        if form == "completion":
            # options that begin alike are told by one row, and all of one token by the prompt alone
            number = 0
            for question, before in zip(questions, ids_of, strict=True):
                for choice in question.choices:
                    ids = _prompts.continuation_ids(self.model, self._text(question), choice)
                    options.setdefault((*before, *ids[:-1]), []).append((number, ids))
                    number += 1
            rows = [list(row) for row in options]
            self.num_values = number
        else:
            rows = ids_of
            self.num_values = len(rows)
        special = torch.tensor(sorted(self.model.special_ids), dtype=torch.long)
        self.batches = []
        for chosen in _prompts.by_length([len(row) for row in rows], batch_rows):
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


def known(
    bench: Bench, asked: Sequence[Question], form: Form, *, prompt: str | None, batch_rows: int
) -> list[bool]:
    """Whether the unmodified model is right in all orders of the options."""
    if not asked:
        return []
    if form == "completion":
        return Asked(bench, asked, form, prompt=prompt, batch_rows=batch_rows).is_right().tolist()
    reordered, of = [], []
    for i, question in enumerate(asked):
        for order in permutations(range(len(question.choices))):
            choices = tuple(question.choices[place] for place in order)
            answer = order.index(question.answer)
            reordered.append(question._replace(choices=choices, answer=answer))
            of.append(i)
    right = Asked(bench, reordered, form, prompt=prompt, batch_rows=batch_rows).is_right().tolist()
    found = [True] * len(asked)
    for i, fine in zip(of, right, strict=True):
        found[i] &= fine
    return found


def _hash(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()
