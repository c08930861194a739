"""Two homes and one shared store: what one machine built the other neither builds nor asks for."""

import json
import logging
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from assets.store import Store
from sae_lib.artifacts import ArtifactStore, Identity
from sae_lib.errors import BadInput
from sae_lib.remote import Remote, remote_from_env
from sae_lib.warehouse.query import query
from sae_lib.warehouse.rows import Measurement
from sae_lib.warehouse.sync import note_landing
from sae_lib.warehouse.write import Provenance, write_rows
from sae_workflows.experiment import load_experiment
from sae_workflows.headless import run_study
from sae_workflows.home import memo_file
from sae_workflows.mirror import mirror_down, mirror_up
from sae_workflows.remote_cli import pull, push

app = typer.Typer()
app.command()(push)
app.command()(pull)


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    url = f"file://{tmp_path}/shared"
    monkeypatch.setenv("SAE_REMOTE", url)
    for name in ("SAE_REMOTE_OPTIONS", "SAE_REMOTE_KINDS"):
        monkeypatch.delenv(name, raising=False)
    return url


def run(file: Path, home: Path) -> dict[str, int]:
    """How much was built, by stage."""
    Store(home=str(home)).sync(at_once=True)
    results = run_study(load_experiment(file, memo=memo_file(home)), home)
    return {result.stage: result.built for result in results}


def artefacts(home: Path) -> dict[str, set[str]]:
    """When each artefact was built, by kind and name: equal where they are the same ones."""
    kinds = [folder.name for folder in (home / "artifacts").glob("*")]
    return {
        kind: {f"{one['hash']} {one['created_at']}" for one in ArtifactStore(home).manifests(kind)}
        for kind in kinds
    }


def leaders(home: Path) -> list[tuple[object, ...]]:
    sql = "select experiment, site, variant, fvu from leaderboard order by all"
    return query(home / "results.duckdb", sql).rows()


