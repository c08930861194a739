"""The truth as a matrix: which concepts are active at which token."""

from collections.abc import Iterable
from functools import cache

import numpy as np
from scipy.sparse import csr_matrix

from sae_lib.synthetic.world.concepts import CONCEPTS, Scope, close, concepts_of_word
from sae_lib.synthetic.world.generate import Document
from sae_lib.synthetic.world.writer import Contexts


def concept_ids(scope: Scope | None = None) -> list[str]:
    """Ids of all concepts (of one scope), sorted: the columns of `concept_matrix`."""
    return [id for id, concept in CONCEPTS.items() if scope in (None, concept.scope)]


@cache
def _columns(scope: Scope | None) -> dict[str, int]:
    return {id: column for column, id in enumerate(concept_ids(scope))}


@cache
def _active(word: str, context: Contexts, scope: Scope | None) -> tuple[int, ...]:
    columns = _columns(scope)
    ids = concepts_of_word(word) | close(context)
    return tuple(sorted(columns[id] for id in ids if id in columns))


def concept_matrix(
    documents: Iterable[Document], *, scope: Scope | None = None, with_specials: bool = True
) -> csr_matrix:
    """Ones where a concept is active, int8, of shape (num_tokens, num_concepts).

    Rows follow the stream ``<bos> words <eos> <bos> words ...`` that a model reads; the special
    tokens carry no concepts and are left out when ``with_specials`` is false. Columns are
    `concept_ids` of the same ``scope``.
    """
    ends: list[int] = [0]
    columns: list[int] = []
    for doc in documents:
        if with_specials:
            ends.append(len(columns))
        for word, context in zip(doc.tokens, doc.contexts, strict=True):
            columns += _active(word, context, scope)
            ends.append(len(columns))
        if with_specials:
            ends.append(len(columns))
    return csr_matrix(
        (np.ones(len(columns), dtype=np.int8), np.array(columns, dtype=np.int32), np.array(ends)),
        shape=(len(ends) - 1, len(concept_ids(scope))),
    )


def concept_frequencies(matrix: csr_matrix) -> np.ndarray:
    """Share of tokens at which each concept is active, in [0, 1]."""
    return np.asarray(matrix.sum(axis=0, dtype=np.int64)).ravel() / max(1, len(matrix.indptr) - 1)
