"""Windows of held-out text on which chosen latents fire or do not, for questions about them.

The strongest place of each stretch of one document in one context is where a latent's active
windows may lie, so that two of them never share text. Inactive windows lie around random tokens
and are those in which the latent fires nowhere: this is checked, not assumed. No window has the
same tokens as another of the latent or as an example that was shown to whoever explained it.
"""

import tempfile
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.evaluate._judgements import importance_weights, rank_groups
from sae_lib.evaluate._judges.base import Excerpt
from sae_lib.explain.examples import ContextSource, Windows, read_windows
from sae_lib.explain.run import read_contexts
from sae_lib.explain.vocabulary import Vocabulary
from sae_lib.saes.base import SparseCoder

_CHUNK_CODES = 2**24
"""Codes (tokens x latents) held at a time: 64 MiB."""

_OVERSAMPLE = 2
"""Places looked at per wanted window, since windows that repeat others are left out."""


class Window(NamedTuple):
    """A window and what the latent does in it."""

    excerpt: Excerpt
    activations: tuple[float, ...]
    """One per token."""

    peak: int
    """Place of the token it lies around."""

    @property
    def strongest(self) -> float:
        return max(self.activations)


class Wanted(NamedTuple):
    """How many windows of which sort."""

    num_top: int
    num_weighted: int
    num_inactive: int
    num_quantiles: int
    per_quantile: int
    radius: int


class LatentWindows(NamedTuple):
    """Windows of one latent; fewer than wanted where there are fewer."""

    top: list[Window]
    """Those in which it is strongest."""

    weighted: list[Window]
    """Drawn from the others with chances that go with the squared activation."""

    quantiles: list[list[Window]]
    """Drawn from equal groups by rank, the strongest group first."""

    inactive: list[Window]

    @property
    def active(self) -> list[Window]:
        """All of ``quantiles``."""
        return [window for group in self.quantiles for window in group]


class ContextCodes(NamedTuple):
    """What chosen latents do on the kept tokens of some contexts."""

    split: ContextSource
    row: Int[Tensor, " tokens"]
    """Place of each kept token in the corpus, ascending."""

    token: Int[Tensor, " tokens"]
    document: Int[Tensor, " tokens"]
    position: Int[Tensor, " tokens"]
    """Place in the document."""

    z: dict[str, Float[Tensor, "tokens _"]]
    """Codes of the chosen latents, by coder."""

    latents: dict[str, Int[Tensor, " _"]]

    @property
    def segment(self) -> Int[Tensor, " tokens"]:
        """Number of the stretch of one document in one context."""
        both = self.row // self.split.context * 2**32 + self.document
        return torch.unique_consecutive(both, return_inverse=True)[1]

    def place(self) -> Int[Tensor, " corpus"]:
        """Kept token at each place of the corpus, -1 for none."""
        num_contexts = int(self.row[-1]) // self.split.context + 1
        found = torch.full((num_contexts * self.split.context,), -1)
        found[self.row] = torch.arange(len(self.row))
        return found


