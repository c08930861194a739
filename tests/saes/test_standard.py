"""What only the ReLU autoencoder with an L1 penalty claims."""

from typing import Any

import pytest
import torch

from sae_lib.saes import Step
from sae_lib.saes._control import SparsityControl
from sae_lib.saes.standard import Standard, StandardConfig


def config(**changes: Any) -> StandardConfig:
    return StandardConfig(**{"d_in": 8, "d_sae": 32, "l1": 0.1, **changes})


@pytest.mark.parametrize("both", [{}, {"l1": 0.1, "target_l0": 4.0}])
def test_exactly_one_of_coefficient_and_target_is_given(both: dict[str, float]):
    with pytest.raises(ValueError, match=r"exactly one of l1 .* and target_l0"):
        StandardConfig(d_in=8, d_sae=32, **both)


def test_a_target_that_cannot_be_missed_is_refused():
    with pytest.raises(ValueError, match=r"target_l0 must be below d_sae=32; got target_l0=32"):
        StandardConfig(d_in=8, d_sae=32, target_l0=32)


@pytest.mark.parametrize("form", ["unit_norm", "norm_weighted"])
def test_the_penalty_shrinks_a_latent_by_half_its_coefficient(form: str):
    """One direction, one latent, x > l1 / 2: the optimum is z = x - l1 / 2 (variants.md 3.1)."""
    coder = config(d_in=1, d_sae=1, l1=0.6, form=form).build().double()
    x = torch.tensor([[2.0]], dtype=torch.float64)
    with torch.no_grad():
        coder.W_enc.fill_(1.0)
        coder.W_dec.fill_(1.0)
        coder.b_enc.fill_(-0.3)
    step = Step(x=x, target=x, dead=torch.zeros(1, dtype=torch.bool), progress=0.0)
    terms = coder.terms(step)
    assert terms.z.item() == pytest.approx(1.7)
    terms.loss.backward()
    assert coder.b_enc.grad is not None
    assert coder.b_enc.grad.item() == pytest.approx(0.0, abs=1e-6)  # l1 is a float32
    assert terms.loss.item() == pytest.approx(0.3**2 + 0.6 * 1.7)


def test_the_weighted_loss_does_not_see_how_norms_are_shared(
    seasoned: Any, mixtures: Any, step_of: Any
):
    cfg = config(form="norm_weighted")
    coder, other = seasoned(cfg, torch.float64), seasoned(cfg, torch.float64)
    factors = torch.rand(32, dtype=torch.float64) * 5 + 0.1
    with torch.no_grad():
        other.W_enc.mul_(factors[:, None])
        other.b_enc.mul_(factors)
        other.W_dec.div_(factors[:, None])
    step = step_of(mixtures(64)[0].double(), 32)
    mine, theirs = coder.terms(step), other.terms(step)
    assert mine.loss.item() == pytest.approx(theirs.loss.item(), rel=1e-12)
    assert mine.extra["l1"].item() > 0
    torch.testing.assert_close(theirs.z, mine.z * factors)


def test_the_plain_penalty_is_the_sum_of_latents(seasoned: Any, mixtures: Any, step_of: Any):
    coder = seasoned(config(l1=0.25), torch.float64)
    terms = coder.terms(step_of(mixtures(64)[0].double(), 32, warmup=0.5))
    assert terms.extra["l1"].item() == pytest.approx(0.5 * 0.25 * terms.z.sum(-1).mean().item())


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


def test_an_orthonormal_basis_and_its_negative_reconstruct_exactly():
    coder = config(d_sae=16).build().double()
    basis = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    with torch.no_grad():
        coder.W_dec.copy_(torch.cat([basis, -basis]))
        coder.W_enc.copy_(coder.W_dec)
    x = torch.randn(50, 8, dtype=torch.float64)
    torch.testing.assert_close(coder(x), x)


def test_without_a_penalty_the_error_vanishes(fitted: Any, mixtures: Any):
    result = fitted(config(l1=0.0), mixtures(2048)[0], steps=400, lr=5e-3)
    assert result.numbers["fvu"] < 0.01


def test_a_larger_coefficient_leaves_fewer_latents_on(fitted: Any, mixtures: Any):
    x = mixtures(2048)[0]
    on = [fitted(config(l1=l1), x, steps=300, lr=5e-3).numbers["l0"] for l1 in (0.02, 0.1, 0.4)]
    assert on[0] > 1.2 * on[1]
    assert on[1] > 1.2 * on[2]


@pytest.mark.parametrize("form", ["unit_norm", "norm_weighted"])
@pytest.mark.parametrize("target", [3.0, 6.0])
def test_the_number_of_latents_on_is_steered_to_its_target(
    form: str, target: float, fitted: Any, mixtures: Any
):
    cfg = config(l1=None, target_l0=target, form=form)
    x = mixtures(4096)[0]
    result = fitted(cfg, x, steps=700, lr=5e-3)
    with torch.no_grad():
        on = (result.coder.encode(x) > 0).sum(-1).float().mean().item()
    assert on == pytest.approx(target, rel=0.1)


def test_the_coefficient_rises_above_the_target_and_falls_below_it():
    control = SparsityControl(None, 2.0, 0.01)
    start = control.coefficient.item()
    many, few = torch.ones(4, 8), torch.eye(4, 8)
    control.observe_(many, 0.5)
    assert control.coefficient.item() == start  # the penalty is still being warmed up
    control.observe_(many, 1.0)
    assert control.coefficient.item() == pytest.approx(start * 1.01, rel=1e-3)
    for _ in range(60):
        control.observe_(few, 1.0)
    assert control.coefficient.item() < start


def test_a_given_coefficient_stays_what_it_is(seasoned: Any):
    coder = seasoned(config(l1=0.07))
    assert isinstance(coder, Standard)
    assert coder.control.coefficient.item() == pytest.approx(0.07)


def test_a_latent_without_a_decoder_row_is_switched_off_by_folding(seasoned: Any, mixtures: Any):
    coder, x = seasoned(config(form="norm_weighted")), mixtures(32)[0]
    with torch.no_grad():
        coder.W_dec[3] = 0
        before = coder(x)
    coder.fold_norms_()
    assert bool((coder.encode(x)[:, 3] == 0).all())
    torch.testing.assert_close(coder(x), before)
