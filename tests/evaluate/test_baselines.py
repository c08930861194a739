import pytest
import torch

from sae_lib.errors import NotApplicable
from sae_lib.evaluate._baselines import pca_coder, random_coder
from sae_lib.saes.topk import TopKConfig
from sae_lib.saes.transcoder import TranscoderConfig


@pytest.fixture
def x():
    torch.manual_seed(0)
    return torch.randn(500, 8) * torch.tensor([5.0, 3, 1, 1, 1, 1, 1, 1]) + 2


def test_baselines_are_as_wide_and_as_sparse_as_the_coder_they_stand_beside(x):
    coder = TopKConfig(d_in=8, d_sae=12, k=3).build()
    for found in (random_coder(coder, x), pca_coder(coder, x)):
        assert found.d_sae == 12
        assert (found.encode(x) != 0).sum(1).max() <= 3
        torch.testing.assert_close(found.b_dec, x.mean(0))
        torch.testing.assert_close(found.W_dec.norm(dim=1), torch.ones(12))


def test_random_directions_depend_on_the_seed_alone(x):
    coder = TopKConfig(d_in=8, d_sae=12, k=3).build()
    same = [random_coder(coder, x, seed=seed).W_dec for seed in (1, 1, 2)]
    assert torch.equal(same[0], same[1])
    assert not torch.equal(same[0], same[2])


def test_principal_directions_reconstruct_what_varies_most(x):
    coder = TopKConfig(d_in=8, d_sae=16, k=2).build()
    pca = pca_coder(coder, x)
    torch.testing.assert_close(pca.W_dec[0].abs()[0], torch.tensor(1.0), atol=0.05, rtol=0)
    x_hat = pca.decode(pca.encode(x))
    left = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert left < 0.2  # the two largest of eight variances are 34 of 40


def test_a_coder_that_maps_one_place_to_another_has_no_baseline(x):
    coder = TranscoderConfig(d_in=8, d_out=6, d_sae=12, k=3).build()
    with pytest.raises(NotApplicable):
        random_coder(coder, x)
