"""The metrics find what was planted, and what was broken on purpose."""

import pytest
import torch

from sae_lib.evaluate.planted import (
    ORTHONORMAL,
    OVERCOMPLETE,
    absorption,
    planted_rows,
    probe_accuracy,
)
from sae_lib.evaluate.reconstruction import ReconstructionConfig
from sae_lib.evaluate.sparsity import SparsityConfig
from sae_lib.evaluate.weights import weight_statistics
from sae_lib.saes.known import HandedInCoder, coder_of
from sae_lib.synthetic.controls import (
    duplicated,
    matched_filter,
    merged,
    missing,
    shrunk,
    true_code,
)
from sae_lib.synthetic.dictionary import (
    bags,
    best_matches,
    firing_probabilities,
    ground_truth_dictionary,
    moments,
    noise_share,
    sparse_mixtures,
)
from sae_lib.synthetic.structure import Hierarchy, Independent

TOLERANCE = {
    "fvu": 0.02,
    "relative_reconstruction_bias": 0.002,
    "l2_ratio": 1e-5,
    "l0": 0.02,
    "max_decoder_cosine": 1e-5,
    "mmcs": 1e-5,
    "coverage": 1e-6,
    "probing": 0.001,
    "parent_probing": 0.02,
    "absorption": 0.03,
    "full_absorption": 0.03,
}
"""Relative for fvu and l0, which have standard errors on top; otherwise absolute."""


@pytest.fixture(scope="module")
def rows():
    return planted_rows(num_bags=200, probe_tokens=6000)


def by_name(rows):
    return {(row.coder, row.metric): row for row in rows}


def check(row):
    assert row.value is not None
    tolerance = TOLERANCE[row.metric] * (row.expected if row.metric in {"fvu", "l0"} else 1)
    tolerance += 4 * (row.stderr or 0)
    if row.coder.startswith("random"):  # one draw of random directions
        tolerance += 0.02
    if (row.coder, row.metric) == ("missing", "probing"):  # guesses
        tolerance += 0.03
    assert row.value == pytest.approx(row.expected, abs=tolerance), row


def test_everything_known_in_advance_comes_out(rows):
    known = [row for row in rows if row.expected is not None]
    assert len(known) > 60
    for row in known:
        check(row)


@pytest.mark.slow
def test_it_does_so_too_where_directions_interfere():
    for row in planted_rows(OVERCOMPLETE, num_bags=100, batch_bags=50, probe_tokens=3000):
        if row.expected is not None:
            check(row)


def test_the_oracle_is_the_ceiling(rows):
    found = {
        metric: row.value for (coder, metric), row in by_name(rows).items() if coder == "oracle"
    }
    assert found["fvu"] == pytest.approx(noise_share(ORTHONORMAL), rel=0.02)
    assert found["l0"] == pytest.approx(firing_probabilities(ORTHONORMAL).sum().item(), rel=0.03)
    assert (found["mmcs"], found["coverage"]) == pytest.approx((1.0, 1.0))
    assert (found["absorption"], found["full_absorption"]) == (0.0, 0.0)
    assert found["probing"] == pytest.approx(1.0, abs=0.001)


def test_random_directions_know_little_more_than_a_guess(rows):
    found = by_name(rows)
    assert 0.45 < found["random_sae", "probing"].value < 0.7
    assert found["random_sae", "coverage"].value == 0
    assert found["random_decoder", "fvu"].value > 2  # worse than the mean, which has 1
    # with the true code in its latents it can be probed as well as the oracle
    assert found["random_decoder", "probing"].value == pytest.approx(1.0, abs=0.001)


# --- absorption ---


