"""Parquet to one DuckDB file, built aside and renamed over: readers never meet half of it.

The file holds, in schema ``stored``, every row there is as real tables, each row marked whether an
experiment still declares it; and, in the default schema, views that leave out what is no longer
declared. ``internal.source`` records which Parquet files it was built from.
"""

import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import duckdb
from filelock import FileLock

from sae_lib.config import digest
from sae_lib.errors import CorruptData
from sae_lib.warehouse.declared import (
    FILE,
    Cell,
    Declarations,
    read_declarations,
    write_declarations,
)
from sae_lib.warehouse.tables import CELL, DECLARED, SHARED, TABLES, Table

_VIEWS = Path(__file__).with_name("views.sql")
_SNAPSHOT = ".snapshot-"
_IS_DECLARED = "Whether an experiment still declares the cell of this row."


class Source(NamedTuple):
    """One file that a published database was built from. A rewrite changes at least one field."""

    table: str
    path: str
    """Relative to the root."""

    inode: int
    size: int
    modified_ns: int


def publish(
    root: Path,
    db: Path,
    declared: Iterable[Cell] | None = None,
    *,
    experiments: Collection[str] | None = None,
) -> dict[str, int]:
    """Build ``db`` from all Parquet under ``root``; returns the number of rows per table.

    ``declared`` are the cells (experiment, site, variant) that exist now. They replace what was
    declared before: altogether, or of ``experiments`` only. Without them the last ones hold; where
    none were ever given, every row counts as declared. Publishers wait for each other; readers of
    the old file keep it until they close it. Raises `CorruptData` for a file that is not Parquet.
    """
    root.mkdir(parents=True, exist_ok=True)
    db.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(db.with_name(f".{db.name}.lock"))):
        for leftover in root.glob(f"{_SNAPSHOT}*"):  # of a publisher that was killed
            shutil.rmtree(leftover, ignore_errors=True)
        declarations = read_declarations(root)
        if declared is not None:
            declarations = declarations.updated(declared, experiments)
            write_declarations(root, declarations)
        new = db.with_name(f".{db.name}.new")
        wal = db.with_name(f"{db.name}.wal")
        new.unlink(missing_ok=True)
        try:
            counts = _build(root, new, declarations)
            wal.unlink(missing_ok=True)  # a log of changes to the old file fits no new one
            new.replace(db)
        finally:
            new.unlink(missing_ok=True)
    return counts


def last_change(root: Path, *, ignore: Collection[str] = ()) -> int:
    """When the newest file of any table but those to ``ignore`` was written, in nanoseconds."""
    changed = (one.modified_ns for one in _sources(root) if one.table not in ignore)
    return max(changed, default=0)


def is_stale(root: Path, db: Path, *, ignore: Collection[str] = ()) -> bool:
    """Whether ``db`` is missing, or was built from other files, declarations or views.

    What happened to the tables to ``ignore`` does not count.
    """
    if not db.is_file():
        return True
    try:
        with duckdb.connect(":memory:") as connection:
            connection.execute(f"attach {_quoted(str(db))} as published (read_only)")
            built_from = connection.execute("select * from published.internal.source").fetchall()
    except duckdb.Error:
        return True
    sources = {Source(*row) for row in built_from}, set(_sources(root))
    before, now = ({one for one in some if one.table not in ignore} for some in sources)
    return before != now


def _sources(root: Path) -> Iterator[Source]:
    """Everything that determines a published database, as it is now."""
    yield Source("", _layout(), 0, 0, 0)
    files = [("", root / FILE)]
    files += [(name, path) for name in TABLES for path in _parquet_files(root, name)]
    for name, path in files:
        if source := _source(root, name, path):
            yield source


def _source(root: Path, table_name: str, path: Path, pinned: Path | None = None) -> Source | None:
    try:
        stat = (pinned or path).stat()
    except FileNotFoundError:
        return None
    relative = path.relative_to(root).as_posix()
    return Source(table_name, relative, stat.st_ino, stat.st_size, stat.st_mtime_ns)


def _parquet_files(root: Path, table_name: str) -> list[Path]:
    depth = len(TABLES[table_name].partition)
    pattern = "/".join([*("*=*",) * depth, "rows*.parquet"])
    return sorted((root / table_name).glob(pattern))


def _layout() -> str:
    """Names the tables and views this version publishes."""
    tables = {name: repr(table) for name, table in TABLES.items()}
    return digest({"tables": tables, "views": _VIEWS.read_text("utf-8")})


def _build(root: Path, db: Path, declarations: Declarations) -> dict[str, int]:
    with (
        TemporaryDirectory(dir=root, prefix=_SNAPSHOT) as snapshot,
        duckdb.connect(str(db)) as connection,
    ):
        pinned = _pin(root, Path(snapshot))
        connection.begin()  # one commit; each costs about as much as a table
        connection.execute("create schema stored; create schema internal")
        _create_source(connection, [source for source, _ in pinned])
        _create_declared(connection)
        counts = {}
        for table in TABLES.values():
            files = {
                path: root / source.path for source, path in pinned if source.table == table.name
            }
            _create(connection, table)
            _fill(connection, table, files, declarations)
            row = connection.execute(f"select count(*) from stored.{table.name}").fetchone()
            counts[table.name] = row[0] if row else 0
        _fill_declared(connection, declarations)
        connection.execute(_VIEWS.read_text("utf-8"))
        connection.commit()
    return counts


