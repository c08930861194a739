"""Texts with labels, and one vector per text.

Labelled texts come from the world's own tasks (``world:NAME``), from local tables, or from the hub.
Where the source has no test split, a text is a test text exactly when a seeded hash of *the text*
falls below ``test_share``: the split is deterministic, and copies of one text never end up on both
sides.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field

from sae_lib.activations import _readers
from sae_lib.activations._pooling import Encode, EncodesText, Pool, pooled
from sae_lib.config import Config
from sae_lib.errors import BadInput, nearest

__all__ = [
    "Encode",
    "EncodesText",
    "LabelledConfig",
    "LabelledTexts",
    "Pool",
    "load_labelled",
    "pooled",
    "text_in_test",
]

WORLD_PREFIX = "world:"

WORLD_TEXTS = 1000
"""Texts of a world task per split when the config does not say."""

TextSplit = Literal["train", "test"]


class LabelledConfig(Config):
    """Where labelled texts come from."""

    id: str = Field(min_length=1)
    """``world:TASK``, a local .csv, .jsonl or .parquet file or a folder of them, or a hub id."""

    text: str = "text"
    """Column of the text."""

    label: str = "label"
    """Column of the label; its values become the names of the classes."""

    split_column: str | None = None
    """Column of a local table that says to which split a row belongs."""

    train_split: str = "train"
    """Name of the training split: in ``split_column``, of a file in the folder, or on the hub."""

    test_split: str = "test"
    """Name of the test split; the same as ``train_split`` to divide that one by hash."""

    config: str | None = None
    """Configuration of a hub dataset."""

    revision: str | None = None
    """Commit, branch or tag of a hub dataset."""

    test_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of test texts where the source has no test split."""

    num_texts: int | None = Field(default=None, gt=0)
    """Texts per split at most, drawn at random; by default all (of a world task, 1,000)."""

    max_rows: int = Field(default=200_000, gt=0)
    """Rows read from the source at most (per split on the hub)."""

    balanced: bool = False
    """Whether classes are cut to the size of the smallest."""

    seed: int = Field(default=0, ge=0)
    """Decides the hash split and what is drawn."""


class LabelledTexts(NamedTuple):
    """Texts of one split with their classes."""

    name: str
    """The id they were asked for with."""

    texts: list[str]

    labels: list[int]
    """Per text, a place in ``classes``."""

    classes: list[str]
    """The same for both splits: in order of number where all are numbers, else of the alphabet."""

    split: TextSplit


class _Row(NamedTuple):
    text: str
    label: str
    split: TextSplit


def load_labelled(
    cfg: LabelledConfig, split: TextSplit, *, relative_to: Path | None = None
) -> LabelledTexts:
    """The labelled texts of ``split``; equal calls give equal texts in equal order.

    Raises `MissingFile` or `BadInput`, naming file and column: no such file or column, a label or
    text that is missing, fewer than two classes, or a class without a text in ``split``.
    """
    if cfg.id.startswith(WORLD_PREFIX):
        texts, labels, classes = _world_task(cfg, split)
    else:
        rows = list(_rows(cfg, relative_to))
        classes = _in_order({row.label for row in rows})
        mine = [row for row in rows if row.split == split]
        texts = [row.text for row in mine]
        labels = [classes.index(row.label) for row in mine]
    _check_classes(cfg, split, labels, classes)
    chosen = _drawn(cfg, split, labels)
    return LabelledTexts(
        cfg.id, [texts[i] for i in chosen], [labels[i] for i in chosen], classes, split
    )


