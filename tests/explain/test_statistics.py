import pytest
import torch

from sae_lib.errors import BadInput
from sae_lib.explain.statistics import FULL, Extras, LatentStatistics

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
    monkeypatch.setattr("sae_lib.explain.keeper._CHUNK_KEYS", 100)
    pieces = seen(z, rows, rows).candidates(torch.arange(23))
    assert torch.equal(pieces.row, whole.row)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_coder_that_gives_no_numbers_is_refused(bad):
    z = codes()
    z[3, 1] = bad
    with pytest.raises(BadInput, match="not finite"):
        seen(z, torch.arange(60), torch.arange(60))


EXTRAS = Extras(per_bucket=2, silent_pool=6, pair_share=0.7, context=5, seed=3)


def all_of(statistics: LatentStatistics) -> dict[str, torch.Tensor]:
    """Every number that can be asked for."""
    everything = torch.arange(statistics.d_sae)
    alive = torch.tensor(statistics.alive)
    found = {
        "tokens": torch.tensor(statistics.num_tokens),
        "fired": statistics.fired,
        "total": statistics.total,
        "second": statistics.second_moment.nan_to_num(),
        "variance": statistics.variance.nan_to_num(),
        "max": statistics.max_activation,
        "histogram": statistics.histogram.counts,
        "edges": statistics.histogram.edges(alive),
        "token_counts": statistics.token_counts,
        "silent": statistics.silent_rows(everything, 3),
        "pair_tokens": torch.tensor(statistics.pairs.num_tokens),
    }
    parts = {
        "candidates": statistics.candidates(everything),
        "intervals": statistics.intervals(alive, 4),
        "partners": statistics.pairs.partners(everything, 3),
        "tally": statistics.tally.pairs(),
    }
    for name, tensors in parts.items():
        found |= {f"{name} {i}": tensor for i, tensor in enumerate(tensors)}
    return found


def measured(z: torch.Tensor, contexts: torch.Tensor, extras: Extras = EXTRAS):
    """The statistics of some contexts of a corpus, a few contexts at a time."""
    statistics = LatentStatistics(z.shape[1], VOCAB, 4, extras)
    for some in contexts.sort().values.split(3):
        rows = (some[:, None] * extras.context + torch.arange(extras.context)).flatten()
        types = (rows * 7919 // 13) % VOCAB
        statistics.update(z[rows], rows, types, rows // extras.context)
    return statistics


def wild(num_tokens: int, d_sae: int, seed: int) -> torch.Tensor:
    """Codes over many octaves, and a dead latent."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(num_tokens, d_sae, generator=generator).mul(2).exp()
    z *= torch.rand(num_tokens, d_sae, generator=generator) < 0.15
    z[:, 3] = 0
    return z


@pytest.mark.parametrize("is_wide", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_however_a_corpus_is_shared_out_every_statistic_is_the_same_bit_for_bit(
    monkeypatch, seed, is_wide
):
    if is_wide:  # lists instead of matrices
        monkeypatch.setattr("sae_lib.explain.cofiring.MAX_DENSE", 1)
        monkeypatch.setattr("sae_lib.explain.tally._MAX_CELLS", 1)
    z = wild(200, 9, seed)
    whole = all_of(measured(z, torch.arange(40)))
    generator = torch.Generator().manual_seed(seed)
    shard = torch.randint(0, 3, (40,), generator=generator)
    parts = [measured(z, (shard == i).nonzero().flatten()) for i in (2, 0, 1)]
    merged = all_of(parts[0].merge(parts[1].merge(parts[2])))
    assert whole.keys() == merged.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, merged[name]), name


def test_every_moment_is_that_of_float64_brute_force():
    z = wild(200, 9, 0)
    statistics = measured(z, torch.arange(40))
    for latent in statistics.alive:
        own = z[:, latent][z[:, latent] > 0].double()
        assert statistics.fired[latent] == len(own)
        assert statistics.mean_activation[latent] == pytest.approx(float(own.mean()), rel=1e-14)
        assert statistics.second_moment[latent] == pytest.approx(
            float(own.square().mean()), rel=1e-7
        )
        assert statistics.variance[latent] == pytest.approx(float(own.var(correction=0)), rel=1e-5)
        assert statistics.max_activation[latent] == own.max()
    assert statistics.mean_activation[3].isnan()


def test_silent_examples_come_from_contexts_without_the_latent():
    z = wild(200, 9, 1)
    statistics = measured(z, torch.arange(40), EXTRAS._replace(silent_pool=40))
    fires = (z.view(40, 5, 9) > 0).any(1)
    row = statistics.silent_rows(torch.arange(9), 50)
    for latent in range(9):
        contexts = row[latent][row[latent] >= 0] // 5
        assert sorted(contexts.tolist()) == (~fires[:, latent]).nonzero().flatten().tolist()


def test_every_silent_context_is_as_likely_as_any_other():
    """400 seeds draw 2 of 20 silent contexts of 40: chi-square of 19 degrees."""
    z = torch.zeros(40, 1)
    z[::2] = 1
    times = torch.zeros(40)
    for seed in range(400):
        extras = Extras(silent_pool=10, context=1, seed=seed)
        statistics = LatentStatistics(1, VOCAB, 1, extras)
        rows = torch.arange(40)
        statistics.update(z, rows, torch.zeros(40).long(), rows)
        times[statistics.silent_rows(torch.tensor([0]), 2)[0]] += 1
    assert times[::2].eq(0).all()
    assert float(((times[1::2] - 40).square() / 40).sum()) < 44  # 0.1 %


def test_what_is_held_does_not_grow_with_the_corpus():
    sizes = []
    for num_contexts in (40, 400):
        z = wild(5 * num_contexts, 9, 2)
        sizes.append(measured(z, torch.arange(num_contexts)).num_bytes())
    assert sizes[0] == sizes[1]


def test_a_wide_coder_is_held_in_a_gigabyte():
    """131,072 latents: counted, not allocated."""
    wide, narrow = (
        LatentStatistics(d_sae, 12, 80, FULL._replace(context=128)).num_bytes()
        for d_sae in (2**14, 2**13 + 1)
    )
    per_latent = (wide - narrow) / (2**14 - 2**13 - 1)
    assert 2**17 * per_latent < 2**30
