"""What people and SQL read: the results database and one page per experiment."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import dagster as dg

from assets.applications import applications_key
from assets.claims import claims_key
from assets.described import describe_study
from assets.explanations import explanations_key
from assets.grid import Outline, group
from assets.metrics import frontier_key, metrics_key
from assets.saes import saes_key
from assets.store import EVERYTHING, Store
from assets.study import Study

DATABASE = dg.AssetKey(["results", "database"])
NOT_EMPTY = "leaderboard_is_not_empty"


def report_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, "report"])


def declared_cells(outlines: Sequence[Outline]) -> list[tuple[str, str, str]]:
    """Every partition of the warehouse that some experiment still asks for."""
    cells = [
        (outline.name, key.split("|")[0], key.split("|")[1])
        for outline in outlines
        for key in outline.cells
    ]
    return cells + [(outline.name, EVERYTHING, EVERYTHING) for outline in outlines]


def database_asset(
    outlines: Sequence[Outline], loads: Mapping[str, Callable[[], Study]]
) -> dg.AssetsDefinition:
    parents: list[dg.AssetKey] = []
    for outline in outlines:
        parents += [saes_key(outline.name), metrics_key(outline.name)]
        parents += [frontier_key(outline.name), claims_key(outline.name)]
        if outline.explains:
            parents.append(explanations_key(outline.name))
        if outline.applies:
            parents.append(applications_key(outline.name))

    @dg.asset(
        key=DATABASE,
        group_name="results",
        kinds={"duckdb"},
        tags={"stage": "results"},
        deps=parents,
        check_specs=[
            dg.AssetCheckSpec(
                NOT_EMPTY, asset=DATABASE, description="The leaderboard has at least one SAE."
            )
        ],
        description="`results.duckdb`: every row of every experiment as real tables, with views "
        "for the common questions. Built aside and renamed over, so readers are never blocked.",
    )
    def database(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        from sae_lib.warehouse.publish import publish
        from sae_lib.warehouse.query import query

        used = [outline for outline in outlines if store.has_rows_of(outline.name)]
        for outline in used:
            describe_study(loads[outline.name](), store)
        counts = publish(store.warehouse, store.database, declared_cells(used))
        leaders = query(store.database, "select * from leaderboard limit 20")
        return dg.MaterializeResult(
            metadata={
                "path": dg.MetadataValue.path(store.database),
                "rows": dg.MetadataValue.json(counts),
                "leaderboard": dg.MetadataValue.md(_markdown(leaders)),
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name=NOT_EMPTY,
                    passed=leaders.height > 0,
                    metadata={"saes": leaders.height},
                )
            ],
        )

    return database


def _markdown(frame: object) -> str:
    import polars as pl

    assert isinstance(frame, pl.DataFrame)
    head = "| " + " | ".join(frame.columns) + " |"
    rule = "|" + " --- |" * len(frame.columns)
    rows = []
    for values in frame.iter_rows():
        cells = [f"{v:.4g}" if isinstance(v, float) else str(v) for v in values]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([head, rule, *rows])


def report_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    @dg.asset(
        key=report_key(outline.name),
        group_name=group(outline, "report"),
        kinds={"html"},
        tags={"stage": "report"},
        deps=[DATABASE],
        description="One self-contained HTML page about the study: frontier, metrics, curves, "
        "applications and latents with highlighted examples.",
    )
    def report(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        page = write_report(load(), store)
        return dg.MaterializeResult(
            metadata={
                "page": dg.MetadataValue.path(page),
                "open": dg.MetadataValue.url(page.resolve().as_uri()),
                "bytes": page.stat().st_size,
            }
        )

    return report


def write_report(study: Study, store: Store) -> Path:
    from sae_lib.report.study import study_report

    return study_report(store.database, study.name, store.report(study.name))
