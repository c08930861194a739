"""Training the missing SAEs of an experiment: which of them share a stream, and what is kept."""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from assets.activations import harvest_sites
from assets.corpora import token_split
from assets.layer_groups import groups_of
from assets.pretrained import import_cell
from assets.progress import training_progress
from assets.rows import Attempts
from assets.selections import chosen_contexts, selection_key
from assets.store import Store, language_model, save_rows
from assets.study import Study, Variant
from sae_lib.artifacts import package_versions, peak_memory_bytes
from sae_lib.models.places import AND, Place

BLOCK_TOKENS = 1 << 18
"""Rows among which batches are shuffled; two such blocks are in memory at a time."""

Log = Callable[[str], None]
Cell = tuple[str, Variant]


@dataclass
class Pass:
    """SAEs that are trained together, on one stream of batches."""

    place: str
    """Where: a site, or a place of several."""

    cells: dict[str, list[Cell]] = field(default_factory=dict)
    """For each variant, by id, the cells that its SAE fills: more than one for a layer group."""

    @property
    def variants(self) -> list[Variant]:
        return [cells[0][1] for cells in self.cells.values()]

    @property
    def sites(self) -> tuple[str, ...]:
        return Place.parse(self.place).sites


def train_cells(study: Study, store: Store, cells: Sequence[Cell], log: Log) -> None:
    """Train those of ``cells`` that do not exist yet; what shares its batches is one pass."""
    missing = [
        (site, variant)
        for site, variant in cells
        if not store.artifacts.exists(study.sae(site, variant))
    ]
    for site, variant in missing:
        if variant.is_pretrained:
            import_cell(study, store, (site, variant), log)
    missing = [(site, variant) for site, variant in missing if not variant.is_pretrained]
    study = study.anew  # what is trained now is trained on the model as it is now
    starts = [
        (site, general)
        for site, variant in missing
        if (general := study.general(variant)) is not None
    ]
    if starts:
        train_cells(study, store, starts, log)
    attempts = Attempts()
    for together in plan(study, store, missing, log):
        with attempts.at(f"training at {together.place}"):
            train_pass(study, store, together, log)
    attempts.conclude()


def plan(study: Study, store: Store, cells: Sequence[Cell], log: Log) -> list[Pass]:
    """The passes that train ``cells``: one for each place, kind of batches, and order of data."""
    passes: dict[tuple[object, ...], Pass] = {}
    for site, variant in cells:
        place = site
        if variant.objective["kind"] == "layer_group":
            groups = groups_of(study, store, variant, log)
            place = AND.join(next(group for group in groups if site in group))
        train, objective = variant.train, study.objective(variant)
        key = (
            place,
            # an SAE of one site that stands for a group is not the one that reads them all
            objective.kind == "layer_group",
            objective.reads,
            selection_key(study, variant),
            train.batch_tokens,
            train.seed,
            train.devices,
        )
        found = passes.setdefault(key, Pass(place))
        found.cells.setdefault(variant.id, []).append((site, variant))
    return list(passes.values())


def train_pass(study: Study, store: Store, together: Pass, log: Log) -> None:
    """Train the SAEs of one pass and store each in the artefacts of its cells."""
    from sae_lib.training.distributed.launch import fit_on_devices
    from sae_lib.training.live import note_point
    from sae_lib.training.loop import fit

    variants, place = together.variants, together.place
    uses_store = reads_rows(study, variants[0]) and study.activations.store == "disk"
    if uses_store:
        harvest_sites(study, store, together.sites, log)
    batches = batches_of(study, store, together, log)
    with ExitStack() as stack:
        spaces: dict[str, list[Any]] = {}
        for name, cells in together.cells.items():
            for site, variant in cells:
                parents = {"model": study.model_fingerprint, "tokens": study.tokens.hash}
                for one in together.sites if uses_store else ():
                    parents[f"activations {one}"] = study.harvested(one).hash
                space = stack.enter_context(
                    store.artifacts.build(
                        study.sae(site, variant),
                        parents=parents,
                        can_resume=True,
                        device=store.device,
                    )
                )
                spaces.setdefault(name, []).append(space)
        checkpoints = {name: own[0].path / "checkpoint" for name, own in spaces.items()}
        show = training_progress(f"training {len(variants)} SAEs at {place}", log)
        batch_tokens = variants[0].train.batch_tokens

        def on_step(report: Any) -> None:
            note_point(checkpoints[report.name], report, batch_tokens=batch_tokens)
            show(report.name, report.step, report.steps, report.numbers, report.problem)

        if variants[0].train.devices.count > 1:
            job = job_of(study, store, place, variants, batches, checkpoints)
            results = fit_on_devices(job, on_step=on_step)
        else:
            trainees = [
                trainee_of(study, store, together, variant, batches, checkpoints[variant.id])
                for variant in variants
            ]
            results = fit(trainees, batches, on_step=on_step)
        for fitted in results:
            for cell, space in zip(together.cells[fitted.name], spaces[fitted.name], strict=True):
                keep(study, store, cell, fitted, space, batches, checkpoints[fitted.name])


