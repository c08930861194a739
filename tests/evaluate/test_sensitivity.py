from typing import Any, Literal

import pytest
import torch
from torch import nn

from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.tokens import Tokens, build_tokens
from sae_lib.errors import BadInput
from sae_lib.evaluate import read_metric
from sae_lib.evaluate._judges import Description, Judge
from sae_lib.evaluate._text_pool import corpus_sentences, text_maxima, text_pool, world_sentences
from sae_lib.evaluate.bench import Bench, measure_task
from sae_lib.evaluate.reader import TextReader
from sae_lib.evaluate.sensitivity import (
    SensitivityConfig,
    active_words,
    firing_rate,
    most_similar,
)
from sae_lib.explain.vocabulary import read_vocabulary
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.base import SaeConfig, SparseCoder
from sae_lib.synthetic.world.concepts import lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.warehouse.rows import ExampleRow

SITE = "resid_pre.0"
CONCEPTS = ["negation", "color", "digit", "mammal", "weekday", "part-of-day"]


def example(tokens, activations):
    return ExampleRow(0, 0, 0, 0, 0, tokens, activations, max(activations))


def test_the_rate_is_the_share_of_texts_on_which_it_fires():
    maxima = torch.tensor([0.0, 0.1, 2.0, 0.6])
    assert firing_rate(maxima, 2.0) == 0.75
    assert firing_rate(maxima, 2.0, threshold=0.25) == 0.5
    assert firing_rate(torch.zeros(3), 2.0) == 0


def test_active_words_carry_the_activation():
    rows = [example(["a", " Dog"], [0.0, 3.0]), example(["dog", "ran"], [0.5, 0.5])]
    assert active_words(rows) == pytest.approx({"dog": 0.875, "ran": 0.125})


def test_similar_texts_share_the_words_that_matter():
    texts = [frozenset(t.split()) for t in ("the dog", "the tax", "the dog ran off", "the sea")]
    near = most_similar([{"dog": 0.9, "the": 0.1}, {"law": 1.0}], texts, 3)
    assert near == [[0, 2], []]  # a word that all texts have counts for nothing


class LookupConfig(SaeConfig):
    kind: Literal["lookup_for_sensitivity"] = "lookup_for_sensitivity"  # pyright: ignore[reportIncompatibleVariableOverride]


class LookupCoder(SparseCoder[Any]):
    """Reads embeddings and knows them: each token's code is a row of a table."""

    def __init__(self, embedding, table):
        super().__init__()
        self.cfg = LookupConfig(d_in=embedding.shape[1], d_sae=table.shape[1])
        self.embedding, self.table = embedding, table
        self.W_dec = nn.Parameter(nn.functional.normalize(table.T @ embedding, dim=1))
        self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_dec = nn.Parameter(torch.zeros(embedding.shape[1]))
        self.b_enc = nn.Parameter(torch.zeros(table.shape[1]))

    def encode(self, x):
        near = x @ self.embedding.T - self.embedding.square().sum(1) / 2
        return self.table[near.argmax(-1)]

    def decode(self, z):
        return z @ self.W_dec + self.b_dec

    def terms(self, step):
        raise NotImplementedError

    def scale_(self, factor):
        raise NotImplementedError


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    model = load_model(ModelConfig(id="world"))
    folder = tmp_path_factory.mktemp("tokens")
    build_tokens(
        CorpusConfig(id="world", tokens=10_000, eval_tokens=8_000, context=96),
        model.tokenizer, model.info, folder,
    )  # fmt: skip
    tokens = Tokens.open(folder)
    ids = model.tokenizer.get_vocab()
    table = torch.zeros(model.vocab_size, len(CONCEPTS))
    for j, concept in enumerate(CONCEPTS):
        table[[ids[word] for word in lexicon(concept)], j] = 1.0
    always = torch.ones(model.vocab_size, 1)
    rare = torch.zeros(model.vocab_size, 1)
    embedding = model.model.get_input_embeddings().weight.detach().float()
    coder = LookupCoder(embedding, torch.cat([table, always, rare], dim=1))
    with TextReader(model, SITE) as reader:
        yield Bench(
            model, SITE, {"concepts": coder}, reader, torch.zeros(model.width(SITE)),
            tokens.split("train"), tokens.split("eval"), WorldConfig(),
        )  # fmt: skip


CONFIG = SensitivityConfig(
    num_latents=10, min_activations=5, train_tokens=10_000, held_out_tokens=8_000, pool_texts=600
)


@pytest.fixture(scope="module")
def measured(bench):
    return measure_task(CONFIG, bench)["concepts"]


