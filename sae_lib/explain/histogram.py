"""How strongly each latent fires: a histogram and two moments, exact under merging.

A bucket is an eighth of an octave: float32 activations with the same exponent and the same first
three bits of the mantissa, so its number is the activation's bits shifted by 20, and its edges
are the same for every latent and corpus:

    edge(g) = 2^(g // 8 - 127) (1 + (g mod 8) / 8)

Of each latent the 49 buckets up to that of its maximum are held apart, six octaves, and all
below together. When the maximum rises, the lowest fall into that rest; counts are whole numbers,
so when that happened does not show.

Moments are summed by octave. Float32 numbers of one octave are whole multiples of one power of 2,
and so are their float32 squares: sums in float64 are exact up to 2^28 of them, whatever the
order. Only activations outside of 2^-32 to 2^32 share an octave with others.
"""

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

SLOTS = 50
"""Buckets held per latent: one for all that is weak, and 49 up to the maximum."""

_SHIFT = 20
_OCTAVES = 64
_LOWEST_EXPONENT = 127 - 32


def bucket_of(values: Float[Tensor, "*any"]) -> Int64[Tensor, "*any"]:
    """Number of the bucket that each positive float32 is in."""
    return values.contiguous().view(torch.int32).long() >> _SHIFT


def lower_edge(bucket: Int64[Tensor, "*any"]) -> Float[Tensor, "*any"]:
    """Smallest activation of a bucket."""
    return (bucket << _SHIFT).to(torch.int32).view(torch.float32)


class Histogram:
    """Counts by bucket, and sums of activations and of their squares, of all latents."""

    def __init__(self, d_sae: int) -> None:
        self.d_sae = d_sae
        self.top: Int64[Tensor, " d_sae"] = torch.full((d_sae,), -1)
        """Bucket of the largest activation; -1 where there is none."""
        self.counts: Int64[Tensor, "d_sae slots"] = torch.zeros(d_sae, SLOTS, dtype=torch.int64)
        self._sums = torch.zeros(d_sae, _OCTAVES, dtype=torch.float64)
        self._squares = torch.zeros(d_sae, _OCTAVES, dtype=torch.float64)

    def raise_top(
        self, latents: Int64[Tensor, " hits"], buckets: Int64[Tensor, " hits"]
    ) -> tuple[Int64[Tensor, " moved"], Int64[Tensor, " moved"]]:
        """Make room for ``buckets``; returns the latents whose slots moved, and how far."""
        above = buckets > self.top[latents]
        new = self.top.clone().scatter_reduce_(0, latents[above], buckets[above], "amax")
        return self.raise_to(new)

    def raise_to(
        self, new: Int64[Tensor, " d_sae"]
    ) -> tuple[Int64[Tensor, " moved"], Int64[Tensor, " moved"]]:
        """The same for all latents at once."""
        moved = ((new > self.top) & (self.top >= 0)).nonzero().flatten()
        by = (new - self.top)[moved]
        self.top = torch.maximum(self.top, new)
        target = (torch.arange(SLOTS) - by[:, None]).clamp(min=0)
        held = self.counts[moved]
        self.counts[moved] = torch.zeros_like(held).scatter_add_(1, target, held)
        return moved, by

    def slot(
        self, latents: Int64[Tensor, " hits"], buckets: Int64[Tensor, " hits"]
    ) -> Int64[Tensor, " hits"]:
        """Which slot of its latent each bucket is in; none may be above the top."""
        return (buckets - self.top[latents] + (SLOTS - 1)).clamp(min=0)

    def add(
        self,
        latents: Int64[Tensor, " hits"],
        values: Float[Tensor, " hits"],
        slots: Int64[Tensor, " hits"],
    ) -> None:
        ones = torch.ones(1, dtype=torch.int64).expand(len(values))
        self.counts.view(-1).index_add_(0, latents * SLOTS + slots, ones)
        octave = (values.view(torch.int32).long() >> 23) - _LOWEST_EXPONENT
        cell = latents * _OCTAVES + octave.clamp(0, _OCTAVES - 1)
        self._sums.view(-1).index_add_(0, cell, values.double())
        self._squares.view(-1).index_add_(0, cell, values.square().double())

    def merge(self, other: "Histogram") -> None:
        """Add other tokens' histogram; both must have the same top (see `raise_to`)."""
        self.counts += other.counts
        self._sums += other._sums
        self._squares += other._squares

    @property
    def total(self) -> Float[Tensor, " d_sae"]:
        """Sum of each latent's activations."""
        return self._sums.sum(1)

    @property
    def total_squares(self) -> Float[Tensor, " d_sae"]:
        """Sum of their squares, each rounded to float32."""
        return self._squares.sum(1)

    def edges(self, latents: Int64[Tensor, " latents"]) -> Float[Tensor, "latents edges"]:
        """Lower edge of each slot, and the upper edge of the last; the first is 0."""
        low = self.top[latents, None] - (SLOTS - 1) + torch.arange(SLOTS + 1)
        edges = lower_edge(low.clamp(0, (255 << 3) - 1))
        edges[:, 0] = 0
        return edges

    def used(self, latents: Int64[Tensor, " latents"]) -> Bool[Tensor, "latents slots"]:
        return self.counts[latents] > 0
