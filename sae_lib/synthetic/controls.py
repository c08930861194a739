"""Coders of planted activations whose measurements are known before anything is measured.

    oracle            code = truth, decoder = truth
    matched_filter    the oracle's decoder behind a linear-threshold encoder
    shrunk            code x factor
    missing           a share of the dictionary, chosen at random, is not there
    duplicated        a share of the latents occurs twice, each copy with half the code
    merged            absorption: on a share of the children the parent is off where the child is
                      on, and the child's direction is parent + child
    random_decoder    code = truth, random directions
    random_sae        random directions behind a linear-threshold encoder
    pca               principal components, each split into a positive and a negative latent

The merged child writes (D_P + D_c) / |D_P + D_c| with code |D_P + D_c| (s_P + s_c) / 2, the best
one number can do: magnitudes that differ by s_P - s_c leave (s_P - s_c) / 2 (D_P - D_c).

What is known follows from the planted probabilities and directions alone (`Control.known`):
expectations over the data, exact but for what the names of the keys say.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from scipy.special import betainc
from torch import Tensor

from sae_lib.errors import BadInput
from sae_lib.synthetic.dictionary import (
    DictionaryConfig,
    LinearThreshold,
    Moments,
    bias,
    firing_probabilities,
    ground_truth_dictionary,
    group_features,
    magnitude_moments,
    moments,
    oracle,
)
from sae_lib.synthetic.structure import Hierarchy, Independent

COVERED = 0.9
"""Cosine from which a planted direction counts as found."""

CLEARLY = 1.5
"""Ratio of two differences of means that no sample of some thousand tokens turns round."""

Truth = Float[Tensor, "tokens num_features"]
Code = Float[Tensor, "tokens d_sae"]
_RANDOM, _MERGED, _DUPLICATED, _MISSING = range(100, 104)  # beyond the parts of the data


class Control(NamedTuple):
    """A coder, and what measuring it must give."""

    weights: LinearThreshold
    recode: Callable[[Truth], Code] | None
    """The code as a function of the true one; None where it is encoded from the activation."""
    known: dict[str, float]
    """Expected value by name of what is measured; what is not known in closed form is left out.

    fvu, relative_reconstruction_bias   ratios of sums over tokens
    l2_ratio                            mean of ratios
    l0                                  mean over tokens
    mmcs, coverage                      over planted directions: largest cosine with a decoder row,
                                        and share with one of at least `COVERED`
    max_decoder_cosine                  over latents: nearest other decoder row
    absorption, full_absorption         over trees: mean absorption fraction and full rate
    probing                             k = 1 accuracy on `probed_features`, balanced; a probe may
                                        take a magnitude far below 1 for 0, once in 10,000
    parent_probing                      k = 1 accuracy on the trees' roots, balanced
    """


class Family(NamedTuple):
    """The root of a tree and its children."""

    parent: int
    children: tuple[int, ...]
    given: tuple[float, ...]
    """Probability of each child given the parent."""


def families(cfg: DictionaryConfig) -> list[Family]:
    """All trees, by the numbers of their features; of deeper trees the uppermost two levels."""
    return [
        Family(nodes[0], tuple(nodes[1 : 1 + len(group.levels[0])]), group.levels[0])
        for group, copies in zip(cfg.groups, group_features(cfg), strict=True)
        if isinstance(group, Hierarchy)
        for nodes in copies.tolist()
    ]


def probed_features(cfg: DictionaryConfig, lowest: float = 0.02, most: int = 8) -> list[int]:
    """Independent features that are active often enough to be probed for: the first ``most``."""
    numbers = list(range(cfg.num_independent))
    for group, copies in zip(cfg.groups, group_features(cfg), strict=True):
        if isinstance(group, Independent):
            numbers += copies.flatten().tolist()
    chances = firing_probabilities(cfg)
    return [number for number in numbers if lowest <= chances[number] < 1][:most]


def controls(
    cfg: DictionaryConfig,
    *,
    absorbed: float = 0.4,
    repeated: float = 0.25,
    factor: float = 0.8,
    absent: float = 0.5,
    threshold: float = 0.5,
) -> dict[str, Control]:
    """All controls by name; ``merged`` is there where there is a tree."""
    found = {
        "oracle": true_code(cfg),
        "matched_filter": matched_filter(cfg, threshold),
        "shrunk": shrunk(cfg, factor),
        "missing": missing(cfg, absent),
        "duplicated": duplicated(cfg, repeated),
        "random_decoder": random_decoder(cfg),
        "random_sae": random_sae(cfg, threshold),
        "pca": pca(cfg),
    }
    if families(cfg):
        found["merged"] = merged(cfg, absorbed)
    return found


def true_code(cfg: DictionaryConfig) -> Control:
    """The ceiling: the truth is handed in, and only noise is left."""
    known = _linear(cfg, ground_truth_dictionary(cfg)) | _found_all(cfg) | _probed(cfg)
    return Control(oracle(cfg), lambda z: z, known)


def matched_filter(cfg: DictionaryConfig, threshold: float = 0.5) -> Control:
    """The oracle's decoder with an encoder; exact for orthonormal directions without noise."""
    known = _found_all(cfg)
    # the encoder must tell on from off: no magnitude lies below the threshold
    if cfg.is_orthonormal and cfg.noise == 0 and cfg.magnitude_floor > threshold:
        known |= _linear(cfg, ground_truth_dictionary(cfg)) | _probed(cfg)
    return Control(oracle(cfg, threshold), None, known)


