import math
from datetime import UTC, datetime, timedelta, timezone
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest

from sae_lib.errors import BadInput, UnknownName
from sae_lib.warehouse.rows import (
    ApplicationRow,
    ExampleRow,
    ExplanationRow,
    LatentRow,
    Measurement,
    SelectionRow,
)
from sae_lib.warehouse.tables import TABLES
from sae_lib.warehouse.write import (
    Provenance,
    decode_value,
    encode_value,
    partition_path,
    write_rows,
)

CELL = {"experiment": "e", "site": "resid_post.2", "variant": "topk-w8-k2-s0"}
FROM = Provenance("m", "f1", "sae", "art", 3, datetime(2026, 1, 1, tzinfo=UTC))
FVU = Measurement("fvu", 0.25, "ratio_of_sums", stderr=0.01, n=10, unit="contexts")

HOSTILE = [
    "..",
    "../../etc",
    "/etc/passwd",
    "a/b\\c",
    "module:model.layers[0].mlp",
    "a=b",
    "%2e%2e",
    "*?[x]",
    "",
    " ",
    "nul\0line\nquote'\"",
    "naïve 語 🙂",
    ".hidden",
]


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_partition_value_stays_inside_its_table_and_comes_back(tmp_path, value):
    path = write_rows(tmp_path, "metrics", {**CELL, "site": value}, [FVU], FROM)
    assert path.parent.parent.parent.parent == tmp_path / "metrics"
    assert decode_value(path.parent.parent.name.removeprefix("site=")) == value
    assert pl.read_parquet(path)["site"].to_list() == [value]


