"""What was asked of a language model, and what it cost.

Costs are prices by configuration times the tokens that the endpoint reports; where either is not
known, the cost is not known, which is not the same as 0.
"""

import json
import os
import time
from collections import Counter
from pathlib import Path
from threading import Lock
from typing import Any

LEDGER = "spent.jsonl"
"""File beside the replies to which every round of questions adds a line."""


_COUNTS = (
    "sent", "answered", "from_disk", "prompt_tokens", "reply_tokens", "uncounted", "repaired",
)  # fmt: skip


class Account:
    """Running counts; safe for threads."""

    def __init__(self, price_in: float | None = None, price_out: float | None = None) -> None:
        self.price_in, self.price_out = price_in, price_out
        self.sent = 0
        """Requests that went out, further tries included."""
        self.answered = 0
        """Requests that were answered."""
        self.from_disk = 0
        """Questions whose reply was on disk."""
        self.prompt_tokens = 0
        self.reply_tokens = 0
        self.uncounted = 0
        """Answers of which the endpoint did not say how many tokens they took."""
        self.repaired = 0
        """Unreadable replies that were readable when asked again."""
        self.no_answer: Counter[str] = Counter()
        """Questions that stayed without a readable answer, by reason."""
        self._lock = Lock()
        self._told = self.summary()

    def send(self) -> int:
        """Count a request that goes out; returns how many there were before."""
        with self._lock:
            self.sent += 1
            return self.sent - 1

    def receive(self, prompt_tokens: int | None, reply_tokens: int | None) -> None:
        """Count an answer."""
        with self._lock:
            self.answered += 1
            if prompt_tokens is None or reply_tokens is None:
                self.uncounted += 1
            else:
                self.prompt_tokens += prompt_tokens
                self.reply_tokens += reply_tokens

    def find(self, num: int = 1) -> None:
        """Count replies that were on disk."""
        with self._lock:
            self.from_disk += num

    def give_up(self, reason: str) -> None:
        """Count a question that stays without an answer."""
        with self._lock:
            self.no_answer[reason.split(":")[0]] += 1

    def repair(self) -> None:
        """Count a reply that was readable the second time."""
        with self._lock:
            self.repaired += 1

    @property
    def cost(self) -> float | None:
        """In the currency of the prices; None where prices or tokens are not known."""
        return self._cost(self.prompt_tokens, self.reply_tokens, self.uncounted)

    def _cost(self, prompt_tokens: int, reply_tokens: int, uncounted: int) -> float | None:
        if self.price_in is None or self.price_out is None or uncounted:
            return None
        return (prompt_tokens * self.price_in + reply_tokens * self.price_out) / 1e6

    def summary(self) -> dict[str, Any]:
        """All counts, for a log or a ledger."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        return {**counts, "no_answer": dict(self.no_answer), "cost": self.cost}

    def news(self) -> dict[str, Any]:
        """What came to the counts since this was asked last, and what that cost; or nothing."""
        with self._lock:
            now = self.summary()
            before, self._told = self._told, now
        if now == before:
            return {}
        new = {name: now[name] - before.get(name, 0) for name in _COUNTS}
        old = Counter(before.get("no_answer", {}))
        return {
            **new,
            "no_answer": dict(Counter(now["no_answer"]) - old),
            "cost": self._cost(new["prompt_tokens"], new["reply_tokens"], new["uncounted"]),
        }


def note(folder: Path, model: str, account: Account) -> None:
    """Add what is new in ``account`` to the ledger of ``folder``."""
    news = account.news()
    if not news:
        return
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    line = {"time": round(time.time()), "model": model, **news}
    # one write of a line at the end of a file is whole, whoever else writes
    file = os.open(folder / LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(file, (json.dumps(line) + "\n").encode())
    finally:
        os.close(file)


def spent(folder: Path) -> list[dict[str, Any]]:
    """What the ledger of ``folder`` comes to, per model: counts, cost, and days of first and last.

    ``no_answer`` is how many questions stayed without; ``cost`` is None as soon as that of one
    round is not known. Lines that a broken write left are passed over.
    """
    file = folder / LEDGER
    sums: dict[str, dict[str, Any]] = {}
    for text in file.read_text("utf-8").splitlines() if file.is_file() else ():
        try:
            line = json.loads(text)
            model, counts = str(line["model"]), {name: int(line[name]) for name in _COUNTS}
            day = time.strftime("%Y-%m-%d", time.gmtime(line["time"]))
            cost, unanswered = line["cost"], sum(line["no_answer"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            continue
        held = sums.setdefault(
            model,
            {
                "model": model,
                **dict.fromkeys(_COUNTS, 0),
                "no_answer": 0,
                "cost": 0.0,
                "first": day,
            },
        )
        for name, count in counts.items():
            held[name] += count
        held["no_answer"] += unanswered
        held["cost"] = None if cost is None or held["cost"] is None else held["cost"] + cost
        held["last"] = day
    return [sums[model] for model in sorted(sums)]