def shrunk(cfg: DictionaryConfig, factor: float = 0.8) -> Control:
    """The true code times ``factor``: right in direction, wrong in size."""
    known = _linear(cfg, factor * ground_truth_dictionary(cfg)) | _found_all(cfg) | _probed(cfg)
    if cfg.noise == 0 and cfg.bias_norm == 0 and firing_probabilities(cfg).max() == 1:
        known["l2_ratio"] = factor
    return Control(oracle(cfg), lambda z: factor * z, known)


def missing(cfg: DictionaryConfig, share: float = 0.5) -> Control:
    """``share`` of the features, chosen at random, has no latent."""
    dictionary = ground_truth_dictionary(cfg)
    kept = _some(cfg, _MISSING, cfg.num_features, 1 - share)
    is_kept = torch.zeros(cfg.num_features)
    is_kept[kept] = 1
    known = _linear(cfg, is_kept[:, None] * dictionary)
    known["l0"] = float(firing_probabilities(cfg)[kept].sum())
    # nothing else tells of a missing independent feature: a probe guesses
    labels = probed_features(cfg)
    if labels:
        known["probing"] = (1 + is_kept[labels].mean().item()) / 2
    if cfg.is_orthonormal:
        known["mmcs"] = known["coverage"] = is_kept.mean().item()
        known["max_decoder_cosine"] = 0.0
        if families(cfg):
            known["absorption"] = known["full_absorption"] = 0.0
    return Control(_weights(cfg, dictionary[kept]), lambda z: z[:, kept], known)


def duplicated(cfg: DictionaryConfig, share: float = 0.25) -> Control:
    """``share`` of the latents, chosen at random, occurs twice; the copies come last."""
    dictionary = ground_truth_dictionary(cfg)
    twice = _some(cfg, _DUPLICATED, cfg.num_features, share)
    known = _linear(cfg, dictionary) | _found_all(cfg) | _probed(cfg)
    known["l0"] += float(firing_probabilities(cfg)[twice].sum())
    if cfg.is_orthonormal:
        known["max_decoder_cosine"] = 2 * len(twice) / (cfg.num_features + len(twice))
        roots = [family.parent for family in families(cfg)]
        if roots:
            # one copy is the main latent with half of the projection, the other has the rest
            known["absorption"] = 0.5 * float(np.mean(np.isin(roots, twice.numpy())))

    def recode(z: Truth) -> Code:
        code = torch.cat([z, z[:, twice] / 2], dim=1)
        code[:, twice] /= 2
        return code

    return Control(_weights(cfg, torch.cat([dictionary, dictionary[twice]])), recode, known)


