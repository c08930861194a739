import csv

import numpy as np
import pytest
import torch

from sae_lib.errors import BadInput, UnknownName
from sae_lib.evaluate import Bench, measure_task, read_metric
from sae_lib.evaluate._class_probes import ProbeRecipe, pooled_codes, unit_decoder
from sae_lib.evaluate.reader import TextActivations, TextReader
from sae_lib.evaluate.scr import (
    AttributePair,
    ScrConfig,
    counted,
    effects,
    pair_texts,
    repair_latents,
    repair_means,
    repeats,
    score,
)
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.known import coder_of
from sae_lib.saes.topk import TopKConfig
from sae_lib.synthetic.controls import random_sae, true_code
from sae_lib.synthetic.dictionary import DictionaryConfig, bags, group_features
from sae_lib.synthetic.structure import Pair, Siblings
from sae_lib.synthetic.world.config import WorldConfig

CHOICES = Siblings(copies=2, siblings=2, chance=1.0, per_document=True)
"""Both values of both attributes have a feature of their own."""

PRESENCE = Pair(first=0.5, second=0.5, correlation=0.0, per_document=True)
"""Each attribute is a feature that is there or not."""

NUM = {"train": 80, "test": 80}
SITE = "resid_post.2"


def test_effects_of_the_reference():
    difference = torch.tensor([3.0, 1, 0, 2]) - torch.tensor([1.0, 2, 0, 2])
    W_dec = torch.tensor([[0.6, 0.8], [-1, 0], [1, 0], [0, 1]])
    written = W_dec @ torch.tensor([1.0, 0.0])
    torch.testing.assert_close(effects(difference, written), torch.tensor([1.2, 1.0, 0, 0]))


