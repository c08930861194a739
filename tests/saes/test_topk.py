"""What only the k-sparse autoencoder claims."""

from typing import Any

import pytest
import torch

from sae_lib.saes.standard import StandardConfig
from sae_lib.saes.topk import TopK, TopKConfig


def config(**changes: Any) -> TopKConfig:
    return TopKConfig(**{"d_in": 8, "d_sae": 32, "k": 4, **changes})


def test_more_latents_on_than_there_are_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"between 1 and d_sae=32; got k=33"):
        config(k=33)


def test_never_more_than_k_are_on_and_exactly_k_where_enough_are_positive(
    seasoned: Any, mixtures: Any
):
    coder, x = seasoned(config()), mixtures(500)[0]
    on, positive = (coder.encode(x) > 0).sum(-1), (coder.pre(x) > 0).sum(-1)
    assert torch.equal(on, positive.clamp_max(4))
    assert bool((on == 4).any())


def test_with_every_latent_allowed_it_is_the_relu_sae(seasoned: Any, mixtures: Any, step_of: Any):
    topk = seasoned(config(k=32))
    relu = StandardConfig(d_in=8, d_sae=32, l1=0.0).build()
    relu.load_state_dict(topk.state_dict(), strict=False)
    x = mixtures(64)[0]
    assert torch.equal(topk.encode(x), relu.encode(x))
    losses = [coder.terms(step_of(x, 32)).loss.item() for coder in (topk, relu)]
    assert losses[0] == losses[1]


def test_without_the_auxiliary_term_latents_that_lost_learn_nothing(
    seasoned: Any, mixtures: Any, step_of: Any
):
    coder, x = seasoned(config(aux_weight=0.0)), mixtures(5)[0]
    terms = coder.terms(step_of(x, 32, dead=torch.ones(32, dtype=torch.bool)))
    terms.loss.backward()
    lost = (terms.z == 0).all(0)
    assert bool(lost.any())
    for gradient in (coder.W_enc.grad, coder.W_dec.grad):
        assert bool((gradient[lost] == 0).all())
        assert bool((gradient[~lost] != 0).any(-1).all())


def test_a_dead_latent_learns_through_the_auxiliary_term_alone(
    seasoned: Any, mixtures: Any, step_of: Any
):
    coder, x = seasoned(config(aux_k=3)), mixtures(64)[0]
    # weak enough never to be among the four largest, positive often enough to help
    with torch.no_grad():
        coder.W_enc[:6] *= 1e-2
        coder.b_enc[:6] = 1e-3
    dead = torch.arange(32) < 6
    terms = coder.terms(step_of(x, 32, dead=dead))
    assert bool((terms.z[:, dead] == 0).all())
    W_enc, W_dec, b_dec = coder.W_enc, coder.W_dec, coder.b_dec
    by_aux = torch.autograd.grad(terms.extra["aux"], (W_enc, W_dec), retain_graph=True)
    by_main = torch.autograd.grad(terms.reconstruction, (W_enc, W_dec, b_dec))
    for aux, main in zip(by_aux, by_main, strict=False):
        assert bool((main[dead] == 0).all())
        assert bool((aux[~dead] == 0).all())
        assert bool((aux[dead] != 0).any(-1).all())


def test_the_decoder_bias_is_no_part_of_what_dead_latents_add(
    seasoned: Any, mixtures: Any, step_of: Any
):
    """With a constant error the aux term sees the error alone, however large b_dec is."""
    coder, x = seasoned(config(), torch.float64), mixtures(64)[0].double()
    dead = torch.arange(32) < 6
    before = coder.terms(step_of(x, 32, dead=dead)).extra["aux"]
    with torch.no_grad():
        coder.b_dec.add_(100.0)
    after = coder.terms(step_of(x + 100.0, 32, dead=dead)).extra["aux"]
    torch.testing.assert_close(after, before, rtol=1e-9, atol=0)


