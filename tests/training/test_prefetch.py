"""Fetching ahead: the same batches, bounded, and no thread left behind."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sae_lib.training.loop import fit
from sae_lib.training.memory import InMemoryBatches
from sae_lib.training.objectives import Objective
from sae_lib.training.objectives.plain import PlainConfig
from sae_lib.training.prefetch import BatchSource, ReadsAhead, prefetched
from sae_lib.training.trainee import Trainee

MakeTrainee = Callable[..., Trainee]


class Watched:
    """Batches that note which thread asked for which."""

    def __init__(self, batches: BatchSource) -> None:
        self.batches = batches
        self.asked: list[tuple[str, int]] = []
        self.fail_at: int | None = None

    def batch(self, i: int, /) -> Any:
        self.asked.append((threading.current_thread().name.split("_")[0], i))
        if i == self.fail_at:
            raise OSError("the disk is gone")
        return self.batches.batch(i)


class Live(Watched):
    """Such batches from a model that is run to load them."""

    runs_model = True

    def __init__(self, batches: BatchSource) -> None:
        super().__init__(batches)
        self.events: list[str] = []

    @contextmanager
    def reading_ahead(self, until: int, /) -> Iterator[Any]:
        self.events.append(f"until {until}")
        try:
            yield SimpleNamespace(stop=lambda: self.events.append("stop"))
        finally:
            self.events.append("joined")


class NeedsModel(PlainConfig):
    """The plain objective, as if its steps ran the language model."""

    needs_model = True

    def build(self, *, model: Any = None) -> Objective:
        return Objective(self)


def num_threads() -> int:
    return len(threading.enumerate())


def test_batches_come_in_order_each_fetched_while_the_one_before_is_used(batches: InMemoryBatches):
    watched = Watched(batches)
    with prefetched(watched, 3, 9) as stream:
        seen = []
        for i, batch in stream:
            assert len(watched.asked) <= len(seen) + 2, "more than one batch waits"
            assert torch.equal(batch.rows, batches.batch(i).rows)
            seen.append(i)
    assert seen == [i for _, i in watched.asked] == [3, 4, 5, 6, 7, 8]
    assert {name for name, _ in watched.asked} == {"batches"}


def test_a_failed_fetch_is_raised_when_its_batch_is_due_and_shows_where(batches: InMemoryBatches):
    watched, before, seen = Watched(batches), num_threads(), []
    watched.fail_at = 5

    def read() -> None:
        with prefetched(watched, 3, 9) as stream:
            seen.extend(i for i, _ in stream)

    with pytest.raises(OSError, match="disk is gone") as raised:
        read()
    assert seen == [3, 4]
    assert raised.traceback[-1].path.name == "test_prefetch.py"
    assert raised.traceback[-1].name == "batch"
    assert num_threads() == before


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("in the step")])
def test_leaving_early_stops_the_reading_before_it_waits_and_joins_every_thread(
    batches: InMemoryBatches, error: BaseException
):
    live, before = Live(batches), num_threads()

    def read() -> None:
        with prefetched(live, 0, 9) as stream:
            next(stream)
            raise error

    with pytest.raises(type(error)):
        read()
    assert live.events == ["until 9", "stop", "joined"]
    assert num_threads() == before


def test_while_the_steps_use_the_model_that_is_streamed_from_everything_is_done_in_turn(
    batches: InMemoryBatches,
):
    live = Live(batches)
    assert isinstance(live, ReadsAhead)
    with prefetched(live, 0, 4, is_model_in_use=True) as stream:
        for i, _ in stream:
            assert live.asked == [("MainThread", j) for j in range(i + 1)]
    assert live.events == []


def test_a_store_is_read_ahead_whoever_uses_the_model(batches: InMemoryBatches):
    watched = Watched(batches)
    with prefetched(watched, 0, 4, is_model_in_use=True) as stream:
        assert len(list(stream)) == 4
    assert {name for name, _ in watched.asked} == {"batches"}


@pytest.mark.parametrize("needs_model", [False, True])
def test_one_objective_that_needs_the_model_keeps_the_whole_training_to_one_thread(
    trainee: MakeTrainee, batches: InMemoryBatches, needs_model: bool
):
    live, alone = Live(batches), trainee(name="alone", steps=6)
    company = [trainee(name="plain", steps=6)]
    if needs_model:
        company.append(trainee(name="model", steps=6))
        company[1].objective = NeedsModel().build()
    fitted = fit(company, live)[0]
    training = [name for name, _ in live.asked[-6:]]
    assert training == ["MainThread" if needs_model else "batches"] * 6
    assert live.events == ([] if needs_model else ["until 6", "stop", "joined"])
    for name, value in fit([alone], batches)[0].coder.state_dict().items():
        assert torch.equal(value, fitted.coder.state_dict()[name]), name


def test_a_training_leaves_no_thread_behind(trainee: MakeTrainee, batches: InMemoryBatches):
    before = {thread.ident for thread in threading.enumerate()}
    fit([trainee()], batches)

    def interrupt(report: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit([trainee()], batches, on_step=interrupt)
    assert {thread.ident for thread in threading.enumerate()} == before
