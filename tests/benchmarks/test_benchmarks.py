"""The harnesses run, at sizes that say nothing about speed."""

import json
from pathlib import Path

import pytest

from benchmarks import many_saes, memory, training


def test_training_steps_are_timed_and_scored(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    out = tmp_path / "out.json"
    training.main(
        "--contenders ours --d-in 16 --d-sae 64 --k 4 --batch 64 --rows 1024 --rounds 2 --steps 2"
        f" --threads 1 --fvu-steps 40 --lrs 0.003 0.01 --json {out}".split()
    )
    (entry,) = json.loads(out.read_text())
    (ours,) = entry["contenders"]
    assert ours["cpu_ratio"] == ours["wall_ratio"] == 1
    assert 0 < ours["cpu_min"] <= ours["cpu"]
    assert set(entry["fvu"]["ours"]["by_rate"]) == {"0.003", "0.01"}
    assert 0 < entry["fvu"]["ours"]["fvu"] < 1
    assert "ours" in capfd.readouterr().out


def test_a_contender_that_cannot_start_is_reported(tmp_path: Path):
    setting = training.Setting("topk", 16, 64, 4, 64, 10, 1e-3, 1)
    with training.Worker("ours", setting, tmp_path / "missing.pt", 1) as worker:
        assert worker.missing
        assert "missing.pt" in worker.missing


@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_memory_is_measured(kind: str, capfd: pytest.CaptureFixture[str]):
    memory.main(f"--kind {kind} --d-in 16 --d-sae 64 --k 4 --batch 32 --steps 2".split())
    assert "times" in capfd.readouterr().out


def test_many_saes_equal_single_ones(capfd: pytest.CaptureFixture[str]):
    many_saes.main(["--tokens", "4096", "--rounds", "1", "--d-sae", "64", "--threads", "1"])
    out = capfd.readouterr().out
    assert out.count("equal to the bit") == 2