@pytest.mark.parametrize("rate", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_absorption_is_found_at_the_rate_at_which_it_was_planted(rate):
    found = by_name(
        planted_rows(ORTHONORMAL, {"merged": merged(ORTHONORMAL, rate)}, num_bags=20, batch_bags=20)
    )
    assert found["merged", "absorption"].value == pytest.approx(rate, abs=0.03)
    assert found["merged", "full_absorption"].value == pytest.approx(rate, abs=0.03)
    # a share .6 rate of the parent's tokens is lost to a probe on its latent
    assert found["merged", "parent_probing"].value == pytest.approx(1 - 0.3 * rate, abs=0.02)


def test_two_copies_of_a_concepts_latent_look_like_half_absorption():
    control = duplicated(ORTHONORMAL, 1.0)
    assert control.known["absorption"] == 0.5
    some = {"duplicated": control}
    found = by_name(planted_rows(ORTHONORMAL, some, num_bags=20, batch_bags=20, probe_tokens=3000))
    assert found["duplicated", "absorption"].value == pytest.approx(0.5, abs=0.01)
    assert found["duplicated", "full_absorption"].value == 0
    assert found["duplicated", "max_decoder_cosine"].value == pytest.approx(1.0)


def scalar_absorption(f, cosines, norms, projection, main):
    """Section by section, for one word, as SAEBench 0.6 has it."""
    q = [a * c * n for a, c, n in zip(f, cosines, norms, strict=True)]
    top = max(range(len(f)), key=lambda i: q[i])
    full = (
        all(f[i] < 1e-8 for i in main)
        and cosines[top] >= 0.025
        and projection > 0
        and q[top] / projection >= 0.4
    )
    if projection <= 0:
        return 0.0, full
    of_main = sum(q[i] for i in main)
    others = [q[i] for i in range(len(f)) if i not in main and cosines[i] >= 0.1 and q[i] > 0]
    taken = sum(sorted(others)[-3:])
    if of_main >= projection or taken / projection < 0.4:
        return 0.0, full
    if of_main <= 0:
        return 1.0, full
    moved = min(taken, projection - of_main)
    return min(max(moved / (moved + of_main), 0.0), 1.0), full


def rows_at(cosines):
    """Unit rows with these cosines to the first axis."""
    cosine = torch.tensor(cosines, dtype=torch.float64)
    return torch.stack([cosine, (1 - cosine.square()).sqrt()], dim=1)


@pytest.mark.parametrize(
    ("q", "cosines", "fraction", "is_full"),
    [
        ((0.0, 0.7, 0.03), (1.0, 0.5, 0.04), 1.0, True),
        ((0.1, 0.7, 0.03), (1.0, 0.5, 0.04), 0.875, False),
        ((0.5, 0.3, 0.0), (1.0, 0.5, 0.5), 0.0, False),
        ((0.5, 0.45, 0.0), (1.0, 0.5, 0.5), 0.45 / 0.95, False),
        ((1.0, 0.7, 0.0), (1.0, 0.5, 0.5), 0.0, False),
        ((0.0, 0.7, 0.0), (1.0, 0.05, 0.5), 0.0, True),  # counts for full, not for the fraction
    ],
)
def test_words_by_hand(q, cosines, fraction, is_full):
    W_dec = rows_at(cosines)
    code = torch.tensor([q], dtype=torch.float64) / W_dec[:, 0]
    found = absorption(
        code, W_dec, torch.tensor([1.0, 0.0]).double(), torch.ones(1).double(), torch.tensor([0])
    )
    assert found.fraction.item() == pytest.approx(fraction)
    assert found.is_full.item() is is_full


def test_the_geometry_of_two_words_by_hand():
    half = 0.5**0.5
    W_dec = torch.tensor([[1.0, 0.0, 0.0], [half, half, 0.0], [0.0, 0.0, 1.0]])
    x = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 1.0]])
    code = torch.tensor([[0.0, 2**0.5, 0.0], [1.0, 0.0, 1.0]])
    torch.testing.assert_close(code @ W_dec, x)  # absorption is invisible to the error
    direction = torch.tensor([1.0, 0.0, 0.0])
    found = absorption(code, W_dec, direction, x @ direction, torch.tensor([0]))
    assert found.fraction.tolist() == [1.0, 0.0]
    assert found.is_full.tolist() == [True, False]


