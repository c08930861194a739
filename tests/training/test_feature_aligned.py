"""Coders drawn to common features: matchings, the penalty, restarts, and coming back."""

from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lib.errors import BadInput
from sae_lib.saes._codes import Code
from sae_lib.saes._ops import random_unit_rows
from sae_lib.saes.base import Terms
from sae_lib.saes.standard import StandardConfig
from sae_lib.saes.topk import TopKConfig
from sae_lib.training.loop import fit
from sae_lib.training.memory import InMemoryBatches
from sae_lib.training.objectives.feature_aligned import (
    FeatureAlignedConfig,
    assigned,
    collapsed_score,
    cosines_of,
    nearest_rows,
    ramp,
    unequal_use,
)
from sae_lib.training.trainee import Progress, Trainee

WAYS = ["hungarian", "max", "max_both"]


def aligned(trainee: Any, cfg: Any = None, **changes: Any) -> Trainee:
    given = {
        key: changes.pop(key) for key in list(changes) if key in FeatureAlignedConfig.model_fields
    }
    it = trainee(cfg=cfg or TopKConfig.example(), **changes)
    it.objective = FeatureAlignedConfig(**given).build()
    return it


def terms_of(trainee: Any, batches: InMemoryBatches, rows: list[Any], **given: Any) -> Any:
    """The terms where the decoders are ``rows`` and the penalty is at full weight."""
    it = aligned(trainee, num_coders=len(rows), alpha=1.0, ramp_steps=0, **given)
    progress = Progress(it)
    with torch.no_grad():
        for coder, W in zip(progress.coders.values(), rows, strict=True):
            coder.W_dec.copy_(W)
    info, batch = progress.info(), batches.batch(0)
    terms = it.objective.terms(it.coder, it.objective.step(batch, info), batch, info)
    terms.extra["alignment"].backward()
    for coder in progress.coders.values():
        assert coder.W_dec.grad is not None
    return terms


@pytest.mark.parametrize("way", WAYS)
def test_permuted_and_rescaled_copies_cost_nothing(
    way: str, trainee: Any, batches: InMemoryBatches
):
    A = random_unit_rows(32, 8, 0)
    B = 3 * A[torch.randperm(32, generator=torch.Generator().manual_seed(0))]
    assert terms_of(trainee, batches, [A, B], matching=way).extra["alignment"] < 1e-6
    assert terms_of(trainee, batches, [A, -A], matching=way).extra["alignment"] > 0.1


def test_the_assignment_is_one_to_one_and_never_above_the_nearest():
    A, B = random_unit_rows(40, 8, 0), random_unit_rows(40, 8, 1)
    match, nearest = assigned(A, B), nearest_rows(A, B)
    assert sorted(match.tolist()) == list(range(40))
    assert cosines_of(A, B, match).mean() < cosines_of(A, B, nearest).mean()
    torch.testing.assert_close(cosines_of(A, B, nearest), (A @ B.T).amax(1))
    assert torch.equal(nearest_rows(A, A), torch.arange(40))


def test_the_penalty_reaches_every_coder(trainee: Any, batches: InMemoryBatches):
    rows = [random_unit_rows(32, 8, seed) for seed in range(3)]
    terms = terms_of(trainee, batches, rows)
    by_hand = [
        1 - cosines_of(rows[a], rows[b], assigned(rows[a], rows[b])).mean()
        for a, b in [(0, 1), (0, 2), (1, 2)]
    ]
    torch.testing.assert_close(terms.extra["alignment"], torch.stack(by_hand).mean())


def test_the_penalty_rises_along_half_a_cosine():
    assert [ramp(t, 100) for t in (0, 50, 100, 1000)] == pytest.approx([0, 0.5, 1, 1])
    assert ramp(0, 0) == 1


def test_the_score_of_unequal_use_is_that_of_the_source():
    assert unequal_use(torch.full((512,), 0.0625), 0.0625) == 0
    always = torch.zeros(512)
    always[:32] = 1
    assert float(unequal_use(always, 0.0625)) == pytest.approx(211.875)
    assert collapsed_score(32 / 512, 0.0625) == pytest.approx(211.875)


@pytest.mark.parametrize(("given", "restarts"), [({}, True), ({"restarts": False}, False)])
def test_a_coder_that_uses_few_latents_starts_anew(given: Any, restarts: bool, trainee: Any):
    it = aligned(trainee, **given)
    it.objective.join(it.coder)
    zero = torch.zeros(64, 8)

    def says(z: torch.Tensor) -> bool:
        terms = Terms(Code(z), zero, zero.sum(), {})
        return it.objective.starts_anew(it.coder, terms, 0)

    it.objective.memory["is_stale"].fill_(False)
    even = torch.zeros(64, 32)
    even[torch.arange(64).repeat(4), torch.arange(256) % 32] = 1
    assert not says(even)
    assert not bool(it.objective.memory["is_stale"])
    always = torch.zeros(64, 32)
    always[:, :4] = 1
    assert says(always) is restarts
    assert bool(it.objective.memory["is_stale"]) is restarts


def test_stronger_penalties_bring_the_coders_together(trainee: Any, batches: InMemoryBatches):
    apart = []
    for alpha in (0.0, 1.0):
        (result,) = fit([aligned(trainee, alpha=alpha, ramp_steps=10, steps=150)], batches)
        (other,) = result.company
        match = assigned(result.coder.W_dec, other.W_dec)
        apart.append(float(cosines_of(result.coder.W_dec, other.W_dec, match).mean()))
        assert result.numbers["fvu"] < 0.5
        assert result.numbers["company"] > 0
    assert apart[1] > apart[0] + 0.05
    assert apart[1] > 0.9


def test_without_a_penalty_the_first_coder_is_the_one_trained_alone(
    trainee: Any, batches: InMemoryBatches
):
    (alone,) = fit([trainee(clip_norm=1e9)], batches)
    (led,) = fit([aligned(trainee, alpha=0.0, clip_norm=1e9, restarts=False)], batches)
    for name, value in alone.coder.state_dict().items():
        torch.testing.assert_close(led.coder.state_dict()[name], value)
    assert led.flops == 2 * alone.flops


@pytest.mark.parametrize("cfg", [TopKConfig.example(), StandardConfig.example()], ids=str)
def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    cfg: Any, trainee: Any, batches: InMemoryBatches, tmp_path: Path
):
    how: dict[str, Any] = {"cfg": cfg, "steps": 13, "match_every": 4, "alpha": 0.1, "ramp_steps": 2}
    (whole,) = fit([aligned(trainee, **how)], batches)

    def stop(report: Any) -> None:
        if report.step == 6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit([aligned(trainee, **how, checkpoint=tmp_path)], batches, on_step=stop)
    (resumed,) = fit([aligned(trainee, **how, checkpoint=tmp_path)], batches)
    mine, its = (whole.coder, *whole.company), (resumed.coder, *resumed.company)
    for one, other in zip(mine, its, strict=True):
        for name, value in one.state_dict().items():
            assert torch.equal(other.state_dict()[name], value), name


def test_an_assignment_that_would_take_too_long_is_refused():
    with pytest.raises(BadInput, match="max_both"):
        FeatureAlignedConfig().check(TopKConfig(d_in=8, d_sae=8192))
    FeatureAlignedConfig(matching="max").check(TopKConfig(d_in=8, d_sae=8192))
