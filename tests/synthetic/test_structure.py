"""What fires together, how often: counted against the exact probabilities."""

import itertools
import math
import tracemalloc

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from scipy.integrate import quad
from scipy.stats import norm

from sae_lib.synthetic.dictionary import (
    Bags,
    DictionaryConfig,
    bags,
    bias,
    firing_probabilities,
    ground_truth_dictionary,
    group_features,
    joint_probabilities,
    magnitude_moments,
    moments,
    noise_share,
    readout,
    root_mean_square_norm,
    sparse_mixtures,
)
from sae_lib.synthetic.directions import largest_cosine
from sae_lib.synthetic.structure import (
    Entities,
    Hierarchy,
    Independent,
    Pair,
    Siblings,
    all_of,
    any_of,
    single,
)

NUM = 60_000
GROUPS = (
    Independent(features=5, copies=2),
    Siblings(copies=2, per_document=True),
    Pair(copies=2, first=0.2, second=0.4, correlation=0.3),
    Hierarchy(chance=0.4, levels=((0.3, 0.5), (0.2, 0.2, 0.2))),
    Hierarchy(chance=0.4, levels=((0.3, 0.5), (0.6,)), is_exclusive=False, copies=2),
    Entities(entities=7, values=(2, 3, 2), chance=0.6, copies=2),
)
ALL = DictionaryConfig(
    d_in=16, num_features=4 + sum(g.num_features for g in GROUPS), mean_active=1.0, groups=GROUPS
)


def draw(group, num: int = NUM, seed: int = 0) -> torch.Tensor:
    return group.fire(np.random.default_rng(seed), num)


def phi(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(np.corrcoef(first.double(), second.double())[0, 1])


@pytest.fixture(scope="module")
def mixture():
    return next(sparse_mixtures(ALL, NUM))


# --- all groups together ---


def test_every_feature_and_every_two_fire_as_often_as_planted(mixture):
    on = (mixture.z > 0).double()
    p = joint_probabilities(ALL)
    tolerance = 5 * (p * (1 - p) / NUM).sqrt() + 1e-12  # what cannot be, is not
    assert (on.mT @ on / NUM - p).abs().le(tolerance).all()
    torch.testing.assert_close(firing_probabilities(ALL).double(), p.diagonal(), rtol=1e-6, atol=0)


def test_groups_come_after_the_independent_features_in_their_order():
    columns = torch.cat([copies.flatten() for copies in group_features(ALL)])
    assert columns.tolist() == list(range(ALL.num_independent, ALL.num_features))
    assert [tuple(copies.shape) for copies in group_features(ALL)] == [
        (group.copies, group.size) for group in GROUPS
    ]


def test_mean_and_covariance_of_x_are_the_exact_ones(mixture):
    exact, x = moments(ALL), mixture.x.double()
    spread = exact.x_covariance.diagonal().sqrt()
    assert (x.mean(0) - exact.x_mean).abs().le(5 * spread / NUM**0.5).all()
    found = (x - x.mean(0)).mT @ (x - x.mean(0)) / NUM
    # a product of two coordinates has a standard deviation of about 1.5 times theirs
    assert (found - exact.x_covariance).abs().le(8 * torch.outer(spread, spread) / NUM**0.5).all()


def test_noise_share_counts_what_fires_together():
    cfg = ALL.but(noise=0.2)
    x, z = next(sparse_mixtures(cfg, NUM))
    left = x - z @ ground_truth_dictionary(cfg) - bias(cfg)
    measured = left.pow(2).sum() / (x - x.mean(0)).pow(2).sum()
    assert noise_share(cfg) == pytest.approx(measured.item(), rel=0.02)


def test_a_batch_follows_from_seed_and_number_alone():
    state = torch.random.get_rng_state()
    third = next(itertools.islice(sparse_mixtures(ALL, 50), 2, None))
    assert torch.equal(third.z, next(sparse_mixtures(ALL, 50, start=2)).z)
    assert not torch.equal(third.z, next(sparse_mixtures(ALL.but(seed=1), 50, start=2)).z)
    bag = next(itertools.islice(bags(ALL, 5), 2, None))
    assert torch.equal(bag.x, next(bags(ALL, 5, start=2)).x)
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_config_survives_json():
    assert DictionaryConfig.model_validate_json(ALL.model_dump_json()) == ALL


def test_memory_does_not_grow_with_the_stream():
    def peak(num_batches: int) -> int:
        tracemalloc.start()
        for _ in itertools.islice(sparse_mixtures(ALL, 2000), num_batches):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)  # what is cached once
    assert peak(12) < 1.2 * peak(2)


