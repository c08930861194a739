"""The loop: same result in any company and after any interruption, and honest about failure."""

import json
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lib.errors import BadInput, CorruptData
from sae_lib.saes import VARIANTS, SparseCoder, Step, Terms
from sae_lib.saes.batch_topk import BatchTopKConfig
from sae_lib.saes.standard import Standard, StandardConfig
from sae_lib.saes.topk import TopK, TopKConfig
from sae_lib.training.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    read_checkpoint,
    write_checkpoint,
)
from sae_lib.training.loop import StepReport, fit
from sae_lib.training.memory import InMemoryBatches, MemoryBatch
from sae_lib.training.objectives import Objective, StepInfo
from sae_lib.training.objectives.plain import PlainConfig
from sae_lib.training.trainee import Fitted, Trainee

MakeTrainee = Callable[..., Trainee]


def assert_same_weights(mine: SparseCoder[Any], other: SparseCoder[Any]) -> None:
    assert mine.state_dict().keys() == other.state_dict().keys()
    for name, value in mine.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name


def timeless(fitted: Fitted) -> list[Any]:
    return [point for point in fitted.curves if point["name"] != "tokens_per_second"]


class StopAt:
    """A source of batches that breaks at one of them, once training (in its thread) asks for it."""

    def __init__(self, batches: InMemoryBatches, at: int, error: BaseException) -> None:
        self.batches, self.at, self.error = batches, at, error

    def batch(self, i: int) -> MemoryBatch:
        if i == self.at and threading.current_thread() is not threading.main_thread():
            raise self.error
        return self.batches.batch(i)


# --- one trainee ---


@pytest.mark.parametrize("kind", VARIANTS)
def test_training_twice_gives_the_same_bits(
    kind: str, trainee: MakeTrainee, batches: InMemoryBatches
):
    before = torch.get_rng_state()
    first, second = (fit([trainee(cfg=VARIANTS[kind].example())], batches)[0] for _ in range(2))
    assert_same_weights(first.coder, second.coder)
    assert timeless(first) == timeless(second)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_step_is_gradient_projection_clipping_adam_and_renormalisation(
    trainee: MakeTrainee, batches: InMemoryBatches
):
    """The loop against the same steps written out with a plain Adam."""
    it = trainee(steps=6, clip_norm=0.05, warmup_steps=2, scale=2.0)
    coder, how = it.coder.cfg.build(), it.train
    sample = torch.cat([batches.batch(i).x["first"] for i in range(16)]) * 2
    coder.initialise_(sample)
    optimizer = torch.optim.Adam(coder.parameters(), lr=how.lr, betas=how.betas, eps=how.eps)
    silent_for = torch.zeros(32, dtype=torch.int64)
    for i, factor in enumerate([0.5, 1, 1, 1, 1, 0.5]):
        x = batches.batch(i).x["first"] * 2
        optimizer.zero_grad()
        terms = coder.terms(
            Step(x=x, target=x, dead=silent_for >= 96, progress=i / 6, warmup=1.0, number=i)
        )
        terms.loss.backward()
        gradient, rows = coder.W_dec.grad, coder.W_dec.detach()
        assert gradient is not None
        gradient -= (gradient * rows).sum(-1, keepdim=True) * rows
        norm = torch.cat(
            [p.grad.flatten() for p in coder.parameters() if p.grad is not None]
        ).norm()
        assert norm > how.clip_norm
        for parameter in coder.parameters():
            assert parameter.grad is not None
            parameter.grad *= how.clip_norm / norm
        optimizer.param_groups[0]["lr"] = how.lr * factor
        optimizer.step()
        with torch.no_grad():
            coder.W_dec /= coder.W_dec.norm(dim=-1, keepdim=True)
        silent_for = torch.where((terms.z > 0).any(0), 0, silent_for + 32)
    coder.scale_(0.5)
    found = fit([it], batches)[0].coder
    for name, value in coder.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-6)


