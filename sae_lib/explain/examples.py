"""Stretches of text that show what latents do: which to show, and how they become rows.

Of a latent's strongest places, strongest first, those are taken that repeat nothing taken before
(explanations.md, section 1): by default no second one from a document; or, with ``buffer``, no
centre within ``buffer`` tokens of another and of the ends of a context (SAEBench). In either case
no window of the same tokens twice.

Beside these a latent has examples of every strength (`quantiles`) and some in which it is silent
(`near_miss`).
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from sae_lib.activations.tokens import TokenRows
from sae_lib.config import Config
from sae_lib.explain.near_miss import POOL
from sae_lib.explain.statistics import Candidates, Extras

_CHUNK_WINDOWS = 2**15
"""Windows compared with each other at a time."""


class ExamplesConfig(Config):
    """How many stretches of text are shown per latent, and how long they are."""

    num_examples: int = Field(default=10, gt=0)
    """Stretches per latent; fewer where the latent fires in fewer places."""

    radius: int = Field(default=10, ge=0)
    """Tokens shown on either side of the strongest one, inside the same document."""

    oversample: int = Field(default=8, gt=0)
    """Candidates kept per wanted example, so that repeated ones can be left out."""

    apart: Literal["document", "buffer"] = "document"
    """What may not happen twice: a document, or centres within ``buffer`` tokens."""

    buffer: int = Field(default=10, ge=0)
    """Distance in tokens that ``apart: buffer`` keeps between centres, and to the ends."""

    num_intervals: int = Field(default=5, ge=0, le=10)
    """Intervals between 0 and the latent's maximum, from each of which examples are drawn."""

    per_interval: int = Field(default=3, gt=0)
    """Examples drawn from each of them."""

    num_silent: int = Field(default=5, ge=0)
    """Examples drawn from contexts in which the latent does not fire."""

    num_partners: int = Field(default=5, ge=0)
    """Other latents listed per latent: with the nearest decoder row, and that fire with it."""

    num_near_misses: int = Field(default=5, ge=0)
    """Examples on which one of these is strong and the latent silent."""

    pair_tokens: int = Field(default=2**17, ge=0)
    """Tokens, about, on which it is counted which latents fire together."""

    seed: int = Field(default=0, ge=0)
    """Of whatever is drawn."""

    def extras(self, split: "ContextSource", num_contexts: int) -> Extras:
        """What has to be found out in the pass over that many contexts."""
        share = self.pair_tokens / max(1, num_contexts * split.context)
        return Extras(
            per_bucket=self.per_interval if self.num_intervals else 0,
            silent_pool=POOL if self.num_silent else 0,
            pair_share=min(1.0, share) if self.num_partners else 0.0,
            context=split.context,
            seed=self.seed,
        )

    def bare(self) -> "ExamplesConfig":
        """The same strongest examples and nothing else."""
        return self.but(num_intervals=0, num_silent=0, num_partners=0, num_near_misses=0)

    @property
    def num_candidates(self) -> int:
        return self.num_examples * self.oversample


@runtime_checkable
class ContextSource(Protocol):
    """What is needed of a `TokenSplit`: contexts by number."""

    context: int
    """Tokens per context."""

    num_contexts: int

    def rows(self, indices: Sequence[int] | Any) -> TokenRows:
        """The contexts with these numbers."""
        ...


class Windows(NamedTuple):
    """Tokens around one place each; a window never leaves its document or its context."""

    rows: Int[Tensor, "windows width"]
    """Index of each token in the corpus."""

    token_ids: Int[Tensor, "windows width"]
    inside: Bool[Tensor, "windows width"]
    """Whether the place exists and belongs to the centre's document."""

    document: Int[Tensor, " windows"]
    position: Int[Tensor, " windows"]
    """Of the centre, within its document."""


