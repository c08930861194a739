"""How fast is asked: at most so many requests and tokens in any 60 seconds, and not while told to
wait.
"""

import time
from collections import deque
from collections.abc import Callable
from threading import Lock
from typing import NamedTuple

_MINUTE = 60.0


class Clock(NamedTuple):
    """Time, and how to let it pass."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class Pace:
    """Lets requests through; whoever comes too early waits. Safe for threads."""

    def __init__(
        self, requests: int | None, tokens: int | None, clock: Clock | None = None
    ) -> None:
        self.requests, self.tokens = requests, tokens
        self.clock = clock or Clock()
        self._sent: deque[list[float]] = deque()
        """Time and tokens of the requests of the last minute."""
        self._not_before = 0.0
        self._is_held = False
        self._lock = Lock()

    def enter(self, tokens: int) -> list[float]:
        """Wait until a request of about so many tokens may go out; returns its entry."""
        while True:
            with self._lock:
                now = self.clock.now()
                wait = self._wait(now, tokens)
                if wait <= 0:
                    entry = [now, float(tokens)]
                    if self.requests is not None or self.tokens is not None:
                        self._sent.append(entry)
                    return entry
            self.clock.sleep(wait)

    def settle(self, entry: list[float], tokens: int) -> None:
        """Say how many tokens a request took in truth."""
        with self._lock:
            entry[1] = float(tokens)

    def hold(self, seconds: float) -> None:
        """Let nothing through for so long: the endpoint has asked for it."""
        with self._lock:
            until = self.clock.now() + seconds
            self._not_before = max(self._not_before, until) if self._is_held else until
            self._is_held = True

    def _wait(self, now: float, tokens: int) -> float:
        while self._sent and self._sent[0][0] <= now - _MINUTE:
            self._sent.popleft()
        wait = self._not_before - now if self._is_held else 0.0
        if self.requests is not None and len(self._sent) >= self.requests:
            oldest = self._sent[len(self._sent) - self.requests][0]
            wait = max(wait, oldest + _MINUTE - now)
        if self.tokens is not None:
            # a request that is larger than the limit goes out alone
            surplus = sum(entry[1] for entry in self._sent) + tokens - self.tokens
            for when, size in self._sent:
                if surplus <= 0:
                    break
                surplus -= size
                wait = max(wait, when + _MINUTE - now)
        return wait
