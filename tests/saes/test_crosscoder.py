"""Crosscoders: sources side by side, and the coder they are where there is one."""

from typing import Any

import pytest
import torch

from sae_lib.saes import _codes
from sae_lib.saes.crosscoder import CrosscoderConfig
from sae_lib.saes.standard import StandardConfig

EXAMPLES = CrosscoderConfig.examples()
BUDGET = EXAMPLES[2]


@pytest.mark.parametrize(("penalty", "sources"), [("l1_of_norms", 1), ("l2_of_norms", 2)])
def test_one_source_or_the_norm_of_all_is_the_norm_weighted_autoencoder(
    penalty: str, sources: int, seasoned: Any, mixtures: Any, step_of: Any
):
    sae = seasoned(StandardConfig.example().but(form="norm_weighted"), torch.float64)
    coder = CrosscoderConfig(d_in=8, d_sae=32, num_sources=sources, penalty=penalty, l1=0.1)
    coder = coder.build().double()
    with torch.no_grad():
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            getattr(coder, name).copy_(getattr(sae, name))
        coder.control.coefficient.copy_(sae.control.coefficient)
    step = step_of(mixtures(64)[0].double(), 32)
    mine, its = coder.terms(step), sae.terms(step)
    torch.testing.assert_close(mine.loss, its.loss, rtol=1e-12, atol=0)
    mine.loss.backward()
    its.loss.backward()
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        torch.testing.assert_close(getattr(coder, name).grad, getattr(sae, name).grad)


@pytest.mark.parametrize(("penalty", "weight"), [("l1_of_norms", 7.0), ("l2_of_norms", 5.0)])
def test_norms_of_3_and_4_weigh_7_or_5(penalty: str, weight: float):
    coder = CrosscoderConfig(d_in=4, d_sae=1, l1=1, penalty=penalty).build()
    with torch.no_grad():
        coder.W_dec.copy_(torch.tensor([[3.0, 0, 0, 4.0]]))
    assert coder.source_norms().tolist() == [[3, 4]]
    assert coder.weights().item() == weight


def test_identical_sources_with_one_start_stay_identical(mixtures: Any, step_of: Any):
    a = mixtures(64, d_in=4)[0]
    coder = CrosscoderConfig(d_in=8, d_sae=32, l1=0.1, same_start=True).build()
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-2)
    first = coder.W_dec.detach().clone()
    for _ in range(20):
        optimizer.zero_grad()
        coder.terms(step_of(torch.cat([a, a], 1), 32)).loss.backward()
        optimizer.step()
    assert not torch.allclose(coder.W_dec, first)
    torch.testing.assert_close(coder.W_dec[:, :4], coder.W_dec[:, 4:])
    torch.testing.assert_close(coder.W_enc[:, :4], coder.W_enc[:, 4:])
    norms = coder.source_norms()
    torch.testing.assert_close(norms[:, 0], norms[:, 1])


@pytest.mark.parametrize("cfg", EXAMPLES, ids=str)
def test_larger_latents_with_smaller_rows_cost_the_same(
    cfg: CrosscoderConfig, seasoned: Any, mixtures: Any, step_of: Any
):
    cfg = cfg.but(l1=0.1, target_l0=None) if cfg.target_l0 else cfg  # nothing is steered here
    coder, step = seasoned(cfg, torch.float64), step_of(mixtures(64)[0].double(), 32)
    before = coder.terms(step).loss.item()
    by = torch.linspace(0.2, 5, 32, dtype=torch.float64)
    with torch.no_grad():
        coder.W_enc.mul_(by[:, None])
        coder.b_enc.mul_(by)
        coder.W_dec.div_(by[:, None])
    assert coder.terms(step).loss.item() == pytest.approx(before, rel=1e-10)


@pytest.mark.parametrize("cfg", EXAMPLES, ids=str)
def test_folding_the_scales_of_sources_changes_no_latent(
    cfg: CrosscoderConfig, seasoned: Any, mixtures: Any
):
    coder, folded = seasoned(cfg, torch.float64), seasoned(cfg, torch.float64)
    factors = [3.0, 0.2, 10.0, 1.0][: cfg.num_sources]
    by = torch.tensor(factors, dtype=torch.float64).repeat_interleave(8 // cfg.num_sources)
    folded.scale_sources_(factors)
    x = mixtures(64)[0].double()
    torch.testing.assert_close(folded.encode(x * by), coder.encode(x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(folded(x * by), coder(x) * by, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(folded.source_norms(), coder.source_norms())
    folded.fold_norms_()
    assert torch.equal(folded.encode(x * by) > 0, coder.encode(x) > 0)
    torch.testing.assert_close(folded(x * by), coder(x) * by, rtol=1e-10, atol=1e-10)


def test_the_budget_goes_to_the_largest_weighed_latents(seasoned: Any, mixtures: Any, step_of: Any):
    coder, x = seasoned(BUDGET, torch.float64), mixtures(64)[0].double()
    code = coder.terms(step_of(x, 32)).code
    weighed = (x @ coder.W_enc.T + coder.b_enc).relu() * coder.source_norms().sum(1)
    cut = weighed.flatten().sort(descending=True).values[4 * 64 - 1]
    assert torch.equal(code.z > 0, weighed >= cut)
    with torch.no_grad():
        coder.threshold.fill_(0.3)
    assert torch.equal(coder.encode(x) > 0, weighed > 0.3)


def test_the_sparse_path_has_the_dense_gradients(
    mixtures: Any, step_of: Any, monkeypatch: pytest.MonkeyPatch
):
    cfg, x = BUDGET.but(d_sae=256), mixtures(64)[0].double()
    found, thresholds = [], []
    for limit in (1.0, 0.0):
        monkeypatch.setattr(_codes, "MAX_DENSITY", limit)
        coder = cfg.build().double()
        with torch.no_grad():  # rows of very different norms, so that weighing matters
            coder.W_dec.mul_(torch.linspace(0.1, 9, 256).double()[:, None])
        terms = coder.terms(step_of(x, 256, dead=torch.arange(256) < 99))
        assert terms.code.is_sparse == (limit == 1)
        terms.loss.backward()
        found.append({name: p.grad for name, p in coder.named_parameters()})
        thresholds.append(coder.threshold.item())
    assert thresholds[0] == pytest.approx(thresholds[1], rel=1e-12)
    for name, gradient in found[0].items():
        torch.testing.assert_close(gradient, found[1][name], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"l1": 1, "k": 4}, "relu takes exactly one of l1"),
        ({"activation": "batch_topk", "l1": 1}, "batch_topk takes k"),
        ({"l1": 1, "num_sources": 3}, "num_sources=3 times the width"),
        ({"target_l0": 40}, "target_l0 must be at most d_sae=32"),
    ],
)
def test_settings_that_do_not_fit_are_refused(given: dict[str, Any], said: str):
    with pytest.raises(ValueError, match=said):
        CrosscoderConfig(d_in=8, d_sae=32, **given)
