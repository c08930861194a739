"""What the `sae world` commands print and do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def sample_rows(num_documents: int, seed: int) -> list[Row]:
    """Documents with their kind, labels and the concepts active in them."""
    from sae_lib.synthetic.world.config import WorldConfig
    from sae_lib.synthetic.world.generate import documents, text

    return [
        {
            "document": one.index,
            "kind": one.kind,
            "labels": ", ".join(f"{key}={value}" for key, value in one.labels.items()),
            "text": text(one),
            "concepts": sorted({concept for active in one.concepts for concept in active}),
        }
        for one in documents(WorldConfig(seed=seed), 0, num_documents)
    ]


def concept_rows() -> list[Row]:
    """The inventory: id, name, scope, parents, description."""
    import sae_lib.synthetic.world.generate  # noqa: F401  (kinds declare their concepts)
    from sae_lib.synthetic.world.concepts import CONCEPTS

    return [
        {
            "concept": concept.id,
            "name": concept.name,
            "scope": concept.scope,
            "parents": list(concept.parents),
            "description": concept.description,
        }
        for concept in CONCEPTS.values()
    ]


def report_rows(num_documents: int) -> list[Row]:
    """Losses of the bundled model by kind of document, and its accuracies."""
    from sae_lib.models.config import ModelConfig
    from sae_lib.models.inspect import resolve_model
    from sae_lib.synthetic.world.report import world_report

    folder = resolve_model(ModelConfig(id="world"))
    assert folder is not None
    found = world_report(folder, num_documents)
    rows: list[Row] = [
        {"what": name, "kind": kind, "value": value, "unit": _unit(name)}
        for kind, losses in found["losses"].items()
        for name, value in losses.items()
    ]
    for name, value in found["accuracies"].items():
        parts = value if isinstance(value, dict) else {"all": value}
        rows += [
            {"what": name, "kind": kind, "value": share, "unit": "share"}
            for kind, share in parts.items()
        ]
    return rows


def _unit(name: str) -> str:
    return name.removeprefix("num_") if name.startswith("num_") else "nats per token"


def train(
    folder: Path, *, tokens: int, seed: int, threads: int, show: Callable[[int, int], None]
) -> None:
    """Train the world's model into ``folder``; checkpoints go beside it."""
    from sae_lib.synthetic.world.train import Step, TrainConfig, train_world

    def on_progress(step: Step) -> None:
        show(step.step, step.num_steps)

    train_world(
        folder,
        TrainConfig(num_tokens=tokens, seed=seed),
        work_dir=folder.with_name(f".{folder.name}.training"),
        threads=threads,
        on_progress=on_progress,
    )