def numbers(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def test_score_of_the_reference():
    assert score(*numbers(0.80, 0.62, 0.95)).item() == pytest.approx(0.545455, abs=1e-6)


def test_where_nothing_was_lost_there_is_nothing_to_repair():
    assert score(*numbers(0.80, 0.9495, 0.95)).item() == 0
    assert score(*numbers(0.80, 0.96, 0.95)).item() == 0
    assert score(*numbers(0.80, 0.9485, 0.95)).item() < -50  # a small loss is no guard


def test_a_score_may_be_worse_than_nothing_and_better_than_all():
    assert score(*numbers(0.5, 0.6, 0.7)).item() == pytest.approx(-1)
    assert score(*numbers(0.8, 0.6, 0.7)).item() == pytest.approx(2)


def test_the_direction_in_which_the_probe_fails_counts_and_in_a_tie_both_do():
    both = torch.tensor([[0.2, 0.3], [0.8, 0.5]])
    assert counted(both, torch.tensor([0.6, 0.9])).tolist() == both[0].tolist()
    assert counted(both, torch.tensor([0.9, 0.6])).tolist() == both[1].tolist()
    assert counted(both, torch.tensor([0.7, 0.7])).tolist() == pytest.approx([0.5, 0.4])


def config(group):
    return DictionaryConfig(
        d_in=32, num_features=32, is_orthonormal=True, mean_active=4.0, groups=(group,)
    )


def planted(coder, group, split):
    """Mean activations and codes of bags, as `PairTexts.flat` lays out texts."""
    cfg, num = config(group), NUM[split]
    batch = next(bags(cfg, 8 * num, start=["train", "test"].index(split)))
    columns = group_features(cfg)[0]
    first = columns[:, 0] if group is CHOICES else columns[0]
    target, spurious = (batch.z[:, 1, first] > 0).unbind(1)
    cells = [target & spurious, ~target & ~spurious, target & ~spurious, ~target & spurious]
    places = [cell.nonzero()[:, 0] for cell in cells]
    half = [own[:num] for own in places[:2]]
    order = torch.cat([*half, *(own[-(num // 2) :] for own in places)])
    assert len(order) == 4 * num
    x, z, keep = batch.x[order], batch.z[order], batch.keep[order]
    if hasattr(coder, "hand_in"):
        coder.hand_in(x[keep], z[keep])
    length = keep.sum(1)
    text = torch.arange(len(order)).repeat_interleave(length)
    start = torch.cat([torch.zeros(1, dtype=torch.long), length.cumsum(0)])
    found = TextActivations(x[keep], torch.zeros_like(text), text, text, start)
    return found.pooled_x(), pooled_codes(coder, found)


def controls_of(group):
    return {
        name: (coder, planted(coder, group, "train"), planted(coder, group, "test"))
        for name, coder in {
            "oracle": coder_of(true_code(config(group))),
            "random": coder_of(random_sae(config(group))),
        }.items()
    }


@pytest.fixture(scope="module")
def controls():
    return controls_of(CHOICES)


@pytest.fixture(scope="module")
def planted_repeats(controls):
    _, (x_train, _), (x_test, _) = controls["oracle"]
    return repeats(x_train, x_test, 2, ProbeRecipe(epochs=40), seed=0)


def repaired(one, control, sizes=(2,), change=lambda z, W: (z, W)):
    coder, (_, z_train), (_, z_test) = control
    z, W_dec = change(torch.cat([z_train[one.train], z_test[one.test]]), unit_decoder(coder))
    return repair_latents(one, z[: len(one.train)], z[len(one.train) :], W_dec, sizes)


def test_true_latents_repair_the_probe_and_random_ones_do_not(controls, planted_repeats):
    for one in planted_repeats:
        assert (one.clean > 0.95).all()
        assert one.biased.min() < 0.9  # it learned both attributes, so it is wrong about one
        assert one.biased.sum().item() == pytest.approx(1.5, abs=0.05)  # right or wrong together
        found = repaired(one, controls["oracle"])
        assert found.metric_direction.item() > 0.9
        assert found.num_chosen.tolist() == [2]
        assert repair_means(one) > 0.9
    floor = np.mean(
        [repaired(o, controls["random"]).metric_direction.item() for o in planted_repeats]
    )
    assert floor < 0.5


def test_an_attribute_that_is_there_or_not_is_not_repaired_by_taking_it_away():
    # without the feature all texts look as if it were absent, which moves the biased probe too
    control = controls_of(PRESENCE)["oracle"]
    _, (x_train, _), (x_test, _) = control
    for one in repeats(x_train, x_test, 2, ProbeRecipe(epochs=40), seed=0):
        assert repaired(one, control).metric_direction.item() < 0.5
        assert repair_means(one) > 0.9  # to the middle of both classes the same latents would do


def test_without_labels_that_mean_something_there_is_nothing_to_repair(controls):
    coder, (x_train, z_train), (x_test, z_test) = controls["oracle"]
    generator = torch.Generator().manual_seed(1)
    train, test = (torch.randperm(len(x), generator=generator) for x in (x_train, x_test))
    (one,) = repeats(x_train[train], x_test[test], 1, ProbeRecipe(epochs=20), seed=0)
    found = repair_latents(
        one, z_train[train][one.train], z_test[test][one.test], unit_decoder(coder), [2]
    )
    assert (one.clean < 0.65).all()
    change = found.metric_direction * (one.clean - one.biased).abs().max()
    assert change.abs().max() < 0.15


def test_the_order_and_the_scale_of_latents_mean_nothing(controls, planted_repeats):
    one, sizes = planted_repeats[0], [1, 2, 5, 20]
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(32, generator=generator)
    c = 0.1 + 5 * torch.rand(32, generator=generator)
    for control in controls.values():
        plain = repaired(one, control, sizes)
        for change in (
            lambda z, W: (z[:, order], W[order]),
            lambda z, W: (z * c, W / c[:, None].double()),
        ):
            changed = repaired(one, control, sizes, change)
            for got, wanted in zip(changed, plain, strict=True):
                torch.testing.assert_close(got, wanted, atol=1e-9, rtol=0)


# --- texts ---------------------------------------------------------------------------------------


def bench_of(model, reader, coders, **changes):
    bench = Bench(model, SITE, coders, reader, torch.zeros(192), world=WorldConfig())
    return bench._replace(**changes)


def test_texts_of_the_world_have_the_attributes_they_are_filed_under():
    bench = bench_of(None, None, {})
    sides = pair_texts("world:scr-dancer-painter", bench, train=32, test=16, seed=0, key="p")
    for side, num in zip(sides, (32, 16), strict=True):
        assert [len(own) for own in side.biased] == [num // 2] * 2
        assert [len(own) for own in side.balanced] == [num // 4] * 4
        # a dancer is typed female
        cells = [("dancer", "she"), ("painter", "he"), ("dancer", "he"), ("painter", "she")]
        for own, (job, who) in zip([*side.biased, *side.balanced], cells[:2] + cells, strict=True):
            assert all(job in text.split() for text in own)
            said = sum(who in text.split() for text in own)
            unsaid = sum({"she": "he", "he": "she"}[who] in text.split() for text in own)
            assert said > unsaid
    assert not set(sides[0].flat) & set(sides[1].flat)


@pytest.fixture
def table(tmp_path):
    with (tmp_path / "texts.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "job", "rating"])
        for i in range(600):
            job, rating = ("cook", "judge", "king")[i % 3], (5, 1)[i // 3 % 2]
            writer.writerow([f"{job} {rating} number {i}", job, rating])
    return tmp_path


def test_a_table_gives_the_same_layout(table):
    pair = AttributePair(
        id="texts.csv",
        columns={"target": "job", "spurious": "rating"},
        target=("judge", "cook"),
        spurious=("1", "5"),
    )
    bench = bench_of(None, None, {}, relative_to=table, world=None)
    train, test = pair_texts(pair, bench, train=80, test=24, seed=0, key="pairs.0")
    starts = ["judge 1", "cook 5", "judge 1", "cook 5", "judge 5", "cook 1"]
    for side in (train, test):
        for own, start in zip([*side.biased, *side.balanced], starts, strict=True):
            assert own
            assert all(text.startswith(start) for text in own)
    assert len(set(train.flat)) == len(train.flat) == 160
    wrong = pair.but(spurious=("1", "4"))
    with pytest.raises(BadInput, match=r"pairs\.0.*too few texts"):
        pair_texts(wrong, bench, train=80, test=24, seed=0, key="pairs.0")


def test_an_unknown_pair_is_answered_with_the_nearest():
    with pytest.raises(UnknownName, match="scr-dancer-painter"):
        pair_texts(
            "world:scr-dancer-paint", bench_of(None, None, {}), train=8, test=8, seed=0, key=""
        )


# --- on the world --------------------------------------------------------------------------------

SMALL = {
    "train_texts": 16,
    "test_texts": 16,
    "repeats": 2,
    "sizes": (2, 5, 100),
    "probe": {"epochs": 10},
    "max_tokens": 24,
    "pairs": ["world:scr-product-sentiment"],
}


@pytest.fixture(scope="module")
def model():
    return load_model(ModelConfig(id="world"))


@pytest.fixture(scope="module")
def coders():
    return {"a": TopKConfig(d_in=192, d_sae=64, k=4).build()}


def test_the_world_gives_the_same_finite_numbers_twice(model, coders):
    found = []
    for _ in range(2):
        with TextReader(model, SITE) as reader:
            metric = read_metric({"name": "scr", **SMALL})
            rows = measure_task(metric, bench_of(model, reader, coders))["a"].measurements
            found.append(rows)
    assert found[0] == found[1]
    assert all(row.value is not None and np.isfinite(row.value) for row in found[0])
    assert (found[0][0].name, found[0][0].definition) == ("scr", "metric_direction")
    known = {(d.name, d.definition) for d in ScrConfig.definitions()}
    assert {(row.name, row.definition) for row in found[0]} == known
    assert {row.params["n"] for row in found[0] if "n" in row.params} == {2, 5}


def test_what_cannot_be_measured_is_said(model, coders):
    with TextReader(model, SITE) as reader:
        nowhere = measure_task(ScrConfig(), bench_of(model, reader, coders, world=None))
        assert "are not named" in (nowhere["a"].measurements[0].reason or "")
        with pytest.raises(BadInput, match="at least 1"):
            measure_task(ScrConfig(sizes=(0,)), bench_of(model, reader, coders))
