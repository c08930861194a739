"""Where everything lives: one resource, and the landing of rows in the warehouse."""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import dagster as dg

from assets.requests import threads_of_a_step
from assets.study import Study, Variant
from sae_lib.artifacts import ArtifactStore, Identity
from sae_lib.remote import Remote, remote_from_env

EVERYTHING = ""
"""Site and variant of rows that are about a whole experiment."""


class Store(dg.ConfigurableResource):
    """Artefacts, warehouse and reports under one folder (``SAE_HOME``)."""

    home: str
    device: str = "cpu"

    def setup_for_execution(self, context: dg.InitResourceContext) -> None:
        """Take this step's share of the cores, where steps share a machine."""
        threads = threads_of_a_step()
        if threads is not None:
            from sae_lib.models.threads import use_threads

            use_threads(threads)

    @property
    def root(self) -> Path:
        return Path(self.home)

    @property
    def artifacts(self) -> ArtifactStore:
        return ArtifactStore(self.root, self.remote)

    @property
    def remote(self) -> Remote | None:
        """The store that machines share, where the environment names one."""
        return remote_from_env()

    def sync(self, *, at_once: bool = False) -> None:
        """Exchange the warehouse's rows with the other machines, once a minute or at once."""
        if self.remote:
            from sae_lib.warehouse.sync import keep_synced

            keep_synced(self.warehouse, self.remote, at_once=at_once)

    @property
    def warehouse(self) -> Path:
        return self.root / "warehouse"

    @property
    def database(self) -> Path:
        return self.root / "results.duckdb"

    def report(self, experiment: str) -> Path:
        return self.root / "reports" / f"{experiment}.html"

    def ledger(self, experiment: str, site: str, variant: str, stage: str) -> Path:
        from sae_lib.warehouse.write import encode_value

        cell = "|".join(encode_value(part) for part in (experiment, site, variant))
        return self.warehouse / ".landed" / encode_value(cell) / f"{stage}.json"

    def has_rows_of(self, experiment: str) -> bool:
        """Whether anything of ``experiment`` was ever put into the warehouse."""
        from sae_lib.warehouse.write import encode_value

        start = encode_value(encode_value(experiment) + "|")
        return any((self.warehouse / ".landed").glob(f"{start}*"))

    def has_landed(
        self, study: Study, stage: str, site: str, variant: str, identity: Identity
    ) -> bool:
        """Whether the warehouse holds the rows of exactly this artefact for this cell."""
        path = self.ledger(study.name, site, variant, stage)
        if not path.is_file():
            self.sync()
        if not path.is_file():
            return False
        return json.loads(path.read_text("utf-8")).get("artifact") == identity.hash

    def land(
        self,
        study: Study,
        stage: str,
        site: str,
        variant: Variant | None,
        identity: Identity,
        tables: Sequence[str],
    ) -> None:
        """Put the rows of an artefact into the warehouse under this experiment's partition."""
        from sae_lib.warehouse.landing import land_table
        from sae_lib.warehouse.sync import note_landing
        from sae_lib.warehouse.tables import table as spec_of
        from sae_lib.warehouse.write import Provenance

        variant_id = variant.id if variant else EVERYTHING
        manifest = self.artifacts.manifest(identity)
        provenance = Provenance(
            sae_id=study.sae(site, variant).hash if variant else None,
            artifact_id=identity.hash,
            model=study.model_name,
            # an SAE that was kept when the model changed belongs to the model it was trained on
            model_fingerprint=(
                study.origin(site, variant).model_fingerprint
                if variant and stage == "saes"
                else study.model_fingerprint
            ),
            seed=variant.sae.get("seed") if variant else None,
            created_at=datetime.fromisoformat(manifest["created_at"]),
        )
        partition = {"experiment": study.name, "site": site, "variant": variant_id}
        landed = []
        for table in tables:
            file = self.artifacts.path(identity) / f"{table}.parquet"
            keys = {key: partition[key] for key in spec_of(table).partition}
            landed.append(land_table(self.warehouse, table, keys, file, provenance))
        ledger = self.ledger(study.name, site, variant_id, stage)
        facts = {"artifact": identity.hash, "created_at": manifest["created_at"]}
        note_landing(self.warehouse, ledger, facts, landed, self.remote)


def save_rows(path: Path, table: str, rows: Any) -> None:
    """One Parquet file with the own columns of ``table``."""
    from sae_lib.warehouse.landing import save_table

    save_table(path, table, rows)


_loaded: dict[str, Any] = {}
"""The language model this process used last; one at a time, for its memory."""


def language_model(study: Study, store: Store) -> Any:
    """The study's model, loaded once per process."""
    from sae_lib.models.language_model import load_model

    key = f"{study.model_fingerprint}-{study.model.dtype}-{store.device}"
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = load_model(study.model, device=store.device, relative_to=study.base)
    return _loaded[key]
