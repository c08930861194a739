"""The folder everything is kept in, and which experiment files belong to it."""

import hashlib
import json
import os
from pathlib import Path

from assets.grid import Outline, cell_key
from assets.lineage import at_home
from assets.study import Study
from sae_lib.artifacts import write_atomically
from sae_lib.errors import SaeError

PACKAGED = Path(__file__).parent / "experiments"

DAGSTER_YAML = """\
# Written once by sae-workflows; what you change here stays.
telemetry: {enabled: false}
nux: {enabled: false}
run_launcher: {module: sae_workflows.launcher, class: WatchedRunLauncher}
concurrency:
  runs: {max_concurrent_runs: 1}
  pools: {default_limit: 1}
run_monitoring:
  enabled: true
  poll_interval_seconds: 15
  free_slots_after_run_end_seconds: 30
run_retries:
  enabled: true
  max_retries: 3
  retry_on_asset_or_op_failure: false
retention:
  sensor: {purge_after_days: {skipped: 1, failure: 30, success: 30}}
"""

EARLIER_YAML = """\
telemetry: {enabled: false}
nux: {enabled: false}
concurrency:
  runs: {max_concurrent_runs: 1}
run_monitoring:
  enabled: true
  free_slots_after_run_end_seconds: 30
retention:
  sensor: {purge_after_days: {skipped: 1, failure: 30, success: 30}}
"""
"""What earlier versions wrote; a folder that nobody changed gets the new settings."""


def sae_home() -> Path:
    """``SAE_HOME``, or ``.sae`` in the current folder."""
    return Path(os.environ.get("SAE_HOME") or ".sae").resolve()


def dagster_home(home: Path) -> Path:
    """Dagster's folder inside ``home``, with its settings; made when it is not there."""
    folder = home / "dagster"
    settings = folder / "dagster.yaml"
    if not settings.is_file() or settings.read_text("utf-8") == EARLIER_YAML:
        write_atomically(settings, DAGSTER_YAML)
    return folder


def memo_file(home: Path) -> Path:
    return home / "cache" / "fingerprints.json"


def study_at(home: Path, experiment: Path) -> Study:
    """The study of a file or a name, bundled or known here, with what ``home`` has of it."""
    from sae_workflows.experiment import load_experiment

    record = home / "experiments" / f"{experiment}.json"
    if experiment.name == str(experiment) and not experiment.is_file() and record.is_file():
        experiment = Path(json.loads(record.read_text("utf-8"))["file"])
    return at_home(load_experiment(experiment, memo=memo_file(home)), home)


def adopt(home: Path, file: Path, name: str) -> None:
    """Remember that ``file`` is part of this home, so that the graph shows it."""
    if file.parent != PACKAGED:
        write_atomically(
            home / "experiments" / f"{name}.json", json.dumps({"file": str(file)}) + "\n"
        )


def experiment_files(home: Path) -> list[Path]:
    """Bundled experiment files, then the adopted ones that still exist."""
    adopted = []
    for record in sorted((home / "experiments").glob("*.json")):
        file = Path(json.loads(record.read_text("utf-8"))["file"])
        if file.is_file():
            adopted.append(file)
    return sorted(PACKAGED.glob("*.yaml")) + adopted


def outline_of(study: Study) -> Outline:
    return Outline(
        name=study.name,
        description=study.description,
        file=str(study.file),
        model=study.model_name,
        sites=study.sites,
        variants=tuple(variant.id for variant in study.variants),
        explains=bool(study.explain),
        applies=bool(study.apply),
        groups_layers=any(one.objective["kind"] == "layer_group" for one in study.variants),
        cells={
            cell_key(site, variant.id): study.reads(site, variant)
            for site, variant in study.cells()
        },
        model_config=study.model.model_dump(),
        reevaluate=study.automation.reevaluate,
        retrains=study.automation.saes == "retrain",
        watch=study.automation.watch,
        owners=study.owners,
    )


def outlines(home: Path) -> tuple[list[Outline], dict[str, str]]:
    """Outlines of all experiments, and for files that cannot be read the reason.

    An outline is remembered by the content of the file and of the package's own code, so that
    the graph loads without the compute libraries when nothing changed.
    """
    cache = home / "cache" / "outlines.json"
    known = json.loads(cache.read_text("utf-8")) if cache.is_file() else {}
    code = _code_version()
    fresh: dict[str, dict[str, object]] = {}
    found: list[Outline] = []
    broken: dict[str, str] = {}
    for file in experiment_files(home):
        key = hashlib.sha256(file.read_bytes() + code + str(file).encode()).hexdigest()
        if key not in known:
            from sae_workflows.experiment import load_experiment

            try:
                study = load_experiment(file, memo=memo_file(home))
            except SaeError as error:
                broken[str(file)] = str(error)
                continue
            known[key] = outline_of(study)._asdict()
        fresh[key] = known[key]
        outline = Outline(**known[key])
        outline = outline._replace(sites=tuple(outline.sites), variants=tuple(outline.variants))
        if (collision := _collision(outline, found)) is not None:
            broken[str(file)] = collision
            continue
        found.append(outline)
    text = json.dumps(fresh)
    if not cache.is_file() or cache.read_text("utf-8") != text:
        write_atomically(cache, text)
    return found, broken


def _collision(outline: Outline, others: list[Outline]) -> str | None:
    """Why an experiment cannot stand beside ``others`` in one graph; None where it can."""
    for other in others:
        if outline.name == other.name:
            return f"another experiment is called {outline.name!r} already ({other.file})."
        if outline.name.replace("-", "_") == other.name.replace("-", "_"):
            return (
                f"the names {outline.name!r} and {other.name!r} ({other.file}) differ in dashes "
                "and underscores only, and jobs are named without dashes. Rename one."
            )
        if outline.model == other.model and _model_place(outline) != _model_place(other):
            return (
                f"{other.name!r} has another model that is called {outline.model!r} "
                f"({_model_place(other)}, and here {_model_place(outline)}). Give one a name of "
                "its own: model: {id: ..., name: ...}."
            )
    return None


def _model_place(outline: Outline) -> str:
    """Which model an outline means, wherever its file lies."""
    from sae_lib.models.config import ModelConfig
    from sae_lib.models.inspect import resolve_model

    config = ModelConfig.model_validate(outline.model_config)
    try:
        folder = resolve_model(config, Path(outline.file).parent)
    except SaeError:
        folder = (Path(outline.file).parent / config.id).absolute()
    return str(folder.resolve()) if folder else f"{config.id}@{config.revision or 'main'}"


def _code_version() -> bytes:
    """Changes whenever a source file that can change an outline does."""
    root = Path(__file__).parent.parent
    stamp = hashlib.sha256()
    for package in ("sae_lib", "assets", "sae_workflows"):
        for file in sorted((root / package).rglob("*.py")):
            status = file.stat()
            stamp.update(f"{file.name} {status.st_size} {status.st_mtime_ns}".encode())
    return stamp.digest()
