import math

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix

from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.tokens import Tokens, build_tokens
from sae_lib.evaluate import read_metric
from sae_lib.evaluate._naming import (
    Inventory,
    Matches,
    bootstrap_mean,
    firing_f1,
    judge,
    match,
    name_concepts,
    wilson,
)
from sae_lib.evaluate.bench import Bench, measure_task
from sae_lib.evaluate.explanation_truth import SCORES, ExplanationTruthConfig
from sae_lib.evaluate.reader import TextReader
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.topk import TopKConfig
from sae_lib.synthetic.world.concepts import concepts_of_word, is_word
from sae_lib.synthetic.world.config import WorldConfig

INVENTORY = Inventory(
    ["animal", "dog", "noun"],
    [
        frozenset({"hound", "puppy", "cat", "cow"}),
        frozenset({"hound", "puppy"}),
        frozenset({"hound", "puppy", "cat", "cow", "sea", "house"}),
    ],
    {"hound": 3, "puppy": 2, "cat": 9, "cow": 1, "sea": 5, "house": 4, "the": 50},
)


def test_the_interval_of_a_share_is_wilsons():
    low, high = wilson(8, 10)
    assert (low, high) == pytest.approx((0.490162, 0.943318), abs=1e-6)
    assert wilson(0, 10) == pytest.approx((0.0, 0.277533), abs=1e-6)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_bootstrap_interval_holds_the_mean_and_narrows_with_units():
    few, many = (bootstrap_mean(np.tile([0.0, 1.0], n), draws=2000, seed=0) for n in (10, 1000))
    assert few[0] < 0.5 < few[1]
    assert many[1] - many[0] == pytest.approx(2 * 1.96 * 0.5 / math.sqrt(2000), rel=0.1)
    assert bootstrap_mean(np.full(5, 0.3), draws=10, seed=0) == pytest.approx((0.3, 0.3))


def test_keywords_name_the_concept_they_fit_best():
    said = [["hound", "puppy"], ["cat", "hound", "cow", "puppy"], ["the"], [], ["Hound", "hound"]]
    found = name_concepts(said, INVENTORY, 10)
    assert found.named.tolist() == [1, 0, -1, -1, 1]
    assert found.precision[1].tolist() == [1.0, 0.5, 1.0]
    assert found.recall[0].tolist() == pytest.approx([0.5, 1.0, 1 / 3])


def test_recall_is_of_the_words_that_can_be_listed():
    found = name_concepts([["cat", "hound"]], INVENTORY, 2)
    assert found.recall[0].tolist() == [1.0, 0.5, 1.0]
    assert found.named.tolist() == [0]  # noun fits as well and has more words


def test_only_the_first_keywords_count():
    assert name_concepts([["the", "hound"]], INVENTORY, 1).named.tolist() == [-1]


def test_what_is_right_and_what_is_named():
    matches = Matches([4, 5, 6, 7], np.array([1, 1, 0, 0]), 9)
    said = [["hound", "puppy"], ["hound", "puppy"], ["the"], []]
    told = judge(said, matches, INVENTORY, 10)
    assert told.is_right.tolist() == [True, True, False, False]
    assert told.precision[:3].tolist() == [1.0, 1.0, 0.0]
    assert np.isnan(told.precision[3])
    assert told.recall.tolist() == [1.0, 1.0, 0.0, 0.0]
    dog, animal = INVENTORY.words[1], INVENTORY.words[0]
    assert (told.rightly, told.named, told.wanted) == ({dog}, {dog}, {dog, animal})
    assert told.num_keywords == [2, 2, 1, 0]


def test_f1_of_firing_takes_the_best_threshold(monkeypatch):
    z = torch.tensor([[4.0, 0, 1.0], [4.0, 1.0, 0], [1.0, 0, 0], [1.0, 0, 0]])
    truth = csr_matrix(np.array([[1, 0], [1, 1], [0, 0], [0, 0]], dtype=np.int8))
    coder = TopKConfig(d_in=3, d_sae=3, k=3, aux_k=1).build()  # gives its input, which is positive
    with torch.no_grad():
        coder.W_enc.copy_(torch.eye(3))
        coder.b_enc.zero_()
        coder.b_dec.zero_()
    f1, fired = firing_f1(coder, z, truth, z.amax(0))
    assert fired.tolist() == [4, 1, 1]
    assert f1[0].tolist() == pytest.approx([1.0, 2 / 3])  # above a quarter of 4: the first two
    assert f1[1].tolist() == pytest.approx([2 / 3, 1.0])
    monkeypatch.setattr("sae_lib.evaluate._naming._CHUNK_CODES", 1)
    again, _ = firing_f1(coder, z, truth, z.amax(0))
    np.testing.assert_allclose(again, f1)


