"""Latents of one of two sources: hand cases, and the two ways in which they may be spurious."""

import pytest
import torch

from sae_lib.evaluate.crosscoding import latent_scaling, relative_norms, scaling

DRAW = torch.Generator().manual_seed(0)
Z = torch.rand(500, 3, generator=DRAW, dtype=torch.float64).sub(0.5).relu()
ROWS = torch.eye(3, 6, dtype=torch.float64)
ZERO = torch.zeros(3, 6, dtype=torch.float64)


def test_relative_norms_are_those_of_the_paper():
    first = torch.tensor([1.0, 0.0, 1.0, 0.2, 0.0])
    second = torch.tensor([0.0, 1.0, 1.0, 0.8, 0.0])
    assert relative_norms(first, second).tolist() == pytest.approx([0, 1, 0.5, 0.875, 0.5])


def test_scaling_is_the_least_squares_solution():
    h = torch.randn(500, 6, generator=DRAW, dtype=torch.float64)
    rows = torch.randn(3, 6, generator=DRAW, dtype=torch.float64)
    for i, beta in enumerate(scaling(Z, rows, h)):
        made = (Z[:, i, None] * rows[i]).reshape(-1, 1)
        by_hand = torch.linalg.lstsq(made, h.reshape(-1, 1)).solution
        torch.testing.assert_close(beta, by_hand.squeeze())


def test_a_latent_that_the_first_source_lacks_has_ratios_of_0():
    x = Z @ ROWS
    found = latent_scaling(Z, 0 * x, x, 0 * x, x, ZERO, ROWS)
    assert found.nu_error.tolist() == pytest.approx([0, 0, 0])
    assert found.nu_reconstruction.tolist() == pytest.approx([0, 0, 0])


def test_a_norm_that_was_shrunk_away_shows_in_the_error():
    x = Z @ ROWS
    found = latent_scaling(Z[:, :1], x, x, 0 * x, Z[:, :1] @ ROWS[:1], ZERO[:1], ROWS[:1])
    assert found.nu_error.item() == pytest.approx(1)
    assert found.nu_reconstruction.item() == pytest.approx(0)


def test_a_concept_that_was_split_shows_in_the_reconstruction():
    x = Z[:, :1] @ ROWS[:1]
    z = Z[:, :1].expand(-1, 2)  # one latent of each source for the same concept
    first, second = torch.stack([ROWS[0], ZERO[0]]), torch.stack([ZERO[0], ROWS[0]])
    found = latent_scaling(z[:, 1:], x, x, z @ first, z @ second, first[1:], second[1:])
    assert found.nu_error.item() == pytest.approx(0, abs=1e-12)
    assert found.nu_reconstruction.item() == pytest.approx(1)


def test_a_shared_latent_has_ratios_of_1():
    x = Z @ ROWS
    found = latent_scaling(Z, x, x, x, x, ROWS, ROWS)
    for ratios in found:
        assert ratios.tolist() == pytest.approx([1, 1, 1])
