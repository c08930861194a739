"""Errors at a place in an experiment file become errors that name the place."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from sae_lib.config import Config
from sae_lib.errors import BadInput, nearest
from sae_workflows._yaml import dotted, line_of

Path_ = tuple[str | int, ...]


class Reader:
    """Turns errors at a place in a file into errors that name the place."""

    def __init__(self, file: Path, node: yaml.Node) -> None:
        self.file, self.node = file, node

    def fault(self, problem: str, path: Sequence[str | int], value: object = None) -> BadInput:
        return BadInput(
            problem,
            file=f"{self.file}:{line_of(self.node, path)}",
            key=dotted(path),
            value=value,
        )

    def parse(self, kind: type[Config], raw: object, path: Path_) -> Any:
        """``raw`` as a ``kind``; a wrong key or value becomes a `BadInput` with its place."""
        try:
            return kind.model_validate(raw)
        except ValidationError as error:
            found = error.errors(include_url=False)
            # a misspelt key is also a missing one; the misspelling is what helps
            first = next((one for one in found if one["type"] == "extra_forbidden"), found[0])
            raise self.fault(*self._describe(kind, first, path)) from error

    def _describe(self, kind: type[Config], error: Any, path: Path_) -> tuple[str, Path_, object]:
        location = tuple(p for p in error["loc"] if isinstance(p, int) or p in _part_names(kind))
        if error["type"] == "extra_forbidden":
            *parents, key = error["loc"]
            owner = _nested(kind, parents)
            known = sorted(owner.model_fields)
            problem = (
                f"there is no key {key!r} here. Known: {', '.join(known)}."
                f"{nearest(str(key), known)}"
            )
            return problem, (*path, *error["loc"]), None
        if error["type"] == "missing":
            return "this key is missing.", (*path, *error["loc"]), None
        message = error["msg"].removeprefix("Value error, ")
        problem = message[0].lower() + message[1:]
        if not problem.endswith("."):
            problem += "."
        value = error["input"] if not isinstance(error["input"], dict) else None
        return problem, (*path, *location), value


def _part_names(kind: type[Config]) -> set[str]:
    """Field names of ``kind`` and of the configs in it, so that union tags drop out of paths."""
    names = set(kind.model_fields)
    for field in kind.model_fields.values():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            names |= _part_names(field.annotation)
    return names


def _nested(kind: type[Config], path: Sequence[str | int]) -> type[Config]:
    for part in path:
        field = kind.model_fields.get(str(part))
        if field and isinstance(field.annotation, type) and issubclass(field.annotation, Config):
            kind = field.annotation
    return kind
