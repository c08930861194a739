"""What a training states, and what follows from it."""

import subprocess
import sys

import pytest

from sae_lib.saes.topk import TopKConfig
from sae_lib.training.config import (
    ResolvedTrain,
    TrainConfig,
    derived_lr,
    normalisation_scale,
    resolve,
)


@pytest.mark.parametrize("config", [TrainConfig, ResolvedTrain])
def test_every_field_says_what_it_means(config: type[TrainConfig]):
    assert not [name for name, field in config.model_fields.items() if not field.description]


def test_describing_a_training_does_not_load_torch():
    code = "import sys, sae_lib.training.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_what_was_left_open_is_filled_in_and_what_was_given_stays():
    cfg = TrainConfig(tokens=2_000_000, lr=1e-3)
    resolved = resolve(cfg, TopKConfig(d_in=192, d_sae=2048))
    assert resolved.steps == 976
    assert resolved.lr == 1e-3
    assert resolved.warmup_steps == 48
    assert resolved.dead_after_tokens == 200_000
    given = cfg.but(warmup_steps=0, dead_after_tokens=5)
    resolved = resolve(given, TopKConfig(d_in=192, d_sae=2048))
    assert (resolved.warmup_steps, resolved.dead_after_tokens) == (0, 5)


def test_resolving_what_is_resolved_changes_nothing():
    sae = TopKConfig(d_in=192, d_sae=2048)
    resolved = resolve(TrainConfig(tokens=2_000_000), sae)
    stated = TrainConfig.model_validate(resolved.model_dump(exclude={"steps"}))
    assert resolve(stated, sae) == resolved


def test_long_runs_have_their_limits():
    resolved = resolve(TrainConfig(tokens=10**9), TopKConfig(d_in=8, d_sae=2**14))
    assert resolved.warmup_steps == 1000
    assert resolved.dead_after_tokens == 10_000_000
    assert resolved.lr == pytest.approx(2e-4)


def test_the_learning_rate_falls_with_the_root_of_the_width():
    assert derived_lr(2**16, 10**6) == pytest.approx(1e-4)
    assert derived_lr(2**12, 10**6) == pytest.approx(4e-4)


def test_short_runs_learn_faster_but_never_more_than_four_times():
    long_run = derived_lr(2**14, 10**6)
    assert derived_lr(2**14, 12_500) == pytest.approx(2 * long_run)
    assert derived_lr(2**14, 10) == pytest.approx(4 * long_run)


def test_less_than_a_batch_of_tokens_is_refused_with_both_numbers():
    with pytest.raises(ValueError, match=r"batch_tokens=2048, one step; got tokens=100"):
        TrainConfig(tokens=100)


def test_an_impossible_memory_of_adam_is_refused():
    with pytest.raises(ValueError, match=r"got betas=\(0\.9, 1\.0\)"):
        TrainConfig(tokens=10_000, betas=(0.9, 1.0))


def test_a_sparsity_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(ValueError, match=r"sparsity_warmup_steps=4 would not end .* 4 steps"):
        TrainConfig(tokens=4000, batch_tokens=1000, sparsity_warmup_steps=4)
    assert TrainConfig(tokens=4000, batch_tokens=1000, sparsity_warmup_steps=3)


def test_normalising_brings_the_mean_square_norm_to_one():
    assert normalisation_scale("unit_mean_square", 16.0) == 0.25
    assert normalisation_scale("none", 16.0) == 1
    assert normalisation_scale("unit_mean_square", 0.0) == 1
