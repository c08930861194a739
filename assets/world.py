"""The bundled world in the graph: its inventory, what its models know, and their training."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import dagster as dg

from assets.progress import progress
from assets.store import Store
from sae_lib.errors import BadInput

GROUP = "world"
MODELS = ("world", "world-chat")
"""Bundled models that read the world."""

LANGUAGES = ("dyck", "expr", "pcfg-english")
"""Formal languages that have a bundled model."""

GOALS = "goals_are_reached"
CONCEPT_DOCUMENTS = 5000
"""Documents that the frequencies of concepts are counted on."""


def concept_rows(num_documents: int = CONCEPT_DOCUMENTS) -> list[dict[str, Any]]:
    """The inventory, with the share of words at which each concept is active."""
    from sae_lib.synthetic.world.concepts import CONCEPTS, lexicon
    from sae_lib.synthetic.world.config import WorldConfig
    from sae_lib.synthetic.world.generate import documents
    from sae_lib.synthetic.world.truth import concept_frequencies, concept_ids, concept_matrix

    docs = documents(WorldConfig(), 0, num_documents)
    shares = concept_frequencies(concept_matrix(docs, with_specials=False))
    return [
        {
            "concept": id,
            "name": CONCEPTS[id].name,
            "scope": CONCEPTS[id].scope,
            "parents": list(CONCEPTS[id].parents),
            "description": CONCEPTS[id].description,
            "frequency": float(share),
            "num_words": len(lexicon(id)),
        }
        for id, share in zip(concept_ids(), shares, strict=True)
    ]


def land_concepts(store: Store, rows: list[dict[str, Any]]) -> None:
    from sae_lib.warehouse.write import Provenance, write_rows

    write_rows(store.warehouse, "concepts", {}, rows, Provenance("world", ""))


def land_abilities(store: Store, model: str, num_documents: int) -> list[dict[str, Any]]:
    """Measure what a bundled model or a model folder knows, and put it into the warehouse."""
    from sae_lib.models.config import ModelConfig
    from sae_lib.models.inspect import resolve_model
    from sae_lib.synthetic.world.recipes import world_of
    from sae_lib.synthetic.world.report import world_report

    cfg = ModelConfig(id=model)
    folder = resolve_model(cfg)
    if folder is None:
        raise BadInput("only a bundled model or a local folder can be measured", value=model)
    world = world_of(folder)
    rows = [
        row._asdict() | {"part": row.group, "reached": row.reached}
        for row in world_report(folder, num_documents, cfg=world, chat=world.chat)
    ]
    for row in rows:
        del row["group"]
    _land(store, "abilities", cfg, rows)
    return rows


FORMAL = {
    "loss": ("nats per token", None, "mean surprise of the model"),
    "floor": ("nats per token", None, "exact mean surprise of the grammar"),
    "excess": ("nats per token", 0.05, "loss - floor"),
    "valid_samples": ("share", 0.95, "of sampled strings, those that the grammar can make"),
    "goes_on": ("share", 0.95, "of places where a string cannot end, those the model goes on at"),
    "right_bracket": ("share", 0.95, "of closing brackets, those of the right type"),
}
"""Unit, goal and description of what is measured of a model of a formal language."""


def land_formal(store: Store, name: str, num_strings: int) -> list[dict[str, Any]]:
    """Measure the bundled model of a formal language, and put it into the warehouse."""
    from sae_lib.models.config import ModelConfig
    from sae_lib.models.inspect import resolve_model
    from sae_lib.synthetic.formal.languages import named_language
    from sae_lib.synthetic.formal.report import formal_report

    language, cfg = named_language(name), ModelConfig(id=name)
    folder = resolve_model(cfg)
    assert folder is not None  # the language is known, and its model is bundled
    rows = []
    for what, value in formal_report(language, folder, num_strings).items():
        if what not in FORMAL:
            continue
        unit, goal, description = FORMAL[what]
        reached = None if goal is None else value <= goal if unit != "share" else value >= goal
        rows.append(
            {"what": what, "part": "all", "value": value, "stderr": None, "n": num_strings,
             "unit": unit, "goal": goal, "reached": reached, "description": description}
        )  # fmt: skip
    _land(store, "abilities", cfg, rows)
    return rows


def write_page(store: Store, file: Path, documents: int) -> Path:
    """The page on the world, with what the warehouse holds about its models."""
    import polars as pl

    from sae_lib.report.world import world_page

    abilities = {}
    for model in MODELS:
        files = sorted(
            (store.warehouse / "abilities" / f"model={model}").glob("*.parquet"),
            key=lambda found: found.stat().st_mtime,
        )
        if files:
            abilities[model] = pl.read_parquet(files[-1]).to_dicts()
    return world_page(file, concept_rows(), abilities, per_kind=documents)


def land_probes(
    store: Store, model: str, tokens: int, on_progress: Callable[[int, int], None]
) -> list[dict[str, Any]]:
    """Probe every concept at every layer of a bundled model, and put it into the warehouse."""
    from sae_lib.apply.concept_probes import probe_concepts
    from sae_lib.models.config import ModelConfig
    from sae_lib.models.language_model import load_model

    cfg = ModelConfig(id=model)
    loaded = load_model(cfg, device=store.device)
    sites = ["resid_pre.0", *(f"resid_post.{layer}" for layer in range(loaded.num_layers))]
    found = probe_concepts(loaded, sites, tokens=tokens, on_progress=on_progress)
    rows = [probe._asdict() for probe in found]
    _land(store, "concept_probes", cfg, rows)
    return rows


def land_words(store: Store, model: str) -> list[dict[str, Any]]:
    """Ask what the word vectors of a bundled model are made of, and put it into the warehouse."""
    from sae_lib.apply.word_geometry import word_geometry
    from sae_lib.models.config import ModelConfig
    from sae_lib.models.language_model import load_model

    cfg = ModelConfig(id=model)
    rows = [row._asdict() for row in word_geometry(load_model(cfg, device=store.device))]
    _land(store, "word_geometry", cfg, rows)
    return rows


def _land(store: Store, table: str, cfg: Any, rows: list[dict[str, Any]]) -> None:
    from sae_lib.models.fingerprint import fingerprint
    from sae_lib.warehouse.write import Provenance, write_rows

    name = Path(cfg.id).name
    provenance = Provenance(name, fingerprint(cfg))
    write_rows(store.warehouse, table, {"model": name}, rows, provenance)


def world_assets() -> list[dg.AssetsDefinition]:
    """Inventory, abilities, probes, words and training; none depends on an experiment."""
    return [
        _concepts_asset(),
        _abilities_asset(),
        _formal_asset(),
        _probes_asset(),
        _words_asset(),
        _page_asset(),
        _training_asset(),
    ]


def _concepts_asset() -> dg.AssetsDefinition:
    @dg.asset(
        key=dg.AssetKey([GROUP, "concepts"]),
        group_name=GROUP,
        kinds={"parquet"},
        description="What can be true of a word of the bundled world: id, description, parents, "
        "frequency. Rows of the table `concepts`.",
    )
    def concepts(store: Store) -> dg.MaterializeResult:
        rows = concept_rows()
        land_concepts(store, rows)
        return dg.MaterializeResult(metadata={"dagster/row_count": len(rows)})

    return concepts


def _abilities_asset() -> dg.AssetsDefinition:
    key = dg.AssetKey([GROUP, "abilities"])

    @dg.asset(
        key=key,
        group_name=GROUP,
        kinds={"torch", "parquet"},
        partitions_def=dg.StaticPartitionsDefinition(list(MODELS)),
        check_specs=[
            dg.AssetCheckSpec(
                GOALS, asset=key, description="Losses and accuracies reach what they should."
            )
        ],
        description="What the bundled models learned of the world: loss against the entropy floor, "
        "accuracies per task, distance from the policies. Rows of the table `abilities`.",
    )
    def abilities(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        rows = land_abilities(store, context.partition_key, 1000)
        missed = [f"{r['what']} ({r['part']}): {r['value']:.3f}" for r in rows if not _fine(r)]
        excess = next(r["value"] for r in rows if (r["what"], r["part"]) == ("excess", "all"))
        lines = ["| what | value | goal |", "|---|---|---|"]
        lines += [
            f"| {r['what']} | {r['value']:.3f} | {'' if r['goal'] is None else r['goal']} |"
            for r in rows
            if r["part"] == "all"
        ]
        return dg.MaterializeResult(
            metadata={
                "excess loss": excess,
                "abilities": dg.MetadataValue.md("\n".join(lines)),
                "dagster/row_count": len(rows),
            },
            check_results=[
                dg.AssetCheckResult(
                    check_name=GOALS,
                    passed=not missed,
                    severity=dg.AssetCheckSeverity.WARN,
                    metadata={"missed": dg.MetadataValue.json(missed)},
                )
            ],
        )

    return abilities


def _formal_asset() -> dg.AssetsDefinition:
    @dg.asset(
        key=dg.AssetKey([GROUP, "formal_abilities"]),
        group_name=GROUP,
        kinds={"torch", "parquet"},
        partitions_def=dg.StaticPartitionsDefinition(list(LANGUAGES)),
        description="What the bundled models learned of the formal languages: loss against the "
        "exact floor, valid samples, right brackets. Rows of the table `abilities`.",
    )
    def formal_abilities(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        rows = land_formal(store, context.partition_key, 1000)
        return dg.MaterializeResult(metadata={row["what"]: row["value"] for row in rows})

    return formal_abilities


def _page_asset() -> dg.AssetsDefinition:
    @dg.asset(
        key=dg.AssetKey([GROUP, "page"]),
        group_name=GROUP,
        kinds={"html"},
        deps=[dg.AssetKey([GROUP, "abilities"])],
        description="One page on the world: documents with their concepts, the inventory, and "
        "what the models learned.",
    )
    def page(store: Store) -> dg.MaterializeResult:
        file = write_page(store, store.root / "reports" / "world.html", 3)
        return dg.MaterializeResult(
            metadata={
                "path": dg.MetadataValue.path(file),
                "url": dg.MetadataValue.url(file.as_uri()),
            }
        )

    return page


def _fine(row: dict[str, Any]) -> bool:
    return row["reached"] is not False


def _probes_asset() -> dg.AssetsDefinition:
    @dg.asset(
        key=dg.AssetKey([GROUP, "concept_probes"]),
        group_name=GROUP,
        kinds={"torch", "parquet"},
        partitions_def=dg.StaticPartitionsDefinition(list(MODELS)),
        description="How well each concept can be read off the residual stream by a linear probe, "
        "at every layer. Rows of the table `concept_probes`.",
    )
    def concept_probes(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        show = progress("probing layers", context.log.info, unit="layers")
        rows = land_probes(store, context.partition_key, 150_000, show)
        scored = [row["auc"] for row in rows if row["auc"] is not None]
        return dg.MaterializeResult(
            metadata={
                "concepts scored": len(scored),
                "share with AUC >= 0.95": sum(auc >= 0.95 for auc in scored) / len(scored),
                "dagster/row_count": len(rows),
            }
        )

    return concept_probes


def _words_asset() -> dg.AssetsDefinition:
    @dg.asset(
        key=dg.AssetKey([GROUP, "word_geometry"]),
        group_name=GROUP,
        kinds={"torch", "parquet"},
        partitions_def=dg.StaticPartitionsDefinition(list(MODELS)),
        description="Whether concepts are directions of the word vectors or lists of words: "
        "explained variance, probes of unseen words. Rows of the table `word_geometry`.",
    )
    def word_geometry(context: dg.AssetExecutionContext, store: Store) -> dg.MaterializeResult:
        rows = land_words(store, context.partition_key)
        found = {f"{row['what']} ({row['embedding']})": row["value"] for row in rows}
        return dg.MaterializeResult(metadata={**found, "dagster/row_count": len(rows)})

    return word_geometry


class TrainingRequest(dg.Config):
    """What to train; by default the recipe of the bundled model."""

    tokens: int = 0
    """Tokens to read; 0 means as many as the recipe says."""
    seed: int = 0
    threads: int = 2


def _training_asset() -> dg.AssetsDefinition:
    @dg.asset(
        key=dg.AssetKey([GROUP, "training"]),
        group_name=GROUP,
        kinds={"torch"},
        partitions_def=dg.StaticPartitionsDefinition(list(MODELS)),
        description="Train a model of the world again, by the recipe of the bundled one (about an "
        "hour on 2 cores), into `models/` of the store; a killed training resumes. Experiments "
        "name the folder as their model.",
    )
    def training(
        context: dg.AssetExecutionContext, store: Store, config: TrainingRequest
    ) -> dg.MaterializeResult:
        show = progress("training", context.log.info, unit="steps")
        folder = train_model(
            store.root / "models" / context.partition_key,
            context.partition_key,
            tokens=config.tokens,
            seed=config.seed,
            threads=config.threads,
            on_progress=show,
        )
        return dg.MaterializeResult(metadata={"path": dg.MetadataValue.path(folder)})

    return training


def train_model(
    folder: Path,
    name: str,
    *,
    tokens: int,
    seed: int,
    threads: int,
    on_progress: Callable[[int, int], None],
    start: Path | None = None,
) -> Path:
    """Train ``world`` or ``world-chat`` by its recipe; checkpoints lie beside ``folder``."""
    from sae_lib.synthetic.world.recipes import recipe
    from sae_lib.synthetic.world.train import train_world

    planned = recipe(name, start=start)
    cfg = planned.config.but(seed=seed, **({"num_tokens": tokens} if tokens else {}))
    return train_world(
        folder,
        cfg,
        work_dir=folder.with_name(f".{folder.name}.training"),
        name=name,
        threads=threads,
        revisions={key: place for key, place in planned.revisions.items() if place < cfg.num_steps},
        command=f"sae world train FOLDER --recipe {name}",
        on_progress=lambda step: on_progress(step.step, step.num_steps),
    )


def world_of_model(study: Any) -> Any:
    """The dials of the world that a bundled model reads; None for any other model."""
    from sae_lib.models.inspect import resolve_model
    from sae_lib.synthetic.world.recipes import world_of

    if study.model.id not in MODELS:
        return None
    folder = resolve_model(study.model)
    assert folder is not None  # it is bundled
    return world_of(folder)
