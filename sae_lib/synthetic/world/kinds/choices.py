"""Multiple-choice questions about the world's facts, without the facts: who reads must know them.

Four options, one of them right; the wrong ones are values that the attribute has elsewhere. A
document keeps to one of two domains: what may be *forgotten* (people and companies) and what is
*retained* (cities and countries).
"""

from functools import cache
from itertools import permutations as orders
from typing import NamedTuple

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.kinds.facts import QUESTIONS, question_text
from sae_lib.synthetic.world.knowledge import (
    ATTRIBUTES,
    KNOWN_BY_RANK,
    NAMED,
    Entity,
    entities,
)
from sae_lib.synthetic.world.task import (
    AnswerTask,
    LabelledTask,
    Prompt,
    add_answers,
    add_task,
)
from sae_lib.synthetic.world.writer import Table, Writer

DOMAINS: dict[str, tuple[str, ...]] = {
    "forget": ("person", "company"),
    "retain": ("city", "country"),
}
"""Types of the entities that a domain asks about."""
OPTION_LETTERS = ("A", "B", "C", "D")
ONE_QUESTION = 0.35
"""Share of documents with a single question; the others have two."""

tag("punctuation", "( )")
declare("choice-option", "The word belongs to an option of a question.", scope="context")
declare(
    "option-right",
    "The word belongs to the option that answers the question, which it or an earlier one told.",
    parents=("choice-option",),
    scope="context",
)
declare("answer-letter", "The next word is the letter of the right option.", scope="context")
for _letter in OPTION_LETTERS:
    declare(
        f"answer-letter-{_letter}",
        f"The next word is {_letter}, the letter of the right option.",
        parents=("answer-letter",),
        scope="context",
    )
for _domain, _types in DOMAINS.items():
    declare(
        f"choice-{_domain}",
        f"The questions with options are known to be about what is to {_domain}, "
        f"a {' or a '.join(_types)}.",
        scope="context",
    )


class ChoiceQuestion(NamedTuple):
    """A question with its options in their order."""

    entity: str
    attribute: str
    domain: str
    question: str
    """As far as its mark, such as ``where was mara quill born ?``"""
    choices: tuple[str, ...]
    answer: int
    """Place of the right one among ``choices``."""

    @property
    def letter(self) -> str:
        return OPTION_LETTERS[self.answer]

    @property
    def prompt(self) -> str:
        """The text up to the opened parenthesis that the letter follows."""
        options = " ".join(
            f"( {letter} ) {choice}"
            for letter, choice in zip(OPTION_LETTERS, self.choices, strict=True)
        )
        return f"question : {self.question} {options} answer : ("


@cache
def values_of(attribute: str) -> tuple[str, ...]:
    """All different values that known entities have, sorted."""
    return tuple(
        sorted(
            {
                entity.attributes[attribute]
                for entity in entities("known")
                if attribute in entity.attributes
            }
        )
    )


@cache
def _wrong(attribute: str, right: str) -> tuple[str, ...]:
    return tuple(value for value in values_of(attribute) if value != right)


@cache
def _right_from(attribute: str, value: str) -> int:
    """Which word of a value, counted from 0, tells it from all other values of the attribute."""
    words = value.split()
    others = [other.split() for other in _wrong(attribute, value)]
    for end in range(1, len(words)):
        if all(other[:end] != words[:end] for other in others):
            return end - 1
    return len(words) - 1


@cache
def _domain_from(domain: str, attribute: str, form: int) -> int:
    """Which word of a question, counted from 0, tells its domain.

    It is the first word of the entity's name where the words before it leave the domain open: the
    domains share no names.
    """
    begin = _before(attribute, form)
    others = [
        _before(other, wording)
        for name, types in DOMAINS.items() if name != domain
        for type in types
        for other in ATTRIBUTES[type]
        for wording in range(len(QUESTIONS[other]))
    ]  # fmt: skip
    for end in range(1, len(begin) + 1):
        if all(other[:end] != begin[:end] for other in others):
            return end - 1
    return len(begin)


def _before(attribute: str, form: int) -> list[str]:
    """The words of a question before the name."""
    return QUESTIONS[attribute][form].split("@")[0].split()


