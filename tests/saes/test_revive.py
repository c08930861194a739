"""Terms for dead latents of the ReLU family: what they are worth, and whom they reach."""

from typing import Any

import pytest
import torch

from sae_lib.saes import SaeConfig
from sae_lib.saes._codes import aux_from
from sae_lib.saes._ops import aux_k, latents_of, pre_of
from sae_lib.saes._revive import ghost_errors, ghost_reconstruction
from sae_lib.saes.p_annealed import PAnnealedConfig
from sae_lib.saes.prolu import ProLUConfig
from sae_lib.saes.standard import StandardConfig
from sae_lib.saes.topk import TopKConfig

FAMILY: list[SaeConfig] = [
    StandardConfig.example(),
    StandardConfig.example().but(form="norm_weighted"),
    ProLUConfig.example(),
    PAnnealedConfig.example(),
    PAnnealedConfig.example().but(base="gated"),
]
every_member = pytest.mark.parametrize("cfg", FAMILY, ids=str)
every_term = pytest.mark.parametrize("revive", ["aux_k", "ghost"])
DEAD = (3, 17, 30)


def dead() -> torch.Tensor:
    return torch.zeros(32, dtype=torch.bool).index_fill_(0, torch.tensor(DEAD), True)


def silent(coder: Any) -> Any:
    """``coder`` with latents that no input can turn on."""
    with torch.no_grad():
        coder.b_enc[list(DEAD)] = -4.0
    return coder


