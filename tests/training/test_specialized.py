"""The tilted loss by hand and in its limits, and what the description refuses."""

import math

import pytest
import torch
from pydantic import ValidationError

from sae_lib.saes.standard import StandardConfig
from sae_lib.saes.topk import TopKConfig
from sae_lib.training.loop import fit
from sae_lib.training.memory import InMemoryBatches
from sae_lib.training.objectives import StepInfo
from sae_lib.training.objectives.specialized import (
    SpecializedConfig,
    per_token_loss,
    tilted_mean,
)

ELL = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)


@pytest.mark.parametrize(
    ("tilt", "value", "within"),
    [(1, 2.30899, 1e-5), (10, 2.89014, 1e-5), (500, 2.9978, 1e-4), (1e-6, 2.0000003, 1e-7),
     (1e9, 3.0, 1e-8), (5e-4, 2 + 5e-4 / 3, 1e-9)],
)  # fmt: skip
def test_one_two_three_tilted_by_hand(tilt, value, within):
    assert tilted_mean(ELL, float(tilt)).item() == pytest.approx(value, abs=within)


@pytest.mark.parametrize("tilt", [1e-9, 1e-6, 1e-4, 1e-2])
def test_a_small_tilt_does_not_cancel_in_float32(tilt):
    got = tilted_mean(ELL.float(), tilt).item()
    assert got == pytest.approx(2 + tilt / 3, abs=2e-4)


@pytest.mark.parametrize("tilt", [1e-5, 0.1, 1.0, 30.0, 1e9])
def test_the_gradient_is_the_softmax_of_the_tilted_losses(tilt):
    losses = ELL.clone().requires_grad_()
    tilted_mean(losses, tilt).backward()
    assert losses.grad is not None
    expected = torch.softmax(tilt * ELL, 0)
    torch.testing.assert_close(losses.grad, expected, atol=1e-9, rtol=1e-9)
    assert losses.grad.sum().item() == pytest.approx(1)
    if tilt == 1:
        hand = torch.tensor([0.0900, 0.2447, 0.6652], dtype=torch.float64)
        torch.testing.assert_close(losses.grad, hand, atol=1e-4, rtol=0)


