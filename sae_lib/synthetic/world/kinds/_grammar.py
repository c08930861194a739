"""Small clauses that can be said in either language.

A clause tells who does or is what, where, with whom and when. English says it in the order subject,
verb, place, companion, time; sindral in the order time, subject, companion, place, verb, with
adjectives after nouns and postpositions instead of prepositions. A translation therefore moves
words besides replacing them. What is drawn here can be read back from the text in both languages.
"""

from functools import cache
from typing import NamedTuple

from sae_lib.synthetic.world import foreign
from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.foreign import FUNCTION_WORDS, TO_SINDRAL
from sae_lib.synthetic.world.lexicon import (
    ANIMAL_WORDS,
    CLIMATES,
    COLORS,
    DAYS,
    FAMILY_OF_PROFESSION,
    FOODS,
    HAPPY,
    INSTRUMENTS,
    MOTIONS,
    NUMBER_WORDS,
    PARTS_OF_DAY,
    PLACES,
    SAD,
    SEASONS,
    SIZES,
    plural,
)
from sae_lib.synthetic.world.writer import Table, Writer

ENGLISH, SINDRAL = "english", foreign.NAME

RELATIVES = ("sister", "mother", "daughter", "aunt", "brother", "father", "son", "uncle")
PROFESSIONS = tuple(FAMILY_OF_PROFESSION)
PERSONS = (*PROFESSIONS, *RELATIVES)
CREATURES = (*ANIMAL_WORDS, *PERSONS)
COMPANIONS = (*FOODS, *INSTRUMENTS, *RELATIVES, *ANIMAL_WORDS)
TIMES = (*SEASONS, *PARTS_OF_DAY, *DAYS)
VERBS = tuple(base for base, _ in MOTIONS)
THIRD_PERSON = dict(MOTIONS)
ENTERED = frozenset(("forest", "village", "garden", "cave", "mill"))
"""Places that somebody can be in; one is near the others."""

_PLACE_ADJECTIVES = ("little", "tiny", "large", "old", *COLORS)
_ADJECTIVES = {
    **dict.fromkeys(ANIMAL_WORDS, (*SIZES, *COLORS)),
    **dict.fromkeys(PERSONS, ("little", "young", "old", "clever", "lazy")),
    **dict.fromkeys(FOODS, ("hot", "cold", "old")),
    **dict.fromkeys(INSTRUMENTS, ("little", "old", *COLORS)),
    **dict.fromkeys(PLACES, _PLACE_ADJECTIVES),
}
"""What a noun can be called by an adjective that stands with it."""
LOOKS = (*_PLACE_ADJECTIVES, *CLIMATES)
"""What can be said of a place with a form of be."""

_ANIMALS, _PLACES = frozenset(ANIMAL_WORDS), frozenset(PLACES)
_DAYS = frozenset(DAYS)
_THE, _AND, _IN = FUNCTION_WORDS["the"], FUNCTION_WORDS["and"], FUNCTION_WORDS["in"]

declare("sindral-function-word", "The word is a function word of the second language.",
        parents=("sindral-word",), words=FUNCTION_WORDS.values())  # fmt: skip
declare("sindral-postposition", "The word is a postposition of the second language.",
        parents=("sindral-function-word",),
        words=[FUNCTION_WORDS[word] for word in ("in", "to", "near", "with")])  # fmt: skip
declare("sindral-copula", "The word is a form of be in the second language.",
        parents=("sindral-function-word",),
        words=[FUNCTION_WORDS[word] for word in ("is", "are")])  # fmt: skip
declare("in-sindral", "The text here is in the second language.", scope="context")
declare("clause-role", "The word belongs to some part of a clause.", scope="context")
for _role, _description in (
    ("subject", "The word belongs to who a clause is about, its noun or what follows it."),
    ("place", "The word belongs to the place of a clause, its noun or what follows it."),
    ("companion", "The word belongs to who or what is along, its noun or what follows it."),
    ("time", "The word tells, by the end of its phrase, when something happens."),
    ("quality", "The word belongs to what a clause says its subject is like."),
):
    declare(f"clause-{_role}", _description, parents=("clause-role",), scope="context")
