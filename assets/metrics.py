"""Metrics of every SAE, and the frontier over all of them."""

import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any, NamedTuple

import dagster as dg

from assets.activations import activations_key
from assets.conditions import RETRY, counting, explained, follows
from assets.corpora import token_split, tokens_key
from assets.grid import Outline, cell_key, cells_of, from_sites, grid, group
from assets.models import model_key
from assets.progress import progress
from assets.requests import pool_of, tags_of
from assets.rows import Attempts, Tables, build_rows, finished
from assets.saes import saes_key
from assets.store import EVERYTHING, Store, language_model, save_rows
from assets.study import Study, Variant, by_site
from assets.training import streamed
from assets.world import world_of_model
from sae_lib.config import Config
from sae_lib.errors import MissingFile
from sae_lib.models.places import Place

FILES = {
    "metrics": "metrics",
    "latents": "latents",
    "boundary": "metrics",
    "latent_scores": "latent_scores",
}

MEAN_BATCH_TOKENS = 2048

ROWS_PRESENT = "rows_present"
SANE = "values_are_possible"


def metrics_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, "metrics"])


def frontier_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, "frontier"])


def metrics_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    key = metrics_key(outline.name)

    @dg.asset(
        key=key,
        group_name=group(outline, "evaluation"),
        kinds={"torch", "parquet"},
        tags={"stage": "metrics"},
        op_tags=tags_of("metrics"),
        pool=pool_of("metrics"),
        owners=outline.owners,
        automation_condition=follows(outline),
        retry_policy=RETRY,
        partitions_def=grid(outline),
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=[
            saes_key(outline.name),
            # of the mean activation, which ablations put in a token's place
            from_sites(outline, activations_key(outline.name)),
            tokens_key(outline.name),
            model_key(outline.model),
        ],
        check_specs=[
            dg.AssetCheckSpec(ROWS_PRESENT, asset=key, description="Every SAE has metric rows."),
            dg.AssetCheckSpec(
                SANE,
                asset=key,
                description="No value lies outside what its definition allows.",
            ),
        ],
        description="Reconstruction, model behaviour and sparsity of each SAE on held-out tokens, "
        "each with its definition and standard error; one pass over the tokens for all SAEs.",
    )
    def metrics(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        with explained():
            study = load()
            cells = cells_of(study, context.partition_keys)
            with counting(context, key, lambda: finished("metrics", study, store, cells)):
                compute_metrics(study, store, cells, context.log.info)
        counts, impossible = {}, []
        for site, variant in cells:
            values = _values(study, store, site, variant)
            counts[f"{site}|{variant.id}"] = len(values)
            impossible += [f"{site}|{variant.id}: {text}" for text in _impossible(values)]
            context.add_asset_metadata(
                {name: values[name] for name in HEADLINES if values.get(name) is not None},
                partition_key=cell_key(site, variant.id),
            )
        return dg.MaterializeResult(
            check_results=[
                dg.AssetCheckResult(
                    check_name=ROWS_PRESENT,
                    passed=bool(counts) and all(counts.values()),
                    metadata={"rows": dg.MetadataValue.json(counts)},
                ),
                dg.AssetCheckResult(
                    check_name=SANE,
                    passed=not impossible,
                    metadata={"impossible": dg.MetadataValue.json(impossible)},
                ),
            ]
        )

    return metrics


HEADLINES = (
    "l0",
    "fvu",
    "explained_variance",
    "delta_lm_loss",
    "loss_recovered",
    "dead_share",
)


def compute_metrics(
    study: Study, store: Store, cells: Sequence[tuple[str, Variant]], log: Callable[[str], None]
) -> int:
    def compute(site: str, variants: Sequence[Variant]) -> Mapping[str, Tables]:
        with ExitStack() as stack:
            # texts are read once for all metrics, and only where a metric wants any
            shared = _Shared(
                cache(lambda: mean_activation(study, store, site, log)),
                cache(lambda: stack.enter_context(_reader(study, store, site))),
            )
            attempts = Attempts()
            for name, metrics in study.metric_parts().items():
                with attempts.at(f"{name} at {site}"):
                    _compute_part(study, store, site, variants, metrics, shared, log)
            attempts.conclude()
        return {variant.id: _joined(study, store, site, variant) for variant in variants}

    # explanations bring the statistics of latents with labels; without them these stand in
    lands = ("metrics", "latent_scores", *(() if study.explain else ("latents",)))
    return build_rows("metrics", study, store, cells, compute, FILES, lands)


class _Shared(NamedTuple):
    """What the metrics of one site share, made when the first of them wants it."""

    mean_activation: Callable[[], Any]
    reader: Callable[[], Any]


def _compute_part(
    study: Study,
    store: Store,
    site: str,
    variants: Sequence[Variant],
    metrics: Sequence[Any],
    shared: _Shared,
    log: Callable[[str], None],
) -> None:
    """Compute and keep what one part of the metrics finds for the SAEs that lack it."""
    from sae_lib.saes.files import load_sae

    missing = [
        variant
        for variant in variants
        if not store.artifacts.exists(study.metric_part(metrics, site, variant))
    ]
    if not missing:
        return
    coders = {
        variant.id: load_sae(store.artifacts.path(study.sae(site, variant))).to(store.device)
        for variant in missing
    }
    if hasattr(metrics[0], "measure"):
        found = _put_to_task(study, store, site, coders, metrics[0], shared, log)
    else:
        found = _read_together(study, store, site, coders, metrics, shared, log)
    for variant in missing:
        identity = study.metric_part(metrics, site, variant)
        parents = {"sae": study.sae(site, variant).hash, "model": study.model_fingerprint}
        with store.artifacts.build(identity, parents=parents, device=store.device) as space:
            for name, table in FILES.items():
                rows = found[variant.id].get(name, [])
                save_rows(space.path / f"{name}.parquet", table, rows)
                space.facts[name] = len(rows)


def _read_together(
    study: Study,
    store: Store,
    site: str,
    coders: Mapping[str, Any],
    metrics: Sequence[Any],
    shared: _Shared,
    log: Callable[[str], None],
) -> dict[str, Tables]:
    from sae_lib.evaluate import evaluate_site

    results = evaluate_site(
        language_model(study, store),
        token_split(study, store, log, "eval"),
        {site: coders},
        metrics,
        mean_activation={site: shared.mean_activation()},
        batch_contexts=study.activations.batch_contexts,
        on_progress=progress(f"evaluating {len(coders)} SAEs at {site}", log, unit="contexts"),
    )
    return {
        name: {
            "metrics": results[site, name].measurements,
            "latents": results[site, name].per_latent,
            "boundary": results[site, name].boundary,
        }
        for name in coders
    }


def _put_to_task(
    study: Study,
    store: Store,
    site: str,
    coders: Mapping[str, Any],
    metric: Any,
    shared: _Shared,
    log: Callable[[str], None],
) -> dict[str, Tables]:
    from sae_lib.evaluate import Bench, measure_task

    bench = Bench(
        model=shared.reader().model,
        site=site,
        coders=coders,
        reader=shared.reader(),
        mean_activation=shared.mean_activation(),
        train=token_split(study, store, log, "train"),
        split=token_split(study, store, log, "eval"),
        world=world_of_model(study),
        relative_to=study.base,
    )
    what = f"{metric.name} of {len(coders)} SAEs at {site}"
    results = measure_task(metric, bench, progress(what, log, unit="parts"))
    return {
        name: {"metrics": results[name].measurements, "latent_scores": results[name].latents}
        for name in coders
    }


def _reader(study: Study, store: Store, site: str) -> Any:
    from sae_lib.evaluate.reader import TextReader
    from sae_lib.models.placed import placed

    return TextReader(placed(language_model(study, store), site), site)


def _joined(study: Study, store: Store, site: str, variant: Variant) -> Tables:
    """The rows of all parts of the metrics for one SAE."""
    import polars as pl

    folders = [
        store.artifacts.path(study.metric_part(metrics, site, variant))
        for metrics in study.metric_parts().values()
    ]
    if not folders:  # an experiment that measures nothing
        return {name: () for name in FILES}
    return {
        name: pl.concat([pl.read_parquet(folder / f"{name}.parquet") for folder in folders])
        for name in FILES
    }


def mean_activation(study: Study, store: Store, site: str, log: Callable[[str], None]) -> Any:
    """Mean over training tokens of what is reconstructed at ``site``: from the store, or from a
    streamed sample."""
    from sae_lib.activations.stats import joined_means
    from sae_lib.activations.store import ActivationStore

    found = []
    for one in Place.parse(site).writes:
        if store.artifacts.exists(study.harvested(one)):
            source = ActivationStore.open(store.artifacts.path(study.harvested(one)))
        else:
            source = streamed(study, store, [one], log, batch_tokens=MEAN_BATCH_TOKENS, seed=0)
        found.append(source.stats(one))
    return joined_means(found)


def _rows(
    study: Study, store: Store, site: str, variant: Variant, *, file: str = "metrics"
) -> list[dict[str, Any]]:
    import polars as pl

    folder = store.artifacts.path(study.measured("metrics", site, variant))
    return pl.read_parquet(folder / f"{file}.parquet").to_dicts()


def _values(study: Study, store: Store, site: str, variant: Variant) -> dict[str, float | None]:
    """First value of each metric by name: the default definition stands first."""
    values: dict[str, float | None] = {}
    for row in _rows(study, store, site, variant):
        values.setdefault(row["name"], row["value"])
    return values


def _impossible(values: Mapping[str, float | None]) -> list[str]:
    """Values that no correct computation gives."""
    bounds = {
        "fvu": (0.0, None),
        "explained_variance": (None, 1.0),
        "l0": (0.0, None),
        "dead_share": (0.0, 1.0),
        "mse": (0.0, None),
        "cosine": (-1.0, 1.0),
        "kl_score": (None, 1.0),
    }
    wrong = []
    for name, (low, high) in bounds.items():
        value = values.get(name)
        if value is None:
            continue
        slack = 1e-6
        if (low is not None and value < low - slack) or (high is not None and value > high + slack):
            wrong.append(f"{name} = {value}")
    return wrong


def frontier_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    @dg.asset(
        key=frontier_key(outline.name),
        group_name=group(outline, "evaluation"),
        kinds={"parquet"},
        tags={"stage": "frontier"},
        op_tags=tags_of("frontier"),
        pool=pool_of("frontier"),
        owners=outline.owners,
        automation_condition=follows(outline),
        retry_policy=RETRY,
        deps=[metrics_key(outline.name)],
        description="Sparsity against fidelity over all SAEs of the experiment: Pareto sets, "
        "values at matched L0 and dominance between architectures.",
    )
    def frontier(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        with explained():
            rows = build_frontier(load(), store)
        return dg.MaterializeResult(metadata={"dagster/row_count": rows})

    return frontier


def build_frontier(study: Study, store: Store) -> int:
    """Build and land the frontier rows of the whole grid; how many there are."""

    identity = study.frontier
    if not store.artifacts.exists(identity):
        absent = study.missing(store.artifacts, "metrics")
        if absent:
            raise MissingFile(
                f"the frontier compares all SAEs, and {len(absent)} of {len(study.cells())} have "
                "no metrics yet. Build metrics first.",
                key="frontier",
            )
        rows = _boundaries(study, store)
        for metric in study.evaluate:
            rows += _comparisons(study, store, metric)
        rows += _grid_rows(study, store)
        with store.artifacts.build(identity, parents={"model": study.model_fingerprint}) as space:
            save_rows(space.path / "metrics.parquet", "metrics", rows)
            space.facts["metrics"] = len(rows)
    if not store.has_landed(study, "frontier", EVERYTHING, EVERYTHING, identity):
        store.land(study, "frontier", EVERYTHING, None, identity, ("metrics",))
    return store.artifacts.manifest(identity)["facts"]["metrics"]


def _boundaries(study: Study, store: Store) -> list[Any]:
    """Reference points of each site: the mean predictor, PCA, the identity."""
    first = {site: variant for site, variant in reversed(study.cells())}
    return [
        row
        for site, variant in sorted(first.items(), key=lambda cell: study.sites.index(cell[0]))
        for row in _rows(study, store, site, variant, file="boundary")
    ]


def _comparisons(study: Study, store: Store, metric: Config) -> list[Any]:
    """What a metric that compares SAEs says of the whole grid."""
    from sae_lib.evaluate.frontier import FrontierConfig, FrontierPoint

    if not isinstance(metric, FrontierConfig):
        return []
    points = []
    for site, variant in study.cells():
        values = _values(study, store, site, variant)
        for loss in metric.losses:
            l0, value = values.get("l0"), values.get(loss)
            if l0 is None or value is None:
                continue
            seed = variant.sae.get("seed", 0)
            points.append(FrontierPoint(_family(variant), site, loss, l0, value, seed))
    return list(metric.compare(points))


def _grid_rows(study: Study, store: Store) -> list[Any]:
    """What metrics that compare SAEs with one another say, site by site."""
    from sae_lib.saes.files import load_sae

    if not study.grid_metrics():
        return []
    rows = []
    for site, variants in by_site(study.cells()).items():
        coders = {v.id: load_sae(store.artifacts.path(study.sae(site, v))) for v in variants}
        families = {v.id: _seedless(v.id) for v in variants}
        for metric in study.grid_metrics():
            for name, found in metric.compare(coders, families).items():
                where = {"site": site, "variant": name}
                rows += [row._replace(params={**where, **row.params}) for row in found]
    return rows


def _seedless(variant_id: str) -> str:
    """What SAEs that differ in their seed alone have in common."""
    return re.sub(r"-s\d+$", "", variant_id)


def _family(variant: Variant) -> str:
    """Members of one family differ in sparsity and seed alone."""
    objective = variant.objective.get("kind", "plain")
    kind = variant.sae["kind"]
    return f"{kind}-w{variant.sae['d_sae']}" + ("" if objective == "plain" else f"-{objective}")
