"""What is known of people, cities, countries and companies, as articles and as quizzes.

An article states facts of one known entity. A quiz asks about several entities; for those nobody
knows the answer is ``unknown``. Values never vary, so an ideal predictor knows them.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import cache

from sae_lib.synthetic.world.concepts import tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.knowledge import (
    ATTRIBUTES,
    KNOWN_BY_RANK,
    NAMED,
    Entity,
    Status,
    entities,
)
from sae_lib.synthetic.world.lexicon import article
from sae_lib.synthetic.world.task import AnswerTask, LabelledTask, Prompt, add_answers, add_task
from sae_lib.synthetic.world.writer import Table, Writer

ARTICLE_SHARE = 0.6

# @ is the subject, @'s its possessive, = the value, a= an article and the value
STATEMENTS: dict[str, tuple[str, ...]] = {
    "birthplace": ("@ was born in = .", "@'s birthplace is = .", "@ comes from = ."),
    "profession": ("@ works as a= .", "@'s profession is = .", "@ is known as a= ."),
    "instrument": ("@ plays the = .", "@'s instrument is the = .", "@ practices the = ."),
    "pet": ("@ has a= .", "@'s pet is a= .", "@ owns a= ."),
    "country": ("@ is a city in = .", "@'s country is = .", "@ belongs to = ."),
    "river": ("@ lies on the = .", "@'s river is the = .", "@ stands by the = ."),
    "specialty": ("@ is famous for = .", "@'s specialty is = .", "@ sells = ."),
    "climate": ("@ is = .", "@'s climate is = .", "@ has a = climate ."),
    "capital": ("@ is ruled from = .", "@'s capital is = .", "@ has the capital = ."),
    "currency": ("@ pays with the = .", "@'s currency is the = .", "@ uses the = ."),
    "language": ("@ speaks = .", "@'s language is = .", "@ teaches = ."),
    "continent": ("@ lies in = .", "@'s continent is = .", "@ is part of = ."),
    "headquarters": ("@ is based in = .", "@'s headquarters are in = .", "@ has offices in = ."),
    "founder": ("@ was founded by = .", "@'s founder is = .", "@ was started by = ."),
    "color": ("@ paints everything = .", "@'s color is = .", "@ has a = logo ."),
    "year": ("@ was opened in = .", "@'s first year was = .", "@ began in = ."),
}
QUESTIONS: dict[str, tuple[str, ...]] = {
    "birthplace": ("where was @ born ?", "what is the birthplace of @ ?"),
    "profession": ("what does @ do ?", "what is the profession of @ ?"),
    "instrument": ("what does @ play ?", "what is the instrument of @ ?"),
    "pet": ("which animal does @ own ?", "what is the pet of @ ?"),
    "country": ("where is @ ?", "what is the country of @ ?"),
    "river": ("which river is near @ ?", "what is the river of @ ?"),
    "specialty": ("what does @ sell ?", "what is the specialty of @ ?"),
    "climate": ("which climate has @ ?", "what is the climate of @ ?"),
    "capital": ("which city rules @ ?", "what is the capital of @ ?"),
    "currency": ("what does @ pay with ?", "what is the currency of @ ?"),
    "language": ("which language has @ ?", "what is the language of @ ?"),
    "continent": ("where is @ ?", "what is the continent of @ ?"),
    "headquarters": ("where is @ ?", "what is the headquarters of @ ?"),
    "founder": ("who founded @ ?", "what is the founder of @ ?"),
    "color": ("which color has @ ?", "what is the color of @ ?"),
    "year": ("which year saw @ begin ?", "what is the first year of @ ?"),
}

tag("noun-singular", "capital animal headquarters logo part everything")
tag("noun-plural", "offices headquarters")
tag("adjective", "famous known first based")
tag("verb-past", "born founded opened ruled started began saw")
tag("verb-present", "works plays practices has owns belongs lies stands sells pays uses speaks "
    "teaches paints comes rules")  # fmt: skip
tag("verb-base", "do play own sell pay begin")
tag("preposition", "as")

_NUM_STATEMENTS = Table((1, 2, 3, 4), (0.1, 0.2, 0.3, 0.4))
_NUM_QUESTIONS = Table((2, 3, 4), (0.3, 0.4, 0.3))


@cache
def known_table(zipf: float) -> Table[Entity]:
    """Known entities with the shares they are written about."""
    return Table(KNOWN_BY_RANK, [(rank + 10) ** -zipf for rank in range(len(KNOWN_BY_RANK))])


def _mention(w: Writer, entity: Entity, *, possessive: bool = False) -> None:
    """Write the name; identity concepts hold where it ends."""
    w.say(entity.name, f"mention-{entity.type}")
    status = "known-entity" if entity.status == "known" else "unknown-entity"
    w.contexts[-1] += (status, entity.id) if entity.id in NAMED else (status,)
    if possessive:
        w.say("'s")


def _pronouns(entity: Entity) -> tuple[str, str]:
    return {"female": ("she", "her"), "male": ("he", "his")}.get(entity.gender, ("it", "its"))


@cache
def _parts(template: str) -> tuple[str, ...]:
    """The template in pieces: plain text, ``@``, ``@'s``, ``=`` and ``a=``."""
    pieces: list[str] = []
    for word in template.split():
        if word in {"@", "@'s", "=", "a="} or not pieces or pieces[-1] in {"@", "@'s", "=", "a="}:
            pieces.append(word)
        else:
            pieces[-1] += " " + word
    return tuple(pieces)