def merged(cfg: DictionaryConfig, share: float = 0.4) -> Control:
    """Absorption by ``share`` of the children, dealt evenly to the trees.

    Raises `BadInput` where there is no tree, or children of one parent may be active together.
    """
    trees = families(cfg)
    together = [g for g in cfg.groups if isinstance(g, Hierarchy) and not g.is_exclusive]
    if not trees or together:
        problem = "absorption is planted in hierarchies whose children exclude each other."
        raise BadInput(problem, key="groups")
    draw = _generator(cfg, _MERGED)
    dealt = _dealt(draw, [list(family.children) for family in trees], share)
    chosen = torch.tensor([child for children in dealt for child in children], dtype=torch.long)
    parent = torch.tensor(
        [f.parent for f, c in zip(trees, dealt, strict=True) for _ in c], dtype=torch.long
    )
    dictionary = ground_truth_dictionary(cfg)
    both = dictionary[parent] + dictionary[chosen]
    lengths = both.norm(dim=1)
    rows = dictionary.clone()
    rows[chosen] = both / lengths[:, None]

    def recode(z: Truth) -> Code:
        code = z.clone()
        of_parent = z[:, parent] * (z[:, chosen] > 0)
        code[:, chosen] = (of_parent + z[:, chosen]) / 2 * lengths
        # one child at a time, so the parent's code is taken away once
        return code.index_add(1, parent, -of_parent)

    return Control(_weights(cfg, rows), recode, _known_of_merged(cfg, trees, dealt, parent, chosen))


def random_decoder(cfg: DictionaryConfig) -> Control:
    """The true code written in random directions."""
    rows = _random_rows(cfg)
    known = _linear(cfg, rows) | _random_geometry(cfg) | _probed(cfg)
    known.pop("absorption", None)
    known.pop("full_absorption", None)
    return Control(_weights(cfg, rows), lambda z: z, known)


def random_sae(cfg: DictionaryConfig, threshold: float = 0.5) -> Control:
    """As many random directions as there are features, with the encoder of the oracle."""
    rows = _random_rows(cfg)
    return Control(_weights(cfg, rows, threshold), None, _random_geometry(cfg))


