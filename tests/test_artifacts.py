import json
import multiprocessing
from pathlib import Path

import pytest

from sae_lib.artifacts import ArtifactStore, Busy, Identity
from sae_lib.errors import CorruptData


def identity(**content: object) -> Identity:
    return Identity("thing", "name", content)


def fail_after_writing(store: ArtifactStore, one: Identity, name: str, *, can_resume: bool) -> None:
    def write() -> None:
        with store.build(one, can_resume=can_resume) as space:
            (space.path / name).write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        write()


def test_equal_content_is_the_same_artefact_whatever_its_order_and_name():
    assert Identity("a", "x", {"p": 1, "q": 2}).hash == Identity("a", "y", {"q": 2, "p": 1}).hash
    assert identity(p=1).hash != identity(p=2).hash
    assert Identity("a", "x", {"p": 1}).hash != Identity("b", "x", {"p": 1}).hash


def test_an_artefact_is_invisible_until_it_is_whole(tmp_path: Path):
    store, one = ArtifactStore(tmp_path), identity(p=1)
    with store.build(one, parents={"up": "abc"}) as space:
        (space.path / "data").write_text("x")
        space.facts["rows"] = 3
        assert not store.exists(one)
        assert not store.path(one).exists()
    assert store.exists(one)
    manifest = store.manifest(one)
    assert manifest["facts"] == {"rows": 3}
    assert manifest["parents"] == {"up": "abc"}
    assert manifest["content"] == {"p": 1}
    assert manifest["status"] == "complete"
    assert [found["hash"] for found in store.manifests("thing")] == [one.hash]


def test_a_writer_that_fails_leaves_nothing_visible_and_its_work_to_resume(tmp_path: Path):
    store, one = ArtifactStore(tmp_path), identity(p=1)
    fail_after_writing(store, one, "checkpoint", can_resume=True)
    assert not store.exists(one)
    assert store.manifests("thing") == []
    with store.build(one, can_resume=True) as space:
        assert space.resumed
        assert (space.path / "checkpoint").read_text() == "half"
    assert store.exists(one)


def test_a_stage_that_cannot_resume_starts_from_an_empty_folder(tmp_path: Path):
    store, one = ArtifactStore(tmp_path), identity(p=1)
    fail_after_writing(store, one, "half", can_resume=False)
    with store.build(one) as space:
        assert not space.resumed
        assert list(space.path.iterdir()) == []


def test_who_comes_second_leaves_the_finished_artefact_alone(tmp_path: Path):
    store, one = ArtifactStore(tmp_path), identity(p=1)
    with store.build(one) as space:
        (space.path / "data").write_text("first")
    before = (store.path(one) / "data").stat().st_ino
    with store.build(one) as space:
        (space.path / "data").write_text("second")
    assert (store.path(one) / "data").stat().st_ino == before
    assert not store.working_path(one).exists()


def hold(root: Path, ready: "multiprocessing.synchronize.Event", done) -> None:
    with ArtifactStore(root).build(identity(p=1)):
        ready.set()
        done.wait(20)


@pytest.mark.slow
def test_two_processes_never_write_the_same_artefact(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=hold, args=(tmp_path, ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(Busy, match="another process"):
            ArtifactStore(tmp_path).build(identity(p=1)).__enter__()
    finally:
        done.set()
        other.join(20)
    assert ArtifactStore(tmp_path).exists(identity(p=1))


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "not JSON"), (json.dumps({"format_version": 99}), "format version 99")],
)
def test_a_manifest_that_cannot_be_read_says_which_and_what_to_do(tmp_path, text, said):
    store, one = ArtifactStore(tmp_path), identity(p=1)
    with store.build(one):
        pass
    (store.path(one) / "manifest.json").write_text(text)
    with pytest.raises(CorruptData, match=said) as error:
        store.manifest(one)
    assert str(store.path(one)) in str(error.value)
