"""All stretches of text to show of some latents, before and after it is known what they do there.

Four kinds (`ExampleRow.kind`): where a latent is strongest, where it is as strong as an interval
says, where it is silent, and where it is silent though a near one is strong.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae_lib.explain.cofiring import Partners
from sae_lib.explain.examples import (
    ContextSource,
    ExamplesConfig,
    Windows,
    choose_examples,
    read_windows,
)
from sae_lib.explain.near_miss import propose
from sae_lib.explain.statistics import LatentStatistics
from sae_lib.explain.vocabulary import Vocabulary
from sae_lib.warehouse.rows import ExampleRow, LatentPairRow

KINDS = ("top", "quantile", "silent", "near_miss")

_PROPOSED = 4
"""Places looked at per wanted near miss, since the latent may fire there as well."""


class Near(NamedTuple):
    """The latents near to each of some latents."""

    latents: Int64[Tensor, " latents"]
    by_decoder: Int64[Tensor, "latents n"]
    cosine: Float[Tensor, "latents n"]
    cofiring: Partners

    def part(self, low: int, high: int) -> "Near":
        """Those of some of the latents."""
        own = slice(low, high)
        return Near(
            self.latents[own],
            self.by_decoder[own],
            self.cosine[own],
            Partners(*(part[own] for part in self.cofiring)),
        )


class Places(NamedTuple):
    """Stretches of text, by kind, then by latent, then in the order to show them."""

    latent: Int64[Tensor, " places"]
    kind: Int64[Tensor, " places"]
    """Index into `KINDS`."""

    interval: Int64[Tensor, " places"]
    """-1 where the kind has none."""

    low: Float[Tensor, " places"]
    high: Float[Tensor, " places"]
    share: Float[Tensor, " places"]
    other: Int64[Tensor, " places"]
    """-1 where the kind has none."""

    windows: Windows

    def where(self, good: Bool[Tensor, " places"]) -> "Places":
        """Some of the places."""
        windows = Windows(*(part[good] for part in self.windows))
        return Places(*(part[good] for part in self[:-1]), windows=windows)


def choose_places(
    cfg: ExamplesConfig, split: ContextSource, statistics: LatentStatistics, near: Near
) -> Places:
    """Everything to look at of the latents of ``near``; of near misses more than are wanted."""
    latents = near.latents
    owners, top = choose_examples(cfg, split, latents, statistics.candidates(latents))
    found = [_places(owners, 0, top)]
    if cfg.num_intervals:
        drawn = statistics.intervals(latents, cfg.num_intervals)
        there = drawn.row >= 0
        owners, interval, _ = there.nonzero(as_tuple=True)
        places = _places(latents[owners], 1, read_windows(split, drawn.row[there], cfg.radius))
        found.append(
            places._replace(
                interval=interval,
                low=drawn.low[owners, interval],
                high=drawn.high[owners, interval],
                share=drawn.share[owners, interval].float(),
            )
        )
    if cfg.num_silent:
        row = statistics.silent_rows(latents, cfg.num_silent)
        owners = (row >= 0).nonzero(as_tuple=True)[0]
        windows = read_windows(split, row[row >= 0], cfg.radius)
        found.append(_places(latents[owners], 2, windows))
    neighbours = torch.cat([near.by_decoder, near.cofiring.other], 1)
    if cfg.num_near_misses and neighbours.shape[1]:
        places = -(-_PROPOSED * cfg.num_near_misses // neighbours.shape[1])
        rows = statistics.candidates(neighbours.clamp(min=0).flatten()).row[:, :places]
        misses = propose(neighbours, rows.view(*neighbours.shape, -1))
        there = misses.row >= 0
        windows = read_windows(split, misses.row[there], cfg.radius)
        owners = there.nonzero(as_tuple=True)[0]
        found.append(_places(latents[owners], 3, windows)._replace(other=misses.other[there]))
    parts = [torch.cat(columns) for columns in zip(*(f[:-1] for f in found), strict=True)]
    windows = [torch.cat(columns) for columns in zip(*(f.windows for f in found), strict=True)]
    return Places(*parts, windows=Windows(*windows))


def _places(latents: Int64[Tensor, " places"], kind: int, windows: Windows) -> Places:
    nothing = torch.full_like(latents, -1)
    zero = torch.zeros(len(latents))
    return Places(
        latents, torch.full_like(latents, kind), nothing, zero, zero, zero, nothing, windows
    )


def keep_silent(
    cfg: ExamplesConfig, places: Places, activations: Float[Tensor, "places width"]
) -> tuple[Places, Float[Tensor, "kept width"]]:
    """Without those that should be silent and are not, and without surplus near misses."""
    silent = (activations == 0).all(1) | (places.kind < 2)
    places, activations = places.where(silent), activations[silent]
    is_miss = places.kind == 3
    _, place, sizes = torch.unique_consecutive(
        places.latent[is_miss], return_inverse=True, return_counts=True
    )
    rank = torch.arange(len(place)) - (sizes.cumsum(0) - sizes)[place]
    good = torch.ones(len(places.latent), dtype=torch.bool)
    good[is_miss] = rank < cfg.num_near_misses
    return places.where(good), activations[good]


def example_rows(
    places: Places, activations: Float[Tensor, "places width"], vocabulary: Vocabulary
) -> list[ExampleRow]:
    """One row per place, in order; ``activations`` are those of the windows' tokens."""
    windows = places.windows
    centre = windows.rows.shape[1] // 2
    # what is inside is one stretch around the centre
    before, after = windows.inside[:, :centre].sum(1), windows.inside[:, centre:].sum(1)
    columns = zip(
        *(part.tolist() for part in places[:-1]),
        (centre - before).tolist(),
        (centre + after).tolist(),
        windows.document.tolist(),
        windows.position.tolist(),
        strict=True,
    )
    text, found, rank, last = vocabulary.text, [], 0, None
    for i, column in enumerate(columns):
        latent, kind, interval, low, high, share, other, first, end, document, position = column
        rank = rank + 1 if (latent, kind, interval) == last else 0
        last = (latent, kind, interval)
        # `or` makes one object of all zeros, which are most of them
        shown = [value or 0.0 for value in activations[i, first:end].tolist()]
        found.append(
            ExampleRow(
                latent=latent,
                rank=rank,
                document=document,
                position=position,
                peak=centre - first,
                tokens=[text[t] for t in windows.token_ids[i, first:end].tolist()],
                activations=shown,
                max_activation=shown[centre - first],
                kind=KINDS[kind],
                interval=interval if kind == 1 else None,
                low=low if kind == 1 else None,
                high=high if kind == 1 else None,
                share=share if kind == 1 else None,
                other=other if kind == 3 else None,
            )
        )
    return found


def pair_rows(near: Near, *, is_exact: bool) -> list[LatentPairRow]:
    """The lists of ``near`` as rows, by latent."""
    by_decoder = zip(near.by_decoder.tolist(), near.cosine.tolist(), strict=True)
    cofiring = zip(*(part.tolist() for part in near.cofiring), strict=True)
    found = []
    for latent, (others, cosines), columns in zip(
        near.latents.tolist(), by_decoder, cofiring, strict=True
    ):
        for rank, (other, cosine) in enumerate(zip(others, cosines, strict=True)):
            if other >= 0:
                found.append(LatentPairRow(latent, other, "decoder", rank, cosine))
        for rank, (other, *numbers) in enumerate(zip(*columns, strict=True)):
            if other >= 0:
                found.append(
                    LatentPairRow(latent, other, "cofire", rank, *numbers, is_exact=is_exact)
                )
    return found
