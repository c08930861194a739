import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import f1_score, roc_auc_score

from sae_lib.apply.probes import auc, mean_difference
from sae_lib.errors import BadInput
from sae_lib.evaluate import Bench, measure_task, read_metric
from sae_lib.evaluate.reader import TextReader
from sae_lib.evaluate.sparse_probing import (
    SparseProbingConfig,
    mean_of_tasks,
    probe_columns,
    scored,
)
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.topk import TopKConfig
from sae_lib.synthetic.dictionary import DictionaryConfig, sparse_mixtures
from sae_lib.synthetic.world.config import WorldConfig

SITE = "resid_post.2"
F = np.array([[1.0, 0, 2], [1, 0, 0], [1, 1, 1], [0, 1, 1], [0, 0, 2], [0, 1, 0]])
Y = np.array([1, 1, 1, 0, 0, 0])


def test_the_probe_of_the_reference():
    np.testing.assert_allclose(mean_difference(F, Y), [1, 1 / 3, 0])
    values = probe_columns(F, Y, F, 1).values
    np.testing.assert_allclose(values[[0, 3]], [1.0982 - 0.5490, -0.5490], atol=2e-4)
    assert scored(values, Y).values[0] == 1.0
    third = LogisticRegression().fit(F[:, 2:], Y).decision_function(F[:, 2:])
    assert scored(third, Y).values[0] == 0.5


def test_scores_are_those_of_scikit_learn_and_errors_those_of_delong():
    rng = np.random.default_rng(0)
    labels = (np.arange(60) < 20).astype(np.int64)
    values = np.round(labels + rng.normal(size=60), 1)  # with ties
    found = scored(values, labels)
    wanted = [
        ((values > 0) == (labels == 1)).mean(),
        roc_auc_score(labels, values),
        f1_score(labels, values > 0),
    ]
    np.testing.assert_allclose(found.values, wanted)
    np.testing.assert_allclose(found.influence.sum(1), 0, atol=1e-12)
    error = np.sqrt((found.influence**2).sum(1))
    assert error[0] == pytest.approx(np.sqrt(wanted[0] * (1 - wanted[0]) / 60))
    assert error[1] == pytest.approx(auc(values, labels)[1], rel=0.05)


def test_the_error_of_f1_is_what_resampling_gives():
    rng = np.random.default_rng(0)
    labels = (np.arange(200) < 100).astype(np.int64)
    values = labels - 0.4 + rng.normal(size=200)
    drawn = []
    for _ in range(400):
        rows = rng.integers(0, 200, 200)
        drawn.append(f1_score(labels[rows], values[rows] > 0))
    assert np.sqrt((scored(values, labels).influence[2] ** 2).sum()) == pytest.approx(
        np.std(drawn), rel=0.15
    )


def test_a_text_that_occurs_in_two_tasks_is_one_text():
    one = scored(np.array([1.0, -1, -1, 1]), np.array([1, 1, 0, 0]))
    apart = mean_of_tasks([one, one], torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]]), 8)
    same = mean_of_tasks([one, one], torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]]), 8)
    assert (apart.num_texts, same.num_texts) == (8, 4)
    np.testing.assert_allclose(same.values, one.values)
    alone = np.sqrt((one.influence**2).sum(1))
    np.testing.assert_allclose(same.errors, alone * np.sqrt(4 / 3))
    np.testing.assert_allclose(apart.errors, alone / np.sqrt(2) * np.sqrt(8 / 7))


