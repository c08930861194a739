"""Each token from one member of the group, at that member's scale."""

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.stats import chi2

from sae_lib.errors import BadInput
from sae_lib.saes.standard import StandardConfig
from sae_lib.saes.topk import TopKConfig
from sae_lib.training.config import TrainConfig, normalisation_scale, resolve
from sae_lib.training.loop import fit
from sae_lib.training.memory import InMemoryBatches
from sae_lib.training.objectives import StepInfo
from sae_lib.training.objectives.layer_group import (
    LayerGroupConfig,
    coder_for_site,
    drawn_members,
)
from sae_lib.training.trainee import Trainee

SITES = ("a", "b", "c")
PLACE = "a+b+c"


@pytest.fixture
def x(mixtures):
    """Sites whose norms differ by factors of ten, as those of late layers do."""
    return {site: 10.0**i * mixtures(600, seed=i) for i, site in enumerate(SITES)}


@pytest.fixture
def scales(x):
    return {
        site: normalisation_scale("unit_mean_square", rows.square().sum(1).mean().item())
        for site, rows in x.items()
    }


def info(scales, number=0, site=PLACE):
    none = torch.zeros(32, dtype=torch.bool)
    return StepInfo(site, 1.0, none, 0.5, 1.0, number, scales=scales)


def who(step, batch, scales):
    """Which member each row of a step is, and that it is one."""
    scaled = torch.stack([batch.x[site] * scales[site] for site in SITES])
    is_it = (scaled == step.x).all(-1)
    assert bool(is_it.any(0).all()), "a row is of no member"
    return is_it.int().argmax(0)


def test_every_token_is_a_members_at_its_own_scale_all_members_equally_often(x, scales):
    objective = LayerGroupConfig(seed=1).build()
    batches = InMemoryBatches(x, 256)
    counts = np.zeros(3)
    for number in range(40):
        batch = batches.batch(number)
        step = objective.step(batch, info(scales, number))
        assert step.x.shape == (256, 8)
        assert step.target is step.x
        counts += np.bincount(who(step, batch, scales), minlength=3)
    expected = counts.sum() / 3
    assert ((counts - expected) ** 2 / expected).sum() < chi2.ppf(0.999, 2)
    assert counts.min() > 0


def test_neighbouring_tokens_are_drawn_independently():
    drawn = drawn_members(3, 30_000, seed=0, number=5)
    same = (drawn[1:] == drawn[:-1]).double().mean().item()
    assert same == pytest.approx(1 / 3, abs=0.01)


def test_draws_depend_on_seed_and_step_alone(x, scales):
    batch = InMemoryBatches(x, 64).batch(0)

    def drawn(seed, number):
        return LayerGroupConfig(seed=seed).build().step(batch, info(scales, number)).x

    torch.manual_seed(1)
    one = drawn(3, 7)
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert torch.equal(drawn(3, 7), one)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(drawn(3, 8), one)
    assert not torch.equal(drawn(4, 7), one)


def test_after_scaling_no_member_dominates(x, scales):
    batch = InMemoryBatches(x, 512).batch(0)
    step = LayerGroupConfig().build().step(batch, info(scales))
    members = who(step, batch, scales)
    for member in range(3):
        mean_square = step.x[members == member].square().sum(-1).mean().item()
        assert mean_square == pytest.approx(1, rel=0.25)


def trainee_at(place, scales, objective, steps=300, scale=1.0, checkpoint=None):
    cfg = TopKConfig(d_in=8, d_sae=32, k=2, aux_k=4)
    how = resolve(
        TrainConfig(tokens=steps * 128, batch_tokens=128, lr=1e-2, checkpoint_every_seconds=0), cfg
    )
    return Trainee(
        "it", cfg.build(), place, how, objective=objective, scale=scale, scales=scales,
        checkpoint=checkpoint,
    )  # fmt: skip


def test_a_group_of_one_is_plain_training_bit_for_bit(x, scales):
    batches = InMemoryBatches(x, 128)
    plain = Trainee(**vars(trainee_at("a", {}, LayerGroupConfig().build(), 20, scales["a"])))
    mine = fit([plain], batches)[0]
    other = trainee_at("a", {}, LayerGroupConfig().build(), 20, scales["a"])
    other.objective = type(other)("x", other.coder, "a", other.train).objective
    expected = fit([other], batches)[0]
    assert torch.equal(mine.coder.W_dec, expected.coder.W_dec)


def test_one_coder_serves_all_members_after_it_is_made_for_each(x, scales):
    batches = InMemoryBatches(x, 128)
    fitted = fit([trainee_at(PLACE, scales, LayerGroupConfig().build(), 600)], batches)[0]
    for site in SITES:
        mine = coder_for_site(fitted.coder, scales[site])
        rows = x[site]
        error = (rows - mine(rows)).square().sum()
        unexplained = (error / (rows - rows.mean(0)).square().sum()).item()
        assert unexplained < 0.35
        by_hand = fitted.coder(rows * scales[site]) / scales[site]
        torch.testing.assert_close(mine(rows), by_hand, rtol=1e-4, atol=1e-4 / scales[site])


def test_a_killed_training_goes_on_with_the_same_draws(x, scales, tmp_path):
    whole = fit([trainee_at(PLACE, scales, LayerGroupConfig().build(), 30)],
                InMemoryBatches(x, 128))[0]  # fmt: skip

    class Dies(InMemoryBatches):
        def batch(self, i):
            if i == 17:
                raise KeyboardInterrupt
            return super().batch(i)

    def make():
        objective = LayerGroupConfig().build()
        return trainee_at(PLACE, scales, objective, 30, checkpoint=tmp_path / "c")

    with pytest.raises(KeyboardInterrupt):
        fit([make()], Dies(x, 128))
    resumed = fit([make()], InMemoryBatches(x, 128))[0]
    assert torch.equal(resumed.coder.W_dec, whole.coder.W_dec)


def test_places_that_cannot_be_grouped_are_refused(x, scales):
    objective = LayerGroupConfig().build()
    batch = InMemoryBatches({**x, "wide": torch.zeros(600, 9)}, 64).batch(0)
    with pytest.raises(BadInput, match="same width; they have a 8, wide 9"):
        objective.step(batch, info({**scales, "wide": 1.0}, site="a+wide"))
    with pytest.raises(BadInput, match="reconstructs the site it reads"):
        objective.step(batch, info(scales, site="a>b"))
    with pytest.raises(BadInput, match="no scale"):
        objective.step(batch, info({"a": 1.0}, site="a+b"))


@pytest.mark.parametrize(
    ("groups", "told"),
    [(0, "at least 1"), ([["a", "b"], ["b"]], "twice: b"), ([["a"], []], "at least one site"),
     ([], "at least one site")],
)  # fmt: skip
def test_groups_that_are_none_are_refused(groups, told):
    with pytest.raises(ValidationError, match=told):
        LayerGroupConfig(groups=groups)
    assert LayerGroupConfig(groups=[["a", "b"], ["c"]]).groups == (("a", "b"), ("c",))
    assert LayerGroupConfig(groups=2).groups == 2


def test_scaling_a_copy_leaves_the_groups_coder_alone():
    coder = StandardConfig.example().build()
    torch.nn.init.ones_(coder.b_dec)
    assert coder_for_site(coder, 4.0).b_dec[0].item() == 0.25
    assert coder.b_dec[0].item() == 1
