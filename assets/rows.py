"""The common life of a stage whose product is rows: compute what is missing, keep, land."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from assets.grid import cell_key
from assets.store import Store, save_rows
from assets.study import Study, Variant, by_site
from sae_lib.errors import MissingFile, SaeError

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
    check_trained(stage, study, store, missing)
    attempts = Attempts()
    for site, variants in by_site(missing).items():
        with attempts.at(f"{stage} at {site}"):
            found = compute(site, variants)
            for variant in variants:
                _keep(stage, study, store, (site, variant), found[variant.id], files)
    for site, variant in cells:
        identity = study.measured(stage, site, variant)
        is_there = store.artifacts.exists(identity)
        if is_there and not store.has_landed(study, stage, site, variant.id, identity):
            store.land(study, stage, site, variant, identity, lands)
    attempts.conclude()
    return len(missing)


def _keep(
    stage: str,
    study: Study,
    store: Store,
    cell: tuple[str, Variant],
    found: Tables,
    files: Mapping[str, str],
) -> None:
    site, variant = cell
    identity = study.measured(stage, site, variant)
    parents = {
        "sae": study.sae(site, variant).hash,
        "model": study.model_fingerprint,
        "tokens": study.tokens.hash,
    }
    with store.artifacts.build(identity, parents=parents, device=store.device) as space:
        for name, table in files.items():
            rows = found.get(name, ())
            save_rows(space.path / f"{name}.parquet", table, rows)
            space.facts[name] = len(rows)
        space.facts["notes"] = list(found.get("notes", []))


def finished(
    stage: str, study: Study, store: Store, cells: Sequence[tuple[str, Variant]]
) -> list[str]:
    """Partition keys of those ``cells`` whose artefact of ``stage`` is there and landed."""
    kind = "sae" if stage == "saes" else stage
    return [
        cell_key(site, variant.id)
        for site, variant in cells
        if store.artifacts.exists(study.cell(kind, site, variant))
        and store.has_landed(study, stage, site, variant.id, study.cell(kind, site, variant))
    ]


def check_trained(
    stage: str, study: Study, store: Store, cells: Sequence[tuple[str, Variant]]
) -> None:
    """Raise `MissingFile` before any compute where SAEs are wanted that do not exist."""
    absent = [
        f"{site}|{variant.id}"
        for site, variant in cells
        if not store.artifacts.exists(study.sae(site, variant))
    ]
    if absent:
        raise MissingFile(
            f"{stage} of {len(absent)} SAEs cannot be built, since the SAEs are not trained yet "
            f"({', '.join(absent[:3])}{', ...' if len(absent) > 3 else ''}). Build saes first: "
            f"`sae run {study.name} --select '+{stage}'`.",
            key=stage,
        )


class Attempts:
    """Pieces of work of which one that fails does not keep the others from being done."""

    def __init__(self) -> None:
        self.failed: dict[str, Exception] = {}

    @contextmanager
    def at(self, piece: str) -> Iterator[None]:
        """Do one piece; its error is kept for `conclude`."""
        try:
            yield
        except Exception as error:  # noqa: BLE001  (raised again by conclude)
            self.failed[piece] = error

    def conclude(self) -> None:
        """Raise what the one piece raised that failed, or one error that names them all."""
        if not self.failed:
            return
        first = next(iter(self.failed.values()))
        if len(self.failed) == 1:
            raise first
        lines = [f"{piece}: {error}" for piece, error in self.failed.items()]
        raise SeveralFailed(
            f"{len(self.failed)} pieces of work failed; the others are done.\n" + "\n".join(lines),
            is_transient=all(getattr(e, "is_transient", False) for e in self.failed.values()),
        ) from first


class SeveralFailed(SaeError):
    """Some pieces of a batch failed."""

    def __init__(self, text: str, *, is_transient: bool) -> None:
        super().__init__(text)
        self.is_transient = is_transient
