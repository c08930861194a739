"""Rows of named columns for evaluations: from the world's sets, local tables, or the hub.

A metric says which columns it wants (``question``, ``choices``, ``answer``); an experiment file
says where they come from and, where the source calls them otherwise, what they are called there.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from sae_lib.activations import _readers
from sae_lib.config import Config
from sae_lib.errors import BadInput, nearest
from sae_lib.synthetic.world.config import WorldConfig

WORLD_PREFIX = "world:"

Row = dict[str, Any]

TableSplit = Literal["train", "test"]


class TableConfig(Config):
    """Where the rows of an evaluation come from."""

    id: str = Field(min_length=1)
    """``world:SET``, a local .csv, .jsonl or .parquet file or a folder of them, or a hub id."""

    columns: Mapping[str, str] = {}
    """What the source calls a column, by the name that the metric gives it."""

    train_split: str = "train"
    """Name of the training split: of a file in the folder, or on the hub."""

    test_split: str = "test"
    """Name of the test split likewise."""

    config: str | None = None
    """Configuration of a hub dataset."""

    revision: str | None = None
    """Commit, branch or tag of a hub dataset."""

    test_share: float = Field(default=0.25, gt=0, lt=1)
    """Share of test rows of a single local file, which has no splits: a hash of the row decides."""

    max_rows: int = Field(default=20_000, gt=0)
    """Rows read per split at most."""


def table_rows(
    cfg: TableConfig,
    wanted: Sequence[str],
    split: TableSplit,
    *,
    world: WorldConfig | None = None,
    relative_to: Path | None = None,
) -> list[Row]:
    """The rows of ``split``, each with every column of ``wanted`` and no other.

    Equal rows of a file without splits fall on the same side. Raises `MissingFile`, `BadInput` or
    `UnknownName`, naming the source and the column.
    """
    for name in cfg.columns:
        if name not in wanted:
            raise BadInput(
                f"no such column is wanted; wanted are {', '.join(wanted)}.{nearest(name, wanted)}",
                key="columns",
                value=name,
            )
    source = {name: cfg.columns.get(name, name) for name in wanted}
    if cfg.id.startswith(WORLD_PREFIX):
        return _world_rows(cfg, source, split, world)
    path = (relative_to or Path()) / cfg.id
    if path.suffix.lower() in _readers.SUFFIXES or path.exists():
        return list(islice(_local_rows(cfg, path, source, split), cfg.max_rows))
    return list(_hub_rows(cfg, source, split))


def table_files(cfg: TableConfig, relative_to: Path | None = None) -> list[Path]:
    """Local files that the rows come from, for fingerprints; none for the world and the hub."""
    path = (relative_to or Path()) / cfg.id
    if cfg.id.startswith(WORLD_PREFIX) or not path.exists():
        return []
    return _readers.text_files(path, key="id", suffixes=_readers.TABLES)


def local_files(*named: str | Config | None, relative_to: Path) -> list[Path]:
    """Local files behind data sets that are given as an id or as a config with one."""
    ids = [one if isinstance(one, str) else getattr(one, "id", "") for one in named]
    tables = [TableConfig(id=one) for one in ids if one]
    return [file for table in tables for file in table_files(table, relative_to)]


def _world_rows(
    cfg: TableConfig, source: Mapping[str, str], split: TableSplit, world: WorldConfig | None
) -> list[Row]:
    from sae_lib.synthetic.world.sets import SETS, task_rows

    name = cfg.id.removeprefix(WORLD_PREFIX)
    known = SETS[name].columns
    for column in source.values():
        if column not in known:
            raise BadInput(
                f"the set has no such column. Columns: {', '.join(known)}.{nearest(column, known)}",
                key="columns",
                value=column,
            )
    rows = task_rows(name, split, cfg.max_rows, world)
    return [{name: row[column] for name, column in source.items()} for row in rows]


def _local_rows(
    cfg: TableConfig, path: Path, source: Mapping[str, str], split: TableSplit
) -> Iterator[Row]:
    files = _readers.text_files(path, key="id", suffixes=_readers.TABLES)
    stem = cfg.train_split if split == "train" else cfg.test_split
    is_divided = len(files) == 1
    if not is_divided:
        chosen = [file for file in files if file.stem == stem]
        if not chosen:
            raise BadInput(
                f"the folder has no file of the {split} split, {stem}; it has"
                f" {', '.join(file.name for file in files)}.",
                key="id",
                value=str(path),
            )
        files = chosen
    keys = {column: f"columns.{name}" for name, column in source.items()}
    for file in files:
        _readers.check_columns(file, keys)
        for _, values in _readers.rows(file, keys):
            if is_divided and _is_test(values, cfg.test_share) != (split == "test"):
                continue
            named = dict(zip(keys, values, strict=True))
            yield {name: named[column] for name, column in source.items()}


def _is_test(values: tuple[Any, ...], share: float) -> bool:
    told = json.dumps(values, sort_keys=True, default=str).encode()
    return int.from_bytes(hashlib.blake2b(told, digest_size=8).digest()) < share * 2**64


def _hub_rows(cfg: TableConfig, source: Mapping[str, str], split: TableSplit) -> Iterator[Row]:
    from datasets import load_dataset

    name = cfg.train_split if split == "train" else cfg.test_split
    try:
        stream = load_dataset(cfg.id, cfg.config, split=name, revision=cfg.revision, streaming=True)
    except (OSError, ValueError) as error:  # what datasets and the hub client raise
        raise BadInput(
            f"the dataset could not be opened on the hub ({error}); check the id, the split"
            f" {name!r} and the configuration {cfg.config!r}, or name a local file.",
            key="id",
            value=cfg.id,
        ) from error
    for row in islice(stream, cfg.max_rows):
        for column in source.values():
            if column not in row:
                raise BadInput(
                    f"{cfg.id} has no such column. Columns: {', '.join(row)}."
                    f"{nearest(column, row)}",
                    key="columns",
                    value=column,
                )
        yield {name: row[column] for name, column in source.items()}