def test_it_rises_with_the_tilt_from_the_mean_to_the_maximum():
    losses = torch.rand(200, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 7
    values = [tilted_mean(losses, t).item() for t in (1e-8, 1e-5, 1e-3, 0.1, 1.0, 10.0, 1e3, 1e9)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(losses.mean().item())
    assert values[-1] == pytest.approx(losses.max().item())


@pytest.mark.parametrize("tilt", [1e-6, 1.0, 1e9])
def test_equal_losses_are_left_as_they_are_and_large_ones_do_not_overflow(tilt):
    assert tilted_mean(torch.full((7,), 3.5), tilt).item() == pytest.approx(3.5)
    losses = torch.tensor([1.0, 1e6, 2e6], requires_grad=True)
    value = tilted_mean(losses, tilt)
    value.backward()
    assert math.isfinite(value.item())
    assert losses.grad is not None
    assert bool(losses.grad.isfinite().all())


def info(coder, **changes):
    none = torch.zeros(coder.d_sae, dtype=torch.bool)
    fields = {"site": "first", "scale": 1.0, "dead": none, "progress": 0.5, "warmup": 1.0}
    return StepInfo(**{**fields, "number": 3, **changes})


def terms_of(coder, x, dead=None, **fields):
    objective = SpecializedConfig(**fields).build()
    batch = InMemoryBatches({"first": x}, len(x)).batch(0)
    where = info(coder) if dead is None else info(coder, dead=dead)
    step = objective.step(batch, where)
    return objective.terms(coder, step, batch, where), coder.terms(step)


def test_without_a_tilt_the_loss_is_the_coders_own(mixtures):
    coder = StandardConfig.example().build()
    mine, own = terms_of(coder, mixtures(64))
    assert mine.loss.item() == own.loss.item()
    assert mine.extra.keys() == own.extra.keys()


def test_error_and_penalty_of_a_token_are_tilted_together_and_count_once(mixtures):
    coder = StandardConfig.example().build()
    mine, own = terms_of(coder, mixtures(64), tilt=2.0)
    ell = own.error.square().sum(-1) + own.per_token["l1"]
    by_hand = ((2 * ell.double()).exp().mean().log() / 2).item()
    assert mine.loss.item() == pytest.approx(by_hand, rel=1e-5)
    assert mine.reconstruction.item() == own.reconstruction.item()
    assert mine.extra["l1"].item() == own.extra["l1"].item()
    assert mine.extra["tilt"].item() > 0
    torch.testing.assert_close(per_token_loss(own).mean(), own.loss)


def test_terms_that_are_not_of_tokens_stay_outside_the_tilt(mixtures):
    coder = TopKConfig.example().build()
    dead = torch.arange(coder.d_sae) % 2 == 0
    mine, own = terms_of(coder, mixtures(64), dead=dead, tilt=2.0)
    ell = own.error.square().sum(-1)
    by_hand = ((2 * ell.double()).exp().mean().log() / 2).item()
    assert own.extra["aux"].item() > 0
    assert mine.loss.item() == pytest.approx(by_hand + own.extra["aux"].item(), rel=1e-5)


def test_a_tilt_by_spread_is_over_the_deviation_of_the_losses_and_has_no_unit(mixtures):
    coder, x = StandardConfig.example().build(), mixtures(64)
    mine, own = terms_of(coder, x, tilt_by_spread=1.0)
    ell = per_token_loss(own)
    expected = tilted_mean(ell, 1.0 / ell.std(correction=0).item())
    torch.testing.assert_close(mine.loss, expected)
    mine.loss.backward()
    got = coder.W_dec.grad.clone()
    coder.zero_grad()
    weights = torch.softmax(ell.detach() / ell.detach().std(correction=0), 0)
    (per_token_loss(terms_of(coder, x)[1]) * weights).sum().backward()
    torch.testing.assert_close(got, coder.W_dec.grad)  # the deviation is held constant


def test_a_constant_batch_and_one_of_zeros_have_finite_gradients():
    for x in (torch.ones(16, 8), torch.zeros(16, 8)):
        for fields in ({"tilt_by_spread": 5.0}, {"tilt": 1e9}):
            coder = StandardConfig.example().build()
            mine, own = terms_of(coder, x, **fields)
            mine.loss.backward()
            torch.testing.assert_close(mine.loss, own.loss)
            assert all(bool(p.grad.isfinite().all()) for p in coder.parameters())


@pytest.mark.parametrize("fields", [{"tilt": 500.0}, {"tilt_by_spread": 5.0}])
def test_training_with_a_tilt_lowers_the_largest_error(mixtures, trainee, batches, fields):
    plain, tilted = trainee("plain", steps=400), trainee("tilted", steps=400)
    tilted.objective = SpecializedConfig(**fields).build()
    one, other = fit([plain, tilted], batches)
    x = batches.x["first"]
    with torch.no_grad():
        worst = [(x - fitted.coder(x)).square().sum(-1).max().item() for fitted in (one, other)]
    assert worst[1] < worst[0]
    assert other.numbers["tilt"] > 0
    assert {"reconstruction", "fvu", "aux"} <= other.numbers.keys()


BM25 = {"retrieve": "bm25", "concept": "archery", "contexts": 8}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"tilt": 1.0, "tilt_by_spread": 1.0}, "at most one of tilt"),
        ({"tilt": 0.0}, "greater than 0"),
        ({"contexts": 8}, "contexts is for retrieve"),
        ({"rerank": "tracin"}, "rerank is for retrieve"),
        ({**BM25, "concept": None}, "exactly one of queries"),
        ({**BM25, "queries": "x.txt"}, "exactly one of queries"),
        ({**BM25, "contexts": None}, "needs contexts"),
        ({**BM25, "concept": "archry"}, "no rare subdomain 'archry'.*archery"),
        ({**BM25, "encoder": "e"}, "encoder is for retrieve: dense"),
        ({**BM25, "rerank": "tracin", "start": "fresh"}, "start must be general"),
        ({"tlit": 1.0}, "tlit"),
    ],
)
def test_what_makes_no_sense_together_is_refused(fields, told):
    with pytest.raises(ValidationError, match=told):
        SpecializedConfig(**fields)
    SpecializedConfig(**{**BM25, "retrieve": "dense", "encoder": "e", "rerank": "tracin"})
