import multiprocessing
import threading
import time
from pathlib import Path

import duckdb
import polars as pl
import pytest

from sae_lib.errors import CorruptData
from sae_lib.warehouse import publish as publish_module
from sae_lib.warehouse.declared import FILE
from sae_lib.warehouse.publish import is_stale
from sae_lib.warehouse.query import describe, query
from sae_lib.warehouse.rows import Measurement
from sae_lib.warehouse.tables import TABLES
from sae_lib.warehouse.write import Provenance, write_rows


def test_every_table_exists_typed_and_described_when_there_is_nothing_to_publish(warehouse):
    assert set(warehouse.publish().values()) == {0}
    found = describe(warehouse.db)
    assert not found.filter(pl.col("comment").is_null(), pl.col("column") == "").height
    for table in TABLES.values():
        rows = found.filter(pl.col("table") == table.name, pl.col("schema") == "main")
        columns = dict(rows.filter(pl.col("column") != "").select("column", "type").iter_rows())
        assert columns == {column.name: column.sql_type for column in table.all_columns}
        assert not rows.filter(pl.col("comment").is_null()).height
        assert warehouse.ask(f"from {table.name}").schema == table.schema


def test_every_view_can_be_read_when_there_is_nothing(warehouse):
    warehouse.publish()
    for name in describe(warehouse.db).filter(kind="view")["table"].unique():
        assert warehouse.ask(f"from {name}").height == 0
    assert warehouse.ask("from compare('a', 'b')").height == 0


def test_publishing_twice_gives_the_same_rows(warehouse, number):
    warehouse.write("metrics", [number("fvu", 0.5), number("l0", None)])
    first, counts = warehouse.publish() and warehouse.ask("from metrics"), warehouse.publish()
    assert counts["metrics"] == 2
    assert warehouse.ask("from metrics").equals(first)
    left = {path.name for path in warehouse.db.parent.iterdir() if path.is_file()}
    assert left <= {"results.duckdb", ".results.duckdb.lock"}
    assert not list(warehouse.root.glob(".snapshot*"))


def test_none_stays_null(warehouse, number):
    warehouse.write("metrics", [number("fvu", None, reason="constant activations")])
    warehouse.publish()
    found = warehouse.ask("select value is null as gone, reason from metrics")
    assert found.rows() == [(True, "constant activations")]


def test_hostile_names_arrive_as_they_were(warehouse, number):
    names = ["a/../b", "x'; drop table metrics; --", "100%", "module:h[0].mlp", "é 語"]
    for name in names:
        warehouse.write("metrics", [number("fvu", 0.5)], site=name, variant=name)
    warehouse.publish([("e", name, name) for name in names])
    rows = warehouse.ask("select site, variant from metrics").rows()
    assert sorted(rows) == sorted((name, name) for name in names)


def test_wildcards_in_the_root_are_no_pattern(tmp_path, warehouse, number):
    strange = warehouse._replace(root=tmp_path / "a[bc]*" / "rows")
    strange.write("metrics", [number("fvu", 0.5)])
    (tmp_path / "ab" / "rows").mkdir(parents=True)
    assert strange.publish()["metrics"] == 1


def test_a_file_from_before_a_column_was_added_reads_as_null_there(warehouse, number):
    path = warehouse.write("metrics", [number("fvu", 0.5, unit="texts")], variant="old")
    pl.read_parquet(path).drop("unit", "stderr").write_parquet(path)
    warehouse.write("metrics", [number("fvu", 0.25, unit="texts")], variant="new")
    warehouse.publish()
    found = warehouse.ask("select variant, unit, value from metrics order by variant")
    assert found.rows() == [("new", "texts", 0.25), ("old", None, 0.5)]


def test_a_column_that_no_longer_exists_is_left_out(warehouse, number):
    path = warehouse.write("metrics", [number("fvu", 0.5)])
    pl.read_parquet(path).with_columns(pl.lit(1).alias("colour")).write_parquet(path)
    warehouse.publish()
    assert "colour" not in warehouse.ask("from metrics").columns


