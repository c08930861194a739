"""What the latents of every SAE mean, with the text they fire on."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import dagster as dg

from assets.conditions import RETRY, counting, explained, follows
from assets.corpora import token_split, tokens_key
from assets.grid import Outline, cell_key, cells_of, grid, group
from assets.models import model_key
from assets.pictures import few_latents_markdown, latents_markdown
from assets.progress import progress
from assets.requests import pool_of, tags_of
from assets.rows import Tables, build_rows, finished
from assets.saes import saes_key
from assets.store import Store, language_model
from assets.study import Study, Variant

TABLES = ("latents", "explanations", "examples", "latent_pairs")
FILES = {table: table for table in TABLES}
EXPLAINED = "alive_latents_are_explained"


def explanations_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, "explanations"])


def explanations_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    key = explanations_key(outline.name)

    @dg.asset(
        key=key,
        group_name=group(outline, "evaluation"),
        kinds={"parquet"},
        tags={"stage": "explanations"},
        op_tags=tags_of("explanations"),
        pool=pool_of("explanations"),
        owners=outline.owners,
        automation_condition=follows(outline),
        retry_policy=RETRY,
        partitions_def=grid(outline),
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[saes_key(outline.name), tokens_key(outline.name), model_key(outline.model)],
        check_specs=[
            dg.AssetCheckSpec(
                EXPLAINED,
                asset=key,
                description="Every latent that fired has at least one explanation.",
            )
        ],
        description="Explanations of every latent that fires, by each method the experiment "
        "names, with the strongest examples; a sample is shown with each partition.",
    )
    def explanations(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        with explained():
            study = load()
            cells = cells_of(study, context.partition_keys)
            with counting(context, key, lambda: finished("explanations", study, store, cells)):
                compute_explanations(study, store, cells, context.log.info)
        unexplained: dict[str, int] = {}
        for site, variant in cells:
            folder = store.artifacts.path(study.measured("explanations", site, variant))
            counts = store.artifacts.manifest(study.measured("explanations", site, variant))
            missing = _unexplained(folder)
            if missing:
                unexplained[f"{site}|{variant.id}"] = missing
            context.add_asset_metadata(
                {
                    "explanations": counts["facts"]["explanations"],
                    "examples": counts["facts"]["examples"],
                    "does not apply": "; ".join(counts["facts"]["notes"]) or "nothing",
                    "some latents": dg.MetadataValue.md(few_latents_markdown(folder)),
                    "latents": dg.MetadataValue.md(latents_markdown(folder)),
                },
                partition_key=cell_key(site, variant.id),
            )
        return dg.MaterializeResult(
            check_results=[
                dg.AssetCheckResult(
                    check_name=EXPLAINED,
                    passed=not unexplained,
                    severity=dg.AssetCheckSeverity.WARN,
                    metadata={"unexplained": dg.MetadataValue.json(unexplained)},
                )
            ]
        )

    return explanations


def _unexplained(folder: Any) -> int:
    import polars as pl

    latents = pl.read_parquet(folder / "latents.parquet").filter(pl.col("density") > 0)
    said = pl.read_parquet(folder / "explanations.parquet").select("latent").unique()
    return latents.join(said, on="latent", how="anti").height


def compute_explanations(
    study: Study, store: Store, cells: Sequence[tuple[str, Variant]], log: Callable[[str], None]
) -> int:
    from sae_lib.explain import explain_site
    from sae_lib.models.placed import placed
    from sae_lib.saes.files import load_sae

    def compute(site: str, variants: Sequence[Variant]) -> Mapping[str, Tables]:
        coders = {
            variant.id: load_sae(store.artifacts.path(study.sae(site, variant))).to(store.device)
            for variant in variants
        }
        model = language_model(study, store)
        explained = explain_site(
            placed(model, site),
            token_split(study, store, log, "train"),
            site,
            coders,
            study.explain,
            batch_contexts=study.activations.batch_contexts,
            max_contexts=max(1, study.explain_tokens // study.corpus.context),
            on_progress=progress(f"explaining {len(coders)} SAEs at {site}", log, unit="contexts"),
        )
        return {
            name: {
                "latents": one.latents,
                "explanations": one.explanations,
                "examples": one.examples,
                "latent_pairs": one.pairs,
                "notes": [f"{method}: {why}" for method, why in one.not_applicable.items()],
            }
            for name, one in explained.items()
        }

    return build_rows(
        "explanations", study, store, cells, compute, dict(zip(TABLES, TABLES, strict=True)), TABLES
    )
