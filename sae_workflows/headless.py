"""The same graph in one process: what is missing is run, what exists is left alone."""

import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import dagster as dg
from dagster._core.storage.tags import (
    ASSET_PARTITION_RANGE_END_TAG,
    ASSET_PARTITION_RANGE_START_TAG,
)

from assets.activations import activations_key
from assets.applications import applications_key
from assets.claims import claims_key
from assets.claims import identity_of as claims_identity
from assets.corpora import tokens_key
from assets.explanations import explanations_key
from assets.grid import rectangle
from assets.layer_groups import grouped_variants, layer_groups_key
from assets.layer_groups import identity_of as groups_identity
from assets.metrics import frontier_key, metrics_key
from assets.models import model_key
from assets.reports import DATABASE, report_key
from assets.saes import saes_key
from assets.store import EVERYTHING, Store
from assets.study import Study
from sae_lib.errors import SaeError
from sae_workflows.definitions import build
from sae_workflows.home import adopt, dagster_home, outline_of, outlines


class StageResult(NamedTuple):
    """What happened to one stage of an experiment."""

    stage: str
    built: int
    found: int
    seconds: float


class Work(NamedTuple):
    """One asset to run: the key, and the range of partitions when it has any."""

    stage: str
    key: dg.AssetKey
    built: int
    found: int
    first: str | None = None
    last: str | None = None


def next_work(study: Study, store: Store, stage: str) -> Work | None:
    """What ``stage`` still has to do, from the identities of the artefacts alone."""
    outline = outline_of(study)
    total = len(study.cells())
    artifacts = store.artifacts
    if stage == "tokens":
        have = artifacts.exists(study.tokens)
        return None if have else Work(stage, tokens_key(study.name), 1, 0)
    if stage == "activations":
        if study.activations.store == "stream":
            return None
        outline_sites = outline.single_sites
        needed = {
            one
            for site, variant in study.missing(artifacts, "sae")
            if study.objective(variant).reads == "rows" and not variant.is_pretrained
            for one in study.reads(site, variant)
        }
        sites = [
            site
            for site in outline_sites
            if site in needed and not artifacts.exists(study.harvested(site))
        ]
        if not sites:
            return None
        first, last = sites[0], sites[-1]
        key = activations_key(study.name)
        return Work(stage, key, len(sites), len(outline_sites) - len(sites), first, last)
    if stage == "layer_groups":
        sets = {one.places for one in grouped_variants(study)}
        absent = [one for one in sets if not artifacts.exists(groups_identity(study, one))]
        key = layer_groups_key(study.name)
        return Work(stage, key, len(absent), len(sets) - len(absent)) if absent else None
    if stage == "frontier":
        have = store.has_landed(study, stage, EVERYTHING, EVERYTHING, study.frontier)
        return None if have else Work(stage, frontier_key(study.name), 1, 0)
    if stage == "claims":
        identity = claims_identity(study, store)
        have = store.has_landed(study, stage, EVERYTHING, EVERYTHING, identity)
        return None if have else Work(stage, claims_key(study.name), 1, 0)
    keys = {
        "saes": saes_key(study.name),
        "metrics": metrics_key(study.name),
        "explanations": explanations_key(study.name),
        "applications": applications_key(study.name),
    }
    kind = "sae" if stage == "saes" else stage
    cells = [
        (site, variant.id)
        for site, variant in study.cells()
        if not artifacts.exists(study.cell(kind, site, variant))
        or not store.has_landed(study, stage, site, variant.id, study.cell(kind, site, variant))
    ]
    if not cells:
        return None
    built = len(study.missing(artifacts, kind))
    return Work(stage, keys[stage], built, total - built, *rectangle(outline, cells))


def stages(study: Study) -> list[str]:
    named = ["tokens", "activations"]
    named += ["layer_groups"] if grouped_variants(study) else []
    named += ["saes", "metrics", "frontier"]
    named += ["explanations"] if study.explain else []
    named += ["applications"] if study.apply else []
    return [*named, "claims"]


