"""Sparse products against dense ones."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sae_lib.saes import _codes
from sae_lib.saes._codes import Code, top_k_code, top_of_batch_code

ENCODERS: dict[str, Callable[..., Code]] = {
    "row": lambda x, *rest: top_k_code(x, *rest, 5),
    "batch": lambda x, *rest: top_of_batch_code(x, *rest, 5 * len(x)),
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
    assert top_k_code(x, *rest, 8).values is not None
    assert top_k_code(x, *rest, 9).values is None
