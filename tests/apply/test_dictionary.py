import json

import pytest
import torch
from pydantic import ValidationError

from sae_lib.apply import Bench, apply_site, dictionary, read_application
from sae_lib.apply.dictionary import (
    HELD_OUT,
    MEASURES,
    DictionaryRecoveryConfig,
    Mixtures,
    budget_of,
    recovery,
    settings_of,
    twin_of,
)
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.saes import VARIANTS
from sae_lib.saes.batch_topk import BatchTopKConfig
from sae_lib.saes.feature_choice import FeatureChoiceConfig
from sae_lib.saes.jumprelu import JumpReLUConfig
from sae_lib.saes.known import LinearThresholdCoder
from sae_lib.saes.matryoshka import MatryoshkaConfig
from sae_lib.saes.standard import StandardConfig
from sae_lib.saes.switch import SwitchConfig
from sae_lib.saes.topk import TopKConfig
from sae_lib.saes.transcoder import TranscoderConfig
from sae_lib.synthetic.dictionary import (
    DictionaryConfig,
    LinearThreshold,
    firing_probabilities,
    ground_truth_dictionary,
    magnitude_moments,
    oracle,
    sparse_mixtures,
)
from sae_lib.training.loop import fit

TINY = DictionaryRecoveryConfig(
    d_in=16, num_features=24, mean_active=2.0, steps=6, rows=600, noise=0.01
)
FULL = DictionaryRecoveryConfig().data
ORTHONORMAL = DictionaryConfig(
    d_in=12,
    num_features=12,
    mean_active=2.0,
    is_orthonormal=True,
    noise=0.0,
    bias_norm=0.0,
    firing_ratio=2.0,
    magnitude_std=0.1,
)
EXAMPLES = [
    pytest.param(cfg, id=f"{kind}-{i}")
    for kind, config in VARIANTS.items()
    for i, cfg in enumerate(config.examples())
]


def bench_of(**coders) -> Bench:
    """Nothing but the coders is looked at: neither a model nor a corpus."""
    built = {name: cfg.build().requires_grad_(False) for name, cfg in coders.items()}
    return Bench(None, "resid_post.0", built)  # pyright: ignore[reportArgumentType]


def numbers(rows) -> dict:
    return {(row.method, row.measurement.name): row.measurement for row in rows}


# --- the data ---


def test_the_default_data_are_three_of_128_directions_by_zipfs_law():
    cfg = DictionaryRecoveryConfig()
    assert (cfg.data.d_in, cfg.data.num_features, cfg.width, cfg.data.noise) == (64, 128, 128, 0.02)
    ranks = torch.arange(1, 129)
    chances = 1 / (ranks + 8)
    torch.testing.assert_close(firing_probabilities(cfg.data), 3 * chances / chances.sum())
    # .5 + .7 Exp(1)
    assert magnitude_moments(cfg.data) == pytest.approx((1.2, 0.25 + 0.7 + 0.98))
    z = next(sparse_mixtures(cfg.data, 20_000)).z
    assert (z > 0).sum(1).float().mean().item() == pytest.approx(3, abs=0.05)
    assert z[z > 0].mean().item() == pytest.approx(1.2, abs=0.02)


def test_a_batch_is_a_function_of_seed_and_number_and_none_is_held_out():
    batches = Mixtures(TINY.data)
    third = batches.batch(2)
    assert torch.equal(third.x["mixtures"], Mixtures(TINY.data).batch(2).x["mixtures"])
    assert third.x["mixtures"].shape == (512, 16)
    assert third.rows.tolist() == list(range(1024, 1536))
    others = [batches.batch(3), Mixtures(TINY.but(seed=1).data).batch(2), batches.batch(HELD_OUT)]
    for other in others:
        assert not torch.equal(third.x["mixtures"], other.x["mixtures"])


def test_data_that_cannot_be_are_refused():
    with pytest.raises(ValidationError, match=r"probability .* lower mean_active"):
        DictionaryRecoveryConfig(num_features=8, mean_active=9)
    with pytest.raises(BadInput, match=r"apply.* has kind, d_in, num_features"):
        read_application({"kind": "dictionary", "num_feature": 8})


