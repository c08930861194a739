"""What only routed experts claim."""

from typing import Any

import pytest
import torch

from sae_lib.saes import _codes
from sae_lib.saes._ops import keep_top_k
from sae_lib.saes.base import Step
from sae_lib.saes.switch import Switch, SwitchConfig, balance_by_token
from sae_lib.saes.topk import TopKConfig


def config(**changes: Any) -> SwitchConfig:
    return SwitchConfig(**{"d_in": 8, "d_sae": 32, "k": 3, "num_experts": 4, **changes})


def made(cfg: SwitchConfig) -> Switch:
    coder = cfg.build().double()
    assert isinstance(coder, Switch)
    return coder


def step_for(x: torch.Tensor) -> Step:
    return Step(x=x, target=x, dead=torch.zeros(32, dtype=torch.bool), progress=0.5)


def shares_of(p: torch.Tensor) -> torch.Tensor:
    return torch.bincount(p.argmax(1), minlength=p.shape[1]) / len(p)


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"num_experts": 5}, "multiple of num_experts=5"), ({"k": 9}, "= 8; got k=9")],
)
def test_experts_that_do_not_fit_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config(**changes)


# --- balance ---


@pytest.mark.parametrize(
    ("p", "expected"),
    [
        ([[0.25] * 4] * 6, 1.0),
        ([[1.0, 0.0, 0.0, 0.0]] * 6, 4.0),
        (torch.eye(4).tolist(), 1.0),
        ([[0.34, 0.33, 0.33, 0.0], [0.0, 0.33, 0.33, 0.34]], 0.68),
    ],
)
def test_balance_of_hand_cases(p: list[list[float]], expected: float):
    rows = torch.tensor(p)
    assert float(balance_by_token(rows, shares_of(rows)).mean()) == pytest.approx(expected)


def test_balance_enters_in_units_of_the_variance(mixtures: Any):
    coder, x = made(config()), mixtures(64)[0].double()
    coder.initialise_(x)
    terms = coder.terms(step_for(x))
    p = coder.probabilities(x)
    variance = (x - x.mean(0)).square().sum(1).mean()
    expected = 3 * variance * 4 * (shares_of(p).double() * p.mean(0)).sum()
    torch.testing.assert_close(terms.extra["balance"], expected)
    torch.testing.assert_close(terms.per_token["balance"].mean(), expected)


# --- routing ---


