"""What a set of rows is, and how rows are kept to their split."""

import hashlib
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

from sae_lib.errors import BadInput, UnknownName
from sae_lib.registry import Registry
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import SPLITS, split_of_text
from sae_lib.synthetic.world.writer import Writer

Row = dict[str, Any]

PATIENCE = 3000
"""Rows in a row that are old or of another split, after which a stream is taken to be dry."""

USES: dict[str, str] = {
    # evaluations
    "reconstruction": "what replacing activations by their reconstruction does to the model",
    "sparse-probing": "how well few latents predict a label",
    "tpp": "targeted probe perturbation: removing the latents of one class only hurts its probe",
    "scr": "spurious correlation removal: a biased probe is repaired by removing latents",
    "absorption": "does the latent of a letter fire on all words that begin with it",
    "ravel": "changing one attribute of an entity and no other",
    "descriptions": "do texts that a description calls for make the latent fire",
    "contrastive-texts": "which latents tell two texts that differ in one respect",
    "unlearning": "removing what is known of one domain and nothing else",
    "generalisation": "texts unlike those an SAE was trained on",
    "concept-detection": "telling texts with a concept from texts without it",
    "probe-comparison": "probes on latents against probes on activations, in four regimes",
    # applications
    "steering": "moving what a model writes toward a concept",
    "instructions": "latents of an instruction, and following it without being told (SAIF)",
    "refusal": "when a model refuses",
    "sycophancy": "agreeing with whoever asks",
    "emotion-steering": "moving the mood of a text",
    "detoxification": "fewer insults at the same fluency",
    "semantic-search": "moving a query toward a topic",
    "mutual-information": "explaining a latent by words of a fixed vocabulary",
    "entities": "does the model know whom it is asked about",
    "task-vectors": "what a model infers from examples in its context",
    "td-learning": "values and prediction errors of a learner whose actions are read",
    "classification": "labels from latents, also across languages",
    "reasoning": "latents of reflection and correction",
    "circuits": "which latents decide between two answers",
    "preferences": "preference optimisation on latents",
    "concept-mixing": "predicting concepts along with the next word",
    "data-selection": "choosing diverse documents",
    "regularisation": "a classifier that does not use what it should not",
    "coverage": "which concepts have a latent",
    "transfer": "an SAE of one model on another",
}
"""What sets are used for."""


@dataclass(frozen=True, kw_only=True)
class TaskSet:
    """Rows with the truth about them, in three splits that share nothing they should not."""

    name: str
    description: str
    used_for: tuple[str, ...]
    """Keys of `USES`."""
    columns: dict[str, str]
    """What each column holds."""
    rows: Callable[[str, WorldConfig], Iterator[Row]]
    """Gives rows of a split, with or without end, the same ones for the same arguments."""
    texts: tuple[str, ...] = ()
    """Columns whose texts never occur in another split: `split_of_text` decides. Rows of other
    splits that ``rows`` gives are left out, and so are rows that came before."""
    entities: tuple[str, ...] = ()
    """Columns whose values never occur in another split; ``rows`` sees to that."""
    balanced: tuple[str, ...] = ()
    """Columns whose values (together) come equally often; ``rows`` sees to that."""


SETS: Registry[TaskSet] = Registry("task set")


def add_set(task_set: TaskSet) -> TaskSet:
    for use in task_set.used_for:
        if use not in USES:
            raise UnknownName("use", use, USES)
    missing = {*task_set.texts, *task_set.entities, *task_set.balanced} - {*task_set.columns}
    if missing or not task_set.used_for:
        raise BadInput("no such column, or no use", key=task_set.name, value=sorted(missing))
    return SETS.add(task_set.name, task_set)


def task_rows(name: str, split: str, num: int, cfg: WorldConfig | None = None) -> list[Row]:
    """The first ``num`` rows of a split, fewer where there are fewer; all of them different.

    The rows depend on the arguments only, and more rows begin with the same ones. Raises
    `UnknownName` for an unknown set or split.
    """
    task_set = SETS[name]
    if split not in SPLITS:
        raise UnknownName("split", split, SPLITS)
    if num < 0:
        raise BadInput("the number of rows is not negative", key="num", value=num)
    rows = task_set.rows(split, cfg or WorldConfig())
    if task_set.texts:
        rows = kept(rows, split, task_set.texts)
    return list(islice(rows, num))


def kept(rows: Iterable[Row], split: str, texts: tuple[str, ...]) -> Iterator[Row]:
    """Rows all of whose ``texts`` belong to ``split`` and that did not come before."""
    return distinct(
        rows, texts, lambda row: all(split_of_text(row[column]) == split for column in texts)
    )


def distinct(
    rows: Iterable[Row], columns: tuple[str, ...], wanted: Callable[[Row], bool] = lambda row: True
) -> Iterator[Row]:
    """Wanted rows whose ``columns`` did not come before. Ends when nothing new came for a while."""
    seen: set[Hashable] = set()
    misses = 0
    for row in rows:
        told = tuple(row[column] for column in columns)
        if told in seen or not wanted(row):
            misses += 1
            if misses == PATIENCE:
                return
            continue
        misses = 0
        seen.add(told)
        yield row


def balance(
    rows: Iterable[Row],
    groups: tuple[Hashable, ...],
    group_of: Callable[[Row], Hashable],
    seed: str,
) -> Iterator[Row]:
    """Rows in rounds of one of each group, in random order within a round.

    Ends with the rows, or when a group did not come for a while.
    """
    waiting: dict[Hashable, list[Row]] = {group: [] for group in groups}
    w = writer("balance", seed)
    misses = 0
    for row in rows:
        group = group_of(row)
        misses += 1
        if misses > PATIENCE:
            return
        if group not in waiting:
            continue
        waiting[group].append(row)
        # a round is complete as soon as the group that came last was the one that lacked
        if len(waiting[group]) == 1 and all(waiting.values()):
            misses = 0
            for chosen in w.arrange(groups, len(groups)):
                yield waiting[chosen].pop(0)


def writer(*parts: object) -> Writer:
    """A writer whose choices depend on ``parts`` only."""
    told = "/".join(map(str, parts)).encode()
    return Writer(int.from_bytes(hashlib.blake2b(told, digest_size=8).digest()))


def writers(*parts: object) -> Iterator[Writer]:
    """Writers without end, each with choices of its own."""
    index = 0
    while True:
        yield writer(*parts, index)
        index += 1
