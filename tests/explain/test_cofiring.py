import pytest
import torch

from sae_lib.explain.codes import hits_in
from sae_lib.explain.cofiring import PairCounts, decoder_neighbours


def codes(num_tokens: int = 200, d_sae: int = 12, density: float = 0.3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(num_tokens, d_sae, generator=generator) < density).float()


def counted(z: torch.Tensor, share: float = 1.0, **dials) -> PairCounts:
    counts = PairCounts(z.shape[1], share, **dials)
    for part in torch.arange(len(z)).split(37):
        hits = hits_in(z[part])
        counts.add(hits.token, hits.latent, part)
    return counts


@pytest.fixture(params=["dense", "sparse", "product"])
def way(request, monkeypatch):
    """The three ways in which pairs are counted."""
    if request.param == "sparse":
        monkeypatch.setattr("sae_lib.explain.cofiring.MAX_DENSE", 1)
    if request.param == "product":
        monkeypatch.setattr("sae_lib.explain.cofiring._FLOPS_PER_PAIR", 10**9)
    if request.param == "dense":
        monkeypatch.setattr("sae_lib.explain.cofiring._FLOPS_PER_PAIR", 0)
    return request.param


def test_partners_of_a_small_case_by_hand(way):
    # a and b fire together on 2 of 4 tokens; c once with a
    z = torch.tensor([[1.0, 1, 0], [1, 1, 0], [1, 0, 1], [0, 0, 0]])
    found = counted(z).partners(torch.tensor([0, 1, 2]), 2)
    assert found.other.tolist() == [[1, 2], [0, -1], [0, -1]]
    assert found.num_tokens.tolist() == [[2, 1], [2, 0], [1, 0]]
    assert found.value[0].tolist() == pytest.approx([2 / 3, 1 / 3])  # jaccard
    assert found.share[0].tolist() == pytest.approx([2 / 3, 1 / 3])  # P(other | a)
    assert found.share[1, 0] == 1
    assert found.lift[0, 0] == pytest.approx(2 * 4 / (3 * 2))


def test_partners_are_those_of_brute_force(way, monkeypatch):
    monkeypatch.setattr("sae_lib.explain.cofiring._CHUNK_PAIRS", 50)
    z = codes()
    found = counted(z).partners(torch.arange(12), 4)
    both = z.double().T @ z.double()
    fired = both.diagonal()
    jaccard = both / (fired[:, None] + fired - both)
    for latent in range(12):
        order = sorted(
            (other for other in range(12) if other != latent),
            key=lambda other: (-float(jaccard[latent, other]), other),
        )[:4]
        assert found.other[latent].tolist() == order
        assert found.num_tokens[latent].tolist() == both[latent, order].tolist()
        torch.testing.assert_close(found.value[latent].double(), jaccard[latent, order])
        torch.testing.assert_close(
            found.share[latent].double(), both[latent, order] / fired[latent]
        )


def test_independent_latents_have_a_lift_of_one(way):
    z = codes(num_tokens=5000, d_sae=2)
    assert counted(z).partners(torch.arange(2), 1).lift[0, 0] == pytest.approx(1, abs=0.05)


def test_a_share_of_the_tokens_is_looked_at_and_which_depends_on_the_seed_alone():
    z = codes(num_tokens=4000)
    some = counted(z, 0.25)
    assert some.num_tokens == pytest.approx(1000, abs=120)
    assert counted(z, 0.25).num_tokens == some.num_tokens
    assert torch.equal(counted(z, 0.25).fired, some.fired)
    assert not torch.equal(counted(z, 0.25, seed=1).fired, some.fired)
    assert counted(z, 0.0).partners(torch.arange(12), 3).other.eq(-1).all()


def test_beyond_its_bound_the_list_drops_the_rarest_pairs_and_says_so(monkeypatch):
    monkeypatch.setattr("sae_lib.explain.cofiring.MAX_DENSE", 1)
    z = codes()
    z[:, 1] = z[:, 0]
    assert counted(z, max_pairs=66).is_exact
    few = counted(z, max_pairs=20)
    assert not few.is_exact
    assert few.partners(torch.tensor([0]), 1).other.tolist() == [[1]]


def test_without_a_matrix_tokens_with_very_many_latents_are_left_out(monkeypatch):
    monkeypatch.setattr("sae_lib.explain.cofiring.MAX_DENSE", 1)
    monkeypatch.setattr("sae_lib.explain.cofiring._MAX_ON", 3)
    z = torch.zeros(2, 5)
    z[0, :2] = 1
    z[1] = 1
    counts = counted(z)
    assert not counts.is_exact
    assert counts.partners(torch.arange(5), 1).num_tokens.flatten().tolist() == [1, 1, 0, 0, 0]


def test_neighbours_are_the_largest_cosines_and_never_the_latent_itself():
    rows = torch.tensor([[1.0, 0.0], [2.0, 0.2], [0.0, 3.0], [-1.0, 0.0], [0.0, 0.0]])
    other, cosine = decoder_neighbours(rows, torch.tensor([0, 1, 2, 3, 4]), 2)
    assert other[0].tolist() == [1, 2]
    assert cosine[0].tolist() == pytest.approx([1 / 1.01**0.5, 0.0])
    assert other[4].tolist() == [-1, -1]
    assert 4 not in other


def test_only_the_latents_given_are_neighbours_and_missing_ones_are_marked():
    rows = torch.eye(6)
    other, cosine = decoder_neighbours(rows, torch.tensor([2, 5]), 3)
    assert other.tolist() == [[5, -1, -1], [2, -1, -1]]
    assert cosine.eq(0).all()
    assert decoder_neighbours(rows, torch.tensor([1]), 2)[0].tolist() == [[-1, -1]]
    assert decoder_neighbours(rows, torch.tensor([]).long(), 2)[0].shape == (0, 2)
    assert decoder_neighbours(rows, torch.tensor([1, 2]), 0)[0].shape == (2, 0)


def test_neighbours_in_pieces_are_the_same(monkeypatch):
    rows = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    whole = decoder_neighbours(rows, torch.arange(40), 5)
    monkeypatch.setattr("sae_lib.explain.cofiring._CHUNK_ENTRIES", 100)
    pieces = decoder_neighbours(rows, torch.arange(40), 5)
    assert torch.equal(whole[0], pieces[0])
    unit = (rows / rows.norm(dim=1, keepdim=True)).double()
    wanted = (unit @ unit.T - 2 * torch.eye(40)).topk(5, dim=1)
    assert torch.equal(whole[0], wanted.indices)
    torch.testing.assert_close(whole[1].double(), wanted.values, atol=1e-6, rtol=0)
