"""Activations made of a known dictionary: sparse mixtures of unit directions.

    x = sum_k z_k D_k + b + noise,   z_k = m_k with probability p_k, otherwise 0

Features fire independently, with probabilities spaced evenly in their logarithm or by Zipf's law,
or in ``groups`` (`structure`): siblings, correlated pairs, hierarchies, entities. Magnitudes are
|N(1, s)|, at least ``magnitude_floor``, unless another law is chosen; D has unit rows, b has norm
``bias_norm``. Everything follows from the seed, and batch *i* from (seed, i), so a stream can be
entered anywhere.

Mean and covariance of x are known in closed form, and with them what the truth leaves unexplained.

Source: Sharkey et al. 2022 (https://www.alignmentforum.org/posts/z6QQJbtpkEAX3Aojj), "Taking
features out of superposition with sparse autoencoders". Differs from it: what fires
together is stated by groups, directions may be pushed apart, and there is a bias.
"""

import math
from collections.abc import Iterator
from functools import lru_cache
from statistics import NormalDist
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field, model_validator
from torch import Tensor
from torch.nn import functional as F

from sae_lib.config import Config
from sae_lib.papers import Paper
from sae_lib.synthetic.directions import lower_largest, lower_squares, orthonormal, unit
from sae_lib.synthetic.structure import AnyGroup, columns_of, independent_joint

PAPERS = (
    Paper(
        "Sharkey et al. 2022",
        "https://www.alignmentforum.org/posts/z6QQJbtpkEAX3Aojj",
        "Toy data for superposition",
    ),
)
_DICTIONARY, _BIAS, _BATCHES, _BAGS, _BOS, _READOUT = range(6)


class DictionaryConfig(Config):
    """Which directions there are, and how often and how strongly each is active."""

    d_in: int = Field(default=64, gt=0)
    """Width of the activations."""

    num_features: int = Field(default=256, gt=0)
    """Directions in the dictionary; those beyond the groups' fire independently and come first."""

    mean_active: float = Field(default=11.0, gt=0)
    """Expected number of active features per token, not counting those in groups."""

    firing: Literal["geometric", "zipf"] = "geometric"
    """How probabilities fall: evenly in their logarithm, or as 1 / (i + zipf_offset), i from 1."""

    firing_ratio: float = Field(default=100.0, ge=1)
    """In the geometric law, how many times as often as the rarest feature the most frequent one is
    active."""

    zipf_offset: float = Field(default=8.0, ge=0)
    """In Zipf's law, what is added to the rank; the larger, the more alike the first features."""

    groups: tuple[AnyGroup, ...] = ()
    """Features that fire in a structure of their own; they are the last ones, in this order."""

    magnitudes: Literal["normal", "lognormal", "exponential"] = "normal"
    """Distribution of the magnitudes: |N(1, s)|, exp(N(0, s)), or magnitude_floor + s Exp(1)."""

    magnitude_std: float = Field(default=0.15, ge=0)
    """Spread s of the magnitudes."""

    magnitude_floor: float = Field(default=0.1, gt=0)
    """Smallest magnitude of an active feature; where the exponential ones begin."""

    bias_norm: float = Field(default=1.0, ge=0)
    """Length of the constant part."""

    noise: float = Field(default=0.02, ge=0)
    """Standard deviation of the noise in each coordinate."""

    repulsion_steps: int = Field(default=0, ge=0)
    """Gradient steps that push the directions apart before use; 0 leaves them random."""

    repulsion: Literal["squares", "largest"] = "squares"
    """What the steps lower: the sum of squared cosines, or a soft maximum of |cos|."""

    is_orthonormal: bool = False
    """Make the directions exactly orthogonal, which needs num_features <= d_in."""

    seed: int = Field(default=0, ge=0)
    """Decides the dictionary, the bias and all batches."""

    @property
    def num_independent(self) -> int:
        """Features that belong to no group."""
        return self.num_features - sum(group.num_features for group in self.groups)

    @model_validator(mode="after")
    def _directions_are_enough(self) -> "DictionaryConfig":
        if self.num_independent < 0:
            in_groups = self.num_features - self.num_independent
            raise ValueError(
                f"the groups have {in_groups} features; got num_features={self.num_features}"
            )
        if self.is_orthonormal and self.num_features > self.d_in:
            raise ValueError(
                f"at most d_in={self.d_in} directions can be orthogonal; "
                f"got num_features={self.num_features}"
            )
        return self

    @model_validator(mode="after")
    def _probabilities_are_possible(self) -> "DictionaryConfig":
        highest = max(_independent_chances(self).tolist(), default=0.0)
        if highest > 1:
            law, cure = f"firing_ratio={self.firing_ratio}", "lower mean_active or firing_ratio"
            if self.firing == "zipf":
                law = f"zipf_offset={self.zipf_offset}"
                cure = "lower mean_active or raise zipf_offset"
            raise ValueError(
                f"with mean_active={self.mean_active} of num_features={self.num_features} and "
                f"{law} the most frequent feature would be active "
                f"with probability {highest:.3g}; {cure}"
            )
        return self


