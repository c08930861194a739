"""Rows of an SAE that does not exist, made up as they are asked for: any number of latents."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from sae_lib.report._dashboard_source import shaped
from sae_lib.report.dashboard import Cell
from sae_lib.warehouse.tables import TABLES

VOCABULARY = 4096
WIDTH = 21
KINDS = [*[("top", 0)] * 10, *[("quantile", i) for i in range(5) for _ in range(3)],
         *[("silent", 0)] * 5, *[("near_miss", 0)] * 5]  # fmt: skip


class Synthetic:
    """A `Source` with all default examples; tokens follow Zipf's law, as words do."""

    def __init__(self, d_sae: int, home: Path = Path("/nowhere")) -> None:
        self.cell, self.home, self.d_sae = Cell("made-up", "resid_post.2", "topk-w"), home, d_sae
        rng = np.random.default_rng(0)
        letters = np.array(list("etaoinshrdlucmfwypvbgkjqxz"))
        lengths = rng.integers(2, 10, VOCABULARY)
        self.words = np.array([" " + "".join(rng.choice(letters, n)) for n in lengths])
        weights = 1 / (np.arange(VOCABULARY) + 2.7)
        self.weights = (weights / weights.sum()).cumsum()
        self.density = 10 ** rng.uniform(-5, -1.5, d_sae)
        self.density[::50] = 0
        self.max = rng.uniform(1, 60, d_sae)

    def draw(self, rng: np.random.Generator, *shape: int) -> np.ndarray:
        return self.words[np.searchsorted(self.weights, rng.random(shape)).clip(max=VOCABULARY - 1)]

    def rows(self, table: str, low: int | None = None, high: int | None = None) -> pl.DataFrame:
        make = getattr(self, f"_{table}", None)
        if make is None:
            return shaped(pl.DataFrame(), table)
        latents = np.arange(low or 0, min(self.d_sae, high or self.d_sae))
        parts = [make(latents[i : i + 1024]) for i in range(0, len(latents), 1024)]
        return shaped(pl.concat(parts), table)

    def _latents(self, latents: np.ndarray) -> pl.DataFrame:
        rng = np.random.default_rng(int(latents[0]))
        labels = self.draw(rng, len(latents), 3)
        edges = np.float32(2.0 ** (np.arange(33) / 8 - 3))
        fires = self.density[latents] > 0
        counts = rng.integers(0, 500, (len(latents), 32)).astype(np.float32)
        return pl.DataFrame(
            {
                "latent": latents,
                "density": self.density[latents],
                "mean_activation": self.max[latents] / 3,
                "std_activation": self.max[latents] / 5,
                "max_activation": np.where(fires, self.max[latents], 0.0),
                "label": [",".join(row).strip() if on else None
                          for row, on in zip(labels, fires, strict=True)],
                "histogram": [
                    row.tolist() if on else None for row, on in zip(counts, fires, strict=True)
                ],
                "histogram_edges": [edges.tolist() if on else None for on in fires],
            }
        )  # fmt: skip

    def _alive(self, latents: np.ndarray) -> np.ndarray:
        return latents[self.density[latents] > 0]

    def _explanations(self, latents: np.ndarray) -> pl.DataFrame:
        alive = self._alive(latents)
        parts = []
        for seed, (method, n) in enumerate((("max_act", 20), ("vocab_proj", 40))):
            rng = np.random.default_rng((int(latents[0]), seed))
            words, scores = self.draw(rng, len(alive), n), -np.sort(-rng.random((len(alive), n)))
            if method == "vocab_proj":
                scores = np.where(np.arange(n) < n // 2, scores, -scores)
            parts.append(
                pl.DataFrame(
                    {
                        "latent": alive,
                        "method": method,
                        "text": ["fires on" + ",".join(row[:5]) for row in words],
                        "keywords": words.tolist(),
                        "keyword_scores": scores.tolist(),
                    }
                )
            )
        return pl.concat(parts)

    def _examples(self, latents: np.ndarray) -> pl.DataFrame:
        alive, rng = self._alive(latents), np.random.default_rng((int(latents[0]), 9))
        count = len(alive) * len(KINDS)
        tokens = self.draw(rng, count, WIDTH)
        values = np.where(rng.random((count, WIDTH)) < 0.12, rng.random((count, WIDTH)), 0)
        values[:, 10] = 1
        kind = np.tile([name for name, _ in KINDS], len(alive))
        values[(kind == "silent") | (kind == "near_miss")] = 0
        values *= np.repeat(self.max[alive], len(KINDS))[:, None]
        rank = np.tile([*range(10), *[0, 1, 2] * 5, *range(5), *range(5)], len(alive))
        interval = np.tile([i for _, i in KINDS], len(alive))
        return pl.DataFrame(
            {
                "latent": np.repeat(alive, len(KINDS)),
                "rank": rank,
                "document": rng.integers(0, 10**5, count),
                "position": rng.integers(0, 500, count),
                "peak": 10,
                "tokens": pl.Series(tokens).arr.to_list(),
                "activations": pl.Series(values.astype(np.float32)).arr.to_list(),
                "max_activation": values[:, 10],
                "kind": kind,
                "interval": [
                    i if k == "quantile" else None
                    for i, k in zip(interval.tolist(), kind, strict=True)
                ],
                "low": interval / 5,
                "high": (interval + 1) / 5,
                "share": 0.2,
                "other": [
                    i if k == "near_miss" else None
                    for i, k in zip(np.repeat(alive, len(KINDS)).tolist(), kind, strict=True)
                ],
            }
        )

    def _latent_pairs(self, latents: np.ndarray) -> pl.DataFrame:
        alive, rng = self._alive(latents), np.random.default_rng((int(latents[0]), 7))
        count = len(alive) * 10
        return pl.DataFrame(
            {
                "latent": np.repeat(alive, 10),
                "other": rng.integers(0, self.d_sae, count),
                "kind": np.tile(["decoder"] * 5 + ["cofire"] * 5, len(alive)),
                "rank": np.tile([*range(5)] * 2, len(alive)),
                "value": rng.random(count) * 0.9,
                "num_tokens": rng.integers(1, 1000, count),
                "share": rng.random(count),
                "lift": rng.random(count) * 30,
            }
        )

    def _latent_scores(self, latents: np.ndarray) -> pl.DataFrame:
        alive, rng = self._alive(latents), np.random.default_rng((int(latents[0]), 5))
        parts = [
            pl.DataFrame(
                {
                    "latent": alive,
                    "metric": metric,
                    "name": name,
                    "definition": "held_out",
                    "value": rng.random(len(alive)),
                    "method": method,
                }
            )
            for metric, name, method in (
                ("decoder_geometry", "map_x", ""),
                ("decoder_geometry", "map_y", ""),
                ("autointerp", "autointerp_balanced_accuracy", "max_act"),
            )
        ]
        return pl.concat(parts)

    def of_experiment(self) -> pl.DataFrame:
        return pl.DataFrame()

    def of_sae(self) -> dict[str, Any]:
        return {"model": "made-up", "kind": "topk", "tokens": 10**6, "d_in": 64}


class Fixed:
    """A `Source` of given rows, by table; columns that are not given are NULL."""

    def __init__(
        self, tables: dict[str, list[dict[str, Any]]], home: Path = Path("/nowhere")
    ) -> None:
        self.cell, self.home = Cell("e'x", "resid_post.2", "topk-w8"), home
        self.tables, self.sae = tables, dict[str, Any]()

    def rows(self, table: str, low: int | None = None, high: int | None = None) -> pl.DataFrame:
        rows = self.tables.get(table, [])
        if low is not None or high is not None:
            rows = [row for row in rows if (low or 0) <= row["latent"] < (high or 2**62)]
        known = {column.name: column.dtype for column in TABLES[table].columns}
        schema = {name: known[name] for row in rows[:1] for name in row}
        return shaped(pl.DataFrame(rows, schema=schema), table)

    def of_experiment(self) -> pl.DataFrame:
        return pl.DataFrame()

    def of_sae(self) -> dict[str, Any]:
        return self.sae
