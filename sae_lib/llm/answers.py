"""Replies read strictly. What cannot be read is asked about once more, then there is no answer.

A reader takes the text of a reply and gives a value, or raises `Unreadable`. It never guesses: a
reply with too many labels, with another field or with half a list has no value, and the reason is
counted and handed on.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from sae_lib.llm.base import ChatModel, Message, Question, Reply

Value = TypeVar("Value")
AnyModel = TypeVar("AnyModel", bound=BaseModel)

_REPEATED = 2000
"""Characters of an unreadable reply that are shown to the model again."""

MAX_REPLY = 100_000
"""Characters of a reply that are looked at; a longer one is no answer."""


class Unreadable(ValueError):
    """A reply is not what was asked for; the message says in what way."""


@dataclass(frozen=True)
class Answer(Generic[Value]):
    """A value, or the reason why there is none."""

    value: Value | None
    reason: str | None = None


def ask_for(
    chat: ChatModel, questions: Sequence[Question], read: Sequence[Callable[[str], Value]]
) -> list[Answer[Value]]:
    """What the replies to ``questions`` say, each by its reader.

    Those that cannot be read are asked about once more, with the reply and what is wrong with it.
    """
    first = chat.ask(questions)
    found = [_read(reply, reader) for reply, reader in zip(first, read, strict=True)]
    again = [i for i, answer in enumerate(found) if answer.value is None]
    repairs = chat.ask([_repair(questions[i], first[i], found[i].reason or "") for i in again])
    for i, reply in zip(again, repairs, strict=True):
        second = _read(reply, read[i])
        if second.value is None:
            chat.account.give_up(second.reason or "unreadable")
        else:
            chat.account.repair()
        found[i] = second
    chat.note()
    return found


def json_reader(model: type[AnyModel]) -> Callable[[str], AnyModel]:
    """Reads exactly one JSON object of the fields and types of ``model``."""

    def read(text: str) -> AnyModel:
        start, end = text.find("{"), text.rfind("}")
        if start < 0 or end < start:
            raise Unreadable("no JSON: the reply holds no JSON object")
        if re.sub(r"```(json)?", "", text[:start] + text[end + 1 :]).strip():
            raise Unreadable("not only JSON: there is other text beside the JSON object")
        try:
            return model.model_validate_json(text[start : end + 1], strict=True)
        except ValidationError as error:
            one = error.errors(include_input=False, include_url=False)[0]
            where = ".".join(str(part) for part in one["loc"])
            kind = "invalid JSON" if one["type"] == "json_invalid" else "wrong fields"
            raise Unreadable(f"{kind}: {where + ': ' if where else ''}{one['msg']}") from None

    return read


def _read(reply: Reply, read: Callable[[str], Value]) -> Answer[Value]:
    if reply.text is None:
        return Answer(None, reply.reason or "empty")
    if len(reply.text) > MAX_REPLY:
        return Answer(None, f"too long: more than {MAX_REPLY} characters")
    try:
        return Answer(read(reply.text))
    except Unreadable as error:
        return Answer(None, str(error))


def _repair(question: Question, reply: Reply, problem: str) -> Question:
    """The same question with what came of it, and what is wrong with that."""
    said = (reply.text or reply.partial or "")[:_REPEATED].strip()
    wish = (
        f"This reply cannot be used ({problem}). Reply once more, in exactly the form that was"
        " asked for, and write nothing else."
    )
    turns = (Message("assistant", said),) if said else ()
    return question._replace(messages=(*question.messages, *turns, Message("user", wish)))
