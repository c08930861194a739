import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_auc_score
from torch.nn.functional import normalize

from sae_lib.activations.world_tokens import WorldTokens
from sae_lib.evaluate.bench import Bench, measure_task
from sae_lib.evaluate.reader import TextReader
from sae_lib.evaluate.recovery import (
    RecoveryConfig,
    assign,
    concept_directions,
    correlations,
    find,
    sparse_auc,
    split_counts,
)
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.synthetic.dictionary import DictionaryConfig, ground_truth_dictionary, sparse_mixtures
from sae_lib.synthetic.world.config import WorldConfig

PLANTED = DictionaryConfig(d_in=32, num_features=24, is_orthonormal=True, mean_active=2.0)


def halves(seed_of_labels=None):
    """Planted activations with the true firing as concepts, twice."""
    mixture = next(sparse_mixtures(PLANTED, 6000))
    truth = (mixture.z > 0).numpy()
    if seed_of_labels is not None:
        truth = truth[np.random.default_rng(seed_of_labels).permutation(6000)]
    names = [f"c{i}" for i in range(24)]
    return [
        WorldTokens(
            {"site": mixture.x[part]},
            csr_matrix(truth[part].astype(np.int8)),
            names,
            torch.zeros(3000),
            [],
        )
        for part in (slice(0, 3000), slice(3000, 6000))
    ]


def encode(x):
    return (x @ ground_truth_dictionary(PLANTED).mT - 0.5).relu()


def found_by(encode, W_dec, **kwargs):
    return find(encode, W_dec, *halves(**kwargs), "site", min_true=20)


# --- by hand ---


def test_correlations_are_those_of_numpy(monkeypatch):
    monkeypatch.setattr("sae_lib.evaluate.recovery.CHUNK_ROWS", 7)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(50, 4, generator=generator).relu()
    z[:, 3] = 0
    true = (torch.rand(50, 3, generator=generator) < 0.4).numpy()
    found = correlations(lambda x: x, z, csr_matrix(true.astype(np.int8)))
    expected = np.corrcoef(true.T.astype(float), z[:, :3].double().numpy().T)[:3, 3:]
    assert found.values[:, :3].numpy() == pytest.approx(expected, abs=1e-6)
    assert found.values[:, 3].tolist() == [0.0] * 3
    assert found.num_true.tolist() == true.sum(0).tolist()


def test_matches_and_splits_by_hand():
    values = torch.tensor([[0.9, 0.8, 0.1], [0.85, 0.2, 0.0]])
    assert assign(values).tolist() == [1, 0]
    assert assign(values.mT).tolist() == [1, 0, -1]
    assert split_counts(values).tolist() == [2, 0]


def test_areas_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    values = np.maximum(rng.standard_normal(200), 0)  # half of them tie
    true = rng.random(200) < 0.3
    assert sparse_auc(values, np.flatnonzero(true)) == pytest.approx(roc_auc_score(true, values))


def test_directions_by_hand():
    x = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 4.0], [0.0, 0.0]])
    truth = csr_matrix(np.array([[1, 0], [1, 0], [0, 1], [0, 0]], dtype=np.int8))
    assert concept_directions(x, truth).tolist() == [[2.0, -2.0], [-4 / 3, 4.0]]


# --- planted ---


def test_the_oracle_finds_every_concept():
    found = found_by(encode, ground_truth_dictionary(PLANTED))
    assert found.latents == [int(name[1:]) for name in found.concepts]
    assert found.correlation.mean() > 0.9
    assert found.auc.mean() > 0.99
    assert found.split.tolist() == [1.0] * len(found.concepts)
    assert found.nearest.mean() > 0.9
    assert found.assigned.mean() == pytest.approx(found.nearest.mean(), abs=1e-6)


def test_shuffled_truths_are_not_found():
    found = found_by(encode, ground_truth_dictionary(PLANTED), seed_of_labels=3)
    assert abs(found.correlation.mean()) < 0.03
    assert found.auc.mean() == pytest.approx(0.5, abs=0.02)
    assert len(found.split) == 0


def test_a_concept_that_two_latents_share_is_split():
    def halved(x):
        z = encode(x)
        first = (1000 * x.sum(1, keepdim=True)).floor() % 2  # as good as a coin
        return torch.cat([z * first, z * (1 - first)], dim=1)

    W_dec = ground_truth_dictionary(PLANTED)
    found = found_by(halved, torch.cat([W_dec, W_dec]))
    assert found.split.mean() > 1.7
    assert found.correlation.mean() < 0.8


def test_random_directions_find_little():
    W_dec = normalize(torch.randn(24, 32, generator=torch.Generator().manual_seed(0)), dim=1)
    found = found_by(lambda x: (x @ W_dec.mT - 0.5).relu(), W_dec)
    assert found.correlation.mean() < 0.5
    assert found.nearest.mean() < 0.6


def test_the_order_of_latents_means_nothing():
    W_dec = ground_truth_dictionary(PLANTED)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(2))
    plain = found_by(encode, W_dec)
    moved = found_by(lambda x: encode(x)[:, order], 3 * W_dec[order])
    assert [order[i].item() for i in moved.latents] == plain.latents
    assert moved.correlation == pytest.approx(plain.correlation)
    assert moved.nearest == pytest.approx(plain.nearest)


def test_rare_concepts_are_left_out():
    few = find(encode, ground_truth_dictionary(PLANTED), *halves(), "site", min_true=200)
    assert 0 < len(few.concepts) < len(found_by(encode, ground_truth_dictionary(PLANTED)).concepts)


# --- the metric ---


def test_on_the_world_floor_and_ceiling_stand_beside_the_coder(tools):
    model = load_model(ModelConfig(id="world"))
    site = "resid_pre.1"
    coder = tools.random_coder(model.d_model, 32)
    metric = RecoveryConfig(tokens=1000, f1=(0.5, 0.9), union=2)
    with TextReader(model, site) as reader:
        bench = Bench(model, site, {"one": coder}, reader, torch.zeros(1), world=WorldConfig())
        rows = measure_task(metric, bench)["one"].measurements
    keys = {(row.name, row.definition) for row in rows}
    assert keys == {(d.name, d.definition) for d in RecoveryConfig.definitions()}
    assert (rows[0].name, rows[0].definition) == ("recovery_coverage", "one_to_one")

    def coverage(definition):
        (value,) = [
            row.value
            for row in rows
            if (row.name, row.definition) == ("recovery_coverage", definition)
            and row.params["f1"] == 0.5
        ]
        return value

    assert coverage("linear_probes") > coverage("one_to_one")
    assert coverage("linear_probes") > coverage("random_sae")
    assert coverage("union") >= coverage("shared")
    assert all(row.value is not None or row.reason for row in rows)


def test_elsewhere_nobody_knows_the_truth(model, tools):
    with TextReader(model, "resid_post.0") as reader:
        bench = Bench(model, "resid_post.0", {"one": tools.random_coder()}, reader, torch.zeros(8))
        rows = measure_task(RecoveryConfig(), bench)["one"].measurements
    assert all("only the bundled world" in row.reason for row in rows)
