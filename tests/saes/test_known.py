"""Coders whose weights or codes are given."""

import pytest
import torch

from sae_lib.errors import BadInput
from sae_lib.saes import CODERS, VARIANTS, Step
from sae_lib.saes.known import HandedInCoder, LinearThresholdCoder, coder_of
from sae_lib.synthetic.controls import matched_filter, shrunk, true_code
from sae_lib.synthetic.dictionary import DictionaryConfig, oracle, sparse_mixtures

CROWDED = DictionaryConfig(d_in=8, num_features=16, mean_active=2.0)
EXACT = DictionaryConfig(
    d_in=16,
    num_features=16,
    mean_active=3.0,
    firing_ratio=2.0,
    is_orthonormal=True,
    noise=0.0,
    magnitude_floor=0.6,
)


@pytest.fixture
def data():
    return next(sparse_mixtures(CROWDED, 100))


def test_the_matched_filter_is_exact_for_orthonormal_directions_without_noise():
    x, z = next(sparse_mixtures(EXACT, 500))
    coder = coder_of(matched_filter(EXACT))
    assert isinstance(coder, LinearThresholdCoder)
    torch.testing.assert_close(coder.encode(x), z, atol=1e-5, rtol=0)
    torch.testing.assert_close(coder(x), x, atol=1e-5, rtol=0)


def test_the_true_code_is_found_by_the_row_in_any_order_number_and_shape(data):
    coder = HandedInCoder(oracle(CROWDED))
    coder.hand_in(data.x, data.z)
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    assert torch.equal(coder.encode(data.x[order]), data.z[order])
    assert torch.equal(coder.encode(data.x[[7, 7, 3]]), data.z[[7, 7, 3]])
    assert torch.equal(coder.encode(data.x[5]), data.z[5])
    assert torch.equal(coder.encode(data.x.reshape(4, 25, 8)), data.z.reshape(4, 25, 16))
    assert coder.encode(data.x[:0]).shape == (0, 16)


def test_an_activation_that_was_not_handed_in_is_refused(data):
    coder = HandedInCoder(oracle(CROWDED))
    with pytest.raises(BadInput, match="of 100 of 100 activations was not handed in"):
        coder.encode(data.x)
    coder.hand_in(data.x[:60], data.z[:60])
    with pytest.raises(BadInput, match="of 40 of 100 activations was not handed in"):
        coder.encode(data.x)
    coder.hand_in(data.x[60:], data.z[60:])
    with pytest.raises(BadInput, match="of 60 of 100"):  # what came before is forgotten
        coder.encode(data.x)


def test_a_recoded_truth_is_what_is_looked_up(data):
    coder = coder_of(shrunk(CROWDED, 0.5))
    assert isinstance(coder, HandedInCoder)
    coder.hand_in(data.x, data.z)
    assert torch.equal(coder.encode(data.x), 0.5 * data.z)


@pytest.mark.parametrize("make", [true_code, matched_filter])
def test_scaling_makes_the_coder_of_scaled_activations(make, data):
    coder = coder_of(make(CROWDED))
    if isinstance(coder, HandedInCoder):
        coder.hand_in(data.x, data.z)
    z, x_hat = coder.encode(data.x), coder(data.x)
    coder.scale_(4.0)
    torch.testing.assert_close(coder.encode(4.0 * data.x), 4.0 * z)
    torch.testing.assert_close(coder(4.0 * data.x), 4.0 * x_hat)
    if isinstance(coder, HandedInCoder):
        coder.hand_in(4.0 * data.x, data.z)
        torch.testing.assert_close(coder.encode(4.0 * data.x), 4.0 * data.z)


@pytest.mark.parametrize("make", [true_code, matched_filter])
def test_the_loss_of_a_step_is_the_squared_error(make, data):
    coder = coder_of(make(CROWDED))
    if isinstance(coder, HandedInCoder):
        coder.hand_in(data.x, data.z)
    terms = coder.terms(Step(data.x, data.x, torch.zeros(16, dtype=torch.bool), 0.0))
    expected = (data.x - coder(data.x)).square().sum(1).mean()
    torch.testing.assert_close(terms.loss, expected)


def test_they_are_no_variant_to_train():
    assert "known" not in VARIANTS
    assert "known" not in CODERS
