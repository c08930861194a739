"""Controls as tensors: what they do to the true code, and what is known of them."""

import pytest
import torch

from sae_lib.errors import BadInput
from sae_lib.synthetic.controls import (
    controls,
    duplicated,
    expected_largest_cosine,
    families,
    merged,
    missing,
    pca,
    probed_features,
    random_decoder,
    shrunk,
    true_code,
)
from sae_lib.synthetic.dictionary import (
    DictionaryConfig,
    bias,
    ground_truth_dictionary,
    moments,
    noise_share,
    sparse_mixtures,
)
from sae_lib.synthetic.structure import Hierarchy, Independent

CFG = DictionaryConfig(
    d_in=40,
    num_features=40,
    is_orthonormal=True,
    groups=(
        Independent(features=10),
        Hierarchy(copies=5, chance=0.3, levels=((0.12,) * 5,)),
    ),
)
CROWDED = CFG.but(d_in=16, is_orthonormal=False)


def reconstruct(control, z):
    assert control.recode is not None
    return control.recode(z) @ control.weights.W_dec + control.weights.b_dec


def test_families_are_roots_with_their_children():
    found = families(CFG)
    assert [family.parent for family in found] == [10, 16, 22, 28, 34]
    assert found[1].children == (17, 18, 19, 20, 21)
    assert found[1].given == (0.12,) * 5


def test_features_to_probe_are_independent_and_not_rare():
    assert probed_features(CFG) == [0, 1, 2, 3, 4]  # .2 down to .2 * 100 ** (-4 / 9) = .026
    assert probed_features(CFG, most=2) == [0, 1]


@pytest.mark.parametrize("cfg", [CFG, CROWDED], ids=["orthonormal", "crowded"])
@pytest.mark.parametrize("make", [true_code, shrunk, missing, duplicated, merged, random_decoder])
def test_what_is_known_of_sums_is_what_is_found(cfg, make):
    cfg = cfg.but(noise=0.1)
    control = make(cfg)
    x, z = next(sparse_mixtures(cfg, 60_000))
    x_hat, l0 = reconstruct(control, z), (control.recode(z) > 0).sum(1).double()
    fvu = (x - x_hat).square().sum() / (x - x.mean(0)).square().sum()
    assert control.known["fvu"] == pytest.approx(fvu.item(), rel=0.03)
    gamma = x_hat.square().sum() / (x * x_hat).sum()
    assert control.known["relative_reconstruction_bias"] == pytest.approx(gamma.item(), rel=0.03)
    tolerance = 5 * l0.std().item() / 60_000**0.5
    assert control.known["l0"] == pytest.approx(l0.mean().item(), abs=tolerance)


def test_the_oracle_leaves_the_noise():
    control = true_code(CFG)
    assert control.known["fvu"] == pytest.approx(noise_share(CFG))
    assert control.known["relative_reconstruction_bias"] == pytest.approx(1.0)


def test_shrinking_is_the_bias_where_nothing_else_is():
    cfg = CFG.but(bias_norm=0.0)
    assert shrunk(cfg, 0.7).known["relative_reconstruction_bias"] == pytest.approx(0.7)


def test_copies_share_the_code_and_change_no_reconstruction():
    z = next(sparse_mixtures(CROWDED, 500)).z
    control = duplicated(CROWDED, 0.25)
    assert control.weights.W_dec.shape == (50, 16)
    torch.testing.assert_close(reconstruct(control, z), reconstruct(true_code(CROWDED), z))
    code = control.recode(z)
    assert code.sum(1).tolist() == pytest.approx(z.sum(1).tolist(), rel=1e-5)
    assert ((code > 0).sum(1) > (z > 0).sum(1)).any()


