"""A store that several machines share: whole or not there, verified, and silent about secrets."""

import json
import logging
import multiprocessing
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable
from pathlib import Path

import fsspec
import pytest

from sae_lib.artifacts import ArtifactStore, Identity
from sae_lib.errors import BadInput, CorruptData, MissingFile
from sae_lib.remote import Remote, RemoteUnavailable, remote_from_env
from sae_lib.remote.remote import Kinds, is_inside
from sae_lib.remote.secrets import blanked
from sae_lib.remote.settings import parse_options
from sae_lib.remote.storage import Storage

SECRET = "hunter2-hunter2"


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/shared"
    return f"memory://{uuid.uuid4().hex}/prefix"


def identity(seed: int = 0, kind: str = "sae") -> Identity:
    return Identity(kind, "name", {"seed": seed})


def build(store: ArtifactStore, one: Identity, data: bytes = b"weights") -> Path:
    with store.build(one, parents={"up": "abc"}) as space:
        (space.path / "sae.safetensors").write_bytes(data)
        (space.path / "deep").mkdir()
        (space.path / "deep" / "rows.parquet").write_bytes(b"rows of " + data)
        space.facts["rows"] = 3
    return store.local_path(one)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


class Killed(BaseException):
    """What no handler catches, as a signal would be."""


def killing(remote: Remote, monkeypatch: pytest.MonkeyPatch, after: int, what: str) -> None:
    """Let ``after`` calls of a method of the storage through, then die."""
    real, calls = getattr(remote.storage, what), []

    def call(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) > after:
            raise Killed
        return real(*args, **kwargs)

    monkeypatch.setattr(remote.storage, what, call)


