"""Spread of a crosscoder's latents over its sources, on norms whose spread is known."""

from typing import Any

import pytest
import torch

from sae_lib.errors import NotApplicable
from sae_lib.evaluate import METRICS
from sae_lib.evaluate.base import EvalContext
from sae_lib.evaluate.crosscoder import norm_shares
from sae_lib.saes import VARIANTS


def rows_of(coder: Any) -> dict[str, Any]:
    metric: Any = METRICS["crosscoder"].model_validate({"name": "crosscoder"})
    context = EvalContext("a+b", coder, torch.zeros(coder.d_in), batch_contexts=1)
    found = {}
    for row in metric.start(context).rows():
        key = f"{row.name}{row.params.get('source', '')}" if row.params else row.name
        found[key] = row.value
    return found


def crosscoder(norms: list[list[float]]) -> Any:
    """Two sources of width 3; each latent's rows have these norms."""
    cfg = VARIANTS["crosscoder"].model_validate(
        {"d_in": 6, "d_sae": len(norms), "num_sources": 2, "activation": "relu", "l1": 0.1}
    )
    coder: Any = cfg.build()
    with torch.no_grad():
        for latent, (first, second) in enumerate(norms):
            coder.W_dec[latent] = torch.tensor([first, 0, 0, 0, second, 0])
    return coder


def test_shared_specific_and_between():
    found = rows_of(crosscoder([[1, 1], [2, 0], [0, 3], [1, 3]]))
    quarter = torch.tensor([0.25, 0.75])
    between = float((-quarter * quarter.log()).sum().exp())
    assert found["latent_sources"] == pytest.approx((2 + 1 + 1 + between) / 4)
    assert found["specific_share"] == pytest.approx(0.5)
    assert found["source_norm_share0"] == pytest.approx((0.5 + 1 + 0 + 0.25) / 4)
    assert found["source_norm_share1"] == pytest.approx((0.5 + 0 + 1 + 0.75) / 4)


def test_latents_without_rows_do_not_count():
    assert norm_shares(torch.tensor([[0.0, 0], [1, 3]])).tolist() == [[0.25, 0.75]]
    assert rows_of(crosscoder([[0, 0], [1, 3]]))["source_norm_share0"] == pytest.approx(0.25)
    assert rows_of(crosscoder([[0, 0]]))["latent_sources"] is None


def test_it_means_nothing_for_one_source():
    with pytest.raises(NotApplicable, match="one source"):
        rows_of(VARIANTS["topk"].example().build())
