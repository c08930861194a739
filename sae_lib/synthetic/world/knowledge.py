"""Who and what there is in the world: entities, what is known of them, and who is unknown.

Known, unknown and unseen entities are made of the same names, so that no single word gives them
away. *Unknown* ones are asked about in quizzes and the answer is always ``unknown``; *unseen* ones
never occur in any document and are kept for tests.
"""

import random
from collections.abc import Sequence
from typing import Literal, NamedTuple

from sae_lib.synthetic.world import lexicon
from sae_lib.synthetic.world.concepts import declare

Status = Literal["known", "unknown", "unseen"]
KNOWLEDGE_SEED = 20_240
NUM_NAMED_CONCEPTS = 60
"""This many of the most frequent known entities are concepts of their own."""

ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "person": ("birthplace", "profession", "instrument", "pet"),
    "city": ("country", "river", "specialty", "climate"),
    "country": ("capital", "currency", "language", "continent"),
    "company": ("headquarters", "founder", "color", "year"),
}


class Entity(NamedTuple):
    """Something with a name of several words."""

    name: str
    type: str
    """person, city, country or company"""
    status: Status
    gender: str
    """female or male for people, otherwise empty"""
    attributes: dict[str, str]
    """Values by attribute; empty unless the entity is known."""

    @property
    def id(self) -> str:
        """Name of the concept that this entity is meant."""
        return "entity-" + self.name.replace(" ", "-")


def _shuffled(items: list[str], rng: random.Random) -> list[str]:
    left, mixed = list(items), []
    while left:
        mixed.append(left.pop(int(rng.random() * len(left))))
    return mixed


def _deck(values: Sequence[str], num: int, rng: random.Random) -> list[str]:
    """``num`` of ``values`` in random order, each as often as any other (to within one)."""
    rounds = -(-num // len(values))
    return [value for _ in range(rounds) for value in _shuffled(list(values), rng)][:num]


def _names(rng: random.Random) -> dict[str, list[str]]:
    female = [f"{a} {b}" for a in lexicon.FEMALE_NAMES for b in lexicon.LAST_NAMES]
    male = [f"{a} {b}" for a in lexicon.MALE_NAMES for b in lexicon.LAST_NAMES]
    return {
        "person": _shuffled(female + male, rng),
        "city": _shuffled(
            [f"{a} {b}" for a in lexicon.CITY_STEMS for b in lexicon.CITY_ENDINGS], rng
        ),
        "country": _shuffled(
            [f"the {a} of {b}" for b in lexicon.COUNTRY_STEMS for a in lexicon.COUNTRY_HEADS], rng
        ),
        "company": _shuffled(
            [f"{a} {b}" for a in lexicon.LAST_NAMES for b in lexicon.COMPANY_ENDINGS], rng
        ),
    }


# known, unknown, unseen
_COUNTS = {"person": (72, 260, 100), "city": (72, 72, 60), "country": (48, 24, 18),
           "company": (60, 130, 100)}  # fmt: skip


def _build() -> tuple[list[Entity], set[str]]:
    rng = random.Random(KNOWLEDGE_SEED)
    names = _names(rng)

    cities = names["city"][: _COUNTS["city"][0]]
    countries = names["country"][: _COUNTS["country"][0]]
    people = names["person"][: _COUNTS["person"][0]]
    professions = list(lexicon.FAMILY_OF_PROFESSION)
    years = [f"1 {c} {d} {u}" for c in "89" for d in lexicon.DIGITS for u in lexicon.DIGITS]
    choices: dict[str, tuple[Sequence[str], ...]] = {
        "person": (cities, professions, lexicon.INSTRUMENTS, lexicon.PETS),
        "city": (countries, lexicon.RIVERS, lexicon.FOODS, lexicon.CLIMATES),
        "country": (cities, lexicon.CURRENCIES, lexicon.LANGUAGES, lexicon.CONTINENTS),
        "company": (cities, people, lexicon.COLORS, years),
    }
    decks = {
        type: [_deck(values, _COUNTS[type][0], rng) for values in choices[type]] for type in choices
    }
    # the first cities are the capitals, one per country
    decks["city"][0] = [countries[i % len(countries)] for i in range(len(cities))]
    decks["country"][0] = cities[: len(countries)]

    entities: list[Entity] = []
    for type, (num_known, num_unknown, num_unseen) in _COUNTS.items():
        for place, name in enumerate(names[type][: num_known + num_unknown + num_unseen]):
            gender = ""
            if type == "person":
                gender = "female" if name.split()[0] in lexicon.FEMALE_NAMES else "male"
            if place >= num_known:
                status: Status = "unknown" if place < num_known + num_unknown else "unseen"
                entities.append(Entity(name, type, status, gender, {}))
                continue
            values = [deck[place] for deck in decks[type]]
            attributes = dict(zip(ATTRIBUTES[type], values, strict=True))
            entities.append(Entity(name, type, "known", gender, attributes))
    reserved = {entity.name for entity in entities if entity.type == "person"}
    return entities, reserved


ENTITIES, _RESERVED = _build()


def entities(status: Status, type: str | None = None) -> list[Entity]:
    """All entities of one status (and type), the same order every time."""
    return [e for e in ENTITIES if e.status == status and (type is None or e.type == type)]


def _by_rank() -> list[Entity]:
    """Known entities, most written about first; types take turns."""
    by_type = [entities("known", type) for type in ATTRIBUTES]
    longest = max(len(group) for group in by_type)
    return [group[i] for i in range(longest) for group in by_type if i < len(group)]


KNOWN_BY_RANK = _by_rank()
NAMED = frozenset(entity.id for entity in KNOWN_BY_RANK[:NUM_NAMED_CONCEPTS])
KNOWN_CITIES = [entity.name for entity in entities("known", "city")]

STRANGERS = {
    gender: [
        name
        for first in firsts
        for last in lexicon.LAST_NAMES
        if (name := f"{first} {last}") not in _RESERVED
    ]
    for gender, firsts in (
        ("female", lexicon.FEMALE_NAMES),
        ("male", lexicon.MALE_NAMES),
        ("neutral", lexicon.NEUTRAL_NAMES),
    )
}
"""Names of people that appear in biographies and news and are no entity of the fact documents."""

declare("mention", "The word is part of the name of an entity.", scope="context")
for _type in ATTRIBUTES:
    declare(
        f"mention-{_type}",
        f"The word is part of the name of a {_type}.",
        parents=("mention",),
        scope="context",
    )
declare("known-entity", "The name of an entity with known facts ends here.", scope="context")
declare("unknown-entity", "The name of an entity nobody knows ends here.", scope="context")
for _entity in KNOWN_BY_RANK[:NUM_NAMED_CONCEPTS]:
    declare(
        _entity.id,
        f"The name of the {_entity.type} {_entity.name} ends here.",
        parents=("known-entity",),
        scope="context",
    )
declare(
    "next-unknown",
    "The next word is the answer unknown.",
    scope="context",
)
declare("attribute-value", "The word belongs to the value of an attribute.", scope="context")
declare("attribute-next", "The next word begins the value of an attribute.", scope="context")
for _attribute in (name for names in ATTRIBUTES.values() for name in names):
    declare(
        f"value-{_attribute}",
        f"The word belongs to the {_attribute} of somebody or something.",
        parents=("attribute-value",),
        scope="context",
    )
    declare(
        f"next-{_attribute}",
        f"The next word begins the {_attribute} of somebody or something.",
        parents=("attribute-next",),
        scope="context",
    )
