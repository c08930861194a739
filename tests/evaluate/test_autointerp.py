from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.tokens import Tokens, build_tokens
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate import read_metric
from sae_lib.evaluate._described import (
    best_concepts,
    check_is_world,
    concept_description,
    description_of,
    of_another,
)
from sae_lib.evaluate._judgements import (
    Confusion,
    agreement,
    auc,
    confusion,
    expected_level,
    frequency_weighted,
    importance_weights,
    levels,
    over,
    rank_groups,
)
from sae_lib.evaluate._judges import Description, Excerpt, Judge, KeywordJudge
from sae_lib.evaluate._latent_windows import (
    LatentWindows,
    Wanted,
    Window,
    choose_latents,
    num_contexts_of,
    read_site,
    sample_windows,
)
from sae_lib.evaluate._scorers import SCORERS, TOO_FEW, UNREAD, Dials
from sae_lib.evaluate.autointerp import AutointerpConfig
from sae_lib.evaluate.bench import Bench, measure_task
from sae_lib.evaluate.reader import TextReader
from sae_lib.explain.vocabulary import read_vocabulary
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.base import SaeConfig, SparseCoder
from sae_lib.synthetic.world.concepts import lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import document
from sae_lib.warehouse.rows import ExplanationRow

SITE = "resid_pre.0"
CONCEPTS = [
    "negation",
    "color",
    "digit",
    "mammal",
    "weekday",
    "part-of-day",
    "size-word",
    "question-word",
]
"""Word concepts that share no word."""

WANTED = Wanted(2, 2, 20, 5, 4, 10)


# --- the mathematics -------------------------------------------------------------------------


def test_the_hand_test_of_fourteen_windows():
    counts = confusion([1] * 4 + [0] * 10, [1, 1, 0, 0] + [1] + [0] * 9)
    assert counts == Confusion(tp=2, fn=2, tn=9, fp=1)
    assert counts.accuracy == pytest.approx(0.785714, abs=1e-6)
    assert counts.balanced_accuracy == pytest.approx(0.70)


def test_the_hand_test_of_detection():
    counts = Confusion(tp=4, fn=1, tn=3, fp=2)
    found = (counts.balanced_accuracy, counts.precision, counts.recall, counts.f1)
    assert found == pytest.approx((0.70, 0.6667, 0.80, 0.7273), abs=1e-4)


def test_answering_none_gives_ten_of_fourteen():
    counts = confusion([1] * 4 + [0] * 10, [0] * 14)
    assert counts.accuracy == pytest.approx(0.714286, abs=1e-6)
    assert (counts.balanced_accuracy, counts.f1, counts.precision) == (0.5, 0, 0)


def test_where_a_class_is_missing_there_is_no_balanced_accuracy_and_no_auc():
    assert confusion([1, 1], [1, 0]).balanced_accuracy is None
    assert confusion([0], [0]).recall is None
    assert Confusion(0, 0, 0, 0).accuracy is None
    assert auc([1, 1], [0.1, 0.2]) is None


def test_the_hand_tests_of_auc():
    assert auc([1, 1, 1, 0, 0, 0], [0.9, 0.4, 0.6, 0.5, 0.1, 0.2]) == pytest.approx(
        0.888889, abs=1e-6
    )
    assert auc([1, 1, 0, 0], [1, 0, 0, 0]) == 0.75


@given(st.lists(st.tuples(st.booleans(), st.integers(-3, 3)), min_size=2, max_size=12))
def test_auc_counts_pairs(rows):
    active = [score for label, score in rows if label]
    inactive = [score for label, score in rows if not label]
    if not active or not inactive:
        return
    wins = [(a > b) + (a == b) / 2 for a in active for b in inactive]
    assert auc([r[0] for r in rows], [r[1] for r in rows]) == pytest.approx(np.mean(wins))


def test_the_hand_test_of_simulation():
    fit = agreement([0, 0, 10, 5], [0, 1, 8, 4])
    assert fit.pearson == pytest.approx(0.992937, abs=1e-6)
    assert fit.r2 == pytest.approx(0.952)
    assert not fit.is_constant


