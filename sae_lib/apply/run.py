"""Run applications for every coder at a site; what needs no coder is computed once for all."""

from collections.abc import Sequence
from typing import NamedTuple

from sae_lib.apply.base import ApplicationConfig, Bench, OnProgress
from sae_lib.errors import NotApplicable
from sae_lib.warehouse.rows import ApplicationRow, Measurement, SelectionRow

_STEPS = 100


class SiteApplied(NamedTuple):
    """Rows by name of the coder."""

    rows: dict[str, list[ApplicationRow]]
    selections: dict[str, list[SelectionRow]]


def apply_site(
    bench: Bench,
    applications: Sequence[ApplicationConfig],
    *,
    on_progress: OnProgress = lambda done, total: None,
) -> SiteApplied:
    """Rows of every application for every coder of ``bench``, shared baselines included.

    An application that does not apply gives one row without a value, and the reason. Progress is
    in hundredths of an application. What is found for one coder does not depend on the others.
    """
    found = SiteApplied({name: [] for name in bench.coders}, {name: [] for name in bench.coders})
    for done, application in enumerate(applications):

        def inside(part: int, whole: int, done: int = done) -> None:
            share = _STEPS * part // max(whole, 1)
            on_progress(done * _STEPS + share, len(applications) * _STEPS)

        inside(0, 1)
        try:
            application.check(bench)
            applied = application.apply(bench, inside)
        except NotApplicable as error:
            absent = Measurement(application.headline, None, application.kind, reason=error.reason)
            row = ApplicationRow(application.kind, application.kind, "all", absent)
            for name in bench.coders:
                found.rows[name].append(row)
            continue
        for name, (rows, selections) in applied.items():
            found.rows[name] += rows
            found.selections[name] += selections
    on_progress(len(applications) * _STEPS, len(applications) * _STEPS)
    return found
