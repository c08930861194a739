"""Batches of whole contexts, with their tokens and what the model makes of them.

Objectives that run the model on from the reconstruction need the tokens around each activation,
so their batches are contexts instead of rows from everywhere. Nothing is stored: each batch costs
one forward pass, which serves every site and every SAE that reads the batch.

Epoch e permutes the contexts with a generator seeded by (seed, e); batch i is contexts
``i * contexts_per_batch`` and following of the endless stream of epochs, so a batch is a pure
function of the config and i. The number of kept positions differs a little between batches.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from sae_lib.activations._packing import NO_DOCUMENT
from sae_lib.activations.stats import RunningStats, SiteStats
from sae_lib.activations.tokens import TokenSplit
from sae_lib.errors import BadInput

CONTEXTS_TAG = 3
"""Keeps these seeds apart from those of `order`."""

STATS_TOKENS = 1 << 16
"""Kept positions that statistics are measured on."""


@runtime_checkable
class RunsWhole(Protocol):
    """The part of `LanguageModel` that is needed here."""

    device: Any

    def width(self, site: str) -> int: ...

    def capture_and_logits(
        self, tokens: Tensor, sites: Sequence[str], mask: Tensor | None = None
    ) -> tuple[dict[str, Tensor], Tensor]: ...


class ContextBatch(NamedTuple):
    """Whole contexts, undisturbed. Everything is on the device of the model."""

    x: dict[str, Float[Tensor, "rows _"]]
    """Per site the activations at the kept positions, context by context, in float32."""

    rows: Int64[Tensor, " rows"]
    """``context * length + position`` in the split, on the CPU."""

    tokens: Int64[Tensor, "contexts length"]
    mask: Bool[Tensor, "contexts length"]
    """False for padding."""

    keep: Bool[Tensor, "contexts length"]
    """Positions whose activations are in ``x``."""

    document: Int64[Tensor, "contexts length"]
    logits: Float[Tensor, "contexts length vocab"]


class ContextBatches:
    """An endless stream of contexts, run through the model when they are asked for."""

    runs_model = True

    def __init__(
        self,
        model: RunsWhole,
        tokens: TokenSplit,
        sites: Sequence[str],
        *,
        batch_tokens: int,
        seed: int,
        stats_tokens: int = STATS_TOKENS,
    ) -> None:
        """A batch has ``batch_tokens // length`` contexts, at least one."""
        if tokens.num_contexts == 0:
            raise BadInput("there are no contexts to train on.", key="corpus.tokens")
        self.sites = list(sites)
        self.contexts_per_batch = max(1, batch_tokens // tokens.context)
        self.seed = seed
        self._model, self._tokens = model, tokens
        self._stats_tokens = stats_tokens
        self._permutation: tuple[int, np.ndarray] | None = None

    def width(self, site: str) -> int:
        return self._model.width(site)

    def contexts(self, i: int) -> np.ndarray:
        """Numbers of the contexts in batch ``i``."""
        first, total = i * self.contexts_per_batch, self._tokens.num_contexts
        places = np.arange(first, first + self.contexts_per_batch)
        return np.array([self._epoch(int(place) // total)[place % total] for place in places])

    def batch(self, i: int) -> ContextBatch:
        """Batch ``i``, from 0; any may be asked for."""
        chosen = self.contexts(i)
        found = self._tokens.rows(chosen)
        device = self._model.device
        tokens, keep = found.tokens.to(device), found.keep.to(device)
        mask = (found.document != NO_DOCUMENT).to(device)
        captured, logits = self._model.capture_and_logits(tokens, self.sites, mask)
        kept = found.keep.reshape(-1).nonzero().squeeze(1)
        length = self._tokens.context
        rows = torch.from_numpy(chosen)[kept // length] * length + kept % length
        x = {site: captured[site][keep].float() for site in self.sites}
        return ContextBatch(x, rows, tokens, mask, keep, found.document.to(device), logits.float())

    def stats(self, site: str) -> SiteStats:
        """Of the first ``stats_tokens`` kept positions of the stream, in whole batches."""
        return self._measured[site]

    @cached_property
    def _measured(self) -> dict[str, SiteStats]:
        running = {site: RunningStats(self.width(site), self._model.device) for site in self.sites}
        batches = -(-self._tokens.num_contexts // self.contexts_per_batch)
        seen = 0
        for i in range(batches):
            batch = self.batch(i)
            for site, x in batch.x.items():
                running[site].add(x)
            seen += len(batch.rows)
            if seen >= self._stats_tokens:
                break
        return {site: stats.result() for site, stats in running.items()}

    def _epoch(self, epoch: int) -> np.ndarray:
        if self._permutation is None or self._permutation[0] != epoch:
            generator = np.random.default_rng((self.seed, CONTEXTS_TAG, epoch))
            self._permutation = (epoch, generator.permutation(self._tokens.num_contexts))
        return self._permutation[1]
