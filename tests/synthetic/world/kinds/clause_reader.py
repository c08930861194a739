"""Reads statements of both languages back, and tells what each costs; written from the grammar
of the languages, not from the code that says them."""

from collections.abc import Mapping

from sae_lib.synthetic.world.concepts import concepts_of_word
from sae_lib.synthetic.world.kinds import _grammar as grammar
from sae_lib.synthetic.world.kinds._grammar import Clause, Phrase
from sae_lib.synthetic.world.lexicon import plural

foreign = grammar.foreign
FUNCTIONS = {there: here for here, there in foreign.FUNCTION_WORDS.items()}
WORDS = {**foreign.FROM_SINDRAL, **FUNCTIONS}
ONES = {*foreign.NOUNS, *foreign.MASS_NOUNS}
MANY = {plural(noun): noun for noun in foreign.WITH_PLURAL}
BASES = dict(foreign.VERBS)
THIRDS = {third: base for base, third in foreign.VERBS}
DAYS = {"monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday"}


class Reader:
    """Reads words one after the other."""

    def __init__(self, words: list[str]) -> None:
        self.words = [*words]

    def next(self) -> str:
        return self.words[0] if self.words else ""

    def take(self) -> str:
        return self.words.pop(0)

    def took(self, *wanted: str) -> str:
        return self.take() if self.words and self.words[0] in wanted else ""


def noun_of(word: str) -> tuple[str, bool]:
    if word in MANY:
        return MANY[word], True
    assert word in ONES
    return word, False


def numeral(read: Reader) -> str:
    word = read.take()
    assert word == "the" or word in foreign.OTHERS
    return "" if word == "the" else word


def read_english(sentence: str) -> Clause:
    """From the grammar of English, not from how clauses are said."""
    read = Reader(sentence.split())

    def phrase() -> Phrase:
        count, word, adjective = numeral(read), read.take(), ""
        if word in foreign.ADJECTIVES:
            adjective, word = word, read.take()
        return Phrase(*noun_of(word), adjective, count)

    subject = [phrase()]
    while read.took("and"):
        subject.append(phrase())
    many = len(subject) > 1 or subject[0].many
    finite, verb, negated, very, quality = read.take(), "", False, False, ""
    if finite in {"is", "are", "do", "does"}:
        assert (finite in {"are", "do"}) == many
        negated = bool(read.took("not"))
    if finite in {"is", "are"}:
        very = bool(read.took("very"))
        if read.next() in foreign.ADJECTIVES:
            quality = read.take()
    elif finite in {"do", "does"}:
        assert negated
        verb = read.take()
        assert verb in BASES
    else:
        assert (finite in BASES) == many
        verb = finite if many else THIRDS[finite]
    relation, place, companion, time = "", None, None, ""
    while read.next() != ".":
        word = read.take()
        if word == "with":
            companion = phrase()
        elif word == "on":
            time = read.take()
            assert time in DAYS
        else:
            what = phrase()
            if what.noun in grammar.PLACES:
                relation, place = word, what
            else:
                assert word == "in"
                time = what.noun
                assert "time-word" in concepts_of_word(time)
    return Clause(tuple(subject), verb, negated, very, quality, relation, place, companion, time)


def read_sindral(sentence: str) -> Clause:
    """The same from the grammar of the second language; word for word in English letters first."""
    read = Reader([WORDS.get(word, word) for word in sentence.split()])

    def phrase() -> Phrase:
        count, (noun, many) = numeral(read), noun_of(read.take())
        # an adjective before the last word, or after very, is what a form of be ascribes
        adjective = ""
        before_verb = read.words[1:2] in (["is"], ["are"]) or read.words[1:3] in (
            ["not", "is"],
            ["not", "are"],
        )
        if read.next() in foreign.ADJECTIVES and not before_verb:
            adjective = read.take()
        return Phrase(noun, many, adjective, count)

    time = ""
    if read.words[0] in DAYS or "time-word" in concepts_of_word(read.words[1]):
        read.took("the")
        time = read.take()
        assert read.take() == "in"
    subject = [phrase()]
    while read.took("and"):
        subject.append(phrase())
    many = len(subject) > 1 or subject[0].many
    relation, place, companion = "", None, None
    while read.next() == "the" or read.next() in foreign.OTHERS:
        what, word = phrase(), read.take()
        if word == "with":
            companion = what
        else:
            relation, place = word, what
    very = bool(read.took("very"))
    quality = read.take() if read.next() in foreign.ADJECTIVES else ""
    negated = bool(read.took("not"))
    verb = read.take()
    if verb in {"is", "are"}:
        assert (verb == "are") == many
        verb = ""
    else:
        assert (verb in BASES) == many
        verb = verb if many else THIRDS[verb]
    assert read.words == ["."]
    return Clause(tuple(subject), verb, negated, very, quality, relation, place, companion, time)


