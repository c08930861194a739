"""What only latents that choose tokens claim."""

from typing import Any

import pytest
import torch

from sae_lib.saes import _codes
from sae_lib.saes._columns import classes, top_of_columns_code
from sae_lib.saes._ops import keep_top_k
from sae_lib.saes.base import Step
from sae_lib.saes.feature_choice import FeatureChoice, FeatureChoiceConfig
from sae_lib.saes.mutual_choice import MutualChoiceConfig


def config(**changes: Any) -> FeatureChoiceConfig:
    return FeatureChoiceConfig(**{"d_in": 8, "d_sae": 32, "k": 4, "aux_k": 4, **changes})


def made(cfg: FeatureChoiceConfig) -> FeatureChoice:
    coder = cfg.build().double()
    assert isinstance(coder, FeatureChoice)
    return coder


def step_for(x: torch.Tensor, progress: float = 0.5, d_sae: int = 32) -> Step:
    dead = torch.arange(d_sae) % 5 == 0
    return Step(x=x, target=x, dead=dead, progress=progress)


def weights(d_sae: int, rows: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens, and an encoder some of whose latents are on for few or none of them."""
    generator = torch.Generator().manual_seed(3)
    x, W = (torch.randn(n, 8, dtype=torch.float64, generator=generator) for n in (rows, d_sae))
    b_enc = torch.linspace(-9, 4, d_sae, dtype=torch.float64)
    return x, W, b_enc, torch.linspace(-1, 1, 8, dtype=torch.float64)


def naive(pre: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """The selection, one latent at a time."""
    z = torch.zeros_like(pre)
    for latent, num in enumerate(counts.tolist()):
        tokens = pre[:, latent].topk(num).indices
        z[tokens, latent] = pre[tokens, latent]
    return z


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("rows", [1, 7, 100])
def test_columns_are_chosen_as_one_at_a_time(
    density: float, rows: int, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_codes, "MAX_DENSITY", density)
    encoder = weights(40, rows)
    counts = torch.arange(40) * rows // 39
    code, cuts = top_of_columns_code(*encoder, counts)
    assert code.is_sparse == bool(density)
    x, W, b_enc, b_dec = encoder
    pre = ((x - b_dec) @ W.T + b_enc).relu()
    torch.testing.assert_close(code.z, naive(pre, counts), rtol=1e-12, atol=1e-12)
    for latent in counts.nonzero().squeeze(1).tolist():
        ordered = [*pre[:, latent].sort(descending=True).values.tolist(), 0.0]
        num = int(counts[latent])
        assert float(cuts[latent]) == pytest.approx((ordered[num - 1] + ordered[num]) / 2)


def test_classes_hold_every_latent_once_and_differ_little_inside():
    counts = torch.tensor([0, 1, 2, 3, 4, 5, 8, 9, 1, 100])
    found = classes(counts)
    assert sorted(torch.cat([latents for latents, _ in found]).tolist()) == list(range(1, 10))
    for latents, largest in found:
        assert largest == int(counts[latents].max()) < 2 * int(counts[latents].min())


def test_transposed_it_is_topk():
    x, W, b_enc, b_dec = weights(24, 40)
    code, _ = top_of_columns_code(x, W, b_enc, b_dec, torch.full((24,), 5))
    pre = ((x - b_dec) @ W.T + b_enc).relu()
    torch.testing.assert_close(code.z.T, keep_top_k(pre.T, 5), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("budgets", ["uniform", "zipf"])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_every_latent_spends_its_budget(
    density: float, budgets: str, mixtures: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_codes, "MAX_DENSITY", density)
    coder, x = made(config(budgets=budgets)), mixtures(128)[0].double()
    with torch.no_grad():
        coder.b_enc.fill_(5.0)  # all are positive, so that none lacks tokens
    z = coder.terms(step_for(x)).z
    counts = coder.counts(128, 0)
    assert torch.equal((z > 0).sum(0), counts)
    assert int(counts.sum()) == 4 * 128
    assert (z > 0).sum(1).double().mean() == 4
    assert len(counts.unique()) == 1 if budgets == "uniform" else len(counts.unique()) > 5


def test_frequent_latents_get_more_tokens_and_ranks_stay_for_a_while(mixtures: Any):
    coder, x = made(config(rerank_every=2)), mixtures(128)[0].double()
    coder.terms(step_for(x))
    wishes, ranks = coder.wishes.clone(), coder.ranks.clone()
    assert torch.equal(wishes[ranks.argsort()], wishes.sort(descending=True).values)
    with torch.no_grad():
        coder.W_enc.copy_(coder.W_enc.flip(0))
    coder.wishes.zero_()
    coder.terms(step_for(x))
    assert torch.equal(coder.ranks, ranks)
    coder.terms(step_for(x))
    assert not torch.equal(coder.ranks, ranks)


def test_the_first_phase_is_mutual_choice(mixtures: Any):
    x = mixtures(64)[0].double()
    coder = made(config(mutual_share=0.4))
    mutual = MutualChoiceConfig(d_in=8, d_sae=32, k=4, aux_k=4).build().double()
    found = [one.terms(step_for(x, progress=0.3)) for one in (coder, mutual)]
    assert torch.equal(found[0].z, found[1].z)
    assert torch.equal(found[0].loss, found[1].loss)
    assert not coder.has_threshold
    coder.terms(step_for(x, progress=0.4))
    assert coder.has_threshold


@pytest.mark.parametrize("situation", ["plain", "few positive"])
def test_whole_steps_agree_with_the_dense_oracle(
    situation: str, mixtures: Any, monkeypatch: pytest.MonkeyPatch
):
    x, results = mixtures(64)[0].double(), []
    for density in (0.0, 1.0):
        monkeypatch.setattr(_codes, "MAX_DENSITY", density)
        coder = made(config())
        with torch.no_grad():
            coder.b_enc.fill_(0.01 if situation == "plain" else -0.8)
        terms = coder.terms(step_for(x))
        assert terms.code.is_sparse == bool(density)
        terms.loss.backward()
        gradients = {f"d {name}": value.grad for name, value in coder.named_parameters()}
        buffers = dict(coder.named_buffers())
        results.append({"loss": terms.loss.detach(), "z": terms.z.detach(), **gradients, **buffers})
    for key, dense in results[0].items():
        torch.testing.assert_close(results[1][key], dense, rtol=1e-10, atol=1e-10, msg=key)


def test_with_no_share_the_auxiliary_loss_is_that_of_dead_latents(mixtures: Any):
    coder, x = made(config(underused_share=0)), mixtures(64)[0].double()
    terms = coder.terms(step_for(x))
    encoder = coder.W_enc, coder.b_enc, coder.b_dec
    dead = torch.arange(32) % 5 == 0
    aux = _codes.aux_from(terms.error, x, dead, *encoder, coder.W_dec, 4) / 32
    torch.testing.assert_close(terms.extra["aux_zipf"], aux)
    assert aux > 0


def test_a_latent_that_never_had_a_budget_stays_off(mixtures: Any):
    coder, x = made(config()), mixtures(64)[0].double()
    coder.threshold.fill_(0.2)
    coder.threshold[3] = -1
    z = coder.encode(x)
    assert not z[:, 3].any()
    assert z[:, 4].any()
    coder.scale_(2.0)
    assert coder.threshold[3] == -1


@pytest.mark.parametrize("budgets", ["uniform", "zipf"])
def test_after_training_about_k_latents_are_on_and_none_is_dead(
    budgets: str, fitted: Any, mixtures: Any
):
    cfg = config(k=3, budgets=budgets)
    coder = fitted(cfg, mixtures(4096)[0], steps=500, lr=5e-3).coder
    z = coder.encode(mixtures(8192)[0][4096:])
    assert (z > 0).sum(-1).float().mean().item() == pytest.approx(3, rel=0.1)
    assert bool((z > 0).any(0).all())