@pytest.mark.parametrize(
    ("true", "simulated"), [([1, 1, 1], [0, 1, 2]), ([0, 1, 2], [3, 3, 3]), ([], [])]
)
def test_a_constant_side_correlates_0_and_is_counted(true, simulated):
    fit = agreement(true, simulated)
    assert (fit.pearson, fit.is_constant) == (0.0, True)


def test_a_silent_latent_has_no_r2():
    assert agreement([0, 0], [1, 2]).r2 is None


def test_the_hand_tests_of_sampling():
    assert expected_level({0: 0.5, 5: 0.3, 10: 0.1}) == pytest.approx(2.777778, abs=1e-6)
    assert expected_level({0: 0.0}) is None
    assert frequency_weighted([0.9, 0.5], [0.01, 0.1]) == pytest.approx(0.536364, abs=1e-6)
    assert frequency_weighted([0.9], [0.0]) is None
    activations = [0, 0.4, 1.3, 2.6, -1]
    assert levels(activations, 2.6).tolist() == [0, 1, 5, 10, 0]
    assert levels(activations, 2.6, upwards=True).tolist() == [0, 2, 5, 10, 0]
    assert importance_weights([8, 6, 5, 3, 1, 0], 3) == pytest.approx([0, 0, 0, 0.9, 0.1, 0])
    assert importance_weights([2, 2, 2], 1).sum() == 0
    assert [list(g) for g in rank_groups(12, 4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]
    assert [list(g) for g in rank_groups(14, 4)] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9, 10, 11]]


def test_a_mean_leaves_out_what_has_no_value():
    found = over([1.0, None, 0.0], "latents")
    assert (found.value, found.n, found.stderr) == (0.5, 2, pytest.approx(0.5))
    assert over([None], "latents", none="why").reason == "why"


# --- questions -------------------------------------------------------------------------------


def window(*tokens, at=(), document=0):
    """A window in which the latent is at 1, 2, ... on the tokens in these places."""
    activations = [0.0] * len(tokens)
    for rank, place in enumerate(at):
        activations[place] = float(len(at) - rank)
    excerpt = Excerpt(tokens, document, tuple(range(1, len(tokens) + 1)), (False,) * len(tokens))
    return Window(excerpt, tuple(activations), at[0] if at else 0)


def planted(word, num=4):
    """Windows of a latent that fires on ``word``, all different."""

    def active(i):
        return window("a", word, f"x{i}", at=(1,))

    silent = [window("b", f"y{i}", "c") for i in range(20)]
    groups = [[active(10 * g + i) for i in range(num)] for g in range(5)]
    return LatentWindows([active(90), active(91)], [active(92), active(93)], groups, silent)


def described(*words):
    return [Description(word, (word,), (1.0,)) for word in words]


WORDS = ("dog", "tax", "sea", "sun")


def test_a_perfect_description_is_right_everywhere_and_that_of_another_latent_is_not():
    samples = [planted(word) for word in WORDS]
    own = described(*WORDS)
    other = of_another(own)
    assert [d.text for d in other if d] == ["tax", "sea", "sun", "dog"]
    for scorer in ("selection", "detection", "fuzzing", "simulation", "embedding"):
        for scored in SCORERS[scorer](KeywordJudge(), own, samples, Dials()):
            for name, value in scored.values.items():
                assert value == pytest.approx(1), (scorer, name)
    [fourteen, *_] = SCORERS["selection"](KeywordJudge(), other, samples, Dials())
    assert fourteen.values["autointerp_accuracy"] == pytest.approx(10 / 14)
    assert fourteen.values["autointerp_balanced_accuracy"] == 0.5
    for scorer in ("detection", "fuzzing"):
        [found, *_] = SCORERS[scorer](KeywordJudge(), other, samples, Dials())
        assert found.values[f"{scorer}_balanced_accuracy"] == 0.5
        assert found.values[f"{scorer}_auc"] == 0.5
    [flat, *_] = SCORERS["simulation"](KeywordJudge(), other, samples, Dials())
    assert (flat.values["simulation_pearson"], flat.is_constant) == (0.0, True)


