"""What only the nested dictionaries claim."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch

from sae_lib.saes import _codes
from sae_lib.saes.base import Step
from sae_lib.saes.batch_topk import BatchTopKConfig
from sae_lib.saes.matryoshka import Matryoshka, MatryoshkaConfig, drawn_sizes, nested_products


def config(**changes: Any) -> MatryoshkaConfig:
    return MatryoshkaConfig(**{"d_in": 8, "d_sae": 32, "k": 4, "aux_k": 4, **changes})


def made(cfg: MatryoshkaConfig) -> Matryoshka:
    coder = cfg.build().double()
    assert isinstance(coder, Matryoshka)
    return coder


def step_for(x: torch.Tensor, d_sae: int = 32, number: int = 0) -> Step:
    return Step(x=x, target=x, dead=torch.arange(d_sae) % 5 == 0, progress=0.5, number=number)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"k": 33}, "got k=33"),
        ({"prefixes": (8, 4)}, "must rise"),
        ({"prefixes": (8, 33)}, "at most d_sae=32"),
        ({"prefixes": (0.5, 16)}, "not both"),
        ({"prefixes": (0.5, 1.5)}, "at most 1.0"),
        ({"prefixes": (8,), "form": "random"}, "leave prefixes out"),
        ({"num_random": 33, "form": "random"}, "got num_random=33"),
    ],
)
def test_prefixes_that_make_no_sense_are_refused(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        config(**changes)


def test_prefixes_are_sizes_or_shares_and_end_with_all_latents():
    assert config(d_sae=65_536).sizes == (2048, 6144, 14336, 30720, 65536)
    assert config(prefixes=(4, 12)).sizes == (4, 12, 32)
    assert config(prefixes=(4, 32)).sizes == (4, 32)
    assert config(prefixes=(0.25, 1.0)).sizes == (8, 32)
    assert config(prefixes=()).sizes == (32,)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_with_one_prefix_it_is_batch_topk(
    density: float, mixtures: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_codes, "MAX_DENSITY", density)
    x = mixtures(64)[0].double()
    nested = made(config(prefixes=()))
    batch = BatchTopKConfig(d_in=8, d_sae=32, k=4, aux_k=4).build().double()
    batch.load_state_dict(nested.state_dict(), strict=False)
    losses = []
    for coder in (nested, batch):
        loss = coder.terms(step_for(x)).loss
        loss.backward()
        losses.append(loss)
    assert torch.equal(losses[0], losses[1])
    for name, parameter in batch.named_parameters():
        mine = nested.get_parameter(name).grad
        assert parameter.grad is not None
        assert mine is not None
        assert torch.equal(mine, parameter.grad), name
    assert torch.equal(nested.threshold, batch.get_buffer("threshold"))


def by_hand(coder: Matryoshka, z: torch.Tensor, x: torch.Tensor, sizes: Any) -> list[torch.Tensor]:
    """Squared errors of the prefixes, each from a product of its own."""
    order = coder.place.argsort()
    return [
        (x - z[:, order[:m]] @ coder.W_dec[order[:m]] - coder.b_dec).square().sum(1).mean()
        for m in sizes
    ]


@pytest.mark.parametrize("loss", ["sum", "mean"])
@pytest.mark.parametrize("form", ["fixed", "random"])
@pytest.mark.parametrize("density", [0.0, 1.0])
def test_the_loss_is_that_of_every_prefix_decoded_alone(
    density: float, form: str, loss: str, mixtures: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_codes, "MAX_DENSITY", density)
    given = {"prefixes": (5, 11, 20)} if form == "fixed" else {"num_random": 4}
    coder, x = made(config(form=form, loss=loss, aux_weight=0, **given)), mixtures(64)[0].double()
    if form == "random":
        coder.energy.copy_(torch.randperm(32, generator=torch.Generator().manual_seed(0)))
    terms = coder.terms(step_for(x, number=3))
    assert terms.code.is_sparse == bool(density)
    errors = by_hand(coder, terms.z, x, coder.sizes_at(3))
    assert len(errors) == 4
    expected = torch.stack(errors).sum() / (4 if loss == "mean" else 1)
    torch.testing.assert_close(terms.loss, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms.reconstruction, errors[-1], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(terms.per_token["prefixes"].mean(), terms.extra["prefixes"])
    names = [name for name, _ in coder.named_parameters()]
    parameters = [coder.get_parameter(name) for name in names]
    found = torch.autograd.grad(terms.loss, parameters, retain_graph=True)
    wanted = torch.autograd.grad(expected, parameters)
    for name, one, other in zip(names, found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10, msg=name)


@pytest.mark.parametrize("density", [0.0, 1.0])
def test_latents_beyond_a_prefix_learn_nothing_from_it(
    density: float, mixtures: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(_codes, "MAX_DENSITY", density)
    coder, x = made(config(prefixes=(6, 14))), mixtures(64)[0].double()
    code = coder.terms(step_for(x)).code
    products = nested_products(code, coder.W_dec, coder.place, (6, 14, 32))
    torch.testing.assert_close(products[-1], code.z @ coder.W_dec)
    for product, size in zip(products, (6, 14, 32), strict=True):
        coder.zero_grad()
        (x - product).square().sum().backward(retain_graph=True)
        for parameter in (coder.W_enc, coder.W_dec, coder.b_enc):
            assert parameter.grad is not None
            assert not parameter.grad[size:].any()
            assert parameter.grad[:size].any()


def test_selection_is_once_over_all_latents(mixtures: Any):
    coder, x = made(config(prefixes=(4,))), mixtures(64)[0].double()
    z = coder.terms(step_for(x)).z
    assert int((z > 0).sum()) == 4 * 64
    first = coder.prefix_of(z, 4)
    assert torch.equal(first[:, :4], z[:, :4])
    assert not first[:, 4:].any()


def test_drawn_sizes_follow_the_power_law_and_the_seed():
    assert drawn_sizes(32, 1, 0.5, (0, 0)) == (32,)
    draws = [drawn_sizes(1000, 2, 0.5, (0, number))[0] for number in range(4000)]
    assert drawn_sizes(1000, 2, 0.5, (0, 7))[0] == draws[7]
    for size in (10, 100, 500):  # P(m <= l) = sqrt(l / d_sae), about
        share = np.mean(np.array(draws) <= size)
        assert share == pytest.approx((size / 1000) ** 0.5, abs=0.03)
    many = drawn_sizes(32, 32, 0.5, (0, 0))
    assert many == tuple(range(1, 33))


def test_latents_of_large_mean_square_come_first_and_weights_stay(mixtures: Any):
    coder, x = made(config(form="random", num_random=3, reorder_every=2)), mixtures(64)[0].double()
    before = coder.W_dec.detach().clone()
    z = coder.terms(step_for(x, number=1)).z
    assert torch.equal(coder.place, torch.arange(32))
    torch.testing.assert_close(coder.energy, 0.05 * z.detach().square().mean(0))
    energy = coder.energy.clone()
    coder.terms(step_for(x, number=2))
    assert torch.equal(energy[coder.place.argsort()], energy.sort(descending=True).values)
    assert torch.equal(coder.W_dec, before)


def test_longer_prefixes_reconstruct_better_after_training(fitted: Any, mixtures: Any):
    x = mixtures(4096)[0]
    coder = fitted(config(k=3, prefixes=(4, 8, 16)), x, steps=400, lr=5e-3).coder
    errors = by_hand(coder, coder.encode(x), x, (4, 8, 16, 32))
    assert all(a >= b for a, b in pairwise(errors))


def test_a_prefix_reconstructs_better_alone_than_as_many_latents_of_batch_topk(
    fitted: Any, mixtures: Any
):
    x, errors = mixtures(4096)[0], []
    for prefixes in ((6,), ()):
        coder = fitted(config(k=3, prefixes=prefixes), x, steps=400, lr=5e-3).coder
        errors.append(by_hand(coder, coder.encode(x), x, (6,))[0])
    assert errors[0] < 0.8 * errors[1]
