import math

import torch

from sae_lib.explain.tally import TokenTally, keywords


def tally_of(entries: list[tuple[int, int, float]], vocab: int = 6, **kwargs) -> TokenTally:
    tally = TokenTally(vocab, **kwargs)
    latents, types, values = (torch.tensor(column) for column in zip(*entries, strict=True))
    tally.add(latents, types, values)
    return tally


def test_a_keyword_scores_its_term_of_the_divergence_from_the_corpus():
    # latent 0: 6 of 8 units on type 1, 2 on type 2; corpus: 10 tokens, 2 of type 1, 4 of type 2
    tally = tally_of([(0, 1, 4.0), (0, 1, 2.0), (0, 2, 2.0), (1, 1, 50.0)])
    counts = torch.tensor([0, 2, 4, 4, 0, 0])
    found = keywords(
        tally, counts, torch.ones(6, dtype=torch.bool), num_keywords=5, rank_by="contribution"
    )
    assert found[0].token_ids == [1]  # type 2 has less of the latent than of the corpus
    assert math.isclose(found[0].scores[0], 0.75 * math.log(0.75 / 0.2))


def test_mean_activation_is_over_all_occurrences_of_the_token():
    tally = tally_of([(0, 1, 6.0), (0, 2, 2.0), (3, 2, 8.0)])
    counts = torch.tensor([0, 3, 4, 3, 0, 0])
    found = keywords(
        tally, counts, torch.ones(6, dtype=torch.bool), num_keywords=1, rank_by="mean_activation"
    )
    assert {latent: tuple(map(tuple, k)) for latent, k in found.items()} == {
        0: ((1,), (2.0,)),
        3: ((2,), (2.0,)),
    }


def test_types_that_are_no_words_are_left_out():
    tally = tally_of([(0, 1, 6.0), (0, 2, 2.0)])
    is_word = torch.tensor([True, False, True, True, True, True])
    found = keywords(
        tally, torch.tensor([0, 1, 1, 8, 0, 0]), is_word, num_keywords=5, rank_by="contribution"
    )
    assert found[0].token_ids == [2]


def test_beyond_its_bound_the_tally_drops_the_smallest_sums_and_says_so():
    entries = [(0, t, float(t)) for t in range(1, 6)]
    tally = tally_of(entries, max_pairs=3)
    assert tally.pairs()[1].tolist() == [3, 4, 5]
    assert not tally.is_exact
    roomy = tally_of(entries, max_pairs=5)
    assert roomy.pairs()[1].tolist() == [1, 2, 3, 4, 5]
    assert roomy.is_exact


def test_sums_do_not_depend_on_when_equal_pairs_are_added_up(monkeypatch):
    monkeypatch.setattr("sae_lib.explain.tally._BUFFER_PAIRS", 3)
    tally = TokenTally(6)
    for _ in range(5):
        tally.add(torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([1.0, 0.5]))
    latents, types, sums = tally.pairs()
    assert (latents.tolist(), types.tolist(), sums.tolist()) == ([0, 1], [2, 3], [5.0, 2.5])
