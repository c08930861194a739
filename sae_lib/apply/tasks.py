"""What applications are tried on: labelled tasks, concepts to steer toward, pools of documents.

On the bundled world they follow from its truth; elsewhere an experiment file names them.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int
from pydantic import Field

from sae_lib.activations.labelled import WORLD_PREFIX, LabelledConfig, LabelledTexts, load_labelled
from sae_lib.apply.base import Bench
from sae_lib.config import Config
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.synthetic.world.generate import documents, text

MAX_CLASSES = 5
"""Classes of one task that are each told from the rest (SAEBench)."""

WORLD_TASKS = (
    "world:review-sentiment",
    "world:topic-sea",
    "world:subject-gender",
    "world:known-entity",
)
"""Tried on the bundled world when none is named: words decide the first two, memory the last."""

WORLD_CONCEPTS = ("world:sentiment-positive", "world:topic-sea", "world:animal")
"""Steered toward on the bundled world when none is named."""

_SPARE = 2
"""Texts drawn per wanted one of a world task, so that classes can be balanced."""


class BinaryTexts(NamedTuple):
    """Texts and whether each is positive; as many positive as negative ones."""

    texts: list[str]
    labels: list[int]


class ProbeTask(NamedTuple):
    """One class against the rest."""

    name: str
    train: BinaryTexts
    test: BinaryTexts


class DocumentPool(NamedTuple):
    """Documents to choose from."""

    texts: list[str]
    numbers: list[int]
    """Number of each document in its corpus."""

    labels: list[str] | None
    """What each is about, where that is known."""


class ConceptConfig(Config):
    """A concept to steer toward, given by examples."""

    name: str = Field(min_length=1)
    """Name under which results are listed."""

    positive: tuple[str, ...] = Field(min_length=4)
    """Texts that have the concept; the direction is made of them."""

    negative: tuple[str, ...] = Field(min_length=4)
    """Texts of the same sort that do not have it."""

    prompts: tuple[str, ...] = Field(min_length=4)
    """Beginnings to continue; every other one chooses the strength, the rest are scored."""

    lexicon: tuple[str, ...] = Field(min_length=1)
    """Words that show the concept."""

    neutral: tuple[str, ...] = ()
    """Texts on which side effects are measured; none: held-out text of the corpus."""


def probe_tasks(
    named: Sequence[str | LabelledConfig],
    bench: Bench,
    *,
    train_texts: int,
    test_texts: int,
    seed: int,
) -> list[ProbeTask]:
    """The tasks of ``named``, one per class where there are more than two.

    Without names, `WORLD_TASKS`, on the world. Each side has at most as many texts as
    asked for, half of them positive.
    """
    configs = task_configs(named, bench)
    tasks = []
    for cfg in configs:
        if cfg.num_texts is None and cfg.id.startswith(WORLD_PREFIX):
            cfg = cfg.but(num_texts=_SPARE * max(train_texts, test_texts))
        train = load_labelled(cfg, "train", relative_to=bench.relative_to)
        test = load_labelled(cfg, "test", relative_to=bench.relative_to)
        for positive in range(len(train.classes))[:MAX_CLASSES]:
            if len(train.classes) == 2 and positive == 0:
                continue  # the second class against the first is the whole task
            name = cfg.id if len(train.classes) == 2 else f"{cfg.id}:{train.classes[positive]}"
            tasks.append(
                ProbeTask(
                    name,
                    one_against_rest(train, positive, train_texts, seed),
                    one_against_rest(test, positive, test_texts, seed),
                )
            )
    return tasks


def task_configs(named: Sequence[str | LabelledConfig], bench: Bench) -> list[LabelledConfig]:
    """Where the texts of each task come from."""
    if named:
        return [LabelledConfig(id=task) if isinstance(task, str) else task for task in named]
    if bench.world is None:
        raise NotApplicable(
            "probing", "no tasks are named, and only the bundled world brings its own."
        )
    return [LabelledConfig(id=task) for task in WORLD_TASKS]


def steering_concepts(
    named: Sequence[str | ConceptConfig],
    bench: Bench,
    *,
    train_texts: int,
    num_prompts: int,
) -> list[ConceptConfig]:
    """The concepts of ``named``; without names, `WORLD_CONCEPTS`, on the world.

    Each has at most as many texts and prompts as asked for.
    """
    if not named and bench.world is None:
        raise NotApplicable(
            "steering", "no concepts are named, and only the bundled world brings its own."
        )
    return [
        world_concept(concept, bench, train_texts, num_prompts)
        if isinstance(concept, str)
        else concept.but(
            positive=concept.positive[:train_texts],
            negative=concept.negative[:train_texts],
            prompts=concept.prompts[:num_prompts],
        )
        for concept in named or WORLD_CONCEPTS
    ]


def world_concept(name: str, bench: Bench, train_texts: int, num_prompts: int) -> ConceptConfig:
    """A concept of the world: directions from its training texts, prompts from its test texts."""
    from sae_lib.synthetic.world import tasks

    if not name.startswith(WORLD_PREFIX):
        raise BadInput(
            f"a concept is {WORLD_PREFIX}NAME, or is given by examples"
            f" ({', '.join(ConceptConfig.model_fields)}).",
            key="apply.concepts",
            value=name,
        )
    known = name.removeprefix(WORLD_PREFIX)
    lexicon = tasks.get_steering_concept(known).lexicon
    train = tasks.steering_texts(known, "train", train_texts, cfg=bench.world)
    test = tasks.steering_texts(known, "test", num_prompts, cfg=bench.world)
    return ConceptConfig(
        name=name,
        positive=tuple(train.positive),
        negative=tuple(train.negative),
        prompts=tuple(test.prompts),
        lexicon=lexicon,
    )


def one_against_rest(given: LabelledTexts, positive: int, num_texts: int, seed: int) -> BinaryTexts:
    """At most ``num_texts`` texts, half of the class ``positive``, the rest evenly of the others.

    In an order drawn with ``seed``, so that classes do not come in blocks.
    """
    rng = np.random.default_rng(seed)
    labels = np.array(given.labels)
    own = rng.permutation(np.flatnonzero(labels == positive))
    others = [
        rng.permutation(np.flatnonzero(labels == other))
        for other in range(len(given.classes))
        if other != positive
    ]
    rest = _in_turn(others)
    half = min(num_texts // 2, len(own), len(rest))
    if half < 1:
        raise BadInput(
            f"the {given.split} split of {given.name} has no text of class"
            f" {given.classes[positive]!r}, or none of another.",
            value=given.name,
        )
    order = rng.permutation(np.concatenate([own[:half], rest[:half]]))
    return BinaryTexts([given.texts[i] for i in order], [int(labels[i] == positive) for i in order])


def document_pool(bench: Bench, num_documents: int) -> DocumentPool:
    """The first held-out documents: the world's with their kinds, else those of the corpus."""
    if bench.world is not None:
        drawn = list(documents(bench.world, 0, num_documents, split="validation"))
        return DocumentPool(
            [text(d) for d in drawn], [d.index for d in drawn], [d.kind for d in drawn]
        )
    if bench.split is None:
        raise NotApplicable("selection", "there is no corpus to select documents from.")
    found: dict[int, list[int]] = {}
    for _, rows in bench.split.batches(256):
        for document, token in zip(
            rows.document[rows.keep].tolist(), rows.tokens[rows.keep].tolist(), strict=True
        ):
            if document not in found and len(found) == num_documents:
                break
            found.setdefault(document, []).append(token)
        if len(found) == num_documents:
            break
    texts = bench.model.tokenizer.batch_decode(list(found.values()))
    return DocumentPool(list(texts), list(found), None)


def _in_turn(groups: list[Int[np.ndarray, " _"]]) -> Int[np.ndarray, " members"]:
    """The first of each group, then the second of each, as far as they go."""
    longest = max(map(len, groups), default=0)
    taken: list[Any] = [group[i] for i in range(longest) for group in groups if i < len(group)]
    return np.array(taken, dtype=np.int64)
