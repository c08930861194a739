"""What a language model is told when it judges, and how its replies are read.

The wording is our own. No prompt says or hints how many of the windows are active. A reply is read
strictly: what does not say one thing for every window says nothing, and the caller counts it.
"""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

from sae_lib.evaluate._judges.base import Description, Excerpt

MAX_LEVEL = 10


class Prompt(NamedTuple):
    """What is said before the reply."""

    system: str
    user: str


_ROLE = (
    "You check descriptions of units inside a language model. A unit is active on tokens that have"
    " something in common, and a description says what that is."
)


def selection_prompt(description: Description, excerpts: Sequence[Excerpt]) -> Prompt:
    """Which of the numbered texts activate the unit?"""
    return Prompt(
        f"{_ROLE} You get a description and numbered texts. Decide for each text by itself whether"
        " the unit is active somewhere in it. Any number of texts may be, from none to all. Reply"
        " with the numbers of those texts, separated by commas, or with the word none. Write"
        " nothing else.",
        f"Description: {description.text}\n\n{_numbered([e.text for e in excerpts])}",
    )


def detection_prompt(description: Description, excerpts: Sequence[Excerpt]) -> Prompt:
    """0 or 1 for each text."""
    return Prompt(
        f"{_ROLE} You get a description and {_count(len(excerpts), 'text')}. Reply with a JSON list"
        f" of {_count(len(excerpts), 'number')}, one per text in the same order: 1 if the text"
        " contains what is described, 0 if not. Write nothing else.",
        f"Description: {description.text}\n\n{_numbered([e.text for e in excerpts])}",
    )


def fuzzing_prompt(description: Description, excerpts: Sequence[Excerpt]) -> Prompt:
    """0 or 1 for each text's highlights."""
    return Prompt(
        f"{_ROLE} You get a description and {_count(len(excerpts), 'text')} in which some tokens"
        " stand between << and >>. Reply with a JSON list of"
        f" {_count(len(excerpts), 'number')}, one per text in the same order: 1 if the marked"
        " tokens are those that the description is about, 0 if they are not. Write nothing else.",
        f"Description: {description.text}\n\n{_numbered([e.marked_text for e in excerpts])}",
    )


def simulation_prompt(description: Description, excerpt: Excerpt) -> Prompt:
    """A number from 0 to 10 for each token."""
    tokens = json.dumps([token.replace("\n", "↵") for token in excerpt.tokens], ensure_ascii=False)
    return Prompt(
        f"{_ROLE} You get a description and a text as a JSON list of"
        f" {_count(len(excerpt.tokens), 'token')}. Reply with a JSON list of as many whole numbers:"
        f" for each token how strongly the unit is active on it, from 0 (not at all) to {MAX_LEVEL}"
        " (as strongly as it can be). Write nothing else.",
        f"Description: {description.text}\n\nTokens: {tokens}",
    )


def yes_no_prompt(description: Description, excerpt: Excerpt) -> Prompt:
    """Is the unit active in the text? For models whose next token is read."""
    return Prompt(
        f"{_ROLE} You get a description and a text. Answer yes if the text contains what is"
        " described, and no if it does not.",
        f"Description: {description.text}\nText: {excerpt.text}",
    )


def highlight_prompt(description: Description, excerpt: Excerpt) -> Prompt:
    """Are the highlights right? For models whose next token is read."""
    return Prompt(
        f"{_ROLE} You get a description and a text in which some tokens stand between << and >>."
        " Answer yes if the marked tokens are those that the description is about, and no if they"
        " are not.",
        f"Description: {description.text}\nText: {excerpt.marked_text}",
    )


def intruder_prompt(excerpts: Sequence[Excerpt]) -> Prompt:
    """Which text does not belong?"""
    return Prompt(
        f"You get {_count(len(excerpts), 'text')} in which some tokens stand between << and >>. In"
        " all but one of them the marked tokens have something in common. Reply with the number of"
        " the one where they do not. Write nothing else.",
        _numbered([e.marked_text for e in excerpts]),
    )


