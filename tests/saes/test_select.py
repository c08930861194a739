"""Selections against torch's topk over everything."""

import pytest
import torch
from torch import Tensor

from sae_lib.saes import _select
from sae_lib.saes._products import Pattern
from sae_lib.saes._select import (
    Choice,
    Encoder,
    chunk_size,
    largest_columns,
    largest_of_batch,
    largest_of_rows,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def dense(choice: Choice) -> Tensor:
    pattern = choice.pattern
    z = torch.zeros(pattern.shape, dtype=choice.values.dtype)
    return z.index_put((pattern.tokens, pattern.latents), choice.values, accumulate=True)


def is_well_formed(pattern: Pattern) -> bool:
    """Rows in order, no entry twice, starts that agree with the tokens."""
    counts = torch.bincount(pattern.tokens, minlength=pattern.shape[0])
    flat = pattern.tokens * pattern.shape[1] + pattern.latents
    return (
        torch.equal(pattern.starts.diff(), counts)
        and bool((pattern.tokens.diff() >= 0).all())
        and len(flat.unique()) == len(flat)
    )


@pytest.mark.parametrize("num_columns", [3, 64, 1000, 4099])
@pytest.mark.parametrize("k", [1, 3, 40])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_chunk_maxima_find_the_largest(num_columns: int, k: int, dtype: torch.dtype):
    if k > num_columns:
        return
    pre = normal(7, num_columns).to(dtype)  # bfloat16 has many ties
    columns, values = largest_columns(pre, k)
    assert torch.equal(values.sort(1).values, pre.topk(k).values.sort(1).values)
    assert torch.equal(pre.gather(1, columns), values)
    assert all(len(row.unique()) == k for row in columns)


def test_the_largest_may_share_a_chunk_or_lie_outside_all_chunks():
    pre = torch.zeros(2, 1003)
    size = chunk_size(1003, 3)
    assert size > 1
    num_chunks = 1003 // size
    pre[0, torch.arange(3) * num_chunks + 5] = torch.tensor([3.0, 2.0, 1.0])  # one chunk
    pre[1, -3:] = 1
    assert 1003 % size
    columns, _ = largest_columns(pre, 3)
    assert sorted(columns[0].tolist()) == [5, num_chunks + 5, 2 * num_chunks + 5]
    assert 1002 in columns[1].tolist()


@pytest.fixture(params=["float32", "bfloat16"])
def arithmetic(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Candidates in the one or the other, in pieces of a few rows."""
    monkeypatch.setattr(_select, "MIN_PIECE_ROWS", 16)
    monkeypatch.setattr(_select, "PIECE_ENTRIES", 1)
    monkeypatch.setattr(_select, "MIN_BF16_PRODUCTS", 0)
    monkeypatch.setattr(_select, "has_fast_bf16", lambda device: request.param == "bfloat16")
    return request.param


HARD: dict[str, tuple[Tensor, Encoder]] = {
    "plain": (normal(100, 24), Encoder(normal(600, 24, seed=1), normal(600, seed=2))),
    # pre-activations are small differences of large numbers, which bfloat16 gets wrong
    "offset": (
        normal(100, 24) + 30,
        Encoder(normal(600, 24, seed=1) - normal(600, 24, seed=1).mean(1, True), torch.zeros(600)),
    ),
    "few positive": (
        normal(100, 24),
        Encoder(normal(600, 24, seed=1), torch.full((600,), -14.0)),
    ),
    "none positive": (normal(100, 24), Encoder(torch.zeros(600, 24), torch.full((600,), -1.0))),
    "one row has all": (
        normal(100, 24) * torch.tensor([100.0] + 99 * [0.01]).unsqueeze(1),
        Encoder(normal(600, 24, seed=1), torch.zeros(600)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HARD)
def test_each_row_keeps_its_largest(case: str, arithmetic: str):
    x, encoder = HARD[case]
    pre = (x.double() @ encoder.W.double().mT + encoder.b.double()).relu()
    choice = largest_of_rows(x, encoder, 8)
    assert is_well_formed(choice.pattern)
    z = dense(choice).double()
    torch.testing.assert_close(z.topk(8).values, pre.topk(8).values, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(z[z > 0], pre[z > 0], rtol=1e-4, atol=2e-4)


@pytest.mark.parametrize("case", HARD)
@pytest.mark.parametrize("num", [800, 20_000])
def test_a_batch_keeps_its_largest(case: str, num: int, arithmetic: str):
    x, encoder = HARD[case]
    pre = (x.double() @ encoder.W.double().mT + encoder.b.double()).relu()
    choice = largest_of_batch(x, encoder, num)
    assert is_well_formed(choice.pattern)
    assert len(choice.values) <= num
    z = dense(choice).double()
    largest = pre.flatten().topk(num).values
    torch.testing.assert_close(z.flatten().topk(num).values, largest, rtol=1e-4, atol=2e-4)
    torch.testing.assert_close(z[z > 0], pre[z > 0], rtol=1e-4, atol=2e-4)


def test_rounding_is_made_good_where_it_matters(monkeypatch: pytest.MonkeyPatch):
    """Without the second look the hard case goes wrong: the case can tell."""
    monkeypatch.setattr(_select, "MIN_BF16_PRODUCTS", 0)
    monkeypatch.setattr(_select, "has_fast_bf16", lambda device: True)
    x, encoder = HARD["offset"]
    exact = torch.nn.functional.linear(x, encoder.W, encoder.b)
    rounded = torch.nn.functional.linear(x.bfloat16(), encoder.W.bfloat16(), encoder.b.bfloat16())
    many = _select.num_candidates(8)
    candidates = torch.zeros_like(exact).scatter(1, rounded.topk(many).indices, 1)
    assert (candidates.gather(1, exact.topk(8).indices) == 0).any()
    found = largest_of_rows(x, encoder, 8).pattern.latents.view(-1, 8).sort(1).values
    assert torch.equal(found, exact.topk(8).indices.sort(1).values)


@pytest.mark.parametrize("where", ["x", "W"])
def test_numbers_that_are_not_finite_do_not_hang(where: str, arithmetic: str):
    x, encoder = HARD["plain"]
    x, W = x.clone(), encoder.W.clone()
    (x if where == "x" else W)[0, 0] = torch.nan
    assert len(largest_of_rows(x, Encoder(W, encoder.b), 8).values) == 800
    assert len(largest_of_batch(x, Encoder(W, encoder.b), 800).values) <= 800
