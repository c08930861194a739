"""Activations of the bundled world's documents beside what is true of every token."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from scipy.sparse import csr_matrix
from torch import Tensor

from sae_lib.activations.harvest import CapturesSites
from sae_lib.errors import BadInput
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import Document, documents
from sae_lib.synthetic.world.truth import concept_ids, concept_matrix

BATCH_DOCUMENTS = 64


class WorldTokens(NamedTuple):
    """Words of documents, one row each; special tokens are left out."""

    x: dict[str, Float[Tensor, "tokens _"]]
    """Raw activations by site, float32 on the CPU."""

    truth: csr_matrix
    """Ones where a concept is active, (tokens, concepts); columns are ``concepts``."""

    concepts: list[str]
    document: Float[Tensor, " tokens"] | Tensor
    """Number of each token's document within those that were read."""

    kinds: list[str]
    """Kind of each document."""


def enough_documents(cfg: WorldConfig, num_tokens: int, *, split: str) -> list[Document]:
    """The first documents of a split with at least ``num_tokens`` words together."""
    found: list[Document] = []
    words = 0
    for doc in documents(cfg, split=split):
        if words >= num_tokens:
            break
        found.append(doc)
        words += len(doc.tokens)
    return found


@torch.no_grad()
def read_world(
    model: CapturesSites,
    sites: Sequence[str],
    docs: Sequence[Document],
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> WorldTokens:
    """Each document alone behind its BOS, all sites in one pass over the model.

    Memory grows with the documents: 4 bytes per site, width and word. Raises `BadInput` when the
    model's tokenizer does not know the words of the world.
    """
    if not docs:
        raise BadInput("there are no documents to read.", key="documents")
    ids = _word_ids(model)
    special: Any = model.tokenizer  # pyright: ignore[reportAttributeAccessIssue]
    order = sorted(range(len(docs)), key=lambda i: len(docs[i].tokens))
    parts: dict[str, list[Tensor]] = {site: [] for site in sites}
    read: list[Document] = []
    for first in range(0, len(order), BATCH_DOCUMENTS):
        batch = [docs[i] for i in order[first : first + BATCH_DOCUMENTS]]
        width = max(len(doc.tokens) for doc in batch) + 1
        tokens = torch.full((len(batch), width), special.pad_token_id)
        mask = torch.zeros(len(batch), width, dtype=torch.bool)
        tokens[:, 0] = special.bos_token_id
        for row, doc in enumerate(batch):
            here = slice(1, len(doc.tokens) + 1)
            tokens[row, here] = torch.tensor([word_id(ids, word) for word in doc.tokens])
            mask[row, : len(doc.tokens) + 1] = True
        captured = model.capture(tokens, list(sites), mask=mask)
        keep = mask.clone()
        keep[:, 0] = False
        for site in sites:
            at = captured[site]
            parts[site].append(at[keep.to(at.device)].float().cpu())
        read += batch
        on_progress(min(first + BATCH_DOCUMENTS, len(order)), len(order))
    return WorldTokens(
        {site: torch.cat(found) for site, found in parts.items()},
        concept_matrix(read, with_specials=False),
        concept_ids(),
        torch.repeat_interleave(torch.tensor([len(doc.tokens) for doc in read])),
        [doc.kind for doc in read],
    )


def _word_ids(model: CapturesSites) -> dict[str, int]:
    return model.tokenizer.get_vocab()  # pyright: ignore[reportAttributeAccessIssue]


def word_id(ids: dict[str, int], word: str) -> int:
    """The word's number in a tokenizer's vocabulary; raises `BadInput` where it has none."""
    if word not in ids:
        raise BadInput(
            "the model's tokenizer does not know this word of the world; use a bundled model of "
            "the world, or one that was trained on it with `sae world train`.",
            key="model",
            value=word,
        )
    return ids[word]
