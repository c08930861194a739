"""One pass of a model over tokens writes the activations of all sites.

Per site a folder with ``shard-00000.safetensors`` and so on, each with

    rows         int64 [n]         context * length + position, ascending
    activations  [n, d_in]         the kept positions only

and beside them ``site.json`` and ``stats.safetensors`` (float64 mean and variance of the stored
values, and how many positions each context keeps). Special tokens and padding are not stored, so
nothing that reads a store can train on them or measure them.

A shard holds whole batches. After each set of shards (one per site) ``harvest.json`` notes how
far the pass is and the sums behind the statistics; a harvest that was killed goes on from there,
and its files have the same bytes as those of one that was not.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from sae_lib.activations import _shards
from sae_lib.activations._background import Background
from sae_lib.activations._harvest_run import HarvestRun
from sae_lib.activations._packing import NO_DOCUMENT
from sae_lib.activations._site_files import SiteSummary, StoreDtype, site_folder
from sae_lib.activations.tokens import TokenSplit
from sae_lib.errors import BadInput

__all__ = [
    "CapturesSites",
    "SiteSummary",
    "StoreDtype",
    "capture_rows",
    "harvest",
    "site_folder",
]

Progress = Callable[[int, int], None]


@runtime_checkable
class CapturesSites(Protocol):
    """What is asked of a model here; `sae_lib.models.LanguageModel` does it."""

    @property
    def device(self) -> Any: ...

    def width(self, site: str) -> int: ...

    def capture(
        self,
        tokens: Int[Tensor, "batch seq"],
        sites: Sequence[str],
        *,
        mask: Bool[Tensor, "batch seq"] | None = None,
    ) -> dict[str, Tensor]: ...


def capture_rows(
    model: CapturesSites,
    tokens: TokenSplit,
    sites: Sequence[str],
    contexts: Sequence[int] | np.ndarray,
) -> tuple[dict[str, Float[Tensor, "rows _"]], Int64[Tensor, " rows"]]:
    """Activations at the kept positions of ``contexts``, in one forward pass, and their places.

    Values are on the device of the model and in its number format, places on the CPU.
    """
    chosen = np.asarray(contexts, np.int64)
    batch = tokens.rows(chosen)
    mask = None if tokens.pack == "concat" else batch.document != NO_DOCUMENT
    captured = model.capture(batch.tokens, sites, mask=mask)
    kept = batch.keep.reshape(-1).nonzero().squeeze(1)
    on_device = kept.to(model.device)
    values = {site: captured[site].flatten(0, 1).index_select(0, on_device) for site in sites}
    context = torch.from_numpy(chosen)[kept // tokens.context]
    return values, context * tokens.context + kept % tokens.context


def harvest(
    model: CapturesSites,
    tokens: TokenSplit,
    sites: Sequence[str],
    folder: Path,
    *,
    batch_contexts: int,
    dtype: StoreDtype = "bfloat16",
    shard_rows: int = 1 << 18,
    on_progress: Progress = lambda done, total: None,
) -> dict[str, SiteSummary]:
    """Write the activations of ``sites`` at every kept position of ``tokens``.

    One forward pass per ``batch_contexts`` contexts serves all sites; one thread writes while
    the model computes. At no time are more than four batches of rows in memory. ``shard_rows``
    bounds the rows of a shard, rounded down to whole batches, but at least one batch.

    ``folder`` may hold what an interrupted call with the same arguments left; what another call
    left is replaced. ``on_progress`` gets contexts done and wanted. Raises `BadInput` where the
    disk is too small, before the model runs, and where activations are not finite; then and on
    any other error no half-written shard stays.
    """
    if batch_contexts < 1 or not sites or len(set(sites)) != len(sites):
        raise BadInput(
            "a harvest needs at least one context per batch, and sites that differ from each"
            " other.",
            key="sites",
            value=list(sites),
        )
    run = HarvestRun(tokens, sites, folder, dtype=dtype, batch_contexts=batch_contexts)
    per_shard = max(1, shard_rows // (tokens.context * batch_contexts)) * batch_contexts
    run.resume({site: model.width(site) for site in sites}, model.device, per_shard)
    for first in range(run.num_done, tokens.num_contexts, per_shard):
        contexts = range(first, min(first + per_shard, tokens.num_contexts))
        _harvest_shard(model, run, contexts, on_progress)
    return {site: run.finish(site) for site in sites}


def _harvest_shard(
    model: CapturesSites, run: HarvestRun, contexts: range, on_progress: Progress
) -> None:
    target = _STORE_TORCH[run.dtype]
    shards = run.open_shards(contexts)
    try:
        with Background() as background:
            for start in range(contexts.start, contexts.stop, run.batch_contexts):
                stop = min(start + run.batch_contexts, contexts.stop)
                values, _ = capture_rows(model, run.tokens, run.sites, range(start, stop))
                rows = {site: x.to(target) for site, x in values.items()}
                for site, x in rows.items():
                    run.stats[site].add(x)
                background.submit(partial(_write, shards, rows))
                on_progress(stop, run.tokens.num_contexts)
        run.check_finite(contexts)
        run.note({site: shard.close() for site, shard in shards.items()}, contexts)
    except BaseException:
        for shard in shards.values():
            shard.abandon()
        raise


_STORE_TORCH = {name: kind for name, (_, kind) in _shards.STORE_DTYPES.items()}


def _write(shards: Mapping[str, _shards.StreamWriter], rows: Mapping[str, Tensor]) -> None:
    for site, x in rows.items():
        shards[site].write(_shards.to_bits(x))
