"""Points of a training's curves while it runs, in a file that others may read at any moment.

One JSON object a line: ``step``, ``steps``, ``tokens``, ``seconds`` (Unix time), ``numbers`` by
name, and ``problem`` where the SAE had to stop. The file lies beside the checkpoint. A training
that goes on from a checkpoint repeats the points behind it; the later line of a step counts.
"""

import json
import math
import time
from pathlib import Path
from typing import TypedDict

from sae_lib.training.loop import StepReport

LIVE = "live.jsonl"


class LivePoint(TypedDict):
    """Where an SAE stood at one moment."""

    step: int
    steps: int
    tokens: int
    seconds: float
    numbers: dict[str, float]
    problem: str | None


def note_point(folder: Path, report: StepReport, *, batch_tokens: int) -> None:
    """Append what the training loop reports; numbers that are not finite are left out."""
    folder.mkdir(parents=True, exist_ok=True)
    point = LivePoint(
        step=report.step,
        steps=report.steps,
        tokens=report.step * batch_tokens,
        seconds=time.time(),
        numbers={key: value for key, value in report.numbers.items() if math.isfinite(value)},
        problem=report.problem,
    )
    with (folder / LIVE).open("a", encoding="utf-8") as file:
        file.write("\n" + json.dumps(point))  # a line that a kill cut off stays by itself


def read_points(folder: Path) -> list[LivePoint]:
    """Points so far, by ascending step; none where no training has begun.

    A last line that is just being written, or was cut off by a kill, is left out.
    """
    path = folder / LIVE
    if not path.is_file():
        return []
    points: dict[tuple[int, bool], LivePoint] = {}
    for line in path.read_text("utf-8").splitlines():
        try:
            point: LivePoint = json.loads(line)
        except json.JSONDecodeError:
            continue
        points[point["step"], point["problem"] is not None] = point
    return [points[key] for key in sorted(points)]


def why_stopped(folder: Path) -> str | None:
    """The reason the last point gives for an SAE that stopped before its time."""
    points = read_points(folder)
    return points[-1]["problem"] if points else None