class Mixture(NamedTuple):
    """A batch with its truth."""

    x: Float[Tensor, "batch d_in"]
    """Activations."""
    z: Float[Tensor, "batch num_features"]
    """Magnitude of each feature, 0 where it is not active."""


class Bags(NamedTuple):
    """Documents: bags of samples behind a beginning-of-sequence vector, with their truth."""

    x: Float[Tensor, "bags samples d_in"]
    """Activations; position 0 of each bag is the same long vector."""
    z: Float[Tensor, "bags samples num_features"]
    """Magnitude of each feature, 0 where it is not active and at position 0."""
    keep: Bool[Tensor, "bags samples"]
    """Positions that count: all but position 0."""


class LinearThreshold(NamedTuple):
    """A linear encoder with a threshold, and a linear decoder.

    ``z = pre * (pre > threshold)`` with ``pre = (x - b_dec) W_enc' + b_enc``; ``x_hat = z W_dec +
    b_dec``.
    """

    W_enc: Float[Tensor, "d_sae d_in"]
    W_dec: Float[Tensor, "d_sae d_in"]
    b_enc: Float[Tensor, " d_sae"]
    b_dec: Float[Tensor, " d_in"]
    threshold: float


class Readout(NamedTuple):
    """The smallest "model" on top of the activations: ``logits = x R + c``.

    Feature k at magnitude s adds ``s D_k R`` to the logits, exactly.
    """

    R: Float[Tensor, "d_in vocab"]
    c: Float[Tensor, " vocab"]


class Moments(NamedTuple):
    """Exact moments of the true code and of the activations, float64."""

    z_mean: Float[Tensor, " num_features"]
    z_second: Float[Tensor, "num_features num_features"]
    """E[z z'], not centred."""
    x_mean: Float[Tensor, " d_in"]
    x_covariance: Float[Tensor, "d_in d_in"]


def _normal(draw: np.random.Generator, *shape: int) -> Tensor:
    return torch.from_numpy(draw.standard_normal(shape))


def _generator(seed: int, part: int, index: int = 0) -> np.random.Generator:
    # torch's CPU generator keeps 32 bits of its seed, too few for (seed, part, index)
    return np.random.default_rng([seed, part, index])


def _independent_chances(cfg: DictionaryConfig) -> Float[Tensor, " independent"]:
    if not cfg.num_independent:
        return torch.zeros(0, dtype=torch.float64)
    if cfg.firing == "zipf":
        ranks = torch.arange(1, cfg.num_independent + 1, dtype=torch.float64)
        weights = 1 / (ranks + cfg.zipf_offset)
    else:
        exponents = torch.linspace(0, -1, cfg.num_independent, dtype=torch.float64)
        weights = cfg.firing_ratio**exponents
    return weights * (cfg.mean_active / weights.sum())


def firing_probabilities(cfg: DictionaryConfig) -> Float[Tensor, " num_features"]:
    """Chance that each feature is active.

    Falling and ``mean_active`` in sum for the independent features, which come first; then the
    groups' features.
    """
    groups = [group.chances().repeat(group.copies) for group in cfg.groups]
    return torch.cat([_independent_chances(cfg), *groups]).float()


def group_features(cfg: DictionaryConfig) -> list[Int[Tensor, "copies size"]]:
    """For each group the numbers of its features, copy by copy."""
    return columns_of(cfg.groups, cfg.num_independent)


