"""What only the Gated SAE claims."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lib.saes.gated import Gated, GatedConfig, as_jumprelu
from sae_lib.saes.jumprelu import JumpReLUConfig
from sae_lib.saes.standard import StandardConfig


def config(**changes: Any) -> GatedConfig:
    return GatedConfig(**{"d_in": 8, "d_sae": 32, "l1": 0.3, **changes})


@pytest.fixture
def uneven(seasoned: Any) -> Gated:
    """One whose gates and magnitudes disagree, with thresholds of either sign."""
    coder = seasoned(config(), torch.float64)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for bias in (coder.b_enc, coder.b_mag, coder.r_mag):
            bias.add_(0.2 * torch.randn(32, generator=generator, dtype=torch.float64))
    return coder


def gradient(loss: Tensor, parameter: Tensor) -> Tensor:
    (found,) = torch.autograd.grad(loss, parameter, retain_graph=True, allow_unused=True)
    return torch.zeros_like(parameter) if found is None else found


def test_a_closed_gate_means_no_latent_and_an_open_one_its_magnitude(uneven: Gated, mixtures: Any):
    x = mixtures(256)[0].double()
    gate, z = uneven.gate_and_latents(x)
    centred = x - uneven.b_dec
    by_hand = centred @ uneven.W_enc.T + uneven.b_enc
    torch.testing.assert_close(gate, by_hand)
    magnitude = (uneven.r_mag.exp() * (centred @ uneven.W_enc.T) + uneven.b_mag).relu()
    assert bool(((by_hand <= 0) & (magnitude > 0)).any())
    assert not z[by_hand <= 0].any()
    torch.testing.assert_close(z[by_hand > 0], magnitude[by_hand > 0])


def test_each_term_teaches_what_it_should(uneven: Gated, mixtures: Any, step_of: Any):
    terms = uneven.terms(step_of(mixtures(64)[0].double(), 32))
    taught = {
        "reconstruction": {"W_enc", "W_dec", "b_dec", "r_mag", "b_mag"},
        "l1": {"W_enc", "b_enc", "b_dec"},
        "aux": {"W_enc", "b_enc", "b_dec"},
    }
    losses = {"reconstruction": terms.reconstruction, **terms.extra}
    assert set(losses) == set(taught)
    for name, loss in losses.items():
        found = {key for key, p in uneven.named_parameters() if gradient(loss, p).any()}
        assert found == taught[name], name


def test_gradients_are_those_of_the_loss_with_the_frozen_decoder_held_still(
    uneven: Gated, mixtures: Any, step_of: Any
):
    x = mixtures(16)[0].double()
    frozen_rows, frozen_bias = uneven.W_dec.detach().clone(), uneven.b_dec.detach().clone()

    def loss() -> float:
        gate, z = uneven.gate_and_latents(x)
        open_by = gate.relu()
        main = (x - uneven.decode(z)).square().sum(1)
        aux = (x - open_by @ frozen_rows - frozen_bias).square().sum(1)
        return float((main + uneven.control.coefficient * open_by.sum(1) + aux).mean().detach())

    uneven.zero_grad()
    terms = uneven.terms(step_of(x, 32))
    assert terms.loss.item() == pytest.approx(loss(), rel=1e-12)
    terms.loss.backward()
    generator = torch.Generator().manual_seed(2)
    for name, parameter in uneven.named_parameters():
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        before, losses = parameter.detach().clone(), []
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(sign * 1e-6 * direction)
                losses.append(loss())
                parameter.copy_(before)
        slope = (losses[0] - losses[1]) / 2e-6
        assert parameter.grad is not None
        assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=1e-5), name


def test_what_terms_add_up_to_per_token_is_what_they_are(
    uneven: Gated, mixtures: Any, step_of: Any
):
    terms = uneven.terms(step_of(mixtures(64)[0].double(), 32, warmup=0.5))
    for name, values in terms.per_token.items():
        torch.testing.assert_close(values.mean(), terms.extra[name])


# --- limits ---


def test_at_inference_it_is_a_jumprelu(uneven: Gated, mixtures: Any):
    x = mixtures(512)[0].double()
    threshold = uneven.b_mag - uneven.r_mag.exp() * uneven.b_enc
    assert bool((threshold < 0).any())
    assert bool((threshold > 0).any())
    folded = as_jumprelu(uneven)
    torch.testing.assert_close(folded.encode(x), uneven.encode(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(folded(x), uneven(x), rtol=1e-10, atol=1e-12)
    assert bool((folded.encode(x) >= 0).all())
    positive = threshold > 0
    torch.testing.assert_close(folded.threshold[positive], threshold[positive])


def test_with_magnitudes_like_gates_it_is_relu(uneven: Gated, mixtures: Any):
    relu = StandardConfig(d_in=8, d_sae=32, l1=0.1).build().double()
    with torch.no_grad():
        uneven.r_mag.zero_()
        uneven.b_mag.copy_(uneven.b_enc)
        for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
            relu.get_parameter(name).copy_(uneven.get_parameter(name))
    x = mixtures(64)[0].double()
    torch.testing.assert_close(uneven.encode(x), relu.encode(x), rtol=1e-12, atol=1e-12)


def test_a_fresh_one_agrees_with_itself(mixtures: Any):
    coder = config().build()
    assert torch.equal(coder.W_enc, coder.W_dec)
    assert isinstance(coder, Gated)
    gate, z = coder.gate_and_latents(mixtures(16)[0])
    assert torch.equal(z, gate.relu())


# --- training ---


def test_rows_keep_norm_one_and_their_gradients_are_tangent(mixtures: Any, step_of: Any):
    coder, x = config().build(), mixtures(64)[0]
    coder.initialise_(x)
    optimizer = torch.optim.Adam(coder.parameters(), lr=1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        coder.terms(step_of(x, 32)).loss.backward()
        coder.before_update()
        assert coder.W_dec.grad is not None
        along = (coder.W_dec.grad * coder.W_dec.detach()).sum(-1)
        assert float(along.abs().max()) < 1e-6
        optimizer.step()
        coder.after_update()
        torch.testing.assert_close(coder.W_dec.norm(dim=-1), torch.ones(32), rtol=0, atol=1e-6)


@pytest.mark.parametrize("target", [3.0, 6.0])
def test_the_number_of_latents_on_is_steered_to_its_target(
    target: float, fitted: Any, mixtures: Any
):
    x = mixtures(4096)[0]
    result = fitted(config(l1=None, target_l0=target), x, steps=700, lr=5e-3)
    with torch.no_grad():
        on = (result.coder.encode(x) > 0).sum(-1).float().mean().item()
    assert on == pytest.approx(target, rel=0.1)


def test_it_and_jumprelu_do_not_shrink_what_they_find_and_the_baseline_does(
    fitted: Any, mixtures: Any
):
    """gamma = E|x_hat|^2 / E[x . x_hat] is 1 without shrinkage (variants.md 2.1)."""
    x = mixtures(8192, 24, num_true=24, on=4.0)[0]
    shape: dict[str, Any] = {"d_in": 24, "d_sae": 48, "target_l0": 4}
    gammas, unexplained = {}, {}
    for cfg in (StandardConfig(**shape), GatedConfig(**shape), JumpReLUConfig(**shape)):
        result = fitted(cfg, x, steps=800, lr=5e-3, batch_tokens=256)
        x_hat = result.coder(x)
        gammas[cfg.kind] = float(x_hat.square().sum() / (x * x_hat).sum())
        unexplained[cfg.kind] = float((x - x_hat).square().sum() / (x - x.mean(0)).square().sum())
    assert gammas["standard"] < 0.9
    assert gammas["gated"] == pytest.approx(1, abs=0.03)
    assert gammas["jumprelu"] == pytest.approx(1, abs=0.03)
    assert max(unexplained["gated"], unexplained["jumprelu"]) < unexplained["standard"]


def test_a_step_costs_seven_products_instead_of_five():
    baseline = StandardConfig(d_in=8, d_sae=32, l1=0.1).build().flops_per_token()
    assert config().build().flops_per_token() == pytest.approx(7 / 5 * baseline)


@pytest.mark.parametrize("both", [{}, {"l1": 0.1, "target_l0": 4.0}])
def test_exactly_one_of_coefficient_and_target_is_given(both: dict[str, float]):
    with pytest.raises(ValueError, match=r"exactly one of l1 .* and target_l0"):
        GatedConfig(d_in=8, d_sae=32, **both)


def test_a_target_that_cannot_be_missed_is_refused():
    with pytest.raises(ValueError, match=r"target_l0 must be below d_sae=32; got target_l0=32"):
        GatedConfig(d_in=8, d_sae=32, target_l0=32)


def test_a_tiny_negative_threshold_folds_to_a_finite_number():
    coder = config().build()
    assert isinstance(coder, Gated)
    with torch.no_grad():
        coder.b_enc.fill_(1.0)
    assert all(math.isfinite(value) for value in as_jumprelu(coder).log_threshold.tolist())