def test_words_at_random_agree_with_the_formulas_one_by_one():
    generator = torch.Generator().manual_seed(0)
    W_dec = torch.randn(25, 4, generator=generator).double()
    code = (torch.randn(300, 25, generator=generator).double() - 0.5).relu()
    direction = torch.randn(4, generator=generator).double()
    direction /= direction.norm()
    projection = 8 * torch.rand(300, generator=generator).double() - 0.5
    main = (W_dec @ direction).topk(2).indices
    found = absorption(code, W_dec, direction, projection, main)
    norms = W_dec.norm(dim=1)
    cosines = (W_dec @ direction / norms).tolist()
    expected = [
        scalar_absorption(f, cosines, norms.tolist(), p, main.tolist())
        for f, p in zip(code.tolist(), projection.tolist(), strict=True)
    ]
    assert found.fraction.tolist() == pytest.approx([fraction for fraction, _ in expected])
    assert found.is_full.tolist() == [full for _, full in expected]
    kinds = {(0 < fraction < 1, fraction == 1, full) for fraction, full in expected}
    assert len(kinds) >= 4


# --- reconstruction, sparsity, geometry ---


def measure(tools, cfg, control, metric, num_bags=200, change=lambda x, z: (x, z), keep_bos=False):
    """Rows of one metric for one control."""
    coder = coder_of(control)
    batch = next(bags(cfg, num_bags))
    keep = batch.keep | keep_bos
    x, z = change(batch.x[keep], batch.z[keep])
    if isinstance(coder, HandedInCoder):
        coder.hand_in(x, z)
    code = coder.encode(x)
    seen = tools.batch_of(x, coder.decode(code), code)
    return tools.run_metric(metric, [seen], mean=moments(cfg).x_mean.float(), coder=coder)


QUIET = ORTHONORMAL.but(
    num_features=40,
    noise=0.0,
    bias_norm=0.0,
    groups=(Independent(features=1, highest=1.0, lowest=1.0), Hierarchy(copies=3), Independent()),
    mean_active=1.0,
)


def test_shrunk_codes_have_exactly_that_l2_ratio_where_there_is_neither_bias_nor_noise(tools):
    control = shrunk(QUIET, 0.8)
    assert control.known["l2_ratio"] == 0.8
    found = tools.Values(measure(tools, QUIET, control, ReconstructionConfig()).rows())
    for key in (
        ("l2_ratio", "mean_of_ratios"),
        ("l2_ratio", "ratio_of_means"),
        ("relative_reconstruction_bias", "ratio_of_sums"),
    ):
        assert found[key].value == pytest.approx(0.8, abs=1e-6)
    assert found["fvu", "uncentred"].value == pytest.approx(0.04, abs=1e-6)
    assert control.known["relative_reconstruction_bias"] == pytest.approx(0.8)


def test_the_matched_filter_is_the_oracle_where_it_is_exact(tools):
    cfg = QUIET.but(magnitude_floor=0.6)
    control = matched_filter(cfg)
    found = tools.Values(measure(tools, cfg, control, ReconstructionConfig()).rows())
    assert found["fvu", "ratio_of_sums"].value == pytest.approx(0.0, abs=1e-9)
    assert control.known["fvu"] == pytest.approx(0.0, abs=1e-9)
    assert control.known["probing"] == 1.0
    # magnitudes below the threshold are lost
    assert "fvu" not in matched_filter(QUIET).known


def test_densities_are_the_planted_probabilities(tools):
    cfg = ORTHONORMAL.but(groups=(), mean_active=4.0)
    found = measure(tools, cfg, true_code(cfg), SparsityConfig(), num_bags=1000)
    p = firing_probabilities(cfg).double()
    tolerance = 4.5 * (p * (1 - p) / (1000 * 19)).sqrt()
    density = torch.tensor([row.density for row in found.per_latent()], dtype=torch.float64)
    assert (density - p).abs().le(tolerance).all()


