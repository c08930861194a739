"""When the graph brings results up to date by itself, and when it tries a failed step again."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from errno import EAGAIN, EBUSY, EDQUOT, EINTR, EIO, ENOSPC, ESTALE

import dagster as dg

from assets.grid import Outline
from sae_lib.errors import SaeError

AC = dg.AutomationCondition

RETRY = dg.RetryPolicy(
    max_retries=2, delay=5, backoff=dg.Backoff.EXPONENTIAL, jitter=dg.Jitter.PLUS_MINUS
)
"""For what may go away by itself; `explained` makes everything else fail at once."""

PASSING = (EAGAIN, EBUSY, EINTR, EIO, ESTALE)
"""Errors of the system that a second try may not meet: of networks and network file systems."""

FULL = (ENOSPC, EDQUOT)

INTERRUPTS = (KeyboardInterrupt, dg.DagsterExecutionInterruptedError)
"""What Ctrl-C and a stopped run raise in a step; a step with a retry policy would begin again."""

ON_CHANGE = "on_change"
NEVER = "never"


def follows(outline: Outline) -> dg.AutomationCondition:
    """Bring an asset up to date when something it is made from changed.

    Whether it does is the switch of the experiment's sensor; when, what its file says: at once,
    or at the next tick of a cron line. Partitions whose parents are missing are left alone, so
    that what was never built is not built by a change of the model.
    """
    # an experiment that streams, or has only SAEs from files, keeps no activations
    kept = dg.AssetSelection.assets(dg.AssetKey([outline.name, "activations"]))
    changed = _changed(AC.any_deps_missing().ignore(kept))
    if outline.reevaluate in (NEVER, ON_CHANGE):
        return changed
    return changed & AC.cron_tick_passed(outline.reevaluate)


def at_once() -> dg.AutomationCondition:
    """When a parent changed and all of them are there and at rest."""
    return _changed(AC.any_deps_missing())


def _changed(lacks: dg.AutomationCondition) -> dg.AutomationCondition:
    free = ~lacks & ~AC.any_deps_in_progress() & ~AC.in_progress()
    return AC.any_deps_updated().since_last_handled() & free


def of_saes(outline: Outline) -> dg.AutomationCondition | None:
    """SAEs are trained anew only where the experiment says so."""
    return follows(outline) if outline.retrains else None


@contextmanager
def counting(
    context: dg.AssetExecutionContext, key: dg.AssetKey, done: Callable[[], Iterable[str]]
) -> Iterator[None]:
    """Where a step fails, record the partitions that it finished all the same.

    A step that stands for many partitions records none of them when it fails; ``done`` says
    which ones exist.
    """
    try:
        yield
    except (Exception, *INTERRUPTS):  # whatever it is: it is raised again
        for partition in done():
            context.log_event(
                dg.AssetMaterialization(
                    key, partition=partition, description="finished before the step failed"
                )
            )
        raise


@contextmanager
def explained() -> Iterator[None]:
    """Let a step fail with the reason alone, and without retries where they cannot help."""
    try:
        yield
    except INTERRUPTS as error:  # who stops a run does not want it tried again
        raise dg.Failure(description="stopped by request", allow_retries=False) from error
    except SaeError as error:
        if error.is_transient:
            raise
        raise dg.Failure(description=str(error), allow_retries=False) from error
    except (ConnectionError, TimeoutError):
        raise
    except Exception as error:  # a fault of ours too: it fails at once, with its cause
        number = error.errno if isinstance(error, OSError) else None
        if number in PASSING:
            raise
        text = f"{type(error).__name__}: {error}"
        if number in FULL:
            text = f"the disk is full ({error}). Free some space and run again; nothing is lost."
        raise dg.Failure(description=text, allow_retries=False) from error
