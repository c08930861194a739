"""The warehouse's files and a remote store that several machines share, brought to one state."""

from sae_lib.warehouse.sync.declarations import declared_elsewhere
from sae_lib.warehouse.sync.files import LEDGERS, belongs, shared_ledgers
from sae_lib.warehouse.sync.sync import Step, Synced, keep_synced, note_landing, sync_warehouse

__all__ = [
    "LEDGERS",
    "Step",
    "Synced",
    "belongs",
    "declared_elsewhere",
    "keep_synced",
    "note_landing",
    "shared_ledgers",
    "sync_warehouse",
]
