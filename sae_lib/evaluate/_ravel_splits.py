"""Which masks there are, and the pairs of prompts that each is trained and tested on.

One mask is for one attribute of one type of entities. Pairs of training entities are divided: some
meet in training, others (`new_pairs`) in tests alone. Further test pairs are of entities or of
wordings that no mask was trained on.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lib.evaluate._ravel_pairs import Kind, Pair, Prompt, draw_pairs, meet_in_training

KINDS: tuple[Kind, ...] = ("cause", "isolation")
FEWEST_PAIRS = 4
"""Pairs of each kind, for training and for testing, without which an attribute is left out."""

HELD_OUT = "new_pairs"
SPLITS = {HELD_OUT: (False, False), "new_entities": (True, False), "new_templates": (False, True)}
"""Whether entities and templates of the test pairs are ones that masks were not trained on."""


class Mask(NamedTuple):
    """What one mask is for."""

    type: str
    attribute: str


class Pairs(NamedTuple):
    """Pairs of all masks as tensors."""

    pairs: list[Pair]
    group: Int[Tensor, " pairs"]
    is_cause: Bool[Tensor, " pairs"]


class Drawn(NamedTuple):
    """All masks and their pairs."""

    masks: list[Mask]
    train: Pairs
    tests: dict[str, Pairs]
    """By split; one without enough pairs is empty."""


def draw_masks(
    tables: Sequence[str],
    by_table: Sequence[Sequence[Prompt]],
    is_right: Bool[Tensor, " prompts"],
    sizes: Sequence[int],
    *,
    train_pairs: int,
    test_pairs: int,
    held_out: float,
    seed: int,
) -> Drawn:
    """A mask for each attribute with enough pairs of each kind, and its pairs.

    Args:
        tables: Names of the types of entities.
        by_table: Prompts of each.
        is_right: Of all prompts, one table after the other, which the model answers right.
        sizes: Tokens of each prompt's entity that are exchanged.
        train_pairs: Pairs of each kind that a mask is trained on, at most.
        test_pairs: Pairs of each kind in each of the splits, at most.
        held_out: Share of pairs of training entities that meet in tests alone.
        seed: Decides which pairs are drawn.
    """
    prompts = [prompt for own in by_table for prompt in own]
    masks: list[Mask] = []
    first = 0
    parts: dict[str, list[tuple[int, list[Pair]]]] = {name: [] for name in ("train", *SPLITS)}
    for number, (table, own_prompts) in enumerate(zip(tables, by_table, strict=True)):
        places = [i for i in range(first, first + len(own_prompts)) if is_right[i]]
        first += len(own_prompts)
        for attribute in sorted({prompt.attribute for prompt in own_prompts}):
            drawn: dict[str, list[list[Pair]]] = {}
            for split, name in enumerate(parts):
                sides = SPLITS.get(name, (False, False))
                usable = [i for i in places if _sides(prompts[i]) == sides]
                draw = np.random.default_rng([seed, number, _number(attribute), split])
                num = train_pairs if name == "train" else test_pairs
                meet = partial(_meet, name=name, held_out=held_out)
                drawn[name] = [
                    draw_pairs(
                        prompts, usable, attribute, kind, num, meet=meet, sizes=sizes, draw=draw
                    )
                    for kind in KINDS
                ]
            needed = [*drawn["train"], *drawn[HELD_OUT]]
            if min(map(len, needed)) < FEWEST_PAIRS:
                continue
            for name, kinds in drawn.items():
                if min(map(len, kinds)) >= FEWEST_PAIRS:
                    parts[name].append((len(masks), [p for own in kinds for p in own]))
            masks.append(Mask(table, attribute))
    tests = {name: _stack(own) for name, own in parts.items()}
    return Drawn(masks, tests.pop("train"), tests)


def _sides(prompt: Prompt) -> tuple[bool, bool]:
    return prompt.new_entity, prompt.new_template


def _meet(one: str, other: str, *, name: str, held_out: float) -> bool:
    if name == "train":
        return meet_in_training(one, other, held_out=held_out)
    return name == "new_entities" or not meet_in_training(one, other, held_out=held_out)


def _number(name: str) -> int:
    """A number for a seed."""
    return int.from_bytes(name.encode()[:8])


def _stack(parts: Sequence[tuple[int, list[Pair]]]) -> Pairs:
    pairs = [pair for _, own in parts for pair in own]
    group = torch.tensor([mask for mask, own in parts for _ in own], dtype=torch.long)
    is_cause = torch.tensor([pair.kind == "cause" for pair in pairs], dtype=torch.bool)
    return Pairs(pairs, group, is_cause)
