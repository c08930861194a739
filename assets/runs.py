"""What the orchestrator did, as rows: which runs failed, on which cells, and why."""

import os
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import dagster as dg
from dagster import DagsterEventType, DagsterRunStatus, RunsFilter
from dagster._core.storage.dagster_run import RunRecord
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
    AUTOMATION_CONDITION_TAG,
    BACKFILL_ID_TAG,
    PARENT_RUN_ID_TAG,
    PARTITION_NAME_TAG,
)

from assets.store import Store
from assets.temporary import process_exists
from sae_lib.config import digest

MOST_RUNS = 2000
"""Newest runs that are looked at; the event log of the orchestrator has all of them."""

BY_COMMAND = "sae/started_by"
"""Tag of runs that the command line started."""

LONGEST_CAUSE = 500

ENDED = (DagsterRunStatus.SUCCESS, DagsterRunStatus.FAILURE, DagsterRunStatus.CANCELED)


def run_rows(instance: dg.DagsterInstance) -> list[dict[str, Any]]:
    """One row per run, newest first."""
    return [_row(instance, record) for record in instance.get_run_records(limit=MOST_RUNS)]


def land_runs(store: Store, instance: dg.DagsterInstance) -> None:
    """Put the runs into the warehouse; nothing is written when nothing happened since."""
    from sae_lib.artifacts import write_atomically
    from sae_lib.warehouse.write import Provenance, write_rows

    records = instance.get_run_records(limit=MOST_RUNS)
    seen = digest({"runs": [[r.dagster_run.run_id, r.dagster_run.status.value] for r in records]})
    ledger = store.warehouse / ".landed" / "about" / "runs.txt"
    if ledger.is_file() and ledger.read_text("utf-8") == seen:
        return
    rows = [_row(instance, record) for record in records]
    write_rows(store.warehouse, "runs", {}, rows, Provenance("", ""))
    write_atomically(ledger, seen)


def _row(instance: dg.DagsterInstance, record: RunRecord) -> dict[str, Any]:
    run = record.dagster_run
    keys = run.asset_selection or frozenset()
    owners = {key.path[0] for key in keys if key.path[0] not in ("models", "results", "world")}
    return {
        "run_id": run.run_id,
        "experiment": owners.pop() if len(owners) == 1 else "",
        "stages": sorted({key.path[-1] for key in keys}) or [run.job_name],
        "partitions": _partitions(run.tags),
        "status": run.status.value,
        "cause": cause_of(instance, run.run_id) if run.status is DagsterRunStatus.FAILURE else None,
        "started_by": _started_by(run.tags),
        "retry_of": run.tags.get(PARENT_RUN_ID_TAG),
        "queued_at": _naive(record.create_timestamp),
        "started_at": _moment(record.start_time),
        "ended_at": _moment(record.end_time),
        "seconds": _seconds(record),
    }


def cause_of(instance: dg.DagsterInstance, run_id: str) -> str:
    """Why a run failed, in one line: what the first step that failed said, or the run itself."""
    kinds = {DagsterEventType.STEP_FAILURE, DagsterEventType.RUN_FAILURE}
    for entry in instance.all_logs(run_id, of_type=kinds):
        event = entry.dagster_event
        if event is None:
            continue
        if event.event_type is DagsterEventType.STEP_FAILURE:
            data = event.step_failure_data
            if data.user_failure_data and data.user_failure_data.description:
                return _line(data.user_failure_data.description)
            if data.error:
                error = data.error.cause or data.error
                return _line(error.message)
        elif event.message:
            return _line(event.message)
    return "it says nothing"


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_CAUSE else line[: LONGEST_CAUSE - 1] + "…"


def _partitions(tags: Any) -> str | None:
    first, last = (
        tags.get(ASSET_PARTITION_RANGE_START_TAG),
        tags.get(ASSET_PARTITION_RANGE_END_TAG),
    )
    if first and last:
        return first if first == last else f"{first} ... {last}"
    return tags.get(PARTITION_NAME_TAG)


def _started_by(tags: Any) -> str:
    if BY_COMMAND in tags:
        return tags[BY_COMMAND]
    if AUTOMATION_CONDITION_TAG in tags:
        return "automation"
    return "backfill" if BACKFILL_ID_TAG in tags else "the UI"


