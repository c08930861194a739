"""Dead latents that start anew: from badly reconstructed inputs, and nothing else changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lib.errors import BadInput
from sae_lib.saes import VARIANTS, SparseCoder
from sae_lib.saes.p_annealed import PAnnealedConfig
from sae_lib.saes.prolu import ProLUConfig
from sae_lib.saes.standard import StandardConfig
from sae_lib.saes.topk import TopKConfig
from sae_lib.training.config import ResampleConfig, ResolvedResample, TrainConfig, resolve
from sae_lib.training.distributed.rules import check_split
from sae_lib.training.loop import fit, resample
from sae_lib.training.memory import InMemoryBatches, MemoryBatch
from sae_lib.training.objectives.plain import PlainConfig
from sae_lib.training.resample import Race, check_can_resample, is_due, sample_steps, steps_since
from sae_lib.training.schedules import rewarm_factor
from sae_lib.training.trainee import Progress, Trainee

MakeTrainee = Callable[..., Trainee]

HOW = {"every_tokens": 320, "silent_tokens": 160, "sample_tokens": 96}
"""Every ten steps of 32 tokens, for latents silent for five, from three batches."""

FAMILY = [
    StandardConfig.example(),
    StandardConfig.examples()[1],
    TopKConfig.example(),
    *ProLUConfig.examples()[:2],
    *PAnnealedConfig.examples()[:2],
]


def silenced(it: Trainee, rows: tuple[int, ...] = (3, 17, 30)) -> Trainee:
    """Some of its latents never fire."""
    with torch.no_grad():
        for row in rows:
            it.coder.b_enc[row] = -100.0
    return it


def ready(it: Trainee, batches: InMemoryBatches, steps: int = 10) -> Progress:
    """``it`` after some steps, before what follows them."""
    progress = Progress(it)
    it.coder.initialise_(batches.batch(0).x["first"])
    for i in range(steps):
        progress.compute_gradients(batches.batch(i))
        progress.update()
    return progress


def copies(progress: Progress) -> dict[str, Tensor]:
    found = {f"weight {name}": value for name, value in progress.parameters.items()}
    for name, parameter in progress.parameters.items():
        for key, value in progress.optimizer.state[parameter].items():
            found[f"{key} {name}"] = value
    return {name: value.detach().clone() for name, value in found.items()}


class StopAt:
    """A source of batches that breaks at one of them, once it has been trained up to there."""

    def __init__(self, batches: InMemoryBatches, reports: list[Any], at: int) -> None:
        self.batches, self.reports, self.at = batches, reports, at

    def batch(self, i: int) -> MemoryBatch:
        return self.batches.batch(i)

    def on_step(self, report: Any) -> None:
        if report.step == self.at:
            raise RuntimeError("stop")


# --- when ---


def test_it_is_due_every_so_often_until_a_share_of_the_run():
    cfg = ResolvedResample(every_tokens=70, silent_tokens=1, sample_tokens=64, until_share=0.75)
    due = [step for step in range(21) if is_due(cfg, step, steps=20, batch_tokens=32)]
    assert due == [2, 4, 6, 8, 10, 12, 14]
    ago = [steps_since(cfg, step, steps=20, batch_tokens=32) for step in (0, 1, 2, 3, 4, 15, 19)]
    assert ago == [None, None, 0, 1, 0, 1, 5]


def test_it_is_not_due_when_training_is_over():
    cfg = ResolvedResample(every_tokens=32, silent_tokens=1, sample_tokens=64, until_share=1)
    assert not is_due(cfg, 20, steps=20, batch_tokens=32)
    assert is_due(cfg, 19, steps=20, batch_tokens=32)


def test_the_sample_is_of_whole_batches_within_the_run():
    cfg = ResolvedResample(every_tokens=32, silent_tokens=1, sample_tokens=100)
    assert [*sample_steps(cfg, 5, steps=20, batch_tokens=32)] == [5, 6, 7]
    assert [*sample_steps(cfg, 19, steps=20, batch_tokens=32)] == [17, 18, 19]
    assert [*sample_steps(cfg, 1, steps=2, batch_tokens=32)] == [0, 1]
    assert len(sample_steps(cfg, 5, steps=20, batch_tokens=512)) == 1


def test_what_is_left_open_follows_from_the_run():
    sae = TopKConfig.example()
    short = resolve(TrainConfig(tokens=2_000_000, resample=ResampleConfig()), sae).resample
    assert short is not None
    assert (short.every_tokens, short.silent_tokens) == (250_000, 125_000)
    assert short.sample_tokens == 31_250
    steps = 2_000_000 // 2048
    due = [s for s in range(steps) if is_due(short, s, steps=steps, batch_tokens=2048)]
    assert len(due) == 4
    long_run = resolve(TrainConfig(tokens=10**10, resample=ResampleConfig()), sae).resample
    assert long_run is not None
    assert (long_run.every_tokens, long_run.sample_tokens) == (204_800_000, 819_200)
    given = resolve(TrainConfig(tokens=10**6, resample=ResampleConfig(sample_tokens=5)), sae)
    assert given.resample is not None
    assert given.resample.sample_tokens == 5


def test_resolving_what_is_resolved_changes_nothing():
    sae = TopKConfig.example()
    resolved = resolve(TrainConfig(tokens=2_000_000, resample=ResampleConfig()), sae)
    stated = TrainConfig.model_validate(resolved.model_dump(exclude={"steps"}))
    assert resolve(stated, sae) == resolved


def test_by_default_nothing_starts_anew():
    assert resolve(TrainConfig(tokens=2_000_000), TopKConfig.example()).resample is None


def test_more_often_than_every_step_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"batch_tokens=2048, one step; got every_tokens=100"):
        TrainConfig(tokens=10_000, resample=ResampleConfig(every_tokens=100))


@pytest.mark.parametrize("config", [ResampleConfig, ResolvedResample])
def test_every_field_says_what_it_means(config: type[ResampleConfig]):
    assert not [name for name, field in config.model_fields.items() if not field.description]


# --- what is drawn ---


def test_inputs_are_drawn_by_their_weights():
    rows, weights = torch.eye(4), torch.tensor([0.0, 1.0, 2.0, 5.0])
    hits = torch.zeros(4)
    for seed in range(4000):
        race = Race(1, seed)
        race.offer(rows[:2], weights[:2])  # the sample comes in pieces
        race.offer(rows[2:], weights[2:])
        hits += race.directions()[0]
    torch.testing.assert_close(hits / 4000, weights / 8, rtol=0, atol=0.03)


def test_no_input_is_drawn_twice_and_none_without_a_loss():
    rows, weights = 3 * torch.eye(6), torch.tensor([1.0, 0.0, 1e-20, 1e20, 0.0, 1.0])
    race = Race(5, 0)
    race.offer(rows, weights)
    found = race.directions()
    assert found.shape == (4, 6)
    torch.testing.assert_close(found.sum(0), (weights > 0).float())


def test_the_zero_vector_is_no_direction():
    race = Race(2, 0)
    race.offer(torch.zeros(3, 2), torch.ones(3))
    assert race.directions().shape == (0, 2)


def test_the_seeds_alone_decide_the_draw():
    rows = torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    found = []
    before = torch.get_rng_state()
    for seeds in [(0, 10), (0, 10), (1, 10), (0, 20)]:
        race = Race(5, *seeds)
        race.offer(rows, torch.ones(50))
        found.append(race.directions())
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[3])


# --- what it does ---


@pytest.mark.parametrize("cfg", FAMILY, ids=str)
def test_dead_rows_start_anew_and_alive_rows_keep_every_bit(
    cfg: Any, trainee: MakeTrainee, batches: InMemoryBatches
):
    it = silenced(trainee(cfg=cfg, steps=40, resample=HOW))
    progress, coder = ready(it, batches), it.coder
    dead = (progress.silent_for >= 160).nonzero().squeeze(1)
    assert {3, 17, 30} <= set(dead.tolist())
    assert len(dead) < 32
    alive = torch.ones(32, dtype=torch.bool).index_fill_(0, dead, False)
    before = copies(progress)
    mean = coder.W_enc[alive].norm(dim=1).mean().detach()
    resample([progress], batches.batch)
    after = copies(progress)
    for name, value in after.items():
        what, owner = name.split(" ")
        if owner not in coder.by_latent or what == "step":
            assert torch.equal(value, before[name]), name
            continue
        assert torch.equal(value[alive], before[name][alive]), name
        if what != "weight":
            assert not bool(value[dead].any()), name
            assert bool(before[name][alive].any()), name
    torch.testing.assert_close(coder.W_enc[dead].norm(dim=1), (0.2 * mean).expand(len(dead)))
    assert not bool(coder.b_enc[dead].any())
    assert not bool(progress.silent_for[dead].any())
    # each is on for the input it was made from, one of the sample's
    x = torch.cat([batches.batch(i).x["first"] for i in (10, 11, 12)])
    centred = x if coder.input_centre is None else x - coder.input_centre
    directions = torch.nn.functional.normalize(centred, dim=1)
    alike = directions @ torch.nn.functional.normalize(coder.W_dec[dead], dim=1).T
    torch.testing.assert_close(alike.amax(0), torch.ones(len(dead)), rtol=0, atol=1e-5)
    own = x[alike.argmax(0)]
    pre = coder.W_enc[dead] * (own if coder.input_centre is None else own - coder.input_centre)
    assert bool((pre.sum(1) > 0).all())
    if cfg.kind != "topk":  # there a new latent may lose against the others
        assert bool((coder.encode(own)[torch.arange(len(dead)), dead] > 0).all())


def test_inputs_with_a_large_error_are_preferred(trainee: MakeTrainee):
    """One direction that the coder cannot express, and many it can."""
    x = torch.randn(320, 8, generator=torch.Generator().manual_seed(0))
    x[:, 7] = 0
    x[::16] = 0
    x[::16, 7] = 3
    cfg = StandardConfig(d_in=8, d_sae=32, l1=0.0)
    it = trainee(cfg=cfg, steps=40, resample=HOW)
    with torch.no_grad():
        it.coder.W_dec[:, 7] = 0
        it.coder.W_enc.zero_()
        basis = torch.eye(8)[:7]
        for sign, first in ((1, 0), (-1, 7)):
            it.coder.W_dec[first : first + 7] = sign * basis
            it.coder.W_enc[first : first + 7] = sign * basis
        it.coder.b_enc[14:] = -100.0
    progress = Progress(it)
    progress.step = 10
    progress.silent_for[14:] = 160
    resample([progress], InMemoryBatches({"first": x}, 32).batch)
    hits = it.coder.W_dec[14:, 7].abs() > 0.99
    assert int(hits.sum()) > 0
    assert bool((it.coder.W_dec[14:].detach()[hits, 7] > 0).all())
    # only those inputs have an error; there are no more of them than were drawn
    assert int((it.coder.b_enc == -100).sum()) == 18 - int(hits.sum())


def test_where_all_are_dead_all_start_anew(trainee: MakeTrainee, batches: InMemoryBatches):
    it = silenced(trainee(cfg=StandardConfig.example(), steps=40, resample=HOW), tuple(range(32)))
    progress = ready(it, batches)
    resample([progress], batches.batch)
    assert not bool(it.coder.b_enc.any())
    z = it.coder.encode(batches.batch(10).x["first"])
    assert bool((z > 0).any())


def test_without_dead_latents_no_batch_is_fetched(trainee: MakeTrainee, batches: InMemoryBatches):
    progress = ready(trainee(steps=40, resample=HOW), batches)
    progress.silent_for.zero_()

    def fails(i: int) -> MemoryBatch:
        raise AssertionError(f"batch {i} was asked for")

    resample([progress], fails)


def test_a_training_revives_latents_and_says_how_many(
    trainee: MakeTrainee, batches: InMemoryBatches
):
    def alive(how: Any) -> tuple[int, list[Any]]:
        it = silenced(trainee(cfg=StandardConfig.example(), steps=40, resample=how))
        result = fit([it], batches)[0]
        z = result.coder.encode(batches.x["first"])
        points = [p for p in result.curves if p["name"] == "resampled"]
        return int((z > 0).any(0)[[3, 17, 30]].sum()), points

    assert alive(None) == (0, [])
    revived, points = alive(HOW)
    assert revived == 3
    assert points[0]["step"] == 10
    assert points[0]["value"] >= 3
    assert points[0]["tokens"] == 320


# --- company and interruption ---


@pytest.mark.parametrize("cfg", FAMILY, ids=str)
@pytest.mark.parametrize("at", [9, 10, 11])
def test_going_on_across_a_resampling_gives_the_bits_of_never_having_stopped(
    cfg: Any, at: int, trainee: MakeTrainee, batches: InMemoryBatches, tmp_path: Path
):
    def make(checkpoint: Path | None = None) -> Trainee:
        how = {**HOW, "rewarm_steps": 4}
        given = {"resample": how, "curve_points": 25}
        return silenced(trainee(cfg=cfg, steps=25, checkpoint=checkpoint, **given))

    whole = fit([make()], batches)[0]
    stop = StopAt(batches, [], at)
    with pytest.raises(RuntimeError, match="stop"):
        fit([make(tmp_path)], stop, on_step=stop.on_step)
    resumed = fit([make(tmp_path)], batches)[0]
    assert any(point["name"] == "resampled" for point in whole.curves)
    for name, value in whole.coder.state_dict().items():
        assert torch.equal(value, resumed.coder.state_dict()[name]), name
    timed = [
        [point for point in one.curves if point["name"] != "tokens_per_second"]
        for one in (whole, resumed)
    ]
    assert timed[0] == timed[1]


def test_company_changes_no_bit_and_a_sample_is_fetched_once(
    trainee: MakeTrainee, batches: InMemoryBatches
):
    makers = [
        lambda: silenced(trainee("a", FAMILY[0], steps=25, resample=HOW)),
        lambda: silenced(trainee("b", FAMILY[2], steps=25, resample={**HOW, "every_tokens": 96})),
        lambda: silenced(trainee("c", FAMILY[0].but(seed=1), steps=25, resample=HOW), (1, 2)),
        lambda: silenced(trainee("d", FAMILY[0], steps=25)),
    ]
    asked: list[int] = []

    class Counting:
        def batch(self, i: int) -> MemoryBatch:
            asked.append(i)
            return batches.batch(i)

    together = fit([make() for make in makers], Counting())
    for make, mine in zip(makers, together, strict=True):
        alone = fit([make()], batches)[0]
        for name, value in alone.coder.state_dict().items():
            assert torch.equal(value, mine.coder.state_dict()[name]), (mine.name, name)
    # 16 first values, 25 steps; of the samples of a and c after step 10 each batch once
    assert asked[16:].count(11) == 2
    assert asked[16:].count(0) == 1


# --- the learning rate ---


def test_the_learning_rate_is_cut_and_rises_along_a_cosine():
    factors = [rewarm_factor(since, steps=4, start=0.1) for since in range(6)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[2] == pytest.approx(0.55)
    assert factors[4:] == [1.0, 1.0]
    assert rewarm_factor(0, steps=0, start=0.1) == 1.0


def test_it_does_so_at_each_resampling(trainee: MakeTrainee):
    given: dict[str, Any] = {"steps": 60, "warmup_steps": 0, "decay_share": 0.0, "lr": 1.0}
    plain = Progress(trainee(resample=HOW, **given))
    assert {plain.lr_at(step) for step in range(60)} == {1.0}
    cut = Progress(trainee(resample={**HOW, "rewarm_steps": 4}, **given))
    low = [step for step in range(60) if cut.lr_at(step) == pytest.approx(0.1)]
    assert low == [10, 20, 30]
    assert [step for step in range(60) if cut.lr_at(step) < 1] == [
        first + after for first in (10, 20, 30) for after in range(4)
    ]


# --- refused ---


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_variant_is_either_resampled_or_refused_with_a_reason(
    kind: str, trainee: MakeTrainee, batches: InMemoryBatches
):
    coder = VARIANTS[kind].example().build()
    has_known_parameters = {
        name for name, value in coder.named_parameters() if coder.d_sae in value.shape
    } <= {
        *coder.by_latent,
        "b_dec",
    }
    if not has_known_parameters or coder.W_dec.shape != coder.W_enc.shape:
        with pytest.raises(BadInput, match="Leave resample out"):
            check_can_resample(coder, "it")
        return
    check_can_resample(coder, "it")
    rows, directions = torch.tensor([1, 4]), torch.eye(coder.d_in)[:2]
    before = {name: value.clone() for name, value in coder.named_parameters()}
    coder.reset_latents_(rows, directions, torch.tensor(0.5))
    changed = {n for n, v in coder.named_parameters() if not torch.equal(v, before[n])}
    assert changed <= set(coder.by_latent)
    keep = torch.ones(coder.d_sae, dtype=torch.bool).index_fill_(0, rows, False)
    for name in changed:
        value = coder.get_parameter(name)
        assert torch.equal(value[keep], before[name][keep]), name


def test_a_coder_with_unknown_parameters_is_refused_before_training(
    trainee: MakeTrainee, batches: InMemoryBatches
):
    it = trainee(steps=20, resample=HOW)
    it.coder.extra_threshold = torch.nn.Parameter(torch.zeros(32))
    with pytest.raises(BadInput, match=r"key resample: it: .* what extra_threshold of 'topk'"):
        fit([it], batches)


def test_a_coder_between_two_widths_is_refused():
    class Wide(SparseCoder[Any]):
        W_enc, W_dec = torch.zeros(32, 8), torch.zeros(32, 16)  # pyright: ignore[reportAssignmentType]
        encode = decode = terms = scale_ = None  # pyright: ignore[reportAssignmentType]

    coder = Wide()
    coder.cfg = TopKConfig.example()
    with pytest.raises(BadInput, match=r"\(32, 8\) and \(32, 16\), not both \(32, 8\)"):
        check_can_resample(coder, "it")


def test_several_devices_are_refused():
    sae, plain = StandardConfig.example(), PlainConfig()
    how = TrainConfig(tokens=4096, devices=2)  # pyright: ignore[reportArgumentType]
    check_split(how, sae, plain)
    with pytest.raises(BadInput, match="resample: nobody has said"):
        check_split(how.but(resample={}), sae, plain)
    with pytest.raises(BadInput, match="revive: nobody has said"):
        check_split(how, sae.but(revive="ghost"), plain)
