"""Several sites together: scales of their own, folded, and a coder of raw activations."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from sae_lib.errors import BadInput
from sae_lib.saes.crosscoder import CrosscoderConfig
from sae_lib.saes.topk import TopKConfig
from sae_lib.training.loop import fit
from sae_lib.training.memory import InMemoryBatches
from sae_lib.training.objectives.crosscode import CrosscodeConfig
from sae_lib.training.trainee import Trainee

CFGS = [
    CrosscoderConfig(d_in=16, d_sae=32, l1=0.01),
    CrosscoderConfig(d_in=16, d_sae=32, activation="batch_topk", k=4),
]


def crossing(trainee: Any, cfg: CrosscoderConfig, scales: dict[str, float]) -> Trainee:
    it = trainee(cfg=cfg, site="a+b", steps=300)
    it.objective, it.scales = CrosscodeConfig().build(), scales
    return it


@pytest.mark.parametrize("cfg", CFGS, ids=["relu", "batch_topk"])
def test_the_unit_of_a_source_means_nothing(
    cfg: CrosscoderConfig, trainee: Any, mixtures: Callable[..., torch.Tensor]
):
    a = mixtures(500)
    b = a.roll(1, 1)
    near = fit(
        [crossing(trainee, cfg, {"a": 1.0, "b": 1.0})], InMemoryBatches({"a": a, "b": b}, 32)
    )[0]
    data = InMemoryBatches({"a": 64 * a, "b": b / 8}, 32)
    far = fit([crossing(trainee, cfg, {"a": 1 / 64, "b": 8.0})], data)[0]
    assert far.numbers["fvu"] == near.numbers["fvu"] < 0.3
    x = torch.cat([64 * a, b / 8], 1)
    fvu = (x - far.coder(x)).square().sum() / (x - x.mean(0)).square().sum()
    assert fvu < 0.35
    coder: Any = far.coder
    its: Any = near.coder
    share = coder.source_norms()[:, 0] / coder.source_norms().sum(1)
    torch.testing.assert_close(share, its.source_norms()[:, 0] / its.source_norms().sum(1))
    z = near.coder.encode(torch.cat([a, b], 1))
    assert torch.equal(far.coder.encode(x) > 0, z > 0)


def test_only_crosscoders_of_as_many_sources_are_taken(
    trainee: Any, mixtures: Callable[..., torch.Tensor]
):
    with pytest.raises(BadInput, match="topk knows nothing of several sources"):
        CrosscodeConfig().check(TopKConfig.example())
    it = crossing(trainee, CFGS[0].but(num_sources=4), {})
    with pytest.raises(BadInput, match=r"4 sources, and a\+b names 2"):
        fit([it], InMemoryBatches({"a": mixtures(500), "b": mixtures(500)}, 32))