def test_the_intruder_is_found_without_a_description():
    found = SCORERS["intruder"](
        KeywordJudge(), [None, None], [planted("dog"), planted("sea")], Dials()
    )
    assert [(s.values["intruder_accuracy"], s.n) for s in found] == [(1.0, 5)] * 2


class Asks(Judge):
    """Remembers what it is asked and says what it is told to."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def detect(self, asked):
        self.asked += asked
        return [[self.answer(e) for e in request.excerpts] for request in asked]

    fuzz = detect


def test_active_windows_are_shown_in_random_order_and_unmarked():
    judge = Asks(lambda excerpt: 0.0)
    SCORERS["detection"](judge, described("dog"), [planted("dog")], Dials())
    [request] = judge.asked
    is_active = ["dog" in e.tokens for e in request.excerpts]
    assert sum(is_active) == 20
    assert is_active not in ([True] * 20 + [False] * 20, [False] * 20 + [True] * 20)
    assert not any(any(e.marked) for e in request.excerpts)
    again = Asks(lambda excerpt: 0.0)
    SCORERS["detection"](again, described("dog"), [planted("dog")], Dials())
    assert again.asked == judge.asked
    other = Asks(lambda excerpt: 0.0)
    SCORERS["detection"](other, described("dog"), [planted("dog")], Dials(seed=1))
    assert other.asked != judge.asked


def test_unread_windows_are_left_out_and_counted():
    judge = Asks(
        lambda e: None if "x0" in e.tokens or "y0" in e.tokens else float("dog" in e.tokens)
    )
    [scored] = SCORERS["detection"](judge, described("dog"), [planted("dog")], Dials())
    assert (scored.n, scored.asked, scored.unread) == (38, 40, 2)
    assert scored.values["detection_balanced_accuracy"] == 1
    [nothing] = SCORERS["detection"](
        Asks(lambda e: None), described("dog"), [planted("dog")], Dials()
    )
    assert (nothing.values, nothing.unread, nothing.reason) == ({}, 40, UNREAD)


def test_a_judge_of_zeros_and_ones_gives_no_auc():
    judge = Asks(lambda e: float("dog" in e.tokens))
    judge.is_graded = False
    [scored] = SCORERS["detection"](judge, described("dog"), [planted("dog")], Dials())
    assert scored.values["detection_auc"] is None


def test_highlights_are_right_in_active_windows_and_elsewhere_as_many_and_wrong():
    strong = window("dog", "dog", "cat", "b", at=(0, 1))
    weak = strong._replace(activations=(1.0, 0.2, 0.0, 0.0))
    sample = LatentWindows([], [], [[strong, weak]], [window("p", "q", "r", "s")] * 2)
    judge = Asks(lambda e: 1.0)
    SCORERS["fuzzing"](judge, described("dog"), [sample], Dials(mark_share=0.3))
    marks = {e.marked for e in judge.asked[0].excerpts if "dog" in e.tokens}
    assert marks == {(True, True, False, False), (True, False, False, False)}
    silent = [e for e in judge.asked[0].excerpts if "p" in e.tokens]
    assert [sum(e.marked) for e in silent] == [2, 2]  # the mean of 2 and 1, rounded up
    assert all(e.marked[0] for e in silent)  # the token it lies around, as in active windows
    beside = Asks(lambda e: 1.0)
    SCORERS["fuzzing"](beside, described("dog"), [sample], Dials(wrong_marks="active"))
    wrong = [e for e in beside.asked[0].excerpts if not e.marked[0]]
    assert len(wrong) == 2
    assert all("dog" in e.tokens for e in wrong)


def test_rank_groups_tell_how_much_of_each_is_found():
    sample = planted("dog")
    poly = sample._replace(quantiles=[*sample.quantiles[:4], planted("cat").quantiles[4]])
    [scored] = SCORERS["detection"](KeywordJudge(), described("dog"), [poly], Dials())
    assert scored.recall_by_group == (1.0, 1.0, 1.0, 1.0, 0.0)


def test_too_few_windows_are_a_reason():
    bare = LatentWindows([], [], [], [])
    for name, scorer in SCORERS.items():
        if name not in ("surprisal", "embedding"):
            [scored] = scorer(KeywordJudge(), described("dog"), [bare], Dials())
            assert (scored.values, scored.reason) == ({}, TOO_FEW)


# --- descriptions ----------------------------------------------------------------------------


def test_suppressed_words_are_not_keywords():
    row = ExplanationRow(3, "vocab_proj", "promotes a", ["a", "b"], [2.0, -1.0])
    assert description_of(row) == Description("promotes a", ("a",), (2.0,))


def test_the_best_concept_has_the_largest_f1():
    from scipy.sparse import csr_matrix

    truth = csr_matrix(np.array([[1, 0], [1, 0], [1, 1], [0, 1], [0, 0]], dtype=np.int8))
    z = torch.tensor([[1.0, 0.0], [2.0, 0.0], [0.0, 3.0], [0.0, 1.0], [0.0, 0.0]])
    assert best_concepts(z, truth, ["dog", "sea"]) == [("dog", pytest.approx(0.8)), ("sea", 1.0)]


def test_latents_are_drawn_among_those_that_fire_often_enough_everywhere():
    counts = [torch.tensor([20, 3, 20, 20, 20]), torch.tensor([20, 20, 2, 20, 20])]
    latents, eligible = choose_latents(counts, at_least=15, num=2, seed=0)
    assert eligible == 3
    assert set(latents.tolist()) < {0, 3, 4}
    assert torch.equal(latents, choose_latents(counts, at_least=15, num=2, seed=0)[0])


# --- the world -------------------------------------------------------------------------------


class LookupConfig(SaeConfig):
    kind: Literal["lookup_for_tests"] = "lookup_for_tests"  # pyright: ignore[reportIncompatibleVariableOverride]


class LookupCoder(SparseCoder[Any]):
    """Reads embeddings and knows them: each token's code is a row of a table."""

    def __init__(self, embedding, table):
        super().__init__()
        self.cfg = LookupConfig(d_in=embedding.shape[1], d_sae=table.shape[1])
        self.embedding, self.table = embedding, table
        directions = nn.functional.normalize(table.T @ (embedding - embedding.mean(0)), dim=1)
        self.W_dec, self.W_enc = nn.Parameter(directions), nn.Parameter(directions.clone())
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


