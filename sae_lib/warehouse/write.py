"""Rows into Parquet: one file per (table, partition), validated, replaced as a whole.

    ROOT/TABLE/experiment=E/site=S/variant=V/rows.parquet

Any number of processes may write at once: a partition is written beside its place and renamed, so
a reader meets the old rows or the new ones. Tables that keep history name the file by the model's
fingerprint as well: a rerun on the same model replaces its rows, one on a changed model adds.
"""

import os
import threading
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote, unquote

import polars as pl

from sae_lib.errors import BadInput, nearest
from sae_lib.warehouse._values import checked
from sae_lib.warehouse.rows import Measurement
from sae_lib.warehouse.tables import Table, table

MAX_NAME_BYTES = 255
"""Longest name of a file or folder on the file systems in use."""

_writes = count()


class Provenance(NamedTuple):
    """Where the rows of one write come from."""

    model: str
    model_fingerprint: str
    sae_id: str | None = None
    """Hash of the SAE artefact; None for rows that belong to no SAE."""

    artifact_id: str | None = None
    """Hash of the artefact whose rows these are."""

    seed: int | None = None
    created_at: datetime | None = None
    """With a time zone; None means now."""


def encode_value(value: str) -> str:
    """``value`` as part of a file name: all but letters, digits and ``-._`` percent-encoded.

    Raises `BadInput` when it is no valid Unicode text.
    """
    try:
        return quote(value, safe="")
    except UnicodeEncodeError as error:
        raise BadInput("A partition value must be valid Unicode text.", value=value) from error


def decode_value(name: str) -> str:
    """The inverse of `encode_value`."""
    return unquote(name, errors="strict")


def partition_path(
    root: Path, table_name: str, partition: Mapping[str, str], model_fingerprint: str = ""
) -> Path:
    """The Parquet file of one partition. No value can lead out of the table's folder."""
    spec = table(table_name)
    _check_partition(spec, partition)
    parts = [f"{key}={encode_value(partition[key])}" for key in spec.partition]
    stem = f"rows-{encode_value(model_fingerprint)}" if spec.keeps_history else "rows"
    for part in (*parts, stem):
        if len(part) + len(".parquet") > MAX_NAME_BYTES:
            raise BadInput(
                f"A partition value of table {spec.name} is too long for a file name; "
                "choose a shorter name.",
                value=part,
            )
    return root.joinpath(spec.name, *parts, f"{stem}.parquet")


def write_rows(
    root: Path,
    table_name: str,
    partition: Mapping[str, str],
    rows: Iterable[Any],
    provenance: Provenance,
) -> Path:
    """Replace one partition of a table by ``rows``; returns its file.

    A row is one of the NamedTuples of `sae_lib.warehouse.rows`, or a mapping from column to value.
    No rows at all is an answer too: the partition becomes empty, its history included, since older
    rows would pass for the latest. Raises `BadInput`, naming table, column and row, for an unknown
    or missing column, a value of another type, and for NaN and infinities: a number that could not
    be computed is None, with a reason.
    """
    spec = table(table_name)
    path = partition_path(root, table_name, partition, provenance.model_fingerprint)
    store_frame(path, to_frame(spec, partition, rows, provenance))
    return path


def store_frame(path: Path, frame: pl.DataFrame) -> None:
    """Replace the file of one partition; readers see the old rows or the new ones.

    ``path`` comes from `partition_path`. An empty frame takes the partition's history with it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{os.getpid()}-{threading.get_ident()}-{next(_writes)}.tmp")
    try:
        frame.write_parquet(temporary)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if frame.is_empty():
        for older in path.parent.glob("rows*.parquet"):
            if older != path:
                older.unlink(missing_ok=True)


def to_frame(
    spec: Table, partition: Mapping[str, str], rows: Iterable[Any], provenance: Provenance
) -> pl.DataFrame:
    """``rows`` with their partition and provenance, in the table's schema."""
    flat = [_flatten(row) for row in rows]
    known = {column.name for column in spec.columns}
    for index, row in enumerate(flat):
        if row.keys() != known:
            _explain_keys(spec, index, row)
    shared = shared_values(spec, partition, provenance)
    series = [
        pl.Series(
            column.name,
            [checked(spec, column, shared[column.name], None)] * len(flat),
            dtype=column.dtype,
        )
        for column in spec.all_columns
        if column.name not in known
    ]
    series += [
        pl.Series(
            column.name,
            [checked(spec, column, row[column.name], index) for index, row in enumerate(flat)],
            dtype=column.dtype,
        )
        for column in spec.columns
    ]
    frame = pl.DataFrame(series)
    if {"value", "reason"} <= known:
        unexplained = frame.with_row_index().filter(
            pl.col("value").is_null() & pl.col("reason").is_null()
        )
        if len(unexplained):
            index, name = unexplained.select("index", "name").row(0)
            raise BadInput(
                f"Row {index} ({name}) has no value and no reason; say why there is none.",
                key=f"{spec.name}.reason",
            )
    return frame


def shared_values(
    spec: Table, partition: Mapping[str, str], provenance: Provenance
) -> dict[str, Any]:
    """Values of the columns that are the same for all rows of one write."""
    _check_partition(spec, partition)
    values = {**_provenance_values(provenance), **partition}
    return {name: values[name] for name in (*spec.partition, *spec.provenance)}


def _check_partition(spec: Table, partition: Mapping[str, str]) -> None:
    if set(partition) != set(spec.partition):
        raise BadInput(
            f"The partition of table {spec.name} is ({', '.join(spec.partition)}); "
            f"got ({', '.join(partition)}).",
            key=spec.name,
        )
    for key, value in partition.items():
        if not isinstance(value, str):
            raise BadInput("A partition value must be text.", key=f"{spec.name}.{key}", value=value)


def _provenance_values(provenance: Provenance) -> dict[str, Any]:
    created_at = provenance.created_at or datetime.now(UTC)
    if created_at.tzinfo is None:
        raise BadInput("created_at must carry a time zone.", value=created_at)
    naive = created_at.astimezone(UTC).replace(tzinfo=None)
    return {**provenance._asdict(), "created_at": naive}


def _flatten(row: Any) -> dict[str, Any]:
    """A row as a mapping; the fields of a `Measurement` inside it become the row's own."""
    if isinstance(row, Mapping):
        return dict(row)
    if not hasattr(row, "_asdict"):
        raise BadInput(
            f"A row must be a mapping or one of the NamedTuples of sae_lib.warehouse.rows; "
            f"got {type(row).__name__}."
        )
    flat: dict[str, Any] = {}
    for key, value in row._asdict().items():
        flat.update(value._asdict() if isinstance(value, Measurement) else {key: value})
    return flat


def _explain_keys(spec: Table, index: int, row: dict[str, Any]) -> None:
    """Fill in optional columns that ``row`` leaves out; raise for any other difference."""
    known = {column.name: column for column in spec.columns}
    for key in row:
        if key not in known:
            raise BadInput(
                f"Row {index}: table {spec.name} has no column {key!r}. "
                f"Columns: {', '.join(known)}.{nearest(str(key), known)}",
                key=f"{spec.name}.{key}",
            )
    for column in spec.columns:
        if column.name in row:
            continue
        if not column.optional:
            raise BadInput(
                f"Row {index} lacks the column {column.name!r} ({column.description})",
                key=f"{spec.name}.{column.name}",
            )
        row[column.name] = None
