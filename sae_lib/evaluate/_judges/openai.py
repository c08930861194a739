"""A judge behind any endpoint that speaks the protocol of OpenAI's chat completions.

How it is asked, tried again and kept is that of `sae_lib.llm`: a metric that is computed again
costs nothing and gives the same numbers. A reply that cannot be read is asked for once more, with
what is wrong with it; after that it counts as unreadable.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import Field

from sae_lib.errors import NotApplicable
from sae_lib.evaluate._judges import prompts
from sae_lib.evaluate._judges.base import (
    Asked,
    Description,
    Excerpt,
    Judge,
    JudgeConfig,
    Scores,
    Sets,
)
from sae_lib.evaluate._judges.prompts import Prompt
from sae_lib.llm.answers import Unreadable, ask_for
from sae_lib.llm.base import Question
from sae_lib.llm.endpoint import Endpoint, EndpointConfig, EndpointFailed, NoAnswer
from sae_lib.llm.pace import Clock

__all__ = ["EndpointFailed", "OpenAIConfig", "OpenAIJudge"]

Value = TypeVar("Value")


class OpenAIConfig(EndpointConfig, JudgeConfig):
    """Judge by a language model behind an OpenAI-compatible endpoint."""

    kind: Literal["openai"] = "openai"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    embedding_model: str | None = None
    """Model that the endpoint serves at /embeddings; None: no embedding scores."""

    windows_per_prompt: int = Field(default=5, gt=0)
    """Windows that are judged in one prompt, in detection and fuzzing."""

    def start(self, bench: Any) -> Judge:
        return OpenAIJudge(self, self.folder)


class OpenAIJudge(Judge):
    """Asks the endpoint; ``endpoint.account`` counts what was really sent."""

    is_graded = False

    def __init__(
        self, cfg: OpenAIConfig, folder: Path | None, *, clock: Clock | None = None
    ) -> None:
        self.cfg = cfg
        self.endpoint = Endpoint(cfg, folder, clock=clock)

    def select(self, asked: Sequence[Asked]) -> list[list[bool] | None]:
        return self._ask(
            [prompts.selection_prompt(*request) for request in asked],
            [partial(prompts.read_selection, num=len(request.excerpts)) for request in asked],
        )

    def detect(self, asked: Sequence[Asked]) -> Scores:
        return self._in_batches(asked, prompts.detection_prompt)

    def fuzz(self, asked: Sequence[Asked]) -> Scores:
        return self._in_batches(asked, prompts.fuzzing_prompt)

    def simulate(self, asked: Sequence[Asked]) -> list[list[list[float] | None]]:
        flat = [(request.description, e) for request in asked for e in request.excerpts]
        replies = iter(
            self._ask(
                [prompts.simulation_prompt(d, e) for d, e in flat],
                [
                    partial(prompts.read_numbers, num=len(e.tokens), largest=prompts.MAX_LEVEL)
                    for _, e in flat
                ],
            )
        )
        return [[next(replies) for _ in request.excerpts] for request in asked]

    def resemble(self, asked: Sequence[Asked]) -> Scores:
        if self.cfg.embedding_model is None:
            raise NotApplicable("embedding", "no embedding_model is given for the endpoint.")
        texts = [[a.description.text, *(e.text for e in a.excerpts)] for a in asked]
        return [
            [None] * (len(own) - 1)
            if vectors is None
            else [_cosine(vectors[0], vector) for vector in vectors[1:]]
            for own, vectors in zip(texts, self._embed(texts), strict=True)
        ]

    def intrude(self, groups: Sequence[Sequence[Excerpt]]) -> list[int | None]:
        return self._ask(
            [prompts.intruder_prompt(group) for group in groups],
            [partial(prompts.read_choice, num=len(group)) for group in groups],
        )

    def match(self, asked: Sequence[Sets]) -> list[int | None]:
        return self._ask(
            [prompts.matching_prompt(*request) for request in asked],
            [partial(prompts.read_choice, num=len(request.sets)) for request in asked],
        )

    def write(
        self, descriptions: Sequence[Description], num: int, *, fitting: bool
    ) -> list[list[str] | None]:
        return self._texts(
            [prompts.writing_prompt(d, num, fitting=fitting) for d in descriptions], num
        )

    def continue_like(self, examples: Sequence[Sequence[str]], num: int) -> list[list[str] | None]:
        return self._texts([prompts.similar_prompt(texts, num) for texts in examples], num)

    def _texts(self, asked: list[Prompt], num: int) -> list[list[str] | None]:
        return self._ask(asked, [partial(prompts.read_texts, num=num)] * len(asked))

    def _in_batches(
        self,
        asked: Sequence[Asked],
        prompt_of: Callable[[Description, Sequence[Excerpt]], Prompt],
    ) -> Scores:
        size = self.cfg.windows_per_prompt
        batches = [
            [
                (a.description, a.excerpts[low : low + size])
                for low in range(0, len(a.excerpts), size)
            ]
            for a in asked
        ]
        flat = [batch for own in batches for batch in own]
        bits = iter(
            self._ask(
                [prompt_of(*batch) for batch in flat],
                [partial(prompts.read_bits, num=len(excerpts)) for _, excerpts in flat],
            )
        )
        found: Scores = []
        for own in batches:
            scores: list[float | None] = []
            for _, excerpts in own:
                read = next(bits)
                scores += [None] * len(excerpts) if read is None else read
            found.append(scores)
        return found

    def _ask(
        self, asked: Sequence[Prompt], read: Sequence[Callable[[str], Value | None]]
    ) -> list[Value | None]:
        """What each reply says; None where it was empty, refused, cut off or malformed."""
        questions = [Question.of(prompt.system, prompt.user) for prompt in asked]
        found = ask_for(self.endpoint, questions, [_strictly(reader) for reader in read])
        return [answer.value for answer in found]

    def _embed(self, texts: Sequence[list[str]]) -> list[list[list[float]] | None]:
        model = self.cfg.embedding_model
        bodies = [{"model": model, "input": own} for own in texts]
        answers = self.endpoint.post("embeddings", bodies, _has_vectors)
        return [
            None if isinstance(answer, NoAnswer) else _vectors(answer, len(own))
            for answer, own in zip(answers, texts, strict=True)
        ]


def _strictly(read: Callable[[str], Value | None]) -> Callable[[str], Value]:
    """A reader that says so where a reply does not answer the question."""

    def strict(text: str) -> Value:
        found = read(text)
        if found is None:
            raise Unreadable("wrong form: it is not what was asked for")
        return found

    return strict


def _has_vectors(answer: dict[str, Any]) -> bool:
    return isinstance(answer.get("data"), list)


def _vectors(answer: dict[str, Any], num: int) -> list[list[float]] | None:
    try:
        rows = sorted(answer["data"], key=lambda row: row["index"])
        found = [[float(value) for value in row["embedding"]] for row in rows]
    except (KeyError, TypeError, ValueError):
        return None
    return found if len(found) == num else None


def _cosine(one: list[float], other: list[float]) -> float | None:
    length = math.hypot(*one) * math.hypot(*other)
    if len(one) != len(other) or length == 0:
        return None
    return sum(a * b for a, b in zip(one, other, strict=True)) / length
