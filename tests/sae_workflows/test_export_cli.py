"""`sae export` and `sae table2`, on a warehouse that no experiment had to fill."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sae_lib.warehouse.rows import Measurement
from sae_lib.warehouse.write import Provenance, write_rows
from sae_workflows.export_cli import export_app, table2

app = typer.Typer()
app.add_typer(export_app, name="export")
app.command()(table2)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    where = {"experiment": "e", "site": "resid_post.2", "variant": "v"}
    made = Provenance("m", "f", "id", "a", 0, datetime(2026, 3, 1, tzinfo=UTC))
    sae = {
        "kind": "topk",
        "d_in": 8,
        "d_sae": 32,
        "config": {},
        "train": {},
        "status": "complete",
        "packages": {},
    }
    rows = [
        Measurement("unlearning_score", 0.25, "best_of_grid"),
        Measurement("l0", 16.0, "mean_of_tokens"),
    ]
    write_rows(tmp_path / "warehouse", "saes", where, [sae], made)
    write_rows(tmp_path / "warehouse", "metrics", where, rows, made)
    return tmp_path


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [*map(str, arguments)], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.exception
    return done.output


def test_files_are_written_and_what_is_left_out_is_said(home):
    told = run("export", "saebench", "e", "--to", home / "out", "--home", home)
    assert "1 files in" in told
    assert "no core of 1 SAE: kl_div_score is required: no rows of kl_score" in told
    assert "no scr of 1 SAE: no rows of scr with n=2; add scr to the experiment's evaluate" in told
    (file,) = (home / "out").rglob("*.json")
    assert file.parent.name == "unlearning"
    numbers = json.loads(file.read_text())["eval_result_metrics"]
    assert numbers == {"unlearning": {"unlearning_score": 0.25}}


def test_one_eval_type_as_json(home):
    told = run(
        "export", "saebench", "e", "--to", home / "out", "--home", home, "--json",
        "--only", "unlearning",
    )  # fmt: skip
    (row,) = json.loads(told)
    assert row["left_out"] == []
    assert [Path(file).is_file() for file in row["files"]] == [True]


def test_the_table_of_an_experiment_and_the_published_one(home):
    text = run("table2", "e", "--markdown", "--home", home)
    assert "| Sparsity (L0) | 16 |" in text
    assert "| MSE | – |" in text
    published = run("table2", "--markdown")
    assert "| KL divergence score | 0.898* | -1* | 0.975 |" in published
    assert "stands for NaN" in published
