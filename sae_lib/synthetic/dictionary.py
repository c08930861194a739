"""Activations made of a known dictionary: sparse mixtures of unit directions.

    x = sum_k z_k D_k + b + noise,   z_k = m_k with probability p_k, otherwise 0

Probabilities are spaced evenly in their logarithm; magnitudes are |N(1, s)|, at least
``magnitude_floor``; D has unit rows, b has norm ``bias_norm``. Everything follows from the seed,
and batch *i* from (seed, i), so a stream can be entered anywhere.

Source: Sharkey et al. 2022 (https://www.alignmentforum.org/posts/z6QQJbtpkEAX3Aojj), "Taking
features out of superposition with sparse autoencoders". Differs from it: features are
independent, directions may be pushed apart, and there is a bias.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from sae_lib.config import Config
from sae_lib.papers import Paper

PAPERS = (
    Paper(
        "Sharkey et al. 2022",
        "https://www.alignmentforum.org/posts/z6QQJbtpkEAX3Aojj",
        "Toy data for superposition",
    ),
)
_DICTIONARY, _BIAS, _BATCHES = 0, 1, 2


class DictionaryConfig(Config):
    """Which directions there are, and how often and how strongly each is active."""

    d_in: int = Field(default=64, gt=0)
    """Width of the activations."""

    num_features: int = Field(default=256, gt=0)
    """Directions in the dictionary."""

    mean_active: float = Field(default=11.0, gt=0)
    """Expected number of active features per token."""

    firing_ratio: float = Field(default=100.0, ge=1)
    """How many times as often as the rarest feature the most frequent one is active."""

    magnitude_std: float = Field(default=0.15, ge=0)
    """Spread of the magnitudes around one."""

    magnitude_floor: float = Field(default=0.1, gt=0)
    """Smallest magnitude of an active feature."""

    bias_norm: float = Field(default=1.0, ge=0)
    """Length of the constant part."""

    noise: float = Field(default=0.02, ge=0)
    """Standard deviation of the noise in each coordinate."""

    repulsion_steps: int = Field(default=0, ge=0)
    """Gradient steps that push the directions apart before use; 0 leaves them random."""

    seed: int = Field(default=0, ge=0)
    """Decides the dictionary, the bias and all batches."""

    @model_validator(mode="after")
    def _probabilities_are_possible(self) -> "DictionaryConfig":
        highest = float(firing_probabilities(self).max())
        if highest > 1:
            raise ValueError(
                f"with mean_active={self.mean_active} of num_features={self.num_features} and "
                f"firing_ratio={self.firing_ratio} the most frequent feature would be active "
                f"with probability {highest:.3g}; lower mean_active or firing_ratio"
            )
        return self


class Mixture(NamedTuple):
    """A batch with its truth."""

    x: Float[Tensor, "batch d_in"]
    """Activations."""
    z: Float[Tensor, "batch num_features"]
    """Magnitude of each feature, 0 where it is not active."""


class Oracle(NamedTuple):
    """Parameters of the best linear-threshold encoder that knows the dictionary.

    ``z = pre * (pre > threshold)`` with ``pre = (x - b_dec) W_enc' + b_enc``; ``x_hat = z W_dec +
    b_dec``. With an orthonormal dictionary and no noise it is exact.
    """

    W_enc: Float[Tensor, "d_sae d_in"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]
    threshold: float


def _normal(draw: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(draw.standard_normal(shape))


def _generator(cfg: DictionaryConfig, part: int, index: int = 0) -> np.random.Generator:
    # torch's CPU generator keeps 32 bits of its seed, too few for (seed, part, index)
    return np.random.default_rng([cfg.seed, part, index])


def firing_probabilities(cfg: DictionaryConfig) -> Float[Tensor, " num_features"]:
    """Chance that each feature is active; falling, and ``mean_active`` in sum."""
    exponents = torch.linspace(0, -1, cfg.num_features, dtype=torch.float64)
    weights = cfg.firing_ratio**exponents
    return (weights * (cfg.mean_active / weights.sum())).float()


def ground_truth_dictionary(cfg: DictionaryConfig) -> Float[Tensor, "num_features d_in"]:
    """Unit rows; repulsion drives them towards orthogonality as far as ``d_in`` allows."""
    rows = _normal(_generator(cfg, _DICTIONARY), cfg.num_features, cfg.d_in)
    rows = rows / rows.norm(dim=1, keepdim=True)
    eye = torch.eye(cfg.num_features, dtype=torch.float64)
    # the Lipschitz constant of sum(offdiagonal^2) is about 4 |D D'|, so this step cannot overshoot
    rate = 1 / (4 * max(1.0, cfg.num_features / cfg.d_in) * 2)
    for _ in range(cfg.repulsion_steps):
        overlaps = rows @ rows.T - eye
        rows = rows - rate * 4 * (overlaps @ rows)
        rows = rows / rows.norm(dim=1, keepdim=True)
    return rows.float()


def bias(cfg: DictionaryConfig) -> Float[Tensor, " d_in"]:
    """The constant part of every activation."""
    direction = _normal(_generator(cfg, _BIAS), cfg.d_in)
    return (direction * (cfg.bias_norm / direction.norm())).float()


def sparse_mixtures(cfg: DictionaryConfig, batch_tokens: int, start: int = 0) -> Iterator[Mixture]:
    """Batches without end, from number ``start`` on. Batches of another size are other data."""
    dictionary, constant = ground_truth_dictionary(cfg), bias(cfg)
    chances = firing_probabilities(cfg)
    index = start
    while True:
        draw = _generator(cfg, _BATCHES, index)
        active = torch.from_numpy(draw.random((batch_tokens, cfg.num_features))) < chances
        strength = 1 + cfg.magnitude_std * _normal(draw, batch_tokens, cfg.num_features)
        z = (active * strength.abs().clamp(min=cfg.magnitude_floor)).float()
        noise = (cfg.noise * _normal(draw, batch_tokens, cfg.d_in)).float()
        yield Mixture(z @ dictionary + constant + noise, z)
        index += 1


def oracle(cfg: DictionaryConfig, threshold: float = 0.5) -> Oracle:
    """Matched filters: each encoder row is the direction itself."""
    dictionary = ground_truth_dictionary(cfg)
    return Oracle(
        W_enc=dictionary,
        W_dec=dictionary.clone(),
        b_enc=torch.zeros(cfg.num_features),
        b_dec=bias(cfg),
        threshold=threshold,
    )


def noise_share(cfg: DictionaryConfig) -> float:
    """Share of the variance of x that is noise, in [0, 1].

    Exact for independent features: sum_k (p_k E[m^2] - p_k^2 E[m]^2) |D_k|^2 is the variance of
    the signal. The floor of the magnitudes is neglected (it matters below 1e-8 at the defaults).
    """
    chances = firing_probabilities(cfg).double()
    second, first = 1 + cfg.magnitude_std**2, 1.0
    signal = float((chances * second - chances**2 * first**2).sum())
    noise = cfg.d_in * cfg.noise**2
    return noise / (signal + noise)
