"""What a labelled task and a steering concept are. Kinds of documents declare their own."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from sae_lib.errors import BadInput
from sae_lib.registry import Registry
from sae_lib.synthetic.world.concepts import CONCEPTS, lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.writer import Writer

OTHER = "other"
"""First class of a one-versus-rest task."""


@dataclass(frozen=True, kw_only=True)
class LabelledTask:
    """Texts with a label that follows from the truth. Labels are positions in ``classes``."""

    name: str
    description: str
    classes: tuple[str, ...]
    """Values of the label ``key``; ``("other", value)`` asks for one value against the rest."""
    key: str
    """Which of a document's labels is asked for."""
    kind: str = ""
    """Kind of document; all kinds if empty."""
    cut: str = ""
    """Mark at which the text ends; the whole document if empty."""
    positive_concept: str = ""
    """Context concept that is active exactly in texts of class 1; empty with several classes."""
    lexicon_concept: str = ""
    """Token concept whose words belong to class 1; empty when there are none."""
    examples: Callable[[str], Iterator[tuple[str, int]]] | None = None
    """Gives texts and labels of a split without end, where they are not whole documents."""

    @property
    def lexicon(self) -> tuple[str, ...]:
        """Words that belong to class 1, sorted."""
        return tuple(lexicon(self.lexicon_concept)) if self.lexicon_concept else ()

    def label_of(self, labels: Mapping[str, str]) -> int:
        value = labels[self.key]
        if self.classes[0] == OTHER:
            return int(value == self.classes[1])
        return self.classes.index(value)


@dataclass(frozen=True, kw_only=True)
class SteeringConcept:
    """A concept to steer towards: texts with it, texts without it, prompts that leave it open."""

    name: str
    description: str
    concept: str
    """Context concept that is active in the positive texts."""
    lexicon_concept: str
    """Token concept whose words show that the concept is there."""
    kind: str
    """Kind of the positive texts."""
    key: str
    """Label that tells positive from negative texts."""
    value: str
    """Value of that label in positive texts."""
    prompt_kind: str
    """Kind of document whose openings are the prompts."""
    prompt_cut: str
    """Mark at which a prompt ends."""
    prompt_where: tuple[str, str] = ("", "")
    """Label and its value that the document of a prompt must have, where openings may tell."""
    contrast_kind: str = ""
    """Kind of the negative texts; the kind of the positive ones if empty."""

    @property
    def lexicon(self) -> tuple[str, ...]:
        """Words of the concept, sorted."""
        return tuple(lexicon(self.lexicon_concept))


class Prompt(NamedTuple):
    """A text that ends where its answer begins."""

    text: str
    answers: tuple[str, ...]
    """What the text may go on with, in words: greedy continuation must begin with one of them."""
    labels: dict[str, str] = {}  # noqa: RUF012  (never changed)
    """What accuracies are broken down by, such as ``function: plural``; may hold more."""


@dataclass(frozen=True, kw_only=True)
class AnswerTask:
    """Prompts with right answers: what a model that knows the world can do."""

    name: str
    description: str
    prompt: Callable[[Writer, WorldConfig], Prompt]
    """Draws one prompt; use a document of the kind cut before an answer wherever there is one."""
    goal: float
    """Share of right answers that a model that learned the world reaches; 0 where the task is
    hard or its share is only to be known."""
    break_down: str = ""
    """Key of the prompts' labels by which shares are given as well."""
    chat: bool = False
    """Whether the chat model is asked (with ``cfg.chat`` set), not the base model."""


class PromptPair(NamedTuple):
    """Two prompts of equal length that differ in what decides the next word."""

    clean: str
    patch: str
    clean_answer: str
    """One word."""
    patch_answer: str
    """One word."""
    labels: dict[str, str]


@dataclass(frozen=True, kw_only=True)
class PairTask:
    """Minimal pairs, for circuits and interchange."""

    name: str
    description: str
    pair: Callable[[Writer, WorldConfig], PromptPair]
    """Draws one pair."""


TASKS: Registry[LabelledTask] = Registry("labelled task")
STEERING: Registry[SteeringConcept] = Registry("steering concept")
ANSWERS: Registry[AnswerTask] = Registry("answer task")
PAIRS: Registry[PairTask] = Registry("pair task")


def add_task(task: LabelledTask) -> LabelledTask:
    if len(task.classes) < 2:
        raise BadInput("a task needs two classes at least", key=task.name, value=task.classes)
    for concept in (task.positive_concept, task.lexicon_concept):
        if concept:
            CONCEPTS[concept]
    return TASKS.add(task.name, task)


def add_steering(steering: SteeringConcept) -> SteeringConcept:
    for concept in (steering.concept, steering.lexicon_concept):
        CONCEPTS[concept]
    return STEERING.add(steering.name, steering)


def add_answers(task: AnswerTask) -> AnswerTask:
    return ANSWERS.add(task.name, task)


def add_pairs(task: PairTask) -> PairTask:
    return PAIRS.add(task.name, task)
