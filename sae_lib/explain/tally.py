"""How much of each latent's activation falls on which token type, and the keywords that follow.

A latent's keyword score of a token type t is the term of t in KL(latent || corpus),

    score(t) = p(t) ln(p(t) / q(t)),   p = share of the latent's activation, q = of the tokens,

in nats: large where t carries much of the activation *and* more than its frequency explains. It
takes the place of the tf-idf that explanations.md (section 1) suggests, needs no document counts,
and is at most 0 for a word the latent treats like any other.

Activations are rounded to multiples of 2^-28 before they are summed in float64, so that sums up to
2^25 are exact and do not depend on the order of the tokens.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

_BUFFER_PAIRS = 2**22
"""Additions held back before equal pairs are summed: 64 MiB."""


_MAX_CELLS = 2**22
"""Pairs that there can be, up to which each has a cell of its own: 32 MiB."""

_GRID = 2.0**28


class TokenTally:
    """Sums of activation per (latent, token type).

    Held in one matrix where it is small (``d_sae`` given), and else as a sorted list: beyond
    ``max_pairs`` pairs the smallest sums are dropped, and ``is_exact`` turns false.
    """

    def __init__(self, vocab_size: int, max_pairs: int = 2**24, *, d_sae: int = 0) -> None:
        self.vocab_size = vocab_size
        self._cells: Tensor | None = None
        if 0 < d_sae * vocab_size <= min(_MAX_CELLS, max_pairs):
            self._cells = torch.zeros(d_sae * vocab_size, dtype=torch.float64)
        self.max_pairs = max_pairs
        self.is_exact = True
        self._pairs = torch.zeros(0, dtype=torch.int64)
        self._sums = torch.zeros(0, dtype=torch.float64)
        self._waiting: list[tuple[Tensor, Tensor]] = []
        self._num_waiting = 0

    def add(
        self,
        latents: Int[Tensor, " hits"],
        token_ids: Int[Tensor, " hits"],
        values: Float[Tensor, " hits"],
    ) -> None:
        pairs = latents * self.vocab_size + token_ids
        rounded = (values * _GRID).round_().double()  # in units of the grid; exact in float32
        if self._cells is not None:
            self._cells.index_add_(0, pairs, rounded)
            return
        self._waiting.append((pairs, rounded))
        self._num_waiting += len(values)
        if self._num_waiting > _BUFFER_PAIRS:
            self._settle()

    def merge(self, other: "TokenTally") -> None:
        if self._cells is not None and other._cells is not None:
            self._cells += other._cells
            return
        other._settle()
        self._waiting.append((other._pairs, other._sums))
        self.is_exact &= other.is_exact
        self._settle()

    def pairs(
        self,
    ) -> tuple[Int[Tensor, " pairs"], Int[Tensor, " pairs"], Float[Tensor, " pairs"]]:
        """Latent, token type and summed activation, by latent and then by token type."""
        if self._cells is not None:
            found = self._cells.nonzero().flatten()
            return found // self.vocab_size, found % self.vocab_size, self._cells[found] / _GRID
        self._settle()
        return self._pairs // self.vocab_size, self._pairs % self.vocab_size, self._sums / _GRID

    def _settle(self) -> None:
        if not self._waiting:
            return
        pairs = torch.cat([self._pairs, *(pairs for pairs, _ in self._waiting)])
        sums = torch.cat([self._sums, *(sums for _, sums in self._waiting)])
        self._pairs, place = torch.unique(pairs, return_inverse=True)
        self._sums = torch.zeros(len(self._pairs), dtype=torch.float64).index_add_(0, place, sums)
        self._waiting, self._num_waiting = [], 0
        if len(self._pairs) > self.max_pairs:
            kept = self._sums.topk(self.max_pairs).indices.sort().values
            self._pairs, self._sums = self._pairs[kept], self._sums[kept]
            self.is_exact = False


class Keywords(NamedTuple):
    """Token types of one latent, most telling first."""

    token_ids: list[int]
    scores: list[float]


def keywords(
    tally: TokenTally,
    token_counts: Int[Tensor, " vocab"],
    is_word: Tensor,
    *,
    num_keywords: int,
    rank_by: str,
) -> dict[int, Keywords]:
    """Keywords of every latent that has any, by "contribution" (see above) or "mean_activation".

    The mean activation of a token type is over all its occurrences in the corpus, so one rare
    token may lead; its score is in units of activation. Ties go to the smaller token id. Only
    types with ``is_word``, a bool per type, and with a positive score are considered.
    """
    latents, types, sums = tally.pairs()
    counts = token_counts[types].double()
    if rank_by == "contribution":
        share = sums / _sum_by(latents, sums)
        scores = share * (share * token_counts.sum() / counts).log()
    else:
        scores = sums / counts
    good = is_word[types] & (scores > 0)
    latents, types, scores = latents[good], types[good], scores[good]
    order = scores.argsort(descending=True, stable=True)
    order = order[latents[order].argsort(stable=True)]
    latents, types, scores = latents[order], types[order], scores[order]
    owners, sizes = torch.unique_consecutive(latents, return_counts=True)
    found, start = {}, 0
    for latent, size in zip(owners.tolist(), sizes.tolist(), strict=True):
        first = slice(start, start + min(size, num_keywords))
        found[latent] = Keywords(types[first].tolist(), scores[first].tolist())
        start += size
    return found


def _sum_by(
    latents: Int[Tensor, " pairs"], sums: Float[Tensor, " pairs"]
) -> Float[Tensor, " pairs"]:
    """The latent's whole sum, repeated for each of its pairs."""
    _, place, sizes = torch.unique_consecutive(latents, return_inverse=True, return_counts=True)
    return torch.zeros(len(sizes), dtype=sums.dtype).index_add_(0, place, sums)[place]
