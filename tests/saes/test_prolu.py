"""What only ProLU claims: a bias that switches and does not shift."""

from typing import Any

import pytest
import torch

from sae_lib.saes._ops import latents_of
from sae_lib.saes.prolu import ProLUConfig, prolu


def config(**changes: Any) -> ProLUConfig:
    return ProLUConfig.example().but(**changes)


@pytest.mark.parametrize("both", [{}, {"coefficient": 0.1, "target_l0": 4.0}])
def test_exactly_one_of_coefficient_and_target_is_given(both: dict[str, float]):
    with pytest.raises(ValueError, match=r"exactly one of coefficient .* and target_l0"):
        ProLUConfig.model_validate({"d_in": 8, "d_sae": 32, **both})


def test_a_target_that_cannot_be_missed_is_refused():
    with pytest.raises(ValueError, match=r"target_l0 must be below d_sae=32; got target_l0=32"):
        config(coefficient=None, target_l0=32)


@pytest.mark.parametrize(
    ("gradient", "m", "b", "z", "by_m", "by_b"),
    [
        ("relu", 2.0, -1.0, 2.0, 1.0, 1.0),
        ("relu", 0.5, -1.0, 0.0, 0.0, 0.0),
        ("relu", -1.0, 5.0, 0.0, 0.0, 0.0),
        ("relu", 1.0, 0.5, 1.0, 1.0, 1.0),
        ("ste", 2.0, -1.0, 2.0, 3.0, 2.0),
        ("ste", 0.5, -1.0, 0.0, 0.0, 0.0),
        ("ste", -1.0, 5.0, 0.0, 0.0, 0.0),
        ("ste", 1.0, 0.5, 1.0, 2.0, 1.0),
    ],
)
def test_values_and_gradients_by_hand(
    gradient: Any, m: float, b: float, z: float, by_m: float, by_b: float
):
    of_m = torch.tensor([[m]], requires_grad=True)
    of_b = torch.tensor([b], requires_grad=True)
    found = prolu(of_m, of_b, gradient)
    assert found.item() == z
    found.backward()
    assert of_m.grad is not None
    assert of_b.grad is not None
    assert (of_m.grad.item(), of_b.grad.item()) == (by_m, by_b)


@pytest.mark.parametrize("gradient", ["relu", "ste"])
def test_the_gradient_of_the_bias_is_summed_over_all_tokens(gradient: Any):
    generator = torch.Generator().manual_seed(0)
    m = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    b = torch.randn(4, generator=generator, dtype=torch.float64, requires_grad=True)
    g = torch.randn(3, 5, 4, generator=generator, dtype=torch.float64)
    prolu(m, b, gradient).backward(g)
    is_on = ((m > 0) & (m + b > 0)).double()
    expected = (g * is_on * (m if gradient == "ste" else 1)).sum((0, 1))
    torch.testing.assert_close(b.grad, expected)


def test_with_a_negative_bias_it_is_a_jumprelu_and_else_a_relu(seasoned: Any, mixtures: Any):
    coder, x = seasoned(config(), torch.float64), mixtures(64)[0].double()
    with torch.no_grad():
        coder.b_enc[:16].uniform_(-0.5, -0.05, generator=torch.Generator().manual_seed(0))
        coder.b_enc[16:].uniform_(0, 0.5, generator=torch.Generator().manual_seed(1))
    m = latents_of(x, coder.W_enc, torch.zeros_like(coder.b_enc), coder.b_dec)
    threshold = (-coder.b_enc).clamp_min(0)
    z = coder.encode(x)
    torch.testing.assert_close(z, m * (m > threshold))
    torch.testing.assert_close(z[:, 16:], m[:, 16:])
    assert bool(((m > 0) & (z == 0))[:, :16].any())


def test_an_active_latent_scales_with_its_input(seasoned: Any, mixtures: Any):
    coder, x = seasoned(config(), torch.float64), mixtures(64)[0].double()
    with torch.no_grad():
        coder.b_dec.zero_()
        coder.b_enc.fill_(-0.2)
    z, more = coder.encode(x), coder.encode(3 * x)
    assert bool((z > 0).any())
    torch.testing.assert_close(more[z > 0], 3 * z[z > 0])


@pytest.mark.parametrize("gradient", ["relu", "ste"])
def test_the_chosen_gradient_reaches_the_bias(
    gradient: Any, seasoned: Any, mixtures: Any, step_of: Any
):
    coder = seasoned(config(gradient=gradient, coefficient=0.0), torch.float64)
    x = mixtures(64)[0].double()
    coder.terms(step_of(x, 32)).loss.backward()
    z = coder.encode(x).detach().requires_grad_()
    (x - coder.decode(z)).square().sum(-1).mean().backward()
    on = (z > 0).double()
    assert z.grad is not None
    expected = (z.grad * on * (z.detach() if gradient == "ste" else 1)).sum(0)
    torch.testing.assert_close(coder.b_enc.grad, expected)
    straight = z.grad * on
    by_m = straight * (1 + z.detach()) if gradient == "ste" else straight
    torch.testing.assert_close(coder.W_enc.grad, by_m.T @ (x - coder.b_dec.detach()))


@pytest.mark.parametrize("penalty", ["l1", "sqrt"])
def test_gradients_of_everything_but_the_bias_are_those_of_the_loss(
    penalty: Any, seasoned: Any, mixtures: Any, step_of: Any
):
    coder = seasoned(config(gradient="relu", penalty=penalty), torch.float64)
    step, size = step_of(mixtures(16)[0].double(), 32), 1e-6
    coder.terms(step).loss.backward()
    generator = torch.Generator().manual_seed(2)
    for name in ("W_enc", "W_dec", "b_dec"):
        parameter = coder.get_parameter(name)
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        losses = []
        for sign in (1, -2, 1):
            with torch.no_grad():
                parameter.add_(sign * size * direction)
            losses.append(coder.terms(step).loss.item())
        slope = (losses[0] - losses[1]) / (2 * size)
        assert parameter.grad is not None
        assert slope == pytest.approx(float((parameter.grad * direction).sum()), rel=1e-5), name


def test_penalties_are_sums_of_latents_or_of_their_roots(
    seasoned: Any, mixtures: Any, step_of: Any
):
    x = mixtures(64)[0].double()
    for penalty, value in (("l1", lambda z: z), ("sqrt", lambda z: (z + 1e-6).sqrt() - 1e-3)):
        coder = seasoned(config(penalty=penalty, coefficient=0.25), torch.float64)
        terms = coder.terms(step_of(x, 32, warmup=0.5))
        expected = 0.125 * value(terms.z).sum(1)
        torch.testing.assert_close(terms.per_token["sparsity"], expected)
        torch.testing.assert_close(terms.extra["sparsity"], expected.mean())


@pytest.mark.parametrize("gradient", ["relu", "ste"])
@pytest.mark.parametrize("penalty", ["l1", "sqrt"])
def test_the_number_of_latents_on_is_steered_to_its_target(
    gradient: Any, penalty: Any, fitted: Any, mixtures: Any
):
    cfg = config(coefficient=None, target_l0=4.0, gradient=gradient, penalty=penalty)
    x = mixtures(4096)[0]
    result = fitted(cfg, x, steps=900, lr=5e-3)
    with torch.no_grad():
        on = (result.coder.encode(x) > 0).sum(-1).float().mean().item()
    assert on == pytest.approx(4.0, rel=0.1)
    assert bool((result.coder.b_enc < 0).any())
