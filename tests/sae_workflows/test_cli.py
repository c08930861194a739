"""The command line as a person meets it: output, exit codes, errors of one paragraph."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sae_lib.llm.account import Account, note

SAE = Path(sys.executable).parent / "sae"


def sae(*arguments: object, home: Path, cwd: Path | None = None) -> subprocess.CompletedProcess:
    env = {**os.environ, "SAE_HOME": str(home), "OMP_NUM_THREADS": "2", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [SAE, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**env, "COLUMNS": "200"},
        cwd=cwd,
        check=False,
    )


def test_help_names_every_command(tmp_path: Path):
    said = sae("--help", home=tmp_path).stdout
    for command in (
        "run",
        "curves",
        "variants",
        "validate",
        "list",
        "show",
        "sql",
        "report",
        "doctor",
        "world",
    ):
        assert f" {command} " in said


def test_a_wrong_file_is_one_paragraph_and_exit_code_2(write, tmp_path: Path):
    file = write(saes="[{kind: topk, d_sae: 32, kk: 2}]")
    for command in ("run", "validate"):
        found = sae(command, file, home=tmp_path / "home")
        assert found.returncode == 2
        assert "saes[0].kk" in found.stderr.replace("\n", "")
        assert "Traceback" not in found.stderr
        assert not (tmp_path / "home" / "artifacts").exists(), "compute started"


def test_a_wrong_option_is_exit_code_2_without_a_traceback(tmp_path: Path):
    found = sae("run", "--fast", "x.yaml", home=tmp_path)
    assert found.returncode == 2
    assert "Traceback" not in found.stderr


def test_a_corpus_too_short_for_a_context_is_said_in_one_paragraph(write, tmp_path: Path):
    (tmp_path / "short.txt").write_text("w1 w2 w3\n")
    file = write(corpus="{id: short.txt, tokens: 5000, context: 32}")
    found = sae("run", file, home=tmp_path / "home")
    assert found.returncode == 2
    assert "Traceback" not in found.stderr
    assert "tokens" in found.stderr


@pytest.fixture(scope="module")
def ran(tmp_path_factory, tiny_model: Path, text: Path):
    folder = tmp_path_factory.mktemp("cli")
    file = folder / "small.yaml"
    file.write_text(
        f"name: small\nmodel: {{id: {tiny_model}}}\n"
        f"corpus: {{id: {text}, tokens: 6000, context: 32, eval_tokens: 1500}}\n"
        "sites: [resid_post.1]\nsaes: [{kind: topk, d_sae: 16, k: [2]}]\n"
        "train: {batch_tokens: 256}\n"
    )
    return file, folder / "home", sae("run", file, home=folder / "home")


def test_run_prints_where_report_and_database_are(ran):
    _, home, found = ran
    assert found.returncode == 0, found.stderr
    assert f"report:   {home}/reports/small.html" in found.stdout
    assert f"database: {home}/results.duckdb" in found.stdout
    assert "topk-w16-k2-s0" in found.stdout


def test_a_second_run_says_that_there_is_nothing_to_do(ran):
    file, home, _ = ran
    found = sae("run", file, home=home)
    assert found.returncode == 0
    assert "Nothing to do" in found.stdout


def test_run_as_json_is_json(ran):
    file, home, _ = ran
    said = json.loads(sae("run", file, "--json", home=home).stdout)
    assert {stage["stage"] for stage in said["stages"]} >= {"tokens", "saes", "metrics", "results"}
    assert all(stage["built"] == 0 for stage in said["stages"])


def test_sql_answers_and_explains_what_it_cannot_answer(ran):
    _, home, _ = ran
    rows = json.loads(sae("sql", "select * from leaderboard", "--json", home=home).stdout)
    assert rows[0]["variant"] == "topk-w16-k2-s0"
    assert rows[0]["l0"] == pytest.approx(2, abs=0.01)
    wrong = sae("sql", "select * from leaderbord", home=home)
    assert wrong.returncode == 2
    assert "leaderboard" in wrong.stderr
    writes = sae("sql", "drop table stored.metrics", home=home)
    assert writes.returncode == 2


def test_sql_without_a_database_says_how_to_get_one(tmp_path: Path):
    found = sae("sql", "select 1", home=tmp_path)
    assert found.returncode == 2
    assert "sae run" in found.stderr


@pytest.mark.parametrize(
    "what",
    [
        "variants",
        "objectives",
        "metrics",
        "explainers",
        "applications",
        "formats",
        "models",
        "experiments",
        "saes",
        "checks",
    ],
)
def test_every_list_prints_rows_and_json(ran, what):
    _, home, _ = ran
    rows = json.loads(sae("list", what, "--json", home=home).stdout)
    assert rows
    assert all(row.keys() == rows[0].keys() for row in rows)


def test_costs_are_listed_by_model(ran, tmp_path, monkeypatch):
    _, home, _ = ran
    monkeypatch.setenv("SAE_LLM_CACHE", str(tmp_path))
    account = Account(1.0, 2.0)
    account.send()
    account.receive(1_000_000, 500_000)
    note(tmp_path, "a-model", account)
    (row,) = json.loads(sae("list", "costs", "--json", home=home).stdout)
    assert (row["model"], row["sent"], row["cost"]) == ("a-model", 1, 2.0)


def test_a_list_is_a_table_for_people(ran):
    _, home, _ = ran
    said = sae("list", "variants", home=home).stdout
    assert "topk" in said
    assert "summary" in said


def test_variants_are_the_rows_of_the_survey_and_what_they_came_to(ran):
    _, home, _ = ran
    rows = json.loads(sae("variants", "--json", home=home).stdout)
    assert rows[0]["name"] == "SAE"
    assert sae("variants", "--markdown", home=home).stdout.startswith("| name |")
    (line,) = json.loads(sae("variants", "small", "--json", home=home).stdout)
    assert (line["name"], line["seeds"], line["l0"]) == ("TopK SAE", 1, 2.0)
    assert 0 < line["fvu"] < 1
    assert "| TopK SAE |" in sae("variants", "small", "--markdown", home=home).stdout
    assert "TopK SAE" in sae("variants", "small", home=home).stdout
    wrong = sae("variants", "smal", home=home)
    assert wrong.returncode == 2
    assert "small" in wrong.stderr


def test_show_knows_saes_experiments_and_members(ran):
    _, home, _ = ran
    found = json.loads(sae("list", "saes", "--json", home=home).stdout)[0]
    assert json.loads(sae("show", found["sae"], "--json", home=home).stdout)["hash"] == found["sae"]
    assert json.loads(sae("show", "small", "--json", home=home).stdout)["trained"] == 1
    member = json.loads(sae("show", "topk", "--json", home=home).stdout)
    assert member["fields"]["k"]["meaning"]
    wrong = sae("show", "topkk", home=home)
    assert wrong.returncode == 2
    assert "'topk'" in wrong.stderr


def test_validate_shows_what_is_derived_and_trains_nothing(ran, tmp_path: Path):
    file, _, _ = ran
    rows = json.loads(sae("validate", file, "--json", home=tmp_path / "fresh").stdout)
    assert rows[0]["steps"] == 6000 // 256
    assert rows[0]["trained"] is False
    assert not (tmp_path / "fresh" / "artifacts").exists()


def test_a_corrupt_shard_is_named_with_the_way_out(ran, tmp_path: Path):
    file, home, _ = ran
    shards = list((home / "artifacts").glob("tokens/*/eval-tokens-*.safetensors"))
    assert shards
    content = shards[0].read_bytes()
    more = tmp_path / "small.yaml"
    more.write_text(file.read_text().replace("k: [2]", "k: [2, 3]"))
    try:
        shards[0].write_bytes(content[:100])
        found = sae("run", more, home=home)
    finally:
        shards[0].write_bytes(content)
    assert found.returncode == 2
    flat = "".join(found.stderr.split()).replace("│", "")
    assert shards[0].name in flat
    assert "Traceback" not in found.stderr
    assert sae("run", more, home=home).returncode == 0


def test_doctor_compares_checksums_when_asked(ran):
    _, home, _ = ran
    assert sae("doctor", "--checksums", home=home).returncode == 0
    shard = next((home / "artifacts").glob("activations/*/*/shard-*.safetensors"))
    content = shard.read_bytes()
    try:
        shard.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
        found = sae("doctor", "--checksums", home=home)
    finally:
        shard.write_bytes(content)
    assert found.returncode == 1
    assert shard.name in "".join(found.stdout.split())


def test_doctor_finds_a_broken_artefact(ran, tmp_path: Path):
    assert sae("doctor", home=tmp_path).returncode == 0
    broken = tmp_path / "artifacts" / "sae" / "x-123"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{")
    found = sae("doctor", home=tmp_path)
    assert found.returncode == 1
    assert "not JSON" in found.stdout


@pytest.mark.model
def test_the_world_is_shown_with_its_concepts_and_what_was_learned(tmp_path: Path):
    said = sae("world", "sample", "--documents", "2", home=tmp_path).stdout
    assert " ." in said
    concepts = json.loads(sae("world", "concepts", "--json", home=tmp_path).stdout)
    assert len(concepts) >= 150
    rows = json.loads(sae("world", "report", "--documents", "40", "--json", home=tmp_path).stdout)
    found = {(row["what"], row["part"]): row["value"] for row in rows}
    assert found["excess", "all"] < 0.1
    assert found["recall", "all"] > 0.95
    assert all(row.keys() == rows[0].keys() for row in rows)


@pytest.mark.slow
def test_the_world_can_be_trained_from_the_command_line(tmp_path: Path):
    folder = tmp_path / "model"
    found = sae("world", "train", folder, "--tokens", "8192", "--threads", "1", home=tmp_path)
    assert found.returncode == 0, found.stderr
    assert (folder / "model.safetensors").is_file()
    assert (folder / "tokenizer.json").is_file()
