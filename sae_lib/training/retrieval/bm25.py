"""BM25: contexts that share rare words with the seeds.

    score(s, c) = sum over words w of s  idf(w) tf (k1 + 1) / (tf + k1 (1 - b + b len(c) / avg))
    idf(w)      = log(1 + (N - df + 1/2) / (df + 1/2))

with tf the count of w in c, df the contexts that have w, N all contexts, len and avg in words. A
word that stands in a seed twice counts twice. The score of a context is its mean over the seeds.
Words are runs of letters, digits and underscores, in lower case; there is no list of stop words,
which idf makes unnecessary.
"""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

import bm25s
import numpy as np
from jaxtyping import Float64
from scipy.sparse import csc_matrix

from sae_lib.errors import BadInput

K1, B = 1.5, 0.75
"""Robertson and Zaragoza (2009): k1 in 1.2 to 2, b in 0.5 to 0.8; these are the usual ones."""

_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words of ``text``, in order."""
    return _WORD.findall(text.lower())


def bm25_scores(
    texts: Iterable[str], seeds: Sequence[str], *, k1: float = K1, b: float = B
) -> Float64[np.ndarray, " contexts"]:
    """The score of each of ``texts``.

    In memory are the words of all texts, and the weight of every word in every text.

    Raises:
        BadInput: there is no text or no seed with a word, or no text has a word of a seed.
    """
    found = [words_of(text) for text in texts]
    query = Counter(word for seed in seeds for word in words_of(seed))
    if not query or not any(found):
        raise BadInput("BM25 compares words, and the seeds or the contexts have none.")
    index = bm25s.BM25(k1=k1, b=b, method="atire", idf_method="lucene", dtype="float64")
    index.index(found, show_progress=False)
    parts = index.scores
    # the index adds an empty word to its vocabulary, which has no column where every text has words
    weights = np.zeros(max(len(parts["indptr"]) - 1, len(index.vocab_dict)))
    for word, count in query.items():
        if word in index.vocab_dict:
            weights[index.vocab_dict[word]] = count / len(seeds)
    if not weights.any():
        raise BadInput(
            "no context has a word of the seeds; are they of the language of the corpus?",
            value=" ".join(list(query)[:8]),
        )
    num_columns = len(parts["indptr"]) - 1
    matrix = csc_matrix(
        (parts["data"], parts["indices"], parts["indptr"]), shape=(len(found), num_columns)
    )
    return np.asarray(matrix @ weights[:num_columns], np.float64)
