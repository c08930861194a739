"""What only mutual choice claims, and Zipf's law."""

from typing import Any

import pytest
import torch

from sae_lib.saes import _codes
from sae_lib.saes._zipf import follow_rates_, ranks_of, underused, whole_quotas, zipf_quotas
from sae_lib.saes.base import Step
from sae_lib.saes.batch_topk import BatchTopKConfig
from sae_lib.saes.mutual_choice import MutualChoice, MutualChoiceConfig


def config(**changes: Any) -> MutualChoiceConfig:
    return MutualChoiceConfig(**{"d_in": 8, "d_sae": 32, "k": 4, "aux_k": 4, **changes})


def made(cfg: MutualChoiceConfig) -> MutualChoice:
    coder = cfg.build().double()
    assert isinstance(coder, MutualChoice)
    return coder


def step_for(x: torch.Tensor, dead: torch.Tensor) -> Step:
    return Step(x=x, target=x, dead=dead, progress=0.5)


# --- Zipf's law ---


def test_budgets_of_the_hand_case():
    quotas = zipf_quotas(12, 24, 1.0, 1.0, 100)
    assert whole_quotas(quotas, 24, 0.0).tolist() == [5, 4, 3, 2, 2, 2, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("num", "total", "exponent", "offset", "cap"),
    [
        (12, 24, 1.0, 1.0, 100),
        (32, 4 * 16, 1.0, 0.0, 16),
        (32, 32 * 16, 1.0, 0.0, 16),
        (32, 31 * 16, 2.0, 0.0, 16),
        (32, 77, 0.0, 0.0, 16),
        (8192, 65_536, 1.0, 32.0, 2048),
        (8192, 4096, 1.2, 0.0, 128),
    ],
)
def test_budgets_sum_exactly_and_fit_the_batch(
    num: int, total: int, exponent: float, offset: float, cap: int
):
    quotas = zipf_quotas(num, total, exponent, offset, cap)
    assert float(quotas.sum()) == pytest.approx(total)
    assert bool((quotas.diff() <= 1e-9).all())
    for draw in (0.0, 0.3, 0.999):
        counts = whole_quotas(quotas, total, draw)
        assert int(counts.sum()) == total
        assert int(counts.min()) >= 0
        assert int(counts.max()) <= cap
        assert bool(((counts - quotas).abs() < 1 + 1e-6).all())


def test_a_quota_below_one_is_met_on_average():
    quotas = zipf_quotas(20, 10, 1.0, 3.0, 8)
    draws = torch.stack([whole_quotas(quotas, 10, (i + 0.5) / 500) for i in range(500)])
    torch.testing.assert_close(draws.double().mean(0), quotas, rtol=0, atol=0.01)


def test_rates_are_a_plain_mean_at_first():
    rates, num = torch.zeros(2), torch.zeros((), dtype=torch.int64)
    for now in ([1.0, 0.0], [0.0, 0.0], [0.5, 0.3]):
        follow_rates_(rates, num, torch.tensor(now), 0.99)
    torch.testing.assert_close(rates, torch.tensor([0.5, 0.1]))
    follow_rates_(rates, num, torch.tensor([1.0, 1.0]), 0.5)
    torch.testing.assert_close(rates, torch.tensor([0.75, 0.55]))
    assert ranks_of(torch.tensor([0.1, 0.5, 0.0, 0.5])).tolist() == [2, 0, 3, 1]


def test_dying_latents_are_those_below_a_share_of_what_is_expected():
    rates, expected = torch.tensor([0.5, 0.04, 0.0, 0.1]), torch.tensor([0.5, 0.5, 0.1, 0.2])
    dead = torch.tensor([True, False, False, False])
    assert underused(rates, expected, dead, 0.1).tolist() == [True, True, True, False]
    assert underused(rates, expected, dead, 0.0).tolist() == [True, False, False, False]


# --- the coder ---


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_without_dying_latents_it_is_batch_topk(
    density: float, mixtures: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_codes, "MAX_DENSITY", density)
    x, dead = mixtures(64)[0].double(), torch.arange(32) % 5 == 0
    mutual = made(config(underused_share=0))
    batch = BatchTopKConfig(d_in=8, d_sae=32, k=4, aux_k=4).build().double()
    batch.load_state_dict(mutual.state_dict(), strict=False)
    found = [coder.terms(step_for(x, dead)) for coder in (mutual, batch)]
    for terms in found:
        assert terms.code.is_sparse == bool(density)
        terms.loss.backward()
    assert torch.equal(found[0].z, found[1].z)
    assert int((found[0].z > 0).sum()) == 4 * 64
    assert len((found[0].z > 0).sum(1).unique()) > 2
    assert torch.equal(found[0].extra["aux_zipf"], found[1].extra["aux"])
    for name, parameter in batch.named_parameters():
        mine = mutual.get_parameter(name).grad
        assert parameter.grad is not None
        assert mine is not None
        assert torch.equal(mine, parameter.grad), name


def test_with_every_latent_on_it_is_relu(mixtures: Any):
    coder, x = made(config(k=32)), mixtures(64)[0].double()
    terms = coder.terms(step_for(x, torch.zeros(32, dtype=torch.bool)))
    assert torch.equal(terms.z, coder.pre(x))
    assert torch.equal(coder.encode(x), coder.pre(x))


def test_the_auxiliary_loss_teaches_dying_latents_alone(mixtures: Any):
    coder, x = made(config(underused_share=0.5)), mixtures(64)[0].double()
    nobody = torch.zeros(32, dtype=torch.bool)
    coder.terms(step_for(x, nobody))
    terms = coder.terms(step_for(x, nobody))
    rows = coder.underused(nobody)
    assert 0 < int(rows.sum()) < 32
    terms.extra["aux_zipf"].backward()
    for parameter in (coder.W_enc, coder.W_dec):
        assert parameter.grad is not None
        assert not parameter.grad[~rows].any()
        assert parameter.grad[rows].any()


def test_after_training_about_k_latents_are_on_for_unseen_tokens(fitted: Any, mixtures: Any):
    coder = fitted(config(k=3), mixtures(4096)[0], steps=500, lr=5e-3).coder
    on = (coder.encode(mixtures(8192)[0][4096:]) > 0).sum(-1).float()
    assert on.mean().item() == pytest.approx(3, rel=0.05)
