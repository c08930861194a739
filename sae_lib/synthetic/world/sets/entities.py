"""Sets about entities: who is known, what is known of them, what is to be forgotten.

Entities are split for good: half of each type and status are for training, a tenth for
validation, the others for tests.
"""

import hashlib
from collections.abc import Iterator
from functools import cache, partial
from typing import NamedTuple

from sae_lib.errors import BadInput
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import SPLITS, Split, documents, text
from sae_lib.synthetic.world.kinds.choices import DOMAINS, draw_question
from sae_lib.synthetic.world.kinds.facts import QUESTIONS, STATEMENTS
from sae_lib.synthetic.world.knowledge import ATTRIBUTES, Entity, Status, entities
from sae_lib.synthetic.world.lexicon import article
from sae_lib.synthetic.world.sets._base import (
    Row,
    TaskSet,
    add_set,
    balance,
    distinct,
    writer,
    writers,
)
from sae_lib.synthetic.world.writer import Writer

STATUSES: tuple[Status, ...] = ("known", "unknown", "unseen")
TRAIN_SHARE, VALIDATION_SHARE = 0.5, 0.1

PAIR_TYPES = ("cause", "isolation")


@cache
def _splits(type: str, status: Status) -> dict[str, Split]:
    """Split by name. Ranks of hashes, so that even small groups have all splits."""
    names = sorted(
        (entity.name for entity in entities(status, type)),
        key=lambda name: hashlib.blake2b(name.encode(), digest_size=8).digest(),
    )
    ends = (
        round(len(names) * TRAIN_SHARE),
        round(len(names) * (TRAIN_SHARE + VALIDATION_SHARE)),
    )
    return {name: SPLITS[sum(place >= end for end in ends)] for place, name in enumerate(names)}


def split_of_entity(entity: Entity) -> Split:
    """Which split an entity is for, in all sets that are split by entity."""
    return _splits(entity.type, entity.status)[entity.name]


@cache
def entities_of(status: Status, type: str, split: str) -> tuple[Entity, ...]:
    return tuple(entity for entity in entities(status, type) if split_of_entity(entity) == split)


class Template(NamedTuple):
    """A way to ask for an attribute or to begin to state it."""

    attribute: str
    form: str
    """``question-1`` or ``statement-2``, for instance."""
    words: str
    """Up to the value; ``@`` is the entity."""
    has_article: bool
    """Whether the value's article comes before it, as it depends on the value."""
    split: Split


# per attribute: the first question and two statements, a statement, the second question
_SPLIT_OF_FORM: dict[str, Split] = {
    "question-1": "train", "statement-1": "train", "statement-3": "train",
    "statement-2": "validation", "question-2": "test",
}  # fmt: skip


@cache
def templates_of(type: str) -> tuple[Template, ...]:
    """All templates of the attributes of a type after which nothing but the value can come."""
    found = []
    for attribute in ATTRIBUTES[type]:
        for place, asked in enumerate(QUESTIONS[attribute], 1):
            form = f"question-{place}"
            words = f"question : {asked} answer :"
            found.append(Template(attribute, form, words, False, _SPLIT_OF_FORM[form]))
        for place, said in enumerate(STATEMENTS[attribute], 1):
            form = f"statement-{place}"
            words, _, _ = said.replace("a=", "=").partition(" =")
            others = (
                other
                for name in ATTRIBUTES[type]
                for other in STATEMENTS[name]
                if name != attribute
            )
            if not any(f"{other} ".startswith(f"{words} ") for other in others):
                before = words.replace("@'s", "@ 's")
                found.append(Template(attribute, form, before, "a=" in said.split(),
                                      _SPLIT_OF_FORM[form]))  # fmt: skip
    return tuple(found)


def prompt_of(template: Template, entity: Entity) -> tuple[str, int]:
    """The prompt up to the value, and the number of words up to the end of the entity's name."""
    before, _ = template.words.split("@")
    prompt = template.words.replace("@", entity.name)
    if template.has_article:
        prompt += f" {article(entity.attributes[template.attribute])}"
    return prompt, len(f"{before}{entity.name}".split())


def _attribute_templates(type: str, split: str) -> list[Template]:
    return [template for template in templates_of(type) if template.split == split]


def ravel_rows(type: str, entity_split: str, template_split: str) -> Iterator[Row]:
    """All prompts about known entities of one split with templates of another (or the same)."""
    asked = [
        (entity, template)
        for entity in entities_of("known", type, entity_split)
        for template in _attribute_templates(type, template_split)
    ]
    w = writer("ravel", type, entity_split, template_split)
    for entity, template in w.arrange(asked, len(asked)):
        prompt, entity_end = prompt_of(template, entity)
        yield {
            "entity": entity.name,
            "attribute": template.attribute,
            "value": entity.attributes[template.attribute],
            "prompt": prompt,
            "template": f"{template.attribute}/{template.form}",
            "entity_end": entity_end,
        }