def test_the_result_takes_raw_activations_and_learns_no_more(
    trainee: MakeTrainee, mixtures: Callable[..., torch.Tensor]
):
    x = 30 * mixtures(500)
    batches = InMemoryBatches({"first": x}, 32)
    result = fit([trainee(steps=200, scale=1 / 30)], batches)[0]
    fvu = (x - result.coder(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu < 0.1
    assert result.status == "complete"
    assert result.steps == result.train.steps == 200
    assert not result.coder.training
    assert not any(parameter.requires_grad for parameter in result.coder.parameters())


def test_curves_hold_about_as_many_points_as_asked_for(
    trainee: MakeTrainee, batches: InMemoryBatches
):
    reports: list[StepReport] = []
    result = fit([trainee(steps=100, curve_points=10)], batches, on_step=reports.append)[0]
    steps = [point["step"] for point in result.curves if point["name"] == "loss"]
    assert steps == [1, *range(10, 101, 10)] == [report.step for report in reports]
    names = {point["name"] for point in result.curves}
    assert names >= {
        "loss",
        "reconstruction",
        "aux",
        "fvu",
        "l0",
        "dead_share",
        "grad_norm",
        "lr",
        "tokens_per_second",
    }
    assert all(math.isfinite(point["value"]) for point in result.curves)
    assert all(point["tokens"] == 32 * point["step"] for point in result.curves)
    assert result.numbers["l0"] == pytest.approx(4, abs=0.5)
    assert result.numbers["loss"] == pytest.approx(
        result.numbers["reconstruction"] + result.numbers["aux"], rel=1e-5
    )
    assert {report.name for report in reports} == {"it"}
    json.dumps(result.curves, allow_nan=False)


def test_curves_do_not_change_the_training(trainee: MakeTrainee, batches: InMemoryBatches):
    often, once = (fit([trainee(curve_points=n)], batches)[0] for n in (20, 1))
    assert_same_weights(often.coder, once.coder)


def test_speed_is_tokens_per_second_of_the_clock(trainee: MakeTrainee, batches: InMemoryBatches):
    ticks = iter(range(10_000))
    result = fit([trainee(curve_points=20)], batches, clock=lambda: next(ticks) / 4)[0]
    # the clock is read once a step, so a step takes a quarter of a second
    assert result.numbers["tokens_per_second"] == pytest.approx(32 * 4)
    assert result.seconds == pytest.approx(20 / 4)


# --- company ---


def crowd(trainee: MakeTrainee) -> list[Callable[[], Trainee]]:
    return [
        lambda: trainee("topk", TopKConfig.example(), steps=30),
        lambda: trainee("batch", BatchTopKConfig.example(), steps=17, lr=3e-3),
        lambda: trainee("relu", StandardConfig.example(), steps=23, site="second"),
        lambda: trainee("steered", StandardConfig.examples()[2], steps=30, scale=0.5),
        lambda: trainee("other seed", TopKConfig.example().but(seed=7), steps=30),
    ]


def test_company_changes_no_bit(trainee: MakeTrainee, batches: InMemoryBatches):
    makers = crowd(trainee)
    together = fit([make() for make in makers], batches)
    for make, mine in zip(makers, together, strict=True):
        alone = fit([make()], batches)[0]
        assert alone.name == mine.name
        assert_same_weights(alone.coder, mine.coder)
        assert timeless(alone) == timeless(mine)


def test_a_batch_is_fetched_once_for_all(trainee: MakeTrainee, batches: InMemoryBatches):
    asked: list[int] = []

    class Counting:
        def batch(self, i: int) -> MemoryBatch:
            asked.append(i)
            return batches.batch(i)

    fit([trainee(name, steps=30) for name in "abc"], Counting())
    assert asked == [*range(16), *range(30)]  # the first sixteen for initial values


def test_names_must_differ(trainee: MakeTrainee, batches: InMemoryBatches):
    with pytest.raises(BadInput, match="name of its own"):
        fit([trainee("a"), trainee("a")], batches)


def test_nobody_to_train_is_no_error(batches: InMemoryBatches):
    assert fit([], batches) == []


# --- interruption ---


@pytest.mark.parametrize("cfg", [variant.examples()[-1] for variant in VARIANTS.values()], ids=str)
def test_going_on_gives_the_bits_of_never_having_stopped(
    cfg: Any, trainee: MakeTrainee, batches: InMemoryBatches, tmp_path: Path
):
    whole = fit([trainee(cfg=cfg, steps=30)], batches)[0]
    for at in (1, 13, 29):
        with pytest.raises(RuntimeError, match="stop"):
            fit(
                [trainee(cfg=cfg, steps=30, checkpoint=tmp_path)],
                StopAt(batches, at, RuntimeError("stop")),
            )
    resumed = fit([trainee(cfg=cfg, steps=30, checkpoint=tmp_path)], batches)[0]
    assert_same_weights(whole.coder, resumed.coder)
    assert timeless(whole) == timeless(resumed)


def test_who_is_ahead_waits_for_the_others(
    trainee: MakeTrainee, batches: InMemoryBatches, tmp_path: Path
):
    with pytest.raises(RuntimeError, match="stop"):
        fit(
            [trainee("a", steps=30, checkpoint=tmp_path / "a")],
            StopAt(batches, 20, RuntimeError("stop")),
        )
    reports: list[StepReport] = []
    results = fit(
        [
            trainee("a", steps=30, checkpoint=tmp_path / "a"),
            trainee("b", TopKConfig.example().but(seed=1), steps=30),
        ],
        batches,
        on_step=reports.append,
    )
    assert min(report.step for report in reports if report.name == "a") > 18
    alone = [
        fit([trainee("a", steps=30)], batches)[0],
        fit([trainee("b", TopKConfig.example().but(seed=1), steps=30)], batches)[0],
    ]
    for mine, other in zip(results, alone, strict=True):
        assert_same_weights(mine.coder, other.coder)


def test_what_is_complete_is_not_trained_again(
    trainee: MakeTrainee, batches: InMemoryBatches, tmp_path: Path
):
    first = fit([trainee(checkpoint=tmp_path, scale=0.5)], batches)[0]
    silent = StopAt(batches, 0, AssertionError("a batch was asked for"))
    again = fit([trainee(checkpoint=tmp_path, scale=0.5)], silent)[0]
    assert again.status == "complete"
    assert_same_weights(first.coder, again.coder)
    assert first.curves == again.curves
    assert again.seconds == first.seconds


def test_checkpoints_are_written_when_their_time_has_come(
    trainee: MakeTrainee, batches: InMemoryBatches, tmp_path: Path
):
    ticks = iter(range(10_000))
    with pytest.raises(RuntimeError, match="stop"):
        fit(
            [trainee(checkpoint=tmp_path, checkpoint_every_seconds=7)],
            StopAt(batches, 16, RuntimeError("stop")),
            clock=lambda: float(next(ticks)),
        )
    found = read_checkpoint(tmp_path)
    assert found is not None
    assert found.state["step"] == 13  # the clock starts one tick before the first step


@pytest.mark.parametrize("key", ["sae", "train", "scale", "site", "about"])
def test_the_checkpoint_of_another_training_is_refused(
    key: str, trainee: MakeTrainee, batches: InMemoryBatches, tmp_path: Path
):
    fit([trainee(checkpoint=tmp_path)], batches)
    other = {
        "sae": trainee(cfg=TopKConfig.example().but(k=3), checkpoint=tmp_path),
        "train": trainee(lr=5e-3, checkpoint=tmp_path),
        "scale": trainee(scale=0.5, checkpoint=tmp_path),
        "site": trainee(site="second", checkpoint=tmp_path),
        "about": trainee(checkpoint=tmp_path),
    }[key]
    other.about["order"] = 1 if key == "about" else other.about.pop("order", None)
    if key != "about":
        other.about.clear()
    with pytest.raises(BadInput, match=rf"{CHECKPOINT}, key {key}.* another training"):
        fit([other], batches)


def test_how_often_it_is_saved_and_drawn_may_change(
    trainee: MakeTrainee, batches: InMemoryBatches, tmp_path: Path
):
    fit([trainee(checkpoint=tmp_path)], batches)
    changed = trainee(checkpoint=tmp_path, checkpoint_every_seconds=99, curve_points=3)
    assert fit([changed], batches)[0].status == "complete"


def test_a_checkpoint_that_lacks_a_tensor_is_refused(
    trainee: MakeTrainee, batches: InMemoryBatches, tmp_path: Path
):
    fit([trainee(checkpoint=tmp_path)], batches)
    found = read_checkpoint(tmp_path)
    assert found is not None
    found.tensors.pop("coder.b_enc")
    write_checkpoint(tmp_path, Checkpoint(found.tensors, found.state))
    with pytest.raises(CorruptData, match=r"(?s)incomplete.*b_enc"):
        fit([trainee(checkpoint=tmp_path)], batches)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("stop")])
