"""Checkpoints: whole or absent, and refused when they are not what they should be."""

from pathlib import Path

import pytest
import torch

from sae_lib.errors import CorruptData
from sae_lib.training import checkpoint as module
from sae_lib.training.checkpoint import CHECKPOINT, Checkpoint, read_checkpoint, write_checkpoint


def test_what_is_read_is_what_was_written(tmp_path: Path):
    tensors = {"w": torch.randn(3, 2), "count": torch.tensor(7), "double": torch.rand(2).double()}
    state = {"step": 3, "curves": [{"name": "fvu", "value": 0.1}]}
    write_checkpoint(tmp_path, Checkpoint(tensors, state))
    found = read_checkpoint(tmp_path)
    assert found is not None
    assert found.state == state
    assert set(found.tensors) == set(tensors)
    for name, tensor in tensors.items():
        assert found.tensors[name].dtype == tensor.dtype
        assert torch.equal(found.tensors[name], tensor)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_where_none_was_written_there_is_none(tmp_path: Path):
    assert read_checkpoint(tmp_path / "nowhere") is None


def test_a_writer_that_fails_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_checkpoint(tmp_path, Checkpoint({"w": torch.zeros(2)}, {"step": 1}))

    def fails(tensors: object, path: Path, **kwargs: object) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(module, "save_file", fails)
    with pytest.raises(OSError, match="disk full"):
        write_checkpoint(tmp_path, Checkpoint({"w": torch.ones(2)}, {"step": 2}))
    found = read_checkpoint(tmp_path)
    assert found is not None
    assert found.state["step"] == 1


@pytest.mark.parametrize("damage", ["cut", "empty", "text"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, damage: str):
    write_checkpoint(tmp_path, Checkpoint({"w": torch.zeros(100)}, {"step": 1}))
    path = tmp_path / CHECKPOINT
    content = path.read_bytes()
    path.write_bytes({"cut": content[:-8], "empty": b"", "text": b"not a checkpoint"}[damage])
    with pytest.raises(CorruptData, match=r"checkpoint\.safetensors: this is not a checkpoint"):
        read_checkpoint(tmp_path)


def test_another_format_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "FORMAT_VERSION", 2)
    write_checkpoint(tmp_path, Checkpoint({"w": torch.zeros(2)}, {"step": 1}))
    monkeypatch.undo()
    with pytest.raises(CorruptData, match=r"format version 2 is not the 1"):
        read_checkpoint(tmp_path)