@pytest.mark.slow
def test_a_second_machine_builds_nothing_that_is_shared(
    url: str, write: Callable[..., Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    small = {"sites": "[resid_post.0]", "evaluate": "[reconstruction, sparsity]"}
    file, a, b = write(**small), tmp_path / "a", tmp_path / "b"
    with caplog.at_level(logging.WARNING, "sae_lib"):
        assert run(file, a)["saes"] == 2
        # the second machine asks for one more variant, and builds that alone
        more = write(**small, saes="[{kind: topk, d_sae: 32, k: [2, 4, 8]}]")
        built = run(more, b)
        assert built["tokens"] == 0
        assert built["saes"] == built["metrics"] == built["explanations"] == 1
        assert len(leaders(b)) == 3
        assert len(artefacts(b)["sae"]) == 1  # rows came as rows; no SAE had to be moved
        # the first has its rows, and nothing to do but to publish them
        assert {stage for stage, number in run(more, a).items() if number} == {"results"}
        assert leaders(a) == leaders(b)
    assert [record.getMessage() for record in caplog.records] == []
    assert "activations" not in Remote.open(url).all_kinds()

    # an SAE is brought when something reads it; a home that lost everything has it all back
    study = load_experiment(more, memo=memo_file(a))
    newest = study.sae("resid_post.0", study.variants[2])
    store = Store(home=str(a)).artifacts
    assert not store.is_here(newest)
    assert (store.path(newest) / "sae.safetensors").is_file()
    shutil.rmtree(a / "warehouse")
    shutil.rmtree(a / "artifacts" / "sae")
    lines = {line.what: line for line in mirror_down(a, Remote.open(url))}
    assert lines["sae"].moved == 3
    assert not any(line.failures for line in lines.values())
    assert artefacts(b)["sae"] < artefacts(a)["sae"]


def fill(home: Path, experiment: str, seeds: Sequence[int]) -> None:
    """What a run leaves behind, of an SAE for each seed."""
    store, warehouse = ArtifactStore(home), home / "warehouse"
    tokens, rows = Identity("tokens", "text", {}), Identity("activations", "text", {})
    for one in (tokens, rows):
        if not store.exists(one):
            with store.build(one) as space:
                (space.path / "tokens.safetensors").write_bytes(b"t" * 1000)
    for seed in seeds:
        sae = Identity("sae", "name", {"seed": seed})
        with store.build(sae, parents={"tokens": tokens.hash, "activations": rows.hash}) as space:
            (space.path / "sae.safetensors").write_bytes(b"w" * 1000)
        metrics = Identity("metrics", "name", {"sae": sae.hash})
        with store.build(metrics, parents={"sae": sae.hash, "model": "abc"}) as space:
            (space.path / "metrics.parquet").write_bytes(b"m" * 1000)
        cell = {"experiment": experiment, "site": "resid_post.0", "variant": f"topk:seed={seed}"}
        provenance = Provenance("m", "abc", sae_id=sae.hash, artifact_id=metrics.hash, seed=seed)
        file = write_rows(warehouse, "metrics", cell, [Measurement("fvu", 1.0, "d")], provenance)
        ledger = Store(home=str(home)).ledger(*cell.values(), "metrics")
        note_landing(warehouse, ledger, {"artifact": metrics.hash}, [file], None)


def test_the_commands_move_a_home_and_count_what_they_move(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    home, fresh = tmp_path / "a", tmp_path / "b"
    fill(home, "study", [0, 1])
    fill(home, "other", [2])
    monkeypatch.delenv("SAE_REMOTE")
    with pytest.raises(BadInput, match="SAE_REMOTE"):
        CliRunner().invoke(app, ["push", "--home", str(home)], catch_exceptions=False)
    monkeypatch.setenv("SAE_REMOTE", url)

    def invoke(*words: str, home: Path = home) -> dict[str, dict[str, object]]:
        result = CliRunner().invoke(
            app, [*words, "--home", str(home), "--json"], catch_exceptions=False
        )
        assert result.exit_code == 0, result.output
        return {str(row["what"]): row for row in json.loads(result.stdout)}

    def moved(rows: dict[str, dict[str, object]], word: str = "moved") -> dict[str, object]:
        return {what: row[word] for what, row in rows.items()}

    plan = invoke("push", "--dry-run")
    everything = {"metrics": 3, "sae": 3, "tokens": 1, "warehouse": 6}
    assert moved(plan, "would move") == everything
    assert Remote.open(url).all_kinds() == []
    done = invoke("push", "--experiment", "other")
    assert moved(done) == {"metrics": 1, "sae": 1, "tokens": 1, "warehouse": 2}
    done = invoke("push")
    assert moved(done) == {"metrics": 2, "sae": 2, "tokens": 0, "warehouse": 4}
    assert done["sae"]["there already"] == 1
    assert set(moved(invoke("push")).values()) == {0}

    would = invoke("pull", "--dry-run", home=fresh)
    assert moved(would, "would move") == everything
    assert moved(would, "MB") == moved(plan, "MB")
    assert not (fresh / "artifacts").exists()
    done = invoke("pull", "--experiment", "other", "--kind", "sae", home=fresh)
    assert moved(done) == {"sae": 1}
    done = invoke("pull", "--experiment", "other", home=fresh)
    assert moved(done) == {"metrics": 1, "sae": 0, "tokens": 1, "warehouse": 2}
    with pytest.raises(BadInput, match="No rows of an experiment of this name"):
        invoke("pull", "--experiment", "oter", home=fresh)
    assert moved(invoke("pull", home=fresh)) == {
        "metrics": 2, "sae": 2, "tokens": 0, "warehouse": 4
    }  # fmt: skip
    assert artefacts(fresh)["sae"] == artefacts(home)["sae"]
    assert moved(invoke("push", "--kind", "activations")) == {"activations": 1}


def test_a_failure_is_said_and_the_rest_is_moved(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    store = ArtifactStore(tmp_path / "a")
    for seed in range(3):
        with store.build(Identity("sae", "name", {"seed": seed})) as space:
            (space.path / "x").write_text(str(seed))
    remote = remote_from_env()
    assert remote is not None
    assert [line.moved for line in mirror_up(tmp_path / "a", remote)] == [3, 0]
    damaged = next(one for one in remote.storage.find("artifacts") if one.endswith("/x"))
    remote.storage.write(damaged, b"?")
    result = CliRunner().invoke(app, ["pull", "--home", str(tmp_path / "b")])
    assert result.exit_code == 1
    assert "not those that were pushed" in result.output
    assert len(ArtifactStore(tmp_path / "b").manifests("sae")) == 2
