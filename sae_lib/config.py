"""What every description of a thing has in common: frozen, keyword-only, no unknown keys."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict

AnyConfig = TypeVar("AnyConfig", bound="Config")


class Config(BaseModel):
    """A frozen description that refuses keys nobody declared.

    The string under each field is its documentation: it becomes the description in the JSON
    schema, and a test makes sure it is there.
    """

    model_config = ConfigDict(
        frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False
    )

    def but(self: AnyConfig, **changes: Any) -> AnyConfig:
        """A copy with ``changes``, validated again."""
        return type(self).model_validate({**self.model_dump(), **changes})


def canonical_json(content: Mapping[str, Any]) -> str:
    """The one JSON text of ``content``: sorted keys, no spaces, no NaN."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(content: Mapping[str, Any], *, length: int = 12) -> str:
    """Hex digest of ``content``; equal content gives equal text whatever its key order."""
    return hashlib.sha256(canonical_json(content).encode()).hexdigest()[:length]