def counting(remote: Remote, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of every method of the storage that is called from now on."""
    calls: list[str] = []
    for name in ("find", "exists", "read", "write", "upload", "download", "delete"):
        real = getattr(remote.storage, name)

        def call(*args: object, real: Callable = real, name: str = name, **kwargs: object):
            calls.append(name)
            return real(*args, **kwargs)

        monkeypatch.setattr(remote.storage, name, call)
    return calls


# artefacts


def test_what_one_machine_builds_another_finds_and_reads(url: str, tmp_path: Path):
    a = ArtifactStore(tmp_path / "a", Remote.open(url))
    b = ArtifactStore(tmp_path / "b", Remote.open(url))
    one = identity()
    assert not b.exists(one)
    folder = build(a, one)
    fresh = ArtifactStore(tmp_path / "b", Remote.open(url))
    assert fresh.exists(one)
    assert fresh.manifest(one) == a.manifest(one)
    assert not fresh.local_path(one).exists()  # to plan and to read a manifest moves nothing
    assert contents(fresh.path(one)) == contents(folder)
    assert fresh.is_here(one)
    assert fresh.manifests("sae")[0]["facts"] == {"rows": 3}
    assert not list((tmp_path / "b" / "artifacts" / "sae").glob(".*.pull"))


def test_without_a_remote_no_client_is_loaded():
    code = (
        "import sys; from pathlib import Path; from sae_lib.artifacts import ArtifactStore, "
        "Identity; import sae_lib.remote, os; os.environ.pop('SAE_REMOTE', None); "
        "assert sae_lib.remote.remote_from_env() is None; "
        "ArtifactStore(Path('x')).exists(Identity('a', 'b', {})); "
        "sys.exit('fsspec' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_push_is_made_once(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    remote = Remote.open(url)
    folder = build(ArtifactStore(tmp_path), identity())
    first = remote.push(folder)
    assert first.files == 3
    assert first.size == sum(map(len, contents(folder).values()))
    calls = counting(remote, monkeypatch)
    assert remote.push(folder).was_there
    assert calls == ["exists"]
    assert remote.folders("sae") == [folder.name]
    assert remote.all_kinds() == ["sae"]


@pytest.mark.parametrize(("what", "after"), [("upload", 0), ("upload", 2), ("write", 0)])
def test_a_killed_push_shows_nothing_and_the_next_completes_it(
    what: str, after: int, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = build(ArtifactStore(tmp_path / "a"), identity())
    with monkeypatch.context() as patch:
        dying = Remote.open(url)
        killing(dying, patch, after, what)
        with pytest.raises(Killed):
            dying.push(folder)
    remote = Remote.open(url)
    assert not remote.exists("sae", folder.name)
    assert remote.folders("sae") == []
    with pytest.raises(MissingFile, match="is not on"):
        remote.pull("sae", folder.name, tmp_path / "b")
    there = len(remote.storage.find("artifacts"))
    assert remote.push(folder).files == 3 - there  # what had arrived stays
    remote.pull("sae", folder.name, tmp_path / "b")
    assert contents(tmp_path / "b" / "artifacts" / "sae" / folder.name) == contents(folder)


def test_a_file_that_arrived_by_half_is_sent_again(url: str, tmp_path: Path):
    remote = Remote.open(url)
    folder = build(ArtifactStore(tmp_path / "a"), identity())
    remote.push(folder)
    remote.storage.delete(f"index/sae/{folder.name}.json")
    path = next(
        name for name in remote.storage.find("artifacts") if name.endswith("sae.safetensors")
    )
    remote.storage.write(path, b"wei")
    assert remote.push(folder).files == 1
    remote.pull("sae", folder.name, tmp_path / "b")


def test_a_killed_pull_shows_nothing_and_goes_on_where_it_was(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = build(ArtifactStore(tmp_path / "a", Remote.open(url)), identity())
    with monkeypatch.context() as patch:
        dying = Remote.open(url)
        killing(dying, patch, 2, "download")
        with pytest.raises(Killed):
            dying.pull("sae", folder.name, tmp_path / "b")
    store = ArtifactStore(tmp_path / "b", Remote.open(url))
    assert not store.is_here(identity())
    stray = store.local_path(identity()).with_name(f".{folder.name}.pull") / "deep" / "stray"
    stray.write_text("left by something else")
    moved = store.remote.pull("sae", folder.name, tmp_path / "b") if store.remote else None
    assert moved is not None
    assert moved.files == 1
    assert contents(store.path(identity())) == contents(folder)


@pytest.mark.parametrize("damage", [b"WEIGHTS", b"weigh", None])
def test_bytes_that_are_not_those_pushed_are_an_error(
    damage: bytes | None, url: str, tmp_path: Path
):
    remote = Remote.open(url)
    folder = build(ArtifactStore(tmp_path / "a", remote), identity())
    path = next(
        name for name in remote.storage.find("artifacts") if name.endswith("sae.safetensors")
    )
    remote.storage.delete(path)
    if damage is not None:
        remote.storage.write(path, damage)
    other = ArtifactStore(tmp_path / "b", Remote.open(url))
    with pytest.raises(CorruptData, match=r"sae\.safetensors: .*--replace"):
        other.path(identity())
    assert not other.is_here(identity())
    remote.push(folder, replace=True)
    assert contents(other.path(identity())) == contents(folder)


def test_an_index_that_leads_out_of_the_folder_is_refused(url: str, tmp_path: Path):
    remote = Remote.open(url)
    folder = build(ArtifactStore(tmp_path / "a", remote), identity())
    path = f"index/sae/{folder.name}.json"
    index = json.loads(remote.storage.read(path))
    for bad in ("../../evil", "/evil", "a/../../evil", "a\\..\\evil"):
        assert not is_inside(bad)
        files = {**index["files"], bad: [1, "0" * 64]}
        remote.storage.write(path, json.dumps({**index, "files": files}).encode())
        with pytest.raises(CorruptData, match="not a known index"):
            Remote.open(url).pull("sae", folder.name, tmp_path / "b")
    remote.storage.write(path, b"{")
    with pytest.raises(CorruptData, match="not an index"):
        Remote.open(url).pull("sae", folder.name, tmp_path / "b")


def test_machines_that_push_the_same_identity_at_once_do_not_mix_their_files(
    url: str, tmp_path: Path
):
    folders = [
        build(ArtifactStore(tmp_path / name), identity(), name.encode() * 1000) for name in "abcd"
    ]
    together = threading.Barrier(len(folders))

    def push(folder: Path) -> None:
        remote = Remote.open(url)
        together.wait()
        remote.push(folder)

    threads = [threading.Thread(target=push, args=(folder,)) for folder in folders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = ArtifactStore(tmp_path / "z", Remote.open(url)).path(identity())
    assert contents(found) in [contents(folder) for folder in folders]


def _pull(url: str, name: str, home: Path) -> None:
    Remote.open(url).pull("sae", name, home)


def test_processes_that_pull_the_same_artefact_share_one_download(tmp_path: Path):
    url = f"file://{tmp_path}/shared"
    folder = build(ArtifactStore(tmp_path / "a", Remote.open(url)), identity(), b"x" * 1_000_000)
    context = multiprocessing.get_context("spawn")
    arguments = (url, folder.name, tmp_path / "b")
    workers = [context.Process(target=_pull, args=arguments) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert contents(tmp_path / "b" / "artifacts" / "sae" / folder.name) == contents(folder)


def test_planning_many_cells_is_one_request_for_each_kind(
    url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build(ArtifactStore(tmp_path / "a", Remote.open(url)), identity(7))
    now = [0.0]
    remote = Remote(Storage(url), clock=lambda: now[0])
    store = ArtifactStore(tmp_path / "b", remote)
    calls = counting(remote, monkeypatch)
    found = [seed for seed in range(2000) if store.exists(identity(seed))]
    assert found == [7]
    assert calls == ["find"]
    store.exists(identity(kind="metrics"))
    store.exists(identity(kind="activations"))  # not shared: nothing to ask
    assert calls == ["find", "find"]
    build(ArtifactStore(tmp_path / "a", Remote.open(url)), identity(8))
    now[0] = 59
    assert not store.exists(identity(8))  # at most a minute late
    now[0] = 61
    assert store.exists(identity(8))
    build(store, identity(9))
    assert calls.count("find") == 5  # one of these lists, two are of the push
    assert remote.exists("sae", identity(9).folder)


def test_kinds_that_are_not_shared_stay_here(url: str, tmp_path: Path):
    store = ArtifactStore(tmp_path, Remote.open(url))
    build(store, identity(kind="activations"))
    assert Remote.open(url).all_kinds() == []
    only = Remote.open(url, kinds=Kinds.parse("activations, tokens"))
    build(ArtifactStore(tmp_path / "b", only), identity(kind="activations"))
    build(ArtifactStore(tmp_path / "b", only), identity(kind="sae"))
    assert Remote.open(url).all_kinds() == ["activations"]
    assert "activations" in Kinds.parse("all")
    assert "sae" in Kinds.parse("-tokens")
    assert "tokens" not in Kinds.parse("-tokens")
    with pytest.raises(BadInput, match="but not both"):
        Kinds.parse("sae,-tokens")


def test_what_is_deleted_is_gone_for_everybody(url: str, tmp_path: Path):
    remote = Remote.open(url)
    folder = build(ArtifactStore(tmp_path, remote), identity())
    remote.delete("sae", folder.name)
    assert remote.storage.find("") == {}
    assert not Remote.open(url).exists("sae", folder.name)


# trouble


class Broken(Storage):
    """A network that fails ``failures`` times, quoting the secret."""

    def __init__(self, url: str, failures: float, error: type[Exception] = ConnectionError) -> None:
        self.slept: list[float] = []
        super().__init__(url, {"secret": "env:TEST_SECRET"}, sleep=self.slept.append)
        self.failures, self.error = failures, error
        self.tried = 0

    def _try(self, what: str, do: Callable):  # type: ignore[override]
        def attempt():
            self.tried += 1
            if self.tried <= self.failures:
                raise self.error(f"cannot connect with {SECRET} to the endpoint")
            return do()

        return super()._try(what, attempt)


@pytest.fixture
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SECRET", SECRET)


def test_a_network_that_recovers_is_waited_for(secret: None, url: str, tmp_path: Path):
    folder = build(ArtifactStore(tmp_path), identity())
    storage = Broken(url, failures=3)
    Remote(storage).push(folder)
    assert len(storage.slept) == 3
    assert all(0.5 * 2**i <= pause <= 0.625 * 2**i for i, pause in enumerate(storage.slept))


def test_a_run_goes_on_when_the_store_is_down(
    secret: None, url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    now = [0.0]
    storage = Broken(url, failures=float("inf"))
    remote = Remote(storage, clock=lambda: now[0])
    store = ArtifactStore(tmp_path, remote)
    with caplog.at_level(logging.INFO):
        assert not store.exists(identity(0))
        tried = storage.tried
        build(store, identity(0))  # nothing waits for it again
        now[0] = 61
        assert not store.exists(identity(kind="metrics"))
        assert storage.tried == tried
        now[0] = 121
        build(store, identity(1))
        assert storage.tried == 2 * tried
        now[0] = 121 + 239  # twice as long as the first time
        build(store, identity(2))
        assert storage.tried == 2 * tried
        storage.failures = 0
        now[0] = 121 + 241
        build(store, identity(3))
    assert store.is_here(identity(0))
    assert store.is_here(identity(1))
    assert Remote.open(url).folders("sae") == [identity(3).folder]
    warnings = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2
    assert "sae push" in warnings[1].getMessage()
    assert SECRET not in caplog.text
    assert "***" in caplog.text


def test_what_only_the_store_holds_is_a_transient_error_that_names_it(
    secret: None, url: str, tmp_path: Path
):
    build(ArtifactStore(tmp_path / "a", Remote.open(url)), identity())
    storage = Broken(url, failures=0)
    store = ArtifactStore(tmp_path / "b", Remote(storage))
    assert store.exists(identity())
    storage.failures = float("inf")
    with pytest.raises(RemoteUnavailable) as caught:
        store.path(identity())
    assert caught.value.is_transient
    assert identity().folder in str(caught.value)
    chain: BaseException | None = caught.value
    while chain is not None:
        assert SECRET not in str(chain)
        assert SECRET not in repr(chain)
        chain = chain.__cause__ or chain.__context__


def test_what_will_not_change_is_not_tried_again(secret: None, url: str, tmp_path: Path):
    folder = build(ArtifactStore(tmp_path), identity())
    storage = Broken(url, failures=float("inf"), error=PermissionError)
    with pytest.raises(BadInput, match="is refused") as caught:
        Remote(storage).push(folder)
    assert storage.tried == 1
    assert SECRET not in str(caught.value)


# settings


def test_an_unknown_protocol_and_a_missing_package_are_said(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(BadInput, match=r"SAE_REMOTE.*nope"):
        Remote.open("nope://bucket/x")
    with pytest.raises(BadInput, match=r"SAE_REMOTE.*must be a URL"):
        Remote.open("bucket/x")

    def missing(*args: object, **kwargs: object) -> None:
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec, "filesystem", missing)
    with pytest.raises(BadInput, match=r"SAE_REMOTE.*`pip install s3fs`"):
        Remote.open("s3://bucket/x")


@pytest.mark.parametrize(
    "options",
    [
        {"secret": SECRET},
        {"key": SECRET},
        {"client_kwargs": {"aws_session_token": SECRET}},
        {"endpoint_url": f"https://me:{SECRET}@host"},
        {"account_key": SECRET},
        {"sas_token": SECRET},
    ],
)
def test_a_secret_that_is_written_out_is_refused_and_not_repeated(options: dict):
    with pytest.raises(BadInput, match="SAE_REMOTE_OPTIONS") as caught:
        Remote.open("memory://x/y", options)
    assert SECRET not in str(caught.value)


def test_a_url_with_a_password_is_refused_and_not_repeated():
    with pytest.raises(BadInput, match="no user and no password") as caught:
        Remote.open(f"sftp://me:{SECRET}@host/x")
    assert SECRET not in str(caught.value)


def test_options_refer_to_the_environment(secret: None):
    with pytest.raises(BadInput, match="no such variable"):
        Remote.open("memory://x/y", {"secret": "env:NOT_THERE"})
    with pytest.raises(BadInput, match="JSON object"):
        parse_options(f"{{{SECRET}")
    with pytest.raises(BadInput, match="JSON object"):
        parse_options("[]")
    remote = Remote.open("memory://x/y", {"secret": "env:TEST_SECRET", "anon": False})
    assert SECRET not in repr(remote) + repr(remote.storage)


def test_secrets_of_the_environment_are_blanked_in_every_form(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ab/cd+ef=gh")
    assert blanked("x ab/cd+ef=gh ab%2Fcd%2Bef%3Dgh y", []) == "x *** *** y"


def test_the_environment_says_which_store(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("SAE_REMOTE", raising=False)
    assert remote_from_env() is None
    monkeypatch.setenv("SAE_REMOTE", "memory://somewhere/x")
    monkeypatch.setenv("SAE_REMOTE_KINDS", "sae")
    remote = remote_from_env()
    assert remote is remote_from_env()  # so that what is known of it is kept
    assert remote is not None
    assert "sae" in remote.kinds
    assert "metrics" not in remote.kinds
    monkeypatch.setenv("SAE_REMOTE_KINDS", "")
    other = remote_from_env()
    assert other is not None
    assert "metrics" in other.kinds
    assert "activations" not in other.kinds
