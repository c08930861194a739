"""The second language, sindral: its own words, endings and function words.

Content words of the first language have one counterpart each, which carries the same concepts and
``sindral-word`` besides: the concept *dog* is one concept in two languages. Nouns end in o (plural
oi), adjectives in a, verbs in as (plural asi); numerals and other words in e.
"""

import random
from collections.abc import Iterator, Sequence

from sae_lib.synthetic.world import lexicon
from sae_lib.synthetic.world.concepts import declare, is_word, tag, tag_like
from sae_lib.synthetic.world.lexicon import plural

NAME = "sindral"
FOREIGN_SEED = 7_309

declare("sindral-word", "The word belongs to the second language.")

_ONSETS = ("b", "ch", "d", "f", "g", "j", "k", "l", "m", "n", "p", "r", "s", "t", "v", "z", "tr",
           "kr", "sk", "pl")  # fmt: skip
_VOWELS = "aeiou"
_CODAS = ("", "", "l", "n", "r", "s", "m")


def _stems(seed: int) -> Iterator[str]:
    """Pronounceable stems without end, none twice."""
    uniform = random.Random(seed).random
    seen: set[str] = set()

    def one(items: Sequence[str]) -> str:
        return items[int(uniform() * len(items))]

    while True:
        stem = one(_ONSETS) + one(_VOWELS) + one(_CODAS) + one(_ONSETS)
        if uniform() < 0.3:
            stem += one(_VOWELS) + one(_ONSETS)
        if stem not in seen:
            seen.add(stem)
            yield stem


NOUNS = tuple(dict.fromkeys((
    *lexicon.ANIMAL_WORDS, *lexicon.FAMILY_OF_PROFESSION, *lexicon.INSTRUMENTS, *lexicon.PLACES,
    *lexicon.SEASONS, *lexicon.PARTS_OF_DAY, *lexicon.DAYS,
    "sister", "mother", "daughter", "aunt", "brother", "father", "son", "uncle",
)))  # fmt: skip
"""In the singular; animals and places have a plural as well."""
WITH_PLURAL = frozenset((*lexicon.ANIMAL_WORDS, *lexicon.PLACES))
MASS_NOUNS = lexicon.FOODS
"""Foods, whatever their number in the first language."""
ADJECTIVES = tuple(dict.fromkeys((
    *lexicon.COLORS, *lexicon.CLIMATES, *lexicon.SIZES, *lexicon.HAPPY, *lexicon.SAD,
)))  # fmt: skip
VERBS = lexicon.MOTIONS
"""Base form (plural), third person singular."""
OTHERS = lexicon.NUMBER_WORDS


def _dictionary() -> dict[str, str]:
    stems, to = _stems(FOREIGN_SEED), {}
    for noun in (*NOUNS, *MASS_NOUNS):
        stem = next(stems)
        to[noun] = stem + "o"
        if noun in WITH_PLURAL:
            to[plural(noun)] = stem + "oi"
    for adjective in ADJECTIVES:
        to[adjective] = next(stems) + "a"
    for base, third in VERBS:
        stem = next(stems)
        to[third], to[base] = stem + "as", stem + "asi"
    for word in OTHERS:
        to[word] = next(stems) + "e"
    return to


TO_SINDRAL: dict[str, str] = _dictionary()
"""Counterpart of every content word that has one."""
FROM_SINDRAL: dict[str, str] = {there: here for here, there in TO_SINDRAL.items()}

FUNCTION_WORDS = {
    "the": "la", "and": "ke", "is": "estu", "are": "estun", "in": "eni", "to": "alu",
    "not": "nepu", "with": "kumi", "very": "tresu", "near": "ludu",
}  # fmt: skip
"""Counterparts of function words; they carry no concept of the first language's roles."""

for _here, _there in TO_SINDRAL.items():
    if is_word(_there):
        raise ValueError(f"the counterpart {_there!r} of {_here!r} is a word of its own")
    tag_like(_there, _here, "sindral-word")
tag("sindral-word", FUNCTION_WORDS.values())
