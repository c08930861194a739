"""Who says whether a description fits: a list of keywords, the truth, or a language model.

keywords  deterministic and offline: a window fits that has one of the description's words
oracle    the truth of the bundled world: descriptions name a concept
local     a language model on this machine, by its next-token probabilities
openai    a language model behind any OpenAI-compatible endpoint
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from sae_lib.evaluate._judges.base import (
    YES,
    Asked,
    Description,
    Excerpt,
    Judge,
    JudgeConfig,
    Scores,
    Sets,
    shown,
)
from sae_lib.evaluate._judges.keywords import KeywordJudge, KeywordsConfig
from sae_lib.evaluate._judges.local import LocalConfig, LocalJudge
from sae_lib.evaluate._judges.openai import EndpointFailed, OpenAIConfig, OpenAIJudge
from sae_lib.evaluate._judges.oracle import OracleConfig, OracleJudge, world_truth


def _by_name(raw: Any) -> Any:
    """A judge without dials may be given by its name alone."""
    return {"kind": raw} if isinstance(raw, str) else dict(raw) if isinstance(raw, Mapping) else raw


AnyJudge = Annotated[
    Annotated[
        KeywordsConfig | OracleConfig | LocalConfig | OpenAIConfig, Field(discriminator="kind")
    ],
    BeforeValidator(_by_name),
]
"""A field of a metric that takes any of the judges."""

__all__ = [
    "YES",
    "AnyJudge",
    "Asked",
    "Description",
    "EndpointFailed",
    "Excerpt",
    "Judge",
    "JudgeConfig",
    "KeywordJudge",
    "KeywordsConfig",
    "LocalConfig",
    "LocalJudge",
    "OpenAIConfig",
    "OpenAIJudge",
    "OracleConfig",
    "OracleJudge",
    "Scores",
    "Sets",
    "shown",
    "world_truth",
]
