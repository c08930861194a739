"""Trained SAEs: all variants of a site in one pass over its activations."""

from collections.abc import Callable, Sequence
from typing import Any

import dagster as dg

from assets.activations import activations_key
from assets.conditions import RETRY, counting, explained, follows, of_saes
from assets.corpora import tokens_key
from assets.grid import Outline, cell_key, cells_of, from_sites, grid, group
from assets.lineage import remember_model, trained_elsewhere
from assets.models import model_key
from assets.pictures import curve_markdown
from assets.requests import pool_of, tags_of
from assets.rows import finished
from assets.selections import land_selection
from assets.store import Store
from assets.study import Study, Variant
from assets.training import train_cells

WEIGHTS_CURRENT = "weights_current"
FINITE = "loss_is_finite"
FEW_DEAD = "few_dead_latents"
DEAD_SHARE_LIMIT = 0.5
NEAR_TARGET = "l0_near_target"
TARGET_TOLERANCE = 0.25
"""Relative; an L0 measured on the last training batches scatters by a few per cent."""

TABLES = ("saes", "curves")


def saes_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, "saes"])


def saes_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    key = saes_key(outline.name)

    @dg.asset(
        key=key,
        group_name=group(outline, "training"),
        kinds={"torch", "safetensors"},
        tags={"stage": "saes"},
        op_tags=tags_of("saes"),
        pool=pool_of("saes"),
        owners=outline.owners,
        automation_condition=of_saes(outline),
        retry_policy=RETRY,
        partitions_def=grid(outline),
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[
            from_sites(outline, activations_key(outline.name)),
            tokens_key(outline.name),
            model_key(outline.model),
        ],
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
        with explained():
            study = load()
            cells = cells_of(study, context.partition_keys)
            with counting(context, key, lambda: finished("saes", study, store, cells)):
                try:
                    train_cells(study, store, cells, context.log.info)
                finally:
                    _land(study, store, cells)
        facts = {}
        for site, variant in cells:
            identity = study.sae(site, variant)
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


def _land(study: Study, store: Store, cells: Sequence[tuple[str, Variant]]) -> None:
    """Put what is trained of ``cells`` into the warehouse."""
    remember_model(study, store.root)
    for site, variant in cells:
        identity = study.sae(site, variant)
        if not store.artifacts.exists(identity):
            continue
        if not store.has_landed(study, "saes", site, variant.id, identity):
            store.land(study, "saes", site, variant, identity, TABLES)
        land_selection(study, store, (site, variant))


def weights_current_check(outline: Outline, load: Callable[[], Study]) -> dg.AssetChecksDefinition:
    """A warning on the node of the SAEs when they belong to an earlier version of the model."""

    @dg.asset_check(
        asset=saes_key(outline.name),
        name=WEIGHTS_CURRENT,
        additional_deps=[model_key(outline.model)],
        automation_condition=follows(outline),
        description="Every SAE was trained on the model as it is now.",
    )
    def weights_current(store: Store) -> dg.AssetCheckResult:
        study = load()
        others = trained_elsewhere(study)
        return dg.AssetCheckResult(
            passed=not others,
            severity=dg.AssetCheckSeverity.WARN,
            metadata={
                "model now": study.model_fingerprint,
                "trained on an earlier one": len(others),
                "of": len(study.cells()),
                "which": dg.MetadataValue.json(others),
            },
        )

    return weights_current


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
