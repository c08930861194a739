"""Any endpoint that speaks the protocol of OpenAI's chat completions: OpenAI, vLLM, Ollama, ...

Questions go out several at a time, no faster than the settings allow, and their replies are kept on
disk as they come (`cache`): a process that is killed, or an endpoint that fails for good, costs
nothing that was already answered. Replies that are refused, cut off or empty are kept as well: at
temperature 0 they would come again.
"""

import os
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from pathlib import Path
from threading import Event
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from sae_lib.errors import BadInput, SaeError
from sae_lib.llm.account import Account
from sae_lib.llm.base import ChatConfig, ChatModel, Question, Reply
from sae_lib.llm.cache import ReplyCache, default_folder, key_of
from sae_lib.llm.pace import Clock, Pace
from sae_lib.llm.quoting import whole
from sae_lib.llm.transport import Declined, EndpointFailed, Passing, Transport, pause_before

__all__ = ["Endpoint", "EndpointConfig", "EndpointFailed", "NoAnswer", "SecretInConfig"]

_SECRET = ("key", "token", "secret", "password", "auth")
"""Parts of the names of fields that people put secrets into."""

_CHARACTERS_PER_TOKEN = 4
"""For the guess, before an answer, of how many tokens a question has."""


class NoAnswer(NamedTuple):
    """The endpoint answered nothing of the right form, and why."""

    reason: str


class _Stopped(Exception):
    """Another request failed for good before this one was sent."""


class SecretInConfig(SaeError):
    """A secret seems to stand in a description, which is shown to whoever can read results."""

    def __init__(self, field: str) -> None:
        super().__init__(
            f"key {field}: a secret may not stand here. Put the key of the endpoint into an"
            " environment variable, and the variable's name, in capitals, under api_key_env; an"
            " address holds no user, password or query."
        )


class EndpointConfig(ChatConfig):
    """A language model behind an OpenAI-compatible endpoint."""

    kind: Literal["openai"] = "openai"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    base_url: str = Field(default="https://api.openai.com/v1", pattern=r"^https?://")
    """Address up to, not including, /chat/completions."""

    model: str = Field(min_length=1)
    """Model that the endpoint serves."""

    api_key_env: str | None = "OPENAI_API_KEY"
    """Environment variable with the key, in capitals; None for a server that wants none."""

    temperature: float | None = Field(default=0.0, ge=0)
    """Sampling temperature; None leaves it to the endpoint."""

    seed: int | None = None
    """Seed that the endpoint is given; None gives none."""

    max_reply_tokens: int = Field(default=1000, gt=0)
    """Longest reply."""

    limit_name: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """What the endpoint calls the longest reply; newer models of OpenAI want the second."""

    timeout_s: float = Field(default=60.0, gt=0)
    """Seconds without an answer after which a request has failed."""

    num_retries: int = Field(default=5, ge=0)
    """Further tries of a request that failed for a while."""

    first_pause_s: float = Field(default=1.0, ge=0)
    """Seconds before the first further try; each pause is twice the one before."""

    longest_wait_s: float = Field(default=300.0, ge=0)
    """Longest Retry-After that is waited for; one that is longer ends it."""

    num_at_once: int = Field(default=8, gt=0)
    """Requests under way at the same time."""

    requests_per_minute: int | None = Field(default=None, gt=0)
    """Requests sent in any 60 seconds, at most."""

    tokens_per_minute: int | None = Field(default=None, gt=0)
    """Tokens of questions and replies in any 60 seconds, at most; guessed before an answer."""

    most_requests: int = Field(default=100_000, gt=0)
    """Requests that may be sent in all, those answered from disk not counted."""

    price_in: float | None = Field(default=None, ge=0)
    """Price of a million tokens of questions; None: not known."""

    price_out: float | None = Field(default=None, ge=0)
    """Price of a million tokens of replies; None: not known."""

    most_cost: float | None = Field(default=None, gt=0)
    """Cost at which nothing more is sent; needs both prices."""

    cache: str | None = None
    """Folder for replies, absolute; by default ``SAE_LLM_CACHE`` or the user's caches."""

    keep_replies: bool = True
    """Whether replies are kept on disk."""

    @model_validator(mode="before")
    @classmethod
    def _has_no_secret(cls, given: Any) -> Any:
        """What looks like a secret is refused by an error that does not repeat it."""
        if not isinstance(given, Mapping):
            return given
        for name in given.keys() - cls.model_fields.keys():
            if any(part in str(name).lower() for part in _SECRET):
                raise SecretInConfig(str(name))
        variable = given.get("api_key_env")
        if isinstance(variable, str) and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", variable):
            raise SecretInConfig("api_key_env")
        parts = urlsplit(str(given.get("base_url", "")))
        if parts.username or parts.password or parts.query:
            raise SecretInConfig("base_url")
        return given

    @field_validator("cache")
    @classmethod
    def _is_absolute(cls, given: str | None) -> str | None:
        if given is not None and not Path(given).expanduser().is_absolute():
            raise ValueError("give an absolute path, or ~ for the home folder")
        return given

    @model_validator(mode="after")
    def _has_prices(self) -> "EndpointConfig":
        if self.most_cost is not None and None in (self.price_in, self.price_out):
            raise ValueError("most_cost needs price_in and price_out")
        return self

    @property
    def folder(self) -> Path | None:
        """Where replies are kept."""
        if not self.keep_replies:
            return None
        return Path(self.cache).expanduser() if self.cache else default_folder()

    def open(self, *, device: str = "cpu", relative_to: Path | None = None) -> "Endpoint":
        return Endpoint(self, self.folder)


