"""What only the autoencoder with a budget per batch claims."""

from typing import Any

import pytest
import torch

from sae_lib.saes.batch_topk import BatchTopK, BatchTopKConfig
from sae_lib.saes.topk import TopKConfig


def config(**changes: Any) -> BatchTopKConfig:
    return BatchTopKConfig(**{"d_in": 8, "d_sae": 32, "k": 4, **changes})


def made(**changes: Any) -> BatchTopK:
    coder = config(**changes).build()
    assert isinstance(coder, BatchTopK)
    return coder


def batch_with_smallest(value: float) -> torch.Tensor:
    """Two rows that fill a budget of 4 each, the smallest latent being ``value``."""
    z = torch.zeros(2, 32)
    z[0, :7] = 5.0
    z[1, 9] = value
    return z


def test_more_latents_on_than_there_are_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"between 1 and d_sae=32; got k=33"):
        config(k=33)


def test_a_batch_spends_its_budget_unevenly(seasoned: Any, mixtures: Any, step_of: Any):
    coder, x = seasoned(config()), mixtures(256)[0]
    on = (coder.terms(step_of(x, 32)).z > 0).sum(-1)
    assert int(on.sum()) == 4 * 256
    assert float(on.float().var()) > 0.1


def test_on_one_row_it_is_topk(seasoned: Any, mixtures: Any, step_of: Any):
    batch = seasoned(config())
    topk = TopKConfig(d_in=8, d_sae=32, k=4).build()
    topk.load_state_dict(batch.state_dict(), strict=False)
    for row in mixtures(8)[0].split(1):
        step = step_of(row, 32)
        assert torch.equal(batch.terms(step).z, topk.terms(step).z)


def test_before_any_batch_each_token_keeps_its_own_k(mixtures: Any):
    coder, x = made(), mixtures(64)[0]
    topk = TopKConfig(d_in=8, d_sae=32, k=4).build()
    assert not coder.has_threshold
    assert torch.equal(coder.encode(x), topk.encode(x))


def test_the_threshold_follows_at_first_and_then_averages():
    coder = made(threshold_start_steps=2, threshold_beta=0.9)
    seen = []
    for value in (0.5, 0.1, 0.2, 0.4):
        coder.observe_threshold_(batch_with_smallest(value), 8)
        seen.append(coder.threshold.item())
    assert seen[0] == pytest.approx(0.5)
    assert seen[1] == pytest.approx(0.1)
    assert seen[2] == pytest.approx(0.9 * 0.1 + 0.1 * 0.2)
    assert seen[3] == pytest.approx(0.9 * seen[2] + 0.1 * 0.4)
    assert coder.has_threshold


def test_the_first_threshold_is_not_averaged_with_nothing():
    coder = made(threshold_start_steps=0)
    coder.observe_threshold_(batch_with_smallest(0.5), 8)
    assert coder.threshold.item() == pytest.approx(0.5)


def test_a_batch_that_cannot_spend_its_budget_does_not_move_the_threshold():
    coder = made()
    coder.observe_threshold_(batch_with_smallest(0.5), 8)
    for z in (torch.zeros(2, 32), 1e-3 * torch.eye(2, 32)):
        coder.observe_threshold_(z, 8)
        assert coder.threshold.item() == pytest.approx(0.5)
    assert int(coder.num_thresholds) == 1


def test_latents_above_the_threshold_are_on_whatever_their_number(mixtures: Any):
    coder, x = made(), mixtures(200)[0]
    coder.threshold.fill_(0.3)
    pre = coder.pre(x)
    assert torch.equal(coder.encode(x), pre * (pre > 0.3))
    assert len((coder.encode(x) > 0).sum(-1).unique()) > 2


def test_after_training_about_k_latents_are_on_for_unseen_tokens(fitted: Any, mixtures: Any):
    coder = fitted(config(k=3), mixtures(4096)[0], steps=500, lr=5e-3).coder
    unseen = mixtures(8192)[0][4096:]
    on = (coder.encode(unseen) > 0).sum(-1).float()
    assert on.mean().item() == pytest.approx(3, rel=0.05)
    assert on.var().item() > 0.1


@pytest.mark.slow
def test_a_shared_budget_reconstructs_better_where_tokens_differ(fitted: Any, mixtures: Any):
    x = mixtures(8192, num_true=16)[0]
    errors = []
    for cfg in (config(k=2), TopKConfig(d_in=8, d_sae=32, k=2)):
        coder = fitted(cfg, x, steps=1000, lr=5e-3).coder
        with torch.no_grad():
            errors.append((x - coder(x)).square().sum().item())
    assert errors[0] < 0.8 * errors[1]