def pca(cfg: DictionaryConfig, rank: int | None = None) -> Control:
    """The first ``rank`` principal components of the distribution; half of d_in by default."""
    rank = max(1, cfg.d_in // 2) if rank is None else rank
    found = moments(cfg)
    values, vectors = torch.linalg.eigh(found.x_covariance)
    components = vectors.flip(1)[:, :rank].mT
    rows = torch.cat([components, -components]).float()
    weights = LinearThreshold(
        rows, rows.clone(), torch.zeros(2 * rank), found.x_mean.float(), threshold=0.0
    )
    known = {
        "fvu": (values[: cfg.d_in - rank].sum() / values.sum()).item(),
        "relative_reconstruction_bias": 1.0,
        "l0": float(rank),
        "max_decoder_cosine": 0.0 if rank > 1 else -1.0,
    }
    return Control(weights, None, known)


def expected_largest_cosine(d_in: int, num: int) -> float:
    """Mean of the largest of ``num`` cosines between random directions and a fixed one.

    With I the regularised incomplete beta function, P(cos <= t) = I((t + 1) / 2; h, h) for
    h = (d_in - 1) / 2.
    """
    t = np.linspace(-1, 1, 20_001)
    half = (d_in - 1) / 2
    below = betainc(half, half, (t + 1) / 2) ** num
    return float(1 - np.trapezoid(below, t))


def _generator(cfg: DictionaryConfig, part: int) -> np.random.Generator:
    return np.random.default_rng([cfg.seed, part])


def _weights(
    cfg: DictionaryConfig, rows: Float[Tensor, "d_sae d_in"], threshold: float = 0.5
) -> LinearThreshold:
    return LinearThreshold(rows.clone(), rows, torch.zeros(len(rows)), bias(cfg), threshold)


def _linear(cfg: DictionaryConfig, written: Float[Tensor, "num_features d_in"]) -> dict[str, float]:
    """What is known where x_hat = z A + b, with ``written`` for A and a latent per feature."""
    found, A = moments(cfg), written.double()
    dictionary, constant = ground_truth_dictionary(cfg).double(), bias(cfg).double()
    noise = cfg.d_in * cfg.noise**2
    out, at = found.z_mean @ A, found.z_mean @ dictionary
    squared = _trace(found, A, A) + 2 * out @ constant + constant @ constant
    inner = _trace(found, dictionary, A) + (at + out) @ constant + constant @ constant
    error = _trace(found, dictionary - A, dictionary - A) + noise
    return {
        "fvu": (error / found.x_covariance.trace()).item(),
        "relative_reconstruction_bias": (squared / inner).item(),
        "l0": float(firing_probabilities(cfg).double().sum()),
    }


def _trace(
    found: Moments,
    left: Float[Tensor, "num_features d_in"],
    right: Float[Tensor, "num_features d_in"],
) -> Float[Tensor, ""]:
    """E <z left, z right>."""
    return ((found.z_second @ left) * right).sum()


def _found_all(cfg: DictionaryConfig) -> dict[str, float]:
    """Geometry of a decoder that is the dictionary."""
    known = {"mmcs": 1.0, "coverage": 1.0}
    if cfg.is_orthonormal and cfg.num_features > 1:
        known["max_decoder_cosine"] = 0.0
    return known


def _probed(cfg: DictionaryConfig) -> dict[str, float]:
    """What probes find where every feature has a latent of its own."""
    known = {"probing": 1.0} if probed_features(cfg) else {}
    if families(cfg):
        known["parent_probing"] = 1.0
        if cfg.is_orthonormal:
            known["absorption"] = known["full_absorption"] = 0.0
    return known


def _known_of_merged(
    cfg: DictionaryConfig,
    trees: list[Family],
    dealt: list[list[int]],
    parent: Int[Tensor, " chosen"],
    chosen: Int[Tensor, " chosen"],
) -> dict[str, float]:
    dictionary = ground_truth_dictionary(cfg).double()
    chances = firing_probabilities(cfg).double()[chosen]
    first, second = magnitude_moments(cfg)
    cosine = (dictionary[parent] * dictionary[chosen]).sum(1)
    lost = ((second - first**2) * chances * (1 - cosine)).sum()
    known = _linear(cfg, ground_truth_dictionary(cfg))
    if probed_features(cfg):
        known["probing"] = 1.0
    known["fvu"] += (lost / moments(cfg).x_covariance.trace()).item()
    known["l0"] -= chances.sum().item()  # the parent is off where the child is on
    # the error is orthogonal to the reconstruction in the mean
    known["relative_reconstruction_bias"] = 1.0
    if not cfg.is_orthonormal:
        return known
    num, half = len(chosen), 0.5**0.5
    with_hole = sum(bool(children) for children in dealt)
    known["mmcs"] = 1 - num * (1 - half) / cfg.num_features
    known["coverage"] = 1 - num / cfg.num_features
    known["max_decoder_cosine"] = (num + with_hole) * half / cfg.num_features
    holes = [
        [given for child, given in zip(f.children, f.given, strict=True) if child in children]
        for f, children in zip(trees, dealt, strict=True)
    ]
    # the parent's latent must clearly tell more of the parent than its best merged child does
    if all(1 - sum(hole) > CLEARLY * 2**0.5 * max(hole, default=0.0) for hole in holes):
        rates = [sum(hole) / sum(f.given) for f, hole in zip(trees, holes, strict=True)]
        known["absorption"] = known["full_absorption"] = float(np.mean(rates))
        known["parent_probing"] = 1 - float(np.mean([sum(hole) for hole in holes])) / 2
    return known


def _random_geometry(cfg: DictionaryConfig) -> dict[str, float]:
    """Expected over random directions, unlike the rest: a given draw is near it, not at it."""
    num = cfg.num_features
    known = {"mmcs": expected_largest_cosine(cfg.d_in, num)}
    if num > 1:
        known["max_decoder_cosine"] = expected_largest_cosine(cfg.d_in, num - 1)
    return known


def _random_rows(cfg: DictionaryConfig) -> Float[Tensor, "num_features d_in"]:
    draw = _generator(cfg, _RANDOM)
    rows = torch.from_numpy(draw.standard_normal((cfg.num_features, cfg.d_in)))
    return (rows / rows.norm(dim=1, keepdim=True)).float()


def _some(cfg: DictionaryConfig, part: int, num: int, share: float) -> Int[Tensor, " chosen"]:
    """``share`` of the numbers below ``num``, rounded, at random and in order."""
    draw = _generator(cfg, part)
    chosen = draw.choice(num, round(share * num), replace=False)
    return torch.from_numpy(np.sort(chosen))


def _dealt(draw: np.random.Generator, some: list[list[int]], share: float) -> list[list[int]]:
    """``share`` of all items, rounded: the same number of each list, up to one."""
    total = round(share * sum(map(len, some)))
    shuffled = [draw.permutation(items).tolist() for items in some]
    order = draw.permutation(len(some)).tolist()
    taken = [0] * len(some)
    while sum(taken) < total:
        for i in order:
            if sum(taken) < total and taken[i] < len(some[i]):
                taken[i] += 1
    return [sorted(items[:n]) for items, n in zip(shuffled, taken, strict=True)]
