"""Documents of the world, any number of them, in any order.

Document *i* of a split depends on the config and on (split, i) only, so it is the same whatever
was drawn before, and the splits share no stream.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Literal

from sae_lib.errors import BadInput
from sae_lib.synthetic.world.concepts import close, concepts_of_word
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kinds import KINDS
from sae_lib.synthetic.world.writer import Contexts, Table, Writer

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Document:
    """Words with what is true of them."""

    index: int
    split: str
    kind: str
    tokens: tuple[str, ...]
    contexts: tuple[Contexts, ...]
    """Per token, context concepts as the grammar stated them; `concepts` closes them."""
    labels: dict[str, str]
    """What is true of the document, such as ``sentiment: positive``; keys depend on the kind."""
    marks: dict[str, int]
    """Named places, as a number of tokens before them."""
    nll: float
    """-log p(text and its end) under the generator, nats, the choice of kind included."""

    @property
    def concepts(self) -> list[frozenset[str]]:
        """Per token, ids of the active concepts of both scopes, closed under parents."""
        return [
            concepts_of_word(word) | close(context)
            for word, context in zip(self.tokens, self.contexts, strict=True)
        ]


def text(document: Document) -> str:
    """The document as words with single spaces between them."""
    return " ".join(document.tokens)


@cache
def _kinds(weights: tuple[tuple[str, float], ...]) -> Table[str]:
    return Table([name for name, _ in weights], [weight for _, weight in weights])


def document(cfg: WorldConfig, index: int, *, split: str = "train") -> Document:
    """Document ``index`` of ``split``; other streams may be named freely."""
    if index < 0:
        raise BadInput("documents are numbered from 0", key="index", value=index)
    stream = f"{cfg.seed}/{split}/{index}".encode()
    w = Writer(int.from_bytes(hashlib.blake2b(stream, digest_size=8).digest()))
    name = w.draw(_kinds(tuple(sorted(cfg.kind_weights.items()))))
    kind = KINDS[name]
    w.set_context(kind.concept)
    kind.write(w, cfg)
    return Document(
        index, split, name, tuple(w.tokens), tuple(w.contexts), w.labels, w.marks, w.nll
    )


def documents(
    cfg: WorldConfig, start: int = 0, stop: int | None = None, *, split: str = "train"
) -> Iterator[Document]:
    """Documents ``start`` to ``stop`` (not included) of ``split``; without end if None."""
    index = start
    while stop is None or index < stop:
        yield document(cfg, index, split=split)
        index += 1


def floor(cfg: WorldConfig, num_documents: int, *, split: str = "test") -> dict[str, float]:
    """Mean surprise of an ideal predictor, nats per predicted token, by kind and for ``all``.

    Predicted tokens are all words of a document and its end mark. The documents are read one by
    one from their start; a model that reads contexts cut from a stream knows less.
    """
    nats: dict[str, float] = {}
    tokens: dict[str, int] = {}
    for doc in documents(cfg, 0, num_documents, split=split):
        for key in (doc.kind, "all"):
            nats[key] = nats.get(key, 0.0) + doc.nll
            tokens[key] = tokens.get(key, 0) + len(doc.tokens) + 1
    return {key: nats[key] / tokens[key] for key in sorted(nats)}