@pytest.fixture(scope="module")
def planted():
    """The true code, and whether feature 3 is active: half of the rows, which come first."""
    cfg = DictionaryConfig(
        d_in=16, num_features=16, is_orthonormal=True, mean_active=4.0, firing_ratio=10.0
    )
    z = next(sparse_mixtures(cfg, 4000)).z.double().numpy()
    on, off = np.flatnonzero(z[:, 3] > 0), np.flatnonzero(z[:, 3] == 0)
    rows = {"train": np.r_[on[:150], off[:150]], "test": np.r_[on[150:250], off[150:250]]}
    return {split: (z[own], (np.arange(len(own)) < len(own) // 2).astype(np.int64))
            for split, own in rows.items()}  # fmt: skip


def accuracy(planted, k=1, change=lambda z: z, labels=lambda y: y):
    (train, y_train), (test, y_test) = planted["train"], planted["test"]
    fitted = probe_columns(change(train), labels(y_train), change(test), k)
    return scored(fitted.values, y_test).values[0]


def test_one_true_latent_tells_all(planted):
    assert accuracy(planted) > 0.99
    assert accuracy(planted, 5) > 0.99
    without = accuracy(planted, 1, lambda z: np.delete(z, 3, axis=1))
    assert abs(without - 0.5) < 0.12


def test_shuffled_labels_tell_nothing(planted):
    rng = np.random.default_rng(0)
    found = [accuracy(planted, k, labels=rng.permutation) for k in (1, 5, 16) for _ in range(3)]
    assert abs(np.mean(found) - 0.5) < 0.1


def test_the_order_of_latents_means_nothing(planted):
    order = np.random.default_rng(0).permutation(16)
    for k in (1, 5):
        assert accuracy(planted, k, lambda z: z[:, order]) == accuracy(planted, k)


def test_latents_that_never_differ_leave_a_guess(planted):
    assert accuracy(planted, 5, lambda z: 0 * z) == 0.5


# --- on the world --------------------------------------------------------------------------------

SMALL = {
    "train_texts": 24,
    "test_texts": 16,
    "k": (1, 5, 500),
    "max_tokens": 24,
    "datasets": ["world:review-sentiment", "world:tpp-product"],
}


@pytest.fixture(scope="module")
def model():
    return load_model(ModelConfig(id="world"))


def bench_of(model, reader, coders, **changes):
    bench = Bench(model, SITE, coders, reader, torch.zeros(192), world=WorldConfig())
    return bench._replace(**changes)


def test_the_world_gives_finite_numbers_that_scaled_latents_do_not_change(model):
    coder = TopKConfig(d_in=192, d_sae=64, k=4).build()
    scaled = TopKConfig(d_in=192, d_sae=64, k=4).build()
    scaled.load_state_dict(coder.state_dict())
    with torch.no_grad():
        # twice the latents and half the decoder: the same reconstruction
        scaled.W_enc.mul_(2), scaled.b_enc.mul_(2), scaled.W_dec.div_(2)
    narrow = TopKConfig(d_in=8, d_sae=64, k=4).build()
    coders = {"plain": coder, "scaled": scaled, "narrow": narrow}
    with TextReader(model, SITE) as reader:
        metric = read_metric({"name": "sparse_probing", **SMALL})
        found = measure_task(metric, bench_of(model, reader, coders))
    rows = found["plain"].measurements
    assert (rows[0].name, rows[0].definition) == ("sparse_probing_accuracy", "top_k")
    assert rows[0].params == {"k": 1}
    assert all(row.value is not None and 0 <= row.value <= 1 for row in rows)
    known = {(d.name, d.definition) for d in SparseProbingConfig.definitions()}
    assert {(row.name, row.definition) for row in rows} == known
    assert {row.params["k"] for row in rows if "k" in row.params} == {1, 5}
    for row, other in zip(rows, found["scaled"].measurements, strict=True):
        assert (row.name, row.definition, row.params) == (
            other.name,
            other.definition,
            other.params,
        )
        if row.definition.startswith(("top_k", "dense_probe")):
            assert other.value == pytest.approx(row.value, abs=1e-6)
    by_key = {(r.name, r.definition, r.params.get("dataset"), r.params.get("k")): r for r in rows}
    mean = by_key["sparse_probing_accuracy", "top_k", None, 5]
    of_sets = [
        by_key["sparse_probing_accuracy", "top_k_of_one", name, 5].value
        for name in SMALL["datasets"]
    ]
    assert mean.value == pytest.approx(np.mean(of_sets))
    assert (mean.n, mean.unit) == (2, "data sets")
    assert by_key["sparse_probing_accuracy", "majority", None, None].value == 0.5
    # negatives of one class are positives of another: 8 texts of each of five classes
    assert by_key["sparse_probing_auc", "dense_probe_of_one", "world:tpp-product", None].n == 40
    assert {row.value for row in found["narrow"].measurements} == {None}


def test_what_cannot_be_measured_is_said(model):
    coders = {"a": TopKConfig(d_in=192, d_sae=64, k=4).build()}
    with TextReader(model, SITE) as reader:
        nowhere = measure_task(SparseProbingConfig(), bench_of(model, reader, coders, world=None))
        assert "are not named" in (nowhere["a"].measurements[0].reason or "")
        with pytest.raises(BadInput, match="at least 1"):
            measure_task(SparseProbingConfig(k=(0,)), bench_of(model, reader, coders))
