import math

import numpy as np
import pytest
import torch

from sae_lib.activations.task_tables import TableConfig
from sae_lib.apply.probes import auc
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate.bench import Bench, measure_task
from sae_lib.evaluate.concept_detection import (
    METHODS,
    Concept,
    ConceptDetectionConfig,
    Detector,
    along,
    best_latent,
    diff_mean,
    judge,
    lexicon_of,
    logistic_direction,
    principal_direction,
    youden_threshold,
)
from sae_lib.evaluate.reader import TextActivations, TextReader
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.topk import TopKConfig
from sae_lib.synthetic.world.config import WorldConfig

SITE = "resid_post.2"


def texts_of(*tokens):
    """Texts with these activations of their tokens."""
    x = torch.cat([torch.tensor(t, dtype=torch.float32).reshape(len(t), -1) for t in tokens])
    length = torch.tensor([len(t) for t in tokens])
    text = torch.repeat_interleave(torch.arange(len(tokens)), length)
    start = torch.cat([torch.zeros(1, dtype=torch.long), length.cumsum(0)])
    return TextActivations(x, torch.zeros(len(x), dtype=torch.long), text, text, start)


def planted(num, seed, *, width=6, gap=3.0, tokens=5):
    """Texts of which every other one has one token far along the second axis."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(num, tokens, width, generator=generator)
    labels = np.arange(num) % 2
    x[1::2, 2, 1] += gap
    return texts_of(*x.tolist()), labels


def concept_of(labels, hard=0):
    texts = [str(i) for i in range(len(labels))]
    return Concept("c", texts, labels, texts, labels, ["hard"] * hard)


def test_the_difference_in_means_by_hand():
    x = torch.tensor([[2.0, 0], [4, 0], [0, 2], [0, 0]])
    w = diff_mean(x, torch.tensor([1, 1, 0, 0]))
    assert w.tolist() == pytest.approx([0.948683, -0.316228], abs=1e-6)
    text = texts_of([[1.0, 1], [2, 0]])
    assert (text.x.double() @ w).tolist() == pytest.approx([0.632456, 1.897367], abs=1e-6)
    assert along(text, w).tolist() == pytest.approx([1.897367], abs=1e-6)


def test_tokens_count_and_not_texts():
    # one long positive text and a short one: the mean is that of their four tokens
    texts = texts_of([[1.0, 0]] * 3, [[0.0, 1]], [[0.0, 0]])
    w = diff_mean(texts.x, torch.tensor([1, 1, 0])[texts.text])
    assert w.tolist() == pytest.approx([3 / math.sqrt(10), 1 / math.sqrt(10)])


def test_the_area_by_hand_does_not_depend_on_the_scale():
    scores, y = np.array([0.9, 0.4, 0.6, 0.5, 0.1, 0.2]), np.array([1, 1, 1, 0, 0, 0])
    assert judge(Detector(scores, scores, {}), concept_of(y)).auc == pytest.approx(8 / 9)
    scaled = (scores - scores.min()) / (scores.max() - scores.min())
    assert judge(Detector(scaled, scaled, {}), concept_of(y)).auc == pytest.approx(8 / 9)


def test_the_threshold_has_the_largest_gain():
    scores, y = np.array([0.9, 0.4, 0.6, 0.5, 0.1, 0.2]), np.array([1, 1, 1, 0, 0, 0])
    # from .4 on all positives and one negative are told; from .6 on two and none
    assert youden_threshold(scores, y) == pytest.approx(0.55)
    assert youden_threshold(np.array([1.0, 2.0]), np.array([0, 1])) == 1.5


def test_hard_negatives_by_hand():
    y = np.array([1, 1, 0, 0])
    train = np.array([3.0, 4.0, 1.0, 2.0])  # threshold 2.5
    found = judge(Detector(train, np.array([3.0, 5, 0, 1, 2, 4]), {}), concept_of(y, hard=2))
    assert found.auc == 1.0
    assert found.hard_auc == pytest.approx(0.75)  # 3 and 5 against 2 and 4
    assert found.rejected == 0.5
    none = judge(Detector(train, np.array([3.0, 5, 0, 1]), {}), concept_of(y))
    assert math.isnan(none.hard_auc)
    assert math.isnan(none.rejected)


def identity_coder(width):
    """Latents are the positive parts of the coordinates."""
    coder = TopKConfig(d_in=width, d_sae=width, k=width).build()
    with torch.no_grad():
        coder.W_enc.copy_(torch.eye(width))
        coder.W_dec.copy_(torch.eye(width))
        coder.b_enc.zero_()
        coder.b_dec.zero_()
    return coder


def test_the_planted_latent_is_found_and_the_maximum_over_tokens_tells():
    train, y = planted(60, 0, gap=6.0)
    test, y_test = planted(60, 1, gap=6.0)
    found = best_latent(identity_coder(6), train, test, y)
    assert found.params["latent"] == 1
    assert auc(found.test, y_test)[0] > 0.99


def test_permuted_latents_and_scaled_codes_change_nothing():
    train, y = planted(60, 0)
    test, _ = planted(60, 1)
    coder, other = identity_coder(6), identity_coder(6)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    with torch.no_grad():
        other.W_enc.copy_(2 * coder.W_enc[order])
        other.W_dec.copy_(coder.W_dec[order] / 2)
    a, b = best_latent(coder, train, test, y), best_latent(other, train, test, y)
    assert order[b.params["latent"]] == a.params["latent"]
    np.testing.assert_allclose(b.test, 2 * a.test, rtol=1e-6)


def test_directions_find_what_is_planted():
    train, y = planted(120, 0, gap=8.0)
    test, y_test = planted(120, 1, gap=8.0)
    label = torch.from_numpy(y)[train.text]
    probe, params = logistic_direction(train, y, seed=0)
    for w in (diff_mean(train.x, label), probe):
        assert abs(float(w[1])) > 0.9
        assert float(w.norm()) == pytest.approx(1.0)
        assert auc(along(test, w), y_test)[0] > 0.95
    assert abs(float(principal_direction(train.x, label)[1])) > 0.9
    assert params["inverse_penalty"] > 0


def test_shuffled_labels_leave_every_method_at_chance():
    values = {"diff_mean": [], "logistic_probe": [], "latent": []}
    for seed in range(10):
        train, y = planted(80, seed, gap=0.0)
        test, y_test = planted(80, 100 + seed, gap=0.0)
        label = torch.from_numpy(y)[train.text]
        probe, _ = logistic_direction(train, y, seed=0)
        scores = {
            "diff_mean": along(test, diff_mean(train.x, label)),
            "logistic_probe": along(test, probe),
            "latent": best_latent(identity_coder(6), train, test, y).test,
        }
        for name, own in scores.items():
            values[name].append(auc(own, y_test)[0])
    null = math.sqrt(81 / (12 * 40 * 40))
    for own in values.values():
        assert np.mean(own) == pytest.approx(0.5, abs=3.5 * null / math.sqrt(10))


def test_the_lexicon_of_a_concept_of_the_world():
    assert {"lighthouse", "divers"} <= lexicon_of("world:steer-topic-sea")
    assert lexicon_of("world:label-topic-sea") == set()
    assert lexicon_of("some/file.csv") == set()


@pytest.fixture(scope="module")
def model():
    return load_model(ModelConfig(id="world"))


def bench_of(model, reader, coders, world=None, relative_to=None):
    return Bench(
        model, SITE, coders, reader, torch.zeros(192), world=world, relative_to=relative_to
    )


def test_the_world_gives_rows_of_every_definition(model):
    cfg = ConceptDetectionConfig(
        concepts=("world:steer-topic-sea", "world:steer-animal"), train_texts=12, test_texts=12
    )
    coder = TopKConfig(d_in=192, d_sae=256, k=8).build()
    with TextReader(model, SITE) as reader:
        bench = bench_of(model, reader, {"a": coder, "b": coder}, WorldConfig())
        found = measure_task(cfg, bench)
        again = measure_task(cfg, bench)
    rows = found["a"].measurements
    assert found["a"] == found["b"] == again["a"]
    defined = [(d.name, d.definition) for d in cfg.definitions()]
    assert {(r.name, r.definition) for r in rows} == set(defined)
    assert (rows[0].name, rows[0].definition) == defined[0] == ("concept_detection_auc", "sae")
    at = {(r.name, r.definition): r for r in rows if "concept" not in r.params}
    assert at["concept_detection_auc", "bag_of_words"].value > 0.95
    assert at["concept_detection_auc", "diff_mean"].value > 0.8
    gap = at["concept_detection_gap", "sae_minus_diff_mean"]
    assert gap.value == pytest.approx(
        at["concept_detection_auc", "sae"].value - at["concept_detection_auc", "diff_mean"].value
    )
    assert (gap.n, gap.unit) == (2, "concepts")
    ones = [r for r in rows if r.definition == "sae_of_one"]
    assert [r.params["concept"] for r in ones] == list(cfg.concepts)
    assert np.mean([r.value for r in ones]) == pytest.approx(rows[0].value)
    assert all(r.value is not None or r.reason for r in rows)
    # no animal is spoken of in passing, so there the hard negatives are those of the sea
    assert at["concept_detection_hard_auc", "sae"].n <= 2


def test_concepts_come_from_files_too(model, tmp_path):
    lines = ["with,without"]
    lines += [f"the dog number {i} saw a bird,the lamp is of type {i}" for i in range(40)]
    (tmp_path / "c.csv").write_text("\n".join(lines))
    table = TableConfig(id="c.csv", columns={"positive": "with", "negative": "without"})
    cfg = ConceptDetectionConfig(concepts=(table,), train_texts=8, test_texts=4)
    assert cfg.files(tmp_path) == [tmp_path / "c.csv"]
    coder = TopKConfig(d_in=192, d_sae=64, k=8).build()
    with TextReader(model, SITE) as reader:
        found = measure_task(cfg, bench_of(model, reader, {"a": coder}, None, tmp_path))
    at = {(r.name, r.definition): r for r in found["a"].measurements}
    assert at["concept_detection_auc", "diff_mean"].value == 1.0
    hard = at["concept_detection_hard_auc", "sae"]
    assert hard.value is None
    assert "hard negative" in (hard.reason or "")


def test_what_cannot_be_asked_is_refused(model, tmp_path):
    (tmp_path / "c.csv").write_text("positive,negative\na dog,a lamp\n")
    cfg = ConceptDetectionConfig(concepts=(TableConfig(id="c.csv"),))
    with TextReader(model, SITE) as reader:
        bench = bench_of(model, reader, {}, None, tmp_path)
        with pytest.raises(NotApplicable, match="no concepts are named"):
            ConceptDetectionConfig().check(bench)
        with pytest.raises(BadInput, match="two training texts"):
            measure_task(cfg, bench)


def test_every_method_has_a_sentence():
    assert {d.definition for d in ConceptDetectionConfig.definitions()} >= set(METHODS)