def _draw_pair(w: Writer, type: str, target: str, split: str) -> Row | None:
    pair_type = w.pick(PAIR_TYPES)
    known = entities_of("known", type, split)
    base, source = w.arrange(known, 2)
    templates = _attribute_templates(type, split)
    asked = w.pick([t for t in templates if (t.attribute == target) == (pair_type == "cause")])
    value, other = (entity.attributes[asked.attribute] for entity in (base, source))
    # where they agree no interchange could be told from none
    if value == other or base.attributes[target] == source.attributes[target]:
        return None
    if asked.has_article and article(value) != article(other):
        return None  # the article would give the base's value away
    prompt, entity_end = prompt_of(asked, base)
    source_prompt, source_entity_end = prompt_of(w.pick(templates), source)
    return {
        "pair_type": pair_type, "target": target, "attribute": asked.attribute,
        "base": base.name, "source": source.name,
        "base_prompt": prompt, "base_entity_end": entity_end,
        "source_prompt": source_prompt, "source_entity_end": source_entity_end,
        "base_value": value, "source_value": other,
        "expected": other if pair_type == "cause" else value,
    }  # fmt: skip


def ravel_pairs(type: str, target: str, split: str) -> Iterator[Row]:
    """Pairs to interchange ``target`` between, without end while new ones come up.

    Types take turns. In a *cause* pair the base prompt asks for ``target`` and the source's value
    is expected; in an *isolation* pair it asks for another attribute and the base's value is.
    Base and source differ in ``target`` and in what is asked for.
    """
    if target not in ATTRIBUTES[type]:
        raise BadInput(f"a {type} has no such attribute", key="target", value=target)
    drawn = (
        pair
        for w in writers("ravel pairs", type, target, split)
        if (pair := _draw_pair(w, type, target, split))
    )
    return balance(
        distinct(drawn, ("target", "base_prompt", "source_prompt")),
        PAIR_TYPES,
        lambda row: row["pair_type"],
        f"ravel pairs/{type}/{target}/{split}",
    )


def _pairs_of_all(type: str, split: str, cfg: WorldConfig) -> Iterator[Row]:
    streams = [ravel_pairs(type, target, split) for target in ATTRIBUTES[type]]
    while True:
        for stream in streams:
            for _ in PAIR_TYPES:
                row = next(stream, None)
                if row is None:
                    return
                yield row


def _ravel(type: str, split: str, cfg: WorldConfig) -> Iterator[Row]:
    return ravel_rows(type, split, split)


for _type in ATTRIBUTES:
    add_set(
        TaskSet(
            name=f"ravel-{_type}",
            description=f"Prompts that ask for attributes of a {_type}; entities and templates of "
            "the splits are different ones.",
            used_for=("ravel", "reconstruction"),
            columns={
                "entity": f"Name of the {_type}.",
                "attribute": f"One of {', '.join(ATTRIBUTES[_type])}.",
                "value": "What the model should say next.",
                "prompt": "A question or statement up to the value.",
                "template": "Which wording.",
                "entity_end": "Number of words of the prompt up to the end of the name.",
            },
            rows=partial(_ravel, _type),
            entities=("entity", "template", "prompt"),
        )
    )
    add_set(
        TaskSet(
            name=f"ravel-pairs-{_type}",
            description=f"Prompts about two of the kind {_type}, to interchange one attribute of "
            "them (cause) and no other (isolation).",
            used_for=("ravel",),
            columns={
                "pair_type": "cause or isolation.",
                "target": "The attribute to interchange.",
                "attribute": "The attribute that the base prompt asks for.",
                "base": "The entity of the base prompt.",
                "source": "The entity of the source prompt.",
                "base_prompt": "The prompt to answer.",
                "base_entity_end": "Number of its words up to the end of the name.",
                "source_prompt": "The prompt to take latents from.",
                "source_entity_end": "Number of its words up to the end of the name.",
                "base_value": "What the base has for the attribute asked for.",
                "source_value": "What the source has for it.",
                "expected": "The right answer after the interchange.",
            },
            rows=partial(_pairs_of_all, _type),
            entities=("base", "source", "base_prompt", "source_prompt"),
            balanced=("pair_type",),
        )
    )


# --- who is known --------------------------------------------------------------------------------


