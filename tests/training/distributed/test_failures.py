"""A process that dies or hangs ends the job with its name, and nothing that was stored is lost."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from sae_lib.errors import BadInput, MissingFile
from sae_lib.training.checkpoint import read_checkpoint
from sae_lib.training.distributed.job import FileSource, Job
from sae_lib.training.distributed.launch import DeviceFailure, fit_on_devices
from sae_lib.training.loop import StepReport, fit
from sae_lib.training.trainee import Fitted

SCRIPT = Path(__file__).with_name("_job_to_kill.py")
ROOT = Path(__file__).parents[3]

needs_proc = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads /proc")


def ranks_of(parent: int) -> dict[int, int]:
    """Process ids by rank, of the job that process ``parent`` asked for."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environ = dict(
                part.split(b"=", 1)
                for part in (entry / "environ").read_bytes().split(b"\0")
                if b"=" in part
            )
            agent = int(environ[b"SAE_AGENT"])
            if agent == int(entry.name) or parent_of(agent) != parent:
                continue
            found[int(environ[b"RANK"])] = int(entry.name)
        except (OSError, KeyError):  # it has ended, is another's, or is no rank
            continue
    return found


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def assert_same(mine: Fitted, theirs: Fitted) -> None:
    """To the last bit."""
    assert mine.status == theirs.status == "complete"
    for key, value in theirs.coder.state_dict().items():
        assert torch.equal(mine.coder.state_dict()[key], value), key


class Signals:
    """Sends a signal to one rank when training has come to a step."""

    def __init__(self, rank: int, number: int, at: int) -> None:
        self.rank, self.number, self.at = rank, number, at
        self.sent: float | None = None

    def __call__(self, report: StepReport) -> None:
        if report.step < self.at or self.sent is not None:
            return
        process = ranks_of(os.getpid())[self.rank]
        os.kill(process, self.number)
        self.sent = time.monotonic()
        if self.number == signal.SIGSTOP:
            # a stopped process does not heed the request to end; torchrun would give it 30 s
            threading.Timer(10, os.kill, (process, signal.SIGCONT)).start()


ALL = ("topk", "multi", "batch_topk", "steered", "weighted")


def steps_stored(job: Job) -> int:
    """Fewest steps in the checkpoints of ``job``; each must be whole at any moment."""
    stored = [read_checkpoint(task.checkpoint) for task in job.tasks]
    return min(0 if found is None else found.state["step"] for found in stored)


@needs_proc
@pytest.mark.slow
def test_without_the_process_that_asked_they_end_and_the_next_run_goes_on(
    make_job: Callable[..., Job], together: dict[str, Any], tmp_path: Path
):
    job = make_job(tmp_path, ALL, count=2, split="batch", checkpoint_every_seconds=0)
    (tmp_path / "job.json").write_text(job.model_dump_json())
    asker = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(tmp_path / "job.json")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    while steps_stored(job) < 3:
        assert asker.poll() is None
        time.sleep(0.01)
    orphans = ranks_of(asker.pid)
    asker.kill()
    asker.wait()
    assert sorted(orphans) == [0, 1]
    deadline = time.monotonic() + 30
    while any(map(is_alive, orphans.values())):
        assert time.monotonic() < deadline, "they outlived the one who asked for them"
        time.sleep(0.05)
    assert 3 <= steps_stored(job) < job.tasks[0].train.steps
    for found in fit_on_devices(job):
        assert_same(found, together["batch"].results[found.name])


@needs_proc
@pytest.mark.slow
def test_a_killed_rank_ends_the_job_with_its_name_and_the_next_run_goes_on(
    make_job: Callable[..., Job], together: dict[str, Any], tmp_path: Path
):
    job = make_job(tmp_path, ALL, count=2, split="latents", checkpoint_every_seconds=0)
    kills = Signals(1, signal.SIGKILL, at=10)
    with pytest.raises(DeviceFailure, match="2 devices stopped: rank 1 was killed by SIGKILL"):
        fit_on_devices(job, on_step=kills)
    assert kills.sent is not None
    assert time.monotonic() - kills.sent < 45
    assert 9 <= steps_stored(job) < job.tasks[0].train.steps
    for found in fit_on_devices(job):
        assert_same(found, together["latents"].results[found.name])


@needs_proc
@pytest.mark.slow
def test_a_process_that_hangs_is_not_waited_for_without_end(
    make_job: Callable[..., Job], tmp_path: Path
):
    job = make_job(tmp_path, ("steered",), count=2, timeout_seconds=2, steps=20_000)
    stops = Signals(1, signal.SIGSTOP, at=5)
    with pytest.raises(DeviceFailure, match=r"rank 1 did not answer rank 0 within 2 s") as caught:
        fit_on_devices(job, on_step=stops)
    assert stops.sent is not None
    assert 2 <= time.monotonic() - stops.sent < 60
    assert "lost another process" in str(caught.value)


def test_an_error_of_the_user_is_told_as_by_one_process(
    make_job: Callable[..., Job], tmp_path: Path
):
    x = torch.ones(700, 8)
    x[650] = torch.inf
    save_file({"site": x}, tmp_path / "x.safetensors")
    job = make_job(tmp_path, ("steered",), count=2)
    source = FileSource(file=tmp_path / "x.safetensors", seed=0, batch_tokens=64)
    with pytest.raises(BadInput, match=r"key site: batch \d+ holds activations that are not"):
        fit_on_devices(job.but(source=source.model_dump()))


def test_what_no_process_could_train_is_refused_before_any_is_started(
    make_job: Callable[..., Job], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(subprocess, "Popen", None)  # starting one would fail
    job = make_job(tmp_path, ("steered",), count=2)
    absent = job.source.model_copy(update={"file": tmp_path / "x.safetensors"})
    with pytest.raises(MissingFile, match="no such file of activations"):
        fit_on_devices(job.model_copy(update={"source": absent}))
    if not torch.cuda.is_available():
        with pytest.raises(BadInput, match="key devices, value 2: this machine has 0 GPUs"):
            fit_on_devices(job.but(device="cuda"))
    with pytest.raises(BadInput, match="steered is to be trained on other devices"):
        fit_on_devices(job.but(devices={"count": 4}))


def test_ctrl_c_ends_all_of_them(make_job: Callable[..., Job], tmp_path: Path):
    running: dict[int, int] = {}

    def interrupts(report: StepReport) -> None:
        running.update(ranks_of(os.getpid()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_on_devices(make_job(tmp_path, ("steered",), count=2, steps=2000), on_step=interrupts)
    assert len(running) == 2
    assert not any(map(is_alive, running.values()))


def test_one_process_does_not_quietly_train_what_was_meant_for_several(
    make_job: Callable[..., Job], tmp_path: Path
):
    job = make_job(tmp_path, ("steered",), count=2)
    with pytest.raises(BadInput, match="steered is to be trained on 2 devices"):
        fit([task.build() for task in job.tasks], job.source.open("cpu"))