def test_different_values_have_different_names():
    assert len({encode_value(value) for value in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize(
    ("value", "message"), [("x" * 300, "too long"), ("\ud800", "Unicode"), (3, "must be text")]
)
def test_a_value_that_makes_no_file_name_is_refused(tmp_path, value, message):
    with pytest.raises(BadInput, match=message):
        partition_path(tmp_path, "latents", {**CELL, "site": value})


def test_the_partition_must_be_the_tables_own(tmp_path):
    with pytest.raises(BadInput, match=r"\(experiment, site, variant\); got \(experiment\)"):
        write_rows(tmp_path, "metrics", {"experiment": "e"}, [FVU], FROM)


def test_a_misspelt_table_is_answered_with_the_right_one(tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'metrics'"):
        write_rows(tmp_path, "metric", CELL, [FVU], FROM)


def test_a_row_is_stored_with_its_partition_and_provenance(tmp_path):
    path = write_rows(tmp_path, "metrics", CELL, [FVU._replace(params={"b": 1, "a": [2]})], FROM)
    assert pl.read_parquet(path).to_dicts() == [
        {
            **CELL,
            "sae_id": "sae",
            "artifact_id": "art",
            "model": "m",
            "model_fingerprint": "f1",
            "seed": 3,
            "created_at": datetime(2026, 1, 1),
            "name": "fvu",
            "definition": "ratio_of_sums",
            "version": 1,
            "value": 0.25,
            "stderr": 0.01,
            "n": 10,
            "unit": "contexts",
            "params": '{"a":[2],"b":1}',
            "reason": None,
        }
    ]


def test_times_are_stored_in_utc(tmp_path):
    there = datetime(2026, 1, 1, 5, tzinfo=timezone(timedelta(hours=5)))
    path = write_rows(tmp_path, "metrics", CELL, [FVU], FROM._replace(created_at=there))
    assert pl.read_parquet(path)["created_at"].to_list() == [datetime(2026, 1, 1)]
    with pytest.raises(BadInput, match="time zone"):
        write_rows(tmp_path, "metrics", CELL, [FVU], FROM._replace(created_at=datetime(2026, 1, 1)))


ROWS = {
    "metrics": FVU,
    "applications": ApplicationRow("probing", "dense_probe", "topic", FVU),
    "latents": LatentRow(3, 0.5, None, 2.0, "cats"),
    "explanations": ExplanationRow(3, "max_act", "cats", ["cat", "'; drop"], [2.0, -1.5]),
    "examples": ExampleRow(3, 0, 17, 4, 1, ["the", " cat"], [0.0, 2.0], 2.0),
    "selections": SelectionRow("random", 0, 17, 3, 5, 60, 0.25, "the cat"),
}


@pytest.mark.parametrize("name", ROWS)
def test_every_row_type_fits_its_table(tmp_path, name):
    path = write_rows(tmp_path, name, CELL, [ROWS[name]] * 2, FROM)
    frame = pl.read_parquet(path)
    assert frame.schema == TABLES[name].schema
    expected = ROWS[name]._asdict()
    if measurement := expected.pop("measurement", None):
        expected.update(measurement._asdict())
    if "params" in expected:
        expected["params"] = "{}"
    stored = frame.to_dicts()[1]
    assert {key: stored[key] for key in expected} == expected


def test_rows_may_be_mappings_that_leave_out_optional_columns(tmp_path):
    row = {"step": np.int64(3), "tokens": 7, "name": "loss", "value": np.float32(0.5)}
    path = write_rows(tmp_path, "curves", CELL, [row, {**row, "value": None}], FROM)
    assert pl.read_parquet(path)["value"].to_list() == [0.5, None]
    del row["value"]
    path = write_rows(tmp_path, "curves", CELL, [row], FROM)
    assert pl.read_parquet(path)["value"].to_list() == [None]


@pytest.mark.parametrize(
    ("table", "row", "message"),
    [
        ("metrics", FVU._replace(value=math.nan), "value.*must not be NaN; use None"),
        ("metrics", FVU._replace(stderr=math.inf), "stderr.*must be finite"),
        ("metrics", FVU._replace(value="0.5"), "value.*must be a number"),
        ("metrics", FVU._replace(value=True), "value.*must be a number"),
        ("metrics", FVU._replace(n=2.0), "column n .*must be a whole number"),
        ("metrics", FVU._replace(definition=None), "definition.*must not be empty"),
        ("metrics", FVU._replace(params={"a": math.nan}), "params.*must be a JSON object"),
        ("metrics", FVU._replace(params=[1]), "params.*must be a JSON object"),
        ("metrics", FVU._replace(value=None), r"Row 1 \(fvu\) has no value and no reason"),
        ("explanations", ROWS["explanations"]._replace(keywords="cat"), "must be a list"),
        ("explanations", ROWS["explanations"]._replace(keyword_scores=[math.nan]), "not be NaN"),
        ("examples", ROWS["examples"]._replace(tokens=["\ud83d"]), "surrogate"),
        ("curves", {"step": 1, "tokens": 1, "name": "x", "vale": 1.0}, "Did you mean 'value'"),
        ("curves", {"step": 1, "name": "x"}, "lacks the column 'tokens'"),
        ("curves", 3, "must be a mapping or one of the NamedTuples"),
    ],
)
def test_a_row_that_does_not_fit_is_refused_and_nothing_is_written(tmp_path, table, row, message):
    good = {"curves": {"step": 1, "tokens": 1, "name": "x"}, **ROWS}[table]
    with pytest.raises(BadInput, match=message):
        write_rows(tmp_path, table, CELL, [good, row], FROM)
    assert not list(tmp_path.rglob("*.parquet"))


def test_a_rerun_replaces_exactly_its_own_partition(tmp_path):
    other = write_rows(tmp_path, "latents", {**CELL, "variant": "other"}, [ROWS["latents"]], FROM)
    before = other.read_bytes()
    path = write_rows(tmp_path, "latents", CELL, [ROWS["latents"]] * 5, FROM)
    assert write_rows(tmp_path, "latents", CELL, [ROWS["latents"]] * 2, FROM) == path
    assert len(pl.read_parquet(path)) == 2
    assert other.read_bytes() == before
    assert sorted(tmp_path.rglob("*.*")) == sorted([path, other, path.parent.parent])


def test_no_rows_empty_the_partition_and_keep_its_schema(tmp_path):
    write_rows(tmp_path, "latents", CELL, [ROWS["latents"]], FROM)
    frame = pl.read_parquet(write_rows(tmp_path, "latents", CELL, [], FROM))
    assert len(frame) == 0
    assert frame.schema == TABLES["latents"].schema


def test_numbers_from_another_version_of_the_model_are_kept_beside_the_new(tmp_path):
    old = write_rows(tmp_path, "metrics", CELL, [FVU], FROM)
    new = write_rows(tmp_path, "metrics", CELL, [FVU], FROM._replace(model_fingerprint="f2"))
    assert new != old
    assert new.parent == old.parent
    assert old.exists()


def test_no_rows_on_a_new_version_of_the_model_leave_no_old_ones_to_pass_for_them(tmp_path):
    write_rows(tmp_path, "metrics", CELL, [FVU], FROM)
    new = write_rows(tmp_path, "metrics", CELL, [], FROM._replace(model_fingerprint="f2"))
    assert list(tmp_path.rglob("*.parquet")) == [new]


def test_a_failed_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def fail(self, target):
        target.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", fail)
    with pytest.raises(OSError, match="disk full"):
        write_rows(tmp_path, "latents", CELL, [ROWS["latents"]], FROM)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


class _Stranger(NamedTuple):
    latent: int
    colour: str


def test_a_strange_namedtuple_is_told_which_columns_there_are(tmp_path):
    with pytest.raises(BadInput, match=r"no column 'colour'\. Columns: latent, density"):
        write_rows(tmp_path, "latents", CELL, [_Stranger(1, "red")], FROM)


def test_every_table_and_column_is_described():
    for table in TABLES.values():
        for text in (table.description, *(column.description for column in table.all_columns)):
            assert text[0].isupper() or text.split()[0].rstrip(",.") in text
            assert text.endswith((".", "..."))
            assert len(text) > 8
        names = [column.name for column in table.all_columns]
        assert len(set(names)) == len(names)
