"""Curves that are read while the training writes them."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sae_lib.saes.base import SparseCoder, Step, Terms
from sae_lib.training.live import LIVE, note_point, read_points, why_stopped
from sae_lib.training.loop import StepReport, fit
from sae_lib.training.memory import InMemoryBatches
from sae_lib.training.objectives import Objective, StepInfo
from sae_lib.training.objectives.plain import PlainConfig
from sae_lib.training.trainee import Trainee


def report(step: int, fvu: float, problem: str | None = None) -> StepReport:
    return StepReport("it", step, 100, {} if problem else {"fvu": fvu}, problem)


def test_points_come_back_by_step_and_the_later_of_a_repeated_step_counts(tmp_path: Path):
    folder = tmp_path / "new"
    assert read_points(folder) == []
    assert why_stopped(folder) is None
    for step, fvu in ((1, 0.9), (10, 0.5), (20, 0.4), (10, 0.51)):
        note_point(folder, report(step, fvu), batch_tokens=32)
    points = read_points(folder)
    assert [(point["step"], point["numbers"]["fvu"]) for point in points] == [
        (1, 0.9),
        (10, 0.51),
        (20, 0.4),
    ]
    assert [point["tokens"] for point in points] == [32, 320, 640]
    assert {point["steps"] for point in points} == {100}


def test_a_line_that_a_kill_cut_off_costs_nothing_but_itself(tmp_path: Path):
    note_point(tmp_path, report(1, 0.9), batch_tokens=32)
    whole = (tmp_path / LIVE).read_text()
    for length in range(len(whole)):
        (tmp_path / LIVE).write_text(whole[:length])
        note_point(tmp_path, report(2, 0.8), batch_tokens=32)
        assert read_points(tmp_path)[-1]["numbers"] == {"fvu": 0.8}
        assert len(read_points(tmp_path)) == 1


def test_numbers_that_are_not_finite_are_left_out(tmp_path: Path):
    note_point(tmp_path, report(1, math.nan), batch_tokens=32)
    assert read_points(tmp_path)[0]["numbers"] == {}


class BreaksAt(Objective):
    """Makes the gradient of the decoder's bias infinite in one step."""

    def __init__(self, at: int) -> None:
        super().__init__(PlainConfig())
        self.at = at

    def terms(self, coder: SparseCoder[Any], step: Step, batch: Any, info: StepInfo) -> Terms:
        terms = coder.terms(step)
        if info.number != self.at:
            return terms
        steep = (coder.b_dec.sum() - coder.b_dec.sum().detach()).sqrt()  # 0, and of infinite slope
        return terms._replace(extra={"bad": steep})


def test_one_that_stops_says_in_which_step_and_what_was_not_finite(
    trainee: Callable[..., Trainee], batches: InMemoryBatches, tmp_path: Path
):
    bad, good = trainee("bad"), trainee("good")
    bad.objective = BreaksAt(12)

    def note(found: StepReport) -> None:
        note_point(tmp_path / found.name, found, batch_tokens=32)

    fit([bad, good], batches, on_step=note)
    reason = why_stopped(tmp_path / "bad")
    assert reason == (
        "in step 13 the gradient of b_dec was not finite; the weights after step 12 are kept"
    )
    assert [point["step"] for point in read_points(tmp_path / "bad")][-2:] == [12, 12]
    assert why_stopped(tmp_path / "good") is None
    assert read_points(tmp_path / "good")[-1]["step"] == 20
    assert torch.isfinite(bad.coder.b_dec).all()