# --- the numbers, on coders whose answer is known ---


def test_a_perfect_coder_finds_everything_and_explains_everything():
    found = recovery(LinearThresholdCoder(oracle(ORTHONORMAL, 0.05)), ORTHONORMAL, 5000)
    assert found.mmcs == pytest.approx(1, abs=1e-5)
    assert found.recovered == 1
    assert found.fvu == pytest.approx(0, abs=1e-8)
    assert found.relative_reconstruction_bias == pytest.approx(1, abs=1e-5)
    assert found.l0 == pytest.approx(2.0, abs=0.1)
    assert found.dead_share == 0
    assert found.num_rows == 5000


def test_numbers_of_a_coder_made_by_hand():
    """One direction is absent, one is halfway to another, one never fires, others are shrunk."""
    true = ground_truth_dictionary(ORTHONORMAL)
    rows = true.clone()
    rows[0] = -true[0]
    rows[1] = (true[1] + true[2]) / 2**0.5
    encoder = true.clone()
    encoder[3] = 0
    weights = LinearThreshold(encoder / 2, 2 * rows, torch.zeros(12), torch.zeros(12), 0.01)
    found = recovery(LinearThresholdCoder(weights), ORTHONORMAL, 3000)
    # the rows' lengths do not matter; the absent one's largest cosine is 0
    assert found.mmcs == pytest.approx((0 + 2**-0.5 + 10) / 12, abs=1e-5)
    assert found.recovered == pytest.approx(10 / 12)
    assert found.dead_share == pytest.approx(1 / 12)
    shrunk = LinearThreshold(true, true / 2, torch.zeros(12), torch.zeros(12), 0.01)
    found = recovery(LinearThresholdCoder(shrunk), ORTHONORMAL, 5000)
    assert found.relative_reconstruction_bias == pytest.approx(0.5, abs=1e-5)
    assert found.mmcs == pytest.approx(1, abs=1e-5)
    x = next(sparse_mixtures(ORTHONORMAL, 4096, start=HELD_OUT)).x
    x = torch.cat([x, next(sparse_mixtures(ORTHONORMAL, 4096, start=HELD_OUT + 1)).x])[:5000]
    expected = (x / 2).square().sum() / (x - x.mean(0)).square().sum()
    assert found.fvu == pytest.approx(expected.item(), rel=1e-4)


def test_what_has_no_value_is_none():
    nothing = LinearThreshold(
        torch.zeros(12, 12), torch.eye(12), torch.zeros(12), torch.zeros(12), 1.0
    )
    found = recovery(LinearThresholdCoder(nothing), ORTHONORMAL, 200)
    assert found.relative_reconstruction_bias is None
    assert (found.l0, found.dead_share) == (0, 1)
    assert recovery(LinearThresholdCoder(nothing), ORTHONORMAL, 1).fvu is None


def test_a_coder_of_another_width_is_refused():
    coder = TopKConfig(d_in=8, d_sae=16, k=2).build()
    with pytest.raises(BadInput, match=r"d_in.*have 12 coordinates; this coder reads 8"):
        recovery(coder, ORTHONORMAL)
    with pytest.raises(BadInput, match="at least one row"):
        recovery(TopKConfig(d_in=12, d_sae=16, k=2).build(), ORTHONORMAL, 0)


# --- twins ---


@pytest.mark.parametrize("cfg", EXAMPLES)
def test_every_example_has_a_twin_with_its_settings_at_the_datas_sparsity_or_a_reason(cfg):
    if cfg.needs_objective is not None:
        with pytest.raises(NotApplicable, match="another place than it reads"):
            twin_of(cfg, FULL, 128)
        return
    twin = twin_of(cfg, FULL, 128)
    assert (twin.kind, twin.d_in, twin.d_sae, twin.seed) == (cfg.kind, 64, 128, cfg.seed)
    budget = budget_of(twin)
    assert set(budget) == set(budget_of(cfg))
    for name, value in budget.items():
        if name in ("k", "target_l0"):
            assert value == 3
        elif name != "num_experts":  # a coefficient
            assert value == getattr(cfg, name)
    for name in ("form", "base", "gradient", "penalty", "budgets", "weighting", "revive", "loss"):
        assert getattr(twin, name, None) == getattr(cfg, name, None)
    # read from disk, where every field is said, it has the same twin
    stored = type(cfg).model_validate(json.loads(cfg.model_dump_json()))
    assert twin_of(stored, FULL, 128) == twin
    assert twin.build().W_dec.shape == (128, 64)