def num_contexts_of(split: ContextSource, tokens: int) -> int:
    """Contexts that hold about ``tokens`` tokens, at least one, at most all."""
    return max(1, min(split.num_contexts, tokens // split.context))


class SiteText(NamedTuple):
    """What the model holds at a site on the kept tokens of some contexts, read once."""

    split: ContextSource
    row: Int[Tensor, " tokens"]
    """Place of each kept token in the corpus, ascending."""

    token: Int[Tensor, " tokens"]
    document: Int[Tensor, " tokens"]
    position: Int[Tensor, " tokens"]
    x: Float[Tensor, "tokens d_in"]
    """float32, in a file that is mapped into memory and goes away with this object."""

    def count_firing(self, coder: SparseCoder[Any]) -> Int[Tensor, " d_sae"]:
        """Tokens on which each latent fires."""
        counts = torch.zeros(coder.d_sae, dtype=torch.long)
        for z in self._codes(coder):
            counts += (z > 0).sum(0).cpu()
        return counts

    def codes(
        self, coders: Mapping[str, SparseCoder[Any]], latents: Mapping[str, Int[Tensor, " _"]]
    ) -> ContextCodes:
        """What ``latents`` of each coder do."""
        z = {}
        for name, coder in coders.items():
            own = latents[name].to(coder.W_dec.device)
            z[name] = torch.cat([codes[:, own].float().cpu() for codes in self._codes(coder)])
        return ContextCodes(
            self.split, self.row, self.token, self.document, self.position, z, dict(latents)
        )

    def _codes(self, coder: SparseCoder[Any]) -> Iterator[Float[Tensor, "tokens d_sae"]]:
        with torch.no_grad():
            for part in self.x.split(max(1, _CHUNK_CODES // coder.d_sae)):
                yield coder.encode(part.to(coder.W_dec.device, torch.float32))


def read_site(
    model: Any, split: ContextSource, site: str, *, num_contexts: int, batch_contexts: int = 32
) -> SiteText:
    """The first contexts of ``split`` as the model reads them."""
    held = split.rows(torch.arange(num_contexts))
    shape = (int(held.keep.sum()), model.width(site))
    with tempfile.TemporaryFile() as file:  # the map outlives the handle
        x = torch.from_numpy(np.memmap(file, dtype=np.float32, mode="w+", shape=shape))
    done = 0
    for batch in read_contexts(model, split, site, torch.arange(num_contexts), batch_contexts):
        kept = batch.x[batch.keep.to(batch.x.device)].float().cpu()
        x[done : done + len(kept)] = kept
        done += len(kept)
    return SiteText(
        split,
        held.keep.flatten().nonzero().flatten(),
        held.tokens[held.keep],
        held.document[held.keep],
        held.position[held.keep],
        x,
    )


def choose_latents(
    counts: Sequence[Int[Tensor, " d_sae"]], *, at_least: int, num: int, seed: int
) -> tuple[Int[Tensor, " chosen"], int]:
    """Up to ``num`` latents at random of those that fire often enough in each of ``counts``.

    In random order, with the number of those that might have been chosen.
    """
    often = torch.stack([count >= at_least for count in counts]).all(0).nonzero().flatten()
    order = torch.randperm(len(often), generator=torch.Generator().manual_seed(seed))
    return often[order[:num]], len(often)


def sample_windows(
    codes: ContextCodes,
    name: str,
    vocabulary: Vocabulary,
    wanted: Wanted,
    *,
    seed: int,
    seen: Mapping[int, Collection[tuple[str, ...]]] | None = None,
) -> list[LatentWindows]:
    """Windows of each chosen latent of a coder, in their order.

    ``seen`` are token strings, by latent, that no window may have.
    """
    best, first = _strongest_places(codes, name)
    around, is_inactive = _inactive_places(codes, name, wanted, seed)
    latents = codes.latents[name].tolist()
    plans = [
        _plan(best[:, i], first[:, i], around[is_inactive[:, i]], wanted, seed, latent)
        for i, latent in enumerate(latents)
    ]
    tokens = torch.cat([torch.cat(plan) for plan in plans]) if plans else torch.zeros(0).long()
    held = read_windows(codes.split, codes.row[tokens], wanted.radius)
    place = codes.place()
    found, start = [], 0
    for i, (latent, plan) in enumerate(zip(latents, plans, strict=True)):
        size = sum(map(len, plan))
        own = Windows(*(part[start : start + size] for part in held))
        windows = iter(_windows(codes, codes.z[name][:, i], own, place, vocabulary))
        parts = [[next(windows) for _ in part] for part in plan]
        found.append(_without_repeats(parts, wanted, set((seen or {}).get(latent, ()))))
        start += size
    return found


def _strongest_places(
    codes: ContextCodes, name: str
) -> tuple[Float[Tensor, "segments latents"], Int[Tensor, "segments latents"]]:
    """Largest activation in each segment and the first token that has it."""
    segment, z = codes.segment, codes.z[name]
    num, tokens = int(segment[-1]) + 1, torch.arange(len(z))
    best = torch.zeros(num, z.shape[1])
    first = torch.full((num, z.shape[1]), len(z))
    for part in torch.arange(z.shape[1]).split(max(1, _CHUNK_CODES // len(z))):
        own = z[:, part]
        where = segment[:, None].expand_as(own)
        top = torch.zeros(num, len(part)).scatter_reduce_(0, where, own, "amax")
        at = torch.where((own == top[segment]) & (own > 0), tokens[:, None], len(z))
        best[:, part] = top
        first[:, part] = first[:, part].scatter_reduce_(0, where, at, "amin")
    return best, first


def _inactive_places(
    codes: ContextCodes, name: str, wanted: Wanted, seed: int
) -> tuple[Int[Tensor, " places"], Tensor]:
    """Random tokens, one of a segment, and for each latent whether the window there is silent."""
    segment = codes.segment
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(segment), generator=generator)
    first = torch.full((int(segment[-1]) + 1,), len(segment))
    rank = torch.arange(len(segment))
    first.scatter_reduce_(0, segment[shuffled], rank, "amin")
    order = torch.randperm(len(first), generator=generator)
    places = shuffled[first[order][: max(512, 16 * wanted.num_inactive)]]
    held = read_windows(codes.split, codes.row[places], wanted.radius)
    at = codes.place()[held.rows]
    inside = held.inside & (at >= 0)
    z = codes.z[name]
    silent = torch.zeros(len(places), z.shape[1], dtype=torch.bool)
    for part in torch.arange(z.shape[1]).split(max(1, _CHUNK_CODES // at.numel())):
        active = (z[:, part][at.clamp(min=0)] > 0) & inside[..., None]
        silent[:, part] = ~active.any(1)
    return places, silent


def _plan(
    best: Float[Tensor, " segments"],
    first: Int[Tensor, " segments"],
    inactive: Int[Tensor, " places"],
    wanted: Wanted,
    seed: int,
    latent: int,
) -> list[Int[Tensor, " _"]]:
    """Tokens to look around: top, weighted, each quantile, inactive; more than are wanted."""
    rng = np.random.default_rng([seed, latent])
    segments = (best > 0).nonzero().flatten()
    order = best[segments].argsort(descending=True, stable=True)
    ranked, strength = first[segments][order], best[segments][order].double().numpy()
    weights = importance_weights(strength, wanted.num_top)
    num_weighted = min(_OVERSAMPLE * wanted.num_weighted, int((weights > 0).sum()))
    weighted = (
        rng.choice(len(ranked), num_weighted, replace=False, p=weights) if num_weighted else []
    )
    num_groups = max(1, min(wanted.num_quantiles, len(ranked) // max(1, wanted.per_quantile)))
    groups = [
        rng.permutation(np.array(group, dtype=int))[: _OVERSAMPLE * wanted.per_quantile]
        for group in rank_groups(len(ranked), num_groups)
    ]
    silent = rng.permutation(len(inactive))[: _OVERSAMPLE * wanted.num_inactive]
    return [
        ranked[: _OVERSAMPLE * wanted.num_top],
        ranked[torch.tensor(np.array(weighted, dtype=int))],
        *(ranked[torch.tensor(group)] for group in groups),
        inactive[torch.tensor(silent)],
    ]


def _windows(
    codes: ContextCodes,
    z: Float[Tensor, " tokens"],
    held: Windows,
    place: Int[Tensor, " corpus"],
    vocabulary: Vocabulary,
) -> Iterator[Window]:
    at = place[held.rows]
    inside = held.inside & (at >= 0)
    activations = torch.where(inside, z[at.clamp(min=0)], 0.0).tolist()
    position = codes.position[at.clamp(min=0)].tolist()
    centre = held.rows.shape[1] // 2
    columns = (held.token_ids.tolist(), inside.tolist(), held.document.tolist())
    for i, (ids, kept, document) in enumerate(zip(*columns, strict=True)):
        own = [k for k, is_kept in enumerate(kept) if is_kept]
        excerpt = Excerpt(
            tuple(vocabulary.text[ids[k]] for k in own),
            document,
            tuple(position[i][k] for k in own),
            (False,) * len(own),
        )
        yield Window(excerpt, tuple(activations[i][k] for k in own), own.index(centre))


def _without_repeats(
    parts: list[list[Window]], wanted: Wanted, seen: set[tuple[str, ...]]
) -> LatentWindows:
    def take(windows: list[Window], num: int, known: set[tuple[str, ...]]) -> list[Window]:
        found: list[Window] = []
        for window in windows:
            if len(found) < num and window.excerpt.tokens not in known:
                known.add(window.excerpt.tokens)
                found.append(window)
        return found

    chosen = set(seen)
    top = take(parts[0], wanted.num_top, chosen)
    weighted = take(parts[1], wanted.num_weighted, chosen)
    inactive = take(parts[-1], wanted.num_inactive, set(seen))
    known = set(seen)  # other questions may show windows that were shown before
    quantiles = [take(part, wanted.per_quantile, known) for part in parts[2:-1]]
    return LatentWindows(top, weighted, quantiles, inactive)
