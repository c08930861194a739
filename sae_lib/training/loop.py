"""The training loop: many sparse coders step on the same batch, each as if it were alone.

Order within a step, for every coder: loss, gradients, projection, clipping, optimiser,
renormalisation, counters. A batch is fetched once for all of them, while the step before is
computed.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from sae_lib.errors import BadInput
from sae_lib.models.places import Place
from sae_lib.training.objectives.base import Batch, SharedBatch
from sae_lib.training.prefetch import BatchSource, prefetched
from sae_lib.training.ranks import ALONE
from sae_lib.training.resample import check_can_resample
from sae_lib.training.trainee import Fitted, Progress, Trainee

INITIAL_ROWS = 32_768
"""Rows that data-dependent first values are computed from (Gao et al.: 32,768)."""


class StepReport(NamedTuple):
    """What the loop tells whoever watches it."""

    name: str
    """The trainee."""

    step: int
    """Steps it has taken."""

    steps: int
    """Steps it will take."""

    numbers: dict[str, float]
    """Loss terms, fvu, l0, dead_share, grad_norm, lr, tokens_per_second, by name."""

    problem: str | None = None
    """Why it stopped before its time; its last good weights are kept."""


class LoadedBatch(NamedTuple):
    """A batch on the device of the coders that read it."""

    x: dict[str, Tensor]
    rows: Tensor


def fit(
    trainees: Sequence[Trainee],
    batches: BatchSource,
    *,
    on_step: Callable[[StepReport], None] = lambda report: None,
    clock: Callable[[], float] = time.monotonic,
) -> list[Fitted]:
    """Train every coder in place, in one pass over ``batches``; results in the given order.

    A trainee whose folder holds a checkpoint goes on from there, bit for bit as if it had never
    stopped. One whose loss or gradient is not finite stops with status "diverged" and its last
    good weights; the others go on. ``on_step`` is called at every point of the curves, and with the
    reason when one stops so. Raises
    `BadInput` for two trainees of one name, a batch of the wrong size or site, activations that
    are not finite, and a checkpoint of another training.
    """
    names = [trainee.name for trainee in trainees]
    if len(set(names)) != len(names):
        raise BadInput("every trainee needs a name of its own.", value=names)
    all_progress = [Progress(trainee) for trainee in trainees]
    unstarted = [progress for progress in all_progress if not progress.restore()]
    initialise([progress for progress in unstarted if progress.trainee.is_fresh], batches)
    running = [progress for progress in all_progress if progress.is_running]
    check_devices(running)
    check_resampling(running)
    started = clock()
    for progress in running:
        progress.saved_at = started
    if running:
        first = min(progress.step for progress in running)
        last = max(progress.train.steps for progress in running)
        uses_model = any(one.trainee.objective.cfg.needs_model for one in running)
        with prefetched(batches, first, last, is_model_in_use=uses_model) as stream:
            previous = clock()
            for i, batch in stream:
                due = [one for one in running if one.is_running and one.step == i]
                problems = take_step(due, batch, i)
                resample(due, stream.look)
                now = clock()
                for progress in due:
                    progress.seconds += now - previous
                    report(progress, now, on_step, problems.get(progress.trainee.name))
                previous = now
                if not any(progress.is_running for progress in running):
                    break
    return [progress.finish() for progress in all_progress]


def check_devices(running: Sequence[Progress]) -> None:
    """Refuse to train on one device, unasked, what is to be trained on several."""
    for progress in running:
        count = progress.train.devices.count
        if count > 1 and progress.trainee.ranks is ALONE:
            raise BadInput(
                f"{progress.trainee.name} is to be trained on {count} devices, and this is one "
                "process; `distributed.launch.fit_on_devices` starts them.",
                key="devices",
                value=count,
            )


def check_resampling(running: Sequence[Progress]) -> None:
    """Refuse to resample coders of which nobody has said how."""
    for progress in running:
        if progress.train.resample is not None:
            for coder in progress.coders.values():
                check_can_resample(coder, progress.trainee.name)


def initialise(fresh: Sequence[Progress], batches: BatchSource) -> None:
    """Give coders that start from nothing their data-dependent first values."""
    if not fresh:
        return
    num_batches = math.ceil(INITIAL_ROWS / fresh[0].train.batch_tokens)
    drawn = [check(batches.batch(i), fresh, i) for i in range(num_batches)]
    for i, batch in enumerate(drawn):
        check_finite(batch, fresh, i)
    for progress in fresh:
        info, objective = progress.info(), progress.trainee.objective
        steps = [objective.step(on_device(batch, progress.device), info) for batch in drawn]
        sample = torch.cat([step.x for step in steps])[:INITIAL_ROWS]
        is_map = any(step.target is not step.x for step in steps)
        target = torch.cat([step.target for step in steps])[:INITIAL_ROWS] if is_map else sample
        for coder in progress.coders.values():
            coder.initialise_(sample)
            coder.initialise_target_(target)


def take_step(due: Sequence[Progress], batch: Batch, i: int) -> dict[str, str]:
    """One step of every coder that is due; for those that had to give up, by name, the reason."""
    check(batch, due, i)
    devices = {progress.device for progress in due}
    copies = {device: SharedBatch(on_device(batch, device)) for device in devices}
    flags = []
    for progress in due:
        with counted_cpu(progress):
            flags.append(progress.compute_gradients(copies[progress.device]))
    finite = torch.stack([flag.cpu() for flag in flags]).tolist() if flags else []
    problems: dict[str, str] = {}
    for progress, is_finite in zip(due, finite, strict=True):
        if is_finite:
            with counted_cpu(progress):
                progress.update()
        else:
            check_finite(batch, [progress], i)
            problems[progress.trainee.name] = what_failed(progress)
            progress.give_up()
    return problems


def resample(due: Sequence[Progress], look: Callable[[int], Batch]) -> None:
    """Let dead latents start anew where that is due; ``look`` fetches any batch.

    What is looked at and drawn follows from seeds and the step alone, so a training that is taken
    up again draws the same. A batch is fetched once for all.
    """
    waiting = [one for one in due if one.is_running and one.begin_resampling()]
    for i in sorted({i for progress in waiting for i in progress.sample_steps}):
        batch = look(i)
        for progress in waiting:
            if i in progress.sample_steps:
                check(batch, [progress], i)
                with counted_cpu(progress):
                    progress.offer(on_device(batch, progress.device))
    for progress in waiting:
        progress.end_resampling()


@contextmanager
def counted_cpu(progress: Progress) -> Iterator[None]:
    """Add the CPU time of the process inside, of all its threads, to a coder's account."""
    began = time.process_time()
    yield
    progress.cpu_seconds += time.process_time() - began