def text_in_test(cfg: LabelledConfig, text: str) -> bool:
    """Whether ``text`` is a test text where the source does not say: a hash of the text."""
    drawn = hashlib.blake2b(f"{cfg.seed}:{text}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "big") < cfg.test_share * 2**64


def _world_task(cfg: LabelledConfig, split: TextSplit) -> tuple[list[str], list[int], list[str]]:
    from sae_lib.synthetic.world import tasks

    name = cfg.id.removeprefix(WORLD_PREFIX)
    task = tasks.get_task(name)
    texts, labels = tasks.task_documents(name, split, cfg.num_texts or WORLD_TEXTS)
    return list(texts), [int(label) for label in labels], list(task.classes)


def _rows(cfg: LabelledConfig, relative_to: Path | None) -> Iterator[_Row]:
    path = (relative_to or Path()) / cfg.id
    if path.suffix.lower() in _readers.SUFFIXES or path.exists():
        yield from islice(_local_rows(cfg, path), cfg.max_rows)
    else:
        yield from _hub_rows(cfg)


def _local_rows(cfg: LabelledConfig, path: Path) -> Iterator[_Row]:
    files = _readers.text_files(path, key="id", suffixes=_readers.TABLES)
    wanted = {cfg.text: "text", cfg.label: "label"}
    if cfg.split_column is not None:
        wanted[cfg.split_column] = "split_column"
    stems = {file.stem for file in files}
    has_splits = cfg.train_split != cfg.test_split and {cfg.train_split, cfg.test_split} <= stems
    for file in files:
        _readers.check_columns(file, wanted)
        if has_splits and file.stem not in (cfg.train_split, cfg.test_split):
            continue
        for line, values in _readers.rows(file, wanted):
            named = dict(zip(wanted, values, strict=True))
            text = _text(named[cfg.text], cfg, file, f"line {line}")
            label = _label(named[cfg.label], cfg, file, f"line {line}")
            says = file.stem if has_splits else None
            if cfg.split_column is not None:
                says = str(named[cfg.split_column])
                if says not in (cfg.train_split, cfg.test_split):
                    continue
            yield _Row(text, label, _side(cfg, text, says))


def _hub_rows(cfg: LabelledConfig) -> Iterator[_Row]:
    from datasets import load_dataset

    for name in dict.fromkeys((cfg.train_split, cfg.test_split)):
        try:
            stream = load_dataset(
                cfg.id, cfg.config, split=name, revision=cfg.revision, streaming=True
            )
        except (OSError, ValueError) as error:  # what datasets and the hub client raise
            raise BadInput(
                f"the dataset could not be opened on the hub ({error}); check the id, the split"
                f" {name!r} and the configuration {cfg.config!r}, or name a local file.",
                key="id",
                value=cfg.id,
            ) from error
        for number, row in enumerate(islice(stream, cfg.max_rows)):
            for column, key in ((cfg.text, "text"), (cfg.label, "label")):
                if column not in row:
                    raise BadInput(
                        f"{cfg.id} has no such column. Columns: {', '.join(row)}."
                        f"{nearest(column, row)}",
                        key=key,
                        value=column,
                    )
            text = _text(row[cfg.text], cfg, cfg.id, f"row {number}")
            label = _label(row[cfg.label], cfg, cfg.id, f"row {number}")
            yield _Row(text, label, _side(cfg, text, name))


def _side(cfg: LabelledConfig, text: str, says: str | None) -> TextSplit:
    """The split of a row whose source ``says`` one, or says nothing of use."""
    if says is None or cfg.train_split == cfg.test_split:
        return "test" if text_in_test(cfg, text) else "train"
    return "test" if says == cfg.test_split else "train"


def _text(value: Any, cfg: LabelledConfig, file: Path | str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise BadInput(f"{where} has no text.", file=file, key="text", value=cfg.text)
    return value


def _label(value: Any, cfg: LabelledConfig, file: Path | str, where: str) -> str:
    if value is None or value == "":
        raise BadInput(f"{where} has no label.", file=file, key="label", value=cfg.label)
    return str(value)


def _in_order(names: Iterable[str]) -> list[str]:
    given = sorted(names)
    are_numbers = all(name.lstrip("-").isdecimal() for name in given)
    return sorted(given, key=int) if are_numbers else given


def _check_classes(
    cfg: LabelledConfig, split: TextSplit, labels: list[int], classes: list[str]
) -> None:
    if len(classes) < 2:
        raise BadInput(
            f"there must be two classes to tell apart; {cfg.label!r} has {len(classes)}"
            f" ({', '.join(classes) or 'no rows'}).",
            key="label",
            value=cfg.id,
        )
    counts = Counter(labels)
    missing = [name for i, name in enumerate(classes) if counts[i] == 0]
    if missing:
        raise BadInput(
            f"the {split} split has no text of {', '.join(missing)}; give more texts, or another"
            " test_share or seed.",
            key="id",
            value=cfg.id,
        )


def _drawn(cfg: LabelledConfig, split: TextSplit, labels: list[int]) -> list[int]:
    """Which texts are taken, ascending."""
    generator = np.random.default_rng([cfg.seed, 0 if split == "train" else 1])
    order = generator.permutation(len(labels))
    if cfg.balanced:
        smallest = min(Counter(labels).values())
        if cfg.num_texts is not None:
            smallest = min(smallest, max(1, cfg.num_texts // len(set(labels))))
        taken: Counter[int] = Counter()
        chosen = []
        for i in order:
            if taken[labels[i]] < smallest:
                taken[labels[i]] += 1
                chosen.append(int(i))
        return sorted(chosen)
    return sorted(int(i) for i in order[: cfg.num_texts])
