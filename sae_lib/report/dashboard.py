"""All latents of one SAE as one page: a self-contained HTML file that needs no network.

The page holds what the warehouse holds about the latents, packed (`_dashboard_data`): a list of
all of them, which is read at once, and chunks that are read when a latent in them is looked at. It
stays below `MAX_BYTES`: where everything would be more, less is kept of each latent, and the page
says what was left out. Text from models and corpora is never markup: the script builds text nodes
alone, and the content policy forbids every script and style but the page's own, by their hashes.
"""

import json
from base64 import b64encode
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import numpy as np
import polars as pl
from markupsafe import Markup

from sae_lib.artifacts import write_atomically
from sae_lib.errors import BadInput
from sae_lib.report import _dashboard_data as data
from sae_lib.report._dashboard_gather import BATCH, Gathered, gather
from sae_lib.report._dashboard_source import (
    Cell,
    Landed,
    Published,
    Source,
    find_cell,
    questions,
)

__all__ = ["Cell", "Dashboard", "Landed", "Published", "Source", "dashboard", "find_cell"]

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("dashboard.js", "dashboard_latent.js", "dashboard_map.js", "dashboard_keys.js")

MAX_BYTES = 25_000_000
"""Largest page."""

_ESTIMATED = 8
"""Chunks by which the size of a level is judged before all are packed."""


_FRAME_BYTES = 150_000
"""Room for everything that is not data."""

_TAG_BYTES = 60
"""What is around each chunk."""


class Dashboard(NamedTuple):
    """A page that was written."""

    path: Path
    num_bytes: int
    num_latents: int
    """Latents on the page."""

    left_out: list[str]
    """What of the rows is not on the page, in sentences."""

    absent: list[str]
    """What there are no rows of, in sentences."""


def dashboard(
    source: Source, out: Path, *, latents: int | None = None, max_bytes: int = MAX_BYTES
) -> Dashboard:
    """Write the page of the SAE that ``source`` has rows of; an existing file is replaced.

    ``latents`` bounds how many are on it: first those that fire, on neither very few tokens nor
    very many, then those with the best score. Raises `NotApplicable` where there are none.
    """
    if latents is not None and latents < 1:
        raise BadInput("a dashboard has at least one latent.", key="latents", value=latents)
    gathered = gather(source)
    total = len(gathered.listed)
    wanted, left_out = _wanted(gathered.listed, latents), []
    if len(wanted) < total:
        left_out.append(f"{len(wanted):,} of {total:,} latents are on this page, as asked for.")
    level, chunks, fitting = _fitted(source, gathered, wanted, max_bytes)
    if len(fitting) < len(wanted):
        left_out.append(
            f"{len(fitting):,} of {len(wanted):,} latents are on this page, to keep it below "
            f"{max_bytes / 1e6:.0f} MB."
        )
    left_out += _trimmed(level, max_bytes)
    page = _page(source, gathered, fitting, level, chunks, left_out)
    write_atomically(out, page)
    return Dashboard(
        out, len(page.encode()), len(fitting), left_out, [text for _, text in gathered.absent]
    )


def _wanted(listed: pl.DataFrame, most: int | None) -> list[int]:
    """The latents to show, by number; of too many the ones worth looking at first."""
    if most is None or most >= len(listed):
        return listed["latent"].to_list()
    ordered = listed.sort(
        pl.col("density") > 0,
        pl.col("density").is_between(1e-5, data.DENSE),
        "score",
        "max_activation",
        descending=[True] * 4,
        nulls_last=True,
        maintain_order=True,
    )
    return sorted(ordered["latent"].head(most).to_list())


def _batches(
    source: Source, gathered: Gathered, latents: Sequence[int]
) -> Iterator[tuple[data.Rows, list[list[int]]]]:
    """Rows of some latents at a time, with the chunks they make."""
    size = BATCH // data.CHUNK * data.CHUNK
    for start in range(0, len(latents), size):
        part = list(latents[start : start + size])
        yield (
            _rows(source, gathered, part),
            [part[i : i + data.CHUNK] for i in range(0, len(part), data.CHUNK)],
        )


def _rows(source: Source, gathered: Gathered, latents: Sequence[int]) -> data.Rows:
    low, high = min(latents), max(latents) + 1
    pairs = gathered.pairs
    recorded = source.rows("latent_pairs", low, high).sort("latent", "kind", "rank")
    if pairs is not None:
        recorded = pl.concat([pairs, recorded.filter(kind="cofire")], how="diagonal_relaxed")
    return data.Rows(
        source.rows("latents", low, high),
        source.rows("explanations", low, high),
        source.rows("examples", low, high).sort("latent", "kind", "interval", "rank"),
        recorded,
        gathered.scores,
    )


