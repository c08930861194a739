"""A fingerprint is of the content: of all of it, and of nothing else."""

import hashlib
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from sae_lib.errors import BadInput, MissingFile
from sae_lib.models.config import ModelConfig
from sae_lib.models.fingerprint import fingerprint


@pytest.fixture
def folder(folder_of, tmp_path) -> Path:
    """A copy of a tiny Llama to change."""
    return Path(shutil.copytree(folder_of("llama"), tmp_path / "model"))


@pytest.fixture
def reads(monkeypatch) -> list[str]:
    """Names of the files that are read through, in order."""
    names, real = [], hashlib.file_digest

    def digest(stream, name):
        names.append(Path(stream.name).name)
        return real(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", digest)
    return names


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_it_is_sixteen_hex_digits_and_the_same_twice(folder):
    first = fingerprint(ModelConfig(id=str(folder)))
    assert first == fingerprint(ModelConfig(id="model"), folder.parent)
    assert len(first) == 16
    int(first, 16)


def test_it_does_not_depend_on_where_the_model_is(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "copy")
    assert fingerprint(ModelConfig(id=str(copy))) == fingerprint(ModelConfig(id=str(folder)))


@pytest.mark.parametrize(
    "name", ["model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json"]
)
@pytest.mark.parametrize("has_memo", [True, False])
def test_one_changed_byte_is_another_model(folder, tmp_path, name, has_memo):
    cfg, memo = ModelConfig(id=str(folder)), tmp_path / "memo.json" if has_memo else None
    before = fingerprint(cfg, memo=memo)
    file = folder / name
    if name == "model.safetensors":
        flip_last_byte(file)
    else:
        file.write_text(file.read_text() + " ")
    assert fingerprint(cfg, memo=memo) != before


def test_touching_a_file_changes_nothing(folder, tmp_path):
    cfg, memo = ModelConfig(id=str(folder)), tmp_path / "memo.json"
    before = fingerprint(cfg, memo=memo)
    for file in folder.iterdir():
        os.utime(file, (1, 1))
    assert fingerprint(cfg, memo=memo) == before
    assert fingerprint(cfg) == before


def test_files_that_decide_nothing_are_left_out(folder):
    cfg = ModelConfig(id=str(folder))
    before = fingerprint(cfg)
    (folder / "README.md").write_text("words")
    (folder / "training.log").write_text("words")
    (folder / "revisions").mkdir()
    assert fingerprint(cfg) == before
    (folder / "chat_template.jinja").write_text("words")
    assert fingerprint(cfg) != before


def test_two_files_that_swap_their_contents_are_another_model(folder):
    cfg = ModelConfig(id=str(folder))
    (folder / "merges.txt").write_text("a")
    (folder / "vocab.txt").write_text("b")
    before = fingerprint(cfg)
    (folder / "merges.txt").write_text("b")
    (folder / "vocab.txt").write_text("a")
    assert fingerprint(cfg) != before


def test_a_file_under_another_name_is_another_model(folder):
    cfg = ModelConfig(id=str(folder))
    (folder / "vocab.txt").write_text("a")
    before = fingerprint(cfg)
    (folder / "vocab.txt").rename(folder / "vocab.bpe")
    assert fingerprint(cfg) != before


def test_with_a_memo_an_unchanged_file_is_not_read_again(folder, tmp_path, reads):
    cfg, memo = ModelConfig(id=str(folder)), tmp_path / "below" / "memo.json"
    first = fingerprint(cfg, memo=memo)
    assert "model.safetensors" in reads
    reads.clear()
    assert fingerprint(cfg, memo=memo) == first
    assert reads == []
    flip_last_byte(folder / "model.safetensors")
    assert fingerprint(cfg, memo=memo) != first
    assert reads == ["model.safetensors"]


def test_a_file_put_in_the_place_of_another_is_seen_though_size_and_time_agree(folder, tmp_path):
    cfg, memo = ModelConfig(id=str(folder)), tmp_path / "memo.json"
    before, file = fingerprint(cfg, memo=memo), folder / "model.safetensors"
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    flip_last_byte(file)
    os.utime(file, ns=times)
    assert fingerprint(cfg, memo=memo) != before


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"a": 1}', "null"])
def test_a_damaged_memo_is_made_anew(folder, tmp_path, damage):
    cfg, memo = ModelConfig(id=str(folder)), tmp_path / "memo.json"
    before = fingerprint(cfg, memo=memo)
    memo.write_text(damage)
    assert fingerprint(cfg, memo=memo) == before
    assert any("model.safetensors" in place for place in json.loads(memo.read_text()))
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith("tmp")] == []


def test_one_memo_serves_many_models(folder, tmp_path, reads):
    other = Path(shutil.copytree(folder, tmp_path / "other"))
    flip_last_byte(other / "model.safetensors")
    memo = tmp_path / "memo.json"
    both = [fingerprint(ModelConfig(id=str(path)), memo=memo) for path in (folder, other)]
    assert both[0] != both[1]
    reads.clear()
    assert [fingerprint(ModelConfig(id=str(path)), memo=memo) for path in (folder, other)] == both
    assert reads == []


def test_a_directory_that_is_no_model_has_no_fingerprint(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(MissingFile):
        fingerprint(ModelConfig(id=str(folder)))


def test_a_hub_model_is_its_commit(monkeypatch):
    commits = {None: "a" * 40, "v1": "b" * 40}
    monkeypatch.setattr(
        "huggingface_hub.HfApi.model_info",
        lambda self, name, revision: SimpleNamespace(sha=commits[revision]),
    )
    assert fingerprint(ModelConfig(id="someone/model")) == "a" * 16
    assert fingerprint(ModelConfig(id="someone/model", revision="v1")) == "b" * 16


def test_a_name_that_nobody_knows_has_no_fingerprint():
    with pytest.raises(BadInput, match="neither a bundled model"):
        fingerprint(ModelConfig(id="no such name"))