def test_word_latents_are_sensitive_and_one_that_is_always_on_gains_nothing(measured):
    by_name = {(r.name, r.definition): r for r in measured.measurements}
    assert set(by_name) == {(d.name, d.definition) for d in CONFIG.definitions()}
    rates = {r.latent: r.value for r in measured.latents}
    assert set(rates) == {0, 1, 2, 3, 4, 5, 6}  # the last one never fires and is not drawn
    assert all(rates[j] > 0.9 for j in range(7))
    similar = by_name["sensitivity_rate", "similar_texts"]
    assert (similar.value, similar.n) == (pytest.approx(sum(rates.values()) / 7), 7)
    random = by_name["sensitivity_rate", "random_texts"].value
    gain = by_name["sensitivity_gain", "over_random_texts"].value
    assert gain == pytest.approx(similar.value - random)
    other = by_name["sensitivity_rate", "another_latent"].value
    assert 1 / 7 < random < 0.4  # the one that is always on is one of seven
    assert other < 0.5
    assert by_name["sensitivity_unreadable", "share_of_latents"].value == 0


def test_equal_seeds_give_equal_numbers(bench, measured):
    assert measure_task(CONFIG, bench)["concepts"] == measured
    others = measure_task(CONFIG.but(num_latents=3, seed=4), bench)["concepts"].latents
    assert {r.latent for r in others} != {r.latent for r in measured.latents}


def test_a_judge_may_write_the_texts(bench, monkeypatch):
    shown = []

    class Writes(Judge):
        def continue_like(self, examples, num):
            shown.extend(examples)
            return [None, *(["he did not go .", "a dog on monday ."] for _ in examples[1:])]

    cfg = CONFIG.but(writer="judge", num_texts=2, num_latents=4)
    monkeypatch.setattr(type(cfg.judge), "start", lambda self, bench: Writes())
    found = measure_task(cfg, bench)["concepts"]
    assert len(shown) == 4
    assert all("<<" in text for texts in shown for text in texts)
    by_name = {(r.name, r.definition): r.value for r in found.measurements}
    assert by_name["sensitivity_unreadable", "share_of_latents"] == 0.25
    known = {0: 0.5, 1: 0.0, 2: 0.0, 3: 0.5, 4: 0.5, 5: 0.0, 6: 1.0}
    for row in found.latents[1:]:
        assert row.value == known[row.latent]
    assert (found.latents[0].value, found.latents[0].n) == (None, 0)
    assert found.latents[0].reason


def test_a_judge_that_cannot_write_is_a_reason(bench):
    rows = measure_task(CONFIG.but(writer="judge"), bench)["concepts"].measurements
    assert {row.value for row in rows} == {None}
    assert "writes no texts" in rows[0].reason


def test_short_texts_fit_by_concept_or_keyword_or_do_not(bench):
    vocabulary = read_vocabulary(
        bench.model.tokenizer, bench.model.vocab_size, bench.model.special_ids
    )
    pool = text_pool(bench, vocabulary, num_texts=600, max_tokens=64)
    assert len(set(pool.sentences.texts)) == len(pool.sentences.texts) == 600
    fitting, neutral = pool.choose(Description("", ("red", "blue"), (2.0, 1.0)), 5, seed=0)
    words = [set(text.split()) for text in pool.sentences.texts]
    assert all(words[i] & {"red", "blue"} for i in fitting)
    assert not any(words[i] & {"red", "blue"} for i in neutral)
    assert len({*fitting, *neutral}) == 10
    context = Description("", concept="known-entity")
    fitting, neutral = pool.choose(context, 5, seed=0)
    assert all("known-entity" in pool.sentences.concepts[i] for i in fitting)
    assert not any("known-entity" in pool.sentences.concepts[i] for i in neutral)
    assert pool.choose(Description("", ("nowhere",), (1.0,)), 5, seed=0) is None
    assert pool.choose(Description("", (), ()), 5, seed=0) is None
    coder = bench.coders["concepts"]
    maxima = text_maxima(pool.held, coder, torch.tensor([6, 4]))
    weekdays = set(lexicon("weekday"))
    assert maxima[:, 0].tolist() == [1.0] * 600
    assert maxima[:, 1].tolist() == [float(bool(own & weekdays)) for own in words]


def test_other_corpora_give_their_own_sentences(bench):
    sentences = corpus_sentences(bench, 50)
    assert len(sentences.texts) == 50
    assert all(3 <= len(text.split()) <= 40 for text in sentences.texts)
    assert corpus_sentences(bench._replace(split=None), 5).texts == []
    assert world_sentences(WorldConfig(), 50).texts[0] not in sentences.texts


def test_nonsense_is_refused():
    with pytest.raises(BadInput, match=r"evaluate\.threshold"):
        read_metric({"name": "sensitivity", "threshold": 1.0})
