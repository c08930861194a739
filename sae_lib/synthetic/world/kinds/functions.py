"""Lists of examples of one hidden function, to be learned in context: ``two -> 2 ; six -> 6 .``

The examples tell the function, and each answer follows from it. Most functions have inputs or
answers of their own, so that one example is enough; others share both with their neighbours
(the next number and the one before), and of lists of three words several functions may fit the
first examples. The surprise sums out all functions that fit the whole text.
"""

from functools import cache
from itertools import pairwise, permutations, product
from math import exp, inf, log
from typing import NamedTuple

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.foreign import NOUNS, TO_SINDRAL, WITH_PLURAL
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.knowledge import entities
from sae_lib.synthetic.world.lexicon import (
    ANIMAL_WORDS,
    ANIMALS,
    COLORS,
    CURRENCIES,
    DAYS,
    FAMILY_OF_PROFESSION,
    FOODS,
    INSTRUMENTS,
    LANGUAGES,
    NUMBER_WORDS,
    RIVERS,
    SEASONS,
    WORKPLACES,
    plural,
)
from sae_lib.synthetic.world.task import (
    AnswerTask,
    LabelledTask,
    Prompt,
    add_answers,
    add_task,
)
from sae_lib.synthetic.world.writer import Writer

ARROW, SEPARATOR = "->", ";"
FEWEST, MOST = 3, 12
LONGEST = 30
"""More examples than this would not fit a long context."""
ONLY_X = "xylophone"
"""So that every letter begins a word."""
NUM_SHOWN = 4
"""Examples in front of the query of an answer task."""


class Function(NamedTuple):
    """What a list of examples may be about."""

    description: str
    table: dict[str, str]
    """Answer by input; each is one word or several."""
    distinct: bool
    """Whether inputs or answers are unlike those of all other functions; the rest are hard."""

    @property
    def inputs(self) -> tuple[str, ...]:
        return tuple(self.table)

    def apply(self, x: str) -> str:
        return self.table[x]


CATEGORIES = {
    "animal": ANIMAL_WORDS, "food": FOODS, "color": COLORS,
    "profession": tuple(FAMILY_OF_PROFESSION), "instrument": (*INSTRUMENTS, ONLY_X),
    "currency": CURRENCIES, "language": LANGUAGES, "river": RIVERS,
}  # fmt: skip
OPPOSITES = (
    ("hot", "cold"), ("dry", "rainy"), ("little", "large"), ("young", "old"),
    ("happy", "sad"), ("glad", "angry"), ("black", "white"), ("excellent", "terrible"),
    ("wonderful", "awful"), ("lovely", "horrible"), ("great", "poor"), ("perfect", "broken"),
    ("splendid", "dreadful"), ("sturdy", "flimsy"), ("solid", "shaky"), ("durable", "fragile"),
    ("reliable", "faulty"), ("smooth", "rough"), ("pretty", "ugly"), ("elegant", "clumsy"),
    ("charming", "dull"), ("delightful", "annoying"),
)  # fmt: skip


def _opposite() -> dict[str, str]:
    return {a: b for pair in OPPOSITES for a, b in (pair, pair[::-1])}


def _shifted(*cycles: tuple[str, ...], by: int) -> dict[str, str]:
    """The neighbour of each word in its cycle."""
    return {
        word: cycle[(place + by) % len(cycle)]
        for cycle in cycles
        for place, word in enumerate(cycle)
    }


def _groups() -> dict[str, str]:
    group_of = {
        word: group
        for group, members in ANIMALS.items()
        for names in members.values()
        for word in names.split()
    }
    return {word: group_of[word] for word in ANIMAL_WORDS}


_LISTS = [
    order
    for trio in product(ANIMAL_WORDS[::3], COLORS, INSTRUMENTS)
    for order in permutations(trio)
]
_COUNTABLE = tuple(noun for noun in NOUNS if noun in WITH_PLURAL)
_COUNTRIES = {e.name: e.attributes["capital"] for e in entities("known") if e.type == "country"}
_SAME = (*_opposite(), *NUMBER_WORDS, *DAYS, *SEASONS)