def _pin(root: Path, snapshot: Path) -> list[tuple[Source, Path]]:
    """Hard links to all files, so that a partition rewritten meanwhile does not change under us."""
    pinned = [(source, Path()) for source in _sources(root) if not source.table]
    for name in TABLES:
        for path in _parquet_files(root, name):
            link = snapshot / f"{len(pinned):06}.parquet"
            try:
                os.link(path, link)
            except FileNotFoundError:
                continue  # a partition that was deleted meanwhile
            except OSError:  # a file system without hard links
                shutil.copy2(path, link)
            if source := _source(root, name, path, link):
                pinned.append((source, link))
    return pinned


def _create_source(connection: duckdb.DuckDBPyConnection, sources: list[Source]) -> None:
    connection.execute(
        "create table internal.source("
        '"table" VARCHAR, path VARCHAR, inode UBIGINT, size BIGINT, modified_ns BIGINT)'
    )
    _insert(connection, "internal.source", sources)
    _comment(connection, "table internal.source", "What this database was built from.")


def _create(connection: duckdb.DuckDBPyConnection, table: Table) -> None:
    """The table with its comments, and a view of the same name without undeclared rows."""
    columns = [f'"{column.name}" {column.sql_type}' for column in table.all_columns]
    if table.is_declarable:
        columns.append("is_declared BOOLEAN")
    connection.execute(f"create table stored.{table.name}({', '.join(columns)})")
    where = "where is_declared" if table.is_declarable else ""
    names = ", ".join(f'"{column.name}"' for column in table.all_columns)
    connection.execute(
        f"create view {table.name} as select {names} from stored.{table.name} {where}"
    )
    _comment(connection, f"table stored.{table.name}", f"{table.description} Undeclared rows too.")
    _comment(connection, f"view {table.name}", table.description)
    for column in table.all_columns:
        for owner in (f"stored.{table.name}", table.name):
            _comment(connection, f'column {owner}."{column.name}"', column.description)
    if table.is_declarable:
        _comment(connection, f"column stored.{table.name}.is_declared", _IS_DECLARED)


def _fill(
    connection: duckdb.DuckDBPyConnection,
    table: Table,
    files: dict[Path, Path],
    declarations: Declarations,
) -> None:
    """Copy the rows of ``files`` (snapshot to original). Columns a file lacks become NULL."""
    if not files:
        return
    paths = [_without_wildcards(path) for path in files]
    source = "read_parquet(?, union_by_name = true, hive_partitioning = false)"
    try:
        found = connection.execute(f"describe select * from {source}", [paths]).fetchall()
        present = {row[0] for row in found}
        names = [column.name for column in table.all_columns if column.name in present]
        columns = ", ".join(f'"{name}"' for name in names)
        if not table.is_declarable:
            connection.execute(
                f"insert into stored.{table.name} by name select {columns} from {source}", [paths]
            )
            return
        keys = ", ".join(table.partition)
        cells = connection.execute(f"select distinct {keys} from {source}", [paths]).fetchall()
        connection.execute(
            f"create or replace temp table cells as select {keys}, true as "
            f"is_declared from stored.{table.name} limit 0"
        )
        marked = [(*cell, declarations.covers(*cell, *("",) * (3 - len(cell)))) for cell in cells]
        _insert(connection, "cells", marked)
        connection.execute(
            f"insert into stored.{table.name} by name select {columns}, is_declared "
            f"from {source} join cells using ({keys})",
            [paths],
        )
    except duckdb.Error as error:
        _find_culprit(connection, files)
        raise CorruptData(
            next(iter(files.values())).parent,
            f"the files of table {table.name} cannot be read together ({error}).",
            "Delete those an older version wrote, and run their steps again.",
        ) from error


def _find_culprit(connection: duckdb.DuckDBPyConnection, files: dict[Path, Path]) -> None:
    for path, original in files.items():
        try:
            connection.execute("select * from read_parquet(?)", [[_without_wildcards(path)]])
        except duckdb.Error as error:
            raise CorruptData(
                original,
                f"it is not a Parquet file ({error}).",
                "Delete it and run its step again.",
            ) from error


def _create_declared(connection: duckdb.DuckDBPyConnection) -> None:
    columns = ", ".join(f"{name} VARCHAR" for name in CELL)
    connection.execute(f"create table stored.{DECLARED}({columns})")
    connection.execute(f"create view {DECLARED} as select * from stored.{DECLARED}")
    text = "Cells that experiments declare, whether or not they have results."
    for kind, owner in (("table", f"stored.{DECLARED}"), ("view", DECLARED)):
        _comment(connection, f"{kind} {owner}", text)
        for name in CELL:
            _comment(connection, f"column {owner}.{name}", SHARED[name].description)


def _fill_declared(connection: duckdb.DuckDBPyConnection, declarations: Declarations) -> None:
    cells = {(name, *pair) for name, pairs in declarations.cells.items() for pair in pairs}
    for table in TABLES.values():
        if table.partition == CELL:
            sql = f"select distinct {', '.join(CELL)} from {table.name} where variant <> ''"
            cells |= set(connection.execute(sql).fetchall())
    _insert(connection, f"stored.{DECLARED}", sorted(cells))


def _insert(
    connection: duckdb.DuckDBPyConnection, table_name: str, rows: Sequence[tuple[Any, ...]]
) -> None:
    """All ``rows`` in one statement; ``executemany`` takes a millisecond for each."""
    if rows:
        columns = [list(column) for column in zip(*rows, strict=True)]
        unnested = ", ".join(["unnest(?)"] * len(columns))
        connection.execute(f"insert into {table_name} select {unnested}", columns)


def _without_wildcards(path: Path) -> str:
    """``path`` for DuckDB, which takes ``*``, ``?`` and ``[`` in it for patterns."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in str(path))


def _comment(connection: duckdb.DuckDBPyConnection, owner: str, text: str) -> None:
    connection.execute(f"comment on {owner} is {_quoted(text)}")


def _quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