def concept_coder(model, scale=1.0):
    """Latent j fires on the words of the j-th concept, not equally strongly."""
    ids = model.tokenizer.get_vocab()
    table = torch.zeros(model.vocab_size, len(CONCEPTS))
    for j, concept in enumerate(CONCEPTS):
        for rank, word in enumerate(lexicon(concept)):
            table[ids[word], j] = scale * (1 + 0.05 * (rank % 9))
    embedding = model.model.get_input_embeddings().weight.detach().float()
    return LookupCoder(embedding, table)


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    model = load_model(ModelConfig(id="world"))
    folder = tmp_path_factory.mktemp("tokens")
    build_tokens(
        CorpusConfig(id="world", tokens=10_000, eval_tokens=12_000, context=96),
        model.tokenizer, model.info, folder,
    )  # fmt: skip
    tokens = Tokens.open(folder)
    coder = concept_coder(model)
    with TextReader(model, SITE) as reader:
        yield Bench(
            model, SITE, {"concepts": coder}, reader, torch.zeros(model.width(SITE)),
            tokens.split("train"), tokens.split("eval"), WorldConfig(),
        )  # fmt: skip


CONFIG = AutointerpConfig(
    judge={"kind": "keywords", "num_keywords": 500},  # a whole lexicon
    methods=("best_concept", "max_act"), num_latents=8, min_activations=10, train_tokens=10_000,
    held_out_tokens=12_000,
)  # fmt: skip


@pytest.fixture(scope="module")
def measured(bench):
    return measure_task(CONFIG, bench)["concepts"]


def found(rows, name, definition, **params):
    [row] = [
        r
        for r in rows
        if (r.name, r.definition) == (name, definition) and params.items() <= r.params.items()
    ]
    return row


