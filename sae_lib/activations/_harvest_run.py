"""How far a harvest is, in memory and on disk."""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lib.activations import _shards
from sae_lib.activations._site_files import (
    FORMAT_VERSION,
    PROGRESS,
    REMEDY,
    SITE,
    STATS,
    SiteSummary,
    StoreDtype,
    shard_specs,
    site_folder,
)
from sae_lib.activations.stats import RunningStats
from sae_lib.activations.tokens import TokenSplit
from sae_lib.artifacts import write_atomically
from sae_lib.config import digest
from sae_lib.errors import BadInput, CorruptData


class HarvestRun:
    """How far a harvest is, in memory and in ``harvest.json``."""

    def __init__(
        self,
        tokens: TokenSplit,
        sites: Sequence[str],
        folder: Path,
        *,
        dtype: StoreDtype,
        batch_contexts: int,
    ) -> None:
        self.tokens, self.sites = tokens, list(sites)
        self.dtype: StoreDtype = dtype
        self.batch_contexts = batch_contexts
        self.num_done = 0
        self.stats: dict[str, RunningStats] = {}
        self._folder = folder
        self._request = ""
        self._shards: list[dict[str, Any]] = []

    def resume(self, widths: Mapping[str, int], device: Any, per_shard: int) -> None:
        """Go on after the last whole set of shards, or start with empty folders.

        Raises `BadInput` where the disk has no room for what is still to be written.
        """
        self.stats = {site: RunningStats(d_in, device) for site, d_in in widths.items()}
        self._request = digest(
            {
                "format_version": FORMAT_VERSION,
                "tokens": self.tokens.digest,
                "widths": dict(widths),
                "dtype": self.dtype,
                "batch_contexts": self.batch_contexts,
                "per_shard": per_shard,
            }
        )
        found = self._read()
        for site in self.sites:
            site_path = self._folder / site_folder(site)
            site_path.mkdir(parents=True, exist_ok=True)
            kept = {shard["files"][site]["name"] for shard in found.get("shards", ())}
            for path in site_path.iterdir():
                if path.name not in kept:
                    path.unlink()
        if found:
            self._shards = found["shards"]
            self.num_done = sum(shard["contexts"] for shard in self._shards)
            for site in self.sites:
                self.stats[site].load(found["stats"][site])
                for record in self._records(site):
                    _shards.check_size(self._folder / site_folder(site), record, remedy=REMEDY)
        self._check_room(widths)

    def open_shards(self, contexts: range) -> dict[str, _shards.StreamWriter]:
        places = self.tokens.kept_rows(contexts)
        name = f"shard-{len(self._shards):05d}.safetensors"
        shards = {}
        for site in self.sites:
            specs = shard_specs(len(places), self.stats[site].mean.shape[0], self.dtype)
            shards[site] = _shards.StreamWriter(self._folder / site_folder(site) / name, specs)
            shards[site].write(places)
        return shards

    def note(self, records: Mapping[str, _shards.FileRecord], contexts: range) -> None:
        """A set of shards is whole: remember it and the statistics up to here."""
        self._shards.append(
            {
                "contexts": len(contexts),
                "rows": int(self.tokens.kept_per_context[contexts.start : contexts.stop].sum()),
                "files": {site: record.model_dump() for site, record in records.items()},
            }
        )
        content = {
            "request": self._request,
            "shards": self._shards,
            "stats": {site: stats.state() for site, stats in self.stats.items()},
        }
        write_atomically(self._folder / PROGRESS, json.dumps(content, allow_nan=False))

    def check_finite(self, contexts: range) -> None:
        for site, stats in self.stats.items():
            if not stats.is_finite():
                raise BadInput(
                    f"activations of {site} between contexts {contexts.start} and"
                    f" {contexts.stop - 1} are not finite in {self.dtype}; float16 ends at 65504,"
                    " so use bfloat16 or float32; if they are not finite there either, the model"
                    " itself overflows.",
                    key="activations.dtype",
                    value=self.dtype,
                )

    def finish(self, site: str) -> SiteSummary:
        folder = self._folder / site_folder(site)
        stats = self.stats[site].result()
        record = _shards.write_arrays(
            folder / STATS,
            {
                "mean": stats.mean.numpy(),
                "variance": stats.variance.numpy(),
                "kept_per_context": self.tokens.kept_per_context,
            },
        )
        summary = SiteSummary(
            site=site,
            d_in=len(stats.mean),
            dtype=self.dtype,
            split=self.tokens.name,
            tokens=self.tokens.digest,
            context=self.tokens.context,
            num_contexts=self.tokens.num_contexts,
            num_rows=stats.num_rows,
            mean_norm=stats.mean_norm,
            mean_square_norm=stats.mean_square_norm,
            stats=record,
            files=tuple(self._records(site)),
            rows_per_file=tuple(shard["rows"] for shard in self._shards),
            contexts_per_file=tuple(shard["contexts"] for shard in self._shards),
        )
        write_atomically(folder / SITE, summary.model_dump_json(indent=2) + "\n")
        return summary

    def _check_room(self, widths: Mapping[str, int]) -> None:
        rows = int(self.tokens.kept_per_context[self.num_done :].sum())
        needed = sum(
            spec.num_bytes
            for d_in in widths.values()
            for spec in shard_specs(rows, d_in, self.dtype).values()
        )
        free = shutil.disk_usage(self._folder).free
        if needed > free:
            raise BadInput(
                f"the activations need {needed / 1e9:.1f} GB and the disk has {free / 1e9:.1f} GB"
                " left; take fewer tokens or sites, or stream them instead.",
                file=self._folder,
                key="activations.store",
            )

    def _records(self, site: str) -> list[_shards.FileRecord]:
        return [_shards.FileRecord(**shard["files"][site]) for shard in self._shards]

    def _read(self) -> dict[str, Any]:
        """What an interrupted call with the same arguments noted, or nothing."""
        path = self._folder / PROGRESS
        if not path.is_file():
            return {}
        try:
            found = json.loads(path.read_text("utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise CorruptData(path, f"this is not JSON ({error}).", REMEDY) from error
        return found if found.get("request") == self._request else {}
