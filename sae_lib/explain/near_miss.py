"""Text on which a latent does not fire: anywhere, and where one would expect it to.

*Silent* examples come from a pool of contexts that were drawn for all latents together, with
which latents fire in each. A context is in the pool by the luck of its hash, so the ones of the
pool in which a latent is silent are drawn from all in which it is. Of a latent that fires almost
everywhere the pool may hold fewer than are wanted, or none.

*Near misses* are places where a neighbour of the latent is strong, by its decoder row or because
both often fire together, while the latent itself is silent on the whole stretch that is shown:
the hard negatives of explanations.md, section 5.2.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from sae_lib.explain.keeper import Keeper, largest, mixed, pack, rows_of

POOL = 256
"""Contexts in the pool."""

_CHUNK_ENTRIES = 2**22
_TAG = 3


class SilentPool:
    """Contexts drawn from a corpus, and which latents fire in them."""

    def __init__(self, d_sae: int, seed: int, size: int = POOL) -> None:
        self.d_sae, self.seed, self.size = d_sae, seed, size
        self.keys: Int64[Tensor, " pool"] = torch.zeros(size, dtype=torch.int64)
        """Luck and number of each context, the luckiest first."""
        self.row: Int64[Tensor, " pool"] = torch.full((size,), -1)
        """A kept token drawn from each."""
        self.fires: Bool[Tensor, "pool d_sae"] = torch.zeros(size, d_sae, dtype=torch.bool)

    def add(
        self,
        token: Int64[Tensor, " hits"],
        latents: Int64[Tensor, " hits"],
        rows: Int64[Tensor, " tokens"],
        context: Int64[Tensor, " tokens"],
    ) -> None:
        """Hits of whole contexts; ``context`` is the number of each token's."""
        if not self.size or not len(context):
            return
        contexts, place = context.unique(return_inverse=True)
        keys = pack(mixed(contexts, self.seed + _TAG), contexts)
        lucky = Keeper(1, min(self.size, len(keys)))
        lucky.offer(torch.zeros_like(keys), keys)
        lucky_keys = lucky.keys[0][lucky.keys[0] > self.keys[-1]]
        if not len(lucky_keys):
            return
        number = torch.full((len(contexts),), -1)
        number[torch.searchsorted(contexts, rows_of(lucky_keys))] = torch.arange(len(lucky_keys))
        number = number[place]
        own = number >= 0
        drawn = torch.zeros_like(lucky_keys).scatter_reduce_(
            0, number[own], pack(mixed(rows[own], self.seed + _TAG), rows[own]), "amax"
        )
        fires = torch.zeros(len(lucky_keys), self.d_sae, dtype=torch.bool)
        here = number[token] >= 0
        fires[number[token[here]], latents[here]] = True
        self._join(lucky_keys, rows_of(drawn), fires)

    def merge(self, other: "SilentPool") -> None:
        """Add what was drawn from other contexts."""
        self._join(other.keys, other.row, other.fires)

    def _join(self, keys: Int64[Tensor, " new"], row: Int64[Tensor, " new"], fires: Tensor) -> None:
        everything = torch.cat([self.keys, keys])
        order = everything.argsort(descending=True)[: self.size]
        self.keys = everything[order]
        self.row = torch.cat([self.row, row])[order]
        self.fires = torch.cat([self.fires, fires])[order]

    def rows(self, latents: Int64[Tensor, " latents"], k: int) -> Int64[Tensor, "latents k"]:
        """A token in each of up to ``k`` contexts in which a latent is silent; -1 for none."""
        found = [torch.zeros(0, k, dtype=torch.int64)]
        held = self.keys > 0
        place = torch.arange(self.size)
        for some in latents.split(max(1, _CHUNK_ENTRIES // max(1, self.size))):
            luck = mixed(rows_of(self.keys), some[:, None], self.seed + _TAG)
            silent = held & ~self.fires[:, some].T
            # the lot is drawn per latent, so that not all show the same contexts
            best = largest(pack(luck, place.expand_as(luck)) * silent, min(k, self.size))
            at = rows_of(best)
            row = torch.where(at >= 0, self.row[at.clamp(min=0)], -1)
            found.append(torch.nn.functional.pad(row, (0, k - row.shape[1]), value=-1))
        return torch.cat(found)


class Misses(NamedTuple):
    """Places that may be near misses of some latents, best first; -1 for none."""

    row: Int64[Tensor, "latents places"]
    other: Int64[Tensor, "latents places"]
    """The neighbour that fires there."""


def propose(
    neighbours: Int64[Tensor, "latents neighbours"],
    strongest: Int64[Tensor, "latents neighbours places"],
) -> Misses:
    """Of each neighbour the strongest place, then of each the second, and so on.

    A place that several neighbours offer is taken from the first of them.
    """
    num, _, places = strongest.shape
    row = strongest.transpose(1, 2).reshape(num, -1)
    other = neighbours[:, None, :].expand(-1, places, -1).reshape(num, -1)
    row = torch.where(other >= 0, row, -1)
    repeats = ((row[:, :, None] == row[:, None, :]).tril(-1)).any(2)
    row = torch.where(repeats, -1, row)
    return Misses(row, torch.where(row >= 0, other, -1))
