"""Trained SAEs: all variants of a site in one pass over its activations."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import dagster as dg

from assets.activations import activations_key, harvest_sites
from assets.corpora import token_split
from assets.grid import Outline, cell_key, cells_of, grid, group
from assets.models import model_key
from assets.pictures import curve_markdown
from assets.progress import training_progress
from assets.store import Store, language_model, save_rows
from assets.study import Study, Variant, by_site
from sae_lib.artifacts import package_versions, peak_memory_bytes

FINITE = "loss_is_finite"
FEW_DEAD = "few_dead_latents"
DEAD_SHARE_LIMIT = 0.5
NEAR_TARGET = "l0_near_target"
TARGET_TOLERANCE = 0.25
"""Relative; an L0 measured on the last training batches scatters by a few per cent."""

TABLES = ("saes", "curves")

BLOCK_TOKENS = 1 << 18
"""Rows among which batches are shuffled; two such blocks are in memory at a time."""


def saes_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, "saes"])


def saes_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    key = saes_key(outline.name)

    @dg.asset(
        key=key,
        group_name=group(outline, "training"),
        kinds={"torch", "safetensors"},
        tags={"stage": "saes"},
        partitions_def=grid(outline),
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[activations_key(outline.name), model_key(outline.model)],
        check_specs=[
            dg.AssetCheckSpec(FINITE, asset=key, description="No training loss became NaN or inf."),
            dg.AssetCheckSpec(
                FEW_DEAD,
                asset=key,
                description=f"At most {DEAD_SHARE_LIMIT:.0%} of the latents are dead.",
            ),
            dg.AssetCheckSpec(
                NEAR_TARGET,
                asset=key,
                description="Where an L0 was asked for, training ended near it.",
            ),
        ],
        description="Sparse autoencoders, one per site and variant, as safetensors that take raw "
        "activations. All variants of a site are trained in one pass over its activations.",
    )
    def saes(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        study = load()
        cells = cells_of(study, context.partition_keys)
        train_cells(study, store, cells, context.log.info)
        facts = {}
        for site, variant in cells:
            identity = study.sae(site, variant)
            if not store.has_landed(study, "saes", site, variant.id, identity):
                store.land(study, "saes", site, variant, identity, TABLES)
            found = store.artifacts.manifest(identity)["facts"]
            facts[f"{site}|{variant.id}"] = found
            context.add_asset_metadata(
                {
                    "path": dg.MetadataValue.path(store.artifacts.path(identity)),
                    "status": found["status"],
                    "steps": found["steps"],
                    "tokens": found["tokens"],
                    "seconds": found["seconds"],
                    **found["final"],
                    "curve": dg.MetadataValue.md(
                        curve_markdown(store.artifacts.path(identity) / "curves.parquet")
                    ),
                },
                partition_key=cell_key(site, variant.id),
            )
        return dg.MaterializeResult(check_results=_checks(study, cells, facts))

    return saes


def _checks(
    study: Study, cells: Sequence[tuple[str, Variant]], facts: dict[str, Any]
) -> list[dg.AssetCheckResult]:
    bad = {
        name: found.get("reason") or found["status"]
        for name, found in facts.items()
        if found["status"] != "complete"
    }
    # an SAE that stopped before its first point has no numbers
    dead = {
        name: float(found["final"]["dead_share"])
        for name, found in facts.items()
        if "dead_share" in found["final"]
    }
    off = {}
    for site, variant in cells:
        target = _asked_l0(variant)
        found = facts[f"{site}|{variant.id}"]
        if target is not None and "l0" in found["final"]:
            reached = float(found["final"]["l0"])
            if abs(reached - target) > TARGET_TOLERANCE * target:
                off[f"{site}|{variant.id}"] = {"asked": target, "reached": reached}
    return [
        dg.AssetCheckResult(
            check_name=FINITE,
            passed=not bad,
            metadata={"stopped early": dg.MetadataValue.json(bad), "trained": len(facts)},
        ),
        dg.AssetCheckResult(
            check_name=FEW_DEAD,
            passed=all(share <= DEAD_SHARE_LIMIT for share in dead.values()),
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"largest dead share": max(dead.values(), default=0.0)},
        ),
        dg.AssetCheckResult(
            check_name=NEAR_TARGET,
            passed=not off,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={"off target": dg.MetadataValue.json(off)},
        ),
    ]


def _asked_l0(variant: Variant) -> float | None:
    asked = variant.sae.get("k") or variant.sae.get("target_l0")
    return float(asked) if asked else None


def train_cells(
    study: Study,
    store: Store,
    cells: Sequence[tuple[str, Variant]],
    log: Callable[[str], None],
) -> None:
    """Train those of ``cells`` that do not exist yet, site by site, each in one pass."""
    missing = [
        (site, variant)
        for site, variant in cells
        if not store.artifacts.exists(study.sae(site, variant))
    ]
    for site, variants in by_site(missing).items():
        if study.activations.store == "disk":
            harvest_sites(study, store, [site], log)
        # one stream serves all variants that want the same batches in the same order
        streams: dict[tuple[object, ...], list[Variant]] = {}
        for variant in variants:
            train = variant.train
            key = train.batch_tokens, train.seed, train.devices
            streams.setdefault(key, []).append(variant)
        for together in streams.values():
            _train_together(study, store, site, together, log)


def _train_together(
    study: Study, store: Store, site: str, variants: Sequence[Variant], log: Callable[[str], None]
) -> None:
    from sae_lib.saes.files import save_sae
    from sae_lib.training.distributed.launch import fit_on_devices
    from sae_lib.training.live import note_point, why_stopped
    from sae_lib.training.loop import fit

    batches = _batches(study, store, site, variants, log)
    with ExitStack() as stack:
        spaces, checkpoints = {}, {}
        for variant in variants:
            identity = study.sae(site, variant)
            parents = {"model": study.model_fingerprint, "tokens": study.tokens.hash}
            if study.activations.store == "disk":
                parents["activations"] = study.harvested(site).hash
            space = stack.enter_context(
                store.artifacts.build(
                    identity, parents=parents, can_resume=True, device=store.device
                )
            )
            spaces[variant.id] = space
            checkpoints[variant.id] = space.path / "checkpoint"
        show = training_progress(f"training {len(variants)} SAEs at {site}", log)
        batch_tokens = variants[0].train.batch_tokens

        def on_step(report: Any) -> None:
            note_point(checkpoints[report.name], report, batch_tokens=batch_tokens)
            show(report.name, report.step, report.steps, report.numbers, report.problem)

        if variants[0].train.devices.count > 1:
            job = _job(study, store, site, variants, batches, checkpoints)
            results = fit_on_devices(job, on_step=on_step)
        else:
            trainees = [
                _trainee(study, store, site, variant, batches, checkpoints[variant.id])
                for variant in variants
            ]
            results = fit(trainees, batches, on_step=on_step)
        for fitted in results:
            space, reason = spaces[fitted.name], None
            if fitted.status != "complete":
                stopped = why_stopped(checkpoints[fitted.name])
                reason = stopped or f"the loss was not finite after step {fitted.steps}"
            facts = {
                "status": fitted.status,
                "steps": fitted.steps,
                "tokens": fitted.steps * fitted.train.batch_tokens,
                "seconds": round(fitted.seconds, 3),
                "final": fitted.numbers,
                "train": fitted.train.model_dump(mode="json"),
                "reason": reason,
                "site": site,
                "model": study.model.model_dump(mode="json"),
            }
            save_sae(fitted.coder, space.path, facts=facts)
            row = {
                "kind": fitted.coder.cfg.kind,
                "config": fitted.coder.cfg.model_dump(mode="json"),
                "d_in": fitted.coder.d_in,
                "d_sae": fitted.coder.d_sae,
                "path": str(store.artifacts.path(study.sae(site, study.variant(fitted.name)))),
                "objective": study.variant(fitted.name).objective["kind"],
                "reason": reason,
                "device": store.device,
                "peak_memory_bytes": peak_memory_bytes(),
                "packages": package_versions(),
                **{key: facts[key] for key in ("train", "status", "steps", "tokens", "seconds")},
            }
            save_rows(space.path / "saes.parquet", "saes", [row])
            save_rows(space.path / "curves.parquet", "curves", fitted.curves)
            space.facts.update(facts)
            shutil.rmtree(space.path / "checkpoint", ignore_errors=True)


def _trainee(
    study: Study, store: Store, site: str, variant: Variant, batches: Any, checkpoint: Path
) -> Any:
    from sae_lib.training.config import normalisation_scale
    from sae_lib.training.objectives import OBJECTIVES
    from sae_lib.training.trainee import Trainee

    width = batches.width(site)
    train = study.resolved_train(variant, width)
    objective = OBJECTIVES[variant.objective["kind"]].model_validate(variant.objective)
    model = language_model(study, store) if objective.needs_model else None
    return Trainee(
        name=variant.id,
        coder=study.sae_config(variant, width).build().to(store.device),
        site=site,
        train=train,
        objective=objective.build(model=model),
        scale=normalisation_scale(train.normalise, batches.stats(site).mean_square_norm),
        checkpoint=checkpoint,
        about={"objective": dict(variant.objective)},
    )


def _job(
    study: Study,
    store: Store,
    site: str,
    variants: Sequence[Variant],
    batches: Any,
    checkpoints: dict[str, Path],
) -> Any:
    """The same training by several processes: what they need to know to make the same trainees."""
    from sae_lib.training.config import normalisation_scale
    from sae_lib.training.distributed.job import Job, StoredSource, Task

    width, mean_square_norm = batches.width(site), batches.stats(site).mean_square_norm
    tasks = []
    for variant in variants:
        train = study.resolved_train(variant, width)
        tasks.append(
            Task(
                name=variant.id,
                sae=study.sae_config(variant, width).model_dump(mode="json"),
                site=site,
                train=train,
                objective=dict(variant.objective),
                scale=normalisation_scale(train.normalise, mean_square_norm),
                checkpoint=checkpoints[variant.id],
                about={"objective": dict(variant.objective)},
            )
        )
    train = variants[0].train
    source = StoredSource(
        store=store.artifacts.path(study.harvested(site)),
        sites=(site,),
        seed=train.seed,
        block_tokens=BLOCK_TOKENS,
        batch_tokens=train.batch_tokens,
    )
    return Job(devices=train.devices, device=store.device, source=source, tasks=tuple(tasks))


def _batches(
    study: Study, store: Store, site: str, variants: Sequence[Variant], log: Callable[[str], None]
) -> Any:
    from sae_lib.activations.batches import StoredBatches
    from sae_lib.activations.order import Order
    from sae_lib.activations.store import ActivationStore

    train = variants[0].train
    if study.activations.store == "stream":
        return streamed(study, store, site, log, batch_tokens=train.batch_tokens, seed=train.seed)
    harvested = ActivationStore.open(store.artifacts.path(study.harvested(site)))
    order = Order(
        harvested.kept_per_context,
        seed=train.seed,
        block_tokens=BLOCK_TOKENS,
        batch_tokens=train.batch_tokens,
    )
    return StoredBatches(harvested, [site], order, device=store.device)


def streamed(
    study: Study,
    store: Store,
    site: str,
    log: Callable[[str], None],
    *,
    batch_tokens: int,
    seed: int,
) -> Any:
    """Batches that are computed from the model when they are needed."""
    from sae_lib.activations.batches import StreamedBatches
    from sae_lib.activations.order import Order

    split = token_split(study, store, log, "train")
    order = Order(
        split.kept_per_context, seed=seed, block_tokens=BLOCK_TOKENS, batch_tokens=batch_tokens
    )
    return StreamedBatches(
        language_model(study, store),
        split,
        [site],
        order,
        batch_contexts=study.activations.batch_contexts,
        dtype=study.activations.dtype,
    )