declare("clause-number", "The number of the subject of a clause decides its verb.",
        scope="context")  # fmt: skip
declare("clause-one", "The subject so far is one, and the verb of the clause is not past.",
        parents=("clause-number",), scope="context")  # fmt: skip
declare("clause-many", "The subject so far is many, and the verb of the clause is not past.",
        parents=("clause-number",), scope="context")  # fmt: skip
declare("clause-negated", "The clause is negated, as a word for not has told.", scope="context")
declare("clause-verb-next", "The next word is the verb of a clause, which agrees with its subject.",
        scope="context")  # fmt: skip
tag("auxiliary", "do")


class Phrase(NamedTuple):
    """A noun with what stands by it."""

    noun: str
    """In English, in the singular; foods in their only form."""

    many: bool = False
    adjective: str = ""
    numeral: str = ""
    """A number word instead of the article."""


class Clause(NamedTuple):
    """A statement of no language. Empty parts are not said."""

    subject: tuple[Phrase, ...]
    """One, or two joined by *and*."""

    verb: str = ""
    """Base form of a verb of motion; a form of be if empty."""

    negated: bool = False
    very: bool = False
    quality: str = ""
    """Adjective that a form of be ascribes to the subject."""

    relation: str = ""
    """``in``, ``to`` or ``near`` the place."""

    place: Phrase | None = None
    companion: Phrase | None = None
    time: str = ""

    @property
    def many(self) -> bool:
        return len(self.subject) > 1 or any(who.many for who in self.subject)

    @property
    def form(self) -> str:
        """Which sort of clause it is."""
        return "motion" if self.verb else "quality" if self.quality else "stay"


Said = list[tuple[str, tuple[str, ...]]]
"""Words and the context concepts that hold there."""


def english_noun(phrase: Phrase) -> str:
    return plural(phrase.noun) if phrase.many else phrase.noun


def sindral_noun(phrase: Phrase) -> str:
    return TO_SINDRAL[english_noun(phrase)]


def _number(many: bool) -> str:
    return "clause-many" if many else "clause-one"


def english(clause: Clause) -> Said:
    """The clause in English, without its full stop."""
    said: Said = []

    def phrase(what: Phrase, role: str) -> None:
        said.append((what.numeral or "the", ()))
        if what.adjective:
            said.append((what.adjective, ()))
        said.append((english_noun(what), (role,)))

    for place, who in enumerate(clause.subject):
        ids = (_number(place > 0 or who.many),)
        if place:
            said.append(("and", ids))
        start = len(said)
        phrase(who, "clause-subject")
        for at in range(start, len(said)):
            # a number word tells, the article does not
            if place or who.numeral or at == len(said) - 1:
                said[at] = (said[at][0], said[at][1] + ids)
    said[-1] = (said[-1][0], (*said[-1][1], "clause-verb-next"))

    many, number, no = clause.many, (_number(clause.many),), ()
    if clause.verb:
        if clause.negated:
            no = ("clause-negated",)
            said += [("do" if many else "does", number), ("not", no), (clause.verb, no)]
        else:
            said.append((clause.verb if many else THIRD_PERSON[clause.verb], number))
    else:
        said.append(("are" if many else "is", number))
        if clause.negated:
            no = ("clause-negated",)
            said.append(("not", no))
        if clause.very:
            said.append(("very", ("clause-quality", *no)))
        if clause.quality:
            said.append((clause.quality, ("clause-quality", *no)))
    start = len(said)
    if clause.place is not None:
        said.append((clause.relation, ()))
        phrase(clause.place, "clause-place")
    if clause.companion is not None:
        said.append(("with", ()))
        phrase(clause.companion, "clause-companion")
    if clause.time:
        said.append(("on" if clause.time in _DAYS else "in", ()))
        if clause.time not in _DAYS:
            said.append(("the", ()))
        said.append((clause.time, ("clause-time",)))
    if no:
        for at in range(start, len(said)):
            said[at] = (said[at][0], said[at][1] + no)
    return said


