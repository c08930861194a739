"""Training a job on several devices of this machine, as seen by the process that asks for it."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from sae_lib.errors import BadInput, SaeError
from sae_lib.training.distributed._family import LOST_RANK, SILENT_RANK, USERS_ERROR
from sae_lib.training.distributed.job import Job, OnStep, check_job
from sae_lib.training.loop import StepReport, fit
from sae_lib.training.trainee import Fitted

AGENT = "sae_lib.training.distributed.agent"

TAIL_LINES = 12
"""Last lines of what a failed process said that its error repeats."""

SECONDS_TO_END = 10.0
"""How long processes that were asked to end may take before they are killed."""


class DeviceFailure(SaeError):
    """A process that trained an SAE together with others died. What it had stored is whole."""

    is_transient = True


def fit_on_devices(job: Job, *, on_step: OnStep = lambda report: None) -> list[Fitted]:
    """Train every SAE of ``job`` on its devices; results, on the CPU, in the given order.

    The processes go on from the tasks' checkpoints, if there are any, and leave their results
    there. Raises `BadInput` for what cannot be split, before anything is started;
    `DeviceFailure`, naming the rank, where one of them died, at once, or stopped answering, up to
    half a minute after ``timeout_seconds``: run again and the training goes on from the last
    checkpoint, with the same result as an undisturbed one.
    """
    check_job(job)
    batches = job.source.open("cpu")
    with TemporaryDirectory(prefix="sae-job-") as name:
        folder = Path(name)
        (folder / "job.json").write_text(job.model_dump_json(), "utf-8")
        with _agent(folder) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith(b"{"):
                    on_step(StepReport(**json.loads(line)))
            status = process.wait()
        if status != 0:
            raise _failure(folder, job, status)
    return fit([task.build() for task in job.tasks], batches)


@contextmanager
def _agent(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The agent of a job, which does not outlive the block."""
    # the processes import what this one would, whatever it has done to its path
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in sys.path)
    with (folder / "agent.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", AGENT, str(folder), str(os.getpid())],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, "PYTHONPATH": path, "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "5"},
            start_new_session=True,  # Ctrl-C is for this process, which then ends the others
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(SECONDS_TO_END)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            if process.stdout is not None:
                process.stdout.close()


def _failure(folder: Path, job: Job, status: int) -> SaeError:
    """What went wrong, from what the processes left behind."""
    for path in sorted(folder.glob("error-*.txt")):
        return BadInput(path.read_text("utf-8"))
    start = f"Training on {job.devices.count} devices stopped: "
    end = "\nThe last checkpoints are whole; run again and the training goes on from there."
    found = folder / "failures.json"
    if not found.is_file():
        last = _tail(folder / "agent.log")
        return DeviceFailure(f"{start}the process that watches them {_ended(-status)}.{last}{end}")
    statuses: dict[int, int] = {
        one["rank"]: one["status"] for one in json.loads(found.read_text("utf-8"))
    }
    waited = [rank for rank, status in statuses.items() if status == SILENT_RANK]
    if waited:
        others = set(range(job.devices.count)) - set(waited)
        first = waited[0]
        what = (
            f"rank {_listed(others) or 'another'} did not answer rank {_listed(waited)} within "
            f"{job.devices.timeout_seconds:g} s (timeout_seconds)"
        )
    else:
        # those that stopped because another had, or were told to, are not the cause
        followed = {LOST_RANK, USERS_ERROR, -signal.SIGTERM}
        causes = [rank for rank, status in statuses.items() if status not in followed]
        first = (causes or [*statuses])[0]
        what = f"rank {first} {_ended(-statuses[first])}"
    logs = sorted((folder / "logs").rglob(f"{first}/stderr.log"))
    last = _tail(logs[-1]) if logs else ""
    return DeviceFailure(f"{start}{what}; the others were stopped.{last}{end}")


def _listed(ranks: Iterable[int]) -> str:
    return ", ".join(map(str, sorted(ranks)))


def _ended(number: int) -> str:
    """How a process ended, given the signal that killed it or minus its exit status."""
    if number <= 0:
        return f"failed with exit status {-number}"
    name = signal.Signals(number).name
    hint = ", as the system does when memory runs out" if number == signal.SIGKILL else ""
    return f"was killed by {name}{hint}"


def _tail(path: Path) -> str:
    lines = path.read_text("utf-8", errors="replace").strip().splitlines()[-TAIL_LINES:]
    return "".join(f"\n    {line}" for line in lines)
