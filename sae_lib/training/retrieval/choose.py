"""From a description of a domain to the contexts a specialised SAE is trained on."""

from collections.abc import Sequence

from sae_lib.activations.tokens import TokenSplit
from sae_lib.errors import BadInput
from sae_lib.models.language_model import LanguageModel
from sae_lib.training.objectives.specialized import SpecializedConfig
from sae_lib.training.retrieval.base import Chosen, best, texts_of
from sae_lib.training.retrieval.bm25 import bm25_scores
from sae_lib.training.retrieval.dense import dense_scores
from sae_lib.training.retrieval.tracin import Checkpoint, Read, read_texts, tracin_scores


def choose_contexts(
    cfg: SpecializedConfig,
    split: TokenSplit,
    model: LanguageModel,
    seeds: Sequence[str],
    *,
    encoder: LanguageModel | None = None,
    site: str | None = None,
    checkpoints: Sequence[Checkpoint] = (),
    read: Read | None = None,
) -> Chosen:
    """The contexts of ``split`` that ``cfg`` asks for, and their scores.

    Args:
        cfg: How to retrieve and rerank, and how many to keep.
        split: Contexts in the tokens of ``model``.
        model: The model under study.
        seeds: Texts of the domain (`seed_texts`).
        encoder: What embeds texts for dense retrieval, instead of ``model``.
        site: Where the SAE of TracIn reads.
        checkpoints: General SAEs for TracIn, with learning rates.
        read: How TracIn gets activations of contexts (`tracin.stored`, `tracin.streamed`).

    Raises:
        BadInput: ``cfg`` retrieves nothing, more contexts are asked for than there are, there is no
            seed, or TracIn lacks what it needs.
    """
    if cfg.retrieve == "none" or cfg.contexts is None:
        raise BadInput(
            "nothing is retrieved; all contexts are trained on.",
            key="objective.retrieve",
            value=cfg.retrieve,
        )
    if not seeds:
        raise BadInput("there is no seed text.", key="objective.queries")
    if not cfg.contexts <= split.num_contexts:
        raise BadInput(
            f"the corpus has {split.num_contexts} contexts; choose fewer.",
            key="objective.contexts",
            value=cfg.contexts,
        )
    if cfg.rerank == "tracin" and (site is None or read is None or not checkpoints):
        raise BadInput(
            "TracIn needs a general SAE, its site and its activations.",
            key="objective.rerank",
            value=cfg.rerank,
        )
    if cfg.retrieve == "bm25":
        scores = bm25_scores(texts_of(split, model.tokenizer), seeds, k1=cfg.k1, b=cfg.b)
    else:
        scores = dense_scores(split, model, seeds, encoder=encoder)
    if cfg.rerank == "none":
        return best(scores, cfg.contexts)
    assert site is not None
    assert read is not None
    count = min(split.num_contexts, cfg.candidates_per_context * cfg.contexts)
    candidates = best(scores, count).contexts
    found = list(read_texts(model, site, seeds))
    reranked = tracin_scores(checkpoints, found, read, candidates)
    return best(reranked, cfg.contexts, candidates)
