"""The commands on the bundled world, as a person meets them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from sae_lib.warehouse.rows import ApplicationRow, Measurement
from sae_lib.warehouse.write import Provenance, write_rows

SAE = Path(sys.executable).parent / "sae"


def world(*arguments: object, home: Path) -> subprocess.CompletedProcess:
    env = {**os.environ, "SAE_HOME": str(home), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [SAE, "world", *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**env, "COLUMNS": "200"},
        cwd=home,
        check=False,
    )


def test_samples_are_of_the_kind_that_was_asked_for(tmp_path: Path):
    done = world("sample", "--documents", 2, "--kind", "request", "--chat", "--json", home=tmp_path)
    rows = json.loads(done.stdout)
    assert [row["kind"] for row in rows] == ["request", "request"]
    assert all("<user>" in row["text"] and "chat-marker" in row["concepts"] for row in rows)


def test_an_unknown_kind_is_one_paragraph_with_the_nearest_name(tmp_path: Path):
    done = world("sample", "--kind", "storry", home=tmp_path)
    assert done.returncode == 2
    assert "Did you mean 'story'" in done.stderr.replace("\n", " ")
    assert "Traceback" not in done.stderr


def test_concepts_land_in_the_database(tmp_path: Path):
    rows = json.loads(world("concepts", "--json", home=tmp_path).stdout)
    assert len(rows) >= 150
    (file,) = (tmp_path / "warehouse" / "concepts").rglob("*.parquet")
    stored = pl.read_parquet(file)
    assert stored.filter(concept="dog")["parents"].to_list() == [["mammal"]]
    assert stored["frequency"].max() == 1.0, "every word is of some kind of document"


def test_sets_are_listed_and_written_for_other_tools(tmp_path: Path):
    listed = {row["set"] for row in json.loads(world("tasks", "--json", home=tmp_path).stdout)}
    assert len(listed) > 50
    for name in ("rows.jsonl", "rows.parquet"):
        done = world("export", "scr-profession-gender", tmp_path / name, "--num", 8, home=tmp_path)
        assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert len(lines) == 8
    assert {"hard_text", "profession", "gender"} <= set(lines[0])
    assert pl.read_parquet(tmp_path / "rows.parquet").to_dicts() == lines


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("export", "no-such-set", "rows.jsonl"), "no-such-set"),
        (("export", "scr-profession-gender", "rows.xlsx"), ".parquet"),
        (("coverage", "world-concepts"), "no results yet"),
        (("report", "--model", "nothing/here/at-all"), "nothing/here/at-all"),
        (("train", "model", "--recipe", "wrld"), "wrld"),
    ],
)
def test_wrong_requests_are_exit_code_2_and_leave_nothing(tmp_path: Path, arguments, said):
    done = world(*arguments, home=tmp_path)
    assert done.returncode == 2, done.stdout + done.stderr
    assert said in done.stderr.replace("\n", "").replace(" ", "") or said in done.stderr
    assert "Traceback" not in done.stderr
    assert not [file for file in tmp_path.rglob("*") if file.suffix in {".jsonl", ".safetensors"}]


@pytest.mark.slow
def test_planted_controls_measure_what_is_known_in_advance(tmp_path: Path):
    done = world("planted", "--bags", 100, "--json", home=tmp_path)
    cells = {(row["coder"], row["metric"]): row for row in json.loads(done.stdout)}
    assert cells["oracle", "absorption"]["value"] == pytest.approx(0, abs=0.01)
    merged = next(row for (coder, metric), row in cells.items()
                  if metric == "absorption" and coder.startswith("merged"))  # fmt: skip
    assert merged["value"] == pytest.approx(0.4, abs=0.03)


@pytest.mark.model
def test_what_word_vectors_are_made_of_lands_in_the_database(tmp_path: Path):
    done = world("words", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = {(row["embedding"], row["what"]): row for row in json.loads(done.stdout)}
    assert rows["input", "explained"]["value"] > 1.5 * rows["input", "explained"]["control"]
    (file,) = (tmp_path / "warehouse" / "word_geometry" / "model=world").glob("*.parquet")
    stored = {(row["embedding"], row["what"]): row for row in pl.read_parquet(file).to_dicts()}
    assert stored.keys() == rows.keys()
    assert all(stored[key]["value"] == rows[key]["value"] for key in rows)


def test_coverage_is_told_by_site_method_and_group(tmp_path: Path):
    rows = [
        ApplicationRow(
            "concepts", method, "all",
            Measurement("coverage", value, definition, n=7, params={"f1": f1}),
        )
        for method, definition, f1, value in (
            ("sae", "one_to_one", 0.8, 0.25), ("sae", "one_to_one", 0.5, 0.5),
            ("sae", "shared", 0.8, 0.375), ("sae", "union_of_10", 0.8, 0.625),
            ("random_dictionary", "one_to_one", 0.8, 0.125),
        )
    ]  # fmt: skip
    cell = {"experiment": "x", "site": "resid_post.0", "variant": "v"}
    write_rows(tmp_path / "warehouse", "applications", cell, rows, Provenance("world", "abc"))
    done = world("coverage", "x", "--json", home=tmp_path)
    assert done.returncode == 0, done.stderr
    found = {row["method"]: row for row in json.loads(done.stdout)}
    assert list(found) == ["sae", "random_dictionary"]
    assert [found["sae"][key] for key in ("concepts", "F1 >= .8", "F1 >= .5")] == [7, 0.25, 0.5]
    assert found["sae"]["F1 >= .8, latents shared"] == 0.375
    assert found["sae"]["F1 >= .8, up to 10 latents"] == 0.625
    assert found["random_dictionary"]["F1 >= .8"] == 0.125
    assert found["random_dictionary"]["F1 >= .5"] is None
