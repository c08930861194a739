"""What people and SQL read: the results database and one page per experiment."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from assets.applications import applications_key
from assets.explanations import explanations_key
from assets.grid import Outline, group
from assets.metrics import frontier_key, metrics_key
from assets.saes import saes_key
from assets.store import EVERYTHING, Store
from assets.study import Study
from sae_lib.artifacts import write_atomically
from sae_lib.config import digest

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
        parents += [saes_key(outline.name), metrics_key(outline.name), frontier_key(outline.name)]
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


def describe_study(study: Study, store: Store) -> None:
    """Write what was asked, the model, and what each measurement means."""
    from sae_lib.artifacts import package_versions
    from sae_lib.warehouse.write import Provenance, write_rows

    provenance = Provenance(model=study.model_name, model_fingerprint=study.model_fingerprint)
    asked = {
        "description": study.description or None,
        "config": study.asked(),
        "packages": package_versions(),
        "path": str(study.file) if study.file else None,
    }
    _write_once(store, "experiments", {"experiment": study.name}, [asked], provenance, write_rows)
    info = study.info
    model = {
        "path": study.model.id,
        "revision": study.model.revision,
        "family": info.family,
        "num_layers": info.num_layers,
        "d_model": info.d_model,
        "vocab_size": info.vocab_size,
        "has_lm_head": info.has_lm_head,
    }
    keys = {"model": study.model_name, "model_fingerprint": study.model_fingerprint}
    # the newest row of a model is the version in use: going back to an older one is written again
    about = {"model": study.model_name}
    _write_once(store, "models", keys, [model], provenance, write_rows, about=about)
    _write_once(store, "definitions", {}, definition_rows(), provenance, write_rows)


def definition_rows() -> list[dict[str, Any]]:
    """What every metric that is registered can say, as rows."""
    from sae_lib.evaluate import METRICS

    return [
        {
            "name": one.name,
            "definition": one.definition,
            "version": one.version,
            "text": one.text,
            "better": one.better,
            "low": one.low if math.isfinite(one.low) else None,
            "high": one.high if math.isfinite(one.high) else None,
        }
        for member in METRICS.values()
        for one in member.definitions()
    ]


def _write_once(
    store: Store,
    table: str,
    keys: Mapping[str, str],
    rows: Sequence[Mapping[str, Any]],
    provenance: Any,
    write: Callable[..., Path],
    *,
    about: Mapping[str, str] | None = None,
) -> None:
    """Write ``rows`` unless exactly these were the last written about this thing."""
    content = digest({"keys": dict(keys), "rows": list(rows)})
    name = digest({"table": table, **(keys if about is None else about)})
    ledger = store.warehouse / ".landed" / "about" / f"{name}.json"
    if ledger.is_file() and json.loads(ledger.read_text("utf-8")).get("rows") == content:
        return
    write(store.warehouse, table, keys, rows, provenance)
    write_atomically(ledger, json.dumps({"table": table, "rows": content}) + "\n")


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
