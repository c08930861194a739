"""Rows kept with the artefact they belong to, and put into the warehouse for each experiment.

An artefact holds a table's own columns only: it may be found by several experiments, and each
puts the same rows into a partition of its own, with its own name beside them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import polars as pl

from sae_lib.errors import CorruptData
from sae_lib.warehouse.tables import table
from sae_lib.warehouse.write import Provenance, partition_path, shared_values, store_frame, to_frame

_NOBODY = Provenance(model="", model_fingerprint="")


def save_table(path: Path, table_name: str, rows: Iterable[Any] | pl.DataFrame) -> None:
    """Keep ``rows`` in one Parquet file, validated; raises `BadInput` as `write_rows` does.

    A frame is one that was kept by this function before.
    """
    spec = table(table_name)
    if isinstance(rows, pl.DataFrame):
        rows.select(column.name for column in spec.columns).write_parquet(path)
        return
    frame = to_frame(spec, dict.fromkeys(spec.partition, ""), rows, _NOBODY)
    frame.select(column.name for column in spec.columns).write_parquet(path)


def land_table(
    root: Path, table_name: str, partition: Mapping[str, str], path: Path, provenance: Provenance
) -> Path:
    """Replace one partition of the warehouse by the rows that `save_table` kept at ``path``."""
    spec = table(table_name)
    try:
        own = pl.read_parquet(path)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise CorruptData(
            path, f"the rows cannot be read ({error}).", "Delete the artefact and run again."
        ) from error
    shared = shared_values(spec, partition, provenance)
    context = [
        pl.lit(shared[column.name], dtype=column.dtype).alias(column.name)
        for column in spec.all_columns
        if column.name in shared
    ]
    missing = [
        pl.lit(None, dtype=column.dtype).alias(column.name)
        for column in spec.columns
        if column.name not in own.columns
    ]
    frame = own.with_columns(*context, *missing).select(spec.schema.names())
    target = partition_path(root, table_name, partition, provenance.model_fingerprint)
    store_frame(target, frame)
    return target