def test_the_headline_comes_first_and_every_row_is_defined(measured):
    rows = measured.measurements
    first = CONFIG.definitions()[0]
    assert (rows[0].name, rows[0].definition) == (first.name, first.definition)
    defined = {(d.name, d.definition): d for d in CONFIG.definitions()}
    assert {(r.name, r.definition) for r in rows} == set(defined)
    for row in rows:
        limits = defined[row.name, row.definition]
        assert row.value is None or limits.low <= row.value <= limits.high
        assert (row.value is None) == (row.reason is not None)


def test_with_true_words_a_description_scores_1_and_another_about_chance(measured):
    rows = measured.measurements
    for name in ("autointerp_accuracy", "detection_balanced_accuracy", "fuzzing_balanced_accuracy"):
        assert found(rows, name, "oracle").value == 1.0
        assert found(rows, name, "held_out").value == 1.0
    assert found(rows, "detection_auc", "held_out").value == 1.0
    assert found(rows, "simulation_pearson", "held_out").value > 0.95
    for name in ("detection_balanced_accuracy", "autointerp_balanced_accuracy"):
        other = found(rows, name, "another_latent")
        assert abs(other.value - 0.5) < 0.1
    assert found(rows, "autointerp_gap", "held_out").value > 0.4
    learned = found(rows, "detection_balanced_accuracy", "held_out_of_one", method="max_act")
    assert 0.8 < learned.value <= 1.0


def test_rows_say_what_they_are_of(measured):
    rows = measured.measurements
    headline = found(rows, "autointerp_accuracy", "held_out")
    assert headline.params["method"] == "best_concept"
    assert headline.params["judge"] == "keywords"
    assert (headline.n, headline.unit) == (8, "latents")
    assert found(rows, "autointerp_accuracy", "always_none").value == pytest.approx(10 / 14)
    assert found(rows, "intruder_accuracy", "chance").value == 0.2
    assert found(rows, "autointerp_unreadable", "share_of_questions").value == 0
    assert found(rows, "autointerp_scored_latents", "share_of_sampled").value == 1
    assert found(rows, "autointerp_eligible_latents", "share_of_all").value == 1
    assert "likelihoods" in found(rows, "surprisal_auc", "held_out").reason


def test_each_latent_has_a_row_per_score(measured):
    own = [
        r for r in measured.latents
        if (r.name, r.definition, r.method) == ("autointerp_accuracy", "held_out", "best_concept")
    ]  # fmt: skip
    assert sorted(r.latent for r in own) == list(range(8))
    assert {(r.metric, r.value, r.n) for r in own} == {("autointerp", 1.0, 14)}


def test_the_scale_of_a_latent_and_the_order_of_latents_mean_nothing(bench, measured):
    short = CONFIG.but(scorers=("selection", "detection", "simulation"), oracle=False)
    larger = bench._replace(coders={"concepts": concept_coder(bench.model, 4.0)})
    again = measure_task(short, bench)["concepts"].measurements
    scaled = measure_task(short, larger)["concepts"].measurements
    for a, b in zip(again, scaled, strict=True):
        assert a._replace(value=None, stderr=None) == b._replace(value=None, stderr=None)
        assert a.value == pytest.approx(b.value, abs=1e-6)
    once = found(measured.measurements, "detection_f1", "another_latent")
    assert found(again, "detection_f1", "another_latent") == once