def draws(seed: int, *shape: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# --- ghost gradients ---


def test_a_ghost_has_half_the_norm_of_the_error_of_every_token():
    error = draws(0, 20, 8) * torch.logspace(-6, 6, 20, dtype=torch.float64)[:, None]
    ghost = ghost_reconstruction(error, 3 * draws(1, 20, 5), draws(2, 5, 8))
    torch.testing.assert_close(
        ghost.norm(dim=1) / error.norm(dim=1), torch.full((20,), 0.5).double()
    )


def test_a_ghost_is_along_the_dead_rows_by_the_exponential_of_their_pre_activations():
    error, pre, rows = draws(0, 6, 8), draws(1, 6, 3), draws(2, 3, 8)
    g = pre.exp() @ rows
    expected = g * error.norm(dim=1, keepdim=True) / (2 * g.norm(dim=1, keepdim=True))
    torch.testing.assert_close(ghost_reconstruction(error, pre, rows), expected)


def test_its_loss_is_worth_the_squared_error_and_has_the_gradient_of_the_source():
    error = draws(0, 6, 8).requires_grad_()
    pre, rows = draws(1, 6, 3).requires_grad_(), draws(2, 3, 8).requires_grad_()
    loss = ghost_errors(error, pre, rows)
    torch.testing.assert_close(loss, error.square().sum(1))
    mine = torch.autograd.grad(loss.sum(), (error, pre, rows), allow_unused=True)
    assert mine[0] is None
    constant = error.detach()
    g = pre.exp() @ rows
    s = (constant.norm(dim=1) / (2 * g.norm(dim=1))).detach()
    missed = (s[:, None] * g - constant).square().sum(1)
    by_source = missed * (constant.square().sum(1) / missed).detach()
    for found, expected in zip(
        mine[1:], torch.autograd.grad(by_source.sum(), (pre, rows)), strict=True
    ):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("pre", [-500.0, 500.0])
def test_no_pre_activation_is_too_large_or_too_small(pre: float):
    of_pre = torch.full((4, 3), pre, requires_grad=True)
    rows = torch.randn(3, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    error = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    loss = ghost_errors(error, of_pre, rows)
    torch.testing.assert_close(loss, error.square().sum(1))
    loss.sum().backward()
    assert of_pre.grad is not None
    assert rows.grad is not None
    assert bool(of_pre.grad.isfinite().all())
    assert bool(rows.grad.any())


def test_no_error_and_rows_of_zero_give_no_ghost():
    pre = torch.zeros(2, 3, requires_grad=True)
    for error, rows in (
        (torch.zeros(2, 8), torch.ones(3, 8)),
        (torch.ones(2, 8), torch.zeros(3, 8)),
    ):
        ghost = ghost_errors(error, pre, rows)
        torch.testing.assert_close(ghost, error.square().sum(1))
        ghost.sum().backward()
        assert pre.grad is not None
        assert not bool(pre.grad.any())


# --- the family ---


@every_member
@every_term
def test_without_dead_latents_the_term_is_worth_nothing(
    cfg: Any, revive: str, seasoned: Any, mixtures: Any, step_of: Any
):
    coder = seasoned(cfg.but(revive=revive))
    terms = coder.terms(step_of(mixtures(64)[0], 32))
    name = "aux" if revive == "aux_k" else "ghost"
    assert terms.extra[name].item() == 0


@every_member
def test_the_ghost_term_is_worth_the_reconstruction(
    cfg: Any, seasoned: Any, mixtures: Any, step_of: Any
):
    coder = silent(seasoned(cfg.but(revive="ghost"), torch.float64))
    terms = coder.terms(step_of(mixtures(64)[0].double(), 32, dead=dead()))
    torch.testing.assert_close(terms.extra["ghost"], terms.reconstruction)
    torch.testing.assert_close(terms.per_token["ghost"], terms.error.square().sum(1))
    half = silent(seasoned(cfg.but(revive="ghost", revive_weight=0.5), torch.float64))
    weighed = half.terms(step_of(mixtures(64)[0].double(), 32, dead=dead()))
    torch.testing.assert_close(weighed.extra["ghost"], weighed.reconstruction / 2)


@every_member
@every_term
def test_the_term_reaches_dead_rows_alone(
    cfg: Any, revive: str, seasoned: Any, mixtures: Any, step_of: Any
):
    coder = silent(seasoned(cfg.but(revive=revive), torch.float64))
    terms = coder.terms(step_of(mixtures(64)[0].double(), 32, dead=dead()))
    terms.extra["aux" if revive == "aux_k" else "ghost"].backward()
    for name in ("W_enc", "W_dec"):
        gradient = coder.get_parameter(name).grad
        assert not bool(gradient[~dead()].any()), name
        assert bool((gradient[dead()] != 0).any(1).all()), name
    bias = coder.b_enc.grad
    if revive == "ghost":
        assert bool(bias[dead()].all())
        assert not bool(bias[~dead()].any())
    else:
        assert bias is None


@every_member
def test_without_the_term_dead_rows_learn_nothing(
    cfg: Any, seasoned: Any, mixtures: Any, step_of: Any
):
    coder = silent(seasoned(cfg, torch.float64))
    terms = coder.terms(step_of(mixtures(64)[0].double(), 32, dead=dead()))
    terms.loss.backward()
    assert not bool(coder.W_enc.grad[dead()].any())
    assert not {"aux", "ghost"} & set(terms.extra)


@every_member
def test_aux_k_is_the_function_of_topk_on_pre_activations_without_bias(
    cfg: Any, seasoned: Any, mixtures: Any, step_of: Any
):
    coder = silent(seasoned(cfg.but(revive="aux_k", aux_k=2), torch.float64))
    x = mixtures(64)[0].double()
    terms = coder.terms(step_of(x, 32, dead=dead()))
    zeros = torch.zeros_like(coder.b_enc)
    pre = latents_of(x, coder.W_enc, zeros, coder.input_centre)
    expected = aux_k(terms.error, pre, dead(), coder.W_dec, 2)
    assert expected.item() > 0
    torch.testing.assert_close(
        terms.extra["aux"], coder.reviver.x_variance * expected / 32, rtol=1e-10, atol=0
    )


def test_with_no_bias_it_is_the_term_of_topk(seasoned: Any, mixtures: Any, step_of: Any):
    x, rest = mixtures(64)[0].double(), draws(0, 64, 8)
    coder = seasoned(StandardConfig.example().but(revive="aux_k", aux_k=4), torch.float64)
    topk = seasoned(TopKConfig.example(), torch.float64)
    with torch.no_grad():
        topk.b_enc.zero_()
        for name, value in coder.named_parameters():
            value.copy_(topk.get_parameter(name))
    step = step_of(x, 32, dead=dead())
    encoder = topk.W_enc, topk.b_enc, topk.b_dec
    theirs = aux_from(rest, x, dead(), *encoder, topk.W_dec, 4) / 32
    weights = coder.W_enc, coder.b_enc, coder.b_dec, coder.W_dec
    mine = coder.reviver(rest, step, *weights).extra["aux"] / coder.reviver.x_variance
    torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=0)


@every_member
def test_the_variance_belongs_to_the_term_and_to_the_scale(cfg: Any, mixtures: Any):
    plain, with_term = cfg.build(), cfg.but(revive="aux_k").build()
    assert set(with_term.state_dict()) - set(plain.state_dict()) == {"reviver.x_variance"}
    x = mixtures(256)[0]
    with_term.initialise_(x)
    variance = (x - x.mean(0)).square().sum(1).mean()
    torch.testing.assert_close(with_term.reviver.x_variance, variance)
    with_term.scale_(3.0)
    torch.testing.assert_close(with_term.reviver.x_variance, 9 * variance)


@pytest.mark.parametrize("cfg", FAMILY[:2], ids=["unit_norm", "norm_weighted"])
def test_ghosts_bring_silent_latents_back(cfg: Any, fitted: Any, mixtures: Any, monkeypatch: Any):
    """A quarter of the latents starts with a bias that turns them off for nearly every input."""
    build, x = type(cfg).build, mixtures(2048)[0]

    def with_silent(self: Any) -> Any:
        found = build(self)
        with torch.no_grad():
            found.b_enc[:8] = -1.2
        return found

    monkeypatch.setattr(type(cfg), "build", with_silent)

    def num_back(cfg: Any) -> int:
        result = fitted(cfg, x, steps=300, lr=1e-2, dead_after_tokens=1024)
        return int((result.coder.encode(x)[:, :8] > 0).any(0).sum())

    assert num_back(cfg) == 0
    assert num_back(cfg.but(revive="ghost")) >= 3


@every_member
def test_dead_latents_learn_to_explain_what_is_left(
    cfg: Any, seasoned: Any, mixtures: Any, step_of: Any
):
    coder = silent(seasoned(cfg.but(revive="aux_k")))
    step = step_of(mixtures(256)[0], 32, dead=dead())
    optimizer = torch.optim.Adam([coder.W_enc, coder.W_dec], lr=1e-2)
    worth = []
    for _ in range(60):
        optimizer.zero_grad()
        aux = coder.terms(step).extra["aux"]
        aux.backward()
        optimizer.step()
        worth.append(aux.item())
    assert worth[-1] < 0.9 * worth[0]


def test_a_weight_without_a_term_is_refused():
    with pytest.raises(ValueError, match=r"weighs a term .* got revive_weight=0.5"):
        StandardConfig.example().but(revive_weight=0.5)


def test_the_pre_activations_of_a_ghost_have_their_bias(seasoned: Any, mixtures: Any, step_of: Any):
    coder = silent(seasoned(StandardConfig.example().but(revive="ghost"), torch.float64))
    x = mixtures(64)[0].double()
    with torch.no_grad():
        coder.b_enc[3] = -1.0
    terms = coder.terms(step_of(x, 32, dead=dead()))
    pre = pre_of(x, coder.W_enc, coder.b_enc, coder.b_dec)[:, dead()]
    expected = ghost_errors(terms.error, pre, coder.W_dec[dead()])
    mine = torch.autograd.grad(terms.extra["ghost"], coder.b_enc, retain_graph=True)[0]
    other = torch.autograd.grad(expected.mean(), coder.b_enc)[0]
    torch.testing.assert_close(mine, other)