def test_too_many_features_in_groups_are_refused():
    with pytest.raises(ValidationError, match="the groups have 8 features; got num_features=7"):
        DictionaryConfig(num_features=7, groups=(Siblings(copies=2),))


# --- siblings, pairs ---


def test_one_sibling_is_active_or_none():
    on = draw(Siblings(siblings=4, chance=0.4, copies=3)).reshape(NUM, 3, 4)
    counts = on.sum(-1)
    assert counts.max() == 1
    assert counts.double().mean().item() == pytest.approx(0.4, abs=5 * (0.24 / (3 * NUM)) ** 0.5)
    assert (draw(Siblings(chance=1.0)).sum(-1) == 1).all()


@pytest.mark.parametrize("correlation", [-0.4, 0.0, 0.3, 0.9, 1.0])
def test_pairs_have_the_correlation_they_are_given(correlation):
    on = draw(Pair(first=0.3, second=0.3, correlation=correlation))
    assert phi(on[:, 0], on[:, 1]) == pytest.approx(correlation, abs=5 / NUM**0.5)


def test_unequal_pairs_have_it_too_and_keep_their_frequencies():
    on = draw(Pair(first=0.5, second=0.1, correlation=-0.2))
    assert phi(on[:, 0], on[:, 1]) == pytest.approx(-0.2, abs=5 / NUM**0.5)
    assert on.double().mean(0).tolist() == pytest.approx([0.5, 0.1], abs=0.01)


def test_a_correlation_that_cannot_be_is_refused_with_those_that_can():
    with pytest.raises(ValidationError, match=r"from -0\.3333 to 0\.3333; got correlation=0\.5"):
        Pair(first=0.5, second=0.1, correlation=0.5)


# --- hierarchies ---


def test_no_child_is_active_without_its_parent():
    group = Hierarchy(chance=0.5, levels=((0.5, 0.4), (0.3, 0.3, 0.3)))
    assert group.parents().tolist() == [-1, 0, 0, 1, 1, 1, 2, 2, 2]
    on = draw(group)
    for child, parent in enumerate(group.parents().tolist()):
        if parent >= 0:
            assert not (on[:, child] & ~on[:, parent]).any()
            given = on[on[:, parent], child].double().mean().item()
            expected = group.given_parent()[child].item()
            assert given == pytest.approx(expected, abs=5 * 0.5 / int(on[:, parent].sum()) ** 0.5)
    assert on[:, 1:3].sum(-1).max() == 1
    assert on[:, 3:].sum(-1).max() == 1


@pytest.mark.parametrize("is_exclusive", [True, False])
def test_the_joint_probabilities_of_a_tree_are_those_of_all_its_states(is_exclusive):
    group = Hierarchy(chance=0.4, levels=((0.3, 0.5), (0.6, 0.1)), is_exclusive=is_exclusive)
    children = {n: (group.parents() == n).nonzero()[:, 0].tolist() for n in range(group.size)}
    given = group.given_parent().tolist()
    expected = torch.zeros(group.size, group.size, dtype=torch.float64)
    for state in itertools.product([0, 1], repeat=group.size):
        p = given[0] if state[0] else 1 - given[0]
        for node, below in children.items():
            active = [c for c in below if state[c]]
            if not state[node]:
                p *= not active
            elif not is_exclusive:
                p *= math.prod(given[c] if state[c] else 1 - given[c] for c in below)
            elif active:
                p *= given[active[0]] if len(active) == 1 else 0.0
            else:
                p *= 1 - sum(given[c] for c in below)
        expected += p * torch.outer(torch.tensor(state), torch.tensor(state))
    torch.testing.assert_close(group.joint(), expected)


