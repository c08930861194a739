"""Errors a user can fix. Each says what was expected, what came, and what to do."""

from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path


def nearest(given: str, known: Iterable[str]) -> str:
    """A sentence that offers the nearest of ``known``, or nothing when none is near."""
    near = get_close_matches(given, list(known), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


class SaeError(Exception):
    """Base of every error a user can fix. The command line prints it and exits with 2."""

    is_transient = False
    """Whether the same call may succeed when it is made again."""


class UnknownName(SaeError, ValueError):
    """A name that should come from a closed set does not."""

    def __init__(self, what: str, given: str, known: Iterable[str]) -> None:
        self.what, self.given, self.known = what, given, sorted(known)
        super().__init__(
            f"No {what} is called {given!r}. Known: {', '.join(self.known)}."
            f"{nearest(given, self.known)}"
        )


class BadInput(SaeError, ValueError):
    """Something in a file or an argument is wrong.

    ``problem`` is a whole sentence that says what is wrong and what would be right. ``file``,
    ``key`` (dotted path inside the file) and ``value`` say where.
    """

    def __init__(
        self,
        problem: str,
        *,
        file: Path | str | None = None,
        key: str | None = None,
        value: object = None,
    ) -> None:
        self.problem, self.file, self.key, self.value = problem, file, key, value
        where = ", ".join(
            part
            for part in (
                str(file) if file is not None else "",
                f"key {key}" if key else "",
                f"value {value!r}" if value is not None else "",
            )
            if part
        )
        super().__init__(f"{where}: {problem}" if where else problem)


class MissingFile(BadInput, FileNotFoundError):
    """A path that should exist does not, or lacks what it should hold."""


class CorruptData(SaeError):
    """A stored file does not hold what its manifest says it holds."""

    def __init__(self, file: Path | str, problem: str, remedy: str) -> None:
        self.file, self.problem, self.remedy = file, problem, remedy
        super().__init__(f"{file}: {problem} {remedy}")


class NotApplicable(SaeError):
    """A metric, explanation or application has no meaning here; ``reason`` says why.

    Whoever computes a table records the reason instead of a number.
    """

    def __init__(self, what: str, reason: str) -> None:
        self.what, self.reason = what, reason
        super().__init__(f"{what} does not apply: {reason}")
