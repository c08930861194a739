"""The training half of the recipes, which the floor of the SAEs does not know."""

import pytest

from sae_lib.saes import VARIANTS
from sae_lib.saes.presets import PRESETS, expand
from sae_lib.training.config import TrainConfig, resolve
from sae_lib.training.schedules import lr_factor


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("is_steered", [False, True])
def test_the_settings_of_a_recipe_are_settings(name: str, is_steered: bool):
    entry = {"target_l0": 4} if is_steered and "k" not in VARIANTS[_kind(name)].dials else {}
    train = expand(name, entry)["train"]
    cfg = TrainConfig(tokens=4_000_000_000, **train)
    for key, value in train.items():
        assert getattr(cfg, key) == value
    resolved = resolve(cfg, VARIANTS[_kind(name)].example())
    assert resolved.lr == train["lr"]
    assert resolved.warmup_steps == train["warmup_steps"]


def test_the_rate_of_gemma_scope_rises_from_a_tenth_and_then_stays():
    cfg = TrainConfig(tokens=4096 * 20_000, **expand("gemma_scope")["train"])
    resolved = resolve(cfg, VARIANTS["jumprelu"].example())

    def factor(step: int) -> float:
        return lr_factor(
            step,
            steps=resolved.steps,
            warmup_steps=resolved.warmup_steps,
            decay_share=resolved.decay_share,
            warmup_start=resolved.warmup_start,
        )

    assert factor(0) == pytest.approx(0.1, abs=1e-3)
    assert factor(499) == pytest.approx(0.55)
    assert factor(999) == factor(19_999) == 1


def test_a_run_too_short_for_the_warm_up_of_gemma_scope_is_refused():
    with pytest.raises(ValueError, match=r"sparsity_warmup_steps=10000 would not end .* 976 steps"):
        TrainConfig(tokens=4_000_000, **expand("gemma_scope")["train"])


def _kind(name: str) -> str:
    return PRESETS[name].sae["kind"]
