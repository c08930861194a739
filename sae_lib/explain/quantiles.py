"""Examples of how a latent fires weakly, middling and strongly, drawn without knowing its maximum.

The convention is that of Neuronpedia and SAEDashboard: intervals of activation between 0 and the
latent's maximum, of equal length; not delphi's, which are equal numbers of windows by rank. Each
inner edge is moved to the nearest edge of the histogram's buckets (an eighth of an octave, so by
at most 1/16 of itself), and by that the share of firing tokens in an interval is known exactly.

Of every bucket the k tokens with the most luck are held (see `keeper`). The k luckiest of an
interval, a union of buckets, are among them, so they are a draw of k of its tokens without
replacement, each as likely as any other.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae_lib.explain.histogram import SLOTS, Histogram, bucket_of, lower_edge
from sae_lib.explain.keeper import Keeper, largest, mixed, pack, rows_of

_CHUNK_LATENTS = 2**12
_TAG = 1
"""Keeps these draws apart from others with the same seed."""


class Intervals(NamedTuple):
    """Intervals of activation of some latents; one that no bucket falls into has share 0."""

    low: Float[Tensor, "latents intervals"]
    high: Float[Tensor, "latents intervals"]
    """That of the last is the maximum, which belongs to it; of others it does not."""

    share: Float[Tensor, "latents intervals"]
    """Of the tokens on which the latent fires, in [0, 1]."""

    row: Int64[Tensor, "latents intervals k"]
    """Tokens drawn from it; -1 where there are fewer."""


class Reservoirs:
    """Lucky tokens of every bucket of all latents."""

    def __init__(self, d_sae: int, k: int, seed: int) -> None:
        self.k, self.seed = k, seed
        self._kept = Keeper(d_sae * SLOTS, k)
        self._turn = mixed(torch.arange(d_sae if k else 0), seed + _TAG) << 33

    def move(self, latents: Int64[Tensor, " moved"], by: Int64[Tensor, " moved"]) -> None:
        """Follow the histogram, whose slots moved down; what leaves joins the lowest."""
        if not self.k:
            return
        held = self._kept.keys.view(-1, SLOTS, self.k)
        slots = torch.arange(SLOTS)
        for some, far in zip(latents.split(_CHUNK_LATENTS), by.split(_CHUNK_LATENTS), strict=True):
            old = held[some]
            leaves = (slots <= far[:, None])[:, :, None]
            source = (slots + far[:, None]).clamp(max=SLOTS - 1)
            new = old.gather(1, source[:, :, None].expand_as(old))
            new *= (slots + far[:, None] < SLOTS)[:, :, None]
            new[:, 0] = largest((old * leaves).flatten(1), self.k)
            held[some] = new

    def add(
        self,
        where: Int64[Tensor, " hits"],
        latents: Int64[Tensor, " hits"],
        slots: Int64[Tensor, " hits"],
        rows: Int64[Tensor, " tokens"],
    ) -> None:
        """Take in hits; ``where`` says on which of the tokens at ``rows`` each is.

        Every token has one lot on a circle, which every latent sees from a place of its own.
        """
        if self.k:
            lot = (mixed(rows, self.seed + _TAG) << 33)[where]
            luck = ((lot + self._turn[latents]) >> 33) & (2**31 - 1)
            self._kept.offer(latents * SLOTS + slots, pack(luck, rows[where]))

    def merge(self, other: "Reservoirs") -> None:
        """Add other tokens'; slots of both must mean the same buckets."""
        self._kept.merge(other._kept)

    def intervals(
        self,
        histogram: Histogram,
        latents: Int64[Tensor, " latents"],
        maximum: Float[Tensor, " latents"],
        num: int,
    ) -> Intervals:
        """``num`` intervals of each of ``latents``, the weakest first."""
        cuts = maximum[:, None] * torch.arange(1, num) / num
        bucket = bucket_of(cuts)
        above = lower_edge(bucket + 1)
        bucket = bucket + (above - cuts < cuts - lower_edge(bucket)).long()
        first = histogram.top[latents, None] - (SLOTS - 1)
        start = torch.zeros(len(latents), num, dtype=torch.int64)  # slot in which each begins
        start[:, 1:] = (bucket - first).clamp(1, SLOTS - 1) if num > 1 else 0
        edges = torch.cat([start, torch.full((len(latents), 1), SLOTS)], 1)
        total = torch.nn.functional.pad(histogram.counts[latents].cumsum(1), (1, 0))
        counts = total.gather(1, edges).diff(dim=1)
        low = lower_edge((first + start).clamp(min=0))
        low[:, 0] = 0
        high = torch.cat([low[:, 1:], maximum[:, None]], 1)
        keys = self._kept.keys.view(-1, SLOTS, self.k)[latents]
        slots = torch.arange(SLOTS)
        row = []
        for i in range(num):
            inside = (slots >= edges[:, i, None]) & (slots < edges[:, i + 1, None])
            row.append(rows_of(largest((keys * inside[:, :, None]).flatten(1), self.k)))
        return Intervals(
            low,
            high,
            counts / histogram.counts[latents].sum(1, keepdim=True).clamp(min=1),
            torch.stack(row, 1),
        )
