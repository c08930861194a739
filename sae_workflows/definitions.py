"""Everything served: one family of assets per experiment file, and the results of all."""

import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import dagster as dg

from assets.activations import activations_asset
from assets.applications import applications_asset, applications_key
from assets.claims import claims_asset
from assets.corpora import tokens_asset
from assets.dashboards import dashboards_asset
from assets.explanations import explanations_asset, explanations_key
from assets.grid import Outline
from assets.layer_groups import layer_groups_asset
from assets.metrics import frontier_asset, metrics_asset, metrics_key
from assets.models import model_source
from assets.reports import database_asset, study_asset
from assets.saes import saes_asset, saes_key, weights_current_check
from assets.store import Store
from assets.study import Study
from assets.world import world_assets
from sae_workflows.automation import followers, observers, watcher
from sae_workflows.executors import executor
from sae_workflows.home import outlines, sae_home, study_at

FAMILY = (
    tokens_asset,
    activations_asset,
    saes_asset,
    metrics_asset,
    frontier_asset,
    claims_asset,
    study_asset,
)


def study_of(outline: Outline, home: Path) -> Study:
    """The study, read again from its file: what the file says when the step runs counts."""
    return study_at(home, Path(outline.file))


def family(outline: Outline, load: Callable[[], Study]) -> list[dg.AssetsDefinition]:
    """The assets of one experiment, in the order of its life."""
    makers = [*FAMILY]
    if outline.explains:
        makers += [explanations_asset, dashboards_asset]
    if outline.applies:
        makers.append(applications_asset)
    if outline.groups_layers:
        makers.append(layer_groups_asset)
    return [make(outline, load) for make in makers]


def grid_job(outline: Outline):  # the type of such a job is not public
    """Train, measure, explain and apply any part of one experiment's grid."""
    keys = [saes_key(outline.name), metrics_key(outline.name)]
    keys += [explanations_key(outline.name)] if outline.explains else []
    keys += [applications_key(outline.name)] if outline.applies else []
    return dg.define_asset_job(
        f"{outline.name.replace('-', '_')}_grid",
        dg.AssetSelection.assets(*keys),
        description=f"Train, measure, explain and apply SAEs of {outline.name}.",
    )


def build(
    experiments: Sequence[Outline],
    home: Path,
    *,
    device: str = "cpu",
    studies: Mapping[str, Study] | None = None,
) -> dg.Definitions:
    """Definitions of ``experiments``; everything they make goes under ``home``.

    ``studies`` are at hand already, by name; the others are read when a step wants them.
    """
    loads = {outline.name: partial(study_of, outline, home) for outline in experiments}
    loads |= {name: partial(_same, study) for name, study in (studies or {}).items()}
    models = {outline.model: loads[outline.name] for outline in experiments}
    with warnings.catch_warnings():  # backfill policies are beta: that is known, and pinned
        warnings.simplefilter("ignore", dg.BetaWarning)
        assets = [model_source(name, load) for name, load in models.items()]
        for outline in experiments:
            assets += family(outline, loads[outline.name])
        assets += world_assets()
        checks = [weights_current_check(one, loads[one.name]) for one in experiments]
        if experiments:
            assets.append(database_asset(experiments, loads))
        jobs, schedules = observers(experiments)
        return dg.Definitions(
            assets=assets,
            asset_checks=checks,
            jobs=[*jobs, *(grid_job(outline) for outline in experiments)],
            schedules=schedules,
            sensors=[watcher(experiments, home), *followers(experiments)] if experiments else [],
            resources={"store": Store(home=str(home), device=device)},
            executor=executor(),
        )


def _same(study: Study) -> Study:
    return study


@dg.definitions
def defs() -> dg.Definitions:
    home = sae_home()
    found, broken = outlines(home)
    for file, reason in broken.items():
        warnings.warn(f"{file} is left out of the graph: {reason}", stacklevel=1)
    return build(found, home, device=os.environ.get("SAE_DEVICE", "cpu"))