def sindral(clause: Clause) -> Said:
    """The clause in the second language, without its full stop."""
    said: Said = []
    number: tuple[str, ...] = ()

    def phrase(what: Phrase, role: str) -> None:
        said.append((TO_SINDRAL[what.numeral] if what.numeral else _THE, number))
        said.append((sindral_noun(what), (role, *number)))
        if what.adjective:
            said.append((TO_SINDRAL[what.adjective], (role, *number)))

    if clause.time:
        if clause.time not in _DAYS:
            said.append((_THE, ()))
        said += [(TO_SINDRAL[clause.time], ("clause-time",)), (_IN, ("clause-time",))]
    for place, who in enumerate(clause.subject):
        if place:
            number = ("clause-many",)
            said.append((_AND, number))
        elif who.numeral:
            number = ("clause-many",)
        start = len(said)
        phrase(who, "clause-subject")
        if not number:
            number = (_number(who.many),)
            for at in range(start + 1, len(said)):
                said[at] = (said[at][0], said[at][1] + number)
    if clause.companion is not None:
        phrase(clause.companion, "clause-companion")
        said.append((FUNCTION_WORDS["with"], ("clause-companion", *number)))
    if clause.place is not None:
        phrase(clause.place, "clause-place")
        said.append((FUNCTION_WORDS[clause.relation], ("clause-place", *number)))
    if clause.very:
        said.append((FUNCTION_WORDS["very"], ("clause-quality", *number)))
    if clause.quality:
        said.append((TO_SINDRAL[clause.quality], ("clause-quality", *number)))
    if clause.negated:
        number += ("clause-negated",)
        said.append((FUNCTION_WORDS["not"], number))
    said[-1] = (said[-1][0], (*said[-1][1], "clause-verb-next"))
    if clause.verb:
        verb = TO_SINDRAL[clause.verb if clause.many else THIRD_PERSON[clause.verb]]
    else:
        verb = FUNCTION_WORDS["are" if clause.many else "is"]
    said.append((verb, number))
    return said


_SAY = {ENGLISH: english, SINDRAL: sindral}


def clause_text(clause: Clause, language: str) -> str:
    """The clause with its full stop."""
    return " ".join([word for word, _ in _SAY[language](clause)] + ["."])


def say_clause(w: Writer, clause: Clause, language: str) -> None:
    """Write the clause and its full stop; the mark ``verb`` is set before the verb that agrees."""
    for word, ids in _SAY[language](clause):
        w.say(word, *ids)
        if "clause-verb-next" in ids:
            w.mark("verb")
    w.say(".")


# --- drawing clauses -----------------------------------------------------------------------------


class Cast(NamedTuple):
    """What clauses are drawn from."""

    creatures: tuple[str, ...]
    companions: tuple[str, ...]
    places: Table[str]
    verbs: Table[str]


EVERYTHING = Cast(
    CREATURES, COMPANIONS, Table(PLACES, [1] * len(PLACES)), Table(VERBS, [1] * len(VERBS))
)
FEELINGS = (*HAPPY, *SAD)
_DEGREES = Table(("", "very", "not", "not very"), (0.5, 0.22, 0.2, 0.08))
_WAYS = {  # how one moves: into and towards, or around where one can only be near
    True: Table(("to", "in", "near"), (0.5, 0.3, 0.2)),
    False: Table(("to", "near"), (0.6, 0.4)),
}
_SPOTS = {True: Table(("in", "near"), (0.7, 0.3)), False: Table(("near",), (1,))}
_TIMES = Table(TIMES, [0.1 if time in _DAYS else 0.15 for time in TIMES])


