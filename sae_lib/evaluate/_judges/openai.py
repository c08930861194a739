"""A judge behind any endpoint that speaks the protocol of OpenAI's chat completions.

Replies are kept on disk by the hash of what was asked (model, messages, parameters), so a metric
that is computed again costs nothing and gives the same numbers. The key comes from an environment
variable, and is neither stored nor part of the hash. Temporary failures (429, 5xx, time-outs,
broken connections) are tried again after growing pauses; a reply that cannot be read, or that was
cut off, counts as unreadable. Any other failure ends the metric with the server's message.
"""

import hashlib
import json
import math
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Lock
from typing import Any, Literal

from pydantic import Field

from sae_lib.artifacts import write_atomically
from sae_lib.config import canonical_json
from sae_lib.errors import BadInput, NotApplicable, SaeError
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

_RETRIED = {408, 409, 429, 500, 502, 503, 504}
_LONGEST_PAUSE = 60.0


class OpenAIConfig(JudgeConfig):
    """Judge by a language model behind an OpenAI-compatible endpoint."""

    kind: Literal["openai"] = "openai"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    base_url: str = Field(default="https://api.openai.com/v1", pattern=r"^https?://")
    """Address up to, not including, /chat/completions."""

    model: str = Field(min_length=1)
    """Model that the endpoint serves."""

    embedding_model: str | None = None
    """Model that the endpoint serves at /embeddings; None: no embedding scores."""

    api_key_variable: str | None = "OPENAI_API_KEY"
    """Environment variable with the key; None for a server that wants none."""

    temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature."""

    max_reply_tokens: int = Field(default=1000, gt=0)
    """Longest reply."""

    windows_per_prompt: int = Field(default=5, gt=0)
    """Windows that are judged in one prompt, in detection and fuzzing."""

    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds without an answer after which a request has failed."""

    num_retries: int = Field(default=5, ge=0)
    """Further tries of a request that failed for a while."""

    first_pause_s: float = Field(default=1.0, ge=0)
    """Seconds before the first further try; each pause is twice the one before."""

    num_at_once: int = Field(default=8, gt=0)
    """Requests under way at the same time."""

    most_requests: int = Field(default=100_000, gt=0)
    """Requests that may be sent in all, those answered from disk not counted."""

    cache: str | None = "judge-replies"
    """Folder for replies, below the experiment's; None keeps none."""

    def start(self, bench: Any) -> Judge:
        folder = (bench.relative_to or Path()) / self.cache if self.cache else None
        return OpenAIJudge(self, folder)


class EndpointFailed(SaeError):
    """The endpoint refused a request, or kept failing."""


