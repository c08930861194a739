"""A training that is killed at any moment goes on as if nothing had happened."""

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from sae_lib.errors import CorruptData
from sae_lib.training.checkpoint import read_checkpoint

SCRIPT = Path(__file__).with_name("_training_to_kill.py")
ROOT = Path(__file__).parents[2]
NAMES = ("batch", "steered")


@contextmanager
def training(folder: Path, pause: float) -> Iterator[subprocess.Popen[bytes]]:
    """A training in a process of its own, which does not outlive the block."""
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), str(folder), str(pause)],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def steps_done(folder: Path) -> int:
    """Steps of the last checkpoint; every look at it, at whatever moment, must find it whole."""
    found = read_checkpoint(folder / NAMES[-1])
    return 0 if found is None else found.state["step"]


@pytest.mark.slow
def test_killed_three_times_the_weights_are_those_of_a_quiet_run(tmp_path: Path):
    quiet, disturbed = tmp_path / "quiet", tmp_path / "disturbed"
    moments, reached = random.Random(0), []
    with training(quiet, 0) as undisturbed:
        for at in (10, 40, 70):
            with training(disturbed, 0.05) as process:
                while steps_done(disturbed) < at:
                    assert process.poll() is None
                    time.sleep(0.01)
                time.sleep(moments.random() * 0.05)
            reached.append(steps_done(disturbed))
        assert undisturbed.wait(300) == 0
    assert 10 <= reached[0] < reached[1] < reached[2] < 150, "it was not killed under way"
    with training(disturbed, 0) as process:
        assert process.wait(300) == 0
    for name in NAMES:
        mine, other = read_checkpoint(quiet / name), read_checkpoint(disturbed / name)
        assert mine is not None
        assert other is not None
        assert mine.state["status"] == other.state["status"] == "complete"
        assert mine.tensors.keys() == other.tensors.keys()
        for key, tensor in mine.tensors.items():
            assert torch.equal(tensor, other.tensors[key]), key


def test_a_half_written_checkpoint_beside_the_whole_one_is_ignored(tmp_path: Path):
    (tmp_path / ".checkpoint.safetensors.123").write_bytes(b"half")
    assert read_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(CorruptData):
        read_checkpoint(tmp_path)