FUNCTIONS: dict[str, Function] = {
    "to-sindral": Function(
        "a noun to its counterpart in sindral", {n: TO_SINDRAL[n] for n in NOUNS}, True
    ),
    "from-sindral": Function(
        "a noun of sindral to its counterpart", {TO_SINDRAL[n]: n for n in NOUNS}, True
    ),
    "category": Function(
        "a word to what kind of thing it names",
        {word: name for name, members in CATEGORIES.items() for word in members},
        True,
    ),
    "animal-group": Function("an animal to its group", _groups(), True),
    "plural": Function("a noun to its plural", {n: plural(n) for n in _COUNTABLE}, True),
    "singular": Function("a plural to its singular", {plural(n): n for n in _COUNTABLE}, True),
    "digit": Function(
        "a number word to its digit",
        {word: str(number) for number, word in enumerate(NUMBER_WORDS[:-1], 2)},
        True,
    ),
    "capital": Function("a country to its capital", _COUNTRIES, True),
    "workplace": Function(
        "a profession to its place of work",
        {word: WORKPLACES[family][0] for word, family in FAMILY_OF_PROFESSION.items()},
        True,
    ),
    "initial": Function("a noun to its first letter", {n: n[0].upper() for n in NOUNS}, True),
    "identity": Function("a word to itself", {word: word for word in _SAME}, False),
    "opposite": Function("a quality to its opposite", _opposite(), False),
    "next-number": Function("a number to the next", dict(pairwise(NUMBER_WORDS)), False),
    "previous-number": Function(
        "a number to the one before",
        {b: a for a, b in pairwise(NUMBER_WORDS)},
        False,
    ),
    "next-time": Function("a day or season to the next", _shifted(DAYS, SEASONS, by=1), False),
    "previous-time": Function(
        "a day or season to the one before", _shifted(DAYS, SEASONS, by=-1), False
    ),
    "first-of-list": Function(
        "three words to the first", {" ".join(x): x[0] for x in _LISTS}, False
    ),
    "last-of-list": Function("three words to the last", {" ".join(x): x[2] for x in _LISTS}, False),
    "animal-of-list": Function(
        "three words to the one that names an animal",
        {" ".join(x): next(word for word in x if word in ANIMAL_WORDS) for x in _LISTS},
        False,
    ),
    "color-of-list": Function(
        "three words to the one that names a color",
        {" ".join(x): next(word for word in x if word in COLORS) for x in _LISTS},
        False,
    ),
}

declare("arrow", "The arrow between an input and its answer.", parents=("punctuation",),
        words=ARROW)  # fmt: skip
declare("example-separator", "The mark between two examples.", parents=("punctuation",),
        words=SEPARATOR)  # fmt: skip
declare("category-name", "The word names a kind of thing.", words=CATEGORIES)
declare("animal-group-name", "The word names a group of animals.", parents=("category-name",),
        words=ANIMALS)  # fmt: skip
tag("noun-singular", (*CATEGORIES, *ANIMALS, ONLY_X))
tag("instrument", ONLY_X)

declare("function-known", "The examples tell which function they are of.", scope="context")
for _name, _function in FUNCTIONS.items():
    declare(
        f"function-{_name}",
        f"The examples tell that the function takes {_function.description}.",
        parents=("function-known",),
        scope="context",
    )
declare("function-input", "The word belongs to an input of the function.", scope="context")
declare("function-answer", "The word belongs to an answer of the function.", scope="context")
declare("function-answer-next", "The next word begins the answer of the function.",
        scope="context")  # fmt: skip

_NAMES = tuple(FUNCTIONS)
_INPUTS = {name: function.inputs for name, function in FUNCTIONS.items()}
_CONSISTENT: dict[tuple[str, str], frozenset[str]] = {}
"""By input and answer: which functions take the one to the other."""
_TAKING: dict[str, frozenset[str]] = {}
"""By input: which functions take it; by the first words of one with a blank after them, too."""
for _name, _function in FUNCTIONS.items():
    for _pair in _function.table.items():
        _CONSISTENT[_pair] = _CONSISTENT.get(_pair, frozenset()) | {_name}
    for _x in _function.table:
        _begun = ""
        for _word in _x.split():
            _begun += f"{_word} "
            _TAKING[_begun] = _TAKING.get(_begun, frozenset()) | {_name}
        _TAKING[_x] = _TAKING.get(_x, frozenset()) | {_name}


def consistent_functions(examples: list[tuple[str, str]]) -> set[str]:
    """Names of all functions that fit the examples (input, answer)."""
    return set(_NAMES).intersection(*(_CONSISTENT[pair] for pair in examples))


@cache
def _num_examples(name: str, length_factor: float) -> range:
    """How many examples a list of this function may have, all equally likely."""
    most = min(round(MOST * length_factor), LONGEST, len(_INPUTS[name]))
    return range(min(round(FEWEST * length_factor), most), most + 1)


