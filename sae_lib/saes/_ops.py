"""Functions of tensors that several variants share. Each has its own test."""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

SAMPLE_STRIDE = 61
"""Every how manieth entry `keep_top_of_batch` looks at to guess where the cut will be."""

MIN_SAMPLED = 1 << 16
"""Below this many entries a guess costs more than it saves."""


def random_unit_rows(num_rows: int, width: int, seed: int) -> Float[Tensor, "rows width"]:
    """Gaussian directions of norm 1, in float32 on the CPU; ``seed`` alone decides them.

    The seed is mixed with a word of our own: whoever draws the true directions of synthetic data
    from seed 0 would otherwise hand a coder of seed 0 the solution as its first weights.
    """
    digest = hashlib.sha256(f"weights of a sparse coder {seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
    return unit_rows(torch.randn(num_rows, width, generator=generator))


def rows_of_data(
    sample: Float[Tensor, "samples width"], centre: Float[Tensor, " width"], num: int, seed: int
) -> Float[Tensor, "rows width"]:
    """Directions in which inputs lie from ``centre``: some of ``sample``, drawn with ``seed``.

    Where there are fewer inputs than rows are wanted, the rest is as `random_unit_rows` has it.
    """
    rows = random_unit_rows(num, sample.shape[-1], seed).to(sample)
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(sample), generator=generator)[:num].to(sample.device)
    found = sample[chosen] - centre
    return torch.cat(
        [
            torch.where(found.norm(dim=-1, keepdim=True) > 0, unit_rows(found), rows[: len(found)]),
            rows[len(found) :],
        ]
    )


def unit_rows(rows: Float[Tensor, "rows width"]) -> Float[Tensor, "rows width"]:
    """``rows``, each divided by its Euclidean norm; a row whose norm is 0 becomes zero."""
    norms = rows.norm(dim=-1, keepdim=True)
    return rows / torch.where(norms > 0, norms, 1.0)


@torch.no_grad()
def normalise_rows_(rows: Float[Tensor, "rows width"]) -> None:
    """`unit_rows` in place, in two passes over memory."""
    norms = rows.norm(dim=-1, keepdim=True)
    rows.div_(norms.masked_fill_(norms == 0, 1.0))


@torch.no_grad()
def project_gradient_rows_(
    gradient: Float[Tensor, "rows width"], rows: Float[Tensor, "rows width"]
) -> None:
    """Remove from each row of ``gradient`` its part along the same row of ``rows``, in place.

    ``rows`` must have unit norm. Then a small step along the gradient does not change norms.
    """
    along = torch.linalg.vecdot(gradient, rows).unsqueeze(-1)
    gradient.addcmul_(along, rows, value=-1)


def pre_of(
    x: Float[Tensor, "*batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"] | None,
) -> Float[Tensor, "*batch d_sae"]:
    """W_enc (x - b_dec) + b_enc; without ``b_dec`` nothing is subtracted.

    The gradient of ``b_dec`` comes through the bias, as one product of a matrix with a vector.
    Through ``x - b_dec`` it would cost a third product of batch x d_sae x d_in in every step, of
    which only the sum over the batch is wanted.
    """
    if b_dec is None:
        return functional.linear(x, W_enc, b_enc)
    centre = b_dec.detach()
    bias = b_enc + W_enc.detach() @ (centre - b_dec)  # adds zeros; carries the gradient
    return functional.linear(x - centre, W_enc, bias)


def latents_of(
    x: Float[Tensor, "*batch d_in"],
    W_enc: Float[Tensor, "d_sae d_in"],
    b_enc: Float[Tensor, " d_sae"],
    b_dec: Float[Tensor, " d_in"] | None,
) -> Float[Tensor, "*batch d_sae"]:
    """relu(W_enc (x - b_dec) + b_enc); see `pre_of`."""
    return pre_of(x, W_enc, b_enc, b_dec).relu_()


def keep_top_k(pre: Float[Tensor, "*batch d_sae"], k: int) -> Float[Tensor, "*batch d_sae"]:
    """Zero all but the ``k`` largest entries of each row.

    Exactly ``k`` are kept, by index; which of several equal ones is arbitrary. A row with fewer
    than ``k`` positive entries keeps zeros, so it has fewer than ``k`` non-zeros.
    """
    if k >= pre.shape[-1]:
        return pre
    values, indices = pre.topk(k, dim=-1, sorted=False)
    return torch.zeros_like(pre).scatter(-1, indices, values)


def keep_top_of_batch(pre: Float[Tensor, "batch d_sae"], num: int) -> Float[Tensor, "batch d_sae"]:
    """Zero all but the ``num`` largest entries of the whole batch.

    Exactly ``num`` are kept, by index; which of several equal ones is arbitrary.
    """
    if num >= pre.numel():
        return pre
    flat = pre.reshape(-1)
    with torch.no_grad():
        indices = top_indices(flat, num)
    return torch.zeros_like(flat).scatter(0, indices, flat.gather(0, indices)).view_as(pre)


