import itertools

import pytest
import torch
from pydantic import ValidationError

from sae_lib.synthetic.dictionary import (
    DictionaryConfig,
    bias,
    firing_probabilities,
    ground_truth_dictionary,
    noise_share,
    oracle,
    sparse_mixtures,
)

SMALL = DictionaryConfig(d_in=8, num_features=16, mean_active=2.0)


def draw(cfg: DictionaryConfig, num_batches: int, batch_tokens: int = 1000):
    batches = list(itertools.islice(sparse_mixtures(cfg, batch_tokens), num_batches))
    return torch.cat([b.x for b in batches]), torch.cat([b.z for b in batches])


def test_features_fire_as_often_as_their_probabilities_say():
    _, z = draw(SMALL, 40)
    p = firing_probabilities(SMALL)
    tolerance = 5 * (p * (1 - p) / len(z)).sqrt()  # five standard deviations
    assert ((z > 0).float().mean(0) - p).abs().le(tolerance).all()


def test_probabilities_are_log_spaced_and_sum_to_the_mean_number_of_active_features():
    p = firing_probabilities(SMALL)
    assert p.sum().item() == pytest.approx(2.0, rel=1e-6)
    assert (p[0] / p[-1]).item() == pytest.approx(100.0, rel=1e-4)
    ratios = p[1:] / p[:-1]
    torch.testing.assert_close(ratios, ratios[:1].expand(15))


def test_under_zipfs_law_the_chance_times_the_shifted_rank_is_the_same_for_all():
    p = firing_probabilities(SMALL.but(firing="zipf", zipf_offset=8.0))
    assert p.sum().item() == pytest.approx(2.0, rel=1e-6)
    products = p * torch.arange(9, 25)
    torch.testing.assert_close(products, products[:1].expand(16))
    with pytest.raises(ValidationError, match=r"zipf_offset=0\.0 .* raise zipf_offset"):
        SMALL.but(firing="zipf", zipf_offset=0.0, mean_active=4.0)


def test_the_defaults_are_those_of_the_specification():
    p = firing_probabilities(DictionaryConfig())
    assert p[0].item() == pytest.approx(0.2, rel=0.02)
    assert p[-1].item() == pytest.approx(0.002, rel=0.02)


def test_without_noise_x_is_exactly_the_mixture():
    cfg = SMALL.but(noise=0.0)
    x, z = draw(cfg, 1)
    expected = z.double() @ ground_truth_dictionary(cfg).double() + bias(cfg).double()
    torch.testing.assert_close(x.double(), expected, atol=1e-5, rtol=0)


def test_noise_has_the_declared_spread_and_bias_the_declared_length():
    cfg = SMALL.but(noise=0.5, bias_norm=3.0)
    x, z = draw(cfg, 40)
    noise = x - z @ ground_truth_dictionary(cfg) - bias(cfg)
    assert noise.std().item() == pytest.approx(0.5, rel=0.01)
    assert bias(cfg).norm().item() == pytest.approx(3.0, rel=1e-5)


def test_magnitudes_are_normal_around_one_and_never_below_the_floor():
    _, z = draw(SMALL, 40)
    strengths = z[z > 0]
    assert strengths.mean().item() == pytest.approx(1.0, abs=0.005)
    assert strengths.std().item() == pytest.approx(0.15, abs=0.005)
    _, z = draw(SMALL.but(magnitude_std=2.0, magnitude_floor=0.3), 4)
    assert z[z > 0].min().item() == pytest.approx(0.3)


def test_directions_are_unit_and_repulsion_makes_few_of_them_orthogonal():
    cfg = DictionaryConfig(d_in=8, num_features=8, mean_active=1.0)
    random = ground_truth_dictionary(cfg)
    apart = ground_truth_dictionary(cfg.but(repulsion_steps=500))
    torch.testing.assert_close(random.norm(dim=1), torch.ones(8))
    torch.testing.assert_close(apart.norm(dim=1), torch.ones(8))
    assert (random @ random.T - torch.eye(8)).abs().max() > 0.3
    assert (apart @ apart.T - torch.eye(8)).abs().max() < 0.02


def test_the_oracle_recovers_an_orthonormal_dictionary_exactly():
    cfg = DictionaryConfig(
        d_in=8, num_features=8, mean_active=2.0, noise=0.0, magnitude_std=0.1, repulsion_steps=3000
    )
    (x, z), o = next(sparse_mixtures(cfg, 500)), oracle(cfg)
    pre = (x - o.b_dec) @ o.W_enc.T + o.b_enc
    found = pre * (pre > o.threshold)
    torch.testing.assert_close(found, z, atol=1e-3, rtol=0)
    torch.testing.assert_close(found @ o.W_dec + o.b_dec, x, atol=1e-3, rtol=0)


def test_noise_share_is_what_the_true_code_leaves_unexplained():
    cfg = SMALL.but(noise=0.2)
    x, z = draw(cfg, 60)
    left = x - z @ ground_truth_dictionary(cfg) - bias(cfg)
    measured = left.pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    # the directions are not orthogonal, but their firing is independent, so variances still add
    assert noise_share(cfg) == pytest.approx(measured.item(), rel=0.03)


def test_a_batch_depends_on_seed_and_number_only():
    state = torch.random.get_rng_state()
    third = next(itertools.islice(sparse_mixtures(SMALL, 50), 2, None))
    again = next(sparse_mixtures(SMALL, 50, start=2))
    assert torch.equal(third.x, again.x)
    assert torch.equal(third.z, again.z)
    others = (SMALL.but(seed=1), 2), (SMALL.but(seed=2**40), 2), (SMALL, 3)
    for cfg, start in others:
        assert not torch.equal(third.z, next(sparse_mixtures(cfg, 50, start=start)).z)
    assert torch.equal(state, torch.random.get_rng_state())


def test_impossible_probabilities_are_refused_with_the_number():
    with pytest.raises(ValidationError, match=r"probability 2\.13; lower mean_active"):
        DictionaryConfig(d_in=8, num_features=16, mean_active=8.0)
