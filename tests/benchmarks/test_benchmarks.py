"""The harnesses run, at sizes that say nothing about speed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import many_saes, memory, training
from benchmarks.training import Limits, Setting
from benchmarks.worker import peak_memory

SETTING = Setting("topk", 16, 64, 4, 64, steps=100, lr=1e-3, warmup_steps=1)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.safetensors"
    drawn = training.structured_rows(16, 1024 + 256, 64)
    save_file({"train": drawn[256:].clone(), "held_out": drawn[:256].clone()}, path)
    return path


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "pairs"), [("topk", []), ("batch_topk", ["--pairs"])])
def test_training_steps_are_timed_and_scored(
    kind: str, pairs: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    out = tmp_path / "out.json"
    training.main(
        f"--contenders ours encode-float32 --kind {kind} --d-in 16 --d-sae 64 --k 4 --batch 64"
        " --rows 1024 --rounds 2 --steps 2 --threads 1 --fvu-steps 40 --lrs 0.003 0.01"
        f" --json {out}".split()
        + pairs
    )
    (entry,) = json.loads(out.read_text())
    ours, encode = entry["contenders"]
    assert (ours["name"], encode["name"]) == ("ours", "encode-float32")
    assert ours["cpu_ratio"] == ours["wall_ratio"] == 1
    assert 0 < ours["cpu_min"] <= ours["cpu"]
    assert encode["cpu_ratio"] < 1, "a product alone costs less than a step"
    assert set(entry["fvu"]) == {"ours"}, "a product has no score"
    score = entry["fvu"]["ours"]
    assert set(score["by_rate"]) == {"0.003", "0.01"}
    assert score["fvu"] == min(score["by_rate"].values()) == score["by_rate"][str(score["lr"])]
    assert 0 < score["fvu"] < 1
    assert score["l0"] == pytest.approx(4, abs=1e-3)
    assert "rows/CPU s" in capfd.readouterr().out


def test_ratios_are_medians_over_rounds_of_each_rounds_ratio():
    times = {
        "ours": {"wall": [[1.0, 1.0], [4.0, 4.0], [1.0, 1.0]], "peak": 1},
        "slow": {"wall": [[3.0, 3.0], [8.0, 8.0], [5.0, 5.0]], "peak": 1},
    }
    found = {name: {**one, "cpu": one["wall"]} for name, one in times.items()}
    ours, slow = training.summary(found, batch=10)
    assert slow["cpu_ratios"] == [3.0, 2.0, 5.0]
    assert slow["cpu_ratio"] == 3.0
    assert slow["cpu_per_s"] == 2.0
    assert ours["cpu_min"] == 1.0


def test_a_contender_that_cannot_start_is_reported(tmp_path: Path):
    with training.Worker("ours", SETTING, tmp_path / "missing.safetensors", Limits()) as worker:
        assert worker.missing
        assert "missing.safetensors" in worker.missing
        assert worker.steps(1) == {}


def test_a_contender_that_is_too_slow_is_reported(rows: Path):
    found = training.race(["ours"], SETTING, rows, Limits(step_seconds=1e-9), 2, 2)
    assert found["ours"] == {"missing": "more than 1e-09 s a step"}


def test_a_contender_that_asks_for_too_much_memory_is_reported(rows: Path):
    wide = SETTING._replace(d_sae=1 << 22)
    found = training.race(["encode-float32"], wide, rows, Limits(memory=800_000_000), 1, 1)
    assert found["encode-float32"] == {"missing": "out of memory at 0.8 GB"}


def test_a_learning_rate_that_diverges_is_reported_beside_one_that_does_not(rows: Path):
    found = training.best_fvu("ours", SETTING, rows, Limits(), 20, [1e30, 1e-2])
    assert found["lr"] == 1e-2
    assert list(found["by_rate"]) == [1e-2]
    assert "not finite" in found["failed"][1e30]


def test_a_worker_ends_with_the_process_that_started_it(rows: Path):
    code = (
        "from pathlib import Path; from benchmarks import training as t;"
        f"w = t.Worker('ours', t.Setting(*{tuple(SETTING)!r}), Path({str(rows)!r}), t.Limits());"
        "print(w.process.pid, flush=True); w.steps(10**6)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    os.kill(worker, 0)  # it lives
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while is_running(worker):
        if time.monotonic() > deadline:
            os.kill(worker, signal.SIGKILL)
            pytest.fail("the worker goes on without anyone who waits for it")
        time.sleep(0.1)


def is_running(process: int) -> bool:
    """Whether it is; one that ended and waits to be collected is not."""
    status = Path(f"/proc/{process}/stat")
    try:
        return status.read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_of_this_process_and_grows_with_what_it_holds():
    before = peak_memory()
    held = torch.ones(before // 4 + (64 << 20))  # larger than anything there was
    grown = peak_memory()
    assert grown >= held.numel() * 4
    code = "from benchmarks.worker import peak_memory; print(peak_memory())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(child.stdout) < grown, "a child does not start at its parent's peak"
    del held
    memory.forget_peak()
    assert peak_memory() < grown


@pytest.mark.parametrize("kind", ["topk", "batch_topk"])
def test_memory_is_measured(kind: str, tmp_path: Path):
    out = tmp_path / "out.json"
    memory.main(
        f"--kind {kind} --d-in 16 --d-sae 64 --k 4 --batch 32 --steps 2 --json {out}".split()
    )
    found = json.loads(out.read_text())
    weights = 4 * (2 * 16 * 64 + 64 + 16)
    assert found["needed"] == 4 * weights + 2 * 4 * 32 * 16
    assert found["ratio"] == found["grown"] / found["needed"]


def test_many_saes_equal_single_ones(tmp_path: Path, capfd: pytest.CaptureFixture[str]):
    out = tmp_path / "out.json"
    many_saes.main(f"--tokens 4096 --rounds 1 --d-sae 64 --threads 1 --json {out}".split())
    assert capfd.readouterr().out.count("equal to the bit") == 2
    stored, streamed = json.loads(out.read_text())
    assert (stored["source"], streamed["source"]) == ("store", "streaming")
    assert stored["cpu_ratio"] > 0