def top_indices(flat: Float[Tensor, " entries"], num: int) -> Tensor:
    """Indices of the ``num`` largest entries.

    Selecting 65,536 of 4 million takes 60 ms; a look at every 61st entry says what is certainly
    too small, and the rest takes 10 ms. The guess may be wrong, never the result: when too few
    entries pass, all are looked at.
    """
    if flat.numel() >= MIN_SAMPLED and num * 4 < flat.numel():
        sample = flat[::SAMPLE_STRIDE]
        expected = num * sample.numel() / flat.numel()
        # six standard deviations of a count of independent hits, so that too few is rare
        rank = math.ceil(expected + 6 * math.sqrt(expected) + 6)
        if rank < sample.numel():
            guess = sample.topk(rank, sorted=False).values.min()
            candidates = (flat >= guess).nonzero().squeeze(1)
            if num <= candidates.numel() < flat.numel():
                return candidates[flat[candidates].topk(num, sorted=False).indices]
    return flat.topk(num, sorted=False).indices


def squared_error(error: Float[Tensor, "batch width"]) -> Float[Tensor, ""]:
    """Squared error: sum over the width, mean over the batch."""
    return error.square().sum() / error.shape[0]


def aux_k(
    error: Float[Tensor, "batch d_out"],
    pre: Float[Tensor, "batch d_sae"],
    dead: Bool[Tensor, " d_sae"],
    W_dec: Float[Tensor, "d_sae d_out"],
    k: int,
) -> Float[Tensor, ""]:
    """How badly the ``k`` strongest dead latents of each token explain what is left over.

    ``error`` is x - x_hat, a constant here: live latents must not learn to leave a residual that
    dead ones can fit. ``pre`` are rectified pre-activations. The reconstruction of the error has
    no b_dec. The result is divided by the squared error of predicting the batch's mean residual,
    so it is about 1 at the start whatever the scale of the data; it is 0 when there are no dead
    latents and when the residual is the same for every token (Gao et al. 2024, A.2; their code
    turns the resulting NaN into 0).
    """
    rows = dead.nonzero().squeeze(1)
    return aux_of(error, pre.index_select(1, rows), W_dec.index_select(0, rows), k)


def aux_of(
    error: Float[Tensor, "batch d_out"],
    pre: Float[Tensor, "batch num_dead"],
    W_dec: Float[Tensor, "num_dead d_out"],
    k: int,
) -> Float[Tensor, ""]:
    """`aux_k` where only the dead latents and their rows of the decoder are given."""
    k = min(k, pre.shape[1])
    if k == 0:
        return error.new_zeros(())
    return explained_share(error.detach(), keep_top_k(pre, k) @ W_dec)


def explained_share(
    error: Float[Tensor, "batch d_in"], error_hat: Float[Tensor, "batch d_in"]
) -> Float[Tensor, ""]:
    """Squared error of ``error_hat`` as a share of that of predicting the mean of ``error``."""
    spread = squared_error(error - error.mean(0))
    # a constant residual has a spread of rounding errors, which must not be divided by
    floor = 1e-10 * squared_error(error) + torch.finfo(error.dtype).tiny
    weight = torch.where(spread > floor, 1 / spread.clamp_min(floor), 0.0)
    return weight * squared_error(error - error_hat)


def spread_of(sample: Float[Tensor, "rows d_in"]) -> Float[Tensor, ""]:
    """Mean squared distance from the mean: what predicting the mean costs."""
    return squared_error(sample - sample.mean(0))


def geometric_median(
    sample: Float[Tensor, "rows d_in"], *, max_rounds: int = 100, tolerance: float = 1e-5
) -> Float[Tensor, " d_in"]:
    """The point with the least mean distance from the rows, by Weiszfeld's iteration.

    Starts at the mean; stops when a round moves it by less than ``tolerance`` of its norm.
    """
    median = sample.mean(0)
    for _ in range(max_rounds):
        weights = 1 / (sample - median).norm(dim=-1).clamp_min(1e-8)
        previous, median = median, (weights @ sample) / weights.sum()
        if bool((median - previous).norm() <= tolerance * median.norm()):
            break
    return median


def half_width(fields: Mapping[str, Any]) -> int:
    """The power of two nearest half of ``d_in``: how many dead latents AuxK uses (Gao, A.2).

    ``fields`` are those of a config that were valid so far; without ``d_in`` it fails anyway.
    """
    return 2 ** max(0, round(math.log2(max(fields.get("d_in", 2), 2) / 2)))
