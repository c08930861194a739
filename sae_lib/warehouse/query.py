"""Read-only SQL over a published database, and a list of what is in it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
import polars as pl

from sae_lib.errors import MissingFile, SaeError

_CATALOG = """
    select schema_name as "schema", table_name as "table", kind,
           column_name as "column", data_type as "type", comment
    from (
        select schema_name, table_name, 'table' as kind, '' as column_name, '' as data_type,
               comment, -1 as place
        from duckdb_tables() where database_name = current_database()
        union all
        select schema_name, view_name, 'view', '', '', comment, -1
        from duckdb_views() where database_name = current_database() and not internal
        union all
        select schema_name, function_name || '(' || array_to_string(parameters, ', ') || ')',
               'macro', '', '', comment, -1
        from duckdb_functions() where database_name = current_database() and not internal
        union all
        select schema_name, table_name, if(exists(
                   from duckdb_views() v where v.database_name = c.database_name
                   and v.schema_name = c.schema_name and v.view_name = c.table_name
               ), 'view', 'table'), column_name, data_type, comment, column_index
        from duckdb_columns() c where database_name = current_database() and not internal
    )
    where schema_name <> 'internal'
    order by schema_name <> 'main', table_name, place
"""


class QueryFailed(SaeError, ValueError):
    """A query that the database refused; ``sql`` is the query, ``problem`` what DuckDB said."""

    def __init__(self, sql: str, problem: str, hint: str = "") -> None:
        self.sql, self.problem = sql, problem
        super().__init__(f"{problem}{hint}")


def query(db: Path, sql: str, parameters: Sequence[Any] | Mapping[str, Any] = ()) -> pl.DataFrame:
    """The rows of ``sql``, with ``?`` or ``$name`` in it filled from ``parameters``.

    Nothing but the published database can be read, and nothing can be changed: no other file, no
    network, no variables of the caller. Raises `MissingFile` where nothing was published yet, and
    `QueryFailed` with DuckDB's message and the tables there are.
    """
    with _connected(db) as connection:
        try:
            relation = connection.sql(sql, params=_bound(parameters))
            if relation is None:
                raise QueryFailed(sql, "The statement returns no rows; write a SELECT.")
            return relation.pl()
        except (duckdb.CatalogException, duckdb.BinderException) as error:
            raise QueryFailed(sql, str(error), _tables_hint(connection)) from error
        except duckdb.Error as error:
            raise QueryFailed(sql, str(error)) from error
        except pl.exceptions.PolarsError as error:
            hint = " Cast the column to VARCHAR."
            raise QueryFailed(
                sql, f"A column has a type without a match: {error}.", hint
            ) from error


def describe(db: Path) -> pl.DataFrame:
    """Tables, views, macros and their columns: schema, table, kind, column, type, comment.

    The row of the table itself has an empty column name. Schema ``main`` comes first.
    """
    return query(db, _CATALOG)


def _bound(parameters: Sequence[Any] | Mapping[str, Any]) -> Any:
    if not parameters:
        return None
    return dict(parameters) if isinstance(parameters, Mapping) else list(parameters)


@contextmanager
def _connected(db: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """The database, attached to an instance of its own.

    A process that opens one path twice gets the content of the first time, whatever was published
    since; an attached file is opened anew.
    """
    if not db.is_file():
        raise MissingFile(
            "nothing has been published here yet; `sae run` an experiment first.", file=db
        )
    with duckdb.connect(
        ":memory:",
        config={
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
        },
    ) as connection:
        path = str(db).replace("'", "''")
        try:
            connection.execute(f"attach '{path}' as results (read_only)")
        except duckdb.Error as error:
            raise QueryFailed("attach", f"{db} cannot be opened: {error}") from error
        connection.execute("use results")
        connection.execute("set enable_external_access = false")
        connection.execute("set lock_configuration = true")
        yield connection


def _tables_hint(connection: duckdb.DuckDBPyConnection) -> str:
    rows = connection.execute(
        "select view_name from duckdb_views() "
        "where database_name = 'results' and schema_name = 'main' and not internal order by all"
    ).fetchall()
    return f"\nTables: {', '.join(name for (name,) in rows)}."
