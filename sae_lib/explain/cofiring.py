"""Which latents fire together, and whose decoder rows point the same way.

Latents a and b fire together on n(a, b) tokens, alone on n(a) and n(b), of N looked at:

    P(b | a) = n(a, b) / n(a)
    lift     = n(a, b) N / (n(a) n(b))            1 for independent latents
    jaccard  = n(a, b) / (n(a) + n(b) - n(a, b))  what partners are ranked by

Lift alone would put first what met once by chance; P(b | a) whatever fires everywhere.

All pairs of a token are many times its hits, so a dial sets the share of tokens that are looked
at, those with the least hash: the same ones however the corpus is shared out. On them counts are
exact: of all pairs for up to `MAX_DENSE` latents, and for more in a sorted list, until it grows
beyond its bound, drops the rarest pairs, and says so (``is_exact``).
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae_lib.explain.keeper import by_cell, mixed

MAX_DENSE = 8192
"""Latents up to which all pairs are counted in one matrix: 256 MiB."""

_MAX_ON = 512
"""Latents on that a token may have to be looked at, where there is no matrix."""

_CHUNK_PAIRS = 2**21
_CHUNK_ENTRIES = 2**24
_TAG = 2
_FLOPS_PER_PAIR = 256
"""A pair by its address costs about as much as so many operations of a product."""


class Partners(NamedTuple):
    """The first ``n`` other latents of some latents, the nearest first; -1 for none."""

    other: Int64[Tensor, "latents n"]
    value: Float[Tensor, "latents n"]
    """What they are ranked by."""

    num_tokens: Int64[Tensor, "latents n"]
    """Tokens on which both fire, of those looked at."""

    share: Float[Tensor, "latents n"]
    """P(other | this)."""

    lift: Float[Tensor, "latents n"]


class PairCounts:
    """On how many tokens any two latents fire together."""

    def __init__(self, d_sae: int, share: float, seed: int = 0, *, max_pairs: int = 2**24) -> None:
        self.d_sae, self.share, self.seed, self.max_pairs = d_sae, share, seed, max_pairs
        self._is_exact = True
        self.num_tokens = 0
        self.fired: Int64[Tensor, " d_sae"] = torch.zeros(d_sae, dtype=torch.int64)
        """Tokens on which each latent fires, of those looked at."""
        self.is_dense = d_sae <= MAX_DENSE
        side = d_sae if self.is_dense and share else 0
        self._matrix = torch.zeros(side, side, dtype=torch.int32)  # a < b alone
        self._pairs = torch.zeros(0, dtype=torch.int64)
        self._counts = torch.zeros(0, dtype=torch.int64)
        self._waiting: list[Tensor] = []
        self._num_waiting = 0

    @property
    def is_exact(self) -> bool:
        """Whether no pair had to be left out so far."""
        self._settle()
        return self._is_exact

    def add(
        self,
        token: Int64[Tensor, " hits"],
        latents: Int64[Tensor, " hits"],
        rows: Int64[Tensor, " tokens"],
    ) -> None:
        """Hits by token and then by latent; ``rows`` are the tokens' places in the corpus."""
        if not self.share:
            return
        looked = mixed(rows, self.seed + _TAG) < self.share * 2**31
        self.num_tokens += int(looked.sum())
        here = looked[token]
        token, latents = token[here], latents[here]
        self.fired += torch.bincount(latents, minlength=self.d_sae)
        sizes = torch.unique_consecutive(token, return_counts=True)[1]
        num_pairs = int((sizes * (sizes - 1) // 2).sum())
        if self.is_dense and num_pairs * _FLOPS_PER_PAIR > 2 * len(sizes) * self.d_sae**2:
            self._multiply(latents, sizes)
            return
        if not self.is_dense and bool((sizes > _MAX_ON).any()):
            self._is_exact = False
            good = (sizes <= _MAX_ON).repeat_interleave(sizes)
            latents, sizes = latents[good], sizes[sizes <= _MAX_ON]
        ends = (sizes * (sizes - 1) // 2).cumsum(0)
        low = 0
        while low < len(sizes):
            before = int(ends[low - 1]) if low else 0
            limit = torch.tensor(before + _CHUNK_PAIRS)
            high = max(low + 1, int(torch.searchsorted(ends, limit, right=True)))
            own = slice(int(sizes[:low].sum()), int(sizes[:high].sum()))
            self._count(_pairs_of(latents[own], sizes[low:high], self.d_sae))
            low = high

    def merge(self, other: "PairCounts") -> None:
        """Add what fired together on other tokens."""
        self.num_tokens += other.num_tokens
        self.fired += other.fired
        self._is_exact &= other.is_exact
        self._matrix += other._matrix
        self._settle()
        other._settle()
        self._sum(torch.cat([self._pairs, other._pairs]), torch.cat([self._counts, other._counts]))

    def partners(self, latents: Int64[Tensor, " latents"], n: int) -> Partners:
        """Those with which ``latents``, ascending, fire together most by Jaccard."""
        if not self.is_dense:
            return self._partners_of_list(latents, n)
        found = []
        for some in latents.split(max(1, _CHUNK_ENTRIES // max(1, 4 * self.d_sae))):
            counts = self._matrix[some] + self._matrix[:, some].T if self.share else None
            if counts is None:
                counts = torch.zeros(len(some), self.d_sae, dtype=torch.int32)
            counts = counts.long()
            jaccard = counts / (self.fired[some, None] + self.fired - counts).clamp(min=1)
            keys = ((jaccard * 2**30).long() << 32) | (self.d_sae - torch.arange(self.d_sae))
            keys *= counts > 0
            top = keys.topk(min(n, self.d_sae), dim=1).values
            other = torch.where(top > 0, self.d_sae - (top & (2**32 - 1)), -1)
            count = counts.gather(1, other.clamp(min=0)) * (other >= 0)
            found.append(self._described(some, _widened(other, n, -1), _widened(count, n, 0)))
        return _joined(found, n)

    def _partners_of_list(self, latents: Int64[Tensor, " latents"], n: int) -> Partners:
        self._settle()
        a, b = self._pairs // self.d_sae, self._pairs % self.d_sae
        this, that = torch.cat([a, b]), torch.cat([b, a])
        count = self._counts.repeat(2)
        jaccard = count / (self.fired[this] + self.fired[that] - count)
        # jaccard and the other latent fit into one key; the count follows from the pair again
        keys = ((jaccard * 2**30).long() << 32) | (self.d_sae - that)
        this, keys = by_cell(this, keys)
        _, place, sizes = torch.unique_consecutive(this, return_inverse=True, return_counts=True)
        rank = torch.arange(len(this)) - (sizes.cumsum(0) - sizes)[place]
        this, keys, rank = (part[rank < n] for part in (this, keys, rank))
        other = torch.full((self.d_sae, n), -1)
        other[this, rank] = self.d_sae - (keys & (2**32 - 1))
        other = other[latents]
        owner = latents[:, None].expand_as(other)
        key = torch.minimum(owner, other) * self.d_sae + torch.maximum(owner, other)
        count = torch.zeros_like(other)
        if len(self._pairs):
            at = torch.searchsorted(self._pairs, key.clamp(min=0)).clamp(max=len(self._pairs) - 1)
            count = self._counts[at] * (other >= 0)
        return self._described(latents, other, count)

    def _described(
        self, latents: Int64[Tensor, " latents"], other: Tensor, count: Tensor
    ) -> Partners:
        own = self.fired[latents, None]
        their = self.fired[other.clamp(min=0)]
        return Partners(
            other,
            count / (own + their - count).clamp(min=1),
            count,
            count / own.clamp(min=1),
            count * self.num_tokens / (own * their).clamp(min=1),
        )

    def _count(self, pairs: Int64[Tensor, " pairs"]) -> None:
        if self.is_dense:
            ones = torch.ones(1, dtype=torch.int32).expand(len(pairs))
            self._matrix.view(-1).index_add_(0, pairs, ones)
            return
        self._waiting.append(pairs)
        self._num_waiting += len(pairs)
        if self._num_waiting > 4 * _CHUNK_PAIRS:
            self._settle()

    def _multiply(self, latents: Int64[Tensor, " hits"], sizes: Int64[Tensor, " tokens"]) -> None:
        """The same counts as a product of matrices of zeros and ones, exact in float32."""
        for low in range(0, len(sizes), 4096):
            high = min(low + 4096, len(sizes))
            own = latents[int(sizes[:low].sum()) : int(sizes[:high].sum())]
            on = torch.zeros(high - low, self.d_sae)
            on[torch.arange(high - low).repeat_interleave(sizes[low:high]), own] = 1
            self._matrix += (on.T @ on).triu_(1).int()

    def _settle(self) -> None:
        if not self._waiting:
            return
        pairs, counts = torch.cat(self._waiting).unique(return_counts=True)
        self._waiting, self._num_waiting = [], 0
        self._sum(torch.cat([self._pairs, pairs]), torch.cat([self._counts, counts]))

    def _sum(self, pairs: Int64[Tensor, " pairs"], counts: Int64[Tensor, " pairs"]) -> None:
        pairs, order = pairs.sort(stable=True)
        self._pairs, place = torch.unique_consecutive(pairs, return_inverse=True)
        self._counts = torch.zeros(len(self._pairs), dtype=torch.int64)
        self._counts.index_add_(0, place, counts[order])
        if len(self._pairs) > self.max_pairs:
            order = self._counts.argsort(descending=True, stable=True)
            kept = order[: self.max_pairs // 2].sort().values
            self._pairs, self._counts = self._pairs[kept], self._counts[kept]
            self._is_exact = False


def decoder_neighbours(
    rows: Float[Tensor, "d_sae width"], latents: Int64[Tensor, " latents"], n: int
) -> tuple[Int64[Tensor, "latents n"], Float[Tensor, "latents n"]]:
    """The ``n`` of ``latents`` nearest to each by the cosine of their rows, and that cosine.

    The nearest first; -1 and 0 where there are no more. Rows without length have no neighbours.
    """
    own = rows[latents].float()
    norm = own.norm(dim=1, keepdim=True)
    own = own / norm.where(norm > 0, 1)
    width = min(n, max(len(latents) - 1, 0))
    step = max(1, _CHUNK_ENTRIES // max(1, len(latents)))
    other = torch.full((len(latents), n), -1, device=rows.device)
    cosine = torch.zeros(len(latents), n, device=rows.device)
    latents = latents.to(rows.device)
    for low in range(0, len(latents) if width else 0, step):
        part = own[low : low + step] @ own.T
        at = torch.arange(len(part), device=rows.device)
        part[at, at + low] = -torch.inf
        part[:, norm[:, 0] == 0] = -torch.inf
        found = part.topk(width, dim=1)
        good = (norm[low : low + step] > 0) & found.values.isfinite()
        other[low : low + step, :width] = torch.where(good, latents[found.indices], -1)
        cosine[low : low + step, :width] = torch.where(good, found.values, 0.0)
    return other.cpu(), cosine.cpu()


def _pairs_of(
    latents: Int64[Tensor, " hits"], sizes: Int64[Tensor, " tokens"], d_sae: int
) -> Int64[Tensor, " pairs"]:
    """a d_sae + b of all a < b that fire on one token."""
    place = torch.arange(len(latents))
    partners = sizes.cumsum(0).repeat_interleave(sizes) - place - 1  # hits that follow
    ends = partners.cumsum(0)
    second = torch.arange(int(ends[-1]) if len(ends) else 0)
    second += (place + 1 - ends + partners).repeat_interleave(partners)
    return latents[second] + (latents * d_sae).repeat_interleave(partners)


def _widened(part: Tensor, n: int, value: int) -> Tensor:
    return torch.nn.functional.pad(part, (0, n - part.shape[1]), value=value)


def _joined(found: list[Partners], n: int) -> Partners:
    if found:
        return Partners(*(torch.cat(parts) for parts in zip(*found, strict=True)))
    none = torch.zeros(0, n, dtype=torch.int64)
    return Partners(none, none.float(), none, none.float(), none.float())
