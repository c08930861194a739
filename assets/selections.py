"""Which contexts a specialised SAE is trained on: found once, kept as an artefact."""

import hashlib
from collections.abc import Callable
from typing import Any

from assets.corpora import token_split
from assets.store import Store, language_model, save_rows
from assets.study import CODE_VERSIONS, Study, Variant
from sae_lib.artifacts import Identity

RETRIEVAL_FIELDS = (
    "retrieve",
    "queries",
    "column",
    "concept",
    "seeds",
    "contexts",
    "k1",
    "b",
    "encoder",
    "rerank",
    "candidates_per_context",
)
"""Settings of the objective that decide which contexts are chosen."""

TEXT_CHARS = 300

Cell = tuple[str, Variant]


def selection_key(study: Study, variant: Variant) -> str | None:
    """Equal for variants that are trained on the same contexts; None for all contexts."""
    if variant.objective.get("retrieve", "none") == "none":
        return None
    asked = {name: variant.objective[name] for name in RETRIEVAL_FIELDS}
    if asked["rerank"] != "none":  # the SAE that ranks is the variant's own
        asked["sae"] = variant.id
    return repr(sorted(asked.items()))


def identity_of(study: Study, cell: Cell) -> Identity:
    site, variant = cell
    content: dict[str, Any] = {
        "code": CODE_VERSIONS["selections"],
        "tokens": study.tokens.hash,
        "model": study.model_fingerprint,
        "encoder": study.encoder_fingerprint(variant),
        "asked": {name: variant.objective[name] for name in RETRIEVAL_FIELDS},
        "files": [
            hashlib.sha256((study.base / file).read_bytes()).hexdigest()[:16]
            for file in study.objective(variant).files()
        ],
    }
    general = study.general(variant)
    if variant.objective["rerank"] != "none" and general is not None:
        content["sae"] = study.sae(site, general).hash
    name = str(variant.objective["concept"] or "queries")
    return Identity("selections", f"{name}-{variant.objective['retrieve']}", content)


def chosen_contexts(study: Study, store: Store, cell: Cell, log: Callable[[str], None]) -> Any:
    """Numbers of the contexts that a cell is trained on, ascending; None for all of them."""
    import numpy as np
    import polars as pl

    if selection_key(study, cell[1]) is None:
        return None
    identity = identity_of(study, cell)
    if not store.artifacts.exists(identity):
        choose(study, store, cell, identity, log)
    rows = pl.read_parquet(store.artifacts.path(identity) / "chosen_contexts.parquet")
    return np.sort(rows["context"].to_numpy())


def choose(
    study: Study, store: Store, cell: Cell, identity: Identity, log: Callable[[str], None]
) -> None:
    """Find the contexts and keep them, with their scores and the beginning of their texts."""
    from sae_lib.models.config import ModelConfig
    from sae_lib.models.language_model import load_model
    from sae_lib.saes.files import load_sae
    from sae_lib.training.retrieval.base import texts_of
    from sae_lib.training.retrieval.choose import choose_contexts
    from sae_lib.training.retrieval.seeds import seed_texts
    from sae_lib.training.retrieval.tracin import Checkpoint, streamed

    site, variant = cell
    cfg, model = study.objective(variant), language_model(study, store)
    split = token_split(study, store, log, "train")
    queries = None if cfg.queries is None else study.base / cfg.queries
    seeds = seed_texts(queries=queries, concept=cfg.concept, count=cfg.seeds, column=cfg.column)
    encoder = None
    if cfg.encoder is not None:
        encoder = load_model(
            ModelConfig(id=cfg.encoder), device=store.device, relative_to=study.base
        )
    checkpoints = []
    general = study.general(variant)
    if cfg.rerank != "none" and general is not None:
        coder = load_sae(store.artifacts.path(study.sae(site, general))).to(store.device)
        checkpoints.append(Checkpoint(coder))
    log(f"looking for {cfg.contexts} contexts near {len(seeds)} texts by {cfg.retrieve}")
    found = choose_contexts(
        cfg,
        split,
        model,
        seeds,
        encoder=encoder,
        site=site,
        checkpoints=checkpoints,
        read=streamed(model, split, site),
    )
    texts = list(texts_of(split, model.tokenizer, found.contexts))
    order = (-found.scores).argsort(kind="stable")
    rows = [
        {
            "rank": rank,
            "context": int(found.contexts[i]),
            "score": float(found.scores[i]),
            "text": texts[i][:TEXT_CHARS],
        }
        for rank, i in enumerate(order)
    ]
    with store.artifacts.build(identity, parents={"tokens": study.tokens.hash}) as space:
        save_rows(space.path / "chosen_contexts.parquet", "chosen_contexts", rows)
        space.facts["contexts"] = len(rows)


def land_selection(study: Study, store: Store, cell: Cell) -> None:
    """Put what was chosen for a cell into the warehouse."""
    site, variant = cell
    if selection_key(study, variant) is None:
        return
    identity = identity_of(study, cell)
    is_there = store.artifacts.exists(identity)
    if is_there and not store.has_landed(study, "selections", site, variant.id, identity):
        store.land(study, "selections", site, variant, identity, ("chosen_contexts",))
