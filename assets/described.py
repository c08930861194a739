"""What the results database says of a study itself: what was asked, the model, the definitions."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from assets.store import Store
from assets.study import Study
from sae_lib.artifacts import write_atomically
from sae_lib.config import digest


def describe_study(study: Study, store: Store) -> None:
    """Write what was asked, the model, and what each measurement means."""
    from sae_lib.artifacts import package_versions
    from sae_lib.report.survey_table2 import published_rows
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
    _write_once(store, "published", {}, published_rows(), provenance, write_rows)


def definition_rows() -> list[dict[str, Any]]:
    """What every metric that is registered can say, as rows."""
    from sae_lib.evaluate import METRICS
    from sae_lib.evaluate.base import role_of

    return [
        {
            "name": one.name,
            "definition": one.definition,
            "version": one.version,
            "text": one.text,
            "better": one.better,
            "low": one.low if math.isfinite(one.low) else None,
            "high": one.high if math.isfinite(one.high) else None,
            "role": role_of(one),
            "metric": member_name,
        }
        for member_name, member in METRICS.items()
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
