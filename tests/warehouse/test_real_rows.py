"""What evaluations really return fits the tables and fills the views."""

from importlib import import_module

import pytest
import torch

from sae_lib.registry import import_members
from sae_lib.saes.topk import TopKConfig


@pytest.fixture(scope="module")
def evaluate():
    package = import_module("sae_lib.evaluate")
    import_members("sae_lib.evaluate", package.__path__)
    return import_module("sae_lib.evaluate.base")


def test_rows_of_real_accumulators_fill_the_leaderboard(warehouse, evaluate):
    generator = torch.Generator().manual_seed(0)
    coder = TopKConfig(d_in=8, d_sae=32, k=4, aux_k=4).build()
    coder.initialise_(torch.randn(256, 8, generator=generator))
    coder.eval()
    x = torch.randn(24, 8, generator=generator)
    with torch.no_grad():
        z = coder.encode(x)
        x_hat = coder.decode(z)
    batch = evaluate.EvalBatch(
        tokens=torch.zeros(4, 6, dtype=torch.int64),
        keep=torch.ones(4, 6, dtype=torch.bool),
        x=x,
        z=z,
        x_hat=x_hat,
        context=torch.arange(4).repeat_interleave(6),
    )
    rows, latents = [], []
    for name in ("reconstruction", "sparsity"):
        context = evaluate.EvalContext("s", coder, torch.zeros(8), 4)
        accumulator = evaluate.METRICS[name]().start(context)
        accumulator.update(batch)
        rows += accumulator.rows()
        latents += accumulator.per_latent()
    warehouse.write("metrics", rows)
    warehouse.write("latents", latents)
    warehouse.publish()
    found = warehouse.ask("from leaderboard").row(0, named=True)
    fvu = ((x - x_hat).square().sum() / (x - x.mean(0)).square().sum()).item()
    assert found["l0"] == pytest.approx((z > 0).sum(-1).double().mean().item())
    assert found["fvu"] == pytest.approx(fvu, rel=1e-5)
    assert found["explained_variance"] == pytest.approx(1 - fvu, rel=1e-5)
    assert found["dead_share"] == pytest.approx((z == 0).all(0).double().mean().item())
    assert None not in (found["cosine"], found["mse"], found["l2_ratio"], found["l1"])
    assert warehouse.ask("select sum(density) from latents").item() == pytest.approx(found["l0"])
    shares = warehouse.ask("select sum(value) from metrics where name = 'log10_density_histogram'")
    assert shares.item() == pytest.approx(1.0)


def test_the_reason_of_every_metric_can_be_stored(warehouse, evaluate):
    rows = [row for metric in evaluate.METRICS.values() for row in metric().absent("no tokens")]
    warehouse.write("metrics", rows)
    warehouse.publish()
    found = warehouse.ask(
        "select count(*), count(value), count_if(reason = 'no tokens') from metrics"
    )
    assert found.rows() == [(len(rows), 0, len(rows))]
