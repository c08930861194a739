"""Language models that are asked questions: behind an endpoint, or on this machine.

base       questions, replies, and what a model that answers them is
endpoint   any endpoint that speaks the protocol of OpenAI's chat completions
local      a chat model of Hugging Face on this machine
answers    replies read strictly, with one question back where one cannot be read
cache      replies on disk, so that nothing is asked twice
pace       how fast is asked
account    what was asked and what it cost
quoting    text of others inside a question, so that it stays text
"""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from sae_lib.llm.account import Account
from sae_lib.llm.answers import Answer, Unreadable, ask_for, json_reader
from sae_lib.llm.base import ChatConfig, ChatModel, Message, Question, Reply
from sae_lib.llm.endpoint import Endpoint, EndpointConfig, EndpointFailed
from sae_lib.llm.local import LocalChat, LocalChatConfig


def _with_kind(raw: Any) -> Any:
    """A description without ``kind`` is of an endpoint."""
    return {"kind": "openai", **raw} if isinstance(raw, Mapping) else raw


AnyChat = Annotated[
    Annotated[EndpointConfig | LocalChatConfig, Field(discriminator="kind")],
    BeforeValidator(_with_kind),
]
"""A field that takes any language model that can be asked."""

__all__ = [
    "Account",
    "Answer",
    "AnyChat",
    "ChatConfig",
    "ChatModel",
    "Endpoint",
    "EndpointConfig",
    "EndpointFailed",
    "LocalChat",
    "LocalChatConfig",
    "Message",
    "Question",
    "Reply",
    "Unreadable",
    "ask_for",
    "json_reader",
]
