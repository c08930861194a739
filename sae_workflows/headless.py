"""The same graph from the command line: what is missing or stale is run, what exists is left."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import dagster as dg

from assets.activations import activations_key
from assets.applications import applications_key
from assets.claims import claims_key
from assets.corpora import tokens_key
from assets.dashboards import dashboards_key
from assets.explanations import explanations_key
from assets.freshness import State, states
from assets.grid import ranges, rectangle
from assets.layer_groups import grouped_variants, layer_groups_key
from assets.layer_groups import identity_of as groups_identity
from assets.metrics import frontier_key, metrics_key
from assets.reports import DATABASE, study_key
from assets.runs import fail_dead_runs
from assets.saes import saes_key
from assets.store import Store
from assets.study import Study
from sae_workflows.automation import last_observed, observation
from sae_workflows.home import adopt, dagster_home, outline_of
from sae_workflows.selection import RESULTS, Wanted
from sae_workflows.workers import Execute, workplace

KEYS: Mapping[str, Callable[[str], dg.AssetKey]] = {
    "tokens": tokens_key,
    "activations": activations_key,
    "layer_groups": layer_groups_key,
    "saes": saes_key,
    "metrics": metrics_key,
    "frontier": frontier_key,
    "explanations": explanations_key,
    "applications": applications_key,
    "dashboards": dashboards_key,
    "claims": claims_key,
}
"""Stages in the order in which they are built, and their assets."""

RUNS = "runs"

OF_CELLS = ("saes", "metrics", "explanations", "applications", "dashboards")


class StageResult(NamedTuple):
    """What happened to one stage of an experiment."""

    stage: str
    built: int
    found: int
    seconds: float


class Work(NamedTuple):
    """One asset to run: the key, and ranges of partitions when it has any."""

    stage: str
    key: dg.AssetKey
    built: int
    found: int
    ranges: tuple[tuple[str, str], ...] = ()


def stages(study: Study) -> list[str]:
    """The stages that ``study`` has, in order."""
    has = {
        "layer_groups": bool(grouped_variants(study)),
        "explanations": bool(study.explain),
        "applications": bool(study.apply),
        "dashboards": bool(study.explain),
    }
    return [stage for stage in KEYS if has.get(stage, True)]


def next_work(
    study: Study,
    store: Store,
    stage: str,
    wanted: Wanted | None = None,
    *,
    exactly: bool = False,
) -> Work | None:
    """What ``stage`` still has to do of what is wanted, from identities alone.

    With ``exactly`` its ranges hold the cells that are due and no other, each within one site.
    """
    wanted = wanted or Wanted()
    exactly = exactly or wanted.is_partial
    if stage not in wanted.stages(stages(study)):
        return None
    key = KEYS[stage](study.name)
    if stage == "layer_groups":
        sets = {one.places for one in grouped_variants(study)}
        absent = [one for one in sets if not store.artifacts.exists(groups_identity(study, one))]
        return Work(stage, key, len(absent), len(sets) - len(absent)) if absent else None
    here = [state for state in states(study, store, [stage]) if wanted.has_cell(state)]
    due = [state for state in here if is_due(state, wanted)]
    if stage == "activations":
        due = _needed(study, store, due, wanted)
    if not due or (stage == "frontier" and study.missing(store.artifacts, "metrics")):
        return None  # a frontier is that of all SAEs
    built, found = len(due), len(here) - len(due)
    if stage == "activations":  # all sites in one pass over the model
        return Work(stage, key, built, found, ((due[0].site, due[-1].site),))
    if stage in OF_CELLS:
        outline, cells = outline_of(study), [(one.site, one.variant) for one in due]
        # a step leaves alone what exists, so one run may cover more than is due
        parts = ranges(outline, cells) if exactly else [rectangle(outline, cells)]
        return Work(stage, key, built, found, tuple(parts))
    return Work(stage, key, built, found)


def is_due(state: State, wanted: Wanted) -> bool:
    """Whether something is built now: what is stale, and unless told otherwise what is missing."""
    return state.state == "stale" or (state.state == "missing" and not wanted.only_stale)


def _needed(study: Study, store: Store, due: Sequence[State], wanted: Wanted) -> list[State]:
    """Activations that something will read: an SAE that is to be trained, or one that was kept
    from an earlier version of the model and is to be measured on this one."""
    needed: set[str] = set()
    for site, variant in study.cells():
        if study.objective(variant).reads == "rows" and not variant.is_pretrained:
            is_missing = not store.artifacts.exists(study.sae(site, variant))
            is_kept = study.origin(site, variant) is not study
            if (is_missing and not wanted.only_stale) or is_kept:
                needed.update(study.reads(site, variant))
    return [state for state in due if state.site in needed]


def run_study(
    study: Study,
    home: Path,
    *,
    device: str = "cpu",
    wanted: Wanted | None = None,
    workers: int = 1,
    on_stage: Callable[[str, Work | None], None] = lambda stage, work: None,
) -> list[StageResult]:
    """Bring what ``study`` asks for into being; one result per stage, in order.

    The runs are recorded in the Dagster instance of ``home``, so the UI shows them. With several
    ``workers`` the sites of a stage are shared out among so many processes.
    """
    wanted = wanted or Wanted()
    if study.file is not None:
        adopt(home, study.file, study.name)
    store = Store(home=str(home), device=device)
    store.sync(at_once=True)
    results: list[StageResult] = []
    with dg.DagsterInstance.from_config(str(dagster_home(home))) as instance:
        fail_dead_runs(instance)
        observe(instance, study)
        with workplace(study, home, device, instance, workers) as execute:
            for stage in stages(study):
                began = perf_counter()
                work = next_work(study, store, stage, wanted, exactly=workers > 1)
                on_stage(stage, work)
                if work is None:
                    results.append(StageResult(stage, 0, _total(study, stage), 0.0))
                    continue
                execute([work.key], work.ranges)
                results.append(StageResult(stage, work.built, work.found, perf_counter() - began))
            if wanted.results:
                results.append(_publish(execute, instance, study, store, on_stage))
    return results


def _publish(
    execute: Execute,
    instance: dg.DagsterInstance,
    study: Study,
    store: Store,
    on_stage: Callable[[str, Work | None], None],
) -> StageResult:
    from sae_lib.warehouse.publish import is_stale, last_change

    page = store.report(study.name)
    # every run is a row of the table of runs, the one that publishes too
    is_current = (
        not is_stale(store.warehouse, store.database, ignore=[RUNS])
        and page.is_file()
        and page.stat().st_mtime_ns >= last_change(store.warehouse, ignore=[RUNS])
    )
    if is_current:
        on_stage(RESULTS, None)
        return StageResult(RESULTS, 0, 2, 0.0)
    began = perf_counter()
    on_stage(RESULTS, Work(RESULTS, DATABASE, 2, 0))
    execute([DATABASE, study_key(study.name)], ())
    return StageResult(RESULTS, 2, 0, perf_counter() - began)


def _total(study: Study, stage: str) -> int:
    if stage == "activations":
        return len(study.primitive_sites())
    return len(study.cells()) if stage in OF_CELLS else 1


def observe(instance: dg.DagsterInstance, study: Study) -> None:
    """Record the model's fingerprint when it is not the one last seen."""
    before = last_observed(instance, study.model_name)
    if before != study.model_fingerprint:
        instance.report_runless_asset_event(
            observation(study.model_name, study.model_fingerprint, before)
        )