def test_children_that_exclude_each_other_cannot_be_too_probable():
    with pytest.raises(ValidationError, match=r"at most 1 in sum; \(0\.6, 0\.6\) is 1\.2"):
        Hierarchy(levels=((0.6, 0.6),))
    Hierarchy(levels=((0.6, 0.6),), is_exclusive=False)


# --- entities ---


def test_a_mention_shows_one_value_of_each_attribute_as_the_table_says():
    group = Entities(entities=40, values=(3, 4, 5), chance=0.5)
    table, on = group.table(), draw(group)
    assert len({tuple(row) for row in table.tolist()}) == 40
    entity = group.entity_of(on)
    mentioned = entity >= 0
    assert mentioned.double().mean().item() == pytest.approx(0.5, abs=5 * 0.5 / NUM**0.5)
    assert not on[~mentioned].any()
    for attribute, part in enumerate(on.split([3, 4, 5], dim=1)):
        assert (part[mentioned].sum(1) == 1).all()
        assert torch.equal(part[mentioned].int().argmax(1), table[entity[mentioned], attribute])
    counts = torch.bincount(entity[mentioned], minlength=40).double()
    expected = NUM * 0.5 / 40
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_the_table_follows_from_its_seed_and_has_room():
    group = Entities(entities=6, values=(2, 3))
    assert {tuple(row) for row in group.table().tolist()} == set(
        itertools.product(range(2), range(3))
    )
    big = Entities()
    assert torch.equal(big.table(), Entities().table())
    assert not torch.equal(big.table(), Entities(table_seed=1).table())
    with pytest.raises(ValidationError, match="tell 6 entities apart; got entities=7"):
        Entities(entities=7, values=(2, 3))


# --- bags ---


@pytest.fixture(scope="module")
def some_bags() -> Bags:
    return next(bags(ALL, 500))


def test_samples_of_a_bag_share_what_belongs_to_the_document(some_bags):
    on = some_bags.z[:, 1:] > 0
    shared, own = group_features(ALL)[1].flatten(), group_features(ALL)[2].flatten()
    assert (on[:, :, shared] == on[:, :1, shared]).all()
    assert not (on[:, :, own] == on[:, :1, own]).all()
    magnitudes = some_bags.z[:, 1:, shared]
    assert (magnitudes[:, 0] != magnitudes[:, 1])[on[:, 0, shared]].all()
    per_bag = on[:, 0, shared].double().mean(0)
    assert (per_bag - 0.1).abs().max() < 5 * (0.09 / 500) ** 0.5


def test_position_0_is_a_long_vector_that_the_mask_leaves_out(some_bags):
    kept = some_bags.x[some_bags.keep]
    assert len(kept) == 500 * 19
    rms = kept.square().sum(1).mean().sqrt().item()
    assert rms == pytest.approx(root_mean_square_norm(ALL), rel=0.02)
    first = some_bags.x[:, 0]
    assert torch.equal(first, first[:1].expand_as(first))
    assert first[0].norm().item() == pytest.approx(20 * root_mean_square_norm(ALL), rel=1e-5)
    assert not some_bags.z[:, 0].any()
    # counted by mistake, it is nearly all there is
    assert some_bags.x.square().sum() > 20 * kept.square().sum()


# --- magnitudes and directions ---


@pytest.mark.parametrize(
    ("kind", "std", "floor"),
    [("normal", 0.15, 0.1), ("normal", 2.0, 0.3), ("lognormal", 0.3, 0.1), ("lognormal", 1.0, 0.8)],
)
def test_moments_of_magnitudes_are_their_integrals(kind, std, floor):
    cfg = DictionaryConfig(magnitudes=kind, magnitude_std=std, magnitude_floor=floor)

    def magnitude(t: float) -> float:
        return max(abs(1 + std * t) if kind == "normal" else math.exp(std * t), floor)

    for power, found in enumerate(magnitude_moments(cfg), start=1):
        integral = quad(
            lambda t, power=power: magnitude(t) ** power * norm.pdf(t), -9, 9, limit=400
        )[0]
        assert found == pytest.approx(integral, rel=1e-5)


