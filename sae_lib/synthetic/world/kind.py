"""What a kind of document is. Each has a file in ``kinds/`` that registers it."""

from collections.abc import Callable
from typing import NamedTuple

from sae_lib.registry import Registry
from sae_lib.synthetic.world.concepts import declare
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.writer import Writer


class Kind(NamedTuple):
    """A probabilistic grammar."""

    name: str
    description: str
    write: Callable[[Writer, WorldConfig], None]
    """Write one document. The text must tell which choices were made (see `Writer`)."""
    weight: float
    """Share of documents in the default world; shares need not sum to one, and 0 leaves a kind
    out unless it is asked for."""

    @property
    def concept(self) -> str:
        return f"kind-{self.name}"


KINDS: Registry[Kind] = Registry("kind of document")

declare("kind", "The document is of some known kind.", scope="context")
declare("question-part", "The word belongs to a question.", scope="context")
declare("answer-part", "The word belongs to an answer.", scope="context")


def register(kind: Kind) -> Kind:
    declare(
        kind.concept,
        f"The document is of the kind {kind.name}: {kind.description}.",
        parents=("kind",),
        scope="context",
    )
    return KINDS.add(kind.name, kind)