def test_what_is_missing_has_no_row():
    control = missing(CFG, 0.5)
    rows = {tuple(row) for row in control.weights.W_dec.tolist()}
    assert len(rows) == 20
    assert rows < {tuple(row) for row in ground_truth_dictionary(CFG).tolist()}
    assert control.known["coverage"] == 0.5


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.4, 1.0])
def test_the_parent_is_off_where_a_merged_child_is_on_and_only_there(rate):
    z = next(sparse_mixtures(CFG, 4000)).z
    control = merged(CFG, rate)
    code = control.recode(z)
    moved = (control.weights.W_dec != ground_truth_dictionary(CFG)).any(1)
    assert int(moved.sum()) == round(rate * 25)
    for family in families(CFG):
        children = torch.tensor(family.children)
        chosen = children[moved[children]]
        assert len(chosen) == rate * 5  # dealt evenly
        hole = (z[:, chosen] > 0).any(1)
        assert not code[hole, family.parent].any()
        assert torch.equal(code[~hole, family.parent], z[~hole, family.parent])
        left = children[~moved[children]]
        assert torch.equal(code[:, left], z[:, left])
    assert (code >= 0).all()
    torch.testing.assert_close(control.weights.W_dec.norm(dim=1), torch.ones(40))
    assert control.known["absorption"] == pytest.approx(rate)


@pytest.mark.parametrize("cfg", [CFG, CROWDED], ids=["orthonormal", "crowded"])
def test_absorption_is_invisible_where_parent_and_child_are_equally_strong(cfg):
    cfg = cfg.but(magnitude_std=0.0)
    z = next(sparse_mixtures(cfg, 500)).z
    torch.testing.assert_close(
        reconstruct(merged(cfg, 0.6), z), reconstruct(true_code(cfg), z), atol=1e-5, rtol=0
    )
    assert merged(cfg, 0.6).known["fvu"] == pytest.approx(true_code(cfg).known["fvu"])


def test_absorption_is_planted_only_where_children_exclude_each_other():
    flat = DictionaryConfig(d_in=8, num_features=8, mean_active=1.0)
    assert "merged" not in controls(flat)
    loose = Hierarchy(is_exclusive=False)
    for cfg in (flat, flat.but(groups=(loose,))):
        with pytest.raises(BadInput, match="children exclude each other"):
            merged(cfg)


def test_rates_that_no_longer_follow_are_not_claimed():
    # with all children merged the parent's latent tells of the parent no more than a child's
    full = CFG.but(num_features=15, groups=(Hierarchy(copies=3, levels=((0.25,) * 4,)),))
    assert "absorption" in merged(full, 0.25).known
    assert "absorption" not in merged(full, 1.0).known


def test_principal_components_are_those_of_the_distribution():
    x = next(sparse_mixtures(CROWDED, 60_000)).x.double()
    control = pca(CROWDED, rank=5)
    values = torch.linalg.eigvalsh((x - x.mean(0)).mT @ (x - x.mean(0)))
    assert control.known["fvu"] == pytest.approx(
        (values[:-5].sum() / values.sum()).item(), rel=0.01
    )
    torch.testing.assert_close(control.weights.b_dec.double(), moments(CROWDED).x_mean)
    rows = control.weights.W_dec
    torch.testing.assert_close(rows[:5], -rows[5:])
    torch.testing.assert_close(rows[:5] @ rows[:5].mT, torch.eye(5), atol=1e-5, rtol=0)


def test_random_directions_are_not_the_dictionary_and_follow_from_the_seed():
    rows = random_decoder(CFG).weights.W_dec
    assert (rows @ ground_truth_dictionary(CFG).mT).abs().max() < 0.8
    assert torch.equal(rows, random_decoder(CFG).weights.W_dec)
    assert not torch.equal(rows, random_decoder(CFG.but(seed=1)).weights.W_dec)
    assert torch.equal(random_decoder(CFG).weights.b_dec, bias(CFG))


@pytest.mark.parametrize(("d_in", "num"), [(2, 1), (3, 7), (40, 40)])
def test_the_expected_largest_cosine_is_the_mean_of_many(d_in, num):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(4000, num, d_in, generator=generator)
    cosines = (rows[..., 0] / rows.norm(dim=-1)).amax(1)
    tolerance = 5 * cosines.std().item() / 4000**0.5
    assert expected_largest_cosine(d_in, num) == pytest.approx(cosines.mean().item(), abs=tolerance)
