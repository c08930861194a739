"""What the SAEs are good for: probes, steering vectors, data selection."""

from collections.abc import Callable, Mapping, Sequence

import dagster as dg

from assets.conditions import RETRY, counting, explained, follows
from assets.corpora import token_split, tokens_key
from assets.grid import Outline, cell_key, cells_of, grid, group
from assets.models import model_key
from assets.progress import progress
from assets.requests import pool_of, tags_of
from assets.rows import Tables, build_rows, finished
from assets.saes import saes_key
from assets.store import Store, language_model
from assets.study import Study, Variant
from assets.world import world_of_model

TABLES = ("applications", "selections")
FILES = {table: table for table in TABLES}
ROWS_PRESENT = "rows_present"


def applications_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, "applications"])


def applications_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    key = applications_key(outline.name)

    @dg.asset(
        key=key,
        group_name=group(outline, "evaluation"),
        kinds={"parquet"},
        tags={"stage": "applications"},
        op_tags=tags_of("applications"),
        pool=pool_of("applications"),
        owners=outline.owners,
        automation_condition=follows(outline),
        retry_policy=RETRY,
        partitions_def=grid(outline),
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[saes_key(outline.name), tokens_key(outline.name), model_key(outline.model)],
        check_specs=[
            dg.AssetCheckSpec(ROWS_PRESENT, asset=key, description="Every application has rows.")
        ],
        description="Applications of each SAE beside the baselines that need none: sparse and "
        "dense probes, steering vectors with strength sweeps, diversity-driven data selection.",
    )
    def applications(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        with explained():
            study = load()
            cells = cells_of(study, context.partition_keys)
            with counting(context, key, lambda: finished("applications", study, store, cells)):
                compute_applications(study, store, cells, context.log.info)
        counts = {}
        for site, variant in cells:
            manifest = store.artifacts.manifest(study.measured("applications", site, variant))
            counts[f"{site}|{variant.id}"] = manifest["facts"]["applications"]
            context.add_asset_metadata(
                {"dagster/row_count": manifest["facts"]["applications"]},
                partition_key=cell_key(site, variant.id),
            )
        return dg.MaterializeResult(
            check_results=[
                dg.AssetCheckResult(
                    check_name=ROWS_PRESENT,
                    passed=all(counts.values()),
                    metadata={"rows": dg.MetadataValue.json(counts)},
                )
            ]
        )

    return applications


def compute_applications(
    study: Study, store: Store, cells: Sequence[tuple[str, Variant]], log: Callable[[str], None]
) -> int:
    from sae_lib.apply import Bench, apply_site
    from sae_lib.models.placed import placed
    from sae_lib.saes.files import load_sae

    def compute(site: str, variants: Sequence[Variant]) -> Mapping[str, Tables]:
        coders = {
            variant.id: load_sae(store.artifacts.path(study.sae(site, variant))).to(store.device)
            for variant in variants
        }
        model = language_model(study, store)
        bench = Bench(
            model=placed(model, site),
            site=site,
            coders=coders,
            split=token_split(study, store, log, "eval"),
            world=world_of_model(study),
            relative_to=study.base,
        )
        applied = apply_site(
            bench,
            study.apply,
            on_progress=progress(f"applying {len(coders)} SAEs at {site}", log, unit="parts"),
        )
        return {
            name: {"applications": applied.rows[name], "selections": applied.selections[name]}
            for name in coders
        }

    return build_rows(
        "applications", study, store, cells, compute, dict(zip(TABLES, TABLES, strict=True)), TABLES
    )