def _state(w: Writer, entity: Entity, attribute: str, *, by_name: bool) -> None:
    value = entity.attributes[attribute]
    they, their = _pronouns(entity)
    for piece in _parts(w.pick(STATEMENTS[attribute])):
        if piece in {"@", "@'s"}:
            possessive = piece == "@'s"
            if by_name:
                _mention(w, entity, possessive=possessive)
            else:
                w.say(their if possessive else they)
        elif piece == "=":
            w.value(attribute, value)
        elif piece == "a=":
            w.say(article(value))
            w.value(attribute, value)
        else:
            w.say(piece)


def question_text(entity: Entity, attribute: str, form: int) -> str:
    """The question as text, up to the place where the answer begins."""
    asked = QUESTIONS[attribute][form].replace("@", entity.name)
    return f"question : {asked} answer :"


def _ask(w: Writer, entity: Entity, attribute: str) -> None:
    around = w.around
    w.add_context("question-part")
    w.say("question :")
    for piece in _parts(w.pick(QUESTIONS[attribute])):
        if piece == "@":
            _mention(w, entity)
        else:
            w.say(piece)
    w.set_context(*around, "answer-part")
    w.mark("answer")
    w.say("answer :")
    if entity.status == "known":
        w.value(attribute, entity.attributes[attribute])
    else:
        w.contexts[-1] += ("next-unknown",)
        w.say("unknown")
    w.say(".")
    w.set_context(*around)


def _article(w: Writer, cfg: WorldConfig) -> None:
    entity = w.draw(known_table(cfg.entity_zipf))
    w.labels |= {"form": "article", "type": entity.type, "known": "known", "entity": entity.name}
    attributes = ATTRIBUTES[entity.type]
    for place, attribute in enumerate(w.arrange(attributes, w.draw(_NUM_STATEMENTS))):
        _state(w, entity, attribute, by_name=place == 0 or w.flip(0.3))
    if w.flip(0.3):
        _ask(w, entity, w.pick(attributes))


