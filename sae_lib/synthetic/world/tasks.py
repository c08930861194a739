"""Labelled texts that follow from the truth, for probing, steering and analysis.

The texts of a split come from a stream of their own: they are new documents, which no split of
the corpus (and so no model) has read. Classes are balanced.
"""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple

from sae_lib.errors import BadInput, UnknownName
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import SPLITS, document, documents, split_of_text
from sae_lib.synthetic.world.kinds import KINDS
from sae_lib.synthetic.world.task import (
    ANSWERS,
    OTHER,
    PAIRS,
    STEERING,
    TASKS,
    LabelledTask,
    Prompt,
    PromptPair,
    SteeringConcept,
    add_task,
)
from sae_lib.synthetic.world.writer import Writer

_TRAINED = {name: kind for name, kind in KINDS.items() if kind.weight > 0}

for _name, _kind in _TRAINED.items():
    add_task(
        LabelledTask(
            name=f"kind-{_name}",
            description=f"Is the document {_kind.description}?",
            classes=(OTHER, _name),
            key="kind",
            positive_concept=_kind.concept,
        )
    )
add_task(
    LabelledTask(
        name="document-kind",
        description="Which kind of document is it?",
        classes=tuple(_TRAINED),
        key="kind",
    )
)


class TaskDocuments(NamedTuple):
    texts: list[str]
    labels: list[int]
    """Positions in the ``classes`` of the task."""


class SteeringTexts(NamedTuple):
    positive: list[str]
    negative: list[str]
    prompts: list[str]
    """Openings that leave the concept open; different ones as far as there are enough."""


def list_tasks() -> list[str]:
    return list(TASKS)


def get_task(name: str) -> LabelledTask:
    """Raises `UnknownName` with the nearest name."""
    return TASKS[name]


def list_steering_concepts() -> list[str]:
    return list(STEERING)


def get_steering_concept(name: str) -> SteeringConcept:
    """Raises `UnknownName` with the nearest name."""
    return STEERING[name]


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)


def _unit(*parts: object) -> float:
    """A number in [0, 1) that depends on ``parts`` only."""
    told = "/".join(map(str, parts)).encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest()) / 2**64


def examples_of(task: LabelledTask, cfg: WorldConfig, split: str) -> Iterator[tuple[str, int]]:
    """Texts and labels of a split without end, classes as they come."""
    if task.examples is not None:
        yield from task.examples(f"{cfg.seed}/{split}")
        return
    if task.kind:
        cfg = cfg.but(kind_weights={task.kind: 1.0})
    for doc in documents(cfg, split=f"task/{task.name}/{split}"):
        end = doc.marks[task.cut] if task.cut else None
        yield " ".join(doc.tokens[:end]), task.label_of({**doc.labels, "kind": doc.kind})


def task_documents(
    name: str, split: str, num: int, *, cfg: WorldConfig | None = None
) -> TaskDocuments:
    """``num`` texts of a task, as many of each class as of any other (to within one).

    With ``cfg.label_noise`` a label is replaced by one of the other classes with that
    probability. Raises `UnknownName` for an unknown task or split.
    """
    task, cfg = get_task(name), cfg or WorldConfig()
    _check_split(split)
    if num < 0:
        raise BadInput("the number of texts is not negative", key="num", value=num)
    num_classes = len(task.classes)
    quota = [num // num_classes + (place < num % num_classes) for place in range(num_classes)]
    texts: list[str] = []
    labels: list[int] = []
    examples = examples_of(task, cfg, split)
    while len(texts) < num:
        text, label = next(examples)
        if quota[label] == 0:
            continue
        quota[label] -= 1
        if _unit(cfg.seed, name, split, len(texts), "noise") < cfg.label_noise:
            shift = 1 + int(_unit(cfg.seed, name, split, len(texts)) * (num_classes - 1))
            label = (label + shift) % num_classes
        texts.append(text)
        labels.append(label)
    return TaskDocuments(texts, labels)


def steering_texts(
    name: str, split: str, num: int, *, cfg: WorldConfig | None = None
) -> SteeringTexts:
    """``num`` texts with the concept, as many without it, and as many prompts."""
    concept, cfg = get_steering_concept(name), cfg or WorldConfig()
    _check_split(split)
    stream = f"steering/{name}"

    def texts(kind: str, wanted: bool) -> list[str]:
        found: list[str] = []
        for doc in documents(cfg.but(kind_weights={kind: 1.0}), split=f"{stream}/{wanted}/{split}"):
            if len(found) == num:
                break
            if (doc.labels.get(concept.key) == concept.value) == wanted:
                found.append(" ".join(doc.tokens))
        return found

    prompt_cfg = cfg.but(kind_weights={concept.prompt_kind: 1.0})
    prompts: dict[str, int] = {}
    repeated: list[str] = []
    for index in range(50 * num):
        doc = document(prompt_cfg, index, split=f"{stream}/prompt/{split}")
        key, value = concept.prompt_where
        if doc.labels.get(key, "") != value:
            continue
        prompt = " ".join(doc.tokens[: doc.marks[concept.prompt_cut]])
        if prompt in prompts:
            repeated.append(prompt)
        else:
            prompts[prompt] = index
        if len(prompts) == num:
            break
    return SteeringTexts(
        texts(concept.kind, True),
        texts(concept.contrast_kind or concept.kind, False),
        [*prompts, *repeated][:num],
    )


def writers(what: str, name: str, split: str, cfg: WorldConfig) -> Iterator[Writer]:
    """Writers without end, each with a seed that depends on its number and the arguments."""
    _check_split(split)
    index = 0
    while True:
        told = f"{cfg.seed}/{what}/{name}/{split}/{index}".encode()
        yield Writer(int.from_bytes(hashlib.blake2b(told, digest_size=8).digest()))
        index += 1


def answer_prompts(
    name: str, split: str, num: int, *, cfg: WorldConfig | None = None
) -> list[Prompt]:
    """``num`` different prompts of an answer task, fewer where there are fewer.

    A prompt belongs to one split, by its hash (`split_of_text`). Raises `UnknownName` for an
    unknown task or split.
    """
    task, cfg = ANSWERS[name], cfg or WorldConfig()
    if task.chat:
        cfg = cfg.but(chat=True)
    found: dict[str, Prompt] = {}
    for tried, w in enumerate(writers("answers", name, split, cfg)):
        if len(found) == num or tried == 50 * num:
            break
        prompt = task.prompt(w, cfg)
        if split_of_text(prompt.text) == split:
            found.setdefault(prompt.text, prompt)
    return list(found.values())


def prompt_pairs(
    name: str, split: str, num: int, *, cfg: WorldConfig | None = None
) -> list[PromptPair]:
    """``num`` different minimal pairs, fewer where there are fewer.

    A pair belongs to the split of its clean text; `sets` keeps both texts to it.
    """
    task, cfg = PAIRS[name], cfg or WorldConfig()
    found: dict[str, PromptPair] = {}
    for tried, w in enumerate(writers("pairs", name, split, cfg)):
        if len(found) == num or tried == 50 * num:
            break
        pair = task.pair(w, cfg)
        if split_of_text(pair.clean) == split:
            found.setdefault(pair.clean, pair)
    return list(found.values())
