"""Harvested activations, read through memory maps."""

from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from pydantic import ValidationError
from torch import Tensor

from sae_lib.activations import _shards
from sae_lib.activations._site_files import (
    REMEDY,
    SITE,
    STATS,
    SiteSummary,
    StoreDtype,
    shard_specs,
    site_folder,
)
from sae_lib.activations.stats import SiteStats
from sae_lib.errors import BadInput, CorruptData, MissingFile, UnknownName


class Rows(NamedTuple):
    """Activations of some contexts and where they come from."""

    x: Float[Tensor, "rows d_in"]
    """In the format of the store."""

    rows: Int64[Tensor, " rows"]
    """``context * length + position``, as in the tokens."""


class ActivationStore:
    """The sites of one harvest."""

    def __init__(self, folder: Path, summaries: Sequence[SiteSummary]) -> None:
        self.folder = folder
        self.summaries = {summary.site: summary for summary in summaries}
        first = summaries[0]
        self.dtype: StoreDtype = first.dtype
        self.context = first.context
        """Positions per context."""
        self.num_contexts = first.num_contexts
        self.num_rows = first.num_rows
        """Rows per site."""
        self._first_context = np.cumsum([0, *first.contexts_per_file])
        self._maps = {site: _maps(folder, summary) for site, summary in self.summaries.items()}
        self._vectors = cache(self._read_vectors)

    @classmethod
    def open(cls, folder: Path) -> "ActivationStore":
        """The sites below ``folder``.

        Raises `MissingFile` where there are none, `CorruptData` where a file is missing, has
        another size, or the sites are not of one harvest.
        """
        found = sorted(folder.glob(f"*/{SITE}"))
        if not found:
            raise MissingFile("the folder holds no finished harvest.", file=folder)
        summaries = [_read_summary(path) for path in found]
        for path, summary in zip(found, summaries, strict=True):
            if _same(summary) != _same(summaries[0]):
                raise CorruptData(
                    path,
                    f"{summary.site} and {summaries[0].site} were harvested from different"
                    " tokens or in different shards.",
                    "Harvest the sites together, into an empty folder.",
                )
            for record in (summary.stats, *summary.files):
                _shards.check_size(path.parent, record, remedy=REMEDY)
        return cls(folder, summaries)

    @property
    def sites(self) -> list[str]:
        """Sorted by name."""
        return sorted(self.summaries)

    def width(self, site: str) -> int:
        return self.summary(site).d_in

    def summary(self, site: str) -> SiteSummary:
        """Counts, files and norms of a site."""
        if site not in self.summaries:
            raise UnknownName("harvested site", site, self.summaries)
        return self.summaries[site]

    def stats(self, site: str) -> SiteStats:
        """Mean, variance and norms of the stored rows of a site."""
        summary = self.summary(site)
        vectors = self._vectors(site)
        return SiteStats(
            summary.num_rows,
            torch.from_numpy(vectors["mean"].copy()),
            torch.from_numpy(vectors["variance"].copy()),
            summary.mean_norm,
            summary.mean_square_norm,
        )

    @property
    def kept_per_context(self) -> np.ndarray:
        """Rows of each context, int64."""
        return self._vectors(self.sites[0])["kept_per_context"]

    def contexts(
        self, site: str, contexts: Sequence[int] | np.ndarray | Int64[Tensor, " contexts"]
    ) -> Rows:
        """Rows of these contexts, context by context in the order given.

        Reads are sequential where the contexts ascend.
        """
        summary = self.summary(site)
        chosen = np.asarray(contexts, np.int64)
        if ((chosen < 0) | (chosen >= self.num_contexts)).any():
            raise BadInput(f"contexts are numbered from 0 to {self.num_contexts - 1}.")
        ends = np.cumsum(self.kept_per_context[chosen])
        num_rows = int(ends[-1]) if len(ends) else 0
        bits = _shards.NUMPY_DTYPES[_shards.STORE_DTYPES[self.dtype][0]]
        x, rows = np.empty((num_rows, summary.d_in), bits), np.empty(num_rows, np.int64)
        shards = np.searchsorted(self._first_context, chosen, side="right") - 1
        starts = self._first_row[chosen] - self._first_row[self._first_context[shards]]
        done = 0
        for shard, start, end in zip(shards, starts, ends, strict=True):
            stored = self._maps[site][int(shard)]
            size = int(end) - done
            x[done:end] = stored["activations"][start : start + size]
            rows[done:end] = stored["rows"][start : start + size]
            done = int(end)
        return Rows(_shards.from_bits(x, self.dtype), torch.from_numpy(rows))

    def verify(self) -> None:
        """Read every file and raise `CorruptData` where a byte differs from what was written."""
        for site, summary in self.summaries.items():
            for record in (summary.stats, *summary.files):
                _shards.check_content(self.folder / site_folder(site), record, remedy=REMEDY)

    @cached_property
    def _first_row(self) -> np.ndarray:
        """Number of the first row of each context in the whole site."""
        return np.cumsum([0, *self.kept_per_context])

    def _read_vectors(self, site: str) -> dict[str, np.ndarray]:
        summary = self.summaries[site]
        specs = {
            "mean": _shards.TensorSpec("F64", (summary.d_in,)),
            "variance": _shards.TensorSpec("F64", (summary.d_in,)),
            "kept_per_context": _shards.TensorSpec("I64", (summary.num_contexts,)),
        }
        path = self.folder / site_folder(site) / STATS
        maps = _shards.map_tensors(path, specs, remedy=REMEDY)
        return {name: np.array(values) for name, values in maps.items()}


def _maps(folder: Path, summary: SiteSummary) -> _shards.Maps:
    return _shards.Maps(
        [folder / site_folder(summary.site) / record.name for record in summary.files],
        [shard_specs(num_rows, summary.d_in, summary.dtype) for num_rows in summary.rows_per_file],
        remedy=REMEDY,
    )


def _read_summary(path: Path) -> SiteSummary:
    try:
        return SiteSummary.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise CorruptData(path, f"this is not a site summary ({error}).", REMEDY) from error


def _same(summary: SiteSummary) -> tuple[object, ...]:
    """What the sites of one harvest have in common."""
    return (summary.tokens, summary.dtype, summary.rows_per_file, summary.contexts_per_file)


class JoinedStore:
    """Several stores of the same tokens, each with other sites, read as one."""

    def __init__(self, stores: Sequence[ActivationStore]) -> None:
        """Raises `BadInput` where the stores are not of the same contexts."""
        self._of = {site: store for store in stores for site in store.sites}
        first = stores[0]
        for store in stores[1:]:
            if not np.array_equal(store.kept_per_context, first.kept_per_context):
                raise BadInput(
                    f"{store.folder} and {first.folder} were harvested from different tokens; "
                    "harvest their sites together."
                )
        self.num_contexts = first.num_contexts
        self.kept_per_context = first.kept_per_context
        """Rows of each context."""

    @property
    def sites(self) -> list[str]:
        return sorted(self._of)

    def width(self, site: str) -> int:
        return self._owner(site).width(site)

    def stats(self, site: str) -> SiteStats:
        return self._owner(site).stats(site)

    def contexts(self, site: str, contexts: Sequence[int] | np.ndarray) -> Rows:
        return self._owner(site).contexts(site, contexts)

    def _owner(self, site: str) -> ActivationStore:
        if site not in self._of:
            raise UnknownName("site of these stores", site, self._of)
        return self._of[site]
