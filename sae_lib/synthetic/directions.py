"""Sets of directions: exactly orthogonal, pushed apart, and how near the nearest two are."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

SHARPNESS = 20.0, 1000.0
"""How close to the maximum of |cos| the soft maximum is that is lowered: at first, at last."""

RATE = 0.01
"""First step of Adam on unit directions."""

Rows = Float[Tensor, "num d_in"]


def unit(rows: Rows) -> Rows:
    return rows / rows.norm(dim=1, keepdim=True)


def orthonormal(rows: Rows) -> Rows:
    """Orthonormal rows with the span of ``rows``, of which there are at most ``d_in``."""
    # the signs make the result follow from the rows alone, whatever LAPACK is used
    q, r = torch.linalg.qr(rows.mT)
    return (q * r.diagonal().sign()).mT.contiguous()


def lower_squares(rows: Rows, steps: int) -> Rows:
    """Gradient steps on the sum of squared cosines between unit rows."""
    num, d_in = rows.shape
    eye = torch.eye(num, dtype=rows.dtype)
    # the Lipschitz constant of sum(offdiagonal^2) is about 4 |D D'|, so this step cannot overshoot
    rate = 1 / (4 * max(1.0, num / d_in) * 2)
    for _ in range(steps):
        overlaps = rows @ rows.T - eye
        rows = unit(rows - rate * 4 * (overlaps @ rows))
    return rows


@torch.no_grad()
def lower_largest(rows: Rows, steps: int) -> Rows:
    """Adam, with a falling rate, on the soft maximum of |cos| between unit rows."""
    rows = rows.clone()
    optimizer = torch.optim.Adam([rows], lr=RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.01, max(steps, 1))
    is_diagonal = torch.eye(len(rows), dtype=torch.bool)
    for sharpness in np.geomspace(*SHARPNESS, steps).tolist():
        overlaps = rows @ rows.T
        scores = (sharpness * overlaps.abs()).masked_fill(is_diagonal, -torch.inf)
        pull = scores.flatten().softmax(0).reshape(scores.shape) * overlaps.sign()
        rows.grad = 2 * pull @ rows
        optimizer.step()
        schedule.step()
        rows.copy_(unit(rows))
    return rows


def largest_cosine(rows: Rows) -> float:
    """Largest |cos| between two rows; 0 where there is one row."""
    rows = unit(rows.double())
    # a row at a time: memory stays linear
    largest = [(rows[i + 1 :] @ rows[i]).abs().max().item() for i in range(len(rows) - 1)]
    return max(largest, default=0.0)