def joint_probabilities(cfg: DictionaryConfig) -> Float[Tensor, "num_features num_features"]:
    """Chance that two features are active together; on the diagonal, that one is. Float64."""
    chances = torch.cat(
        [_independent_chances(cfg), *(g.chances().repeat(g.copies) for g in cfg.groups)]
    )
    joint = independent_joint(chances)
    for group, copies in zip(cfg.groups, group_features(cfg), strict=True):
        within = group.joint()
        for columns in copies:
            joint[columns[:, None], columns] = within
    return joint


def ground_truth_dictionary(cfg: DictionaryConfig) -> Float[Tensor, "num_features d_in"]:
    """Unit rows; repulsion drives them apart as far as ``d_in`` allows."""
    shape = cfg.num_features, cfg.d_in
    steps = cfg.repulsion_steps
    return _directions(cfg.seed, shape, cfg.is_orthonormal, cfg.repulsion, steps).clone()


@lru_cache(maxsize=4)  # thousands of steps of repulsion take seconds, and everything needs D
def _directions(
    seed: int, shape: tuple[int, int], is_orthonormal: bool, repulsion: str, steps: int
) -> Float[Tensor, "num_features d_in"]:
    rows = _normal(_generator(seed, _DICTIONARY), *shape)
    if is_orthonormal:
        return orthonormal(rows).float()
    lower = lower_largest if repulsion == "largest" else lower_squares
    return lower(unit(rows), steps).float()


def best_matches(
    planted: Float[Tensor, "num d_in"], W_dec: Float[Tensor, "d_sae d_in"]
) -> Float[Tensor, " num"]:
    """For each planted direction the largest cosine with a decoder row; its mean is the MMCS."""
    return (F.normalize(planted, dim=1) @ F.normalize(W_dec, dim=1).mT).amax(1)


def bias(cfg: DictionaryConfig) -> Float[Tensor, " d_in"]:
    """The constant part of every activation."""
    direction = _normal(_generator(cfg.seed, _BIAS), cfg.d_in)
    return (direction * (cfg.bias_norm / direction.norm())).float()


def sparse_mixtures(cfg: DictionaryConfig, batch_tokens: int, start: int = 0) -> Iterator[Mixture]:
    """Batches without end, from number ``start`` on. Batches of another size are other data."""
    dictionary, constant = ground_truth_dictionary(cfg), bias(cfg)
    index = start
    while True:
        draw = _generator(cfg.seed, _BATCHES, index)
        yield _mixture(cfg, draw, _active(cfg, draw, batch_tokens, 1), dictionary, constant)
        index += 1


def bags(
    cfg: DictionaryConfig,
    batch_bags: int,
    start: int = 0,
    *,
    samples: int = 20,
    bos_scale: float = 20.0,
) -> Iterator[Bags]:
    """Batches of bags without end, from number ``start`` on.

    Features of groups that are ``per_document`` are active on all samples of a bag or on none.
    Position 0 is replaced by a vector ``bos_scale`` times as long as activations are (root mean
    square), which no statistic should count.
    """
    dictionary, constant = ground_truth_dictionary(cfg), bias(cfg)
    bos = _normal(_generator(cfg.seed, _BOS), cfg.d_in)
    bos = (bos * (bos_scale * root_mean_square_norm(cfg) / bos.norm())).float()
    keep = torch.ones(batch_bags, samples, dtype=torch.bool)
    keep[:, 0] = False
    index = start
    while True:
        draw = _generator(cfg.seed, _BAGS, index)
        active = _active(cfg, draw, batch_bags, samples)
        x, z = _mixture(cfg, draw, active, dictionary, constant)
        x, z = x.reshape(batch_bags, samples, -1), z.reshape(batch_bags, samples, -1)
        x[:, 0], z[:, 0] = bos, 0
        yield Bags(x, z, keep.clone())
        index += 1


def _active(
    cfg: DictionaryConfig, draw: np.random.Generator, documents: int, samples: int
) -> Bool[Tensor, "tokens num_features"]:
    """Which features are active, document by document."""
    tokens = documents * samples
    independent = _independent_chances(cfg).float()
    active = [torch.from_numpy(draw.random((tokens, cfg.num_independent))) < independent]
    for group in cfg.groups:
        if group.per_document:
            active.append(group.fire(draw, documents).repeat_interleave(samples, dim=0))
        else:
            active.append(group.fire(draw, tokens))
    return torch.cat(active, dim=1)