def read_windows(split: ContextSource, rows: Int[Tensor, " windows"], radius: int) -> Windows:
    """Windows around ``rows`` of a corpus."""
    context, centre = rows // split.context, rows % split.context
    needed, place = torch.unique(context, return_inverse=True)
    held = split.rows(needed)
    offsets = centre[:, None] + torch.arange(-radius, radius + 1)
    exists = (offsets >= 0) & (offsets < split.context)
    offsets = offsets.clamp(0, split.context - 1)
    documents = held.document[place]
    document = documents.gather(1, centre[:, None])
    return Windows(
        rows=context[:, None] * split.context + offsets,
        token_ids=held.tokens[place].gather(1, offsets),
        inside=exists & (documents.gather(1, offsets) == document),
        document=document[:, 0],
        position=held.position[place].gather(1, centre[:, None])[:, 0],
    )


def take_apart(
    present: Bool[Tensor, "latents places"],
    conflict: Bool[Tensor, "latents places places"],
    num_examples: int,
) -> Bool[Tensor, "latents places"]:
    """Greedily, from the left, the places that conflict with none taken before."""
    taken = torch.zeros_like(present)
    for i in range(present.shape[1]):
        free = ~(conflict[:, i, :i] & taken[:, :i]).any(1)
        taken[:, i] = present[:, i] & free & (taken[:, :i].sum(1) < num_examples)
    return taken


def choose_examples(
    cfg: ExamplesConfig,
    split: ContextSource,
    latents: Int[Tensor, " latents"],
    candidates: Candidates,
) -> tuple[Int[Tensor, " chosen"], Windows]:
    """The latent of each chosen example and its window, by latent and then strongest first."""
    chunk = max(1, _CHUNK_WINDOWS // candidates.row.shape[1])
    owners, windows = [], []
    for low in range(0, len(latents), chunk):
        row = candidates.row[low : low + chunk]
        around = read_windows(split, row.clamp(min=0).flatten(), cfg.radius)
        taken = take_apart(
            _present(cfg, split, row), _conflict(cfg, split, row, around), cfg.num_examples
        )
        owners.append(latents[low : low + chunk].repeat_interleave(taken.sum(1)))
        windows.append(Windows(*(part[taken.flatten()] for part in around)))
    if not windows:
        empty = torch.zeros(0, dtype=torch.int64)
        return empty, read_windows(split, empty, cfg.radius)
    return torch.cat(owners), Windows(*(torch.cat(parts) for parts in zip(*windows, strict=True)))


def _present(
    cfg: ExamplesConfig, split: ContextSource, row: Int[Tensor, "latents places"]
) -> Bool[Tensor, "latents places"]:
    present = row >= 0
    if cfg.apart == "buffer":
        position = row % split.context
        present &= (position >= cfg.buffer) & (position < split.context - cfg.buffer)
    return present


def _conflict(
    cfg: ExamplesConfig, split: ContextSource, row: Int[Tensor, "latents places"], windows: Windows
) -> Bool[Tensor, "latents places places"]:
    """Whether two places of a latent would repeat each other."""
    if cfg.apart == "document":
        document = windows.document.view(row.shape)
        conflict = document[:, :, None] == document[:, None, :]
    else:
        context = row // split.context
        near = (row[:, :, None] - row[:, None, :]).abs() <= cfg.buffer
        conflict = near & (context[:, :, None] == context[:, None, :])
    text = _fingerprint(windows).view(row.shape)
    return conflict | (text[:, :, None] == text[:, None, :])


def _fingerprint(windows: Windows) -> Int[Tensor, " windows"]:
    """One integer per window; equal tokens give equal integers, others practically never do."""
    shown = torch.where(windows.inside, windows.token_ids + 1, 0)
    value = torch.zeros(len(shown), dtype=torch.int64)
    for column in shown.T:  # a polynomial in an odd 63-bit base, modulo 2**64
        value = value * 6364136223846793005 + column
        value = value ^ (value >> 29)
    return value