def what_failed(progress: Progress) -> str:
    """Which gradients of the step just computed are not finite, in words."""
    named = [
        name
        for name, parameter in progress.parameters.items()
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all())
    ]
    what = f"the gradient of {', '.join(named)}" if named else "the loss or the gradient norm"
    return (
        f"in step {progress.step + 1} {what} was not finite; "
        f"the weights after step {progress.step} are kept"
    )


def report(
    progress: Progress,
    now: float,
    on_step: Callable[[StepReport], None],
    problem: str | None = None,
) -> None:
    """After a step: curves, whoever watches, and the checkpoint when it is due."""
    if problem is not None:
        name, step, steps = progress.trainee.name, progress.step, progress.train.steps
        on_step(StepReport(name, step, steps, {}, problem))
    if progress.status != "diverged" and progress.is_curve_point:
        numbers = progress.read_numbers(now)
        on_step(StepReport(progress.trainee.name, progress.step, progress.train.steps, numbers))
    is_due = now - progress.saved_at >= progress.train.checkpoint_every_seconds
    if is_due or not progress.is_running:
        progress.save()
        progress.saved_at = now


def check(batch: Batch, due: Sequence[Progress], i: int) -> Batch:
    """``batch``, if it holds what the trainees were promised."""
    for progress in due:
        for site in progress.sites:
            if site not in batch.x:
                raise BadInput(
                    f"the batches have no such site; they have {', '.join(sorted(batch.x))}.",
                    key="site",
                    value=site,
                )
        place, found = Place.parse(progress.trainee.site), batch.x[progress.sites[0]].shape
        widths = [batch.x[site].shape[1] for site in place.reads]
        is_whole = progress.trainee.objective.cfg.reads == "contexts"
        rows = found[0] if is_whole and found[0] else progress.train.batch_tokens
        # a coder that reads several sites reads them side by side, or one at a time
        is_fit = progress.coder.d_in in (sum(widths), *(widths if len(set(widths)) == 1 else ()))
        if found[0] != rows or not is_fit:
            raise BadInput(
                f"batch {i} at {progress.trainee.site} has shape {(found[0], sum(widths))}; "
                f"{progress.trainee.name} expects {(rows, progress.coder.d_in)}, "
                "batch_tokens by d_in."
            )
        if place.is_map:
            written = sum(batch.x[site].shape[1] for site in place.writes)
            if written != progress.coder.d_out:
                raise BadInput(
                    f"{progress.trainee.name} reconstructs {progress.coder.d_out} numbers; "
                    f"{'+'.join(place.writes)} has {written}.",
                    key="d_out",
                    value=progress.coder.d_out,
                )
    return batch


def check_finite(batch: Batch, due: Sequence[Progress], i: int) -> None:
    """Tell a broken set of activations from a training that diverged."""
    for site in sorted({site for progress in due for site in progress.sites}):
        if not bool(torch.isfinite(batch.x[site]).all()):
            raise BadInput(
                f"batch {i} holds activations that are not finite; harvest the site again.",
                key=site,
            )


def on_device(batch: Batch, device: torch.device) -> Batch:
    """``batch`` on ``device``; the batch itself where it is there already."""
    if all(x.device == device for x in batch.x.values()):
        return batch
    x = {site: x.to(device, non_blocking=True) for site, x in batch.x.items()}
    return LoadedBatch(x, batch.rows)
