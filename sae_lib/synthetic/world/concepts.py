"""The inventory of concepts: what can be true of a token, and what follows from it.

Two scopes are kept apart, because they ask different things of a model:

* ``token``: true because of the word itself ("hound" names a dog, hence a mammal, hence an
  animal). The words of such a concept are its lexicon.
* ``context``: true because of other words (this review is a positive one, the next word is a
  birthplace, these two words together name the entity *arden falls*).

Parents always have the scope of their children. Whoever adds a kind of document declares its
concepts and words in the file of that kind.
"""

from collections.abc import Iterable
from functools import cache
from typing import Literal, NamedTuple

from sae_lib.errors import UnknownName
from sae_lib.registry import Registry

Scope = Literal["token", "context"]


class Concept(NamedTuple):
    """Something that is true of some tokens and not of others."""

    id: str
    """Unique name in lower case with hyphens, such as ``noun-plural``."""

    name: str
    """The same for readers."""

    description: str
    """One line that says when the concept is active."""

    parents: tuple[str, ...]
    """Ids of the more general concepts that are active whenever this one is."""

    scope: Scope
    """Whether the word alone decides, or its context."""


CONCEPTS: Registry[Concept] = Registry("concept")
_WORDS: dict[str, set[str]] = {}
_LIKE: dict[str, str] = {}


def declare(
    id: str,
    description: str,
    *,
    parents: tuple[str, ...] = (),
    words: str | Iterable[str] = (),
    scope: Scope = "token",
) -> None:
    """Add a concept, and for a ``token`` concept the words that carry it."""
    for parent in parents:
        if CONCEPTS[parent].scope != scope:
            raise ValueError(f"concept {id!r} and its parent {parent!r} differ in scope")
    CONCEPTS.add(id, Concept(id, id.replace("-", " "), description, parents, scope))
    tag(id, words)


def tag(id: str, words: str | Iterable[str]) -> None:
    """Say that ``words`` carry the token concept ``id``."""
    listed = words.split() if isinstance(words, str) else list(words)
    if listed and CONCEPTS[id].scope != "token":
        raise ValueError(f"concept {id!r} depends on context, so no word carries it alone")
    for word in listed:
        _WORDS.setdefault(word, set()).add(id)
    concepts_of_word.cache_clear()  # somebody may have asked while words were still being declared


def tag_like(word: str, model: str, *ids: str) -> None:
    """Say that ``word`` carries whatever concepts ``model`` carries (now or later), and ``ids``."""
    if not ids:
        raise ValueError(f"{word!r} needs a concept of its own that tells it from {model!r}")
    for id in ids:
        tag(id, (word,))
    _LIKE[word] = model
    concepts_of_word.cache_clear()


def declare_family(
    parent: str, members: dict[str, str], description: str, *, part_of_speech: str = ""
) -> None:
    """Declare one child of ``parent`` per entry; ``description`` has a ``{}`` for its name."""
    for name, words in members.items():
        declare(name, description.format(name.replace("-", " ")), parents=(parent,), words=words)
        if part_of_speech:
            tag(part_of_speech, words)


def words() -> list[str]:
    """Every word that was declared, sorted."""
    return sorted(_WORDS)


def is_word(word: str) -> bool:
    return word in _WORDS


@cache
def ancestors(id: str) -> frozenset[str]:
    """``id`` and everything more general."""
    found = {id}
    for parent in CONCEPTS[id].parents:
        found |= ancestors(parent)
    return frozenset(found)


@cache
def concepts_of_word(word: str) -> frozenset[str]:
    """The token concepts of ``word``, closed under parents."""
    if word not in _WORDS:
        raise UnknownName("word", word, _WORDS)
    own = frozenset(general for id in _WORDS[word] for general in ancestors(id))
    return own | concepts_of_word(_LIKE[word]) if word in _LIKE else own


@cache
def close(ids: tuple[str, ...]) -> frozenset[str]:
    """``ids`` with all their ancestors."""
    return frozenset(general for id in ids for general in ancestors(id))


def lexicon(id: str) -> list[str]:
    """The words that carry the token concept ``id``, themselves or through a child; sorted."""
    CONCEPTS[id]  # an unknown name should not look like a concept without words
    return sorted(word for word in _WORDS if id in concepts_of_word(word))
