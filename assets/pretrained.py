"""SAEs that were trained elsewhere become artefacts like our own."""

import time
from collections.abc import Callable

from assets.store import Store, save_rows
from assets.study import Study, Variant
from sae_lib.artifacts import package_versions, peak_memory_bytes


def import_cell(
    study: Study, store: Store, cell: tuple[str, Variant], log: Callable[[str], None]
) -> None:
    """Read the SAE of one cell from its files and keep it in our form."""
    from sae_lib.interop.pretrained import read_pretrained
    from sae_lib.saes.files import save_sae

    site, variant = cell
    config = study.sae_config(variant, site)
    log(f"importing {variant.id} at {site} from {config.path} ({config.format})")
    began = time.perf_counter()
    parents = {"model": study.model_fingerprint}
    identity = study.sae(site, variant)
    with store.artifacts.build(identity, parents=parents, device=store.device) as space:
        found = read_pretrained(config, study.base)
        facts = {
            "status": "complete",
            "steps": 0,
            "tokens": 0,
            "seconds": round(time.perf_counter() - began, 3),
            "final": {},
            "train": {},
            "reason": None,
            "site": site,
            "model": study.model.model_dump(mode="json"),
            "origin": {**found.facts, "files": config.model_dump(mode="json")},
        }
        save_sae(found.coder, space.path, facts=facts)
        row = {
            "kind": found.coder.cfg.kind,
            "config": found.coder.cfg.model_dump(mode="json"),
            "d_in": found.coder.d_in,
            "d_sae": found.coder.d_sae,
            "path": str(store.artifacts.path(identity)),
            "objective": None,
            "reason": None,
            "device": store.device,
            "peak_memory_bytes": peak_memory_bytes(),
            "packages": package_versions(),
            "train": {},
            "status": "complete",
            "steps": 0,
            "tokens": 0,
            "seconds": facts["seconds"],
            "cpu_seconds": None,
            "flops": None,
        }
        save_rows(space.path / "saes.parquet", "saes", [row])
        save_rows(space.path / "curves.parquet", "curves", [])
        space.facts.update(facts)