def _fitted(
    source: Source, gathered: Gathered, wanted: list[int], max_bytes: int
) -> tuple[data.Level, list[str], list[int]]:
    """The fullest level that fits, its chunks, and the latents; all of them wherever possible."""
    while True:
        room = max_bytes - len(data.packed(_index(gathered, wanted))) - _FRAME_BYTES
        size = 0.0
        for level in data.LEVELS:
            size = _estimate(source, gathered, wanted, level)
            if size > room:
                continue
            chunks = [
                data.packed(data.chunk(rows, latents, level, gathered.concepts))
                for rows, parts in _batches(source, gathered, wanted)
                for latents in parts
            ]
            size = float(sum(map(len, chunks)) + _TAG_BYTES * len(chunks))
            if size <= room:
                return level, chunks, wanted
        if len(wanted) == 1 or room <= 0:
            text = "one latent alone is more than the page may have."
            raise BadInput(text, key="max_bytes", value=max_bytes)
        most = max(1, int(len(wanted) * min(0.9, 0.95 * room / size)))
        wanted = _wanted(gathered.listed.filter(pl.col("latent").is_in(wanted)), most)


def _estimate(source: Source, gathered: Gathered, wanted: list[int], level: data.Level) -> float:
    """Bytes of all chunks, from some of them spread over the SAE."""
    starts = list(range(0, len(wanted), data.CHUNK))
    if len(starts) <= _ESTIMATED:
        return 0.0  # then all are packed, which is as quick
    some = starts[:: len(starts) // _ESTIMATED]
    sizes = []
    for start in some:
        latents = wanted[start : start + data.CHUNK]
        found = data.chunk(_rows(source, gathered, latents), latents, level, gathered.concepts)
        sizes.append(len(data.packed(found)) + _TAG_BYTES)
    return float(np.mean(sizes)) * len(starts) * 0.98


def _trimmed(level: data.Level, max_bytes: int) -> list[str]:
    if level in data.LEVELS[:2]:
        return []
    return [
        f"To keep the page below {max_bytes / 1e6:.0f} MB it holds of each latent at most "
        f"{level.top} of the strongest examples, {level.per_interval} per interval of strength, "
        f"{level.silent} silent ones and {level.near_miss} near misses, with {level.radius} tokens "
        f"on either side, and {level.words} keywords per list. The SQL of each panel has them all."
    ]


def _index(gathered: Gathered, latents: Sequence[int]) -> dict[str, Any]:
    """The list of latents, column by column."""
    wanted = pl.DataFrame({"latent": latents}, schema={"latent": pl.Int64})
    listed = wanted.join(gathered.listed, on="latent", how="left", maintain_order="left")
    concepts = listed["concept"].drop_nulls().unique().sort()
    names = concepts.to_frame().with_row_index("place")
    concept = listed.join(names, on="concept", how="left", maintain_order="left")["place"]
    whats = listed["what"].drop_nulls().unique().sort().to_list()
    what = {name: place for place, name in enumerate(whats)}

    def numbers(column: str, digits: int = 3) -> list[float | None]:
        return data.significant(listed[column].to_numpy(), digits)

    return {
        "latent": latents,
        "label": listed["label"].to_list(),
        "density": numbers("density"),
        "max": numbers("max_activation", 4),
        "score": numbers("score"),
        "what": [None if name is None else what[name] for name in listed["what"]],
        "whats": whats,
        "confidence": numbers("confidence"),
        "concept": concept.to_list(),
        "concepts": concepts.to_list(),
        "f1": numbers("f1"),
        "cosine": numbers("cosine"),
        "x": numbers("x", 4),
        "y": numbers("y", 4),
    }


def _page(
    source: Source,
    gathered: Gathered,
    latents: Sequence[int],
    level: data.Level,
    chunks: Sequence[str],
    left_out: Sequence[str],
) -> str:
    cell, sae = source.cell, gathered.sae
    experiment = source.of_experiment()
    about = experiment.row(0, named=True) if len(experiment) else {}
    config = json.loads(sae.get("config") or "{}")
    index = _index(gathered, latents) | {
        "cell": cell._asdict(),
        "sql": questions(cell),
        "chunk": data.CHUNK,
        "dense": data.DENSE,
        "duplicate": data.DUPLICATE,
        "signed": data.SIGNED,
        "absent": dict(gathered.absent),
        "leftOut": list(left_out),
        "level": level._asdict(),
        "map": gathered.map.how if gathered.map else None,
    }
    facts = [
        ("experiment", cell.experiment),
        ("site", cell.site),
        ("variant", cell.variant),
        ("model", sae.get("model")),
        ("version of the model", sae.get("model_fingerprint")),
        ("architecture", sae.get("kind")),
        ("objective", sae.get("objective")),
        ("latents", f"{len(gathered.listed):,}"),
        ("width of activations", sae.get("d_in") or config.get("d_in")),
        ("tokens trained on", f"{sae['tokens']:,}" if sae.get("tokens") else None),
        ("SAE", sae.get("sae_id")),
        ("about the experiment", about.get("description")),
    ]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    script = '"use strict";\n' + "".join((TEMPLATES / n).read_text("utf-8") for n in SCRIPTS)
    style = (TEMPLATES / "dashboard.css").read_text("utf-8")
    return environment.get_template("dashboard.html").render(
        cell=cell,
        facts=[(name, str(value)) for name, value in facts if value],
        made_at=datetime.now(UTC),
        absent=gathered.absent,
        left_out=left_out,
        map_how=gathered.map.how if gathered.map else None,
        dense=data.DENSE,
        duplicate=data.DUPLICATE,
        style=Markup(style),
        style_hash=_hash(style),
        script=Markup(script),
        script_hash=_hash(script),
        index=data.packed(index),
        chunks=chunks,
    )


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