def test_a_latent_of_a_feature_that_never_fires_is_dead_and_frequent_ones_are_dense(tools):
    def silence(x, z):
        z = z.clone()
        z[:, :8] = 0
        return x, z

    cfg = ORTHONORMAL.but(groups=(), mean_active=8.0, firing_ratio=2.0)  # all above .05
    rows = measure(tools, cfg, true_code(cfg), SparsityConfig(), change=silence).rows()
    dead = {row.definition: row.value for row in rows if row.name == "dead_share"}
    assert dead["never_fired"] == 8 / 64
    dense = {row.params["threshold"]: row.value for row in rows if row.name == "dense_share"}
    assert dense[0.01] == 56 / 64


def test_twice_the_same_direction_has_a_neighbour_at_one():
    control = duplicated(OVERCOMPLETE, 0.25)
    nearest = weight_statistics(coder_of(control)).max_decoder_cosine
    assert (nearest > 1 - 1e-6).double().mean().item() == 128 / 320
    assert (weight_statistics(coder_of(true_code(OVERCOMPLETE))).max_decoder_cosine < 0.9).all()


def test_half_of_the_dictionary_covers_half():
    planted = ground_truth_dictionary(OVERCOMPLETE)
    match = best_matches(planted, missing(OVERCOMPLETE, 0.5).weights.W_dec)
    assert int((match > 1 - 1e-6).sum()) == 128
    assert (match >= 0.9).double().mean().item() == 0.5


def test_matches_by_hand():
    planted = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    learned = torch.tensor([[0.8, 0.6], [0.0, 2.0], [-1.0, 0.0]])
    assert best_matches(planted, learned).tolist() == pytest.approx([0.8, 1.0])


def test_the_order_of_tokens_is_nothing_to_the_metrics(tools):
    def shuffled(x, z):
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(1))
        return x[order], z[order]

    control = merged(ORTHONORMAL)
    for metric in (ReconstructionConfig(), SparsityConfig()):
        plain = measure(tools, ORTHONORMAL, control, metric).rows()
        other = measure(tools, ORTHONORMAL, control, metric, change=shuffled).rows()
        for one, two in zip(plain, other, strict=True):
            assert one.name == two.name
            assert one.value == pytest.approx(two.value, rel=1e-4)


def test_a_first_position_that_counts_spoils_the_error(tools):
    control = true_code(ORTHONORMAL)
    kept = tools.Values(measure(tools, ORTHONORMAL, control, ReconstructionConfig()).rows())
    spoilt = tools.Values(
        measure(tools, ORTHONORMAL, control, ReconstructionConfig(), keep_bos=True).rows()
    )
    assert kept["fvu", "ratio_of_sums"].value < 0.01
    assert spoilt["fvu", "ratio_of_sums"].value > 0.5


def test_a_probe_takes_the_latent_of_the_feature():
    z = next(sparse_mixtures(ORTHONORMAL, 4000)).z
    assert probe_accuracy(z, z[:, 2] > 0) == pytest.approx(1.0, abs=0.001)
    without = torch.cat([z[:, :2], z[:, 3:]], dim=1)
    assert probe_accuracy(without, z[:, 2] > 0) == pytest.approx(0.5, abs=0.06)
    assert probe_accuracy(torch.zeros_like(z), z[:, 2] > 0) == 0.5


def test_bags_beyond_those_asked_for_do_not_count():
    some, told = {"merged": merged(ORTHONORMAL)}, []
    rows = planted_rows(
        ORTHONORMAL,
        some,
        num_bags=50,
        batch_bags=30,
        probe_tokens=1000,
        on_progress=lambda done, total: told.append((done, total)),
    )
    stream = bags(ORTHONORMAL, 30)
    z = torch.cat([next(stream).z, next(stream).z])[:50, 1:].flatten(0, 1)
    expected = (some["merged"].recode(z) > 0).sum(1).double().mean().item()
    assert by_name(rows)["merged", "l0"].value == pytest.approx(expected)
    assert told == [(30, 50), (50, 50)]
