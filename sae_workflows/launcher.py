"""Runs as processes on this machine, like the orchestrator's own, whose death is noticed.

The orchestrator's launcher cannot say whether the process of a run is alive, so a run that was
killed (by hand, or for its memory) would stay "started" for ever: its backfill would never end,
and its slot in a pool never be free. Named in ``dagster.yaml``, this one lets the daemon see it.
"""

from dagster import DagsterInstance, DagsterRun
from dagster._core.launcher import CheckRunHealthResult, DefaultRunLauncher, WorkerStatus

from assets.runs import process_is_gone


class WatchedRunLauncher(DefaultRunLauncher):
    """Launches runs through the code server and checks on their processes."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        return True

    def check_run_worker_health(self, run: DagsterRun) -> CheckRunHealthResult:
        instance: DagsterInstance = self._instance
        if process_is_gone(instance, run.run_id):
            return CheckRunHealthResult(
                WorkerStatus.FAILED,
                "its process is gone: killed, for instance because memory ran out, or crashed",
            )
        return CheckRunHealthResult(WorkerStatus.RUNNING)
