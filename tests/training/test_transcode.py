"""From one site to another: both scales are folded, and the target is what is reconstructed."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from sae_lib.errors import BadInput
from sae_lib.saes.topk import TopKConfig
from sae_lib.saes.transcoder import TranscoderConfig
from sae_lib.training.loop import fit
from sae_lib.training.memory import InMemoryBatches
from sae_lib.training.objectives.plain import PlainConfig
from sae_lib.training.objectives.transcode import TranscodeConfig
from sae_lib.training.trainee import Trainee

CFG = TranscoderConfig(d_in=8, d_out=5, d_sae=32, k=4)
A = torch.randn(5, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def data(mixtures: Callable[..., torch.Tensor]) -> InMemoryBatches:
    x = 30 * mixtures(500)
    return InMemoryBatches({"in": x, "out": 0.01 * (x @ A.T).relu() + 0.2}, 32, seed=3)


def mapping(trainee: Any, cfg: TranscoderConfig = CFG, **changes: Any) -> Trainee:
    it = trainee(cfg=cfg, site="in>out", **{"steps": 300, **changes})
    it.objective = TranscodeConfig().build()
    it.scales = {"in": 1 / 32, "out": 2.0}
    return it


@pytest.mark.parametrize("skip", [False, True])
def test_the_finished_coder_takes_raw_activations_to_raw_activations(
    skip: bool, trainee: Any, data: InMemoryBatches
):
    (result,) = fit([mapping(trainee, CFG.but(skip=skip))], data)
    x, y = data.x["in"], data.x["out"]
    fvu = (y - result.coder(x)).square().sum() / (y - y.mean(0)).square().sum()
    assert fvu < 0.3
    assert fvu == pytest.approx(result.numbers["fvu"], rel=0.4)
    norms = result.coder.W_dec.norm(dim=-1)
    torch.testing.assert_close(norms[norms > 0], torch.ones(int((norms > 0).sum())))


def test_the_bias_starts_at_the_mean_of_the_target(trainee: Any, data: InMemoryBatches):
    it = mapping(trainee, steps=1, lr=1e-12)
    (result,) = fit([it], data)
    drawn = torch.cat([data.batch(i).x["out"] for i in range(16)])
    torch.testing.assert_close(result.coder.b_dec, drawn.mean(0), rtol=1e-4, atol=1e-4)


def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    trainee: Any, data: InMemoryBatches, tmp_path: Path
):
    (whole,) = fit([mapping(trainee, steps=12)], data)

    def stop(report: Any) -> None:
        if report.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit([mapping(trainee, steps=12, checkpoint=tmp_path)], data, on_step=stop)
    (resumed,) = fit([mapping(trainee, steps=12, checkpoint=tmp_path)], data)
    (again,) = fit([mapping(trainee, steps=12, checkpoint=tmp_path)], data)  # not a step is left
    for name, value in whole.coder.state_dict().items():
        assert torch.equal(resumed.coder.state_dict()[name], value), name
        assert torch.equal(again.coder.state_dict()[name], value), name


def test_only_transcoders_and_places_from_one_site_to_one_are_taken(
    trainee: Any, data: InMemoryBatches
):
    with pytest.raises(BadInput, match="topk reconstructs what it reads"):
        TranscodeConfig().check(TopKConfig.example())
    with pytest.raises(BadInput, match="only the objective transcode"):
        PlainConfig().check(CFG)
    it = mapping(trainee, CFG.but(d_out=6))
    with pytest.raises(BadInput, match="reconstructs 6 numbers; out has 5"):
        fit([it], data)
    it = mapping(trainee)
    it.site = "in>out+in"
    it.coder = CFG.but(d_out=13).build()
    with pytest.raises(BadInput, match="one site to one site"):
        fit([it], data)