@cache
def others(nouns: tuple[str, ...], left_out: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(noun for noun in nouns if noun not in left_out)


def draw_phrase(w: Writer, noun: str, *, adjective: float = 0.35) -> Phrase:
    """``noun`` with its number and, with the chance ``adjective``, an adjective."""
    many, numeral = False, ""
    if noun in _ANIMALS or noun in _PLACES:
        many = w.flip(0.45 if noun in _ANIMALS else 0.25)
        if many and w.flip(0.3):
            numeral = w.pick(NUMBER_WORDS)
    if adjective and w.flip(adjective):
        return Phrase(noun, many, w.pick(_ADJECTIVES[noun]), numeral)
    return Phrase(noun, many, "", numeral)


def draw_subject(w: Writer, creatures: tuple[str, ...]) -> tuple[Phrase, ...]:
    """Somebody, or two who are joined by *and*."""
    if w.flip(0.12):
        return tuple(Phrase(noun) for noun in w.arrange(creatures, 2))
    return (draw_phrase(w, w.pick(creatures)),)


def _draw_time(w: Writer, share: float) -> str:
    return w.draw(_TIMES) if w.flip(share) else ""


def draw_action(w: Writer, subject: tuple[Phrase, ...], cast: Cast, *, stay: float) -> Clause:
    """The subject moves, or with the chance ``stay`` is somewhere."""
    verb = "" if w.flip(stay) else w.draw(cast.verbs)
    negated = w.flip(0.15)
    noun = w.draw(cast.places)
    relation = w.draw((_WAYS if verb else _SPOTS)[noun in ENTERED])
    place = draw_phrase(w, noun, adjective=0.25)
    companion, time = None, ""
    if w.flip(0.3):
        along = others(cast.companions, tuple(who.noun for who in subject))
        companion = draw_phrase(w, w.pick(along), adjective=0.25)
    else:
        time = _draw_time(w, 0.35)
    return Clause(
        subject,
        verb,
        negated=negated,
        relation=relation,
        place=place,
        companion=companion,
        time=time,
    )


def _draw_quality(
    w: Writer, subject: tuple[Phrase, ...], qualities: tuple[str, ...], *, degree: str, time: float
) -> Clause:
    return Clause(
        subject,
        quality=w.pick(qualities),
        negated=degree.startswith("not"),
        very=degree.endswith("very"),
        time=_draw_time(w, time),
    )


def draw_feeling(w: Writer, subject: tuple[Phrase, ...]) -> Clause:
    """The subject has some feeling."""
    return _draw_quality(w, subject, FEELINGS, degree=w.draw(_DEGREES), time=0.2)


def draw_mood(w: Writer, subject: tuple[Phrase, ...], *, happy: bool) -> Clause:
    """The subject has a feeling of one sign, or not one of the other."""
    degree = w.draw(_DEGREES)
    qualities = HAPPY if happy != degree.startswith("not") else SAD
    return _draw_quality(w, subject, qualities, degree=degree, time=0.2)


def draw_look(w: Writer, places: Table[str]) -> Clause:
    """What a place is like, without an adjective beside the noun that could be mistaken for it."""
    subject = (draw_phrase(w, w.draw(places), adjective=0.0),)
    return _draw_quality(w, subject, LOOKS, degree=w.draw(_DEGREES), time=0.3)


_FORMS = Table(("action", "feeling", "look"), (0.6, 0.22, 0.18))


def draw_clause(w: Writer) -> Clause:
    """Any clause."""
    form = w.draw(_FORMS)
    if form == "look":
        return draw_look(w, EVERYTHING.places)
    subject = draw_subject(w, CREATURES)
    if form == "feeling":
        return draw_feeling(w, subject)
    return draw_action(w, subject, EVERYTHING, stay=0.25)
