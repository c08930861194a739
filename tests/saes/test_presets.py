"""Recipes name what exists, say what the papers say, and give way to the user."""

from typing import Any

import pytest

from sae_lib.errors import UnknownName
from sae_lib.saes import VARIANTS
from sae_lib.saes.presets import PRESETS, expand, preset_of

DIALS: dict[str, dict[str, Any]] = {
    "standard": {"target_l0": 4},
    "jumprelu": {"target_l0": 4},
    "topk": {"k": 4},
    "batch_topk": {"k": 4},
}
every_preset = pytest.mark.parametrize("name", PRESETS)


@every_preset
def test_a_recipe_with_a_dial_is_a_whole_description(name: str):
    preset = preset_of(name)
    kind = preset.sae["kind"]
    assert set(preset.sae).isdisjoint(VARIANTS[kind].dials), "how sparse is the user's to say"
    cfg = VARIANTS[kind](d_in=8, d_sae=32, **preset.sae, **DIALS[kind])
    for key, value in preset.sae.items():
        assert getattr(cfg, key) == value
    assert cfg.build().d_sae == 32
    assert preset.name == name
    assert preset.summary.endswith(".")
    assert preset.papers


def test_gemma_scope_is_the_published_recipe():
    preset = preset_of("gemma_scope")
    assert dict(preset.sae) == {
        "kind": "jumprelu",
        "form": "l0",
        "threshold": 0.001,
        "bandwidth": 0.001,
        "bias_start": "zero",
    }
    train = preset.train
    assert (train["lr"], train["betas"], train["eps"]) == (7e-5, (0.0, 0.999), 1e-8)
    assert (train["warmup_steps"], train["warmup_start"], train["decay_share"]) == (1000, 0.1, 0)
    assert (train["batch_tokens"], train["sparsity_warmup_steps"]) == (4096, 10_000)


def test_what_the_user_says_wins_and_the_rest_stays():
    entry = {"d_sae": 64, "penalty": 0.01, "threshold": 0.05, "train": {"lr": 1e-3}}
    found = expand("gemma_scope", entry)
    assert found["kind"] == "jumprelu"
    assert (found["d_sae"], found["penalty"], found["threshold"]) == (64, 0.01, 0.05)
    assert found["bandwidth"] == 0.001
    assert found["train"]["lr"] == 1e-3
    assert found["train"]["betas"] == (0.0, 0.999)
    assert entry["train"] == {"lr": 1e-3}
    assert preset_of("gemma_scope").train["lr"] == 7e-5


def test_a_steered_penalty_is_whole_for_most_of_the_run():
    name = "anthropic_january_2025"
    assert expand(name, {"penalty": 0.1})["train"]["sparsity_warmup_share"] == 1
    assert expand(name, {"target_l0": 8})["train"]["sparsity_warmup_share"] == 0.05
    own = {"target_l0": 8, "train": {"sparsity_warmup_share": 0.2}}
    assert expand(name, own)["train"]["sparsity_warmup_share"] == 0.2


def test_recipes_cannot_be_changed():
    with pytest.raises(TypeError):
        PRESETS["gemma_scope"].train["lr"] = 1.0  # pyright: ignore[reportIndexIssue]


def test_an_unknown_recipe_is_refused_with_the_nearest():
    with pytest.raises(UnknownName, match=r"No preset is called 'gema_scope'.*'gemma_scope'\?"):
        expand("gema_scope")
