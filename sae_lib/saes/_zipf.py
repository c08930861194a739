"""How often each latent should fire: budgets by Zipf's law, and the loss of those far below it.

Latents are ranked by how often they fire, r = 0, 1, ...; of a budget of ``total`` firings the
latent of rank r gets

    q_r = total (r + 1 + offset)^-exponent / sum_s (s + 1 + offset)^-exponent

(Ayonrinde 2024; Zipf-Mandelbrot), at most one per token. ``exponent`` 0 is the same for all.
"""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def as_large_as_k(fields: Mapping[str, Any]) -> float:
    """An offset with which the most frequent latent fires on about 1 / ln(d_sae / k) of tokens.

    ``fields`` are those of a config that were valid so far.
    """
    return float(fields.get("k", 1))


def zipf_quotas(
    num: int, total: int, exponent: float, offset: float, cap: int
) -> Float[Tensor, " num"]:
    """q_r for ``num`` ranks, float64 on the CPU; none above ``cap``, the sum exactly ``total``.

    What the cap cuts off goes to the other ranks in proportion. ``total`` must be at most
    ``num * cap``.
    """
    weights = (torch.arange(num, dtype=torch.float64) + 1 + offset) ** -exponent
    quotas = total * weights / weights.sum()
    while bool((quotas > cap).any()):
        num_full = int((quotas >= cap).sum())  # quotas fall with the rank, so these come first
        rest = weights[num_full:]
        quotas = torch.full((num,), float(cap), dtype=torch.float64)
        if num_full < num:
            quotas[num_full:] = (total - cap * num_full) * rest / rest.sum()
    return quotas


def whole_quotas(quotas: Float[Tensor, " num"], total: int, draw: float) -> Int64[Tensor, " num"]:
    """Quotas rounded up or down so that they sum to ``total``.

    The missing units go to the largest fractional parts, the earlier of equal ones. Where that
    leaves a rank with nothing, and would in every batch of this size, the rounding is drawn: rank
    r gets the whole numbers between q_0 + ... + q_(r-1) and q_0 + ... + q_r, all shifted by the
    one ``draw`` from [0, 1). The sum is still exact, and every rank gets its quota on average.
    """
    counts = quotas.floor().to(torch.int64)
    missing = total - int(counts.sum())
    largest = (quotas - counts).argsort(descending=True, stable=True)[:missing]
    counts[largest] += 1
    if bool((counts > 0).all()):
        return counts
    sums = (quotas.cumsum(0) + draw).floor().to(torch.int64)
    sums[-1] = total  # what the sum would be without rounding errors
    return sums.diff(prepend=sums.new_zeros(1))


@torch.no_grad()
def follow_rates_(
    rates: Float[Tensor, " d_sae"],
    num: Int64[Tensor, ""],
    now: Float[Tensor, " d_sae"],
    beta: float,
) -> None:
    """Move running mean rates towards those of a batch; the mean of all until they are many."""
    keeps = (num / (num + 1)).clamp_max(beta)
    rates.copy_(keeps * rates + (1 - keeps) * now.to(rates.dtype))
    num.add_(1)


def ranks_of(rates: Float[Tensor, " d_sae"]) -> Int64[Tensor, " d_sae"]:
    """How many latents fire more often than each, with equal ones in their own order."""
    order = rates.argsort(descending=True, stable=True)
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(order), device=order.device)
    return ranks


def underused(
    rates: Float[Tensor, " d_sae"],
    expected: Float[Tensor, " d_sae"],
    dead: Bool[Tensor, " d_sae"],
    share: float,
) -> Bool[Tensor, " d_sae"]:
    """Latents that are dead or fire less than ``share`` of what their rank lets expect."""
    return dead | (rates < share * expected)
