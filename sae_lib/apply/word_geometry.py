"""Is a concept of the world a direction of the model's word vectors, or a list of words?

A dictionary that minimises squared error spends its latents on what the vectors are made of. Two
questions about the rows of the input embedding (and of the output embedding, where it is another
matrix), asked of the concepts that the word alone decides:

* ``explained``: which share of the variance of the vectors is a sum of one vector per concept
  (least squares on the indicators)? The rest is particular to single words.
* ``held_out_auc``: does a logistic probe that saw half of a concept's words, and half of the
  others, tell the other halves apart? If so the concept is more than the list of its words.

Control of both: the same vectors dealt to other words at random. It is not 0 for ``explained``: as
many numbers as there are independent concepts fit a share of any vectors.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression

from sae_lib.activations.world_tokens import enough_documents, word_id
from sae_lib.apply.concept_probes import auc
from sae_lib.errors import BadInput
from sae_lib.models.language_model import LanguageModel
from sae_lib.synthetic.world.concepts import concepts_of_word
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.truth import concept_ids

Vectors = Float[np.ndarray, "words width"]
Indicators = Bool[np.ndarray, "words concepts"]

DEALS = 10
"""Times that the vectors are dealt anew for the chance level of what is explained."""

LEAST_WORDS = 8
"""Words of a concept, and words without it, that probes of held-out words need."""

HIGH_AUC = 0.95


class WordMeasure(NamedTuple):
    """One number about the word vectors of a model, beside what chance gives."""

    embedding: str
    """input or output."""

    what: str
    value: float
    control: float
    """The same number when the vectors are dealt to other words."""

    n: int
    unit: str
    """What ``n`` counts: words or concepts."""

    description: str


def explained(vectors: Vectors, indicators: Indicators) -> float:
    """Share of the variance over words that is a sum of one vector per concept, in [0, 1].

    Least squares with an intercept; every word weighs the same, the variance is summed over
    coordinates. Raises `BadInput` when all vectors are equal.
    """
    centred = (vectors - vectors.mean(0)).astype(np.float64)
    total = float((centred**2).sum())
    if total == 0:
        raise BadInput("all words have the same vector, so nothing can be explained.")
    return float(((_basis(indicators).T @ centred) ** 2).sum() / total)


def _basis(indicators: Indicators) -> Float[np.ndarray, "words independent"]:
    """Orthonormal, of what indicators span beside a constant; some follow from others."""
    shifted = indicators - indicators.mean(0)
    basis, sizes, _ = np.linalg.svd(shifted, full_matrices=False)
    return basis[:, sizes > 1e-8 * max(1.0, sizes[0])]


def held_out(vectors: Vectors, indicators: Indicators, *, seed: int = 0) -> list[float]:
    """Area under the ROC curve on words that a concept's probe has not seen, one per concept.

    Concepts with fewer than `LEAST_WORDS` words, or as few without it, are left out. Half of the
    words of either side are for fitting (balanced classes, C = 1, mean variance scaled to 1).
    """
    draw = np.random.default_rng(seed)
    scaled = vectors - vectors.mean(0)
    scaled = scaled / max(float(scaled.std()), 1e-12)
    areas = []
    for column in indicators.T:
        true, false = (draw.permutation(np.flatnonzero(side)) for side in (column, ~column))
        if min(len(true), len(false)) < LEAST_WORDS:
            continue
        fitted = np.concatenate([true[: len(true) // 2], false[: len(false) // 2]])
        probe = LogisticRegression(class_weight="balanced", max_iter=1000)
        probe.fit(scaled[fitted], column[fitted])
        scores = probe.decision_function(scaled)
        areas.append(auc(scores[true[len(true) // 2 :]], scores[false[len(false) // 2 :]]))
    return areas


def measure_words(
    vectors: Vectors, indicators: Indicators, embedding: str, *, seed: int = 0
) -> list[WordMeasure]:
    """Both measures of one matrix of word vectors, and their controls."""
    draw = np.random.default_rng(seed)
    deals = [draw.permutation(len(vectors)) for _ in range(DEALS)]
    rows = [
        WordMeasure(
            embedding,
            "explained",
            explained(vectors, indicators),
            float(np.mean([explained(vectors[deal], indicators) for deal in deals])),
            len(vectors),
            "words",
            "share of the variance of word vectors that is a sum of one vector per concept",
        )
    ]
    areas, control = (
        np.array(held_out(v, indicators, seed=seed)) for v in (vectors, vectors[deals[0]])
    )
    if len(areas):
        num, unit = len(areas), "concepts"
        rows += [
            WordMeasure(
                embedding, "held_out_auc", float(np.median(areas)), float(np.median(control)),
                num, unit, "median area under the ROC curve of probes on unseen words",
            ),
            WordMeasure(
                embedding, "held_out_high", float((areas >= HIGH_AUC).mean()),
                float((control >= HIGH_AUC).mean()), num, unit,
                f"share of concepts with an area of {HIGH_AUC} or more on unseen words",
            ),
        ]  # fmt: skip
    return rows


def known_words(cfg: WorldConfig, num_tokens: int, least: int, *, split: str) -> list[str]:
    """Words that occur ``least`` times or more in the first ``num_tokens`` words, sorted."""
    counts = Counter(
        word for doc in enough_documents(cfg, num_tokens, split=split) for word in doc.tokens
    )
    return sorted(word for word, count in counts.items() if count >= least)


def indicators_of(words: Sequence[str]) -> Indicators:
    """Which token concept (in the order of ``concept_ids("token")``) each word carries."""
    columns = {id: column for column, id in enumerate(concept_ids("token"))}
    found = np.zeros((len(words), len(columns)), dtype=bool)
    for row, word in enumerate(words):
        found[row, [columns[id] for id in concepts_of_word(word)]] = True
    return found


def word_geometry(
    model: LanguageModel,
    *,
    cfg: WorldConfig | None = None,
    tokens: int = 300_000,
    least: int = 5,
    seed: int = 0,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[WordMeasure]:
    """Both measures for each embedding of a model that reads the world.

    Vectors of words that were hardly trained say nothing, so only those count that occur ``least``
    times or more in ``tokens`` words of training documents. Raises `BadInput` when the model's
    tokenizer does not know them.
    """
    words = known_words(cfg or WorldConfig(), tokens, least, split="words/train")
    ids = model.tokenizer.get_vocab()
    places = [word_id(ids, word) for word in words]
    indicators = indicators_of(words)
    matrices = {"input": model.model.get_input_embeddings().weight}
    if model.has_lm_head and model.unembedding().data_ptr() != matrices["input"].data_ptr():
        matrices["output"] = model.unembedding()
    rows = []
    for done, (name, matrix) in enumerate(matrices.items()):
        vectors = matrix.detach()[places].float().cpu().numpy()
        rows += measure_words(vectors, indicators, name, seed=seed)
        on_progress(done + 1, len(matrices))
    return rows
