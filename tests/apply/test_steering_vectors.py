import numpy as np
import pytest
import torch

from sae_lib.apply.reading import Pooled
from sae_lib.apply.steering_vectors import best_latent, difference_in_means, random_direction
from sae_lib.errors import NotApplicable
from sae_lib.saes.topk import TopKConfig


def pooled(tokens: list[list[list[float]]]) -> Pooled:
    x = [torch.tensor(text, dtype=torch.float64) for text in tokens]
    return Pooled(
        torch.stack([t.sum(0) for t in x]),
        torch.stack([t.norm(dim=1).sum() for t in x]),
        torch.tensor([len(t) for t in x]),
        {},
        {},
    )


def test_the_difference_in_means_of_the_worked_example():
    texts = pooled([[[2, 0], [4, 0]], [[0, 2], [0, 0]]])
    found = difference_in_means(texts, np.array([1, 0]))
    assert found.direction.tolist() == pytest.approx([0.948683, -0.316228], abs=1e-6)
    assert found.params["difference_norm"] == pytest.approx(10**0.5)


def test_every_token_counts_the_same_so_long_texts_count_more():
    texts = pooled([[[1, 0]] * 3, [[0, 1]], [[0, 0]]])
    found = difference_in_means(texts, np.array([1, 1, 0]))
    assert found.direction.tolist() == pytest.approx([3 / 10**0.5, 1 / 10**0.5])


def test_equal_means_give_no_direction():
    with pytest.raises(NotApplicable, match="same mean"):
        difference_in_means(pooled([[[1, 0]], [[1, 0]]]), np.array([1, 0]))


Z = torch.tensor([[5.0, 2, 0, 1], [9, 3, 0, 1], [1, 1, 4, 1], [7, 0, 4, 1]])
LABELS = np.array([1, 1, 0, 0])
CODER = TopKConfig(d_in=4, d_sae=4, k=1, aux_k=1).build().requires_grad_(False)
CODER.W_dec.copy_(3 * torch.eye(4))


def test_the_latent_is_the_one_that_ranks_the_positive_texts_first():
    found = best_latent(CODER, Z, LABELS, select_by="auroc")
    assert found.params["latent"] == 1
    assert found.params["train_auroc"] == 1.0
    assert found.params["max_activation"] == 3.0
    assert found.direction.tolist() == [0, 1, 0, 0]


def test_by_mean_difference_a_louder_latent_wins():
    found = best_latent(CODER, Z, LABELS, select_by="mean_difference")
    assert found.params["latent"] == 0
    assert found.params["train_auroc"] == 0.75


def test_of_latents_that_are_equal_the_one_with_the_smaller_number_is_taken():
    found = best_latent(CODER, Z[:, [3, 1, 1, 1]], LABELS, select_by="auroc")
    assert found.params["latent"] == 1


def test_latents_that_only_fire_on_negatives_are_no_choice():
    with pytest.raises(NotApplicable, match="no latent is stronger"):
        best_latent(CODER, Z[:, [2, 3, 2, 3]], LABELS, select_by="auroc")


def test_random_directions_have_length_one_and_follow_the_seed():
    one, same, other = (random_direction(8, seed=seed).direction for seed in (0, 0, 1))
    assert float(one.norm()) == pytest.approx(1)
    assert torch.equal(one, same)
    assert not torch.equal(one, other)