def keep(
    study: Study,
    store: Store,
    cell: Cell,
    fitted: Any,
    space: Any,
    batches: Any,
    checkpoint: Path,
) -> None:
    """Write what a training came to into the artefact of one cell."""
    from sae_lib.saes.files import save_sae
    from sae_lib.training.live import why_stopped
    from sae_lib.training.objectives.layer_group import coder_for_site

    site, variant = cell
    reason, coder = None, fitted.coder
    if fitted.status != "complete":
        stopped = why_stopped(checkpoint)
        reason = stopped or f"the loss was not finite after step {fitted.steps}"
    if variant.objective["kind"] == "layer_group" and len(batches.sites) > 1:
        coder = coder_for_site(coder, scale_of(batches, site, variant))
    facts = {
        "status": fitted.status,
        "steps": fitted.steps,
        "tokens": fitted.steps * fitted.train.batch_tokens,
        "seconds": round(fitted.seconds, 3),
        "cpu_seconds": round(fitted.cpu_seconds, 3),
        "flops": fitted.flops,
        "final": fitted.numbers,
        "train": fitted.train.model_dump(mode="json"),
        "reason": reason,
        "site": site,
        "model": study.model.model_dump(mode="json"),
    }
    save_sae(coder, space.path, facts=facts)
    for number, companion in enumerate(fitted.company, start=1):
        save_sae(companion, space.path / f"company-{number}", facts={"site": site})
    shown = ("train", "status", "steps", "tokens", "seconds", "cpu_seconds", "flops")
    row = {
        "kind": coder.cfg.kind,
        "config": coder.cfg.model_dump(mode="json"),
        "d_in": coder.d_in,
        "d_sae": coder.d_sae,
        "path": str(store.artifacts.path(study.sae(site, variant))),
        "objective": variant.objective["kind"],
        "reason": reason,
        "device": store.device,
        "peak_memory_bytes": peak_memory_bytes(),
        "packages": package_versions(),
        **{key: facts[key] for key in shown},
    }
    save_rows(space.path / "saes.parquet", "saes", [row])
    save_rows(space.path / "curves.parquet", "curves", fitted.curves)
    space.facts.update(facts)
    shutil.rmtree(space.path / "checkpoint", ignore_errors=True)


def reads_rows(study: Study, variant: Variant) -> bool:
    """Whether batches are tokens from everywhere, which may come from a store."""
    return study.objective(variant).reads == "rows"


def scale_of(batches: Any, site: str, variant: Variant) -> float:
    """Factor that brings the activations of one site to the scale of training."""
    from sae_lib.training.config import normalisation_scale

    return normalisation_scale(variant.train.normalise, batches.stats(site).mean_square_norm)


