"""What the `sae world` commands print and do."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def sample_rows(num_documents: int, seed: int, *, kind: str = "", chat: bool = False) -> list[Row]:
    """Test documents with their kind, labels and the concepts active in them."""
    from sae_lib.synthetic.world.config import WorldConfig
    from sae_lib.synthetic.world.generate import documents, text
    from sae_lib.synthetic.world.kinds import KINDS

    cfg = WorldConfig(seed=seed, chat=chat)
    if kind:
        KINDS[kind]  # an unknown one is answered with the nearest name
        cfg = cfg.but(kind_weights={kind: 1.0})
    return [
        {
            "document": one.index,
            "kind": one.kind,
            "labels": ", ".join(f"{key}={value}" for key, value in one.labels.items()),
            "text": text(one),
            "concepts": sorted({concept for active in one.concepts for concept in active}),
            "floor": one.nll / (len(one.tokens) + 1),
        }
        for one in documents(cfg, 0, num_documents, split="test")
    ]


def task_rows() -> list[Row]:
    """Every labelled set of the world and what it is for."""
    from sae_lib.synthetic.world.sets import SETS

    return [
        {
            "set": name,
            "used for": ", ".join(one.used_for),
            "columns": ", ".join(one.columns),
            "description": one.description,
        }
        for name, one in SETS.items()
    ]


def export(name: str, split: str, num: int, file: Path) -> int:
    """Write rows of a labelled set as JSON lines, CSV or Parquet; how many there were."""
    import polars as pl

    from sae_lib.artifacts import write_atomically
    from sae_lib.errors import BadInput
    from sae_lib.synthetic.world.sets import task_rows as rows_of

    rows = rows_of(name, split, num)
    if file.suffix == ".jsonl":
        write_atomically(file, "".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix in {".parquet", ".csv"}:
        partial = file.with_name(f".{file.name}.partial")
        frame = pl.DataFrame(rows)
        if file.suffix == ".csv":
            nested = [c for c, t in frame.schema.items() if t.is_nested()]
            if nested:
                raise BadInput(
                    f"columns {', '.join(nested)} hold lists, which CSV has no place for; write "
                    "a .jsonl or .parquet file",
                    file=file,
                )
            frame.write_csv(partial)
        else:
            frame.write_parquet(partial)
        partial.replace(file)
    else:
        raise BadInput("the file must end in .jsonl, .parquet or .csv", file=file)
    return len(rows)


COVERAGE = """
with best as (
    select a.*, row_number() over (
        partition by experiment, site, variant, method, task, name, definition, params
        order by created_at desc) as newest
    from applications a
    where application = 'concepts' and name = 'coverage' and experiment = ?
)
select site, variant, method, task as "group", n as concepts,
    round(max(value) filter (cast(params->>'f1' as double) = 0.8 and definition = 'one_to_one'), 3)
        as "F1 >= .8",
    round(max(value) filter (cast(params->>'f1' as double) = 0.5 and definition = 'one_to_one'), 3)
        as "F1 >= .5",
    round(max(value) filter (cast(params->>'f1' as double) = 0.8 and definition = 'shared'), 3)
        as "F1 >= .8, latents shared",
    round(max(value) filter (cast(params->>'f1' as double) = 0.8 and definition like 'union%'), 3)
        as "F1 >= .8, up to 10 latents"
from best where newest = 1
group by all order by site, variant, method desc, task
"""
"""Coverage of concepts by group, for every SAE of an experiment and the floors beside it."""


def coverage_rows(database: Path, experiment: str) -> list[Row]:
    from sae_lib.warehouse.query import query

    return query(database, COVERAGE, [experiment]).to_dicts()


PLANTED = {
    "fvu": "FVU",
    "l0": "L0",
    "l2_ratio": "L2 ratio",
    "mmcs": "MMCS",
    "max_decoder_cosine": "nearest cosine",
    "coverage": "coverage",
    "absorption": "absorption",
    "probing": "k=1 accuracy",
    "parent_probing": "k=1 on parents",
}
"""Columns of the table of planted controls, by name of the metric."""


def planted_rows(
    *,
    seed: int,
    overcomplete: bool,
    absorbed: float,
    num_bags: int,
    wide: bool,
    show: Callable[[int, int], None],
) -> list[Row]:
    """Oracle and broken controls: what the metrics find, and in brackets what they must find."""
    from sae_lib.evaluate.planted import ORTHONORMAL, OVERCOMPLETE
    from sae_lib.evaluate.planted import planted_rows as measure
    from sae_lib.synthetic.controls import controls

    cfg = (OVERCOMPLETE if overcomplete else ORTHONORMAL).but(seed=seed)
    found = measure(cfg, controls(cfg, absorbed=absorbed), num_bags=num_bags, on_progress=show)
    if not wide:
        return [row._asdict() for row in found]
    cells = {(row.coder, row.metric): row for row in found}
    return [
        {"coder": coder}
        | {title: _with_expected(cells[coder, metric]) for metric, title in PLANTED.items()}
        for coder in dict.fromkeys(row.coder for row in found)
    ]


def _with_expected(row: Any) -> str:
    value = "none" if row.value is None else f"{row.value:.3f}"
    return value if row.expected is None else f"{value} ({row.expected:.3f})"


def train(
    folder: Path,
    *,
    recipe: str,
    start: Path | None,
    tokens: int,
    seed: int,
    threads: int,
    show: Callable[[int, int], None],
) -> None:
    """Train a model of the world into ``folder``; checkpoints go beside it."""
    from assets.world import train_model

    train_model(
        folder, recipe, tokens=tokens, seed=seed, threads=threads, start=start, on_progress=show
    )
