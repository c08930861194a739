import pytest
import torch

from sae_lib.errors import NotApplicable
from sae_lib.evaluate import weights
from sae_lib.evaluate.base import EvalContext
from sae_lib.evaluate.weights import WeightsConfig, max_cosine, weight_statistics

DIRECTIONS = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]])


def test_three_directions_by_hand():
    assert max_cosine(DIRECTIONS).tolist() == pytest.approx([0.6, 0.8, 0.8])


def test_the_opposite_direction_is_the_farthest_not_the_nearest():
    assert max_cosine(torch.tensor([[1.0, 0.0], [-1.0, 0.0]])).tolist() == [-1.0, -1.0]


def test_a_direction_that_occurs_twice_has_a_neighbour_at_one():
    twice = torch.cat([DIRECTIONS, DIRECTIONS[:1] * 3])
    assert max_cosine(twice)[[0, 3]].tolist() == pytest.approx([1.0, 1.0])


def test_blocks_give_what_one_product_gives(monkeypatch):
    directions = torch.randn(23, 5, generator=torch.Generator().manual_seed(0))
    whole = max_cosine(directions)
    monkeypatch.setattr(weights, "CHUNK_ELEMENTS", 70)  # three rows at a time
    torch.testing.assert_close(max_cosine(directions), whole)
    cosine = torch.nn.functional.normalize(directions, dim=-1)
    brute = (cosine @ cosine.mT).fill_diagonal_(-2).amax(-1)
    torch.testing.assert_close(whole, brute.double())


def test_norms_biases_and_cosines_are_those_of_the_weights(tools):
    coder = tools.coder_of(
        torch.tensor([[3.0, 4.0], [0.0, 1.0]]),
        torch.tensor([[1.0, 0.0], [0.0, 2.0]]),
        torch.tensor([-0.5, 0.25]),
        torch.zeros(2),
    )
    found = weight_statistics(coder)
    assert found.encoder_norm.tolist() == [5.0, 1.0]
    assert found.decoder_norm.tolist() == [1.0, 2.0]
    assert found.encoder_bias.tolist() == [-0.5, 0.25]
    assert found.encoder_decoder_cosine.tolist() == pytest.approx([0.6, 1.0])
    assert found.max_decoder_cosine.tolist() == [0.0, 0.0]


def test_rows_hold_means_and_quantiles_over_latents(tools):
    coder = tools.random_coder(d_in=4, d_sae=101)
    context = EvalContext("resid_post.0", coder, torch.zeros(4), 1)
    rows = WeightsConfig().start(context).rows()
    values = weight_statistics(coder).encoder_bias
    mine = [r for r in rows if r.name == "encoder_bias"]
    assert mine[0].value == pytest.approx(values.mean().item())
    quantiles = {r.params["quantile"]: r.value for r in mine[1:]}
    expected = {q: torch.quantile(values, q).item() for q in (0.05, 0.5, 0.95)}
    assert quantiles == pytest.approx(expected)


def test_a_single_latent_has_no_neighbour(tools):
    context = EvalContext("resid_post.0", tools.random_coder(d_in=4, d_sae=1), torch.zeros(4), 1)
    rows = {r.name: r for r in WeightsConfig().start(context).rows()}
    assert rows["max_decoder_cosine"].value is None
    assert rows["max_decoder_cosine"].reason == "there is only one latent"


def test_a_coder_of_another_build_is_not_measured(tools):
    coder = tools.random_coder(d_in=4, d_sae=6)
    coder.W_enc = torch.nn.Parameter(torch.zeros(4, 6))
    with pytest.raises(NotApplicable, match=r"shapes \(4, 6\) and \(6, 4\), not \(6, 4\)"):
        weight_statistics(coder)