def run_study(
    study: Study,
    home: Path,
    *,
    device: str = "cpu",
    on_stage: Callable[[str, Work | None], None] = lambda stage, work: None,
) -> list[StageResult]:
    """Bring everything ``study`` asks for into being; one result per stage, in order.

    The runs are recorded in the Dagster instance of ``home``, so the UI shows them.
    """
    if study.file is not None:
        adopt(home, study.file, study.name)
    store = Store(home=str(home), device=device)
    known, _ = outlines(home)
    others = [one for one in known if one.name != study.name]
    definitions = build([*others, outline_of(study)], home, device=device)
    results: list[StageResult] = []
    with dg.DagsterInstance.from_config(str(dagster_home(home))) as instance:
        _observe(instance, study)
        job = definitions.resolve_implicit_global_asset_job_def()
        for stage in stages(study):
            began = time.perf_counter()
            work = next_work(study, store, stage)
            on_stage(stage, work)
            if work is None:
                results.append(StageResult(stage, 0, _total(study, stage), 0.0))
                continue
            _execute(job, instance, [work.key], work.first, work.last)
            seconds = time.perf_counter() - began
            results.append(StageResult(stage, work.built, work.found, seconds))
        results.append(_publish(job, instance, study, store, on_stage))
    return results


def _publish(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    study: Study,
    store: Store,
    on_stage: Callable[[str, Work | None], None],
) -> StageResult:
    from sae_lib.warehouse.publish import is_stale

    page = store.report(study.name)
    is_current = (
        not is_stale(store.warehouse, store.database)
        and page.is_file()
        and page.stat().st_mtime >= store.database.stat().st_mtime
    )
    if is_current:
        on_stage("results", None)
        return StageResult("results", 0, 2, 0.0)
    began = time.perf_counter()
    on_stage("results", Work("results", DATABASE, 2, 0))
    _execute(job, instance, [DATABASE, report_key(study.name)])
    return StageResult("results", 2, 0, time.perf_counter() - began)


def _total(study: Study, stage: str) -> int:
    if stage in ("tokens", "frontier", "layer_groups", "claims"):
        return 1
    return len(study.primitive_sites()) if stage == "activations" else len(study.cells())


def _observe(instance: dg.DagsterInstance, study: Study) -> None:
    """Record the model's fingerprint when it is not the one last seen."""
    key = model_key(study.model_name)
    last = instance.fetch_observations(key, limit=1).records
    if last:
        tags = last[0].asset_observation.tags if last[0].asset_observation else {}
        if tags.get("dagster/data_version") == study.model_fingerprint:
            return
    instance.report_runless_asset_event(
        dg.AssetObservation(
            key,
            tags={"dagster/data_version": study.model_fingerprint},
            metadata={"fingerprint": study.model_fingerprint},
        )
    )


def _execute(
    job: dg.JobDefinition,
    instance: dg.DagsterInstance,
    keys: Sequence[dg.AssetKey],
    first: str | None = None,
    last: str | None = None,
) -> None:
    tags = {}
    if first is not None and last is not None:
        tags = {ASSET_PARTITION_RANGE_START_TAG: first, ASSET_PARTITION_RANGE_END_TAG: last}
    quiet = {"loggers": {"console": {"config": {"log_level": "CRITICAL"}}}}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", dg.BetaWarning)
            job.execute_in_process(
                instance=instance,
                asset_selection=list(keys),
                tags=tags,
                run_config=quiet,
                raise_on_error=True,
            )
    except dg.DagsterExecutionInterruptedError as error:  # its handler of Ctrl-C raises this
        raise KeyboardInterrupt from error
    except Exception as error:  # the orchestrator wraps what a step raises, in several ways
        cause = _users_error(error)
        if cause is None:
            raise
        raise cause from error


def _users_error(error: BaseException | None) -> SaeError | None:
    """The `SaeError` at the bottom of what the orchestrator raised, if there is one."""
    seen: set[int] = set()  # the chain may run in a circle
    while error is not None and id(error) not in seen:
        if isinstance(error, SaeError):
            return error
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return None
