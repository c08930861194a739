import math

import pytest
import torch

from sae_lib.errors import NotApplicable
from sae_lib.explain.base import Evidence
from sae_lib.explain.contrast import Background, ContrastConfig, Told, sentence, tell
from sae_lib.explain.examples import Windows
from sae_lib.explain.statistics import LatentStatistics
from sae_lib.explain.vocabulary import Vocabulary

WORDS = ["<bos>", "the", "dog", "cat", "sat", ".", "Anna", "7", "ing", "sea"]
VOCABULARY = Vocabulary(
    [w if i in (0, 8) else f" {w}" for i, w in enumerate(WORDS)], torch.arange(10) > 0
)
BOS, THE, DOG, CAT, SAT, DOT, ANNA, SEVEN, ING, SEA = range(10)
COUNTS = torch.tensor([0, 400, 50, 50, 100, 200, 50, 50, 50, 50])


@pytest.fixture
def background() -> Background:
    return Background(COUNTS, VOCABULARY)


def windows_of(rows: list[list[int]], position: int = 9) -> Windows:
    ids = torch.tensor(rows)
    return Windows(
        torch.arange(ids.numel()).view(ids.shape),
        ids,
        ids != BOS,
        torch.arange(len(ids)),
        torch.full((len(ids),), position),
    )


def told_of(background, rows, activation=None, clear=0.5, position=9) -> Told:
    activation = torch.ones(len(rows)) if activation is None else torch.tensor(activation)
    return tell(windows_of(rows, position), activation, background, clear=clear, num=10)


def test_the_score_is_the_words_share_of_the_divergence(background):
    ids, weights = torch.tensor([DOG, DOG, CAT, THE]), torch.tensor([2.0, 1.0, 1.0, 1.0])
    found = background.contrast(ids, weights, least_share=0.0, num=5)
    q = 50.5 / 1005
    assert [word for word, _ in found] == ["dog", "cat"]  # "the" is less frequent than elsewhere
    assert found[0][1] == pytest.approx(0.6 * math.log(0.6 / q))
    assert found[1][1] == pytest.approx(0.2 * math.log(0.2 / q))
    assert background.contrast(ids, weights, least_share=0.5, num=5) == found[:1]
    assert background.contrast(ids[:0], weights[:0], least_share=0.0, num=5) == []


def test_variants_of_a_word_count_together():
    text = [*VOCABULARY.text[:9], " DOG"]
    background = Background(COUNTS, Vocabulary(text, VOCABULARY.is_word))
    found = background.contrast(torch.tensor([DOG, 9]), torch.ones(2), least_share=0.6, num=5)
    assert [word for word, _ in found] == ["dog"]


def test_it_says_what_the_latent_fires_on_and_what_is_beside_it(background):
    rows = [[SEA, DOG, THE], [SEA, CAT, THE], [SEA, DOG, THE], [DOT, CAT, THE]]
    told = told_of(background, rows, activation=[3.0, 2.0, 1.0, 1.0])
    assert [word for word, _ in told.fires_on] == ["dog", "cat"]
    assert [word for word, _ in told.before] == ["the"]
    assert [word for word, _ in told.after] == ["sea"]
    assert told.covered == 1.0
    assert sentence(told) == 'fires on "dog", "cat"; before "the"; after "sea"'


def test_what_few_places_have_is_not_said(background):
    rows = [[SEA, DOG, SAT], [CAT, DOG, SEVEN], [ANNA, DOG, DOT], [ING, DOG, THE]]
    told = told_of(background, rows)
    assert sentence(told) == 'fires on "dog"'


def test_a_neighbour_that_is_outside_counts_against_what_is_beside(background):
    rows = [[SEA, DOG, DOT], [BOS, DOG, SEVEN], [BOS, DOG, ANNA]]
    assert told_of(background, rows).after == []


@pytest.mark.parametrize(
    ("peak", "said"),
    [
        (ANNA, "words with a capital letter only"),
        (SEVEN, "numbers only"),
        (DOT, "punctuation only"),
        (ING, "pieces inside a word only"),
    ],
)
def test_traits_of_the_words_are_told(background, peak, said):
    told = told_of(background, [[SAT, peak, SAT], [DOG, peak, CAT]])
    assert told.traits == [said]
    assert sentence(told).endswith(said)


def test_the_beginning_of_documents_is_told(background):
    told = told_of(background, [[BOS, DOG, SAT], [BOS, CAT, SEA]], position=1)
    assert told.traits == ["at the beginning of documents"]


def test_a_word_nearby_is_told_where_most_places_have_it_and_little_text_has(background):
    rows = [[SEA, SAT, DOG, DOT, CAT], [CAT, DOT, DOG, SAT, SEA], [SAT, SEA, CAT, SEVEN, DOT]]
    told = told_of(background, rows)
    assert "sea" in [word for word, _ in told.near]
    assert "." not in [word for word, _ in told.near]  # a fifth of all text


def test_many_words_are_told_as_many(background):
    told = Told([("dog", 1.0)], [("the", 1.0)], [], [], [], 0.2)
    assert sentence(told) == 'fires on many words, such as "dog"; before "the"'
    assert sentence(Told([], [], [], [], [], 0.0)) == "fires on no word in particular"


class Split:
    """Contexts of one document each."""

    def __init__(self, tokens: torch.Tensor) -> None:
        self.tokens = tokens
        self.num_contexts, self.context = tokens.shape

    def rows(self, indices):
        from sae_lib.activations.tokens import TokenRows

        tokens = self.tokens[indices]
        document = indices[:, None].expand_as(tokens)
        position = torch.arange(self.context).expand_as(tokens)
        return TokenRows(tokens, document, position, tokens > 0)


def test_a_latent_of_one_word_is_explained_by_it():
    generator = torch.Generator().manual_seed(0)
    split = Split(torch.randint(1, 10, (60, 12), generator=generator))
    flat = split.tokens.flatten()
    statistics = LatentStatistics(3, 10, 40)
    z = torch.stack([(flat == DOG).float(), (flat == SEA) * 2.0, torch.zeros(len(flat))], dim=1)
    rows = torch.arange(len(flat))
    statistics.update(z, rows, flat, rows // 12)
    evidence = Evidence(
        model=None, site="resid_post.0", coder=None,  # type: ignore[arg-type]
        statistics=statistics, examples={}, vocabulary=VOCABULARY, alive=statistics.alive,
        corpus=split,
    )  # fmt: skip
    found = ContrastConfig().explain(evidence)
    assert [(row.latent, row.keywords) for row in found] == [(0, ["dog"]), (1, ["sea"])]
    assert found[0].text.startswith('fires on "dog"')
    assert found == ContrastConfig().explain(evidence)
    assert ContrastConfig().explain(evidence._replace(alive=[])) == []
    with pytest.raises(NotApplicable, match="corpus is not at hand"):
        ContrastConfig().explain(evidence._replace(corpus=None))
