"""Texts of the domain: from a file, or of a rare subdomain of the bundled world."""

from itertools import islice
from pathlib import Path

from sae_lib.activations import _readers
from sae_lib.errors import BadInput, UnknownName

DOCUMENT_CHARS = 2000
"""A .txt file is cut at blank lines into seeds of at least this many characters."""

SPLIT = "test"
"""Seeds of the world are of this split, so none of them is trained or evaluated on."""


def seed_texts(
    *, queries: Path | None = None, concept: str | None = None, count: int, column: str = "text"
) -> list[str]:
    """The first ``count`` texts of the file, or of the subdomain, or all if there are fewer.

    Raises:
        MissingFile: there is no such file.
        BadInput: not exactly one source is given, or the file cannot be read or has no text.
        UnknownName: the world has no such rare subdomain.
    """
    if (queries is None) == (concept is None):
        raise BadInput("give exactly one of queries (a file) and concept (a rare subdomain).")
    if concept is not None:
        return world_notes(concept, count)
    assert queries is not None
    found: list[str] = []
    for file in _readers.text_files(queries, key="objective.queries"):
        texts = _readers.texts(
            file, column=column, column_key="objective.column", document_chars=DOCUMENT_CHARS
        )
        found += islice(texts, count - len(found))
    if not found:
        raise BadInput("the file has no text.", file=queries, key="objective.queries")
    return found


def world_notes(concept: str, count: int) -> list[str]:
    """``count`` notes of the bundled world about a rare subdomain.

    They are drawn with subdomains about equally common; the text of a note does not depend on how
    rare its subdomain is.
    """
    from sae_lib.synthetic.world.config import WorldConfig
    from sae_lib.synthetic.world.generate import documents, text
    from sae_lib.synthetic.world.kinds.rare import SUBDOMAINS

    if concept not in SUBDOMAINS:
        raise UnknownName("rare subdomain of the world", concept, SUBDOMAINS)
    cfg = WorldConfig(kind_weights={"rare": 1.0}, rarity=1e-6)
    mine = (doc for doc in documents(cfg, split=SPLIT) if doc.labels["subdomain"] == concept)
    return list(islice((text(doc) for doc in mine), count))