def test_a_file_that_is_not_parquet_is_named(warehouse, number):
    warehouse.write("metrics", [number("fvu", 0.5)], variant="good")
    path = warehouse.write("metrics", [number("fvu", 0.5)], variant="bad")
    warehouse.publish()
    path.write_bytes(b"not parquet")
    with pytest.raises(CorruptData, match=r"variant=bad.*not a Parquet file"):
        warehouse.publish()
    assert warehouse.ask("from metrics").height == 2, "the last good database is gone"


def test_undeclared_rows_are_kept_but_left_out_by_default(warehouse, number):
    for variant in ("kept", "dropped"):
        warehouse.write("metrics", [number("fvu", 0.5)], variant=variant)
    warehouse.write("metrics", [number("gap", 0.5)], variant="")
    warehouse.write("metrics", [number("gap", 0.5)], site="elsewhere", variant="")
    warehouse.publish([("e", "s", "kept"), ("e", "s", "not yet")])
    assert sorted(warehouse.ask("select site, variant from metrics").rows()) == [
        ("s", ""),
        ("s", "kept"),
    ]
    marked = warehouse.ask("select site, variant, is_declared from stored.metrics order by all")
    assert marked.rows() == [
        ("elsewhere", "", False),
        ("s", "", True),
        ("s", "dropped", False),
        ("s", "kept", True),
    ]
    assert warehouse.ask("select variant, status from leaderboard").rows() == [
        ("kept", "not built"),
        ("not yet", "not built"),
    ]


def test_what_was_declared_is_remembered(warehouse, number):
    for variant in ("kept", "dropped"):
        warehouse.write("metrics", [number("fvu", 0.5)], variant=variant)
    warehouse.publish([("e", "s", "kept")])
    warehouse.publish()
    assert warehouse.ask("select variant from metrics").rows() == [("kept",)]


def test_declaring_one_experiment_leaves_the_others_alone(warehouse, number):
    for experiment in ("one", "two"):
        for variant in ("a", "b"):
            warehouse.write("metrics", [number("x", 1.0)], experiment=experiment, variant=variant)

    def shown():
        return sorted(warehouse.ask("select experiment, variant from metrics").rows())

    warehouse.publish([("one", "s", "a")], experiments=["one"])
    assert shown() == [("one", "a"), ("two", "a"), ("two", "b")]
    warehouse.publish([("two", "s", "b")], experiments=["two"])
    assert shown() == [("one", "a"), ("two", "b")]
    warehouse.publish([], experiments=["one"])
    assert shown() == [("two", "b")]
    warehouse.publish([("one", "s", "b")])
    assert shown() == [("one", "b")]


def test_an_unreadable_declaration_is_named(warehouse):
    warehouse.root.mkdir()
    (warehouse.root / FILE).write_text('{"format_version": 99}')
    with pytest.raises(CorruptData, match="format version 99"):
        warehouse.publish()
    (warehouse.root / FILE).write_text('{"format_version": 1, "cells": 3}')
    with pytest.raises(CorruptData, match=r"declared\.json.*Delete it"):
        warehouse.publish()


def test_a_database_is_stale_when_anything_it_was_built_from_changed(warehouse, number):
    def fresh() -> bool:
        return not is_stale(warehouse.root, warehouse.db)

    assert not fresh()
    warehouse.publish()
    assert fresh()
    path = warehouse.write("metrics", [number("fvu", 0.5)])
    assert not fresh()
    warehouse.publish()
    assert fresh()
    warehouse.write("metrics", [number("fvu", 0.5)])  # the same rows, written again
    assert not fresh()
    warehouse.publish()
    path.unlink()
    assert not fresh()
    warehouse.publish([("e", "s", "v")])
    assert fresh()
    (warehouse.root / FILE).write_text("{}")
    assert not fresh()
    warehouse.db.write_bytes(b"not a database")
    assert not fresh()


def test_a_leftover_log_of_the_old_file_does_not_spoil_the_new_one(warehouse, number):
    warehouse.publish()
    with duckdb.connect(str(warehouse.db)) as connection:
        connection.execute("set wal_autocheckpoint = '1TB'; pragma disable_checkpoint_on_shutdown")
        connection.execute("create table mine as select 1 as x")
    log = warehouse.db.with_name("results.duckdb.wal")
    assert log.exists()
    warehouse.write("metrics", [number("fvu", 0.5)])
    warehouse.publish()
    assert not log.exists()
    assert warehouse.ask("from metrics").height == 1


