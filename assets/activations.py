"""Activations of the training tokens: every site in one pass over the model."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import dagster as dg
from filelock import FileLock

from assets.conditions import RETRY, explained, follows
from assets.corpora import token_split, tokens_key
from assets.grid import Outline, group, site_partitions
from assets.models import model_key
from assets.progress import progress
from assets.requests import pool_of, tags_of
from assets.store import Store, language_model
from assets.study import Study
from sae_lib.config import digest

FACTS = ("d_in", "dtype", "num_contexts", "num_rows", "mean_norm", "mean_square_norm")
"""What the manifest repeats of the store's own description."""


def activations_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, "activations"])


def activations_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    @dg.asset(
        key=activations_key(outline.name),
        group_name=group(outline, "data"),
        kinds={"safetensors", "torch"},
        tags={"stage": "activations"},
        op_tags=tags_of("activations"),
        pool=pool_of("activations"),
        owners=outline.owners,
        automation_condition=follows(outline),
        retry_policy=RETRY,
        partitions_def=site_partitions(outline),
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[tokens_key(outline.name), model_key(outline.model)],
        description="Activations of the training tokens at each site, harvested in one pass for "
        "all sites, with their norms and checksums. Empty when the experiment streams.",
    )
    def activations(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        with explained():
            study = load()
            if study.activations.store == "stream":
                return dg.MaterializeResult(metadata={"store": "streamed from the model"})
            sites = [site for site in outline.single_sites if site in set(context.partition_keys)]
            harvest_sites(study, store, sites, context.log.info)
        for site in sites:
            identity = study.harvested(site)
            facts = store.artifacts.manifest(identity)["facts"]
            context.add_asset_metadata(
                {
                    "path": dg.MetadataValue.path(store.artifacts.path(identity)),
                    "dagster/row_count": facts["num_rows"],
                    "width": facts["d_in"],
                    "mean_norm": facts["mean_norm"],
                    "root_mean_square_norm": facts["mean_square_norm"] ** 0.5,
                },
                partition_key=site,
            )
        return dg.MaterializeResult()

    return activations


def harvest_sites(
    study: Study, store: Store, sites: Sequence[str], log: Callable[[str], None]
) -> None:
    """Harvest those of ``sites`` that are not there yet, in one pass; a killed pass resumes."""
    from sae_lib.activations.harvest import harvest, site_folder

    missing = [site for site in sites if not store.artifacts.exists(study.harvested(site))]
    if not missing:
        return
    identities = {site: study.harvested(site) for site in missing}
    # One pass fills one folder; the artefacts, one per site, are moved out of it when it is whole.
    together = digest({"sites": sorted(identity.hash for identity in identities.values())})
    folder = store.root / "artifacts" / "activations" / f".pass-{together}.partial"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        # whoever looks for what was left behind sees that this is being written
        stack.enter_context(FileLock(str(folder.with_name(f".pass-{together}.lock"))))
        spaces = {
            site: stack.enter_context(
                store.artifacts.build(
                    identity,
                    parents={"tokens": study.tokens.hash, "model": study.model_fingerprint},
                    device=store.device,
                )
            )
            for site, identity in identities.items()
        }
        folder.mkdir(parents=True, exist_ok=True)
        summaries = harvest(
            language_model(study, store),
            token_split(study, store, log, "train"),
            missing,
            folder,
            batch_contexts=study.activations.batch_contexts,
            dtype=study.activations.dtype,
            on_progress=progress("harvesting", log, unit="contexts"),
        )
        for site, space in spaces.items():
            (folder / site_folder(site)).replace(space.path / site_folder(site))
            summary = summaries[site].model_dump(mode="json")
            space.facts.update({name: summary[name] for name in FACTS})
        shutil.rmtree(folder)