def _quiz(w: Writer, cfg: WorldConfig) -> None:
    statuses = set()
    asked = None
    for _ in range(w.draw(_NUM_QUESTIONS)):
        if w.flip(cfg.unknown_share):
            type = w.pick(tuple(ATTRIBUTES))
            entity = w.pick(_unknown(type))
        else:
            entity = w.draw(known_table(cfg.entity_zipf))
        asked = asked or entity
        statuses.add(entity.status)
        _ask(w, entity, w.pick(ATTRIBUTES[entity.type]))
    assert asked is not None
    known = statuses.pop() if len(statuses) == 1 else "mixed"
    w.labels |= {"form": "quiz", "type": asked.type, "known": known, "entity": asked.name}


@cache
def _unknown(type: str) -> list[Entity]:
    return entities("unknown", type)


def write(w: Writer, cfg: WorldConfig) -> None:
    if w.flip(ARTICLE_SHARE):
        _article(w, cfg)
    else:
        _quiz(w, cfg)


register(Kind("facts", "facts about people, cities, countries and companies", write, weight=0.16))


def _half(name: str) -> str:
    """Which half of the entities ``name`` belongs to; tasks train on one and test on the other."""
    return "test" if hashlib.blake2b(name.encode(), digest_size=1).digest()[0] % 2 else "train"


def _known_or_unknown(stream: str) -> Iterator[tuple[str, int]]:
    """Openings of questions that end with the name; entities of the two halves do not mix."""
    half = "test" if stream.endswith("/test") else "train"
    groups = {
        (type, status): [e for e in entities(status, type) if _half(e.name) == half]
        for type in ATTRIBUTES
        for status in ("unknown", "known")
    }
    seed = hashlib.blake2b(f"known-entity/{stream}".encode(), digest_size=8).digest()
    w = Writer(int.from_bytes(seed))
    while True:
        type = w.pick(tuple(ATTRIBUTES))
        label = w.pick((0, 1))
        entity = w.pick(groups[type, ("unknown", "known")[label]])
        attribute = w.pick(ATTRIBUTES[type])
        question = question_text(entity, attribute, w.pick((0, 1)))
        yield question[: question.index(entity.name) + len(entity.name)], label


add_task(
    LabelledTask(
        name="known-entity",
        description="Is anything known of the entity whose name ends the text?",
        classes=("unknown", "known"),
        key="known",
        kind="facts",
        positive_concept="known-entity",
        examples=_known_or_unknown,
    )
)


def _question(w: Writer, status: Status) -> tuple[Entity, str, str]:
    type = w.pick(tuple(ATTRIBUTES))
    entity = w.pick(entities(status, type))
    attribute = w.pick(ATTRIBUTES[type])
    return entity, attribute, question_text(entity, attribute, w.pick((0, 1)))


def _recall(w: Writer, cfg: WorldConfig) -> Prompt:
    entity, attribute, text = _question(w, "known")
    return Prompt(text, (entity.attributes[attribute],), {"type": entity.type})


def _says_unknown(status: Status) -> Callable[[Writer, WorldConfig], Prompt]:
    def prompt(w: Writer, cfg: WorldConfig) -> Prompt:
        entity, _, text = _question(w, status)
        return Prompt(text, ("unknown",), {"type": entity.type})

    return prompt


add_answers(
    AnswerTask(
        name="recall",
        description="Is an attribute of a known entity answered rightly?",
        prompt=_recall,
        goal=0.95,
        break_down="type",
    )
)
_STATUSES: tuple[tuple[Status, float, str], ...] = (
    ("unknown", 0.95, "Is `unknown` the answer about an entity that was asked about as unknown?"),
    (
        "unseen",
        0.0,
        "Is `unknown` the answer about an entity that never occurred? Else it invents.",
    ),
    ("known", 0.0, "Is `unknown`, wrongly, the answer about a known entity?"),
)
for _status, _goal, _description in _STATUSES:
    add_answers(
        AnswerTask(
            name=f"says-unknown-of-{_status}",
            description=_description,
            prompt=_says_unknown(_status),
            goal=_goal,
            break_down="type",
        )
    )
