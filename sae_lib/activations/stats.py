"""Running mean and variance of activations, exact however the rows are batched.

    n     = n_a + n_b,  delta = mean_b - mean_a
    mean  = mean_a + delta n_b / n
    m2    = m2_a + m2_b + delta^2 n_a n_b / n        (m2 = sum of squared deviations)

after Chan, Golub and LeVeque (1979), in float64; the textbook ``E[x^2] - E[x]^2`` loses all its
digits where a mean is large, as it is in some dimensions of every residual stream.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from sae_lib.errors import BadInput


class SiteStats(NamedTuple):
    """What is known about the activations of one site, over kept positions only."""

    num_rows: int
    """Rows that were measured."""

    mean: Float64[Tensor, " d_in"]
    """Mean vector."""

    variance: Float64[Tensor, " d_in"]
    """Variance per dimension, divided by the number of rows."""

    mean_norm: float
    """Mean of ``|x|``."""

    mean_square_norm: float
    """Mean of ``|x|^2``; equals ``|mean|^2 + sum(variance)``."""


class RunningStats:
    """Statistics of the rows added so far."""

    def __init__(self, d_in: int, device: str | torch.device = "cpu") -> None:
        # sums stay on the device of the rows, so that adding never waits for it
        self._device = torch.device("cpu") if torch.device(device).type == "mps" else device
        self.num_rows = 0
        self.mean = torch.zeros(d_in, dtype=torch.float64, device=self._device)
        self.m2 = torch.zeros_like(self.mean)
        self.norms = torch.zeros(2, dtype=torch.float64, device=self._device)
        """Sums of ``|x|`` and of ``|x|^2``."""

    def add(self, x: Float[Tensor, "rows d_in"]) -> None:
        if not len(x):
            return
        rows = x.to(self._device).double()
        mean = rows.mean(0)
        m2 = (rows - mean).square_().sum(0)
        square_norms = rows.square().sum(1)
        total = self.num_rows + len(x)
        delta = mean - self.mean
        self.mean += delta * (len(x) / total)
        self.m2 += m2 + delta.square() * (self.num_rows * len(x) / total)
        self.norms += torch.stack([square_norms.sqrt().sum(), square_norms.sum()])
        self.num_rows = total

    def result(self) -> SiteStats:
        """The statistics; raises `BadInput` where there were no rows."""
        if self.num_rows == 0:
            raise BadInput("there are no activations to measure: no position was kept.")
        mean_norm, mean_square_norm = (self.norms / self.num_rows).tolist()
        return SiteStats(
            self.num_rows,
            self.mean.clone().cpu(),
            (self.m2 / self.num_rows).cpu(),
            mean_norm,
            mean_square_norm,
        )

    def state(self) -> dict[str, Any]:
        """Everything that was summed, ready for JSON, which keeps every bit of a finite float."""
        return {
            "num_rows": self.num_rows,
            "mean": self.mean.tolist(),
            "m2": self.m2.tolist(),
            "norms": self.norms.tolist(),
        }

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state`."""
        self.num_rows = state["num_rows"]
        for name in ("mean", "m2", "norms"):
            getattr(self, name).copy_(torch.tensor(state[name], dtype=torch.float64))

    def is_finite(self) -> bool:
        """Whether no value so far was infinite or not a number. Waits for the device."""
        return bool(self.norms.isfinite().all())


def joined_means(stats: Sequence[SiteStats]) -> Float32[Tensor, " _"]:
    """Means of several sites, one after the other."""
    return torch.cat([one.mean.float() for one in stats])
