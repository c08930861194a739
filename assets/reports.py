"""What people and SQL read: the results database and one page per experiment."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from assets.applications import applications_key
from assets.claims import claims_key
from assets.conditions import RETRY, at_once, explained, follows
from assets.described import describe_study
from assets.explanations import explanations_key
from assets.freshness import states
from assets.grid import Outline, group
from assets.metrics import frontier_key, metrics_key
from assets.pictures import frontier_markdown
from assets.requests import pool_of, tags_of
from assets.runs import land_runs
from assets.saes import saes_key
from assets.store import EVERYTHING, Store
from assets.study import Study
from assets.temporary import sweep
from sae_lib.errors import SaeError
from sae_lib.warehouse.checks import CHECKS

DATABASE = dg.AssetKey(["results", "database"])
NOT_EMPTY = "leaderboard_is_not_empty"


def study_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, "study"])


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
        op_tags=tags_of("database"),
        pool=pool_of("database"),
        automation_condition=at_once(),
        retry_policy=RETRY,
        deps=parents,
        check_specs=[
            dg.AssetCheckSpec(
                NOT_EMPTY, asset=DATABASE, description="The leaderboard has at least one SAE."
            ),
            *(
                dg.AssetCheckSpec(
                    check.name,
                    asset=DATABASE,
                    description=check.description,
                    # a page is not made of rows that stand twice
                    blocking=check.is_error,
                )
                for check in CHECKS
            ),
        ],
        description="`results.duckdb`: every row of every experiment as real tables, with views "
        "for the common questions. Built aside and renamed over, so readers are never blocked.",
    )
    def database(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        from sae_lib.warehouse.checks import check_tables
        from sae_lib.warehouse.publish import publish
        from sae_lib.warehouse.query import query

        sweep(store.root)
        store.sync(at_once=True)
        used = [outline for outline in outlines if store.has_rows_of(outline.name)]
        for outline in used:
            try:
                describe_study(loads[outline.name](), store)
            except SaeError as error:  # one file that is broken keeps no other from its results
                context.log.warning(f"{outline.name} cannot be described: {error}")
        land_runs(store, context.instance)
        cells = declared_cells(used)
        if store.remote:
            from sae_lib.warehouse.sync import declared_elsewhere

            cells += declared_elsewhere(store.warehouse, {one.name for one in outlines})
        counts = publish(store.warehouse, store.database, cells)
        store.sync(at_once=True)
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
                ),
                *(
                    dg.AssetCheckResult(
                        check_name=one.check.name,
                        passed=one.broken == 0,
                        severity=(
                            dg.AssetCheckSeverity.ERROR
                            if one.check.is_error
                            else dg.AssetCheckSeverity.WARN
                        ),
                        metadata={
                            "rows that break it": one.broken,
                            "some": dg.MetadataValue.json(one.some),
                        },
                    )
                    for one in check_tables(store.database)
                ),
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
        cells = [
            "–" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in values
        ]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join([head, rule, *rows])


def study_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    @dg.asset(
        key=study_key(outline.name),
        group_name=group(outline, "study"),
        kinds={"html"},
        tags={"stage": "study"},
        op_tags=tags_of("study"),
        pool=pool_of("study"),
        owners=outline.owners,
        automation_condition=follows(outline),
        retry_policy=RETRY,
        deps=[DATABASE],
        description=f"The study `{outline.name}` at a glance. {outline.description} "
        "Its metadata are the leaderboard, the frontier, the verdicts on claims and what is up to "
        "date; its page is one self-contained HTML file with everything.",
    )
    def study_at_a_glance(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        with explained():
            study = load()
            page = write_report(study, store)
            return dg.MaterializeResult(
                metadata={
                    "page": dg.MetadataValue.path(page),
                    "open": dg.MetadataValue.url(page.resolve().as_uri()),
                    "bytes": page.stat().st_size,
                    **_at_a_glance(study, store),
                }
            )

    return study_at_a_glance


SHOWN_SAES = 20

SHORT_LEADERBOARD = f"""
select site, variant, round(l0, 1) as l0, fvu, delta_lm_loss, loss_recovered, dead_share
from leaderboard where experiment = ? order by site, fvu nulls last limit {SHOWN_SAES}
"""

VERDICTS = "select verdict, count(*) as claims from claims where experiment = ? group by all"

LOST = "select count(*) as runs from runs where experiment = ? and status = 'FAILURE'"


def _at_a_glance(study: Study, store: Store) -> dict[str, Any]:
    """The report in small: tables and a picture that the UI shows inside the asset."""
    from sae_lib.warehouse.query import query

    def ask(sql: str) -> Any:
        return query(store.database, sql, [study.name])

    counts = Counter((one.stage, one.state) for one in states(study, store))
    freshness = ["| stage | state | cells |", "|---|---|---|"]
    freshness += [f"| {stage} | {state} | {count} |" for (stage, state), count in counts.items()]
    found: dict[str, Any] = {
        "saes": len(study.cells()),
        "model": study.model_fingerprint,
        "leaderboard": dg.MetadataValue.md(_markdown(ask(SHORT_LEADERBOARD))),
        "up to date": dg.MetadataValue.md("\n".join(freshness)),
        "claims": dg.MetadataValue.md(_markdown(ask(VERDICTS))),
        "runs that failed": ask(LOST).item(),
    }
    picture = frontier_markdown(ask("select * from frontier where experiment = ?"))
    return found | ({"frontier": dg.MetadataValue.md(picture)} if picture else {})


def write_report(study: Study, store: Store) -> Path:
    from sae_lib.report.study import study_report

    return study_report(store.database, study.name, store.report(study.name))