def test_latents_are_matched_to_concepts_with_words_where_they_fit():
    f1 = np.array(
        [[0.9, 0.9, 0.1, 0.0], [0.4, 0.0, 0.0, 0.0], [0.6, 0.0, 0.0, 0.7], [0.9, 0, 0, 0]]
    )
    ids = ["animal", "dog", "noun", "is-about-dogs"]
    found = match(f1, np.array([20, 20, 20, 1]), ids, INVENTORY, least_f1=0.5, min_fired=10)
    assert found.latents == [0]  # too weak; a concept of context; too rare
    assert found.concepts.tolist() == [1]  # of equals the one with fewer words
    assert found.num_live == 3


# --- the world -------------------------------------------------------------------------------

SITE = "resid_pre.0"


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    """Latents at the embedding: one for each of some words with concepts."""
    model = load_model(ModelConfig(id="world"))
    folder = tmp_path_factory.mktemp("tokens")
    build_tokens(
        CorpusConfig(id="world", tokens=8_000, eval_tokens=1_000, context=96),
        model.tokenizer, model.info, folder,
    )  # fmt: skip
    tokens = Tokens.open(folder)
    embedding = model.model.get_input_embeddings().weight.detach()
    words = model.tokenizer.convert_ids_to_tokens(list(range(model.vocab_size)))
    wanted = ["pronoun", "determiner", "preposition"]
    groups = {
        id: [i for i, w in enumerate(words) if is_word(w) and id in concepts_of_word(w)]
        for id in wanted
    }
    groups = {id: own for id, own in groups.items() if own}
    assert groups
    directions = torch.stack([embedding[own].mean(0) for own in groups.values()])
    directions = directions - embedding.mean(0)
    directions = directions / directions.norm(dim=1, keepdim=True)
    coder = TopKConfig(d_in=model.width(SITE), d_sae=len(groups), k=1, aux_k=1).build()
    with torch.no_grad():
        coder.W_enc.copy_(directions)
        coder.W_dec.copy_(directions)
        coder.b_enc.zero_()
        coder.b_dec.copy_(embedding.mean(0))
    with TextReader(model, SITE) as reader:
        yield Bench(
            model, SITE, {"planted": coder}, reader, torch.zeros(model.width(SITE)),
            tokens.split("train"), tokens.split("eval"), WorldConfig(),
        )  # fmt: skip


CONFIG = ExplanationTruthConfig(
    methods=("max_act", "contrast", "vocab_proj"), train_tokens=8_000, least_f1=0.3, draws=100
)


@pytest.fixture(scope="module")
def measured(bench):
    return measure_task(CONFIG, bench)["planted"]


def found(rows, name, definition, **params):
    [row] = [
        r
        for r in rows
        if (r.name, r.definition) == (name, definition) and params.items() <= r.params.items()
    ]
    return row


def test_the_headline_comes_first_and_every_row_is_defined(measured):
    rows = measured.measurements
    defined = {(d.name, d.definition) for d in CONFIG.definitions()}
    assert (rows[0].name, rows[0].definition) == ("explanation_named", "own")
    assert {(r.name, r.definition) for r in rows} == defined
    for row in rows:
        assert (row.value is None) == (row.reason is not None)
        if row.value is not None:
            assert 0 <= row.params["low"] <= row.value + 1e-9
            assert row.value <= row.params["high"] + 1e-9 <= 1 + 1e-8


def test_explanations_do_better_than_those_of_others_and_the_truth_is_best(measured):
    rows = measured.measurements
    assert found(rows, "explanation_matched", "share_of_live").value > 0
    best = found(rows, "explanation_named", "concept_words")
    assert best.value == 1.0
    for score in ("explanation_precision", "explanation_recall"):
        own = found(rows, score, "own").value
        assert own > found(rows, score, "another_latent").value
        assert own >= found(rows, score, "frequent_words").value


def test_latents_have_rows_of_their_own_for_every_method(measured):
    rows = [r for r in measured.latents if r.name == "explanation_named"]
    assert {r.method for r in rows} == set(CONFIG.methods)
    assert {r.metric for r in rows} == {"explanation_truth"}
    for method in CONFIG.methods:
        own = [r.value for r in rows if r.method == method]
        one = found(measured.measurements, "explanation_named", "own_of_one", method=method)
        assert one.value == pytest.approx(sum(own) / len(own))
        assert one.n == len(own)


def test_methods_that_do_not_apply_say_why(bench):
    cfg = CONFIG.but(methods=("max_act", "ensemble"))
    rows = measure_task(cfg, bench)["planted"].measurements
    row = found(rows, "explanation_named", "own_of_one", method="ensemble")
    assert row.value is None
    assert "two or more" in row.reason


def test_where_it_does_not_apply_there_is_a_reason(bench):
    rows = measure_task(CONFIG, bench._replace(world=None))["planted"].measurements
    assert {row.value for row in rows} == {None}
    assert "bundled world" in rows[0].reason
    assert len(rows) == len(CONFIG.definitions())
    assert read_metric({"name": "explanation_truth", "num_words": 5}).num_words == 5
    assert len(SCORES) == 5
