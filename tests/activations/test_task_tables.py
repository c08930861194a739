import json

import pytest

from sae_lib.activations.task_tables import TableConfig, table_files, table_rows
from sae_lib.errors import BadInput, MissingFile, UnknownName

ROWS = [{"q": f"question {i}", "answer": i % 4} for i in range(200)]


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def test_a_set_of_the_world_gives_the_columns_under_the_names_that_are_wanted():
    cfg = TableConfig(id="world:unlearning-questions", columns={"asked": "question"}, max_rows=5)
    rows = table_rows(cfg, ["asked", "choices"], "test")
    assert len(rows) == 5
    assert all(list(row) == ["asked", "choices"] for row in rows)


def test_a_file_without_splits_is_divided_by_what_its_rows_say(tmp_path):
    _write(tmp_path / "rows.jsonl", ROWS + ROWS)
    cfg = TableConfig(id="rows.jsonl", columns={"question": "q"})
    train = table_rows(cfg, ["question", "answer"], "train", relative_to=tmp_path)
    test = table_rows(cfg, ["question", "answer"], "test", relative_to=tmp_path)
    asked = [{row["question"] for row in rows} for rows in (train, test)]
    assert len(train) + len(test) == 400
    assert not asked[0] & asked[1]
    assert 0.15 < len(test) / 400 < 0.35
    assert table_files(cfg, tmp_path) == [tmp_path / "rows.jsonl"]


def test_a_folder_has_a_file_per_split(tmp_path):
    _write(tmp_path / "train.jsonl", ROWS[:3])
    _write(tmp_path / "validation.jsonl", ROWS[3:5])
    cfg = TableConfig(id=str(tmp_path), test_split="validation")
    assert table_rows(cfg, ["q"], "test") == [{"q": "question 3"}, {"q": "question 4"}]
    with pytest.raises(BadInput, match=r"no file of the test split, test; it has train\.jsonl"):
        table_rows(cfg.but(test_split="test"), ["q"], "test")


@pytest.mark.parametrize("name", ["world:unlearning-questions", "rows.jsonl"])
def test_a_column_that_is_not_there_is_answered_with_those_that_are(tmp_path, name):
    _write(tmp_path / "rows.jsonl", [{"question": "a", "answer": 1}])
    with pytest.raises(BadInput, match="Did you mean 'question'"):
        table_rows(TableConfig(id=name), ["questoin"], "test", relative_to=tmp_path)
    cfg = TableConfig(id=name, columns={"quetsion": "question"})
    with pytest.raises(BadInput, match="wanted are question"):
        table_rows(cfg, ["question"], "test", relative_to=tmp_path)


def test_what_does_not_exist_is_named():
    with pytest.raises(UnknownName, match="unlearning-questions"):
        table_rows(TableConfig(id="world:unlearning-question"), ["question"], "test")
    with pytest.raises(MissingFile, match="nowhere"):
        table_rows(TableConfig(id="nowhere.jsonl"), ["question"], "test")