def test_the_loss_is_the_authors_times_the_variance(seasoned: Any, mixtures: Any, step_of: Any):
    """Gao et al. train |e|^2 / var(x) + aux / 32; here that is multiplied by var(x)."""
    cfg = config()
    coder = seasoned(cfg, torch.float64)
    x = mixtures(512)[0].double() + 3.0
    coder.initialise_(x)
    variance = (x - x.mean(0)).square().sum(-1).mean()
    dead = torch.arange(32) < 6
    terms = coder.terms(step_of(x, 32, dead=dead))
    error = (x - coder.decode(terms.z)).detach()
    helped = coder.pre(x)[:, dead].topk(min(cfg.aux_k, 6))
    e_hat = torch.zeros(512, 6, dtype=torch.float64).scatter(1, helped.indices, helped.values)
    aux = (error - e_hat @ coder.W_dec[dead]).square().sum()
    aux = aux / (error - error.mean(0)).square().sum()
    fvu = terms.reconstruction / variance
    torch.testing.assert_close(terms.loss, variance * (fvu + aux / 32))


def test_more_latents_on_enter_the_loss_with_their_weight(
    seasoned: Any, mixtures: Any, step_of: Any
):
    x = mixtures(64)[0]
    coder = seasoned(config(multi_weight=1 / 8, multi_multiple=3))
    wider = seasoned(config(k=12))
    wider.load_state_dict(coder.state_dict())
    found = coder.terms(step_of(x, 32)).extra["multi"]
    torch.testing.assert_close(found, wider.terms(step_of(x, 32)).reconstruction / 8)
    assert "multi" not in seasoned(config()).terms(step_of(x, 32)).extra


def test_multi_topk_keeps_the_error_down_when_more_latents_are_on(fitted: Any, mixtures: Any):
    x = mixtures(4096)[0]
    errors = {}
    for weight in (0.0, 1 / 8):
        coder = fitted(config(k=2, multi_weight=weight), x, steps=500, lr=5e-3).coder
        assert isinstance(coder, TopK)
        with torch.no_grad():
            for k in (2, 4, 8):
                wider = TopKConfig(d_in=8, d_sae=32, k=k).build()
                wider.load_state_dict(coder.state_dict())
                errors[weight, k] = (x - wider(x)).square().sum(-1).mean().item()
    assert errors[1 / 8, 4] <= errors[1 / 8, 2]
    assert errors[1 / 8, 8] < 0.5 * errors[0.0, 8]


def test_dead_latents_come_back_with_the_auxiliary_term_and_not_without(
    fitted: Any, mixtures: Any, monkeypatch: pytest.MonkeyPatch
):
    """Half of the latents start where they never win; only the auxiliary term can move them."""
    original = TopK.initialise_

    def handicapped(self: TopK, sample: torch.Tensor) -> None:
        original(self, sample)
        with torch.no_grad():
            self.W_enc[:16] *= 1e-3

    monkeypatch.setattr(TopK, "initialise_", handicapped)
    x = mixtures(4096, num_true=24, on=3.0)[0]
    results = {
        weight: fitted(
            config(k=3, aux_weight=weight), x, steps=500, lr=5e-3, dead_after_tokens=1280
        ).numbers
        for weight in (0.0, 1 / 32)
    }
    assert results[0.0]["dead_share"] > 0.4
    assert results[1 / 32]["dead_share"] < 0.2
    assert results[1 / 32]["fvu"] < results[0.0]["fvu"]


@pytest.mark.slow
def test_topk_reconstructs_better_than_l1_at_equal_sparsity_and_does_not_shrink(
    fitted: Any, mixtures: Any
):
    x = mixtures(8192, num_true=16)[0]
    topk = fitted(config(k=3), x, steps=1000, lr=5e-3).coder
    relu = fitted(StandardConfig(d_in=8, d_sae=32, target_l0=3.0), x, steps=1000, lr=5e-3).coder
    found = {}
    with torch.no_grad():
        for name, coder in (("topk", topk), ("relu", relu)):
            x_hat = coder(x)
            on = (coder.encode(x) > 0).sum(-1).float().mean().item()
            gamma = (x_hat.square().sum() / (x_hat * x).sum()).item()
            found[name] = (on, (x - x_hat).square().sum().item(), gamma)
    assert found["topk"][0] <= 1.1 * found["relu"][0]
    assert found["topk"][1] < 0.8 * found["relu"][1]
    assert found["topk"][2] == pytest.approx(1.0, abs=0.03)
    assert found["relu"][2] < 0.9
