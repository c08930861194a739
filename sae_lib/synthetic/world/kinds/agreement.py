"""Sentences in which a verb agrees with its subject, next to it or across other nouns.

Four structures: the verb follows its subject (simple), a phrase with another noun stands between
them (pp), a relative clause with a subject of its own stands between them (rc), or the verb is that
of the relative clause and agrees with the inner subject (within-rc). The other noun has the number
of the subject, or the other one, by chance.
"""

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.lexicon import (
    ANIMAL_WORDS,
    MOTIONS,
    PLACES,
    SEASONS,
    SIZES,
    listed,
    plural,
)
from sae_lib.synthetic.world.task import (
    AnswerTask,
    LabelledTask,
    PairTask,
    Prompt,
    PromptPair,
    add_answers,
    add_pairs,
    add_task,
)
from sae_lib.synthetic.world.writer import Table, Writer

STRUCTURES = ("simple", "pp", "rc", "within-rc")
PEOPLE = listed("nurse painter singer dancer teacher farmer sailor gardener")
NOUNS = (*ANIMAL_WORDS, *PEOPLE)
# base form (plural), third person singular
INTRANSITIVE = (
    *MOTIONS,
    ("sleep", "sleeps"), ("sing", "sings"), ("wait", "waits"), ("rest", "rests"),
    ("smile", "smiles"), ("swim", "swims"),
)  # fmt: skip
TRANSITIVE = (("follow", "follows"), ("admire", "admires"), ("chase", "chases"),
              ("watch", "watches"), ("see", "sees"))  # fmt: skip
_BETWEEN = ("near", "with", "behind")

for _verbs in (INTRANSITIVE, TRANSITIVE):
    tag("verb-present-plural", [base for base, _ in _verbs])
    tag("verb-present", [third for _, third in _verbs])
declare("resting-verb", "The verb is about staying where one is.",
        words="sleep sleeps wait waits rest rests")  # fmt: skip
declare("pursuit-verb", "The verb is about having somebody in view or going after them.",
        words=[form for forms in TRANSITIVE for form in forms])  # fmt: skip
tag("noun-plural", [plural(noun) for noun in PEOPLE])
declare("profession-plural", "The word names people of a profession.", parents=("profession",),
        words=[plural(noun) for noun in PEOPLE])  # fmt: skip
tag("preposition", "behind")
tag("noun-singular", "lesson")

for _id, _description, _parent in (
    ("agreement-subject", "A main subject was named, and its verb is not over.", ""),
    ("agreement-subject-singular", "The main subject, from itself to its verb, is singular.",
     "agreement-subject"),
    ("agreement-subject-plural", "The main subject, from itself to its verb, is plural.",
     "agreement-subject"),
    ("agreement-inner", "The subject of a relative clause was named; its verb is not over.", ""),
    ("agreement-inner-singular",
     "The subject of the relative clause, from itself to its verb, is singular.",
     "agreement-inner"),
    ("agreement-inner-plural",
     "The subject of the relative clause, from itself to its verb, is plural.",
     "agreement-inner"),
    ("agreement-relative-clause", "The word belongs to a relative clause.", ""),
    ("agreement-attached-phrase", "The word belongs to a phrase between subject and verb.", ""),
    ("agreement-distractor-differs",
     "A noun in the way has another number than the subject, and the verb has not come yet.", ""),
    ("agreement-verb-expected", "The next word is a verb that agrees.", ""),
    ("agreement-singular-expected", "The next word is a verb in the singular.",
     "agreement-verb-expected"),
    ("agreement-plural-expected", "The next word is a verb in the plural.",
     "agreement-verb-expected"),
):  # fmt: skip
    declare(_id, _description, parents=(_parent,) if _parent else (), scope="context")

LONGEST = 20
"""Sentences of a document, whatever the length factor."""


class _Noun(NamedTuple):
    singular: str
    many: bool

    @property
    def word(self) -> str:
        return plural(self.singular) if self.many else self.singular

    def verb(self, forms: tuple[str, str]) -> str:
        return forms[0] if self.many else forms[1]


class _Sentence(NamedTuple):
    """All choices of one sentence, so that a twin can differ in one of them."""

    structure: str
    nouns: tuple[_Noun, ...]
    """In the order of the text; the first is the main subject, and in a relative clause the last
    is the inner subject."""
    verb: tuple[str, str]
    inner_verb: tuple[str, str] = ("", "")
    size: str = ""
    """Of the main subject; may be empty."""
    preposition: str = ""
    season: str = ""
    place: str = ""
    """Where it happens; may be empty."""

    @property
    def asked(self) -> int:
        """Which noun decides the verb that the structure is about."""
        return 2 if self.structure == "within-rc" else 0

    @property
    def differs(self) -> bool:
        """Whether the noun that could mislead has another number than the one that decides."""
        return len(self.nouns) > 1 and self.nouns[1].many != self.nouns[self.asked].many

    def twin(self) -> "_Sentence":
        """The same with the other number of the noun that decides."""
        changed = tuple(
            noun._replace(many=not noun.many) if place == self.asked else noun
            for place, noun in enumerate(self.nouns)
        )
        return self._replace(nouns=changed)

    @property
    def labels(self) -> dict[str, str]:
        return {
            "structure": self.structure,
            "number": _NUMBERS[self.nouns[self.asked].many],
            "distractor": "none" if len(self.nouns) == 1 else "other" if self.differs else "same",
        }


_NUMBERS = {False: "singular", True: "plural"}
_NUM_NOUNS = {"simple": 1, "pp": 2, "rc": 2, "within-rc": 3}


