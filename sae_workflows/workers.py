"""Doing the runs of a command: in this process, or shared out among several.

Workers are started once and import the compute libraries once; each takes a part of a stage at a
time, runs it as a run of its own, and divides the threads of the machine with the others.
"""

import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from assets.conditions import INTERRUPTS
from assets.reports import DATABASE
from assets.runs import BY_COMMAND, fail_dead_runs
from assets.study import Study
from sae_lib.errors import BadInput, SaeError
from sae_workflows.apart import execute_apart
from sae_workflows.definitions import build
from sae_workflows.executors import executor_name
from sae_workflows.home import dagster_home, outline_of, outlines, study_at

Range = tuple[str, str]
Execute = Callable[[Sequence[dg.AssetKey], Sequence[Range]], None]
"""Runs some assets: on the whole, or once for each range of partitions."""

Found = TypeVar("Found", bound=BaseException)

QUIET = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}


class WorkerDied(SaeError):
    """A worker process ended without an answer."""

    is_transient = True


class Order(NamedTuple):
    """What a worker is told: one run."""

    file: str
    home: str
    device: str
    retrain: bool
    keys: list[list[str]]
    part: Range | None


@contextmanager
def workplace(
    study: Study, home: Path, device: str, instance: dg.DagsterInstance, workers: int
) -> Iterator[Execute]:
    """How runs are done while the block lasts."""
    file = None if executor_name() == "in_process" else study.file  # of what is done elsewhere
    is_anew = study.automation.saes == "retrain"
    if file is not None and is_anew and study_at(home, file).automation.saes != "retrain":
        raise BadInput(
            "--retrain is done by this process: leave the variable out.",
            key="SAE_EXECUTOR",
            value=executor_name(),
        )
    job = job_of(study, home, device)

    def here(keys: Sequence[dg.AssetKey], ranges: Sequence[Range]) -> None:
        for part in ranges or [None]:
            if file is not None and DATABASE not in keys:  # whose file is wanted here
                execute_apart(home, device, instance, keys, part)
            else:
                execute(job, instance, keys, part)

    if workers <= 1 or study.file is None:
        yield here
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["torch", "transformers", "sae_workflows.workers"])
    threads = max(1, (os.cpu_count() or 1) // workers)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(threads,))
    try:

        def shared_out(keys: Sequence[dg.AssetKey], ranges: Sequence[Range]) -> None:
            if len(ranges) < 2:  # nothing to share; here all threads work on it
                here(keys, ranges)
                return
            retrain = study.automation.saes == "retrain"
            names = [list(key.path) for key in keys]
            orders = [
                Order(str(study.file), str(home), device, retrain, names, part) for part in ranges
            ]
            _all_done([pool.submit(obey, order) for order in orders], instance)

        yield shared_out
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _begin(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)


def _all_done(futures: Sequence[Future[None]], instance: dg.DagsterInstance) -> None:
    """Wait for every part; one that fails does not keep the others from being done."""
    waiting, errors = set(futures), []
    while waiting:
        done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
        errors += [error for one in done if (error := one.exception()) is not None]
    if not errors:
        return
    if any(isinstance(error, BrokenProcessPool) for error in errors):
        fail_dead_runs(instance)
        raise WorkerDied(
            "a worker process was killed, perhaps because memory ran out. What was finished is "
            "kept; run the same command to go on, with fewer --workers if memory is short."
        )
    raise errors[0]


_at_hand: dict[tuple[str, ...], Any] = {}
"""What this worker has loaded: the job of the experiment, and the orchestrator's instance."""


def obey(order: Order) -> None:
    """Do one run in this worker."""
    home = Path(order.home)
    keys = [dg.AssetKey(path) for path in order.keys]
    if executor_name() != "in_process":
        with dg.DagsterInstance.from_config(str(dagster_home(home))) as instance:
            execute_apart(home, order.device, instance, keys, order.part)
        return
    place = (order.file, order.home, order.device, str(order.retrain))
    if place not in _at_hand:
        study = study_at(home, Path(order.file))
        study = study.anew if order.retrain else study
        instance = dg.DagsterInstance.from_config(str(dagster_home(home)))
        _at_hand[place] = (job_of(study, home, order.device), instance)
    job, instance = _at_hand[place]
    execute(job, instance, keys, order.part)


def job_of(study: Study, home: Path, device: str) -> dg.JobDefinition:
    """The job of all assets of ``home``, ``study`` among them."""
    known, _ = outlines(home)
    others = [one for one in known if one.name != study.name]
    experiments = [*others, outline_of(study)]
    definitions = build(experiments, home, device=device, studies={study.name: study})
    return definitions.resolve_implicit_global_asset_job_def()


def execute(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    keys: Sequence[dg.AssetKey],
    part: Range | None,
) -> None:
    """One run in this process; what a step raises comes out as the step raised it."""
    tags = {BY_COMMAND: "sae run"}
    if part is not None:
        tags |= {ASSET_PARTITION_RANGE_START_TAG: part[0], ASSET_PARTITION_RANGE_END_TAG: part[1]}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.BetaWarning)
            job.execute_in_process(
                instance=instance,
                asset_selection=list(keys),
                tags=tags,
                run_config=QUIET,
                raise_on_error=True,
            )
    except dg.DagsterExecutionInterruptedError as error:  # Ctrl-C between two steps
        raise KeyboardInterrupt from error
    except Exception as error:  # the orchestrator wraps what a step raises, in several ways
        if _in_chain(error, INTERRUPTS) is not None:
            raise KeyboardInterrupt from error
        cause = users_error(error)
        if cause is None:
            raise
        raise cause from error


def users_error(error: BaseException | None) -> SaeError | None:
    """The `SaeError` at the bottom of what the orchestrator raised, if there is one."""
    return _in_chain(error, SaeError)


def _in_chain(
    error: BaseException | None, kinds: type[Found] | tuple[type[Found], ...]
) -> Found | None:
    """The first error of these kinds among ``error`` and what it was raised from."""
    seen: set[int] = set()  # the chain may run in a circle
    while error is not None and id(error) not in seen:
        if isinstance(error, kinds):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