def trainee_of(
    study: Study, store: Store, together: Pass, variant: Variant, batches: Any, checkpoint: Path
) -> Any:
    from sae_lib.saes.files import load_sae
    from sae_lib.training.trainee import Trainee

    site = together.cells[variant.id][0][0]
    objective = study.objective(variant)
    model = language_model(study, store) if objective.needs_model else None
    scales = {one: scale_of(batches, one, variant) for one in together.sites}
    # of several sites each has its own, which the objective applies and folds
    scale = scales[together.place] if len(scales) == 1 else 1.0
    coder = study.sae_config(variant, site).build()
    general = study.general(variant)
    if general is not None:
        found = load_sae(store.artifacts.path(study.sae(site, general)))
        found.scale_(scale)
        coder.load_state_dict(found.state_dict())
    return Trainee(
        name=variant.id,
        coder=coder.to(store.device),
        site=together.place,
        train=study.resolved_train(variant, site),
        objective=objective.build(model=model),
        scale=scale,
        scales=scales if len(scales) > 1 else {},
        checkpoint=checkpoint,
        about={"objective": json.loads(json.dumps(dict(variant.objective)))},
        is_fresh=general is None,
    )


def job_of(
    study: Study,
    store: Store,
    site: str,
    variants: Sequence[Variant],
    batches: Any,
    checkpoints: dict[str, Path],
) -> Any:
    """The same training by several processes: what they need to know to make the same trainees."""
    from sae_lib.training.distributed.job import Job, StoredSource, Task

    tasks = [
        Task(
            name=variant.id,
            sae=study.sae_config(variant, site).model_dump(mode="json"),
            site=site,
            train=study.resolved_train(variant, site),
            objective=dict(variant.objective),
            scale=scale_of(batches, site, variant),
            checkpoint=checkpoints[variant.id],
            about={"objective": dict(variant.objective)},
        )
        for variant in variants
    ]
    train = variants[0].train
    source = StoredSource(
        store=store.artifacts.path(study.harvested(site)),
        sites=(site,),
        seed=train.seed,
        block_tokens=BLOCK_TOKENS,
        batch_tokens=train.batch_tokens,
    )
    return Job(devices=train.devices, device=store.device, source=source, tasks=tuple(tasks))


def batches_of(study: Study, store: Store, together: Pass, log: Log) -> Any:
    """The stream that the SAEs of a pass are trained on."""
    from sae_lib.activations.batches import StoredBatches
    from sae_lib.activations.contexts import ContextBatches
    from sae_lib.activations.order import Order
    from sae_lib.activations.store import ActivationStore, JoinedStore

    variant = together.variants[0]
    train, sites = variant.train, together.sites
    if not reads_rows(study, variant):
        model = language_model(study, store)
        known = model.sites()
        besides = [
            one
            for other in together.variants
            for one in study.objective(other).also_reads(together.place, known)
        ]
        return ContextBatches(
            model,
            token_split(study, store, log, "train"),
            list(dict.fromkeys([*sites, *besides])),
            batch_tokens=train.batch_tokens,
            seed=train.seed,
        )
    contexts = chosen_contexts(study, store, together.cells[variant.id][0], log)
    if study.activations.store == "stream":
        return streamed(
            study,
            store,
            sites,
            log,
            batch_tokens=train.batch_tokens,
            seed=train.seed,
            contexts=contexts,
        )
    stores = [ActivationStore.open(store.artifacts.path(study.harvested(one))) for one in sites]
    harvested = stores[0] if len(stores) == 1 else JoinedStore(stores)
    order = Order(
        harvested.kept_per_context,
        seed=train.seed,
        block_tokens=BLOCK_TOKENS,
        batch_tokens=train.batch_tokens,
        contexts=contexts,
    )
    return StoredBatches(harvested, sites, order, device=store.device)


def streamed(
    study: Study,
    store: Store,
    sites: Sequence[str],
    log: Log,
    *,
    batch_tokens: int,
    seed: int,
    contexts: Any = None,
) -> Any:
    """Batches that are computed from the model when they are needed."""
    from sae_lib.activations.batches import StreamedBatches
    from sae_lib.activations.order import Order

    split = token_split(study, store, log, "train")
    order = Order(
        split.kept_per_context,
        seed=seed,
        block_tokens=BLOCK_TOKENS,
        batch_tokens=batch_tokens,
        contexts=contexts,
    )
    return StreamedBatches(
        language_model(study, store),
        split,
        sites,
        order,
        batch_contexts=study.activations.batch_contexts,
        dtype=study.activations.dtype,
    )