def entered(place: str) -> bool:
    """Whether somebody can be in it."""
    return place in {"forest", "village", "garden", "cave", "mill"}


def chance_of_phrase(phrase: Phrase, adjective: float) -> float:
    chance = 1.0
    if phrase.noun in {*grammar.ANIMAL_WORDS, *grammar.PLACES}:
        many = 0.25 if phrase.noun in grammar.PLACES else 0.45
        chance *= many if phrase.many else 1 - many
        if phrase.many:
            chance *= 0.3 / 9 if phrase.numeral else 0.7
    if adjective:
        choices = len(grammar._ADJECTIVES[phrase.noun])
        chance *= adjective / choices if phrase.adjective else 1 - adjective
    return chance


def chance_of_subject(subject: tuple[Phrase, ...], choices: int) -> float:
    """Of somebody among ``choices``."""
    if len(subject) == 2:
        return 0.12 / choices / (choices - 1)
    return 0.88 / choices * chance_of_phrase(subject[0], 0.35)


def chance_of_time(time: str, share: float) -> float:
    if not time:
        return 1 - share
    # seven days weigh 0.1 each, four seasons and four parts of the day 0.15 each
    return share * (0.1 if time in DAYS else 0.15) / 1.9


def chance_of_action(
    clause: Clause,
    companions: tuple[str, ...],
    places: Mapping[str, float],
    verbs: Mapping[str, float],
) -> float:
    """Of what the subject does, whoever that is."""
    assert clause.place is not None
    place = clause.place.noun
    inside = entered(place)
    if clause.verb:
        chance = 0.75 * verbs[clause.verb]
        relations = {"to": 0.5, "in": 0.3, "near": 0.2} if inside else {"to": 0.6, "near": 0.4}
    else:
        chance = 0.25
        relations = {"in": 0.7, "near": 0.3} if inside else {"near": 1.0}
    chance *= 0.15 if clause.negated else 0.85
    chance *= places[place] * relations[clause.relation] * chance_of_phrase(clause.place, 0.25)
    if clause.companion is None:
        return chance * 0.7 * chance_of_time(clause.time, 0.35)
    left = len({*companions} - {who.noun for who in clause.subject})
    return chance * 0.3 / left * chance_of_phrase(clause.companion, 0.25)


def chance_of_degree(clause: Clause) -> float:
    return {(0, 0): 0.5, (0, 1): 0.22, (1, 0): 0.2, (1, 1): 0.08}[clause.negated, clause.very]


def chance_of_look(clause: Clause, places: Mapping[str, float]) -> float:
    (subject,) = clause.subject
    chance = places[subject.noun] * chance_of_phrase(subject, 0) * chance_of_degree(clause)
    return chance / len(grammar.LOOKS) * chance_of_time(clause.time, 0.3)


def chance_of_clause(clause: Clause) -> float:
    """Of a statement of a document with translations."""
    places: dict[str, float] = {place: 1 / 8 for place in grammar.PLACES}
    if clause.quality and clause.subject[0].noun in places:
        return 0.18 * chance_of_look(clause, places)
    subject = chance_of_subject(clause.subject, len(grammar.CREATURES))
    if clause.quality:
        feeling = chance_of_degree(clause) / 11 * chance_of_time(clause.time, 0.2)
        return 0.22 * subject * feeling
    verbs: dict[str, float] = {verb: 1 / 6 for verb in grammar.VERBS}
    return 0.6 * subject * chance_of_action(clause, grammar.COMPANIONS, places, verbs)
