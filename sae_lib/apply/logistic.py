"""Logistic regression of many rare indicators at once.

One direction and one offset per concept, all fitted together by minibatches, so that the labels
stay sparse and memory does not grow with tokens times concepts. Unlike least squares, whose score
of a rare concept is dominated by the many tokens at which it is false, the cross-entropy leaves
alone what is already told apart.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_matrix
from torch import Tensor

WHITEN = 1e-3
"""Least variance of a whitened direction, as a share of the mean variance."""

CHUNK_ROWS = 8192


class Logistic(NamedTuple):
    """Log odds of each concept: ``x @ weights + bias``."""

    weights: Float[Tensor, "d_in concepts"]
    bias: Float[Tensor, " concepts"]

    def log_odds(self, x: Float[Tensor, "tokens d_in"]) -> Float[Tensor, "tokens concepts"]:
        """Of raw activations, natural logarithm."""
        return x.float() @ self.weights + self.bias


def fit_logistic(
    x: Float[Tensor, "tokens d_in"],
    truth: csr_matrix,
    *,
    strength: float = 1.0,
    epochs: int = 10,
    batch: int = 1024,
    lr: float = 0.02,
    seed: int = 0,
) -> Logistic:
    """Minimise, for each column of ``truth`` (tokens, concepts), over standardised inputs ``u``

        sum over tokens of cross-entropy(truth, u @ w + b) + |w|^2 / (2 strength)

    which is scikit-learn's ``LogisticRegression(C=strength)``, the offset ``b`` being free. The
    inputs are centred and *whitened* (covariance 1; directions with less than `WHITEN` of the mean
    variance are not blown up beyond that), and the weights come back for raw inputs. Adam with
    betas .9 and .999 on shuffled minibatches; ``lr`` falls linearly to 0 over all epochs, and ``b``
    begins at the log odds of the concept's share. A concept that is never (or always) true gets
    about its share everywhere. Deterministic in ``seed`` on one machine; float32 but for the
    covariance. Memory: 5 x ``batch`` x concepts floats beside the inputs.
    """
    num = len(x)
    mean, whiten = _whitening(x)
    shares = torch.from_numpy(np.asarray(truth.mean(0)).ravel()).float()
    bias = torch.logit(shares, eps=0.5 / num)
    weights = torch.zeros(x.shape[1], truth.get_shape()[1])
    optimiser = torch.optim.Adam([weights, bias], lr=lr, fused=True)
    generator = torch.Generator().manual_seed(seed)
    batch = min(batch, num)
    steps = epochs * (num // batch)
    step = 0
    for _ in range(epochs):
        order = torch.randperm(num, generator=generator)
        for low in range(0, num - batch + 1, batch):
            rows = order[low : low + batch]
            u = (x[rows].float() - mean) @ whiten
            error = torch.addmm(bias, u, weights).sigmoid_()
            true = truth[rows.numpy()].tocoo()
            error[torch.from_numpy(true.row).long(), torch.from_numpy(true.col).long()] -= 1
            # everything divided by the number of tokens, so that ``lr`` does not depend on it
            weights.grad = (u.mT @ error) / batch + weights / (strength * num)
            bias.grad = error.mean(0)
            for group in optimiser.param_groups:
                group["lr"] = lr * (1 - step / steps)
            optimiser.step()
            step += 1
    weights = whiten @ weights
    return Logistic(weights, bias - mean @ weights)


def _whitening(x: Tensor) -> tuple[Float[Tensor, " d_in"], Float[Tensor, "d_in d_in"]]:
    """Mean, and the symmetric matrix that gives centred inputs unit covariance; float32."""
    mean = x.double().mean(0)
    covariance = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for low in range(0, len(x), CHUNK_ROWS):
        part = x[low : low + CHUNK_ROWS].double() - mean
        covariance += part.mT @ part
    covariance /= len(x)
    variances, directions = torch.linalg.eigh(covariance)
    least = WHITEN * variances.mean()
    scale = variances.clamp(min=least).rsqrt()
    return mean.float(), ((directions * scale) @ directions.mT).float()