def test_what_was_derived_is_derived_again_and_what_was_set_is_scaled():
    derived = TopKConfig(d_in=1024, d_sae=8192, k=50)
    assert derived.aux_k == 512
    assert twin_of(derived, FULL, 128).aux_k == 32  # type: ignore[attr-defined]
    said = TopKConfig(d_in=1024, d_sae=8192, k=50, aux_k=64)
    assert twin_of(said, FULL, 128).aux_k == 4  # type: ignore[attr-defined]
    assert twin_of(said.but(aux_k=0), FULL, 128).aux_k == 0  # type: ignore[attr-defined]
    # a threshold follows from the target, which is another now
    steered = JumpReLUConfig(d_in=1024, d_sae=8192, target_l0=50)
    fresh = JumpReLUConfig(d_in=64, d_sae=128, target_l0=3)
    assert twin_of(steered, FULL, 128) == fresh
    assert twin_of(steered.but(threshold=0.5), FULL, 128).threshold == 0.5  # type: ignore[attr-defined]
    tanh = twin_of(JumpReLUConfig(d_in=1024, d_sae=8192, form="tanh", penalty=0.01), FULL, 128)
    assert (tanh.slope, tanh.start_on) == (32, 64)  # type: ignore[attr-defined]
    choice = FeatureChoiceConfig(d_in=1024, d_sae=8192, k=50)
    assert twin_of(choice, FULL, 128).zipf_offset == 3  # type: ignore[attr-defined]
    wide = FeatureChoiceConfig(d_in=1024, d_sae=8192, k=50, zipf_offset=100)
    assert twin_of(wide, FULL, 128).zipf_offset == 6  # type: ignore[attr-defined]
    assert "zipf_offset" in settings_of(wide)
    assert "zipf_offset" not in settings_of(choice)


def test_sizes_in_latents_follow_the_number_of_latents():
    nested = MatryoshkaConfig(d_in=1024, d_sae=8192, k=50, prefixes=(512, 2048))
    assert twin_of(nested, FULL, 128).prefixes == (8, 32)  # type: ignore[attr-defined]
    shares = nested.but(prefixes=(0.25, 0.5))
    assert twin_of(shares, FULL, 128).prefixes == (0.25, 0.5)  # type: ignore[attr-defined]
    routed = SwitchConfig(d_in=1024, d_sae=8192, k=50, num_experts=64)
    # experts of two latents could not hold three
    assert twin_of(routed, FULL, 128).num_experts == 32  # type: ignore[attr-defined]
    assert twin_of(routed, FULL, 130).num_experts == 26  # type: ignore[attr-defined]


def test_a_budget_that_does_not_fit_is_a_reason():
    with pytest.raises(NotApplicable, match=r"no such twin: .*k must be between 1 and d_sae=2"):
        twin_of(TopKConfig(d_in=8, d_sae=32, k=4), FULL, 2)
    known = LinearThresholdCoder(oracle(ORTHONORMAL))
    with pytest.raises(NotApplicable, match="given, not learnt"):
        twin_of(known.cfg, FULL, 128)


# --- the application ---