def test_what_a_killed_publisher_left_is_removed(warehouse):
    (warehouse.root / ".snapshot-dead").mkdir(parents=True)
    warehouse.db.with_name(".results.duckdb.new").write_bytes(b"half")
    warehouse.publish()
    assert not (warehouse.root / ".snapshot-dead").exists()
    assert not warehouse.db.with_name(".results.duckdb.new").exists()


def test_an_open_reader_keeps_the_old_file_and_the_next_one_sees_the_new(warehouse, number):
    warehouse.write("metrics", [number("fvu", 0.5)])
    warehouse.publish()
    with duckdb.connect(str(warehouse.db), read_only=True) as reader:
        warehouse.write("metrics", [number("fvu", 0.25)])
        warehouse.publish()
        assert reader.execute("select value from metrics").fetchall() == [(0.5,)]
        assert warehouse.ask("select value from metrics").rows() == [(0.25,)]


def test_rows_rewritten_while_publishing_do_not_mix_with_the_old(warehouse, number, monkeypatch):
    warehouse.write("metrics", [number("fvu", 0.5)])
    pin = publish_module._pin

    def rewrite_after(*args):
        pinned = pin(*args)
        warehouse.write("metrics", [number("fvu", 0.25)] * 3)
        return pinned

    monkeypatch.setattr(publish_module, "_pin", rewrite_after)
    assert warehouse.publish()["metrics"] == 1
    assert warehouse.ask("select value from metrics").rows() == [(0.5,)]
    assert is_stale(warehouse.root, warehouse.db)


def test_files_are_replaced_and_never_written_into(warehouse, number):
    path = warehouse.write("metrics", [number("fvu", 0.5)])
    warehouse.publish()
    before = path.read_bytes(), warehouse.db.read_bytes()
    with path.open("rb") as rows, warehouse.db.open("rb") as database:
        warehouse.write("metrics", [number("fvu", 0.25)] * 100)
        warehouse.publish()
        assert (rows.read(), database.read()) == before
    assert path.read_bytes() != before[0]


WRITERS = 2
ROUNDS = 15
ROWS_EACH = 50


def _write_many(root: Path, variant: str) -> None:
    partition = {"experiment": "e", "site": "s", "variant": variant}
    for i in range(ROUNDS):
        rows = [Measurement(f"m{j}", float(i), "d") for j in range(ROWS_EACH)]
        write_rows(root, "metrics", partition, rows, Provenance("m", "f"))


def test_writers_publishers_and_readers_work_at_once_and_no_one_sees_half(warehouse):
    spawn = multiprocessing.get_context("spawn")
    writers = [
        spawn.Process(target=_write_many, args=(warehouse.root, f"v{i}")) for i in range(WRITERS)
    ]
    warehouse.publish()
    failures: list[BaseException] = []
    reads = 0

    def publishing() -> None:
        try:
            while any(writer.is_alive() for writer in writers):
                warehouse.publish()
        except BaseException as error:  # noqa: BLE001  (reported by the test)
            failures.append(error)

    for writer in writers:
        writer.start()
    publishers = [threading.Thread(target=publishing) for _ in range(2)]
    for publisher in publishers:
        publisher.start()
    while any(publisher.is_alive() for publisher in publishers):
        counts = query(
            warehouse.db,
            "select variant, count(*), count(distinct value) from metrics group by variant",
        ).rows()
        assert all(count[1:] == (ROWS_EACH, 1) for count in counts), counts
        reads += 1
        time.sleep(0.005)
    for process in (*writers, *publishers):
        process.join()
    assert not failures
    assert all(writer.exitcode == 0 for writer in writers)
    assert reads > 3
    assert warehouse.publish()["metrics"] == WRITERS * ROWS_EACH
    assert warehouse.ask("select distinct value from metrics").rows() == [(ROUNDS - 1.0,)]
    assert not list(warehouse.root.glob(".*"))