def test_no_thread_is_left_behind(
    error: BaseException, trainee: MakeTrainee, batches: InMemoryBatches
):
    before = threading.active_count()
    with pytest.raises(type(error)):
        fit([trainee()], StopAt(batches, 5, error))

    def interrupts(report: StepReport) -> None:
        raise error

    with pytest.raises(type(error)):
        fit([trainee()], batches, on_step=interrupts)
    assert threading.active_count() == before


# --- failure ---


class FailsAt(Objective):
    """Makes the loss, or only its gradient, not finite in one step."""

    def __init__(self, at: int, what: str) -> None:
        super().__init__(PlainConfig())
        self.at, self.what = at, what

    def terms(self, coder: SparseCoder[Any], step: Step, batch: Any, info: StepInfo) -> Terms:
        terms = coder.terms(step)
        if info.number != self.at:
            return terms
        # the square root has the value 0 and an infinite slope where its argument is 0
        bad = terms.reconstruction * torch.nan
        steep = (terms.reconstruction - terms.reconstruction.detach()).sqrt()
        return terms._replace(extra={"bad": bad if self.what == "loss" else steep})


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_one_that_diverges_keeps_its_last_good_state_and_the_others_go_on(
    what: str, trainee: MakeTrainee, batches: InMemoryBatches, tmp_path: Path
):
    cfg = StandardConfig.examples()[2]  # its coefficient is state that the failing step changes
    bad, good = trainee("bad", cfg, checkpoint=tmp_path), trainee("good", cfg)
    bad.objective = FailsAt(12, what)
    found = {result.name: result for result in fit([bad, good], batches)}
    assert found["bad"].status == "diverged"
    assert found["bad"].steps == 12
    assert max(point["step"] for point in found["bad"].curves) <= 12
    assert found["good"].status == "complete"
    assert_same_weights(found["good"].coder, fit([trainee("good", cfg)], batches)[0].coder)
    saved = Trainee("x", cfg.build(), "first", bad.train, checkpoint=tmp_path / "x")
    with pytest.raises(RuntimeError, match="stop"):
        fit([saved], StopAt(batches, 12, RuntimeError("stop")))
    before_failure = read_checkpoint(tmp_path / "x")
    assert before_failure is not None
    assert before_failure.state["step"] == 12
    for name, value in found["bad"].coder.state_dict().items():
        assert torch.equal(value, before_failure.tensors[f"coder.{name}"]), name


