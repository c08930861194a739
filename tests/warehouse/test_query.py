import polars as pl
import pytest

from sae_lib.errors import MissingFile
from sae_lib.warehouse.query import QueryFailed, describe, query


def test_parameters_are_values_and_not_text(filled):
    rows = query(filled.db, "select name from metrics where name = ?", ["fvu"]).rows()
    assert rows == [("fvu",)]
    named = query(filled.db, "select name from metrics where name = $name", {"name": "l0"})
    assert named.rows() == [("l0",)]
    assert filled.ask("from metrics where name = ?", "x' or 'a' = 'a").height == 0


def test_a_missing_database_says_what_to_do(tmp_path):
    with pytest.raises(MissingFile, match=r"none\.duckdb.*nothing has been published"):
        query(tmp_path / "none.duckdb", "select 1")


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "x.duckdb").write_text("hello, this is not a database at all")
    with pytest.raises(QueryFailed, match=r"x\.duckdb cannot be opened"):
        query(tmp_path / "x.duckdb", "select 1")


def test_a_misspelt_table_is_answered_with_the_tables_there_are(filled):
    with pytest.raises(QueryFailed, match=r"(?s)metric does not exist.*Tables:.*leaderboard"):
        filled.ask("from metric")


def test_a_misspelt_column_is_answered_with_what_duckdb_says(filled):
    with pytest.raises(QueryFailed, match=r"(?s)\"valu\" not found.*value"):
        filled.ask("select valu from metrics")


def test_a_syntax_error_keeps_duckdbs_message(filled):
    with pytest.raises(QueryFailed, match="syntax error at or near"):
        filled.ask("selec 1")


secret = pl.DataFrame({"password": ["hunter2"]})


@pytest.mark.parametrize(
    "sql",
    [
        "from read_text('{file}')",
        "from '{file}'",
        "from read_csv('{file}')",
        "from glob('{folder}/*')",
        "copy metrics to '{folder}/out.csv'",
        "export database '{folder}/out'",
        "attach '{folder}/other.duckdb' as other",
        "attach '{db}' as again",
        "insert into stored.metrics(name) values ('x')",
        "delete from stored.metrics",
        "drop view metrics",
        "create table t(i int)",
        "set enable_external_access = true",
        "set threads = 1",
        "install httpfs",
        "load httpfs",
        "from 'https://example.org/x.parquet'",
        "from secret",
    ],
)
def test_a_query_reaches_nothing_but_the_database_and_changes_nothing(filled, tmp_path, sql):
    file = tmp_path / "secret.csv"
    file.write_text("a,b\n1,2\n")
    before = filled.db.read_bytes()
    with pytest.raises(QueryFailed):
        filled.ask(sql.format(file=file, folder=tmp_path, db=filled.db))
    assert filled.db.read_bytes() == before
    assert not (tmp_path / "out.csv").exists()
    assert not (tmp_path / "other.duckdb").exists()


def test_a_statement_without_rows_says_so(filled):
    with pytest.raises(QueryFailed, match="returns no rows"):
        filled.ask("-- nothing")


def test_a_type_that_polars_lacks_says_what_to_do(filled):
    with pytest.raises(QueryFailed, match="Cast the column to VARCHAR"):
        filled.ask("select interval 1 month as i")


def test_lists_and_null_come_back(filled):
    found = filled.ask("select ['a', null] as words, [1.5::float] as numbers, null::double as gone")
    assert found.rows() == [(["a", None], [1.5], None)]


def test_describe_lists_views_before_the_stored_tables_with_their_comments(filled):
    found = describe(filled.db)
    assert found.columns == ["schema", "table", "kind", "column", "type", "comment"]
    schemas = found["schema"].to_list()
    assert schemas == sorted(schemas)
    row = found.filter(schema="stored", table="metrics", column="is_declared").row(0, named=True)
    assert (row["kind"], row["type"]) == ("table", "BOOLEAN")
    assert "declares" in row["comment"]
    macro = found.filter(kind="macro").row(0, named=True)
    assert macro["table"] == "compare(a, b)"
    assert "difference is b - a" in macro["comment"]
