"""An oracle latent, one that fires where a concept of the world is, must be explained by it."""

import pytest
import torch

from sae_lib.explain.statistics import LatentStatistics
from sae_lib.explain.tally import keywords
from sae_lib.synthetic.world.concepts import lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents
from sae_lib.synthetic.world.tokenizer import build_tokenizer, encode
from sae_lib.synthetic.world.truth import concept_ids, concept_matrix

CONCEPTS = [
    "sea-word",
    "sport-word",
    "animal",
    "positive-word",
    "medical-profession",
    "female-pronoun",
]
NUM_DOCUMENTS = 600


def english(concept: str) -> set[str]:
    """Words of the first language that carry the concept; the documents below have no others."""
    return set(lexicon(concept)) - set(lexicon("sindral-word"))


@pytest.fixture(scope="module")
def read():
    """Token ids, their documents, and where each of `CONCEPTS` is active (tokens, concepts)."""
    kinds = {kind: 1.0 for kind in ("biography", "facts", "news", "review", "story")}
    drawn = list(documents(WorldConfig(kind_weights=kinds), 0, NUM_DOCUMENTS))
    ids = [encode(document.tokens) for document in drawn]
    column = {name: i for i, name in enumerate(concept_ids())}
    truth = concept_matrix(drawn, with_specials=False)[:, [column[name] for name in CONCEPTS]]
    return (
        torch.tensor([token for some in ids for token in some]),
        torch.tensor([i for i, some in enumerate(ids) for _ in some]),
        torch.from_numpy(truth.toarray()).float(),
    )


def explained(read, z: torch.Tensor, rank_by: str, num_keywords: int = 20):
    token_ids, document, _ = read
    tokenizer = build_tokenizer()
    statistics = LatentStatistics(len(CONCEPTS), len(tokenizer), 80)
    statistics.update(z, torch.arange(len(z)), token_ids, document)
    is_word = torch.arange(len(tokenizer)) > 3
    found = keywords(
        statistics.tally,
        statistics.token_counts,
        is_word,
        num_keywords=num_keywords,
        rank_by=rank_by,
    )
    return {
        name: tokenizer.convert_ids_to_tokens(found[i].token_ids) for i, name in enumerate(CONCEPTS)
    }, statistics


@pytest.mark.parametrize("rank_by", ["contribution", "mean_activation"])
def test_an_oracle_latents_keywords_are_the_concepts_words(read, rank_by):
    found, _ = explained(read, read[2], rank_by)
    for name, words in found.items():
        own = english(name)
        assert len(words) >= min(len(own), 12)
        assert sum(word in own for word in words) / len(words) >= 0.95, (name, words)


def test_an_oracle_latent_that_also_fires_by_accident_is_still_explained(read):
    generator = torch.Generator().manual_seed(0)
    truth = read[2]
    strength = torch.empty_like(truth).log_normal_(0, 0.3, generator=generator)
    accident = (torch.rand(truth.shape, generator=generator) < 0.01) * 0.5
    found, _ = explained(read, truth * strength + accident, "contribution")
    for name, words in found.items():
        own = english(name)
        known = words[: min(len(own), 20)]
        assert sum(word in own for word in known) / len(known) >= 0.95, (name, words)


def test_all_the_words_of_a_concept_that_occur_are_among_its_keywords(read):
    token_ids, _, _ = read
    tokenizer = build_tokenizer()
    occurring = set(tokenizer.convert_ids_to_tokens(token_ids.unique().tolist()))
    found, _ = explained(read, read[2], "contribution", num_keywords=100)
    for name, words in found.items():
        assert set(words) == english(name) & occurring


def test_every_candidate_of_an_oracle_latent_is_a_word_of_the_concept(read):
    token_ids, document, truth = read
    _, statistics = explained(read, truth, "contribution")
    found = statistics.candidates(torch.arange(len(CONCEPTS)))
    for i, name in enumerate(CONCEPTS):
        rows = found.row[i][found.row[i] >= 0]
        words = build_tokenizer().convert_ids_to_tokens(token_ids[rows].tolist())
        assert set(words) <= english(name)
        assert len(document[rows].unique()) == len(rows)  # one place per document
