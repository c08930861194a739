import polars as pl
import pytest

from sae_lib.errors import BadInput, CorruptData
from sae_lib.warehouse.landing import land_table, save_table
from sae_lib.warehouse.rows import Measurement
from sae_lib.warehouse.write import Provenance, write_rows

CELL = {"experiment": "e", "site": "s", "variant": "v"}
FROM = Provenance("m", "f1", "sae", "art", 3)


def test_landed_rows_are_those_a_direct_write_would_have_made(tmp_path, number):
    rows = [number("fvu", 0.5), number("l0", None, params={"k": 1})]
    kept = tmp_path / "metrics.parquet"
    save_table(kept, "metrics", rows)
    assert "experiment" not in pl.read_parquet(kept).columns
    landed = land_table(tmp_path / "a", "metrics", CELL, kept, FROM)
    direct = write_rows(tmp_path / "b", "metrics", CELL, rows, FROM)
    assert landed.relative_to(tmp_path / "a") == direct.relative_to(tmp_path / "b")
    when = pl.col("created_at")
    assert (
        pl.read_parquet(landed)
        .drop("created_at")
        .equals(pl.read_parquet(direct).drop("created_at"))
    )
    assert (
        pl.read_parquet(landed).select(when).schema == pl.read_parquet(direct).select(when).schema
    )


def test_one_file_lands_in_many_experiments(tmp_path):
    kept = tmp_path / "metrics.parquet"
    save_table(kept, "metrics", [Measurement("fvu", 0.5, "d")])
    paths = {
        land_table(tmp_path, "metrics", {**CELL, "experiment": name}, kept, FROM) for name in "ab"
    }
    assert {pl.read_parquet(path)["experiment"].item() for path in paths} == {"a", "b"}


def test_a_column_that_a_kept_file_lacks_lands_empty(tmp_path):
    kept = tmp_path / "metrics.parquet"
    save_table(kept, "metrics", [Measurement("fvu", 0.5, "d", unit="texts")])
    pl.read_parquet(kept).drop("unit").write_parquet(kept)
    path = land_table(tmp_path, "metrics", CELL, kept, FROM)
    assert pl.read_parquet(path)["unit"].to_list() == [None]


def test_what_cannot_be_read_is_named(tmp_path):
    kept = tmp_path / "metrics.parquet"
    kept.write_bytes(b"not parquet")
    with pytest.raises(CorruptData, match=r"metrics\.parquet: the rows cannot be read"):
        land_table(tmp_path, "metrics", CELL, kept, FROM)


def test_rows_are_checked_before_they_are_kept(tmp_path):
    with pytest.raises(BadInput, match="must not be NaN"):
        save_table(tmp_path / "x.parquet", "metrics", [Measurement("fvu", float("nan"), "d")])
    assert not (tmp_path / "x.parquet").exists()