def test_one_that_diverged_is_not_trained_again(
    trainee: MakeTrainee, batches: InMemoryBatches, tmp_path: Path
):
    bad = trainee(checkpoint=tmp_path)
    bad.objective = FailsAt(5, "loss")
    first = fit([bad], batches)[0]
    again = fit([trainee(checkpoint=tmp_path)], StopAt(batches, 0, AssertionError("asked")))[0]
    assert (again.status, again.steps) == ("diverged", 5)
    assert_same_weights(first.coder, again.coder)


def test_activations_that_are_not_finite_are_the_fault_of_the_data(trainee: MakeTrainee):
    x = torch.ones(2048, 8)
    x[1700] = torch.inf
    with pytest.raises(BadInput, match=r"key first: batch \d+ holds activations"):
        fit([trainee(steps=100)], InMemoryBatches({"first": x}, 32))


def test_a_site_nobody_has_is_refused_with_those_there_are(
    trainee: MakeTrainee, batches: InMemoryBatches
):
    with pytest.raises(BadInput, match=r"value 'third'.*first, second"):
        fit([trainee(site="third")], batches)


def test_batches_of_another_size_are_refused_with_both(
    trainee: MakeTrainee, batches: InMemoryBatches
):
    with pytest.raises(BadInput, match=r"shape \(32, 8\); it expects \(64, 8\)"):
        fit([trainee(batch_tokens=64)], batches)
    with pytest.raises(BadInput, match=r"shape \(32, 8\); it expects \(32, 16\)"):
        fit([trainee(cfg=TopKConfig(d_in=16, d_sae=32, k=2))], batches)


# --- objectives ---


def test_an_objective_decides_what_is_seen_and_what_is_lost(
    trainee: MakeTrainee, batches: InMemoryBatches
):
    seen: list[StepInfo] = []

    class Doubled(Objective):
        def step(self, batch: Any, info: StepInfo) -> Step:
            return super().step(batch, info)._replace(target=torch.zeros(32, 8))

        def terms(self, coder: SparseCoder[Any], step: Step, batch: Any, info: StepInfo) -> Terms:
            seen.append(info)
            terms = coder.terms(step)
            return terms._replace(extra={**terms.extra, "again": terms.reconstruction})

    it = trainee(steps=20)
    it.objective = Doubled(PlainConfig())
    result = fit([it], batches)[0]
    assert result.numbers["again"] == result.numbers["reconstruction"]
    assert [info.number for info in seen] == list(range(20))
    assert [info.progress for info in seen] == [i / 20 for i in range(20)]
    assert seen[0].warmup == 0
    assert seen[-1].warmup == 1


def test_latents_are_dead_after_the_stated_number_of_tokens(
    trainee: MakeTrainee, batches: InMemoryBatches, monkeypatch: pytest.MonkeyPatch
):
    dead: list[int] = []
    original = TopK.terms

    def watched(self: TopK, step: Step) -> Terms:
        dead.append(int(step.dead.sum()))
        return original(self, step)

    monkeypatch.setattr(TopK, "terms", watched)
    silent = trainee(steps=6)
    with torch.no_grad():
        silent.coder.b_enc.fill_(-100.0)
    fit([silent], batches)  # dead after 96 tokens, which is three steps
    assert dead == [0, 0, 0, 32, 32, 32]


def test_the_coefficient_is_steered_by_the_loop(trainee: MakeTrainee, batches: InMemoryBatches):
    result = fit([trainee(cfg=StandardConfig(d_in=8, d_sae=32, target_l0=1), steps=40)], batches)[0]
    assert isinstance(result.coder, Standard)
    assert result.numbers["l1_coefficient"] > 0.03 * 1.01**20