class OpenAIJudge(Judge):
    """Asks the endpoint; ``num_requests`` counts what was really sent."""

    is_graded = False

    def __init__(
        self, cfg: OpenAIConfig, folder: Path | None, *, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.cfg, self.folder, self.pause = cfg, folder, pause
        self.num_requests = 0
        self._counting = Lock()
        self._key = None
        if cfg.api_key_variable is not None:
            self._key = os.environ.get(cfg.api_key_variable)
            if not self._key:
                raise BadInput(
                    "this environment variable is not set; set it to the key of the endpoint, or"
                    " give null for an endpoint that wants none.",
                    key="judge.api_key_variable",
                    value=cfg.api_key_variable,
                )

    def select(self, asked: Sequence[Asked]) -> list[list[bool] | None]:
        replies = self._ask([prompts.selection_prompt(*request) for request in asked])
        return [
            None if reply is None else prompts.read_selection(reply, len(request.excerpts))
            for reply, request in zip(replies, asked, strict=True)
        ]

    def detect(self, asked: Sequence[Asked]) -> Scores:
        return self._in_batches(asked, prompts.detection_prompt)

    def fuzz(self, asked: Sequence[Asked]) -> Scores:
        return self._in_batches(asked, prompts.fuzzing_prompt)

    def simulate(self, asked: Sequence[Asked]) -> list[list[list[float] | None]]:
        flat = [(request.description, e) for request in asked for e in request.excerpts]
        replies = iter(self._ask([prompts.simulation_prompt(d, e) for d, e in flat]))
        return [
            [
                None
                if (reply := next(replies)) is None
                else prompts.read_numbers(reply, len(e.tokens), prompts.MAX_LEVEL)
                for e in request.excerpts
            ]
            for request in asked
        ]

    def resemble(self, asked: Sequence[Asked]) -> Scores:
        if self.cfg.embedding_model is None:
            raise NotApplicable("embedding", "no embedding_model is given for the endpoint.")
        texts = [[a.description.text, *(e.text for e in a.excerpts)] for a in asked]
        found = self._at_once(self._embed, texts)
        return [
            [None] * (len(own) - 1)
            if vectors is None
            else [_cosine(vectors[0], vector) for vector in vectors[1:]]
            for own, vectors in zip(texts, found, strict=True)
        ]

    def intrude(self, groups: Sequence[Sequence[Excerpt]]) -> list[int | None]:
        replies = self._ask([prompts.intruder_prompt(group) for group in groups])
        return [
            None if reply is None else prompts.read_choice(reply, len(group))
            for reply, group in zip(replies, groups, strict=True)
        ]

    def match(self, asked: Sequence[Sets]) -> list[int | None]:
        replies = self._ask([prompts.matching_prompt(*request) for request in asked])
        return [
            None if reply is None else prompts.read_choice(reply, len(request.sets))
            for reply, request in zip(replies, asked, strict=True)
        ]

    def write(
        self, descriptions: Sequence[Description], num: int, *, fitting: bool
    ) -> list[list[str] | None]:
        return self._texts(
            [prompts.writing_prompt(d, num, fitting=fitting) for d in descriptions], num
        )

    def continue_like(self, examples: Sequence[Sequence[str]], num: int) -> list[list[str] | None]:
        return self._texts([prompts.similar_prompt(texts, num) for texts in examples], num)

    def _texts(self, asked: list[Prompt], num: int) -> list[list[str] | None]:
        return [
            None if reply is None else prompts.read_texts(reply, num) for reply in self._ask(asked)
        ]

    def _in_batches(
        self,
        asked: Sequence[Asked],
        prompt_of: Callable[[Description, Sequence[Excerpt]], Prompt],
    ) -> Scores:
        size = self.cfg.windows_per_prompt
        batches = [
            (request.description, request.excerpts[low : low + size])
            for request in asked
            for low in range(0, len(request.excerpts), size)
        ]
        replies = iter(self._ask([prompt_of(*batch) for batch in batches]))
        found: Scores = []
        for request in asked:
            own: list[float | None] = []
            for low in range(0, len(request.excerpts), size):
                num, reply = len(request.excerpts[low : low + size]), next(replies)
                bits = None if reply is None else prompts.read_bits(reply, num)
                own += [None] * num if bits is None else bits
            found.append(own)
        return found

    def _ask(self, asked: Sequence[Prompt]) -> list[str | None]:
        """The reply to each prompt; None where it was empty, refused, cut off or malformed."""
        return self._at_once(self._reply, asked)

    def _at_once(self, ask: Callable[[Any], Any], asked: Sequence[Any]) -> list[Any]:
        """What ``ask`` makes of each, several at a time; equal questions are asked once."""
        keys = [repr(question) for question in asked]
        different = dict(zip(keys, asked, strict=True))
        with ThreadPoolExecutor(self.cfg.num_at_once) as pool:
            found = dict(zip(different, pool.map(ask, different.values()), strict=True))
        return [found[key] for key in keys]

    def _reply(self, prompt: Prompt) -> str | None:
        answer = self._post(
            "chat/completions",
            {
                "model": self.cfg.model,
                "messages": prompt.messages,
                "temperature": self.cfg.temperature,
                "max_tokens": self.cfg.max_reply_tokens,
            },
        )
        try:
            choice = answer["choices"][0]
            content = choice["message"]["content"]
        except (KeyError, IndexError, TypeError):
            return None
        is_cut = choice.get("finish_reason") == "length"
        return content if isinstance(content, str) and content.strip() and not is_cut else None

    def _embed(self, texts: list[str]) -> list[list[float]] | None:
        answer = self._post("embeddings", {"model": self.cfg.embedding_model, "input": texts})
        try:
            rows = sorted(answer["data"], key=lambda row: row["index"])
            found = [[float(value) for value in row["embedding"]] for row in rows]
        except (KeyError, TypeError, ValueError):
            return None
        return found if len(found) == len(texts) else None

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        """The JSON that the endpoint answers; None where it is none."""
        told = canonical_json({"url": self.cfg.base_url, "path": path, "body": body})
        name = hashlib.sha256(told.encode()).hexdigest()
        file = None if self.folder is None else self.folder / name[:2] / f"{name}.json"
        if file is not None and file.exists():
            try:
                return json.loads(file.read_bytes())["answer"]
            except (ValueError, KeyError, TypeError):
                pass  # a damaged file is asked for again
        answer = self._send(path, body)
        if file is not None and answer is not None:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(file, json.dumps({"asked": body, "answer": answer}))
        return answer

    def _send(self, path: str, body: dict[str, Any]) -> Any:
        with self._counting:
            if self.num_requests >= self.cfg.most_requests:
                raise EndpointFailed(
                    f"judge.most_requests, {self.cfg.most_requests}, are used up; raise it."
                )
            self.num_requests += 1
        pause, problem = self.cfg.first_pause_s, ""
        for attempt in range(self.cfg.num_retries + 1):
            if attempt:
                self.pause(min(_LONGEST_PAUSE, pause) * (1 + 0.1 * random.random()))
                pause *= 2
            try:
                return self._once(path, body)
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {error.read(300).decode(errors='replace')}"
                if error.code not in _RETRIED:
                    raise EndpointFailed(f"{self.cfg.base_url}/{path}: {problem}") from error
            except (OSError, TimeoutError) as error:  # no connection, or none that lasts
                problem = f"{type(error).__name__}: {error}"
        raise EndpointFailed(
            f"{self.cfg.base_url}/{path} failed {self.cfg.num_retries + 1} times; the last time:"
            f" {problem}"
        )

    def _once(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Content-Type": "application/json"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = urllib.request.Request(
            f"{self.cfg.base_url.rstrip('/')}/{path}", json.dumps(body).encode(), headers
        )
        with urllib.request.urlopen(request, timeout=self.cfg.timeout_s) as answer:
            raw = answer.read()
        try:
            return json.loads(raw)
        except ValueError:
            return None


def _cosine(one: list[float], other: list[float]) -> float | None:
    length = math.hypot(*one) * math.hypot(*other)
    if len(one) != len(other) or length == 0:
        return None
    return sum(a * b for a, b in zip(one, other, strict=True)) / length
