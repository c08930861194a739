from typing import Any

import numpy as np
import pytest
import torch

from sae_lib.apply.probes import auc
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate._quiver import baselines, choose, folds, sparse_probes
from sae_lib.evaluate.bench import Bench, measure_task
from sae_lib.evaluate.probe_regimes import (
    REGIMES,
    ProbeRegimesConfig,
    Task,
    Texts,
    best_of,
    quiver_delta,
)
from sae_lib.evaluate.reader import TextReader
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.topk import TopKConfig
from sae_lib.synthetic.world.config import WorldConfig

SITE = "resid_post.2"


def planted(num, seed, *, width=8, latents=30, gap=3.0):
    """Texts whose first coordinate and third latent tell the class; the rest is noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 2
    x = rng.standard_normal((num, width))
    x[:, 0] += gap * labels
    z = np.maximum(rng.standard_normal((num, latents)), 0)
    z[:, 3] = labels * (1 + rng.random(num)) if gap else z[:, 3]
    return Texts(x, {"mine": z}, labels)


def shuffled(texts, seed):
    return texts._replace(labels=np.random.default_rng(seed).permutation(texts.labels))


def test_the_quiver_by_hand():
    # a tie on validation goes to the latents, which then lose .03 on the test
    validation = {"logistic": 0.80, "sae": 0.80}
    assert quiver_delta(validation, {"logistic": 0.78, "sae": 0.75}, "sae") == pytest.approx(-0.03)
    validation = {"logistic": 0.81, "pca": 0.85, "sae": 0.84}
    assert quiver_delta(validation, {"logistic": 0.9, "pca": 0.7, "sae": 1.0}, "sae") == 0


@pytest.mark.parametrize("num", [4, 6, 12, 13, 60, 128, 300])
def test_folds_have_both_classes_on_both_sides(num):
    labels = np.arange(num) % 2
    found = folds(labels, 0)
    assert found
    for held in found:
        assert set(labels[held]) == set(labels[~held]) == {0, 1}
    if num <= 12:
        assert {int(held.sum()) for held in found} == {2}
    elif num < 128:
        assert np.sum(found, axis=0).tolist() == [1] * num  # every text once
    else:
        assert len(found) == 1
        assert found[0].mean() == pytest.approx(0.2, abs=0.01)
    assert all((a == b).all() for a, b in zip(found, folds(labels, 0), strict=True))


def test_without_a_second_text_of_a_class_nothing_is_validated():
    assert folds(np.array([0, 1, 0]), 0) == []
    x, y = np.array([[0.0], [1.0], [0.1]]), np.array([0, 1, 0])
    probes = baselines(3, 1, 0)["logistic"]
    assert choose(probes, x, y, x, 0).validation_auc == 1.0


@pytest.mark.parametrize("method", ["logistic", "pca", "knn", "boosting", "mlp"])
def test_every_probe_finds_what_is_planted_and_nothing_in_noise(method):
    train, test = planted(160, 0, gap=4.0), planted(160, 1, gap=4.0)
    settings = baselines(160, 8, 0)[method]
    found = choose(settings, train.x, train.labels, test.x, 0)
    assert auc(found.values, test.labels)[0] > 0.95
    assert found.validation_auc > 0.9
    # units of the columns do not matter: they are standardised on the training texts
    scale = np.array([1e3, 1e-3, 1, 1, 1, 1, 1, 1])
    scaled = choose(settings, train.x * scale, train.labels, test.x * scale, 0)
    assert auc(scaled.values, test.labels)[0] > 0.95
    noise = [
        auc(choose(settings, t.x, t.labels, test.x, 0).values, test.labels)[0]
        for t in (shuffled(train, seed) for seed in range(6))
    ]
    # the sd of one is about .2 here: a probe along the planted axis, right way round or not
    assert 0.2 < np.mean(noise) < 0.8


def test_the_probe_on_codes_finds_the_planted_latent_among_many():
    train, test = planted(60, 0, latents=300), planted(200, 1, latents=300)
    found = choose(sparse_probes((1,)), train.codes["mine"], train.labels, test.codes["mine"], 0)
    assert auc(found.values, test.labels)[0] == 1.0
    dead = np.zeros((60, 5))
    assert choose(sparse_probes((1,)), dead, train.labels, dead, 0).values.tolist() == [0.0] * 60


def test_permuted_and_scaled_latents_give_the_same():
    train, test = planted(60, 0), planted(80, 1)
    a, b = train.codes["mine"], test.codes["mine"]
    rng = np.random.default_rng(0)
    order, scale = rng.permutation(30), 1 + rng.random(30)
    settings = sparse_probes((4,))
    plain = choose(settings, a, train.labels, b, 0)
    other = choose(settings, (a * scale)[:, order], train.labels, (b * scale)[:, order], 0)
    assert other.validation_auc == pytest.approx(plain.validation_auc)
    assert auc(other.values, test.labels)[0] == pytest.approx(auc(plain.values, test.labels)[0])


def noise_task(seed):
    """Labels that nothing tells, as with shuffled ones."""
    return Task("noise", planted(64, seed, gap=0.0), planted(120, 1000 + seed, gap=0.0))


def test_shuffled_labels_leave_every_probe_at_chance():
    cfg = ProbeRegimesConfig(sizes=(24,), k=(4,))
    found = [
        {**at, "delta": at["quiver_with_mine"] - at["quiver"]}
        for seed in range(8)
        for at in cfg.regime("scarcity", noise_task(seed)).values()
    ]
    # 60 against 60 texts: sd .053 each, over 8 tasks
    for method in ("logistic", "pca", "knn", "boosting", "mlp", "mine", "quiver"):
        assert np.mean([at[method] for at in found]) == pytest.approx(0.5, abs=4 * 0.053 / 8**0.5)
    assert abs(np.mean([at["delta"] for at in found])) < 4 * 0.075 / 8**0.5


def test_half_of_the_labels_flipped_is_chance_and_none_is_not():
    cfg = ProbeRegimesConfig(flipped=(0.0, 0.2, 0.5), fixed_k=4)
    null = {"logistic": [], "mine": []}
    for seed in range(12):
        task = Task("planted", planted(256, seed), planted(120, 1000 + seed))
        found = cfg.but(seed=seed).regime("label_noise", task)
        for method, values in null.items():
            values.append(found[0.5][method])
            assert found[0.0][method] > 0.95
            assert found[0.2][method] > 0.8
    # what little is fitted lies anywhere, the planted axis included: the sd is that of a
    # cosine, not of ranks alone
    for values in null.values():
        assert np.mean(values) == pytest.approx(0.5, abs=4 * np.std(values) / 12**0.5)
        assert 0.3 < np.mean(values) < 0.7


def test_label_noise_at_a_half_is_chance_within_the_null_error_where_nothing_is_planted():
    cfg = ProbeRegimesConfig(flipped=(0.5,), fixed_k=4)
    found = [cfg.but(seed=s).regime("label_noise", noise_task(s))[0.5] for s in range(20)]
    error = np.sqrt(121 / (12 * 60 * 60))
    assert error == pytest.approx(0.053, abs=5e-4)
    for method in ("logistic", "mine"):
        mean = np.mean([at[method] for at in found])
        assert mean == pytest.approx(0.5, abs=3.5 * error / 20**0.5)


def test_more_texts_help_and_imbalance_keeps_its_share():
    task = Task("planted", planted(256, 0, gap=1.5), planted(400, 1, gap=1.5))
    cfg = ProbeRegimesConfig(sizes=(4, 32, 256, 512), shares=(0.1, 0.5), k=(4,))
    found = cfg.regime("scarcity", task)
    assert list(found) == [4, 32, 256]  # as many as there are
    assert found[4]["quiver"] < found[256]["quiver"]
    assert found[256]["mine"] == 1.0
    assert found[256]["quiver_with_mine"] == 1.0  # latents win ties and here more than ties
    assert set(cfg.regime("imbalance", task)) == {0.1, 0.5}


def test_the_same_seed_gives_the_same_numbers():
    task = Task("planted", planted(64, 0), planted(60, 1))
    cfg = ProbeRegimesConfig(sizes=(16,), k=(4,))
    assert cfg.regime("scarcity", task) == cfg.regime("scarcity", task)
    assert cfg.regime("scarcity", task) != cfg.but(seed=1).regime("scarcity", task)


def test_the_best_is_chosen_by_validation():
    task = planted(64, 0)
    chosen = {
        name: choose(settings, task.x, task.labels, task.x, 0)
        for name, settings in baselines(64, 8, 0).items()
    }
    best = best_of(chosen)
    assert chosen[best].validation_auc == max(c.validation_auc for c in chosen.values())


@pytest.fixture(scope="module")
def measured():
    model = load_model(ModelConfig(id="world"))
    coder = TopKConfig(d_in=192, d_sae=64, k=8).build()
    cfg = ProbeRegimesConfig(
        tasks=("world:topic-sea",),
        shifts=({"train": "world:topic-sea", "test": "world:topic-sea"},),
        sizes=(4, 40),
        shares=(0.25,),
        flipped=(0.0,),
        k=(8,),
        train_texts=40,
        test_texts=40,
    )
    with TextReader(model, SITE) as reader:
        coders = {"a": coder, "b": coder}
        bench = Bench(model, SITE, coders, reader, torch.zeros(192), world=WorldConfig())
        yield cfg, measure_task(cfg, bench)


def test_the_world_gives_rows_of_every_definition_and_equal_coders_equal_ones(measured):
    cfg, found = measured
    rows = found["a"].measurements
    assert rows == found["b"].measurements
    defined = [(d.name, d.definition) for d in cfg.definitions()]
    assert {(r.name, r.definition) for r in rows} == set(defined)
    assert (rows[0].name, rows[0].definition) == defined[0]
    assert all(r.value is not None or r.reason for r in rows)
    at = {(r.name, r.definition, r.params.get("setting")): r.value for r in rows}
    # words of the sea are on the surface: activations tell the topic
    assert at["scarcity_auc", "logistic", 40] > 0.8
    with_, without = at["scarcity_auc", "quiver_with_sae", 40], at["scarcity_auc", "quiver", 40]
    assert -1 <= with_ - without <= 1
    delta = next(r for r in rows if (r.name, r.definition) == ("scarcity_delta", "sae"))
    of_sizes = [
        at["scarcity_auc", "quiver_with_sae", s] - at["scarcity_auc", "quiver", s] for s in (4, 40)
    ]
    assert delta.value == pytest.approx(np.mean(of_sizes))
    assert {r.name.removesuffix("_delta") for r in rows if r.name.endswith("_delta")} == set(
        REGIMES
    )
    # trained and tested on the same kind, a shift is none
    assert at["covariate_shift_auc", "logistic", 0.0] > 0.8


def bench_of(world):
    nothing: Any = None
    return Bench(nothing, SITE, {}, nothing, torch.zeros(1), world=world)


def test_settings_that_make_no_sense_are_refused():
    for cfg, key in (
        (ProbeRegimesConfig(sizes=(2, 8)), "sizes"),
        (ProbeRegimesConfig(shares=(1.0,)), "shares"),
        (ProbeRegimesConfig(flipped=(0.7,)), "flipped"),
    ):
        with pytest.raises(BadInput, match=key):
            cfg.check(bench_of(WorldConfig()))
    with pytest.raises(NotApplicable, match="no tasks are named"):
        ProbeRegimesConfig().check(bench_of(None))
