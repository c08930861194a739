"""What is kept that nothing asks for any more, and what dead processes left behind."""

from collections.abc import Iterable, Iterator
from pathlib import Path

from filelock import FileLock, Timeout

from assets.claims import identity_of as claims_identity
from assets.dashboards import identities as dashboards
from assets.freshness import stages_of
from assets.layer_groups import grouped_variants
from assets.layer_groups import identity_of as groups_identity
from assets.selections import identity_of as selection_identity
from assets.selections import selection_key
from assets.store import Store
from assets.study import Study
from assets.temporary import Leftover, size, temporary
from sae_lib.artifacts import MANIFEST, Identity


def asked_for(study: Study, store: Store) -> Iterator[Identity]:
    """Everything that ``study`` asks for, and what SAEs it keeps were made from."""
    for one in (study, *study.before):
        yield one.tokens
        for site in one.primitive_sites():
            yield one.harvested(site)
    for variant in grouped_variants(study):
        yield groups_identity(study, variant.places)
    for site, variant in study.cells():
        yield study.own_sae(site, variant)
        yield study.sae(site, variant)
        general = study.general(variant)
        if general is not None:
            yield study.own_sae(site, general)
        if selection_key(study, variant) is not None:
            yield selection_identity(study, (site, variant))
        for stage in stages_of(study):
            if stage != "saes":
                yield study.measured(stage, site, variant)
        for metrics in study.metric_parts().values():
            yield study.metric_part(metrics, site, variant)
    if study.explain:
        yield from (identity for _, _, identity in dashboards(study, store))
    yield study.frontier
    yield claims_identity(study, store)


def leftovers(store: Store, studies: Iterable[Study], declared: set[str]) -> list[Leftover]:
    """What could go from the home of ``store``.

    ``studies`` are all that are known; ``declared`` the cells (``experiment|site|variant``) and,
    for rows about whole experiments, ``experiment||``, that still count.
    """
    wanted = {str(identity) for study in studies for identity in asked_for(study, store)}
    found = [*_artefacts(store.root, wanted), *_rows(store, declared)]
    return found + list(temporary(store.root))


def _artefacts(root: Path, wanted: set[str]) -> Iterator[Leftover]:
    for folder in sorted((root / "artifacts").glob("*/*")):
        kind, name = folder.parent.name, folder.name
        if not folder.is_dir():
            continue
        if name.startswith("."):
            if name.endswith(".partial") and not _is_held(folder):
                why = "left by a writer that was stopped; a rerun would go on from here"
                yield Leftover("unfinished", folder, size(folder), why)
        elif not (folder / MANIFEST).is_file():
            yield Leftover("unfinished", folder, size(folder), "it has no manifest")
        elif f"{kind}/{name}" not in wanted:
            why = "no experiment asks for it any more"
            yield Leftover("artefact", folder, size(folder), why)


def _is_held(partial: Path) -> bool:
    """Whether a living process works in this directory."""
    lock = partial.with_name(partial.name.removesuffix(".partial") + ".lock")
    if not lock.is_file():
        return False
    try:
        with FileLock(str(lock), timeout=0):
            return False
    except Timeout:
        return True


def _rows(store: Store, declared: set[str]) -> Iterator[Leftover]:
    """Partitions of the warehouse, and their ledgers, that no experiment declares any more."""
    from sae_lib.warehouse.write import decode_value

    for ledger in sorted((store.warehouse / ".landed").glob("*")):
        parts = [decode_value(part) for part in decode_value(ledger.name).split("|")]
        if len(parts) != 3:
            continue
        experiment, site, variant = parts
        is_declared = "|".join(parts) in declared or (not variant and f"{experiment}||" in declared)
        if is_declared:
            continue
        why = f"no experiment declares {'|'.join(parts)} any more"
        for folder in _partitions(store.warehouse, experiment, site, variant):
            yield Leftover("rows", folder, size(folder), why)
        yield Leftover("rows", ledger, size(ledger), why)


def _partitions(warehouse: Path, experiment: str, site: str, variant: str) -> list[Path]:
    from sae_lib.warehouse.tables import CELL, TABLES
    from sae_lib.warehouse.write import encode_value

    values = dict(zip(CELL, (experiment, site, variant), strict=True))
    parts = [f"{key}={encode_value(values[key])}" for key in CELL]
    tables = [table.name for table in TABLES.values() if table.partition == CELL]
    folders = [warehouse.joinpath(table, *parts) for table in tables]
    return [folder for folder in folders if folder.is_dir()]
