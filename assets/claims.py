"""What the results of an experiment say about the claims of the survey and its papers."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from assets.applications import applications_key
from assets.conditions import RETRY, explained, follows
from assets.described import describe_study
from assets.grid import Outline, group
from assets.metrics import frontier_key, metrics_key
from assets.requests import pool_of, tags_of
from assets.store import EVERYTHING, Store, save_rows
from assets.study import CODE_VERSIONS, Study
from sae_lib.artifacts import Identity
from sae_lib.config import digest

JUDGED = "some_claims_have_data"


def claims_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, "claims"])


def claims_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    key = claims_key(outline.name)
    upstream = [metrics_key(outline.name), frontier_key(outline.name)]
    if outline.applies:
        upstream.append(applications_key(outline.name))

    @dg.asset(
        key=key,
        group_name=group(outline, "evaluation"),
        kinds={"parquet"},
        tags={"stage": "claims"},
        op_tags=tags_of("claims"),
        pool=pool_of("claims"),
        owners=outline.owners,
        automation_condition=follows(outline),
        retry_policy=RETRY,
        deps=upstream,
        check_specs=[
            dg.AssetCheckSpec(
                JUDGED,
                asset=key,
                description="The experiment has data for at least one claim. A claim that is "
                "refuted is a result, and passes.",
            )
        ],
        description="Claims of the survey and its papers about SAE variants, each with a verdict, "
        "an effect, its 95 % interval over seeds, and the reason in words.",
    )
    def claims(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        with explained():
            verdicts = build_claims(load(), store)
        judged = sum(number for verdict, number in verdicts.items() if verdict != "no data")
        return dg.MaterializeResult(
            metadata={
                "dagster/row_count": sum(verdicts.values()),
                "verdicts": dg.MetadataValue.json(verdicts),
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name=JUDGED,
                    passed=judged > 0,
                    severity=dg.AssetCheckSeverity.WARN,
                    metadata={"claims": judged},
                )
            ],
        )

    return claims


def identity_of(study: Study, store: Store) -> Identity:
    """The verdicts on what is measured by now; another number or another claim, other verdicts."""
    from sae_lib.claims.listed import CLAIMS

    stages = ["metrics", *(["applications"] if study.apply else [])]
    cells = [
        study.measured(stage, site, variant) for stage in stages for site, variant in study.cells()
    ]
    content = {
        "code": CODE_VERSIONS["claims"],
        "cells": sorted(one.hash for one in cells if store.artifacts.exists(one)),
        "claims": digest({name: one.model_dump(mode="json") for name, one in CLAIMS.items()}),
    }
    return Identity("claims", study.name, content)


def build_claims(study: Study, store: Store) -> dict[str, int]:
    """Judge every claim and land the rows; how many rows have each verdict."""
    identity = identity_of(study, store)
    if not store.artifacts.exists(identity):
        rows = _judged(study, store)
        with store.artifacts.build(identity, parents={"model": study.model_fingerprint}) as space:
            save_rows(space.path / "claims.parquet", "claims", rows)
            verdicts = [row.verdict for row in rows]
            space.facts["verdicts"] = {one: verdicts.count(one) for one in dict.fromkeys(verdicts)}
    if not store.has_landed(study, "claims", EVERYTHING, EVERYTHING, identity):
        store.land(study, "claims", EVERYTHING, None, identity, ("claims",))
    return store.artifacts.manifest(identity)["facts"]["verdicts"]


def _judged(study: Study, store: Store) -> list[Any]:
    """Verdicts on the published results, which are brought up to date first."""
    from sae_lib.claims import evaluate
    from sae_lib.warehouse.publish import publish

    describe_study(study, store)
    cells = [(study.name, site, variant.id) for site, variant in study.cells()]
    cells.append((study.name, EVERYTHING, EVERYTHING))
    publish(store.warehouse, store.database, cells, experiments=[study.name])
    return evaluate(store.database, study.name)
