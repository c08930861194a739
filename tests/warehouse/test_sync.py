"""Two machines and one store: rows of both reach both, the newest stand, and none are lost."""

import json
import logging
import os
import uuid
from datetime import UTC, datetime
from pathlib import Path

import polars as pl
import pytest

from sae_lib.errors import SaeError
from sae_lib.remote import Remote, RemoteUnavailable
from sae_lib.warehouse.declared import read_declarations
from sae_lib.warehouse.publish import publish
from sae_lib.warehouse.query import query
from sae_lib.warehouse.rows import Measurement
from sae_lib.warehouse.sync import (
    declared_elsewhere,
    keep_synced,
    note_landing,
    shared_ledgers,
    sync_warehouse,
)
from sae_lib.warehouse.write import Provenance, encode_value, partition_path, write_rows

SECOND = 10**9


class Machine:
    """A home with a warehouse, and its connection to the shared store."""

    def __init__(self, home: Path, url: str) -> None:
        self.root, self.remote = home / "warehouse", Remote.open(url)
        self.database = home / "results.duckdb"

    def partition(self, variant: str, experiment: str = "e") -> dict[str, str]:
        return {"experiment": experiment, "site": "resid_post.0", "variant": variant}

    def write(self, variant: str, value: float, *, experiment: str = "e") -> Path:
        row = {"step": 1, "tokens": 10, "name": "loss", "value": value}
        provenance = Provenance("m", "abc", sae_id="s", artifact_id="x", seed=0)
        partition = self.partition(variant, experiment)
        return write_rows(self.root, "curves", partition, [row], provenance)

    def ledger(self, variant: str, experiment: str = "e") -> Path:
        cell = "|".join(encode_value(one) for one in self.partition(variant, experiment).values())
        return self.root / ".landed" / encode_value(cell) / "saes.json"

    def land(
        self, variant: str, value: float, *, experiment: str = "e", shares: bool = True
    ) -> None:
        file = self.write(variant, value, experiment=experiment)
        note_landing(
            self.root,
            self.ledger(variant, experiment),
            {"artifact": f"hash-{value}"},
            [file],
            self.remote if shares else None,
        )

    def sync(self, **options: object) -> dict[str, int]:
        synced = sync_warehouse(self.root, self.remote, **options)  # type: ignore[arg-type]
        assert synced.failures == []
        names = ("push", "pull", "delete here", "delete there")
        return {name: number for name in names if (number := synced.count(name))}  # type: ignore[arg-type]

    def values(self) -> dict[str, float]:
        files = (self.root / "curves").rglob("rows.parquet")
        return {
            variant: value
            for file in files
            for variant, value in pl.read_parquet(file).select("variant", "value").rows()
        }

    def published(self) -> dict[str, float]:
        """The values that are not hidden."""
        publish(self.root, self.database)
        return dict(query(self.database, "select variant, value from curves").rows())

    def landed(self, variant: str) -> str | None:
        file = self.ledger(variant)
        return json.loads(file.read_text())["artifact"] if file.is_file() else None


