"""Documents of the world, any number of them, in any order.

Document *i* of a split depends on the config and on (split, i) only, so it is the same whatever
was drawn before. Every text belongs to one split, by its hash: a test document never occurs in
training, however few texts its kind has.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Literal

from sae_lib.errors import BadInput
from sae_lib.synthetic.world.concepts import close, concepts_of_word
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kinds import KINDS
from sae_lib.synthetic.world.writer import Contexts, Table, Writer

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")
MOST_ATTEMPTS = 1000


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
    measures: dict[str, tuple[tuple[int, float], ...]]
    """Numbers that are true at tokens: (place of the token, number); names depend on the kind."""
    nll: float
    """-log p(text and its end) under the generator, nats, the choice of kind included."""

    def but_nll(self, nll: float) -> "Document":
        """The same document with another surprise."""
        return replace(self, nll=nll)

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


def split_of_stream(stream: str) -> Split:
    """Which split's texts a stream draws: its last part where that is a split, else the test's."""
    last = stream.rsplit("/", 1)[-1]
    return last if last in SPLITS else "test"  # type: ignore[return-value]


def split_of_text(text: str) -> Split:
    """Six eighths of all texts are for training, one for validation, one for tests."""
    place = hashlib.blake2b(text.encode(), digest_size=1).digest()[0] % 8
    return "train" if place < 6 else "validation" if place == 6 else "test"


def document(cfg: WorldConfig, index: int, *, split: str = "train") -> Document:
    """Document ``index`` of ``split``; other streams may be named freely, see `split_of_stream`."""
    if index < 0:
        raise BadInput("documents are numbered from 0", key="index", value=index)
    owner = split_of_stream(split)
    kinds = _kinds(tuple(sorted(cfg.kind_weights.items())))
    stream = f"{cfg.seed}/{split}/{index}".encode()
    seed = int.from_bytes(hashlib.blake2b(stream, digest_size=8).digest())
    head = Writer(seed)
    name = head.draw(kinds)  # before any rejection, so that kinds keep their shares
    kind = KINDS[name]
    for attempt in range(1, MOST_ATTEMPTS):
        w = Writer(seed + attempt)
        w.count(head.nll)
        w.set_context(kind.concept)
        kind.write(w, cfg)
        if split_of_text(" ".join(w.tokens)) == owner:
            return Document(
                index, split, name, tuple(w.tokens), tuple(w.contexts), w.labels, w.marks,
                {key: tuple(found) for key, found in w.measures.items()}, w.nll,
            )  # fmt: skip
    raise BadInput(
        f"no text of the kind {name} belongs to the split {owner}; its dials leave too few texts",
        key="kind_weights",
        value=cfg.kind_weights,
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
