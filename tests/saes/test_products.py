"""Sparse products against dense ones in float64."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sae_lib.saes._products import (
    Pattern,
    ragged_pattern,
    row_dots,
    sums_by_latent,
    times_rows,
    transposed_times_rows,
    uniform_pattern,
)

BATCH, D_SAE, WIDTH = 9, 20, 7


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def uniform() -> Pattern:
    return uniform_pattern(normal(BATCH, D_SAE).topk(4).indices, D_SAE)


def ragged() -> Pattern:
    """Some tokens keep nothing, some latents are never on, one is on for every other token."""
    kept = normal(BATCH, D_SAE) > 0.7
    kept[[0, 4, BATCH - 1]] = False
    kept[:, [0, 3]] = False
    kept[1:8, 5] = True
    kept[4] = False
    tokens, latents = kept.nonzero(as_tuple=True)
    return ragged_pattern(tokens, latents, (BATCH, D_SAE))


def empty() -> Pattern:
    nothing = torch.zeros(0, dtype=torch.int64)
    return ragged_pattern(nothing, nothing, (BATCH, D_SAE))


@pytest.mark.parametrize("make", [uniform, ragged, empty])
def test_products_are_those_of_the_dense_matrix(make: Callable[[], Pattern]):
    pattern = make()
    values = normal(len(pattern.latents), seed=1)
    z = torch.zeros(BATCH, D_SAE, dtype=torch.float64)
    z[pattern.tokens, pattern.latents] = values
    W, x = normal(D_SAE, WIDTH, seed=2), normal(BATCH, WIDTH, seed=3)
    close = torch.testing.assert_close
    close(times_rows(pattern, values, W), z @ W)
    close(transposed_times_rows(pattern, values, x), z.mT @ x)
    close(row_dots(pattern, x, W), (x @ W.mT)[pattern.tokens, pattern.latents])
    close(sums_by_latent(pattern, values), z.sum(0))
    rows = pattern.by_latent
    assert torch.equal(rows.tokens, pattern.tokens[rows.order])
    assert torch.equal(rows.starts.diff(), torch.bincount(pattern.latents, minlength=D_SAE))