def test_every_coder_gets_all_numbers_or_the_reason():
    bench = bench_of(
        topk=TopKConfig(d_in=8, d_sae=32, k=4),
        l1=StandardConfig(d_in=8, d_sae=32, l1=0.1),
        map=TranscoderConfig(d_in=8, d_sae=32, k=4),
    )
    seen = []
    found = apply_site(bench, [TINY], on_progress=lambda *at: seen.append(at))
    for name in ("topk", "l1"):
        rows = numbers(found.rows[name])
        assert set(rows) == {("twin", name) for name in MEASURES} | {("untrained", "mmcs")}
        assert all(row.value is not None and row.reason is None for row in rows.values())
        assert rows["twin", "mmcs"].n == rows["untrained", "mmcs"].n == 24
        assert (rows["twin", "fvu"].n, rows["twin", "fvu"].unit) == (600, "rows")
        assert rows["twin", "dead_share"].n == 24
    assert numbers(found.rows["topk"])["twin", "mmcs"].params["k"] == 2
    assert numbers(found.rows["topk"])["twin", "l0"].value == pytest.approx(2, abs=0.1)
    assert numbers(found.rows["l1"])["twin", "mmcs"].params["l1"] == 0.1
    assert numbers(found.rows["l1"])["twin", "mmcs"].params["d_sae"] == 24
    (absent,) = found.rows["map"]
    assert absent.measurement.value is None
    assert "another place" in (absent.measurement.reason or "")
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1] == (100, 100)


def test_the_untrained_control_is_the_cosine_of_the_twins_first_weights():
    cfg = TopKConfig(d_in=8, d_sae=32, k=4, seed=7)
    rows = numbers(apply_site(bench_of(one=cfg), [TINY]).rows["one"])
    first = torch.nn.functional.normalize(twin_of(cfg, TINY.data, 24).build().W_dec.detach(), dim=1)
    expected = (ground_truth_dictionary(TINY.data) @ first.mT).amax(1).mean().item()
    assert rows["untrained", "mmcs"].value == pytest.approx(expected, abs=1e-6)


def test_twins_with_equal_settings_are_trained_once_and_in_one_stream(monkeypatch):
    calls = []

    def counted(trainees, batches, **more):
        calls.append([trainee.coder.cfg for trainee in trainees])
        return fit(trainees, batches, **more)

    monkeypatch.setattr(dictionary, "fit", counted)
    bench = bench_of(
        narrow=TopKConfig(d_in=8, d_sae=32, k=4),
        wide=TopKConfig(d_in=8, d_sae=64, k=9),
        other_seed=TopKConfig(d_in=8, d_sae=32, k=4, seed=1),
        other_kind=BatchTopKConfig(d_in=8, d_sae=32, k=4),
    )
    found = apply_site(bench, [TINY.but(steps=2)])
    assert [[(cfg.kind, cfg.seed) for cfg in call] for call in calls] == [
        [("topk", 0), ("topk", 1), ("batch_topk", 0)]
    ]
    assert found.rows["narrow"] == found.rows["wide"]
    assert found.rows["narrow"] != found.rows["other_seed"]


def test_what_is_found_for_a_coder_does_not_depend_on_the_others():
    coders = {
        "standard": StandardConfig(d_in=8, d_sae=32, target_l0=5),
        "batch_topk": BatchTopKConfig(d_in=8, d_sae=32, k=4),
        "jumprelu": JumpReLUConfig(d_in=8, d_sae=32, target_l0=5),
    }
    together = apply_site(bench_of(**coders), [TINY]).rows
    state = torch.random.get_rng_state()
    for name, cfg in coders.items():
        assert TINY.compare({name: cfg}) == {name: together[name]}
    assert torch.equal(state, torch.random.get_rng_state())


def test_a_twin_that_diverged_says_so(monkeypatch):
    def broken(trainees, batches, **more):
        return [one._replace(status="diverged", steps=3) for one in fit(trainees, batches, **more)]

    monkeypatch.setattr(dictionary, "fit", broken)
    rows = numbers(apply_site(bench_of(one=TopKConfig(d_in=8, d_sae=32, k=4)), [TINY]).rows["one"])
    assert rows["twin", "fvu"].value is None
    assert rows["twin", "fvu"].reason == "the twin diverged in step 3"
    assert rows["untrained", "mmcs"].value is not None


def test_training_finds_directions_that_are_not_there_at_first():
    easy = DictionaryRecoveryConfig(
        d_in=16, num_features=16, mean_active=1.5, steps=300, rows=2000, d_sae=24, lr=5e-3
    )
    rows = numbers(apply_site(bench_of(one=TopKConfig(d_in=8, d_sae=32, k=4)), [easy]).rows["one"])
    assert rows["twin", "mmcs"].value > 0.9
    assert rows["untrained", "mmcs"].value < 0.7
    assert rows["twin", "fvu"].value < 0.3