def _mixture(
    cfg: DictionaryConfig,
    draw: np.random.Generator,
    active: Bool[Tensor, "tokens num_features"],
    dictionary: Float[Tensor, "num_features d_in"],
    constant: Float[Tensor, " d_in"],
) -> Mixture:
    z = (active * _magnitudes(cfg, draw, active.shape).clamp(min=cfg.magnitude_floor)).float()
    noise = (cfg.noise * _normal(draw, len(active), cfg.d_in)).float()
    return Mixture(z @ dictionary + constant + noise, z)


def _magnitudes(
    cfg: DictionaryConfig, draw: np.random.Generator, shape: tuple[int, ...]
) -> Float[Tensor, "tokens num_features"]:
    if cfg.magnitudes == "exponential":
        beyond = torch.from_numpy(draw.standard_exponential(shape))
        return cfg.magnitude_floor + cfg.magnitude_std * beyond
    strength = cfg.magnitude_std * _normal(draw, *shape)
    return (1 + strength).abs() if cfg.magnitudes == "normal" else strength.exp()


def oracle(cfg: DictionaryConfig, threshold: float = 0.5) -> LinearThreshold:
    """Matched filters: each encoder row is the direction itself.

    The best linear-threshold code that knows the dictionary; with an orthonormal dictionary and no
    noise it is exact.
    """
    dictionary = ground_truth_dictionary(cfg)
    return LinearThreshold(
        W_enc=dictionary,
        W_dec=dictionary.clone(),
        b_enc=torch.zeros(cfg.num_features),
        b_dec=bias(cfg),
        threshold=threshold,
    )


def readout(cfg: DictionaryConfig, vocab_size: int) -> Readout:
    """A random linear readout of the activations; columns of R have unit length."""
    draw = _generator(cfg.seed, _READOUT)
    weights = _normal(draw, cfg.d_in, vocab_size)
    return Readout((weights / weights.norm(dim=0)).float(), _normal(draw, vocab_size).float())


def magnitude_moments(cfg: DictionaryConfig) -> tuple[float, float]:
    """Mean and mean square of the magnitude of an active feature, the floor included."""
    s, floor, normal = cfg.magnitude_std, cfg.magnitude_floor, NormalDist()
    if cfg.magnitudes == "exponential":
        return floor + s, floor**2 + 2 * floor * s + 2 * s**2
    if s == 0:
        fixed = max(1.0, floor)
        return fixed, fixed**2
    if cfg.magnitudes == "lognormal":
        at = math.log(floor) / s
        below = normal.cdf(at)
        first = floor * below + math.exp(s**2 / 2) * normal.cdf(s - at)
        return first, floor**2 * below + math.exp(2 * s**2) * normal.cdf(2 * s - at)
    # |N| above the floor is N above floor or N below -floor
    high, low = (floor - 1) / s, (-floor - 1) / s
    up, down = 1 - normal.cdf(high), normal.cdf(low)
    at_floor = 1 - up - down
    first = up + s * normal.pdf(high) - (down - s * normal.pdf(low))
    second = (1 + s**2) * (up + down)
    second += s * ((1 + floor) * normal.pdf(high) - (1 - floor) * normal.pdf(low))
    return floor * at_floor + first, floor**2 * at_floor + second


def moments(cfg: DictionaryConfig) -> Moments:
    """Exact mean and second moments of z, mean and covariance of x; num_features^2 numbers."""
    first, second = magnitude_moments(cfg)
    joint = joint_probabilities(cfg)
    chances = joint.diagonal()
    z_mean, z_second = first * chances, first**2 * joint
    z_second.diagonal().copy_(second * chances)
    dictionary = ground_truth_dictionary(cfg).double()
    spread = dictionary.mT @ (z_second - torch.outer(z_mean, z_mean)) @ dictionary
    return Moments(
        z_mean,
        z_second,
        z_mean @ dictionary + bias(cfg).double(),
        spread + cfg.noise**2 * torch.eye(cfg.d_in, dtype=torch.float64),
    )


def root_mean_square_norm(cfg: DictionaryConfig) -> float:
    """Root of the mean of |x|^2."""
    found = moments(cfg)
    return (found.x_mean.square().sum() + found.x_covariance.trace()).sqrt().item()


def noise_share(cfg: DictionaryConfig) -> float:
    """Share of the variance of x that is noise, in [0, 1]: the FVU that the truth leaves."""
    return cfg.d_in * cfg.noise**2 / moments(cfg).x_covariance.trace().item()
