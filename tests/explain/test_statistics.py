import pytest
import torch

from sae_lib.errors import BadInput
from sae_lib.explain.statistics import LatentStatistics

VOCAB = 12


def codes(num_tokens: int = 60, d_sae: int = 5, seed: int = 0) -> torch.Tensor:
    """Sparse codes with many ties."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randint(0, 6, (num_tokens, d_sae), generator=generator).float()
    return z * (torch.rand(num_tokens, d_sae, generator=generator) < 0.4)


def tokens_of(num_tokens: int) -> torch.Tensor:
    return torch.randint(0, VOCAB, (num_tokens,), generator=torch.Generator().manual_seed(1))


def seen(z: torch.Tensor, rows: torch.Tensor, segments: torch.Tensor, n: int = 4):
    statistics = LatentStatistics(z.shape[1], VOCAB, n)
    statistics.update(z, rows, tokens_of(60)[rows], segments)
    return statistics


def test_the_two_strongest_of_four_documents_are_the_second_and_the_fourth():
    statistics = LatentStatistics(1, VOCAB, 2)
    z = torch.tensor([[1.0], [3.0], [9.0], [2.0], [1.0], [7.0], [6.0]])
    document = torch.tensor([0, 0, 1, 1, 2, 3, 3])
    statistics.update(z, torch.arange(7), torch.zeros(7, dtype=torch.long), document)
    found = statistics.candidates(torch.tensor([0]))
    assert document[found.row[0]].tolist() == [1, 3]
    assert found.activation[0].tolist() == [9.0, 7.0]
    assert found.row[0].tolist() == [2, 5]


def test_counts_sums_and_maxima_are_those_of_float64_brute_force():
    z, rows = codes(), torch.arange(60)
    statistics = seen(z, rows, rows)
    on = z > 0
    torch.testing.assert_close(statistics.density, on.double().mean(0))
    torch.testing.assert_close(statistics.mean_activation, z.double().sum(0) / on.sum(0))
    assert torch.equal(statistics.max_activation, z.max(0).values)
    latents, types, sums = statistics.tally.pairs()
    dense = torch.zeros(5, VOCAB, dtype=torch.float64).index_add_(1, tokens_of(60), z.double().T)
    assert torch.equal(dense[latents, types], sums)
    assert len(sums) == int((dense > 0).sum())


def test_candidates_are_the_largest_activations_and_ties_go_to_the_earlier_token():
    z, rows = codes(), torch.arange(60)
    found = seen(z, rows, rows).candidates(torch.arange(5))
    for latent in range(5):
        order = sorted(range(60), key=lambda i: (-float(z[i, latent]), i))[:4]
        assert found.row[latent].tolist() == order
        assert found.activation[latent].tolist() == z[order, latent].tolist()


@pytest.mark.parametrize("cut", [1, 17, 30, 59])
@pytest.mark.parametrize("later_first", [False, True])
def test_two_halves_merged_are_exactly_the_one_pass(cut, later_first):
    z, rows = codes(), torch.arange(60)
    segments = rows  # every token for itself, so any cut is allowed
    whole = seen(z, rows, segments)
    parts = [seen(z[part], rows[part], segments[part]) for part in (slice(cut), slice(cut, 60))]
    first, second = reversed(parts) if later_first else parts
    merged = first.merge(second)
    everything = torch.arange(5)
    for mine, theirs in zip(
        merged.candidates(everything), whole.candidates(everything), strict=True
    ):
        assert torch.equal(mine, theirs)
    assert merged.num_tokens == whole.num_tokens
    assert torch.equal(merged.fired, whole.fired)
    assert torch.equal(merged.max_activation, whole.max_activation)
    assert torch.equal(merged.token_counts, whole.token_counts)
    for mine, theirs in zip(merged.tally.pairs(), whole.tally.pairs(), strict=True):
        assert torch.equal(mine, theirs)  # small whole numbers: sums are exact


def test_tokens_of_a_segment_contend_for_one_place():
    z, rows = codes(), torch.arange(60)
    segments = rows // 7
    found = seen(z, rows, segments, n=9).candidates(torch.arange(5))
    for latent in range(5):
        best = [
            max(range(i, min(i + 7, 60)), key=lambda r: (z[r, latent], -r)) for i in range(0, 60, 7)
        ]
        best = sorted((r for r in best if z[r, latent] > 0), key=lambda r: (-z[r, latent], r))
        assert [r for r in found.row[latent].tolist() if r >= 0] == best


def test_a_dead_latent_has_no_place_and_no_density():
    z = codes()
    z[:, 2] = 0
    statistics = seen(z, torch.arange(60), torch.arange(60))
    assert statistics.alive == [0, 1, 3, 4]
    assert statistics.density[2] == 0
    assert statistics.candidates(torch.tensor([2])).row.tolist() == [[-1] * 4]


def test_many_latents_are_worked_on_in_pieces_with_the_same_result(monkeypatch):
    z, rows = codes(d_sae=23), torch.arange(60)
    whole = seen(z, rows, rows).candidates(torch.arange(23))
    monkeypatch.setattr("sae_lib.explain.statistics._CHUNK_KEYS", 100)
    pieces = seen(z, rows, rows).candidates(torch.arange(23))
    assert torch.equal(pieces.row, whole.row)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_coder_that_gives_no_numbers_is_refused(bad):
    z = codes()
    z[3, 1] = bad
    with pytest.raises(BadInput, match="not finite"):
        seen(z, torch.arange(60), torch.arange(60))
