"""One page per explained SAE to look through its latents, beside the study's own page."""

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import dagster as dg

from assets.applications import applications_key
from assets.conditions import RETRY, counting, explained, follows
from assets.explanations import explanations_key
from assets.grid import Outline, cell_key, cells_of, grid, group
from assets.metrics import metrics_key
from assets.pictures import latents_markdown
from assets.requests import pool_of, tags_of
from assets.rows import Attempts
from assets.store import Store
from assets.study import Study, Variant, slug
from sae_lib.artifacts import Identity
from sae_lib.errors import MissingFile

STAGE = "dashboards"
PAGE = "dashboard.html"

CODE = 1
"""Grows when the same rows give another page."""


def dashboards_key(experiment: str) -> dg.AssetKey:
    return dg.AssetKey([experiment, STAGE])


def dashboards_asset(outline: Outline, load: Callable[[], Study]) -> dg.AssetsDefinition:
    key = dashboards_key(outline.name)
    deps = [explanations_key(outline.name), metrics_key(outline.name)]
    deps += [applications_key(outline.name)] if outline.applies else []

    @dg.asset(
        key=key,
        group_name=group(outline, "study"),
        kinds={"html"},
        tags={"stage": STAGE},
        owners=outline.owners,
        automation_condition=follows(outline),
        retry_policy=RETRY,
        op_tags=tags_of(STAGE),
        pool=pool_of(STAGE),
        partitions_def=grid(outline),
        backfill_policy=dg.BackfillPolicy.single_run(),
        deps=deps,
        description="A page per SAE to look through its latents: one self-contained HTML file with "
        "labels, explanations, examples, neighbours and a map, without a server or a network.",
    )
    def dashboards(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        with explained():
            study = load()
            cells = cells_of(study, context.partition_keys)
            with counting(context, key, lambda: finished(study, store, cells)):
                build_dashboards(study, store, cells, context.log.info)
        for site, variant in cells:
            page = page_at(store.root, study.name, site, variant.id)
            facts = store.artifacts.manifest(identity_of(study, store, site, variant))["facts"]
            rows = store.artifacts.path(study.measured("explanations", site, variant))
            context.add_asset_metadata(
                {
                    "page": dg.MetadataValue.path(page),
                    "open": dg.MetadataValue.url(page.resolve().as_uri()),
                    "bytes": facts["bytes"],
                    "latents on the page": facts["latents"],
                    "left out": " ".join(facts["left_out"]) or "nothing",
                    "latents": dg.MetadataValue.md(latents_markdown(rows)),
                },
                partition_key=cell_key(site, variant.id),
            )
        return dg.MaterializeResult()

    return dashboards


def page_at(home: Path, experiment: str, site: str, variant: str) -> Path:
    """Where the page of one cell lies below ``home``."""
    name = cell_key(slug(site), slug(variant))
    return home / "reports" / slug(experiment) / f"{name}.html"


def identity_of(study: Study, store: Store, site: str, variant: Variant) -> Identity:
    """Of the page of one cell: the rows it shows, and the version of what draws it.

    Applications tell concepts of the world; a page that was made without them is another one.
    """
    content: dict[str, Any] = {
        "code": CODE,
        # rows stand in the page under the experiment's name
        "experiment": study.name,
        "sae": study.sae(site, variant).hash,
        "explanations": study.measured("explanations", site, variant).hash,
    }
    for stage in ("metrics", "applications"):
        rows = study.measured(stage, site, variant)
        if store.artifacts.exists(rows):
            content[stage] = rows.hash
    return Identity("dashboard", f"{slug(site)}-{slug(variant.id)}", content)


def build_dashboards(
    study: Study, store: Store, cells: Sequence[tuple[str, Variant]], log: Callable[[str], None]
) -> int:
    """Make the pages of ``cells`` that are missing or of other rows; how many had to be made."""
    absent = [
        cell_key(site, variant.id)
        for site, variant in cells
        if not store.artifacts.exists(study.measured("explanations", site, variant))
    ]
    if absent:
        raise MissingFile(
            f"dashboards of {len(absent)} SAEs cannot be made, since their latents are not "
            f"explained yet ({', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}). "
            f"`sae run {study.name} --select '+{STAGE}'` does both.",
            key=STAGE,
        )
    attempts, made = Attempts(), 0
    for site, variant in cells:
        with attempts.at(f"dashboard of {cell_key(site, variant.id)}"):
            is_new = build_one(study, store, site, variant)
            made += is_new
            log(f"{cell_key(site, variant.id)}: {'made' if is_new else 'was there'}")
    attempts.conclude()
    return made


def build_one(study: Study, store: Store, site: str, variant: Variant) -> bool:
    """Make one page where there is none of the same rows, and put it among the reports."""
    from sae_lib.report.dashboard import Cell, Landed, dashboard
    from sae_lib.warehouse.sync import note_landing

    identity = identity_of(study, store, site, variant)
    is_missing = not store.artifacts.exists(identity)
    if is_missing:
        source = Landed(
            store.warehouse, Cell(study.name, site, variant.id), study.model_fingerprint
        )
        parents = {key: value for key, value in identity.content.items() if key != "code"}
        with store.artifacts.build(identity, parents=parents) as space:
            page = dashboard(source, space.path / PAGE)
            space.facts |= {
                "bytes": page.num_bytes,
                "latents": page.num_latents,
                "left_out": page.left_out,
                "absent": page.absent,
            }
    report = page_at(store.root, study.name, site, variant.id)
    has_landed = store.has_landed(study, STAGE, site, variant.id, identity)
    if not has_landed or not report.is_file():
        _place(store.artifacts.path(identity) / PAGE, report)
    if not has_landed:
        facts = {
            "artifact": identity.hash,
            "created_at": store.artifacts.manifest(identity)["created_at"],
        }
        ledger = store.ledger(study.name, site, variant.id, STAGE)
        note_landing(store.warehouse, ledger, facts, [], store.remote)
    return is_missing


def _place(page: Path, report: Path) -> None:
    """``page`` under the name of ``report`` as well; a reader meets the old one or the new one."""
    report.parent.mkdir(parents=True, exist_ok=True)
    temporary = report.with_name(f".{report.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    try:
        os.link(page, temporary)
    except OSError:  # a file system without hard links
        shutil.copy2(page, temporary)
    temporary.replace(report)
    temporary.unlink(missing_ok=True)  # nothing is renamed where both names are of one file


def finished(study: Study, store: Store, cells: Sequence[tuple[str, Variant]]) -> list[str]:
    """Partition keys of those ``cells`` whose page is there and up to date."""
    return [cell_key(site, v.id) for site, v in cells if is_fresh(study, store, site, v)]


def is_fresh(study: Study, store: Store, site: str, variant: Variant) -> bool:
    """Whether the page among the reports shows the rows that the study asks for now."""
    identity = identity_of(study, store, site, variant)
    return (
        store.artifacts.exists(identity)
        and store.has_landed(study, STAGE, site, variant.id, identity)
        and page_at(store.root, study.name, site, variant.id).is_file()
    )


def identities(study: Study, store: Store) -> Iterator[tuple[str, str, Identity]]:
    """Site, variant and identity of every page of ``study``."""
    for site, variant in study.cells():
        yield site, variant.id, identity_of(study, store, site, variant)
