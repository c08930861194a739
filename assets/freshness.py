"""What of a study is up to date, what is not, and why: from identities and manifests alone.

Everything built is named by what determines it, so a cell is up to date exactly when the rows in
the warehouse are those of the artefact that the study asks for now. Where they are of another
one, the two manifests say what changed.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Literal, NamedTuple

from assets.claims import identity_of as claims_identity
from assets.dashboards import identities as dashboards
from assets.store import EVERYTHING, Store
from assets.study import Study, Variant
from sae_lib.artifacts import MANIFEST, Identity

Word = Literal["fresh", "kept", "stale", "missing"]


class State(NamedTuple):
    """How one stage of one cell stands."""

    stage: str
    site: str
    """Empty where the stage is about the whole experiment."""

    variant: str
    state: Word
    """fresh; kept: an SAE of an earlier version of the model, on purpose; stale: another one is
    asked for than there is; missing: never built."""

    why: str = ""


CELL_STAGES = {"saes": "sae", "metrics": "metrics"}
"""Stages that have a result per cell, and the kind of their artefact."""


def stages_of(study: Study) -> dict[str, str]:
    """Stages of ``study`` with a result per cell, in order."""
    stages = dict(CELL_STAGES)
    if study.explain:
        stages["explanations"] = "explanations"
    if study.apply:
        stages["applications"] = "applications"
    return stages


def states(study: Study, store: Store, stages: Collection[str] | None = None) -> Iterator[State]:
    """The state of every cell of ``stages``, or of all, in the order in which they are built."""

    def wants(stage: str) -> bool:
        return stages is None or stage in stages

    if wants("tokens"):
        versions = [one.tokens for one in (study, *study.before)]
        yield _of_data(study, store, "tokens", "", versions)
    if wants("activations") and study.activations.store == "disk":
        for site in study.primitive_sites():
            versions = [one.harvested(site) for one in (study, *study.before)]
            yield _of_data(study, store, "activations", site, versions)
    for stage, kind in stages_of(study).items():
        for site, variant in study.cells() if wants(stage) else ():
            yield _of_cell(study, store, stage, kind, site, variant)
    if study.explain and wants("dashboards"):
        for site, variant, asked in dashboards(study, store):
            yield _of_rows(study, store, "dashboards", site, variant, asked)
    if wants("frontier"):
        yield _of_rows(study, store, "frontier", EVERYTHING, EVERYTHING, study.frontier)
    if wants("claims"):
        asked = claims_identity(study, store)
        yield _of_rows(study, store, "claims", EVERYTHING, EVERYTHING, asked)


def _of_data(study: Study, store: Store, stage: str, site: str, versions: list[Identity]) -> State:
    """Data that lands nowhere: ``versions`` of it, from the newest model to the oldest."""
    there = [store.artifacts.exists(one) for one in versions]
    if there[0]:
        return State(stage, site, "", "fresh")
    if any(there):
        before = study.before[there.index(True) - 1].model_fingerprint
        return State(stage, site, "", "stale", _model_changed(before, study.model_fingerprint))
    return State(stage, site, "", "missing")


def _of_cell(
    study: Study, store: Store, stage: str, kind: str, site: str, variant: Variant
) -> State:
    found = _of_rows(study, store, stage, site, variant.id, study.cell(kind, site, variant))
    if kind == "metrics" and found.state == "stale":
        return found._replace(why=_why_metrics(study, store, site, variant) or found.why)
    if kind != "sae":
        return found
    origin = study.origin(site, variant)
    if origin is not study and found.state == "fresh":
        changed = _model_changed(origin.model_fingerprint, study.model_fingerprint)
        return found._replace(state="kept", why=changed)
    held = _held(study, store, stage, site, variant.id)
    for one in study.before:
        if found.state == "stale" and held == one.own_sae(site, variant).hash:
            changed = _model_changed(one.model_fingerprint, study.model_fingerprint)
            return found._replace(why=changed)
    return found


def _held(study: Study, store: Store, stage: str, site: str, variant: str) -> str | None:
    """Hash of the artefact whose rows the warehouse holds."""
    ledger = store.ledger(study.name, site, variant, stage)
    return json.loads(ledger.read_text("utf-8"))["artifact"] if ledger.is_file() else None


def _of_rows(
    study: Study, store: Store, stage: str, site: str, variant: str, asked: Identity
) -> State:
    """A result that lands in the warehouse."""
    held = _held(study, store, stage, site, variant)
    if held == asked.hash and store.artifacts.exists(asked):
        return State(stage, site, variant, "fresh")
    if held is None:
        return State(stage, site, variant, "missing")
    if held == asked.hash:
        return State(stage, site, variant, "stale", "its artefact was deleted")
    found = _content(store, asked.kind, held)
    why = UNKNOWN if found is None else _why(found, asked.content)
    return State(stage, site, variant, "stale", why)


def _content(store: Store, kind: str, hash: str) -> Mapping[str, Any] | None:
    """What determined the artefact with this hash; None where it is gone."""
    for manifest in (store.root / "artifacts" / kind).glob(f"*-{hash}/{MANIFEST}"):
        return json.loads(manifest.read_text("utf-8"))["content"]
    return None


UNKNOWN = "it was made from something else"

WORDS = {
    "sae": "its SAE is another",
    "saes": "SAEs are others",
    "cells": "metrics are others",
    "activations": "its activations are others",
    "tokens": "the text is another",
    "asked": "other settings are asked for",
    "explain_tokens": "another number of tokens is asked for",
    "train": "other training settings are asked for",
    "objective": "another training strategy is asked for",
    "data": "a data file changed",
    "files": "its files changed",
    "claims": "the list of claims changed",
    "grid": "other settings are asked for",
}


def _why(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """What distinguishes two contents, in words."""
    changed = [key for key in new if old.get(key) != new[key]]
    changed += [key for key in old if key not in new]
    reasons = []
    if "model" in changed:
        reasons.append(_model_changed(str(old.get("model")), str(new.get("model"))))
        # tokens and activations have other names because the model has
        changed = [key for key in changed if key not in ("model", "tokens", "activations")]
    if "code" in changed:
        reasons.append(f"its code changed (version {old.get('code')} to {new.get('code')})")
        changed.remove("code")
    reasons += [WORDS.get(key, f"{key} changed") for key in changed]
    return "; ".join(dict.fromkeys(reasons)) or UNKNOWN


def _why_metrics(study: Study, store: Store, site: str, variant: Variant) -> str:
    """Metrics are kept metric by metric; what changed for all of them is said once."""
    held = _held(study, store, "metrics", site, variant.id) or ""
    old = (_content(store, "metrics", held) or {}).get("parts", {})
    new = {
        name: study.metric_part(metrics, site, variant)
        for name, metrics in study.metric_parts().items()
    }
    reasons = {name: "it was not asked for before" for name in new if name not in old}
    reasons |= {name: "it is not asked for any more" for name in old if name not in new}
    for name, identity in new.items():
        if name in old and old[name] != identity.hash:
            before = _content(store, "measurements", old[name])
            reasons[name] = UNKNOWN if before is None else _why(before, identity.content)
    said = list(dict.fromkeys(reasons.values()))
    if len(said) == 1 and len(reasons) == len(new):
        return said[0]
    return "; ".join(f"{', '.join(n for n in reasons if reasons[n] == why)}: {why}" for why in said)


def _model_changed(before: str, now: str) -> str:
    return f"the model changed ({before} to {now})"
