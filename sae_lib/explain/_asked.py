"""What methods that ask a language model have in common: which latents, and how answers are read.

What a model is shown comes from a corpus and may say anything. So it is shown as data
(`sae_lib.llm.quoting`), and of the reply one JSON object with two short fields is taken or nothing:
text in an example can at most make the words of its own latent's explanation worse.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from sae_lib.errors import NotApplicable
from sae_lib.explain.base import Evidence, ExplainerConfig
from sae_lib.llm import Answer, AnyChat, ChatModel, Question, ask_for, json_reader
from sae_lib.llm.quoting import one_line
from sae_lib.warehouse.rows import ExplanationRow

NO_ANSWER = "no_answer"
"""``score_definition`` of a row that says only why there is no explanation."""

NOTHING_CLEAR = "no clear concept"
"""What a model says where it finds nothing in common."""

_LONGEST = 300
_LONGEST_WORD = 40
_MOST_WORDS = 10
_IN_LABEL = 60

FORM = (
    'Reply with one JSON object and nothing else: {"explanation": "...", "keywords": ["...", ...]}.'
    f" The explanation is one phrase of at most 20 words; if you find nothing in common, it is"
    f' "{NOTHING_CLEAR}" and there are no keywords. Keywords are up to {_MOST_WORDS} single words,'
    " the most telling first."
)
"""The end of every instruction."""


class Said(BaseModel):
    """The only form in which a reply is taken."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    explanation: Annotated[str, Field(min_length=1, max_length=_LONGEST, pattern=r"\S")]
    keywords: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=_LONGEST_WORD)]],
        Field(max_length=_MOST_WORDS),
    ]


class AskingConfig(ExplainerConfig):
    """Which model is asked, and about which latents."""

    asks: ClassVar[bool] = True
    """Whether latents cost money: whoever needs only some should name them in ``latents``."""

    chat: AnyChat
    """The model: ``base_url``, ``model``, ``api_key_env`` and more of an OpenAI-compatible
    endpoint, or ``kind: local`` and a model of Hugging Face."""

    max_latents: int = Field(default=200, gt=0)
    """Latents that are explained, at most; each costs one question, or two."""

    pick: Literal["strongest", "most_frequent", "random"] = "random"
    """Which latents, where there are more: by largest activation, by density, or by chance."""

    latents: tuple[int, ...] | None = None
    """Latents to explain; None leaves the choice to ``pick``."""

    seed: int = Field(default=0, ge=0)
    """Of whatever is drawn here; what the endpoint draws has a seed of its own in ``chat``."""

    def chosen(self, evidence: Evidence) -> list[int]:
        """The latents to ask about, ascending."""
        alive = evidence.alive
        if self.latents is not None:
            alive = sorted(set(alive) & set(self.latents))
        if len(alive) <= self.max_latents:
            return alive
        if self.pick == "random":
            drawn = np.random.default_rng(self.seed).permutation(len(alive))[: self.max_latents]
            return sorted(alive[i] for i in drawn.tolist())
        statistics = evidence.statistics
        by = statistics.max_activation if self.pick == "strongest" else statistics.density
        values: list[float] = by[alive].tolist()
        order = sorted(range(len(alive)), key=lambda i: (-values[i], alive[i]))
        return sorted(alive[i] for i in order[: self.max_latents])

    def open_chat(self, evidence: Evidence) -> ChatModel:
        """The model that is asked."""
        return self.chat.open(device=str(evidence.model.device))

    def ask(self, evidence: Evidence, questions: Mapping[int, Question]) -> list[ExplanationRow]:
        """One row per latent that there is a question about, in their order."""
        if not questions:
            return []
        chat = self.open_chat(evidence)
        reader = json_reader(Said)
        answers = ask_for(chat, list(questions.values()), [reader] * len(questions))
        if all(answer.value is None for answer in answers):
            reasons = [answer.reason or "" for answer in answers]
            raise NotApplicable(
                self.method,
                f"the model gave no usable answer about any of {len(answers)} latents; most often:"
                f" {max(set(reasons), key=reasons.count)}",
            )
        return [
            row_of(latent, self.method, answer)
            for latent, answer in zip(questions, answers, strict=True)
        ]

    def label(self, row: ExplanationRow) -> str | None:
        if row.score_definition == NO_ANSWER or row.text == NOTHING_CLEAR:
            return None
        return row.text if len(row.text) <= _IN_LABEL else f"{row.text[: _IN_LABEL - 1].rstrip()}…"


def row_of(latent: int, method: str, answer: Answer[Said]) -> ExplanationRow:
    """An answer as a row; without one the row says why, and has no keywords."""
    if answer.value is None:
        reason = one_line(answer.reason or "unreadable")[:_LONGEST]
        return ExplanationRow(latent, method, f"no answer: {reason}", [], [], None, NO_ANSWER)
    text = " ".join(one_line(answer.value.explanation).split()).rstrip(".")
    words = list(
        dict.fromkeys(
            word for given in answer.value.keywords if (word := " ".join(one_line(given).split()))
        )
    )
    if text.lower() == NOTHING_CLEAR or not text:
        return ExplanationRow(latent, method, NOTHING_CLEAR, [], [])
    return ExplanationRow(latent, method, text, words, falling(len(words)))


def falling(num: int) -> list[float]:
    """Scores of keywords of which only the order is known: 1, then falling by equal steps."""
    return [1 - i / num for i in range(num)]


def level(activation: float, largest: float) -> int:
    """Activation on the scale from 0 to 10, rounded up, so that only silence is 0."""
    return max(0, min(10, math.ceil(10 * activation / largest))) if largest > 0 else 0


def words_and_levels(
    tokens: Sequence[str], activations: Sequence[float], largest: float, most: int
) -> list[list[str | int]]:
    """The strongest tokens of a text with their levels, in the order of the text."""
    active = [i for i, value in enumerate(activations) if value > 0]
    strongest = sorted(active, key=lambda i: (-activations[i], i))[:most]
    return [
        [one_line(tokens[i].strip()), level(activations[i], largest)] for i in sorted(strongest)
    ]
