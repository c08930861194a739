"""The bundled world as one page: documents with their concepts, the inventory, what models learned.

Self-contained HTML without a network or a server; a word shows its concepts, a concept shows its
words. Texts are escaped by the template, and the content policy forbids every script but its own.
"""

from base64 import b64encode
from collections.abc import Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import altair as alt
import jinja2
import polars as pl
from markupsafe import Markup

from sae_lib.artifacts import write_atomically
from sae_lib.report.study import TEMPLATES, count, number
from sae_lib.report.theme import described, to_svg
from sae_lib.synthetic.world.concepts import CONCEPTS, close, concepts_of_word
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import Document, documents
from sae_lib.synthetic.world.kinds import KINDS

LOSSES = ("loss", "floor", "excess")


class ShownWord(NamedTuple):
    """A word with the places of its concepts in the page's list."""

    text: str
    concepts: list[int]


class ShownDocument(NamedTuple):
    """A document as the page shows it."""

    labels: list[tuple[str, str]]
    words: list[ShownWord]
    floor: float
    """Nats per token of an ideal predictor."""


def sample(cfg: WorldConfig, per_kind: int) -> dict[str, list[Document]]:
    """The first test documents of every kind, the kinds that no model is trained on included."""
    return {
        kind: list(documents(cfg.but(kind_weights={kind: 1.0}), 0, per_kind, split="test"))
        for kind in KINDS
    }


def world_page(
    out: Path,
    concepts: Sequence[Mapping[str, Any]],
    abilities: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    per_kind: int = 3,
    cfg: WorldConfig | None = None,
) -> Path:
    """Write the page to ``out``, replacing what is there.

    ``concepts`` are rows of the table of that name, ``abilities`` rows by model; both may be
    empty, and the page says so.
    """
    places = {id: place for place, id in enumerate(CONCEPTS)}
    frequencies = {row["concept"]: row["frequency"] for row in concepts}
    inventory = [
        {
            "place": places[id],
            "id": id,
            "scope": one.scope,
            "description": one.description,
            "parents": ", ".join(one.parents),
            "frequency": frequencies.get(id),
        }
        for id, one in CONCEPTS.items()
    ]
    shown = {
        kind: [_shown(doc, places) for doc in docs]
        for kind, docs in sample(cfg or WorldConfig(), per_kind).items()
    }
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters |= {"number": number, "count": count}
    script = (TEMPLATES / "world.js").read_text("utf-8")
    policy = b64encode(sha256(script.encode()).digest()).decode()
    page = environment.get_template("world.html").render(
        style=Markup((TEMPLATES / "study.css").read_text("utf-8")),
        script=Markup(script),
        script_hash=f"sha256-{policy}",
        kinds=[(KINDS[name], docs) for name, docs in shown.items()],
        names=list(CONCEPTS),
        inventory=inventory,
        models=[
            {
                "name": name,
                "chart": Markup(_chart(rows, f"{name}-")),
                "tasks": [row for row in rows if row["what"] not in LOSSES],
                "excess": next(
                    (r["value"] for r in rows if (r["what"], r["part"]) == ("excess", "all")), None
                ),
            }
            for name, rows in abilities.items()
        ],
    )
    write_atomically(out, page)
    return out


def _shown(doc: Document, places: Mapping[str, int]) -> ShownDocument:
    words = [
        ShownWord(word, sorted(places[id] for id in concepts_of_word(word) | close(context)))
        for word, context in zip(doc.tokens, doc.contexts, strict=True)
    ]
    return ShownDocument(list(doc.labels.items()), words, doc.nll / (len(doc.tokens) + 1))


def _chart(rows: Sequence[Mapping[str, Any]], prefix: str) -> str:
    """Loss of the model over the floor, by kind of document."""
    frame = pl.DataFrame(
        [
            {"kind": row["part"], "what": row["what"], "nats per token": row["value"]}
            for row in rows
            if row["what"] in ("floor", "excess")
        ]
    )
    if frame.is_empty():
        return ""
    chart = (
        alt.Chart(frame)
        .mark_bar()
        .encode(
            y=alt.Y("kind:N", sort="-x", title=None),
            x=alt.X("nats per token:Q", stack=True),
            color=alt.Color(
                "what:N", title=None, scale=alt.Scale(domain=["floor", "excess"]),
            ),
            order=alt.Order("what:N", sort="descending"),
            tooltip=["kind", "what", "nats per token"],
        )
        .properties(width=420)
    )  # fmt: skip
    svg = to_svg(chart, theme="inherit", prefix=prefix)
    return described(svg, "Loss of the model by kind of document: the entropy floor and the excess")
