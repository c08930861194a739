"""Prompts about entities, and pairs of them to interchange one attribute between.

    cause      the base prompt asks for the target attribute; expected is the source's value
    isolation  it asks for another attribute; expected is the base's own value

Base and source differ in the target and in what is asked for, so that no answer is right both
before and after. The kind of a pair is stored with it.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from sae_lib.activations.task_tables import WORLD_PREFIX, TableConfig, table_rows
from sae_lib.errors import BadInput
from sae_lib.synthetic.world.config import WorldConfig

COLUMNS = ("entity", "attribute", "value", "prompt", "template")
WORLD_SET = "ravel-"
PATIENCE = 60
"""Draws per wanted pair before the prompts are taken to have no more."""

Kind = Literal["cause", "isolation"]


class Prompt(NamedTuple):
    """A text that the value of an entity's attribute continues."""

    entity: str
    attribute: str
    values: tuple[str, ...]
    """What counts as the right answer; the first is what masks are trained toward."""
    text: str
    frame: str
    """The text with the entity left out."""
    start: int
    """Place of the entity's first character."""
    end: int
    """Place behind its last."""
    new_entity: bool
    """Whether the entity is kept from training."""
    new_template: bool


class Pair(NamedTuple):
    """Two prompts, by their places among all prompts."""

    kind: Kind
    base: int
    source: int
    expected: tuple[str, ...]


def read_prompts(
    cfg: TableConfig,
    *,
    test_share: float,
    max_entities: int,
    max_templates: int,
    world: WorldConfig | None,
    relative_to: Path | None,
) -> list[Prompt]:
    """The prompts of a table, each with whether its entity and its template are kept for tests.

    The world's sets say which are; of other tables a hash decides. Of each side at most
    ``max_entities`` and, per attribute, ``max_templates`` are read.
    """
    found = [
        _prompt(row, new_entity, new_template, cfg)
        for row, new_entity, new_template in _rows(cfg, test_share, world, relative_to)
    ]
    entities = {p.entity: p.new_entity for p in found}
    chosen = {
        entity
        for side in (False, True)
        for entity in _ranked([e for e, new in entities.items() if new == side])[:max_entities]
    }
    frames = {(p.attribute, p.frame): p.new_template for p in found}
    kept = {
        (attribute, frame)
        for attribute in {a for a, _ in frames}
        for side in (False, True)
        for frame in _ranked(
            [f for (a, f), new in frames.items() if a == attribute and new == side]
        )[:max_templates]
    }
    return [p for p in found if p.entity in chosen and (p.attribute, p.frame) in kept]


def draw_pairs(
    prompts: Sequence[Prompt],
    usable: Sequence[int],
    target: str,
    kind: Kind,
    num: int,
    *,
    meet: Callable[[str, str], bool],
    sizes: Sequence[int],
    draw: np.random.Generator,
) -> list[Pair]:
    """Up to ``num`` different pairs of the prompts at the places ``usable``.

    The two differ by their entity in a way that the base prompt's words do not give away: the
    source has a prompt of the same frame. ``meet`` says which entities may come together;
    ``sizes`` are the tokens that would be exchanged, which must be as many.
    """
    of_entity: dict[str, list[int]] = {}
    value: dict[tuple[str, str], tuple[str, ...]] = {}
    framed: set[tuple[str, str, str]] = set()
    for i in usable:
        p = prompts[i]
        of_entity.setdefault(p.entity, []).append(i)
        value[p.entity, p.attribute] = p.values
        framed.add((p.entity, p.attribute, p.frame))
    names = sorted(of_entity)
    asked = [i for i in usable if (prompts[i].attribute == target) == (kind == "cause")]
    if not asked or len(names) < 2:
        return []
    found: dict[tuple[int, int], Pair] = {}
    for _ in range(PATIENCE * num):
        if len(found) == num:
            break
        base = asked[int(draw.integers(len(asked)))]
        name = names[int(draw.integers(len(names)))]
        source = of_entity[name][int(draw.integers(len(of_entity[name])))]
        p = prompts[base]
        own, other = value.get((p.entity, target)), value.get((name, target))
        if (
            name == p.entity
            or own is None
            or other is None
            or set(own) & set(other)
            or (name, p.attribute, p.frame) not in framed
            or set(p.values) & set(value[name, p.attribute])
            or sizes[base] != sizes[source]
            or not meet(p.entity, name)
        ):
            continue
        expected = value[name, target] if kind == "cause" else p.values
        found.setdefault((base, source), Pair(kind, base, source, expected))
    return list(found.values())


def meet_in_training(one: str, other: str, *, held_out: float) -> bool:
    """Whether two entities may come together in training; the order does not matter."""
    return _hash("\0".join(sorted((one, other)))) >= held_out


def _rows(
    cfg: TableConfig, test_share: float, world: WorldConfig | None, relative_to: Path | None
) -> Iterator[tuple[dict[str, Any], bool, bool]]:
    """Rows with whether entity and template are new."""
    name = cfg.id.removeprefix(WORLD_PREFIX)
    if cfg.id.startswith(WORLD_PREFIX) and name.startswith(WORLD_SET) and not cfg.columns:
        from sae_lib.synthetic.world.sets.entities import ATTRIBUTES, ravel_rows

        type = name.removeprefix(WORLD_SET)
        if type in ATTRIBUTES:
            for entity_split in ("train", "test"):
                for template_split in ("train", "test"):
                    for row in ravel_rows(type, entity_split, template_split):
                        yield row, entity_split == "test", template_split == "test"
            return
    rows = [
        row
        for split in ("train", "test")
        for row in table_rows(cfg, COLUMNS, split, world=world, relative_to=relative_to)
    ]
    entities = _ranked(sorted({str(row["entity"]) for row in rows}))
    new_entities = set(entities[: round(test_share * len(entities))])
    templates: dict[str, set[str]] = {}
    for row in rows:
        templates.setdefault(str(row["attribute"]), set()).add(str(row["template"]))
    new_templates = {
        (attribute, template)
        for attribute, names in templates.items()
        for template in _ranked(sorted(names))[: round(test_share * len(names))]
    }
    for row in rows:
        key = str(row["attribute"]), str(row["template"])
        yield row, str(row["entity"]) in new_entities, key in new_templates


def _prompt(row: dict[str, Any], new_entity: bool, new_template: bool, cfg: TableConfig) -> Prompt:
    entity, text, value = str(row["entity"]), str(row["prompt"]), row["value"]
    values = (value,) if isinstance(value, str) else tuple(map(str, value))
    start = text.rfind(entity)
    if start < 0 or not entity or not values:
        raise BadInput(
            f"the prompt {text!r} must hold its entity, word for word, and have a value.",
            key=f"{cfg.id}: entity",
            value=entity,
        )
    end = start + len(entity)
    frame = f"{text[:start]}\0{text[end:]}"
    return Prompt(
        entity, str(row["attribute"]), values, text, frame, start, end, new_entity, new_template
    )


def _ranked(names: Sequence[str]) -> list[str]:
    """In an order that depends on nothing but the names."""
    return sorted(names, key=_hash)


def _hash(name: str) -> float:
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest()) / 2**64
