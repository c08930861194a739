"""A training that is killed at any moment goes on as if nothing had happened."""

from pathlib import Path

import pytest
import torch

from sae_lib.errors import CorruptData
from sae_lib.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from tests.stress import kill_training


@pytest.mark.slow
def test_killed_twice_and_interrupted_once_the_weights_are_those_of_a_quiet_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The stress script, in short; at its full length it is run by hand."""
    monkeypatch.setattr(kill_training, "HOW", ("in a write", "by Ctrl-C", "at any moment"))
    kill_training.prepare(tmp_path)
    found = kill_training.ordeal(tmp_path, tmp_path, "streamed", kills=3, seed=0, steps=90)
    steps = [killed.step for killed in found.kills]
    assert 0 < steps[0] < steps[1] < steps[2] < 90, "it was not killed under way"
    assert found.kills[1].how == "by Ctrl-C"
    assert found.differences == []


def test_the_comparison_of_checkpoints_sees_a_single_number(tmp_path: Path):
    def write(folder: Path, name: str, *, weight: float = 1.0, loss: float = 2.0) -> None:
        points = [{"step": 1, "tokens": 64, "name": "loss", "value": loss}]
        state = {"identity": {"name": name}, "step": 1, "status": "running", "curves": points}
        tensors = {"coder.W_dec": torch.full((2, 2), weight)}
        write_checkpoint(folder / name, Checkpoint(tensors, state))

    one, other = tmp_path / "one", tmp_path / "other"
    for name in kill_training.SAES:
        write(one, name)
        write(other, name)
    assert kill_training.differences(one, other) == []
    write(other, "batch", weight=1 + 2**-23)
    write(other, "topk", loss=2.5)
    assert kill_training.differences(one, other) == ["topk: curves", "batch: coder.W_dec"]


def test_a_half_written_checkpoint_beside_the_whole_one_is_ignored(tmp_path: Path):
    (tmp_path / ".checkpoint.safetensors.123").write_bytes(b"half")
    assert read_checkpoint(tmp_path) is None
    (tmp_path / "checkpoint.safetensors").write_bytes(b"half")
    with pytest.raises(CorruptData):
        read_checkpoint(tmp_path)
