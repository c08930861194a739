"""What each kind of column can hold: the stored form of a value, or why it is refused."""

import json
from collections.abc import Iterable, Mapping
from datetime import datetime
from numbers import Integral, Real
from typing import Any, cast

from sae_lib.config import canonical_json
from sae_lib.errors import BadInput
from sae_lib.warehouse.tables import Column, Table


def checked(spec: Table, column: Column, value: Any, index: int | None) -> Any:
    """``value`` as it is stored; raises `BadInput` where it does not fit the column."""
    if value is None:
        problem = None if column.optional else "must not be empty"
        stored = None
    else:
        stored, problem = _convert(column.kind, value)
    if problem is None:
        return stored
    where = "" if index is None else f"Row {index}: "
    raise BadInput(
        f"{where}column {column.name} of table {spec.name} {problem}.",
        key=f"{spec.name}.{column.name}",
        value=value,
    )


def _convert(kind: str, value: Any) -> tuple[Any, str | None]:
    """The stored form of ``value``, and what is wrong with it."""
    match kind:
        case "text":
            return value, _text_problem(value)
        case "int":
            is_int = isinstance(value, Integral) and not isinstance(value, bool)
            return (int(value), None) if is_int else (None, "must be a whole number")
        case "float":
            problem = _float_problem(value)
            return (None, problem) if problem else (float(value), None)
        case "bool":
            return value, None if isinstance(value, bool) else "must be true or false"
        case "time":
            return value, None if isinstance(value, datetime) else "must be a date and time"
        case "json":
            return _json(value)
        case _:
            return _list(kind, value)


def _text_problem(value: Any) -> str | None:
    if not isinstance(value, str):
        return "must be text"
    try:
        value.encode()
    except UnicodeEncodeError:
        return "must be valid Unicode text (it holds half of a surrogate pair)"
    return None


def _float_problem(value: Any) -> str | None:
    if not isinstance(value, Real) or isinstance(value, bool):
        return "must be a number"
    number = float(cast(Any, value))
    if number != number:
        return "must not be NaN; use None, and say why there is no value"
    if number in (float("inf"), float("-inf")):
        return "must be finite; use None, and say why there is no value"
    return None


def _json(value: Any) -> tuple[str | None, str | None]:
    """Canonical JSON text of an object that is given as such or as JSON text."""
    try:
        content = json.loads(value) if isinstance(value, str) else value
        if not isinstance(content, Mapping):
            return None, "must be a JSON object"
        text = canonical_json(content)
    except (TypeError, ValueError) as error:
        return None, f"must be a JSON object ({error})"
    return text, None


def _list(kind: str, value: Any) -> tuple[list[Any] | None, str | None]:
    if isinstance(value, str) or not isinstance(value, Iterable):
        return None, "must be a list"
    items = list(cast(Iterable[Any], value))
    check = _text_problem if kind == "texts" else _float_problem
    for item in items:
        if problem := check(item):
            return None, f"holds an item that {problem}"
    return (items if kind == "texts" else [float(item) for item in items]), None