@cache
def _num_sentences(length_factor: float) -> Table[int]:
    chances: dict[int, float] = {}
    for num, chance in ((3, 0.3), (4, 0.3), (5, 0.2), (6, 0.2)):
        longer = min(round(num * length_factor), LONGEST)
        chances[longer] = chances.get(longer, 0.0) + chance
    return Table(chances.keys(), chances.values())


def _choose(w: Writer, structure: str) -> _Sentence:
    names = w.arrange(NOUNS, _NUM_NOUNS[structure])
    return _Sentence(
        structure,
        tuple(_Noun(name, w.flip(0.5)) for name in names),
        w.pick(TRANSITIVE if structure == "within-rc" else INTRANSITIVE),
        w.pick(TRANSITIVE) if structure.endswith("rc") else ("", ""),
        w.pick(SIZES) if w.flip(0.25) else "",
        w.pick(_BETWEEN) if structure == "pp" else "",
        w.pick(SEASONS) if structure == "simple" else "",
        w.pick(PLACES) if structure != "within-rc" and w.flip(0.3) else "",
    )


def _agree(w: Writer, noun: _Noun, forms: tuple[str, str], *ids: str) -> None:
    """Write a verb that nothing else could stand in the place of."""
    w.contexts[-1] += (f"agreement-{_NUMBERS[noun.many]}-expected",)
    w.mark("answer")
    w.say(noun.verb(forms), *ids)


def _relative_clause(w: Writer, subject: _Noun, sentence: _Sentence) -> None:
    around = w.around
    w.add_context("agreement-relative-clause")
    w.say("that the")
    w.add_context(f"agreement-inner-{_NUMBERS[subject.many]}")
    differs = ("agreement-distractor-differs",) if sentence.differs else ()
    w.say(subject.word, *differs)
    # the main verb still waits, so that the inner subject is in its way
    _agree(w, subject, sentence.inner_verb, *(differs if sentence.structure == "rc" else ()))
    w.around = around


def _say(w: Writer, sentence: _Sentence) -> None:
    around = w.around
    subject = sentence.nouns[0]
    if sentence.season:
        w.say("in")
        w.say(sentence.season)
    w.say("the")
    if sentence.size:
        w.say(sentence.size)
    w.add_context(f"agreement-subject-{_NUMBERS[subject.many]}")
    w.say(subject.word)
    if sentence.structure == "within-rc":
        w.say(subject.verb(sentence.verb))
        w.around = around
        w.say("the")
        w.say(sentence.nouns[1].word)
        _relative_clause(w, sentence.nouns[2], sentence)
    else:
        if sentence.structure == "pp":
            w.say(f"{sentence.preposition} the", "agreement-attached-phrase")
            differs = ("agreement-distractor-differs",) if sentence.differs else ()
            w.say(sentence.nouns[1].word, "agreement-attached-phrase", *differs)
        elif sentence.structure == "rc":
            _relative_clause(w, sentence.nouns[1], sentence)
        _agree(w, subject, sentence.verb)
        w.around = around
        if sentence.place:
            w.say("near the")
            w.say(sentence.place)
    w.say(".")


def write(w: Writer, cfg: WorldConfig) -> None:
    w.say("lesson :")
    for _ in range(w.draw(_num_sentences(cfg.length_factor))):
        sentence = _choose(w, w.pick(STRUCTURES))
        w.labels |= sentence.labels  # those of the last one stay
        _say(w, sentence)


register(Kind("agreement", "sentences whose verbs agree with near and far subjects", write,
              weight=0.04))  # fmt: skip
add_task(
    LabelledTask(
        name="agreement-number",
        description="Is the next word, a verb, singular or plural?",
        classes=("singular", "plural"),
        key="number",
        kind="agreement",
        cut="answer",
    )
)


def _right_forms(w: Writer, cfg: WorldConfig) -> Prompt:
    write(w, cfg)
    place = 0 if w.labels["number"] == "plural" else 1
    return Prompt(
        " ".join(w.tokens[: w.marks["answer"]]),
        tuple(forms[place] for forms in (*INTRANSITIVE, *TRANSITIVE)),
        dict(w.labels),
    )


add_answers(
    AnswerTask(
        name="agreement",
        description="The verb has the number of its subject, whatever nouns are in the way.",
        prompt=_right_forms,
        goal=0.98,
        break_down="structure",
    )
)


def _cut(sentence: _Sentence) -> tuple[str, str]:
    """A prompt that ends before the verb in question, and the verb."""
    w = Writer(0)  # nothing is left to chance any more
    w.say("lesson :")
    _say(w, sentence)
    place = w.marks["answer"]
    return " ".join(w.tokens[:place]), w.tokens[place]


def _pairs(structure: str) -> Callable[[Writer, WorldConfig], PromptPair]:
    def pair(w: Writer, cfg: WorldConfig) -> PromptPair:
        sentence = _choose(w, structure)
        (clean, clean_answer), (patch, patch_answer) = _cut(sentence), _cut(sentence.twin())
        return PromptPair(clean, patch, clean_answer, patch_answer, sentence.labels)

    return pair


for _structure, _where in (
    ("simple", "next to it"),
    ("pp", "across a phrase with another noun"),
    ("rc", "across a relative clause"),
    ("within-rc", "within a relative clause"),
):
    add_pairs(
        PairTask(
            name=f"agreement-{_structure}",
            description=f"The subject is singular or plural, and its verb agrees {_where}.",
            pair=_pairs(_structure),
        )
    )