class Endpoint(ChatModel):
    """Asks the endpoint; ``clock`` can be exchanged by tests."""

    def __init__(
        self, cfg: EndpointConfig, folder: Path | None, *, clock: Clock | None = None
    ) -> None:
        self.cfg, self.name, self.folder = cfg, cfg.model, folder
        self.clock = clock or Clock()
        self.account = Account(cfg.price_in, cfg.price_out)
        self.cache = ReplyCache(folder)
        self.pace = Pace(cfg.requests_per_minute, cfg.tokens_per_minute, self.clock)
        self._transport = Transport(
            cfg.base_url, read_key(cfg.api_key_env), timeout_s=cfg.timeout_s,
            at_once=cfg.num_at_once, clock=self.clock,
        )  # fmt: skip
        self._stopping = Event()

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        answers = self.post("chat/completions", [self._body(q) for q in questions], _check_chat)
        return [_reply(answer) for answer in answers]

    def post(
        self,
        path: str,
        bodies: Sequence[dict[str, Any]],
        check: Callable[[dict[str, Any]], bool],
    ) -> list[Any]:
        """The answer to each body, from disk or from the endpoint; equal bodies are sent once.

        ``check`` says whether an answer has the form it should have. Where one has not, or the
        endpoint declines a question, there is a `NoAnswer`, which is not kept.
        """
        # the address takes no part: the same model elsewhere says the same
        keys = [key_of({"path": path, "body": body}) for body in bodies]
        found = {key: self.cache.find(key) for key in dict.fromkeys(keys)}
        self.account.find(sum(answer is not None for answer in found.values()))
        missing = {k: b for k, b in zip(keys, bodies, strict=True) if found[k] is None}
        if missing:
            self._stopping.clear()
            try:
                with ThreadPoolExecutor(min(self.cfg.num_at_once, len(missing))) as pool:
                    asked = {
                        pool.submit(self._get, path, key, body, check): key
                        for key, body in missing.items()
                    }
                    try:
                        for done in as_completed(asked):
                            # what was stopped waits for the failure that stopped it
                            with suppress(_Stopped):
                                found[asked[done]] = done.result()
                    except BaseException:
                        # what is under way is finished and kept; nothing new begins
                        self._stopping.set()
                        pool.shutdown(wait=False, cancel_futures=True)
                        raise
            finally:
                self.note()
        return [found[key] for key in keys]

    def _get(
        self,
        path: str,
        key: str,
        body: dict[str, Any],
        check: Callable[[dict[str, Any]], bool],
    ) -> Any:
        with self.cache.claimed(key):
            known = self.cache.find(key)  # another process may have been quicker
            if known is not None:
                self.account.find()
                return known
            try:
                answer = self._send(path, body, check)
            except Declined as error:
                return NoAnswer(str(error))
            except EndpointFailed:
                self._stopping.set()
                raise
            self.cache.keep(key, {"path": path, "body": body}, answer)
            return answer

    def _send(
        self, path: str, body: dict[str, Any], check: Callable[[dict[str, Any]], bool]
    ) -> dict[str, Any]:
        """An answer of the right form, after as many tries as it takes."""
        guess = self._guess(body)
        problem, malformed = "", 0
        for attempt in range(self.cfg.num_retries + 1):
            self._check_may_send()
            entry = self.pace.enter(guess)
            self._check_may_send()
            try:
                self._count()
                answer = self._transport.post(path, body)
                used = _usage(answer)
                self.account.receive(*used)
                if None not in used:
                    self.pace.settle(entry, sum(n for n in used if n is not None))
                if not check(answer):
                    raise Passing("malformed: the answer has not the form of one", repeats=1)
                return answer
            except Passing as error:
                problem = str(error)
                if error.repeats == 1:
                    malformed += 1
                    if malformed > 1:
                        raise Declined(problem) from None
                if attempt < self.cfg.num_retries:
                    self._wait(error, attempt + 1)
        if malformed:
            raise Declined(problem)
        raise EndpointFailed(
            f"{self.cfg.base_url}/{path} failed {self.cfg.num_retries + 1} times; the last time:"
            f" {problem}",
            is_transient=True,
        )

    def _wait(self, error: Passing, attempt: int) -> None:
        if error.wait is None:
            self.clock.sleep(pause_before(attempt, self.cfg.first_pause_s))
            return
        if error.wait > self.cfg.longest_wait_s:
            raise EndpointFailed(
                f"{self.cfg.base_url} asks to wait {error.wait:.0f} s, longer than longest_wait_s,"
                f" {self.cfg.longest_wait_s:.0f}: {error}"
            ) from None
        self.pace.hold(error.wait)

    def _check_may_send(self) -> None:
        if self._stopping.is_set():
            raise _Stopped
        cost, limit = self.account.cost, self.cfg.most_cost
        if limit is not None and (cost is None or cost >= limit):
            known = "is not known" if cost is None else f"is {cost:.4f}"
            raise EndpointFailed(
                f"the cost so far {known}; most_cost, {limit}, is used up; raise it."
            )

    def _count(self) -> None:
        if self.account.send() >= self.cfg.most_requests:
            raise EndpointFailed(f"most_requests, {self.cfg.most_requests}, are used up; raise it.")

    def _body(self, question: Question) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self.cfg.model,
            "messages": question.chat,
            self.cfg.limit_name: question.max_tokens or self.cfg.max_reply_tokens,
        }
        if self.cfg.temperature is not None:
            body["temperature"] = self.cfg.temperature
        if self.cfg.seed is not None:
            body["seed"] = self.cfg.seed
        return body

    def _guess(self, body: dict[str, Any]) -> int:
        """About how many tokens a request takes, the longest reply included."""
        said = sum(len(turn["content"]) for turn in body.get("messages", ()))
        said += sum(map(len, body.get("input", ())))
        return said // _CHARACTERS_PER_TOKEN + body.get(self.cfg.limit_name, 0)