def _naive(moment: datetime) -> datetime:
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment


def _moment(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC).replace(tzinfo=None)


def _seconds(record: RunRecord) -> float | None:
    if record.start_time is None or record.end_time is None:
        return None
    return round(record.end_time - record.start_time, 3)


def fail_dead_runs(instance: dg.DagsterInstance) -> list[str]:
    """Mark runs whose process is gone as failed; their ids.

    A process that was killed cannot say so. The daemon looks for such runs by itself where it
    runs (`sae_workflows.launcher`); without one, whoever comes next does.
    """
    dead = []
    for record in instance.get_run_records(RunsFilter(statuses=[DagsterRunStatus.STARTED])):
        run = record.dagster_run
        if process_is_gone(instance, run.run_id):
            instance.report_run_failed(run, "the process that ran it is gone (killed, or crashed)")
            dead.append(run.run_id)
    return dead


def process_is_gone(instance: dg.DagsterInstance, run_id: str) -> bool:
    """Whether the process that ran ``run_id`` on this machine has ended without saying so.

    False where the run never said which process it is, or ran on another machine.
    """
    worker = worker_of(instance, run_id)
    return worker is not None and not _is_alive(*worker)


def worker_of(instance: dg.DagsterInstance, run_id: str) -> tuple[int, float] | None:
    """The process that runs ``run_id``, and when it said so; None before it did."""
    worker = None
    for entry in instance.all_logs(run_id, of_type=DagsterEventType.ENGINE_EVENT):
        pid = _pid_in(entry.message or "")
        if pid is not None:
            worker = (pid, entry.timestamp)
    return worker


def _pid_in(message: str) -> int | None:
    """The process that an event of the engine names as the one that does the work."""
    if "(pid: " not in message or not message.startswith(("Executing steps", "Started process")):
        # the default message has the job's name before it
        head = message.split(" - ")[-1]
        if "(pid: " not in head or not head.startswith(("Executing steps", "Started process")):
            return None
        message = head
    return int(message.split("(pid: ")[1].split(")")[0])


def _is_alive(pid: int, since: float) -> bool:
    """Whether ``pid`` runs, and has run from before ``since``: numbers of processes come again."""
    if not process_exists(pid):
        return False
    status = Path(f"/proc/{pid}/stat")
    try:
        fields = status.read_text().rpartition(")")[2].split()
        uptime = float(Path("/proc/uptime").read_text().split()[0])
    except (OSError, IndexError, ValueError):
        return True  # not Linux, or it ended just now: the next look will see
    if fields[0] == "Z":
        return False
    began = datetime.now().timestamp() - uptime + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return began <= since + 2.0


def failures(
    instance: dg.DagsterInstance, experiment: str, stages: Iterable[str]
) -> dict[str, dict[str, Any]]:
    """The newest run of each stage of ``experiment``, where that run failed."""
    wanted = {dg.AssetKey([experiment, stage]) for stage in stages}
    newest: dict[str, dict[str, Any]] = {}
    for record in instance.get_run_records(limit=MOST_RUNS):
        for key in wanted & set(record.dagster_run.asset_selection or ()):
            if key.path[-1] not in newest and record.dagster_run.status in ENDED:
                newest[key.path[-1]] = {
                    "status": record.dagster_run.status,
                    "run_id": record.dagster_run.run_id,
                    "tags": record.dagster_run.tags,
                }
    return {
        stage: {**one, "cause": cause_of(instance, one["run_id"])}
        for stage, one in newest.items()
        if one["status"] is DagsterRunStatus.FAILURE
    }


def covers(tags: Any, keys: Sequence[str], key: str) -> bool:
    """Whether a run with these tags was to build the partition ``key``, one of ``keys``."""
    first, last = (
        tags.get(ASSET_PARTITION_RANGE_START_TAG),
        tags.get(ASSET_PARTITION_RANGE_END_TAG),
    )
    if PARTITION_NAME_TAG in tags:
        return tags[PARTITION_NAME_TAG] == key
    if first not in keys or last not in keys:
        return True
    return keys.index(first) <= keys.index(key) <= keys.index(last)
