import pytest
import torch

from sae_lib.explain.histogram import SLOTS, Histogram, bucket_of, lower_edge
from sae_lib.explain.quantiles import Reservoirs


def filled(values: list[float]) -> Histogram:
    """One latent; a value at a time, so that the top rises on the way."""
    histogram = Histogram(1)
    for value in values:
        add(histogram, torch.zeros(1, dtype=torch.int64), torch.tensor([value]))
    return histogram


def add(histogram: Histogram, latents: torch.Tensor, values: torch.Tensor) -> None:
    buckets = bucket_of(values)
    histogram.raise_top(latents, buckets)
    histogram.add(latents, values, histogram.slot(latents, buckets))


def test_an_octave_has_eight_buckets_with_edges_in_eighths():
    values = torch.tensor([1.0, 1.1249999, 1.125, 1.9999999, 2.0, 0.5])
    assert (bucket_of(values) - bucket_of(torch.tensor([1.0]))).tolist() == [0, 0, 1, 7, 8, -8]
    first = bucket_of(torch.tensor([4.0]))
    assert lower_edge(first + torch.arange(9)).tolist() == [4, 4.5, 5, 5.5, 6, 6.5, 7, 7.5, 8]


def test_a_bucket_holds_what_lies_between_its_edges():
    values = [0.3, 1.0, 1.1, 3.9, 3.75, 2.5, 4.0]
    histogram = filled(values)
    edges = histogram.edges(torch.tensor([0]))[0].tolist()
    counts = histogram.counts[0].tolist()
    assert edges[0] == 0
    assert edges[-1] == 4.5
    assert len(edges) == SLOTS + 1
    for low, high, count in zip(edges, edges[1:], counts, strict=False):
        assert count == sum(low <= value < high for value in values)


def test_what_falls_six_octaves_below_the_top_joins_the_rest():
    histogram = filled([1.0, 1.0, 2.9, 3.0, 200.0])
    assert histogram.counts[0, 0] == 3
    assert histogram.counts[0, 1] == 1  # [3, 3.25), six octaves below [192, 208)
    assert histogram.counts[0, -1] == 1
    assert int(histogram.counts.sum()) == 5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_order_of_the_tokens_shows_in_nothing(seed):
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(3000, generator=generator).mul(3).exp()
    latents = torch.randint(0, 7, (3000,), generator=generator)
    found = []
    for order in (torch.arange(3000), torch.randperm(3000, generator=generator)):
        histogram = Histogram(7)
        for part in order.split(101):
            add(histogram, latents[part], values[part])
        found.append(histogram)
    a, b = found
    assert torch.equal(a.counts, b.counts)
    assert torch.equal(a.top, b.top)
    assert torch.equal(a.total, b.total)  # to the bit, in whatever order
    assert torch.equal(a.total_squares, b.total_squares)
    wanted = torch.zeros(7, dtype=torch.float64).index_add_(0, latents, values.double())
    torch.testing.assert_close(a.total, wanted, rtol=1e-14, atol=0)
    squares = torch.zeros(7, dtype=torch.float64).index_add_(0, latents, values.double().square())
    torch.testing.assert_close(a.total_squares, squares, rtol=1e-7, atol=0)


def drawn(values: torch.Tensor, k: int, num: int, seed: int = 0, at_a_time: int = 50):
    """Intervals of one latent."""
    latents, rows = torch.zeros(len(values), dtype=torch.int64), torch.arange(len(values))
    histogram, reservoirs = Histogram(1), Reservoirs(1, k, seed)
    for part in rows.split(at_a_time):
        buckets = bucket_of(values[part])
        reservoirs.move(*histogram.raise_top(latents[part], buckets))
        slots = histogram.slot(latents[part], buckets)
        histogram.add(latents[part], values[part], slots)
        reservoirs.add(torch.arange(len(part)), latents[part], slots, rows[part])
    return reservoirs.intervals(histogram, torch.tensor([0]), values.max()[None], num)


def test_intervals_are_equal_parts_of_the_maximum_up_to_the_nearest_edge():
    values = torch.arange(1, 1001) / 100  # up to 10: edges at 2, 4, 6, 8 are edges of buckets
    found = drawn(values, 4, 5, at_a_time=7)
    assert found.low[0].tolist() == [0, 2, 4, 6, 8]
    assert found.high[0].tolist() == [2, 4, 6, 8, 10]
    assert found.share[0].tolist() == pytest.approx([0.199, 0.2, 0.2, 0.2, 0.201])
    assert (found.row >= 0).all()
    for i in range(5):
        shown = values[found.row[0, i]]
        assert bool(((shown >= found.low[0, i]) & (shown <= found.high[0, i])).all())
        assert len(found.row[0, i].unique()) == 4


def test_inner_edges_move_by_a_sixteenth_at_most_and_shares_are_exact():
    generator = torch.Generator().manual_seed(0)
    for _ in range(5):
        values = torch.rand(200, generator=generator) * 7.3 + 1e-3
        for num in (1, 2, 5, 10):
            found = drawn(values, 2, num)
            ideal = values.max() * torch.arange(num) / num
            assert bool(((found.low[0] - ideal).abs() <= ideal / 16 + 1e-6).all())
            for i in range(num):
                inside = values >= found.low[0, i]
                if i < num - 1:
                    inside &= values < found.high[0, i]
                assert found.share[0, i] * 200 == pytest.approx(int(inside.sum()))


def test_an_interval_with_fewer_tokens_shows_them_all():
    values = torch.tensor([10.0, 1.0, 1.5, 9.0])
    found = drawn(values, 3, 5)
    assert sorted(found.row[0, 0].tolist()) == [-1, 1, 2]
    assert found.row[0, 1].tolist() == [-1, -1, -1]
    assert sorted(found.row[0, 4].tolist()) == [-1, 0, 3]
    assert found.share[0].tolist() == [0.5, 0, 0, 0, 0.5]


def test_every_token_of_an_interval_is_as_likely_as_any_other():
    """400 seeds draw 3 of 30 tokens that lie in different buckets: chi-square of 29 degrees."""
    values = torch.cat([torch.linspace(6.1, 7.9, 30), torch.tensor([10.0])])
    times = torch.zeros(31)
    for seed in range(400):
        times[drawn(values, 3, 5, seed).row[0, 3]] += 1
    assert times[30] == 0
    chi_square = float(((times[:30] - 40).square() / 40).sum())
    assert chi_square < 58  # 0.1 %