def dense(coder: Switch, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Latents, reconstruction and loss, every expert computing every token."""
    p = ((x - coder.b_router) @ coder.W_router.T).softmax(-1)
    routed = torch.nn.functional.one_hot(p.argmax(-1), 4).double()
    factor = routed * p if coder.cfg.weighting == "router" else routed
    pre = ((x - coder.b_dec) @ coder.W_enc.T + coder.b_enc).relu().view(len(x), 4, 8)
    z = (keep_top_k(pre, coder.cfg.k) * factor.unsqueeze(-1)).flatten(1)
    x_hat = z @ coder.W_dec + coder.b_dec
    balance = 4 * (routed.mean(0) * p.mean(0)).sum()
    loss = (x - x_hat).square().sum(1).mean() + 3 * coder.x_variance * balance
    return z, x_hat, loss


@pytest.mark.parametrize("weighting", ["router", "heaviside"])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_grouped_tokens_agree_with_every_expert_computing_all(
    density: float, weighting: str, mixtures: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_codes, "MAX_DENSITY", density)
    coder, x = made(config(weighting=weighting)), mixtures(64)[0].double()
    coder.initialise_(x)
    with torch.no_grad():
        coder.W_router.mul_(4)
        coder.b_router.add_(0.1)
    terms = coder.terms(step_for(x))
    assert terms.code.is_sparse == bool(density)
    z, x_hat, loss = dense(coder, x)
    torch.testing.assert_close(terms.z, z, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(coder.encode(x), z, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(x - terms.error, x_hat, rtol=1e-11, atol=1e-11)
    torch.testing.assert_close(terms.loss, loss, rtol=1e-11, atol=1e-11)
    names = [name for name, _ in coder.named_parameters()]
    parameters = [coder.get_parameter(name) for name in names]
    found = torch.autograd.grad(terms.loss, parameters)
    for name, one, other in zip(names, found, torch.autograd.grad(loss, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=name)


def test_a_tokens_latents_lie_in_the_block_of_one_expert(mixtures: Any):
    coder, x = made(config()), mixtures(256)[0].double()
    on = coder.encode(x).view(256, 4, 8) > 0
    assert bool((on.any(2).sum(1) <= 1).all())
    assert int(on.flatten(1).sum(1).max()) == 3
    assert int(on.any(2).any(0).sum()) > 1


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_an_expert_without_tokens_learns_nothing(
    density: float, mixtures: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_codes, "MAX_DENSITY", density)
    coder, x = made(config()), mixtures(1)[0].double().expand(16, -1)
    terms = coder.terms(step_for(x))
    terms.loss.backward()
    used = int(coder.probabilities(x)[0].argmax())
    for parameter in (coder.W_enc, coder.W_dec, coder.b_enc):
        assert parameter.grad is not None
        touched = parameter.grad.view(4, 8, -1).abs().sum((1, 2)) > 0
        assert touched.nonzero().squeeze(1).tolist() == [used]


@pytest.mark.parametrize("weighting", ["router", "heaviside"])
def test_the_reconstruction_teaches_the_router_only_through_its_factor(
    weighting: str, mixtures: Any
):
    coder, x = made(config(weighting=weighting, balance_weight=0)), mixtures(64)[0].double()
    coder.terms(step_for(x)).loss.backward()
    gradient = coder.W_router.grad
    assert (gradient is not None and bool(gradient.any())) == (weighting == "router")


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_one_expert_is_topk(density: float, mixtures: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_codes, "MAX_DENSITY", density)
    x = mixtures(64)[0].double()
    coder = made(config(num_experts=1))
    topk = TopKConfig(d_in=8, d_sae=32, k=3).build().double()
    topk.load_state_dict(coder.state_dict(), strict=False)
    found = [one.terms(step_for(x)) for one in (coder, topk)]
    for terms in found:
        terms.loss.backward()
    torch.testing.assert_close(found[0].z, found[1].z)
    torch.testing.assert_close(found[0].loss, found[1].loss + 3 * coder.x_variance)
    torch.testing.assert_close(coder.encode(x), topk.encode(x))
    for name, parameter in topk.named_parameters():
        torch.testing.assert_close(
            coder.get_parameter(name).grad, parameter.grad, rtol=1e-10, atol=1e-12
        )
    assert not coder.W_router.grad.any()  # pyright: ignore[reportOptionalMemberAccess]


def test_latents_may_change_places_within_an_expert_and_experts_as_wholes(mixtures: Any):
    coder, moved = made(config()), made(config())
    generator = torch.Generator().manual_seed(1)
    experts = torch.randperm(4, generator=generator)
    order = torch.cat([8 * int(j) + torch.randperm(8, generator=generator) for j in experts])
    with torch.no_grad():
        for parameter in (moved.W_enc, moved.W_dec, moved.b_enc):
            parameter.copy_(parameter[order])
        moved.W_router.copy_(moved.W_router[experts])
    x = mixtures(64)[0].double()
    torch.testing.assert_close(moved.encode(x), coder.encode(x)[:, order])
    torch.testing.assert_close(moved(x), coder(x))


def test_a_step_costs_one_expert_and_the_router():
    cfg = config(d_in=64, d_sae=4096, k=8, num_experts=16)
    expert = TopKConfig(d_in=64, d_sae=256, k=8).build().flops_per_token()
    assert cfg.build().flops_per_token() == expert + 4 * 16 * 64


def test_training_spreads_tokens_over_experts(fitted: Any, mixtures: Any):
    result = fitted(config(), mixtures(4096)[0], steps=300, lr=5e-3)
    assert result.numbers["smallest_expert_share"] > 0.1
