"""Runs whose steps are not done by this process but by the executor the environment names."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import dagster as dg
from dagster._core.code_pointer import ModuleCodePointer
from dagster._core.definitions.assets.job.asset_job import IMPLICIT_ASSET_JOB_NAME
from dagster._core.definitions.reconstruct import ReconstructableJob, ReconstructableRepository
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from assets.runs import BY_COMMAND, cause_of
from sae_lib.errors import SaeError

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class StepFailed(SaeError):
    """A step that ran elsewhere failed; its run in the UI has the whole story."""


def whole_graph() -> ReconstructableJob:
    """The job of everything that ``SAE_HOME`` holds, which each step's process makes again."""
    repository = ReconstructableRepository(
        ModuleCodePointer("sae_workflows.definitions", "defs", None),
        executable_path=sys.executable,
        entry_point=[sys.executable, "-m", "dagster"],  # not the first `dagster` on some path
    )
    return repository.get_reconstructable_job(IMPLICIT_ASSET_JOB_NAME)


def execute_apart(
    home: Path,
    device: str,
    instance: dg.DagsterInstance,
    keys: Sequence[dg.AssetKey],
    part: tuple[str, str] | None,
) -> None:
    """One run of ``keys``, or of one range of their partitions, by the executor of the graph."""
    os.environ.update(SAE_HOME=str(home), SAE_DEVICE=device)
    tags = {BY_COMMAND: "sae run"}
    if part is not None:
        tags |= {ASSET_PARTITION_RANGE_START_TAG: part[0], ASSET_PARTITION_RANGE_END_TAG: part[1]}
    with dg.execute_job(
        whole_graph(),
        instance=instance,
        asset_selection=list(keys),
        tags=tags,
        run_config=QUIET,
        raise_on_error=False,
    ) as result:
        if not result.success:
            raise StepFailed(f"{cause_of(instance, result.run_id)} (run {result.run_id[:8]})")
