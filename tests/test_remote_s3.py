"""The shared store on a server that speaks S3, over the loopback interface."""

import logging
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from sae_lib.artifacts import ArtifactStore, Identity
from sae_lib.errors import BadInput, CorruptData
from sae_lib.remote import Remote, RemoteUnavailable
from sae_lib.remote.storage import Storage
from sae_lib.warehouse.sync import sync_warehouse
from sae_lib.warehouse.write import Provenance, write_rows

pytest.importorskip("s3fs", reason="the extra s3 is not installed")
moto_server = pytest.importorskip("moto.server", reason="moto and flask are not installed")

SECRET = "a-secret-of-some-length"
IDENTITY = Identity("sae", "name", {"seed": 0})


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def options(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, object]:
    monkeypatch.setenv("TEST_KEY", "an-access-key")
    monkeypatch.setenv("TEST_SECRET", SECRET)
    return {"endpoint_url": endpoint, "key": "env:TEST_KEY", "secret": "env:TEST_SECRET"}


@pytest.fixture
def url(options: dict[str, object]) -> str:
    bucket = f"bucket-{uuid.uuid4().hex}"
    Storage(f"s3://{bucket}/x", options).fs.mkdir(bucket)
    return f"s3://{bucket}/deep/prefix"


def build(store: ArtifactStore, size: int = 100) -> Path:
    with store.build(IDENTITY) as space:
        (space.path / "sae.safetensors").write_bytes(b"w" * size)
        (space.path / "deep").mkdir()
        (space.path / "deep" / "name with %7C & =.json").write_bytes(b"{}")
        (space.path / "empty").write_bytes(b"")
    return store.local_path(IDENTITY)


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(folder)): file.read_bytes()
        for file in folder.rglob("*")
        if file.is_file()
    }


def test_two_machines_share_artefacts(url: str, options: dict[str, object], tmp_path: Path):
    assert not ArtifactStore(tmp_path / "b", Remote.open(url, options)).exists(IDENTITY)
    folder = build(ArtifactStore(tmp_path / "a", Remote.open(url, options)))
    b = ArtifactStore(tmp_path / "b", Remote.open(url, options))
    assert b.exists(IDENTITY)
    assert b.manifest(IDENTITY)["kind"] == "sae"
    assert contents(b.path(IDENTITY)) == contents(folder)
    assert Remote.open(url, options).push(folder).was_there


@pytest.mark.slow
def test_a_large_file_goes_in_parts(url: str, options: dict[str, object], tmp_path: Path):
    folder = build(ArtifactStore(tmp_path / "a", Remote.open(url, options)), 105_000_000)
    remote = Remote.open(url, options)
    assert remote.pull("sae", folder.name, tmp_path / "b").size > 105_000_000


def test_an_object_that_was_changed_is_noticed(
    url: str, options: dict[str, object], tmp_path: Path
):
    remote = Remote.open(url, options)
    build(ArtifactStore(tmp_path / "a", remote))
    path = next(one for one in remote.storage.find("artifacts") if one.endswith("safetensors"))
    remote.storage.write(path, b"v" * 100)
    with pytest.raises(CorruptData, match="not those that were pushed"):
        ArtifactStore(tmp_path / "b", Remote.open(url, options)).path(IDENTITY)


def test_two_machines_share_rows(url: str, options: dict[str, object], tmp_path: Path):
    partition = {"experiment": "e, f", "site": "resid_post.0"}
    row = {"step": 1, "tokens": 10, "name": "loss", "value": 0.5}
    for variant, home in (("topk:k=2", "a"), ("topk:k=4", "b")):
        write_rows(
            tmp_path / home,
            "curves",
            {**partition, "variant": variant},
            [row],
            Provenance("model", "abc", sae_id="s", artifact_id="x", seed=0),
        )
    for home in ("a", "b", "a"):
        assert sync_warehouse(tmp_path / home, Remote.open(url, options)).failures == []
    found = [
        sorted(
            file.relative_to(tmp_path / home) for file in (tmp_path / home).rglob("rows.parquet")
        )
        for home in ("a", "b")
    ]
    assert found[0] == found[1]
    assert len(found[0]) == 2


def test_a_bucket_that_is_not_there_is_said(options: dict[str, object], tmp_path: Path):
    folder = build(ArtifactStore(tmp_path))
    remote = Remote.open("s3://there-is-no-such-bucket/x", options)
    assert remote.folders("sae") == []
    with pytest.raises(BadInput, match="no such bucket"):
        remote.push(folder)


def test_a_server_that_is_down_is_transient_and_tells_no_secret(
    options: dict[str, object], tmp_path: Path
):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    quick = {"connect_timeout": 1, "retries": {"max_attempts": 0}}
    settings = {**options, "endpoint_url": f"http://127.0.0.1:{port}", "config_kwargs": quick}
    remote = Remote(Storage("s3://bucket/x", settings, tries=2, sleep=lambda seconds: None))
    with pytest.raises(RemoteUnavailable) as caught:
        remote.folders("sae")
    assert SECRET not in str(caught.value)
    assert "an-access-key" not in str(caught.value)
