import numpy as np
import pytest
import torch

from sae_lib.errors import BadInput
from sae_lib.evaluate import Bench, measure_task, read_metric
from sae_lib.evaluate._class_probes import ProbeRecipe, accuracies, pooled_codes, unit_decoder
from sae_lib.evaluate.reader import TextActivations, TextReader
from sae_lib.evaluate.tpp import (
    TppConfig,
    effects,
    perturb_latents,
    perturb_means,
    perturbation,
    repeats,
)
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.known import coder_of
from sae_lib.saes.topk import TopKConfig
from sae_lib.saes.transcoder import TranscoderConfig
from sae_lib.synthetic.controls import random_sae, true_code
from sae_lib.synthetic.dictionary import DictionaryConfig, bags, group_features
from sae_lib.synthetic.structure import Siblings
from sae_lib.synthetic.world.config import WorldConfig

SIBLINGS = DictionaryConfig(
    d_in=32,
    num_features=32,
    is_orthonormal=True,
    mean_active=4.0,
    groups=(Siblings(per_document=True, chance=1.0),),
)
"""Four classes, each with a feature of its own on every token, and 28 other features."""

PER_CLASS = {"train": 160, "test": 80}
SITE = "resid_post.2"


def test_effects_of_the_reference():
    difference = torch.tensor([[3.0, 1, 0, 2]]) - torch.tensor([[1.0, 2, 0, 2]])
    W_dec = torch.tensor([[0.6, 0.8], [-1, 0], [1, 0], [0, 1]])
    written = W_dec @ torch.tensor([[1.0], [0.0]])
    torch.testing.assert_close(effects(difference, written), torch.tensor([[1.2, 0, 0, 0]]))


def test_a_latent_that_writes_against_the_probe_has_a_negative_effect():
    assert effects(torch.tensor([[2.0]]), torch.tensor([[-3.0]])).tolist() == [[-6.0]]


def test_perturbation_of_the_reference():
    clean = torch.tensor([0.90, 0.80, 0.85]).double()
    ablated = torch.tensor([[0.60, 0.78, 0.85], [0.88, 0.55, 0.80], [0.90, 0.79, 0.70]]).double()
    found = perturbation(clean, ablated)
    assert found.intended.item() == pytest.approx(0.233333, abs=1e-6)
    assert found.unintended.item() == pytest.approx(0.016667, abs=1e-6)
    assert found.total.item() == pytest.approx(0.216667, abs=1e-6)
    # the one probed and the one ablated are not interchangeable
    assert perturbation(clean, ablated.mT).unintended.item() == pytest.approx(0.016667, abs=1e-6)
    assert perturbation(clean, torch.stack([ablated, clean.expand(3, 3)])).total.shape == (2,)


def planted(coder, split):
    """Mean activations and codes of bags, class by class; position 0 is not among the rows."""
    per_class = PER_CLASS[split]
    batch = next(bags(SIBLINGS, 8 * per_class, start=["train", "test"].index(split)))
    columns = group_features(SIBLINGS)[0][0]
    label = (batch.z[:, 1, columns] > 0).int().argmax(1)
    order = torch.cat([(label == own).nonzero()[:per_class, 0] for own in range(4)])
    assert len(order) == 4 * per_class
    x, z, keep = batch.x[order], batch.z[order], batch.keep[order]
    if hasattr(coder, "hand_in"):
        coder.hand_in(x[keep], z[keep])
    length = keep.sum(1)
    text = torch.arange(len(order)).repeat_interleave(length)
    start = torch.cat([torch.zeros(1, dtype=torch.long), length.cumsum(0)])
    found = TextActivations(x[keep], torch.zeros_like(text), text, text, start)
    return found.pooled_x(), pooled_codes(coder, found)


@pytest.fixture(scope="module")
def controls():
    return {
        name: (coder, planted(coder, "train"), planted(coder, "test"))
        for name, coder in {
            "oracle": coder_of(true_code(SIBLINGS)),
            "random": coder_of(random_sae(SIBLINGS)),
        }.items()
    }


@pytest.fixture(scope="module")
def planted_repeats(controls):
    _, (x_train, _), (x_test, _) = controls["oracle"]
    return repeats(x_train, x_test, 4, 2, ProbeRecipe(epochs=60), seed=0)


def perturbed(one, control, sizes=(2,), change=lambda z, W: (z, W)):
    coder, (_, z_train), (_, z_test) = control
    z, W_dec = change(torch.cat([z_train[one.train], z_test[one.test]]), unit_decoder(coder))
    return perturb_latents(one, z[: len(one.train)], z[len(one.train) :], W_dec, sizes)


def test_true_latents_reach_the_ceiling_and_random_ones_the_floor(controls, planted_repeats):
    for one in planted_repeats:
        assert (accuracies(one.probes.scores(one.x_test), one.test_rows) == 1).all()
        found, chosen = perturbed(one, controls["oracle"])
        assert found.intended.item() > 0.46
        assert found.total.item() > 0.45
        assert chosen.tolist() == [2]
        floor, _ = perturbed(one, controls["random"])
        assert abs(floor.total.item()) < 0.02
        means = perturb_means(one)
        assert means.intended.item() == pytest.approx(0.5, abs=0.02)


