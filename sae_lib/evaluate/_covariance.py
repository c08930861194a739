"""Covariance of the activations of one site in one pass, and what PCA makes of it.

The best rank-k affine reconstruction leaves ``fvu_k = sum_{i > k} lambda_i / sum_i lambda_i``,
with lambda the eigenvalues of the covariance. Fitted and read on the same tokens, so it is a bound
that no linear code of k dense numbers can beat there.
"""

import torch
from jaxtyping import Float
from torch import Tensor


class Covariance:
    """Running first and second moments around a fixed centre, in float64."""

    def __init__(self, centre: Float[Tensor, " d_in"]) -> None:
        self.centre = centre.double()
        self.num_tokens = 0
        self.sum = torch.zeros_like(self.centre)
        self.products = torch.zeros(
            len(centre), len(centre), dtype=torch.float64, device=centre.device
        )

    def add(self, x: Float[Tensor, "rows d_in"]) -> None:
        deviation = x.double() - self.centre.to(x.device)
        self.num_tokens += len(x)
        self.sum = self.sum.to(x.device) + deviation.sum(0)
        self.products = self.products.to(x.device) + deviation.mT @ deviation

    def scatter(self) -> Float[Tensor, "d_in d_in"]:
        """Sum over tokens of (x - mean)(x - mean)'."""
        return self.products - torch.outer(self.sum, self.sum) / max(self.num_tokens, 1)

    def pca_fvu(self) -> Float[Tensor, " ranks"] | None:
        """FVU with 0, 1, ..., d_in components; None where the activations do not vary or are not
        all finite."""
        # float64 rounding, measured against the uncentred moments, is not variance
        floor = 1e-12 * (self.products.trace() + self.num_tokens * self.centre.square().sum())
        scatter = self.scatter()
        if self.num_tokens == 0 or not scatter.isfinite().all() or scatter.trace() <= floor:
            return None
        values = torch.linalg.eigvalsh(scatter).flip(0).clamp_min(0)
        left = torch.cat([values.new_zeros(1), values.flip(0).cumsum(0)]).flip(0)
        return left / left[0]