def matching_prompt(description: Description, sets: Sequence[Sequence[str]]) -> Prompt:
    """Which set of texts is described?"""
    groups = "\n\n".join(
        f"Set {i}:\n" + "\n".join(f"- {text.strip()}" for text in texts)
        for i, texts in enumerate(sets, 1)
    )
    return Prompt(
        f"You get a description and {_count(len(sets), 'set')} of texts. Reply with the number of"
        " the set whose texts have most to do with the description. Write nothing else.",
        f"Description: {description.text}\n\n{groups}",
    )


def writing_prompt(description: Description, num: int, *, fitting: bool) -> Prompt:
    """Texts that should, or should not, activate the unit."""
    wish = (
        "each of which clearly contains what is described"
        if fitting
        else "each of which has nothing to do with what is described"
    )
    return Prompt(
        f"{_ROLE} You get a description. Write {_count(num, 'short text')} of one sentence, {wish}."
        f" Reply with a JSON list of {_count(num, 'string')}. Write nothing else.",
        f"Description: {description.text}",
    )


def similar_prompt(examples: Sequence[str], num: int) -> Prompt:
    """New texts that have what the highlights of the examples have in common."""
    return Prompt(
        "You get texts in which some tokens stand between << and >>. Find out what the marked"
        f" tokens have in common and write {_count(num, 'new text')} of one sentence that contain"
        " it in other surroundings; do not mark anything. Reply with a JSON list of"
        f" {_count(num, 'string')}. Write nothing else.",
        _numbered(examples),
    )


def read_selection(reply: str, num: int) -> list[bool] | None:
    """Truth values of ``num`` texts from a list of numbers, or None where it is not such a list."""
    plain = reply.strip().strip(".[]").strip().lower()
    if plain == "none":
        return [False] * num
    parts = [part.strip() for part in re.split(r",|\band\b", plain)]
    parts = [part for part in parts if part]
    if not parts or not all(re.fullmatch(r"\d+", part) for part in parts):
        return None
    chosen = {int(part) for part in parts}
    if not chosen <= set(range(1, num + 1)):
        return None
    return [i in chosen for i in range(1, num + 1)]


def read_numbers(reply: str, num: int, largest: int) -> list[float] | None:
    """Exactly ``num`` numbers from 0 to ``largest``, or None."""
    found = _json_list(reply)
    if found is None or len(found) != num:
        return None
    numbers = [float(v) for v in found if isinstance(v, int | float) and not isinstance(v, bool)]
    if len(numbers) != num or not all(0 <= value <= largest for value in numbers):
        return None
    return numbers


def read_bits(reply: str, num: int) -> list[float] | None:
    """Exactly ``num`` zeros and ones, or None."""
    found = read_numbers(reply, num, 1)
    return found if found is not None and set(found) <= {0.0, 1.0} else None


def read_choice(reply: str, num: int) -> int | None:
    """Place of the number, from 1 to ``num``, that is the reply; None where it is not one."""
    plain = reply.strip().strip(".").strip()
    if not re.fullmatch(r"\d+", plain) or not 1 <= int(plain) <= num:
        return None
    return int(plain) - 1


def read_texts(reply: str, num: int) -> list[str] | None:
    """Exactly ``num`` texts that are not empty, or None."""
    found = _json_list(reply)
    if found is None or len(found) != num:
        return None
    if not all(isinstance(text, str) and text.strip() for text in found):
        return None
    return [str(text).strip() for text in found]


def _json_list(reply: str) -> list[object] | None:
    """The one JSON list in a reply, which may stand in a block of code."""
    start, end = reply.find("["), reply.rfind("]")
    if start < 0 or end < start:
        return None
    try:
        found = json.loads(reply[start : end + 1])
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, list) else None


def _numbered(texts: Sequence[str]) -> str:
    return "\n".join(f"{i}. {text}" for i, text in enumerate(texts, 1))


def _count(num: int, what: str) -> str:
    return f"{num} {what}" if num == 1 else f"{num} {what}s"