@pytest.fixture(params=["memory", "file"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "file":
        return f"file://{tmp_path}/shared"
    return f"memory://{uuid.uuid4().hex}/prefix"


@pytest.fixture
def a(tmp_path: Path, url: str) -> Machine:
    return Machine(tmp_path / "a", url)


@pytest.fixture
def b(tmp_path: Path, url: str) -> Machine:
    return Machine(tmp_path / "b", url)


def test_cells_of_two_machines_are_seen_by_both(a: Machine, b: Machine):
    a.land("topk:k=2", 0.2)
    b.land("topk:k=4", 0.4)
    assert a.sync() == {"pull": 2}  # the rows and the ledger of the other; its own were shared
    assert b.sync() == {"pull": 2}
    assert a.values() == b.values() == {"topk:k=2": 0.2, "topk:k=4": 0.4}
    assert a.landed("topk:k=4") == b.landed("topk:k=4") == "hash-0.4"
    assert a.sync() == b.sync() == {}


def test_a_home_from_before_is_shared_as_a_whole(a: Machine, b: Machine):
    for variant in ("x", "y"):
        a.land(variant, 1.0, shares=False)
    assert a.sync(dry_run=True) == {"push": 4}
    assert b.sync() == {}
    assert a.sync(pull=False) == {"push": 4}
    assert b.sync(push=False) == {"pull": 4}
    assert a.values() == b.values()


def test_the_last_to_land_a_cell_stands(a: Machine, b: Machine):
    a.land("x", 1.0)
    b.sync()
    b.land("x", 2.0)
    assert a.sync() == {"pull": 2}
    assert a.values() == {"x": 2.0}
    a.land("x", 3.0)
    b.sync()
    assert b.values() == {"x": 3.0}
    assert len(a.remote.storage.find("warehouse/curves")) == 1  # older ones were taken away


def test_a_clock_that_is_ahead_does_not_win_for_ever(a: Machine, b: Machine):
    a.land("x", 1.0, shares=False)
    for file in (partition_path(a.root, "curves", a.partition("x")), a.ledger("x")):
        ahead = file.stat().st_mtime_ns + 3600 * SECOND
        os.utime(file, ns=(ahead, ahead))
    a.sync()
    b.sync()
    b.land("x", 2.0)
    a.sync()
    assert a.values() == {"x": 2.0}
    b.land("x", 3.0, shares=False)
    b.sync()
    a.sync()
    assert a.values() == {"x": 3.0}


def test_of_two_changes_made_apart_the_later_stands(a: Machine, b: Machine):
    a.land("x", 0.0)
    b.sync()
    a.land("x", 1.0, shares=False)
    b.land("x", 2.0, shares=False)
    file = partition_path(a.root, "curves", a.partition("x"))
    for one in (file, a.ledger("x")):
        later = one.stat().st_mtime_ns + 10 * SECOND
        os.utime(one, ns=(later, later))
    for one in (a, b, a):
        one.sync()
    assert a.values() == b.values() == {"x": 1.0}
    assert b.landed("x") == "hash-1.0"


def test_a_ledger_without_its_rows_does_not_count(a: Machine, b: Machine):
    a.land("x", 1.0)
    b.sync()
    # a killed push: new rows arrived, their ledger did not; then another machine's ledger
    a.land("x", 2.0, shares=False)
    rows = a.ledger("x")
    hidden = rows.read_text()
    rows.unlink()
    a.sync(pull=False)
    rows.write_text(hidden)
    b.land("x", 3.0, shares=False)
    file = partition_path(b.root, "curves", b.partition("x"))
    os.utime(file, ns=(1, 1))
    b.sync()
    assert b.values() == {"x": 2.0}
    c = Machine(a.root.parent.parent / "c", a.remote.storage.url)
    c.sync()
    assert c.values() == {"x": 2.0}
    assert c.landed("x") is None  # so that the next run lands the cell again
    c.land("x", 4.0)
    a.sync()
    assert a.values() == {"x": 4.0}
    assert a.landed("x") == "hash-4.0"


def test_rows_that_were_lost_here_come_back(a: Machine, b: Machine):
    a.land("x", 1.0)
    b.sync()
    partition_path(b.root, "curves", b.partition("x")).unlink()
    assert b.sync() == {"pull": 1}
    assert b.values() == {"x": 1.0}


def test_deletions_reach_everybody_when_that_is_asked(a: Machine, b: Machine):
    a.land("x", 1.0)
    a.land("y", 2.0)
    a.sync()
    b.sync()
    partition_path(a.root, "curves", a.partition("x")).unlink()
    a.ledger("x").unlink()
    assert a.sync(delete=True) == {"delete there": 2}
    assert b.sync() == {"delete here": 2}
    assert a.values() == b.values() == {"y": 2.0}
    assert a.sync() == b.sync() == {}
    b.land("x", 3.0)  # and the cell may be landed again
    a.sync()
    assert a.values() == {"x": 3.0, "y": 2.0}


def test_history_that_no_rows_replaced_is_no_more(a: Machine, b: Machine):
    row = Measurement("fvu", 1.0, "d")

    def write(machine: Machine, rows: list[Measurement], model: str) -> None:
        provenance = Provenance("m", model, sae_id="s", artifact_id="x", seed=0)
        write_rows(machine.root, "metrics", machine.partition("x"), rows, provenance)

    write(a, [row], "model-1")
    a.sync()
    b.sync()
    write(a, [row], "model-2")
    a.sync()
    b.sync()
    folder = partition_path(b.root, "metrics", b.partition("x"), "model-1").parent
    assert len(list(folder.glob("rows*"))) == 2  # both models' rows
    write(a, [], "model-3")
    a.sync()
    b.sync()
    assert [file.name for file in folder.glob("rows*")] == ["rows-model-3.parquet"]


def test_one_experiment_can_be_brought_alone(a: Machine, b: Machine):
    a.land("x", 1.0)
    a.land("x", 2.0, experiment="e2")
    assert b.sync(experiment="e2") == {"pull": 2}
    assert [one["artifact"] for one in shared_ledgers(b.remote, "e2")] == ["hash-2.0"]
    assert shared_ledgers(b.remote, "e3") == []
    assert b.sync() == {"pull": 2}


def test_rows_that_were_damaged_on_the_way_are_left_out(a: Machine, b: Machine):
    a.land("x", 1.0)
    a.land("y", 2.0)
    name = next(one for one in a.remote.storage.find("warehouse/curves") if "variant=x" in one)
    size = a.remote.storage.find(name)[name]
    a.remote.storage.write(name, b"0" * size)
    synced = sync_warehouse(b.root, b.remote)
    assert len(synced.failures) == 1
    assert "not those that were pushed" in synced.failures[0]
    assert b.values() == {"y": 2.0}
    assert b.landed("x") is None
    a.remote.storage.write(name, b"0" * (size // 2))  # half a file is not a version
    assert sync_warehouse(b.root, b.remote).failures == []
    a.sync()
    b.sync()
    assert b.values() == {"x": 1.0, "y": 2.0}


def test_names_that_lead_elsewhere_are_ignored(a: Machine, b: Machine):
    version = f"{1:020}-{'0' * 64}-1.parquet"
    for path in ("../../evil", "curves/../../rows", "evil/rows.parquet", "curves/.x/evil.parquet"):
        a.remote.storage.fs.pipe_file(
            f"{a.remote.storage._root}/warehouse/{path.replace('..', '%2E%2E')}/{version}", b"0"
        )
    assert b.sync() == {}
    assert not list(b.root.rglob("evil*"))


def test_another_machine_is_not_hidden_by_what_is_declared_here(a: Machine, b: Machine):
    a.land("x", 1.0, experiment="ours")
    b.land("y", 2.0, experiment="theirs")
    publish(a.root, a.database, [("ours", "resid_post.0", "x"), ("ours", "", "")])
    publish(b.root, b.database, [("theirs", "resid_post.0", "y"), ("theirs", "", "")])
    for one in (a, b, a):
        one.sync()
    assert a.published() == b.published() == {"x": 1.0, "y": 2.0}
    cells = [("ours", "resid_post.0", "x"), ("ours", "", "")]
    elsewhere = declared_elsewhere(a.root, {"ours"})
    assert elsewhere == [("theirs", "", ""), ("theirs", "resid_post.0", "y")]
    publish(a.root, a.database, cells + elsewhere)
    assert query(a.database, "select * from curves").height == 2
    # what the other machine no longer declares is hidden here as well
    publish(b.root, b.database, [("theirs", "resid_post.0", "z")])
    b.sync()
    a.sync()
    assert a.published() == {"x": 1.0}
    assert read_declarations(a.root).cells["theirs"] == [("resid_post.0", "z")]


def test_another_store_is_another_state(a: Machine, tmp_path: Path):
    a.land("x", 1.0)
    a.sync()
    a.remote = Remote.open(f"memory://{uuid.uuid4().hex}/x")
    assert a.sync(delete=True) == {"push": 2}


def test_a_landing_goes_on_when_the_store_is_down(
    a: Machine, b: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    def down(*args: object, **kwargs: object) -> None:
        raise RemoteUnavailable("Listing", "no route.")

    with monkeypatch.context() as patch:
        patch.setattr(a.remote.storage, "find", down)
        a.land("x", 1.0)
        a.land("y", 2.0)
        assert caplog.text.count("`sae push` shares it later") == 1
        keep_synced(a.root, a.remote)
        assert "Rows are not exchanged" not in caplog.text  # it was asked a moment ago
        keep_synced(a.root, Remote(a.remote.storage), at_once=True)
        assert "Rows are not exchanged" in caplog.text
        with pytest.raises(SaeError):
            a.sync()
    assert a.landed("x") == "hash-1.0"
    assert a.sync() == {"push": 4}
    b.sync()
    assert b.values() == {"x": 1.0, "y": 2.0}


def test_asking_often_is_one_synchronisation_a_minute(
    a: Machine, b: Machine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    now = [0.0]
    a.remote.clock = lambda: now[0]
    b.land("x", 1.0)
    with caplog.at_level(logging.WARNING):
        keep_synced(a.root, a.remote)
        assert a.values() == {"x": 1.0}
        b.land("x", 2.0)
        keep_synced(a.root, a.remote)
        assert a.values() == {"x": 1.0}
        keep_synced(a.root, a.remote, at_once=True)
        assert a.values() == {"x": 2.0}
        b.land("x", 3.0)
        now[0] += 61
        keep_synced(a.root, a.remote)
        assert a.values() == {"x": 3.0}
        keep_synced(a.root, None)
    assert caplog.text == ""


def test_a_landing_is_dated_by_the_clock_of_its_files(a: Machine):
    before = datetime.now(UTC).timestamp()
    a.land("x", 1.0)
    name = next(iter(a.remote.storage.find("warehouse/curves")))
    stamp = int(name.rpartition("/")[2].partition("-")[0]) / SECOND
    assert before - 1 < stamp < before + 60
