"""What two processes come to together is what one comes to, whatever is split between them."""

import pytest

from sae_lib.training.trainee import Fitted

SPLITS = ("batch", "latents")
NAMES = ("topk", "multi", "batch_topk", "steered", "weighted")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_the_weights_are_those_of_one_process(
    name: str, split: str, alone: dict[str, Fitted], together
):
    mine, theirs = together[split].results[name], alone[name]
    assert (mine.status, mine.steps) == ("complete", theirs.steps)
    for key, expected in theirs.coder.state_dict().items():
        found = mine.coder.state_dict()[key]
        gap = float((found - expected).float().norm() / expected.float().norm().clamp_min(1e-6))
        assert gap < 1e-4, key


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_every_number_of_the_curves_is_that_of_one_process(
    name: str, split: str, alone: dict[str, Fitted], together
):
    def values(fitted: Fitted) -> dict[tuple[int, str], float]:
        return {
            (point["step"], point["name"]): point["value"]
            for point in fitted.curves
            if point["name"] != "tokens_per_second"
        }

    assert values(together[split].results[name]) == pytest.approx(
        values(alone[name]), rel=1e-3, abs=1e-5
    )


def test_latents_die_and_are_revived_in_what_was_compared(alone: dict[str, Fitted]):
    for name in ("topk", "batch_topk"):
        points = alone[name].curves
        assert max(p["value"] for p in points if p["name"] == "aux") > 0, name
    dead = [p["value"] for p in alone["topk"].curves if p["name"] == "dead_share"]
    assert max(dead) > 0.2
    # the norm is bounded in some steps, so a norm of only a part would show
    norms = [p["value"] for p in alone["topk"].curves if p["name"] == "grad_norm"]
    assert max(norms) > 0.2


def test_progress_is_reported_while_they_train(together, alone: dict[str, Fitted]):
    for split in SPLITS:
        for name in NAMES:
            steps = [found.step for found in together[split].reports if found.name == name]
            assert steps == list(range(1, alone[name].steps + 1))