@cache
def _surprise(name: str, num: int, length_factor: float) -> float:
    """-log p(function, number of examples, inputs); infinite for too many examples."""
    possible = _num_examples(name, length_factor)
    if num not in possible:
        return inf
    num_inputs = len(_INPUTS[name])
    inputs = sum(log(num_inputs - drawn) for drawn in range(num))
    return log(len(_NAMES)) + log(len(possible)) + inputs


@cache
def _told_by(fitting: frozenset[str], x: str) -> int:
    """Which word of an example, counted from 0, leaves only one of the functions that fitted.

    A word of the input ``x`` does where no other function has such inputs, the arrow where the
    others have longer ones; else it takes the answer.
    """
    words, begun = x.split(), ""
    for place, word in enumerate(words):
        begun += f"{word} "
        if len(fitting & _TAKING[begun]) == 1:
            return place
    return len(words) if len(fitting & _TAKING[x]) == 1 else len(words) + 1


def _say_examples(w: Writer, name: str, inputs: list[str]) -> frozenset[str]:
    """Write examples of a function; returns the functions that fit all of them."""
    table, fitting = FUNCTIONS[name].table, frozenset(_NAMES)
    for place, x in enumerate(inputs):
        if place:
            w.say(SEPARATOR)
        start = len(w.tokens)
        w.say(x, "function-input")
        w.say(ARROW, "function-answer-next")
        w.mark("answer")
        if len(fitting) > 1:
            fitted = fitting
            fitting &= _CONSISTENT[x, table[x]]
            if len(fitting) == 1:
                w.tell(f"function-{name}", since=start + _told_by(fitted, x))
        w.say(table[x], "function-answer")
    w.say(".")
    return fitting


def write(w: Writer, cfg: WorldConfig) -> None:
    factor = cfg.length_factor
    with w.uncounted():
        name = w.pick(_NAMES)
        num = w.pick(_num_examples(name, factor))
        inputs = w.arrange(_INPUTS[name], num)
    fitting = _say_examples(w, name, inputs)
    w.count(-log(sum(exp(-_surprise(other, num, factor)) for other in sorted(fitting))))
    w.labels |= {"function": name, "num_examples": str(num), "num_fitting": str(len(fitting))}


register(
    Kind(
        "functions",
        "a list of examples of one function, to be learned in context",
        write,
        weight=0.10,
    )
)
add_task(
    LabelledTask(
        name="function",
        description="Which function are the examples of? The rare lists of three words that leave "
        "it open are labelled with the function that wrote them.",
        classes=_NAMES,
        key="function",
        kind="functions",
    )
)


def function_prompt(w: Writer, name: str, num_shown: int = NUM_SHOWN) -> Prompt:
    """Examples of a function and an input that waits for its answer, after the arrow.

    Where several functions fit the examples, the answers of all of them are right.
    """
    inputs = w.arrange(_INPUTS[name], num_shown + 1)
    function = FUNCTIONS[name]
    _say_examples(w, name, inputs)
    shown = [(x, function.apply(x)) for x in inputs[:-1]]
    fitting = [other for other in _NAMES if other in consistent_functions(shown)]
    answers = dict.fromkeys(FUNCTIONS[other].table.get(inputs[-1], "") for other in fitting)
    return Prompt(
        " ".join(w.tokens[: w.marks["answer"]]),
        tuple(answer for answer in answers if answer),
        {"function": name, "num_fitting": str(len(fitting))},
    )


_DISTINCT = tuple(name for name in _NAMES if FUNCTIONS[name].distinct)
_HARD = tuple(name for name in _NAMES if not FUNCTIONS[name].distinct)


def _distinct_prompt(w: Writer, cfg: WorldConfig) -> Prompt:
    return function_prompt(w, w.pick(_DISTINCT))


def _hard_prompt(w: Writer, cfg: WorldConfig) -> Prompt:
    return function_prompt(w, w.pick(_HARD))


add_answers(
    AnswerTask(
        name="in-context-functions",
        description="After four examples of a function with inputs or answers of its own, is its "
        "answer to a new input right?",
        prompt=_distinct_prompt,
        goal=0.95,
        break_down="function",
    )
)
add_answers(
    AnswerTask(
        name="in-context-hard",
        description="The same of functions that share inputs and answers with each other.",
        prompt=_hard_prompt,
        goal=0.0,
        break_down="function",
    )
)
