import json
import math
from types import SimpleNamespace

import pytest
import torch

from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate._passes import Losses
from sae_lib.evaluate.loss_equivalent_compute import (
    LossEquivalentComputeConfig,
    recorded_curve,
    training_curve,
)
from sae_lib.evaluate.run import evaluate_site
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.topk import TopKConfig
from sae_lib.synthetic.world.bundled import world_model_dir

CURVE = ((1.0, 5.0), (10.0, 4.0), (100.0, 3.0), (1000.0, 2.0))
SHARE = ("loss_equivalent_compute", "equal_increase")
AT_LOSS = ("loss_equivalent_compute", "equal_loss")
WIGGLE = torch.tensor([-0.02, 0.04, -0.02, 0.0], dtype=torch.float64)


class FakePasses:
    def __init__(self, clean, spliced):
        context = torch.tensor([0, 0, 1, 1])
        self.clean = SimpleNamespace(ce=clean + 0 * WIGGLE, context=context)
        self.spliced = spliced + WIGGLE

    def replaced(self, rows, positions):
        return Losses(self.spliced, torch.zeros(4, dtype=torch.float64))


def measured(tools, clean, spliced, **settings):
    batch = tools.batch_of(torch.zeros(4, 3), context=torch.tensor([0, 0, 1, 1]))
    batch = batch._replace(passes=FakePasses(clean, spliced))
    metric = LossEquivalentComputeConfig(points=settings.pop("points", CURVE), **settings)
    return tools.Values(tools.run_metric(metric, [batch]).rows())


def test_log_compute_is_interpolated_along_the_curve():
    curve = training_curve(list(CURVE), "tokens")
    assert [curve.compute_at(loss) for loss in (5.0, 4.0, 2.0)] == pytest.approx([1, 10, 1000])
    assert curve.compute_at(3.5) == pytest.approx(10**1.5)
    assert curve.slope_at(3.5) == pytest.approx(-math.log(10))


def test_a_loss_that_wiggles_is_made_to_fall_and_order_does_not_matter():
    wiggly = training_curve([(4.0, 2.0), (1.0, 4.0), (2.0, 2.4), (3.0, 2.6)], "tokens")
    assert wiggly.loss.tolist() == pytest.approx([4.0, 2.5, 2.5, 2.0])
    assert wiggly.compute_at(2.5) == pytest.approx(2.0)  # a flat stretch from its beginning
    assert wiggly.compute_at(2.25) == pytest.approx(math.sqrt(12))


def test_the_share_by_hand(tools):
    # an increase of 1 nat is the loss at a tenth of the compute, whatever the text's own loss is
    for clean in (2.0, 0.7):
        found = measured(tools, clean, clean + 1.0)
        assert found[SHARE].value == pytest.approx(0.1)
        assert found["equivalent_compute", "equal_increase"].value == pytest.approx(100.0)
        assert found[SHARE].params["curve_end"] == 2.0
    found = measured(tools, 2.0, 3.0)
    assert found[AT_LOSS].value == pytest.approx(0.1)
    assert found["loss_equivalent_compute", "clean_equal_loss"].value == pytest.approx(1.0)


def test_the_standard_error_follows_the_slope(tools):
    row = measured(tools, 2.0, 3.0)[SHARE]
    of_loss = WIGGLE.reshape(2, 2).mean(1).std().item() / 2**0.5
    assert row.stderr == pytest.approx(0.1 * math.log(10) * of_loss, rel=0.01)
    assert (row.n, row.unit) == (2, "contexts")


def test_splicing_that_costs_nothing_leaves_all_of_the_compute(tools):
    for spliced in (2.0, 1.9):
        assert measured(tools, 2.0, spliced)[SHARE].value == pytest.approx(1.0)


def test_the_curve_is_never_extrapolated(tools):
    found = measured(tools, 2.0, 5.5)
    assert found[SHARE].value is None
    assert "begins at 5 nats" in (found[SHARE].reason or "")
    found = measured(tools, 1.5, 1.8)
    assert found[AT_LOSS].value is None
    assert "ends at 2 nats" in (found[AT_LOSS].reason or "")
    assert found[SHARE].value == pytest.approx(10**-0.3)
    assert all(r.value is None for r in measured(tools, 2.0, math.inf).values() if r.name == SHARE)


@pytest.mark.parametrize(
    ("points", "problem"),
    [
        ([(1.0, 2.0)], "two points"),
        ([(0.0, 2.0), (1.0, 1.0)], "above 0"),
        ([(1.0, math.nan), (2.0, 1.0)], "finite"),
        ([(1.0, 2.0), (1.0, 1.0)], "same compute"),
    ],
)
def test_curves_that_are_none_are_refused(points, problem):
    with pytest.raises(BadInput, match=problem):
        training_curve(points, "tokens")


def test_the_record_of_a_model_is_its_curve(tmp_path):
    with pytest.raises(NotApplicable, match=r"no training\.json"):
        recorded_curve(tmp_path)
    (tmp_path / "training.json").write_text("{}")
    with pytest.raises(NotApplicable, match="no curve"):
        recorded_curve(tmp_path)
    curve = [{"step": 1, "loss": 4.0}, {"step": 4, "loss": 2.0}]
    record = {"curve": curve, "num_tokens": 400, "num_steps": 4}
    (tmp_path / "training.json").write_text(json.dumps(record))
    found = recorded_curve(tmp_path)
    assert found.compute.tolist() == [100.0, 400.0]
    bundled = recorded_curve(world_model_dir())
    assert bundled.compute[-1] == pytest.approx(44e6, rel=0.01)
    assert bundled.end == pytest.approx(0.795, abs=0.01)
    assert bundled.compute_at(1.0) < 0.2 * bundled.compute[-1]


def test_without_a_curve_every_row_says_why(tools, model):
    # the tiny model's folder has no record
    coder = tools.random_coder()
    site = "resid_post.0"
    rows = evaluate_site(
        model,
        tools.TokensInMemory(tools.random_tokens(2)),
        {site: {"mine": coder}},
        [LossEquivalentComputeConfig()],
        mean_activation={site: torch.zeros(tools.d_model)},
    )[site, "mine"].measurements
    assert len(rows) == len(LossEquivalentComputeConfig.definitions())
    assert all(row.value is None and "training.json" in (row.reason or "") for row in rows)


def test_the_bundled_model_knows_its_own_training(tools):
    model = load_model(ModelConfig(id="world"))
    site = "resid_post.4"
    text = "naomi thorpe was born in lumen crossing . she works as a pharmacist in the clinic ."
    words = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    tokens = torch.tensor([[model.tokenizer.bos_token_id, *words]])
    coder = TopKConfig(d_in=192, d_sae=16, k=1).build()
    with torch.no_grad():  # a reconstruction that is nothing but zeros
        coder.W_dec.zero_()
        coder.b_dec.zero_()
    rows = evaluate_site(
        model,
        tools.TokensInMemory(tokens),
        {site: {"zeros": coder}},
        [LossEquivalentComputeConfig()],
        mean_activation={site: torch.zeros(192)},
    )[site, "zeros"].measurements
    assert rows[0].params["curve_unit"] == "tokens"
    assert rows[0].value is None
    assert "not extrapolated" in (rows[0].reason or "")