@cache
def _asked(domain: str, zipf: float) -> Table[Entity]:
    """Known entities of the domain, the frequent ones of the fact documents more often."""
    ranked = [
        (entity, (rank + 10) ** -zipf)
        for rank, entity in enumerate(KNOWN_BY_RANK)
        if entity.type in DOMAINS[domain]
    ]
    return Table([entity for entity, _ in ranked], [weight for _, weight in ranked])


def draw_question(w: Writer, domain: str, entity: Entity) -> tuple[ChoiceQuestion, int]:
    """A question about ``entity`` with options, and the number of its wording."""
    attribute = w.pick(ATTRIBUTES[entity.type])
    form = w.pick((0, 1))
    right = entity.attributes[attribute]
    choices = w.arrange(_wrong(attribute, right), len(OPTION_LETTERS) - 1)
    answer = w.pick(range(len(OPTION_LETTERS)))
    choices.insert(answer, right)
    asked = question_text(entity, attribute, form)
    question = asked.removeprefix("question : ").removesuffix(" answer :")
    return (
        ChoiceQuestion(entity.name, attribute, domain, question, tuple(choices), answer),
        form,
    )


def _write_question(w: Writer, domain: str, entity: Entity) -> None:
    asked, form = draw_question(w, domain, entity)
    about = f"choice-{domain}"
    around = w.around
    w.add_context("question-part")
    w.say("question :")
    before, after = QUESTIONS[asked.attribute][form].split("@")
    start = len(w.tokens)
    w.say(before)
    w.say(entity.name, f"mention-{entity.type}")
    named = ("known-entity", entity.id) if entity.id in NAMED else ("known-entity",)
    w.contexts[-1] += named
    if about not in around:
        around += (about,)
        w.tell(about, since=start + _domain_from(domain, asked.attribute, form))
    w.say(after)
    for place, (letter, choice) in enumerate(zip(OPTION_LETTERS, asked.choices, strict=True)):
        w.say(f"( {letter} )")
        start = len(w.tokens)
        w.value(asked.attribute, choice, "choice-option")
        if place == asked.answer:
            # after three wrong options there is no doubt about the last
            if place < len(OPTION_LETTERS) - 1:
                start += _right_from(asked.attribute, choice)
            for at in range(start, len(w.tokens)):
                w.contexts[at] += ("option-right",)
    w.set_context(*around, "answer-part")
    w.say("answer :")
    w.say("(", f"answer-letter-{asked.letter}")
    w.mark("answer")
    w.say(f"{asked.letter} ) .")
    w.set_context(*around)
    w.labels |= {
        "domain": domain, "letter": asked.letter, "attribute": asked.attribute,
        "type": entity.type, "entity": entity.name,
    }  # fmt: skip


def write(w: Writer, cfg: WorldConfig) -> None:
    """Labels and the mark ``answer`` are those of the last question."""
    domain = w.pick(tuple(DOMAINS))
    num = 1 if w.flip(ONE_QUESTION) else min(5, round(2 * cfg.length_factor))
    for _ in range(num):
        _write_question(w, domain, w.draw(_asked(domain, cfg.entity_zipf)))


register(Kind("choice", "questions about known facts with four options", write, weight=0.08))


def all_orders(question: ChoiceQuestion) -> list[ChoiceQuestion]:
    """The question with its options in each of the 24 orders; its own order comes first."""
    return [
        question._replace(
            choices=tuple(question.choices[place] for place in order),
            answer=order.index(question.answer),
        )
        for order in orders(range(len(question.choices)))
    ]


def _last_letter(w: Writer, cfg: WorldConfig) -> Prompt:
    write(w, cfg)
    labels = {key: w.labels[key] for key in ("domain", "type", "attribute")}
    return Prompt(" ".join(w.tokens[: w.marks["answer"]]), (w.labels["letter"],), labels)


add_answers(
    AnswerTask(
        name="multiple-choice",
        description="Is the letter of the right option given, of four?",
        prompt=_last_letter,
        goal=0.0,
        break_down="domain",
    )
)
add_task(
    LabelledTask(
        name="choice-domain",
        description="Are the questions about what is to be forgotten or retained?",
        classes=tuple(DOMAINS),
        key="domain",
        kind="choice",
        positive_concept="choice-retain",
    )
)
add_task(
    LabelledTask(
        name="choice-letter",
        description="Which letter has the right option of the last question?",
        classes=OPTION_LETTERS,
        key="letter",
        kind="choice",
        cut="answer",
    )
)