def test_repeats_have_texts_and_probes_of_their_own(planted_repeats):
    one, other = planted_repeats
    assert not set(one.train.tolist()) & set(other.train.tolist())
    assert not set(one.test.tolist()) & set(other.test.tolist())
    assert not torch.equal(one.probes.weights, other.probes.weights)


def test_without_labels_that_mean_something_there_is_nothing_to_perturb(controls):
    coder, (x_train, z_train), (x_test, z_test) = controls["oracle"]
    generator = torch.Generator().manual_seed(1)
    train, test = (torch.randperm(len(x), generator=generator) for x in (x_train, x_test))
    (one,) = repeats(x_train[train], x_test[test], 4, 1, ProbeRecipe(epochs=20), seed=0)
    found, _ = perturb_latents(
        one, z_train[train][one.train], z_test[test][one.test], unit_decoder(coder), [2, 5, 20]
    )
    assert found.total.abs().max() < 0.1
    assert accuracies(one.probes.scores(one.x_test), one.test_rows).mean() < 0.6


def test_the_order_and_the_scale_of_latents_mean_nothing(controls, planted_repeats):
    one, sizes = planted_repeats[0], [1, 2, 5, 20]
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(32, generator=generator)
    c = 0.1 + 5 * torch.rand(32, generator=generator)
    for control in controls.values():
        plain, _ = perturbed(one, control, sizes)
        for change in (
            lambda z, W: (z[:, order], W[order]),
            lambda z, W: (z * c, W / c[:, None].double()),
        ):
            changed, _ = perturbed(one, control, sizes, change)
            torch.testing.assert_close(changed.total, plain.total, atol=1e-9, rtol=0)
            torch.testing.assert_close(changed.intended, plain.intended, atol=1e-9, rtol=0)


# --- on the world --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model():
    return load_model(ModelConfig(id="world"))


def bench_of(model, reader, coders, **changes):
    bench = Bench(model, SITE, coders, reader, torch.zeros(192), world=WorldConfig())
    return bench._replace(**changes)


SMALL = {
    "train_texts": 16,
    "test_texts": 16,
    "repeats": 2,
    "sizes": (2, 5, 100),
    "probe": {"epochs": 10},
    "max_tokens": 24,
    "datasets": ["world:tpp-product"],
}


@pytest.fixture(scope="module")
def measured(model):
    coders = {
        "a": TopKConfig(d_in=192, d_sae=64, k=4).build(),
        "elsewhere": TranscoderConfig(d_in=192, d_out=192, d_sae=64, k=4).build(),
    }
    found = []
    for _ in range(2):
        with TextReader(model, SITE) as reader:
            metric = read_metric({"name": "tpp", **SMALL})
            found.append(measure_task(metric, bench_of(model, reader, coders)))
    return found


def test_the_world_gives_the_same_finite_numbers_twice(measured):
    first, second = (found["a"].measurements for found in measured)
    assert first == second
    assert all(row.value is not None and np.isfinite(row.value) for row in first)
    assert (first[0].name, first[0].definition) == ("tpp_total", "ablated_latents")
    known = {(d.name, d.definition) for d in TppConfig.definitions()}
    assert {(row.name, row.definition) for row in first} == known
    assert {row.params["n"] for row in first if "n" in row.params} == {2, 5}  # 100 are too many
    by_key = {(row.name, row.definition, row.params.get("n")): row for row in first}
    for n in (2, 5):
        total, intended, unintended = (
            by_key[f"tpp_{part}", "ablated_latents", n].value
            for part in ("total", "intended", "unintended")
        )
        assert total == pytest.approx(intended - unintended)
    assert (first[0].n, first[0].unit) == (2, "repeats")
    assert by_key["tpp_probe_accuracy", "clean", None].value > 0.6  # chance is one half


def test_a_coder_that_writes_elsewhere_is_told_why_it_has_no_numbers(measured):
    rows = measured[0]["elsewhere"].measurements
    assert {row.value for row in rows} == {None}
    assert all("another place" in (row.reason or "") for row in rows)


def test_what_cannot_be_measured_is_said(model):
    coders = {"a": TopKConfig(d_in=192, d_sae=64, k=4).build()}
    with TextReader(model, SITE) as reader:
        nowhere = measure_task(TppConfig(), bench_of(model, reader, coders, world=None))
        assert "are not named" in (nowhere["a"].measurements[0].reason or "")
        narrow = TppConfig.model_validate({**SMALL, "sizes": (500,)})
        rows = measure_task(narrow, bench_of(model, reader, coders))["a"].measurements
        assert all("64 latents" in (row.reason or "") for row in rows)
        two = TppConfig.model_validate({**SMALL, "datasets": ["world:review-sentiment"]})
        with pytest.raises(BadInput, match=r"datasets\.0.*takes three"):
            measure_task(two, bench_of(model, reader, coders))
        with pytest.raises(BadInput, match="at least 1"):
            measure_task(TppConfig(sizes=(0,)), bench_of(model, reader, coders))