def test_held_out_windows_are_silent_or_active_as_they_say_and_repeat_nothing(bench):
    coder = bench.coders["concepts"]
    vocabulary = read_vocabulary(
        bench.model.tokenizer, bench.model.vocab_size, bench.model.special_ids
    )
    latents = {"concepts": torch.arange(8)}
    text = read_site(
        bench.model, bench.split, SITE, num_contexts=num_contexts_of(bench.split, 12_000)
    )
    assert torch.equal(text.count_firing(coder), (coder.encode(text.x) > 0).sum(0))
    codes = text.codes(bench.coders, latents)
    samples = sample_windows(codes, "concepts", vocabulary, WANTED, seed=0)
    for j, sample in enumerate(samples):
        words = set(lexicon(CONCEPTS[j]))
        everything = [*sample.top, *sample.weighted, *sample.active, *sample.inactive]
        for shown in everything:
            fires = [a > 0 for a in shown.activations]
            assert fires == [token in words for token in shown.excerpt.tokens]
            doc = document(WorldConfig(), shown.excerpt.document, split="validation")
            assert [doc.tokens[p - 1] for p in shown.excerpt.positions] == list(
                shown.excerpt.tokens
            )
            assert len(shown.excerpt.tokens) <= 2 * WANTED.radius + 1
        assert all(w.strongest > 0 and w.activations[w.peak] == w.strongest for w in sample.top)
        assert not any(w.strongest for w in sample.inactive)
        assert len(sample.inactive) == 20
        fourteen = [w.excerpt.tokens for w in (*sample.top, *sample.weighted)]
        assert len(set(fourteen)) == len(fourteen) == 4
        strongest = [max(w.strongest for w in group) for group in sample.quantiles]
        assert strongest == sorted(strongest, reverse=True)
    seen = {0: {w.excerpt.tokens for w in samples[0].top}}
    without = sample_windows(codes, "concepts", vocabulary, WANTED, seed=0, seen=seen)[0]
    shown = {w.excerpt.tokens for w in (*without.top, *without.weighted, *without.active)}
    assert not shown & seen[0]


def test_a_corpus_that_is_not_the_worlds_has_no_oracle(bench):
    text = read_site(bench.model, bench.split, SITE, num_contexts=4)
    codes = text.codes(bench.coders, {"concepts": torch.arange(8)})
    vocabulary = read_vocabulary(
        bench.model.tokenizer, bench.model.vocab_size, bench.model.special_ids
    )
    check_is_world(codes, vocabulary, WorldConfig(), "eval")
    with pytest.raises(NotApplicable, match="own documents"):
        check_is_world(codes, vocabulary, WorldConfig(seed=5), "eval")


def test_a_concept_of_context_has_no_words():
    assert concept_description("known-entity").keywords == ()
    assert concept_description("sea-word").keywords == tuple(lexicon("sea-word"))


def test_the_oracle_alone_scores_concepts(bench):
    cfg = CONFIG.but(judge="oracle", scorers=("detection",), num_latents=4)
    rows = measure_task(cfg, bench)["concepts"].measurements
    row = found(rows, "detection_balanced_accuracy", "held_out")
    assert (row.value, row.params["method"]) == (1.0, "best_concept")


def test_where_there_is_no_text_there_is_a_reason(bench):
    rows = measure_task(CONFIG, bench._replace(train=None))["concepts"].measurements
    assert {row.value for row in rows} == {None}
    assert "training and held-out text" in rows[0].reason
    rows = measure_task(CONFIG, bench._replace(world=None))["concepts"].measurements
    assert "bundled world" in rows[0].reason
    rare = CONFIG.but(min_activations=10**6, scorers=("selection",), oracle=False)
    rows = measure_task(rare, bench)["concepts"].measurements
    assert rows[0].value is None
    assert rows[0].reason


@pytest.mark.parametrize(
    "given_judge",
    ["keywords", {"kind": "openai", "model": "m"}, {"kind": "local", "model": {"id": "world"}}],
)
def test_a_judge_may_be_given_by_name(given_judge):
    cfg = read_metric({"name": "autointerp", "judge": given_judge})
    kind = given_judge if isinstance(given_judge, str) else given_judge["kind"]
    assert cfg.judge.kind == kind
    assert cfg.models() == (["world"] if kind == "local" else [])


@pytest.mark.parametrize(
    "wrong",
    ["gpt", {"kind": "openai"}, {"kind": "keywords", "num_keywords": 0}, 3],
)
def test_an_unknown_or_incomplete_judge_is_refused(wrong):
    with pytest.raises(BadInput, match=r"evaluate\.judge"):
        read_metric({"name": "autointerp", "judge": wrong})