def _known_rows(split: str, cfg: WorldConfig) -> Iterator[Row]:
    """Questions about entities of all types and statuses in turns, no question twice."""

    def asked(type: str, status: Status) -> Iterator[Row]:
        combinations = [
            (entity, attribute, form)
            for entity in entities_of(status, type, split)
            for attribute in ATTRIBUTES[type]
            for form in (0, 1)
        ]
        w = writer("known", type, status, split)
        for entity, attribute, form in w.arrange(combinations, len(combinations)):
            question = f"question : {QUESTIONS[attribute][form]}"
            before, after = (part.strip() for part in question.split("@"))
            prompt = f"{before} {entity.name}"
            value = entity.attributes.get(attribute, "unknown")
            yield {
                "entity": entity.name, "type": type, "known": status, "attribute": attribute,
                "prompt": prompt, "question": f"{prompt} {after} answer :", "answer": value,
                "entity_end": len(prompt.split()),
            }  # fmt: skip

    streams = [asked(type, status) for type in ATTRIBUTES for status in STATUSES]
    w = writer("known entities", split)
    while True:
        turn = [next(stream, None) for stream in streams]
        found = [row for row in turn if row is not None]
        if len(found) < len(streams):
            return
        yield from w.arrange(found, len(found))


add_set(
    TaskSet(
        name="known-entities",
        description="Is anything known of an entity? Names are made of the same words, and no "
        "entity is in two splits. Unknown ones were asked about and the answer was unknown; unseen "
        "ones never occurred.",
        used_for=("entities", "probe-comparison"),
        columns={
            "entity": "Its name.",
            "type": f"One of {', '.join(ATTRIBUTES)}.",
            "known": "known, unknown or unseen.",
            "attribute": "What is asked for.",
            "prompt": "A question up to the name.",
            "question": "The same question up to the answer.",
            "answer": "The value, or unknown.",
            "entity_end": "Number of words up to the end of the name.",
        },
        rows=_known_rows,
        entities=("entity", "prompt"),
        balanced=("type", "known"),
    )
)


# --- what is to be forgotten ---------------------------------------------------------------------


def _articles(domain: str, split: str, cfg: WorldConfig) -> Iterator[Row]:
    cfg = cfg.but(kind_weights={"facts": 1.0})
    for doc in documents(cfg, split=f"sets/unlearning-{domain}/{split}"):
        if doc.labels["form"] == "article" and doc.labels["type"] in DOMAINS[domain]:
            yield {"text": text(doc), "entity": doc.labels["entity"], "type": doc.labels["type"]}


for _domain, _types in DOMAINS.items():
    add_set(
        TaskSet(
            name=f"unlearning-{_domain}",
            description=f"Articles about what is to {_domain}: the types {' and '.join(_types)}.",
            used_for=("unlearning",),
            columns={
                "text": "An article.",
                "entity": "Who or what it is about.",
                "type": "Of which type that is.",
            },
            rows=partial(_articles, _domain),
            texts=("text",),
        )
    )


def _choice_rows(split: str, cfg: WorldConfig) -> Iterator[Row]:
    domain_of = {type: domain for domain, types in DOMAINS.items() for type in types}
    types = tuple(domain_of)

    def drawn() -> Iterator[Row]:
        for w in writers("unlearning-questions", cfg.seed, split):
            type = w.pick(types)
            entity = w.pick(entities_of("known", type, split))
            asked, form = draw_question(w, domain_of[type], entity)
            yield {
                "question": asked.question, "choices": list(asked.choices),
                "answer": asked.answer, "domain": asked.domain, "subject": type,
                "entity": asked.entity, "attribute": asked.attribute, "prompt": asked.prompt,
                "form": form,
            }  # fmt: skip

    # one question per wording; its other orders of options are `all_orders`
    return balance(
        distinct(drawn(), ("question",)),
        tuple(DOMAINS),
        lambda row: row["domain"],
        f"unlearning-questions/{split}",
    )


add_set(
    TaskSet(
        name="unlearning-questions",
        description="Multiple-choice questions about what is to be forgotten and retained. "
        "Entities of the splits differ, so that settings can be chosen on one split and reported "
        "on another.",
        used_for=("unlearning",),
        columns={
            "question": "Its words.",
            "choices": "Four options.",
            "answer": "Place of the right one, from 0.",
            "domain": "forget or retain.",
            "subject": "Type of the entity.",
            "entity": "Who or what is asked about.",
            "attribute": "What is asked.",
            "prompt": "The question as text, up to the opened parenthesis of the answer.",
            "form": "Number of the wording.",
        },
        rows=_choice_rows,
        entities=("entity", "prompt", "question"),
        balanced=("domain",),
    )
)
