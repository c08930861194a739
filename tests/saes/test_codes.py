"""Sparse products against dense ones."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lib.saes import _codes
from sae_lib.saes._codes import Code, top_k_code, top_of_batch_code
from sae_lib.saes.base import SaeConfig, Step
from sae_lib.saes.batch_topk import BatchTopKConfig
from sae_lib.saes.topk import TopKConfig

ENCODERS: dict[str, Callable[..., Code]] = {
    "row": partial(top_k_code, k=5),
    "batch": lambda x, W, b, c: top_of_batch_code(x, W, b, c, 5 * len(x)),
}


def everything(make: Callable[..., Code], x: Tensor, has_x_gradient: bool) -> dict[str, Any]:
    """All outputs and gradients of a little loss."""
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    W_enc, W_dec, b_enc, b_dec = leaf(64, 8), leaf(64, 8), leaf(64), leaf(8)
    x = x.clone().requires_grad_(has_x_gradient)
    code = make(x, W_enc, b_enc, b_dec)
    weights = torch.randn(len(x), 64, generator=generator, dtype=torch.float64)
    loss = (x - code.times(W_dec) - b_dec).square().sum() + (weights * code.z).sum()
    loss.backward()
    leaves = {"x": x, "W_enc": W_enc, "W_dec": W_dec, "b_enc": b_enc, "b_dec": b_dec}
    gradients = {f"d {name}": value.grad for name, value in leaves.items()}
    return {"z": code.z.detach(), "fired": code.fired(), "loss": loss.detach(), **gradients}


@pytest.mark.parametrize("which", ENCODERS)
@pytest.mark.parametrize("has_x_gradient", [False, True])
@pytest.mark.parametrize("rows", [1, 40])
def test_sparse_products_agree_with_dense_ones(
    which: str, has_x_gradient: bool, rows: int, monkeypatch: pytest.MonkeyPatch
):
    x = torch.randn(rows, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    results = []
    for density, is_sparse in ((0.0, False), (1.0, True)):
        monkeypatch.setattr(_codes, "MAX_DENSITY", density)
        probe = torch.zeros(2, 8), torch.zeros(64, 8), torch.zeros(64), torch.zeros(8)
        assert (ENCODERS[which](*probe).values is not None) == is_sparse
        results.append(everything(ENCODERS[which], x, has_x_gradient))
    for name, dense in results[0].items():
        if dense is None:
            assert results[1][name] is None
            assert name == "d x"
        else:
            torch.testing.assert_close(results[1][name], dense, rtol=1e-11, atol=1e-11, msg=name)


def test_a_row_with_too_few_positive_latents_keeps_those(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_codes, "MAX_DENSITY", 1.0)
    W, b_enc = torch.eye(4), torch.zeros(4, requires_grad=True)
    code = top_k_code(torch.tensor([[1.0, -1.0, -2.0, -3.0]]), W, b_enc, torch.zeros(4), 3)
    assert torch.equal(code.z, torch.tensor([[1.0, 0.0, 0.0, 0.0]]))
    assert code.fired().tolist() == [True, False, False, False]
    code.z.sum().backward()
    assert b_enc.grad is not None
    assert b_enc.grad.tolist() == [1, 0, 0, 0]


def test_dense_products_are_used_where_many_latents_are_on():
    x = torch.zeros(2, 8)
    rest = torch.zeros(64, 8), torch.zeros(64), torch.zeros(8)
    assert top_k_code(x, *rest, 4).is_sparse
    assert not top_k_code(x, *rest, 5).is_sparse


STEPS: dict[str, SaeConfig] = {
    "topk": TopKConfig(d_in=8, d_sae=64, k=3, aux_k=4),
    "multi": TopKConfig(d_in=8, d_sae=64, k=3, aux_k=4, multi_weight=1 / 8),
    "batch_topk": BatchTopKConfig(d_in=8, d_sae=64, k=3, aux_k=4),
}


@pytest.mark.parametrize("name", STEPS)
@pytest.mark.parametrize("situation", ["plain", "empty rows", "all dead", "ties"])
def test_whole_steps_agree_with_the_dense_oracle(
    name: str, situation: str, monkeypatch: pytest.MonkeyPatch
):
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(50, 8, dtype=torch.float64, generator=generator)
    dead = torch.arange(64) % 3 == 0
    if situation == "all dead":
        dead = torch.ones(64, dtype=torch.bool)
    results = []
    for density in (0.0, 1.0):
        monkeypatch.setattr(_codes, "MAX_DENSITY", density)
        coder = STEPS[name].build().double()
        with torch.no_grad():
            coder.b_dec.copy_(torch.linspace(-1, 1, 8))
            coder.b_enc.fill_(0.01)
            if situation == "empty rows":
                coder.b_enc.fill_(-1.5)
            if situation == "ties":  # whole latents twice, in different places
                coder.W_enc[32:] = coder.W_enc[:32]
                coder.W_dec[32:] = coder.W_dec[:32]
        terms = coder.terms(Step(x=x, target=x, dead=dead, progress=0.5))
        assert terms.code.is_sparse == bool(density)
        terms.loss.backward()
        z = terms.z.detach()
        if situation == "empty rows":
            assert (z == 0).all(1).any()
        gradients = {key: value.grad for key, value in coder.named_parameters()}
        results.append({"loss": terms.loss.detach(), "z": z, **gradients})
    for key, dense in results[0].items():
        sparse = results[1][key]
        assert dense is not None, key
        assert sparse is not None, key
        if situation == "ties" and key != "loss":
            # either of two equal latents may be kept: what the two have together is determined
            if dense.shape[0] == 64:
                dense, sparse = dense[:32] + dense[32:], sparse[:32] + sparse[32:]
            elif key == "z":
                dense, sparse = dense[:, :32] + dense[:, 32:], sparse[:, :32] + sparse[:, 32:]
        torch.testing.assert_close(sparse, dense, rtol=1e-10, atol=1e-10, msg=key)
