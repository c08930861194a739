"""What runs without being asked: models are watched, and results follow them.

Everything here is a switch in the UI. A switch is off until somebody turns it on, there or with
``automation:`` in the experiment file.
"""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import dagster as dg

from assets.conditions import NEVER
from assets.grid import Outline
from assets.models import model_key
from assets.reports import DATABASE, study_key
from sae_lib.errors import SaeError
from sae_lib.models.config import ModelConfig
from sae_workflows.home import memo_file

SECONDS_BETWEEN_LOOKS = 30
"""Between two looks at the folders of models. A look reads sizes and times, not weights."""

SECONDS_BETWEEN_EVALUATIONS = 30

NIGHTLY = "0 2 * * *"
"""When models of the hub are asked for their commit, if that is switched on."""


def version_of(outline: Outline, home: Path) -> str:
    """Fingerprint of the outline's model as it is now, without loading a compute library."""
    from sae_lib.models.fingerprint import fingerprint

    config = ModelConfig.model_validate(outline.model_config)
    return fingerprint(config, relative_to=Path(outline.file).parent, memo=memo_file(home))


def observation(model: str, fingerprint: str, before: str | None) -> dg.AssetObservation:
    """The event that says which version of a model is in use."""
    return dg.AssetObservation(
        model_key(model),
        description=f"changed from {before}" if before else None,
        tags={"dagster/data_version": fingerprint},
        metadata={"fingerprint": fingerprint, "before": before or "not seen before"},
    )


def last_observed(instance: dg.DagsterInstance, model: str) -> str | None:
    """Fingerprint of the version that the graph knows of."""
    records = instance.fetch_observations(model_key(model), limit=1).records
    found = records[0].asset_observation if records else None
    return found.tags.get("dagster/data_version") if found else None


def is_local(outline: Outline) -> bool:
    """Whether the model's files lie in a folder here, where looking costs nothing."""
    from sae_lib.models.inspect import resolve_model

    config = ModelConfig.model_validate(outline.model_config)
    return resolve_model(config, Path(outline.file).parent) is not None


def looked_at(outlines: Iterable[Outline], home: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Versions of the models that lie in a folder, and for those that cannot be read why not."""
    now, problems = {}, {}
    for outline in outlines:
        try:
            if is_local(outline):
                now[outline.model] = version_of(outline, home)
        except (SaeError, OSError) as error:  # such as a folder that is being copied
            problems[outline.model] = str(error)
    return now, problems


def watcher(outlines: Sequence[Outline], home: Path) -> dg.SensorDefinition:
    """A sensor that tells the graph when the folder of a local model holds another model."""
    models = {outline.model: outline for outline in outlines}

    @dg.sensor(
        name="watch_local_models",
        minimum_interval_seconds=SECONDS_BETWEEN_LOOKS,
        default_status=_status(any(outline.watch for outline in outlines)),
        description="Looks at the folders of local and bundled models. Another fingerprint is "
        "reported as an observation; what depends on the model is then out of date.",
    )
    def watch_local_models(context: dg.SensorEvaluationContext):
        now, problems = looked_at(models.values(), home)
        for model, problem in problems.items():
            context.log.warning(f"{model} cannot be read: {problem}")
        events = []
        for model, version in now.items():
            before = last_observed(context.instance, model)
            if before != version:
                events.append(observation(model, version, before))
        if not events:
            return dg.SkipReason(f"none of {len(now)} local models changed")
        return dg.SensorResult(asset_events=events)

    return watch_local_models


def observers(outlines: Sequence[Outline]) -> tuple[list, list[dg.ScheduleDefinition]]:
    """A job that observes every model, and a nightly schedule for it, off until switched on."""
    keys = sorted({model_key(outline.model) for outline in outlines}, key=str)
    if not keys:
        return [], []
    job = dg.define_asset_job(
        "observe_models",
        dg.AssetSelection.assets(*keys),
        description="Look at every model, those of the hub too.",
    )
    schedule = dg.ScheduleDefinition(
        name="observe_models_nightly",
        job=job,
        cron_schedule=NIGHTLY,
        description="Ask every night which version of each model is in use: the commit of a hub "
        "model, the files of a local one.",
    )
    return [job], [schedule]


def followers(outlines: Sequence[Outline]) -> list[dg.AutomationConditionSensorDefinition]:
    """One switch per experiment, and one for what all of them share."""
    sensors = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        for outline in outlines:
            sensors.append(
                dg.AutomationConditionSensorDefinition(
                    f"follow_{outline.name.replace('-', '_')}",
                    target=of_experiment(outline),
                    default_status=_status(outline.reevaluate != NEVER),
                    minimum_interval_seconds=SECONDS_BETWEEN_EVALUATIONS,
                    description=f"Measure, explain and apply the SAEs of {outline.name} again "
                    "when its model changed. SAEs are "
                    + ("trained anew." if outline.retrains else "kept as they are."),
                )
            )
        if outlines:
            keys = [DATABASE, *(study_key(outline.name) for outline in outlines)]
            sensors.append(
                dg.AutomationConditionSensorDefinition(
                    "publish_results",
                    target=dg.AssetSelection.assets(*keys),
                    default_status=_status(any(o.reevaluate != NEVER for o in outlines)),
                    minimum_interval_seconds=SECONDS_BETWEEN_EVALUATIONS,
                    description="Publish the database and the pages when there are new results.",
                )
            )
    return sensors


def of_experiment(outline: Outline) -> dg.AssetSelection:
    """The assets of one experiment that follow its model, and their checks."""
    own = dg.AssetSelection.key_prefixes([outline.name])
    assets = own - dg.AssetSelection.assets(study_key(outline.name))
    return assets | dg.AssetSelection.checks_for_assets(*_checked(outline))


def _checked(outline: Outline) -> list[dg.AssetKey]:
    return [dg.AssetKey([outline.name, "saes"])]


def _status(runs: bool) -> dg.DefaultSensorStatus:
    return dg.DefaultSensorStatus.RUNNING if runs else dg.DefaultSensorStatus.STOPPED
