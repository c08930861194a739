"""One request to an HTTP endpoint, tried again while the failure may pass.

Failures that may pass are status 408, 409, 425, 429 and 5xx, time-outs, connections that cannot be
made or break, and answers that are no JSON. Pauses double, with some chance in them, so that many
clients do not come back together; where the endpoint says how long to wait (Retry-After), nothing
is sent for that long. The key is in the header alone: it is taken out of whatever comes back
before anyone sees it.
"""

import json
import random
import re
from email.utils import parsedate_to_datetime
from typing import Any

import requests
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from sae_lib.errors import SaeError
from sae_lib.llm.pace import Clock

HIDDEN = "[key]"
LARGEST_ANSWER = 2**23
"""Bytes of an answer that are read; a larger one is no answer."""

_RETRIED = {408, 409, 425, 429, 500, 502, 503, 504, 520, 522, 524, 529}
_ABOUT_THE_QUESTION = {"context_length_exceeded", "content_filter", "content_policy_violation"}
_LONGEST_PAUSE = 60.0
_SHOWN = 300
"""Characters of a server's message that are shown."""


class EndpointFailed(SaeError):
    """The endpoint refused a request, or kept failing; the second may be over some time later."""

    def __init__(self, message: str, *, is_transient: bool = False) -> None:
        super().__init__(message)
        self.is_transient = is_transient


class Declined(Exception):
    """The endpoint cannot answer this one question; others it may."""


class Passing(Exception):
    """A failure that may pass; ``wait`` is how long the endpoint asks to be left alone."""

    def __init__(self, problem: str, *, wait: float | None = None, repeats: int = 1000) -> None:
        super().__init__(problem)
        self.wait, self.repeats = wait, repeats
        """Further tries that make sense."""


class _Key(AuthBase):
    """Puts the key into the header; an entry of ``.netrc`` cannot take its place."""

    def __init__(self, key: str | None) -> None:
        self._key = key

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


class Transport:
    """Sends JSON to paths below ``base_url``; connections are kept open between requests."""

    def __init__(
        self, base_url: str, key: str | None, *, timeout_s: float, at_once: int, clock: Clock
    ) -> None:
        self.base_url, self.timeout_s, self.clock = base_url.rstrip("/"), timeout_s, clock
        self._key = key
        self._auth = _Key(key)
        self._session = requests.Session()
        adapter = HTTPAdapter(pool_connections=1, pool_maxsize=at_once)
        self._session.mount("http://", adapter)
        self._session.mount("https://", adapter)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that the endpoint answers.

        Raises `Passing`, `Declined`, or `EndpointFailed` where trying again makes no sense.
        """
        url = f"{self.base_url}/{path}"
        try:
            with self._session.post(
                url, json=body, auth=self._auth, timeout=self.timeout_s, stream=True,
                allow_redirects=False,
            ) as answer:  # fmt: skip
                raw = self._read(answer)
                status, headers = answer.status_code, answer.headers
        except requests.exceptions.SSLError as error:
            raise EndpointFailed(f"{url}: {self._clean(str(error))}") from None
        except (
            requests.exceptions.ConnectionError,
            requests.exceptions.Timeout,
            requests.exceptions.ChunkedEncodingError,
            requests.exceptions.ContentDecodingError,
        ) as error:
            raise Passing(f"{type(error).__name__}: {self._clean(str(error))}") from None
        except requests.RequestException as error:
            raise EndpointFailed(f"{url}: {self._clean(str(error))}") from None
        text = self._clean(raw.decode("utf-8", errors="replace"))
        if status in _RETRIED:
            problem = f"HTTP {status}: {text[:_SHOWN]}"
            raise Passing(
                problem, wait=retry_after(headers.get("Retry-After"), headers.get("Date"))
            )
        if status != 200:
            problem = f"HTTP {status}: {text[:_SHOWN]}"
            if status == 413 or (status == 400 and _code_of(text) in _ABOUT_THE_QUESTION):
                raise Declined(problem)
            raise EndpointFailed(f"{url}: {problem}")
        try:
            found = json.loads(text)
        except (ValueError, RecursionError):
            found = None
        if not isinstance(found, dict):
            raise Passing("malformed: the answer is no JSON object", repeats=1)
        return found

    def _read(self, answer: requests.Response) -> bytes:
        began, parts, size = self.clock.now(), [], 0
        for part in answer.iter_content(2**16):
            parts.append(part)
            size += len(part)
            if size > LARGEST_ANSWER:
                raise Declined(f"too long: the answer is larger than {LARGEST_ANSWER} bytes")
            if self.clock.now() - began > self.timeout_s:
                raise Passing(f"Timeout: the answer took longer than {self.timeout_s} s")
        return b"".join(parts)

    def _clean(self, text: str) -> str:
        """``text`` without the key, however it is written."""
        if not self._key:
            return text
        return text.replace(self._key, HIDDEN).replace(json.dumps(self._key)[1:-1], HIDDEN)


def retry_after(value: str | None, now: str | None) -> float | None:
    """Seconds that a Retry-After header asks for: a number, or a date held against the server's."""
    if value is None:
        return None
    if re.fullmatch(r"\s*\d{1,9}(\.\d+)?\s*", value):
        return float(value)
    try:
        until, since = parsedate_to_datetime(value), parsedate_to_datetime(now or "")
        return max(0.0, (until - since).total_seconds())
    except (ValueError, TypeError):
        return None


def pause_before(attempt: int, first: float) -> float:
    """Seconds before a further try: doubled each time, and up to a quarter more by chance."""
    return min(_LONGEST_PAUSE, first * 2 ** (attempt - 1)) * (1 + 0.25 * random.random())


def _code_of(text: str) -> str | None:
    try:
        return str(json.loads(text)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return None