def read_key(variable: str | None) -> str | None:
    """The key in the environment, which no error repeats."""
    if variable is None:
        return None
    key = os.environ.get(variable, "").strip()
    if not key:
        raise BadInput(
            "this environment variable is not set; set it to the key of the endpoint, or give null"
            " for an endpoint that wants none.",
            key="api_key_env",
            value=variable,
        )
    if not (key.isascii() and key.isprintable()):
        raise BadInput(
            "the key in this environment variable has signs that no header may have.",
            key="api_key_env",
            value=variable,
        )
    return key


def _usage(answer: dict[str, Any]) -> tuple[int | None, int | None]:
    """Tokens of question and reply, as the endpoint counts them."""
    usage = answer.get("usage")
    if not isinstance(usage, dict):
        return None, None
    asked, said = usage.get("prompt_tokens"), usage.get("completion_tokens", 0)
    if not (_is_count(asked) and _is_count(said)):
        return None, None
    return asked, said


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _check_chat(answer: dict[str, Any]) -> bool:
    """Whether there is a message, whatever it says."""
    try:
        message = answer["choices"][0]["message"]
    except (KeyError, IndexError, TypeError):
        return False
    return isinstance(message, dict) and isinstance(message.get("content"), str | None)


def _reply(answer: dict[str, Any] | NoAnswer) -> Reply:
    if isinstance(answer, NoAnswer):
        return Reply(None, answer.reason)
    choice = answer["choices"][0]
    content = whole(choice["message"].get("content") or "")
    if choice["message"].get("refusal") or choice.get("finish_reason") == "content_filter":
        return Reply(None, "refused: the model or its filter declined", content)
    if choice.get("finish_reason") == "length":
        return Reply(None, "cut off: the reply is longer than max_reply_tokens", content)
    if not content.strip():
        return Reply(None, "empty: the reply says nothing")
    return Reply(content)
