"""Weights of small SAEs, and what a format says they compute, in numpy."""

from typing import NamedTuple

import numpy as np
import torch


class Drawn(NamedTuple):
    """Weights in the orientation of their format, decoder rows of several norms."""

    W_enc: np.ndarray
    """(d_in, d_sae)"""

    b_enc: np.ndarray
    W_dec: np.ndarray
    """(d_sae, d_in)"""

    b_dec: np.ndarray
    threshold: np.ndarray
    x: np.ndarray
    """Tokens to encode."""


def relu(pre: np.ndarray) -> np.ndarray:
    return np.maximum(pre, 0)


def top(pre: np.ndarray, k: int, ranked: np.ndarray | None = None) -> np.ndarray:
    """The k largest of each row, by ``ranked`` where it is given."""
    by = pre if ranked is None else ranked
    kept = np.zeros_like(pre)
    index = np.argsort(-by, axis=1)[:, :k]
    np.put_along_axis(kept, index, np.take_along_axis(pre, index, 1), 1)
    return relu(kept)


def torch_of(**arrays: np.ndarray) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(one)) for name, one in arrays.items()}


def agrees(coder, x: np.ndarray, x_hat: np.ndarray, on: np.ndarray) -> None:
    """The coder reconstructs ``x_hat`` with the latents ``on``, and rows of norm 1 or as given."""
    rows = torch.from_numpy(x).float()
    z = coder.encode(rows)
    assert np.array_equal((z > 0).numpy(), on)
    assert 0 < on.mean() < 1, "some are on and some are not"
    np.testing.assert_allclose(coder.decode(z).numpy(), x_hat, rtol=2e-4, atol=2e-4)