def test_exponential_magnitudes_begin_at_the_floor():
    cfg = ALL.but(magnitudes="exponential", magnitude_std=0.7, magnitude_floor=0.5)
    z = next(sparse_mixtures(cfg, 20_000)).z
    strengths = z[z > 0].double()
    assert strengths.min().item() == pytest.approx(0.5, abs=1e-3)
    # an exponential's spread is its mean, and half of it lies below ln 2 of it
    assert (strengths - 0.5).std().item() == pytest.approx(0.7, rel=0.02)
    assert strengths.median().item() == pytest.approx(0.5 + 0.7 * math.log(2), rel=0.01)
    first, second = magnitude_moments(cfg)
    assert first == pytest.approx(strengths.mean().item(), rel=0.01)
    assert second == pytest.approx(strengths.square().mean().item(), rel=0.02)


def test_lognormal_magnitudes_are_lognormal():
    cfg = ALL.but(magnitudes="lognormal", magnitude_std=0.3)
    z = next(sparse_mixtures(cfg, 20_000)).z
    logs = z[z > 0].log()
    assert logs.mean().item() == pytest.approx(0.0, abs=0.01)
    assert logs.std().item() == pytest.approx(0.3, rel=0.02)


def test_orthonormal_directions_are_exactly_that():
    cfg = DictionaryConfig(d_in=64, num_features=60, is_orthonormal=True)
    rows = ground_truth_dictionary(cfg)
    torch.testing.assert_close(rows @ rows.mT, torch.eye(60), atol=1e-6, rtol=0)
    assert largest_cosine(rows) < 1e-6
    assert not torch.equal(rows, ground_truth_dictionary(cfg.but(seed=1)))
    with pytest.raises(ValidationError, match=r"at most d_in=8 directions .* got num_features=9"):
        DictionaryConfig(d_in=8, num_features=9, mean_active=1.0, is_orthonormal=True)


def test_repulsion_of_the_nearest_gets_48_directions_of_32_numbers_below_0_12():
    cfg = DictionaryConfig(
        d_in=32, num_features=48, mean_active=3.0, repulsion="largest", repulsion_steps=2000
    )
    rows = ground_truth_dictionary(cfg)
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(48))
    assert largest_cosine(rows) < 0.12
    assert largest_cosine(ground_truth_dictionary(cfg.but(repulsion="squares"))) > 0.2


def test_the_largest_cosine_by_hand():
    rows = torch.tensor([[2.0, 0.0], [0.0, 1.0], [-0.6, 0.8]])
    assert largest_cosine(rows) == pytest.approx(0.8)
    assert largest_cosine(rows[:1]) == 0.0


# --- labels and readout ---


def test_labels_are_boolean_functions_of_what_fires():
    z = torch.tensor([[0.5, 0.0, 0.0], [0.5, 0.7, 0.0], [0.0, 0.0, 0.0]])
    assert single(z, 0).tolist() == [True, True, False]
    assert any_of(z, [1, 2]).tolist() == [False, True, False]
    assert all_of(z, [0, 1]).tolist() == [False, True, False]
    assert (single(z, 0) & ~single(z, 1)).tolist() == [True, False, False]


def test_a_feature_moves_the_logits_by_its_direction_read_out():
    cfg = ALL.but(noise=0.0)
    x, z = next(sparse_mixtures(cfg, 20))
    R, c = readout(cfg, 11)
    effects = ground_truth_dictionary(cfg) @ R
    moved = (x @ R + c) - z @ effects
    torch.testing.assert_close(moved, moved[:1].expand_as(moved), atol=1e-5, rtol=0)
    torch.testing.assert_close(R.norm(dim=0), torch.ones(11))
