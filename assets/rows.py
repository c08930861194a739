"""The common life of a stage whose product is rows: compute what is missing, keep, land."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from assets.store import Store, save_rows
from assets.study import Study, Variant, by_site

Tables = Mapping[str, Any]
"""By name of the file: typed rows, or a frame with the columns of its table."""

ForSite = Callable[[str, Sequence[Variant]], Mapping[str, Tables]]
"""For one site and the variants that are missing: rows per table, by variant id."""


def build_rows(
    stage: str,
    study: Study,
    store: Store,
    cells: Sequence[tuple[str, Variant]],
    compute: ForSite,
    files: Mapping[str, str],
    lands: Sequence[str],
) -> int:
    """Build and land the rows of ``cells``; how many cells had to be computed.

    ``files`` maps the name of each file in the artefact to the table whose columns it has;
    ``lands`` names those that go into the warehouse. ``notes`` beside the rows are sentences for
    the manifest.
    """
    missing = [
        (site, variant)
        for site, variant in cells
        if not store.artifacts.exists(study.measured(stage, site, variant))
    ]
    for site, variants in by_site(missing).items():
        found = compute(site, variants)
        for variant in variants:
            identity = study.measured(stage, site, variant)
            parents = {
                "sae": study.sae(site, variant).hash,
                "model": study.model_fingerprint,
                "tokens": study.tokens.hash,
            }
            with store.artifacts.build(identity, parents=parents, device=store.device) as space:
                for name, table in files.items():
                    rows = found[variant.id].get(name, ())
                    save_rows(space.path / f"{name}.parquet", table, rows)
                    space.facts[name] = len(rows)
                space.facts["notes"] = list(found[variant.id].get("notes", []))
    for site, variant in cells:
        identity = study.measured(stage, site, variant)
        if not store.has_landed(study, stage, site, variant.id, identity):
            store.land(study, stage, site, variant, identity, lands)
    return len(missing)
