import pytest
import torch

from sae_lib.errors import BadInput, NotApplicable
from sae_lib.explain import explain_site, read_explainer
from sae_lib.explain._latent_reader import LatentReader
from sae_lib.explain._pruning import (
    Pruned,
    Reading,
    Span,
    importance,
    prune,
    readings,
    search_together,
)
from sae_lib.explain.base import Evidence, ExplainerConfig
from sae_lib.explain.neuron_graph import NeuronGraph, firing_agreement, path_of
from sae_lib.explain.pruned_max_act import PrunedMaxActConfig
from sae_lib.saes.topk import TopKConfig

SITE = "resid_post.0"
WE, WENT, TO, THE, ZOO, MASK = range(1, 7)
TEXT = Span((WE, WENT, TO, THE, ZOO), 4)
ACTIVATION = {
    (WE, WENT, TO, THE, ZOO): 10.0,
    (WENT, TO, THE, ZOO): 8.0,
    (TO, THE, ZOO): 5.1,
    (THE, ZOO): 4.9,
    (ZOO,): 2.0,
    (MASK, THE, ZOO): 4.9,
    (TO, MASK, ZOO): 1.0,
}


def read(spans, owners):
    return [Reading(ACTIVATION[span.tokens], ACTIVATION[span.tokens]) for span in spans]


def pruned(ratio: float, **settings) -> Pruned | None:
    return search_together([prune(TEXT, ratio * 10.0, **settings)], read)[0]


@pytest.mark.parametrize(
    ("ratio", "left"),
    [(0.5, (TO, THE, ZOO)), (0.49, (THE, ZOO)), (0.2, (ZOO,)), (1.0, TEXT.tokens)],
)
def test_the_shortest_text_that_keeps_the_share_is_found(ratio, left):
    found = pruned(ratio)
    assert found is not None
    assert found.span.tokens == left
    assert found.span.pivot == len(left) - 1
    assert found.places == tuple(range(5 - len(left), 5))
    assert found.activation >= ratio * 10


def test_the_strict_rule_refuses_the_limit_itself():
    found = pruned(0.2, is_strict=True)
    assert found is not None
    assert found.span.tokens == (THE, ZOO)


def test_importance_is_what_masking_costs():
    found = pruned(0.5)
    assert found is not None
    weights = search_together([importance(found, MASK)], read)[0]
    assert weights == pytest.approx([0.0392157, 0.8039216, 1.0])


def test_a_text_on_which_another_token_is_stronger_is_not_accepted():
    def elsewhere(spans, owners):
        return [Reading(5.0, 6.0 if len(span.tokens) < 3 else 5.0) for span in spans]

    found = search_together([prune(TEXT, 5.0)], elsewhere)[0]
    assert found is not None
    assert len(found.span.tokens) == 3


def test_what_never_reaches_the_limit_is_none():
    for strategy in ("left", "greedy_mask", "greedy_delete"):
        assert pruned(1.1, strategy=strategy, mask=MASK) is None


def sums(weights):
    """A latent whose activation at the pivot is the sum of the weights of what is there."""

    def read_them(spans, owners):
        values = [sum(weights.get(t, 0.0) for t in span.tokens) for span in spans]
        return [Reading(v, v) for v in values]

    return read_them


@pytest.mark.parametrize("strategy", ["greedy_mask", "greedy_delete"])
def test_greedy_pruning_takes_out_what_costs_least_and_keeps_the_limit(strategy):
    weights = {WE: 0.5, WENT: 3.0, TO: 1.0, THE: 0.0, ZOO: 5.0}
    search = prune(TEXT, 0.5 * 9.5, strategy=strategy, mask=MASK)
    found = search_together([search], sums(weights))[0]
    assert found is not None
    assert found.activation == 5.0  # everything but the pivot may go
    search = prune(TEXT, 8.0, strategy=strategy, mask=MASK)
    found = search_together([search], sums(weights))[0]
    assert found is not None
    assert found.activation >= 8.0
    assert found.span.tokens[found.span.pivot] == ZOO
    if strategy == "greedy_delete":
        assert found.span.tokens == (WENT, ZOO)
        assert found.places == (1, 4)
    else:
        assert found.span.tokens == (MASK, WENT, MASK, MASK, ZOO)
        assert found.masked == {0, 2, 3}


def test_searches_go_on_together_and_one_round_is_one_batch():
    rounds = []

    def counted(spans, owners):
        rounds.append(owners)
        return read(spans, owners)

    searches = [prune(TEXT, 10 * ratio) for ratio in (0.2, 0.49, 0.5)]
    found = search_together(searches, counted)
    assert [len(own.span.tokens) for own in found if own] == [1, 2, 3]
    assert rounds == [[0, 1, 2], [1, 2], [2]]
    assert search_together([], counted) == []


def test_readings_take_the_pivot_and_the_maximum():
    z = torch.tensor([[1.0, 3.0, 0.0], [2.0, 0.0, 0.0]])
    assert readings(z, [Span((4, 5, 6), 0), Span((4,), 0)]) == [Reading(1, 3), Reading(2, 2)]
    assert not readings(z, [Span((4, 5, 6), 0), Span((4,), 0)])[0].is_peak


# --- the graph ---------------------------------------------------------------------------------

BY, A = 7, 8


def test_the_graph_fires_where_a_path_matches():
    path = path_of((TO, THE, ZOO), 2, [0.039, 0.804, 1.0], 0.5)
    assert path == (ZOO, THE, None)
    graph = NeuronGraph([(path, 0.51)])
    assert graph.predict(torch.tensor([BY, THE, ZOO])).tolist() == pytest.approx([0, 0, 0.51])
    assert graph.predict(torch.tensor([WE, A, ZOO])).tolist() == [0, 0, 0]
    assert graph.predict(torch.tensor([THE, ZOO])).tolist() == [0, 0]  # nothing fills the wildcard
    assert graph.fires(torch.tensor([BY, THE, ZOO])).tolist() == [False, False, True]


def test_the_longest_path_decides_and_then_the_one_with_fewer_wildcards():
    graph = NeuronGraph([((ZOO,), 0.2), ((ZOO, None), 0.3), ((ZOO, THE), 0.9), ((ZOO,), 0.1)])
    tokens = torch.tensor([ZOO, THE, ZOO, BY, ZOO])
    assert graph.predict(tokens).tolist() == pytest.approx([0.2, 0, 0.9, 0, 0.3])


def test_agreement_counts_firing_above_half():
    found = firing_agreement(torch.tensor([0.6, 0.6, 0.1, 0.0]), torch.tensor([0.9, 0.2, 0.5, 0.1]))
    assert found == (1, 1, 1)
    assert (found.precision, found.recall, found.f1) == (0.5, 0.5, 0.5)


# --- through a model ---------------------------------------------------------------------------


class Spy(ExplainerConfig):
    """Takes away the evidence."""

    def explain(self, evidence: Evidence):
        found.append(evidence)
        return []


found: list[Evidence] = []


@pytest.fixture(scope="module")
def evidence(model, corpus) -> Evidence:
    coder = TopKConfig(d_in=8, d_sae=16, k=3, aux_k=4, seed=0).build()
    found.clear()
    explain_site(model, corpus, SITE, {"a": coder}, [Spy(method="spy")])
    return found[0]._replace(corpus=corpus)


def test_texts_of_every_length_are_read_as_if_each_were_alone(model, evidence):
    texts = [(4, 5, 6), (7,), (4, 5, 6), (8, 9), (10, 11)]
    latents = [0, 3, 5, 0, 2]
    together = LatentReader(model, SITE, evidence.coder).read(texts, latents)
    assert together.shape == (5, 3)
    for row, text, latent in zip(together, texts, latents, strict=True):
        x = model.capture(torch.tensor([[1, *text]]), [SITE])[SITE][:, 1:]
        with torch.no_grad():
            alone = evidence.coder.encode(x)[0, :, latent]
        torch.testing.assert_close(row[: len(text)], alone)
        assert (row[len(text) :] == 0).all()


@pytest.mark.parametrize("strategy", ["left", "greedy_mask", "greedy_delete"])
def test_every_kept_text_keeps_half_of_the_activation(evidence, strategy):
    cfg = PrunedMaxActConfig(strategy=strategy, context=4)
    kept, _ = cfg._prune(evidence)
    assert kept
    for latent, spans in kept.items():
        assert len({own.pruned.span for own in spans}) == len(spans) <= cfg.num_spans
        strengths = [own.pruned.activation for own in spans]
        assert strengths == sorted(strengths, reverse=True)
        weakest = float(evidence.statistics.candidates(torch.tensor([latent])).activation[0, -1])
        for own in spans:
            assert own.pruned.activation >= 0.5 * weakest - 1e-6
            assert own.weights[own.pruned.span.pivot] == 1.0
            assert not set(own.pruned.span.tokens) & {1, 2}  # no special tokens inside
            for variant in own.variants:
                assert variant.activation >= 0.5 * own.pruned.activation
                assert variant.token != own.pruned.span.tokens[variant.place]


def test_rows_name_the_words_that_matter_with_scores_up_to_one(evidence):
    rows = PrunedMaxActConfig().explain(evidence)
    assert {row.latent for row in rows} <= set(evidence.alive)
    for row in rows:
        assert row.keyword_scores == sorted(row.keyword_scores, reverse=True)
        assert all(score > 0 for score in row.keyword_scores)
        assert all(word.startswith("w") for word in row.keywords)
        assert row.text.startswith("fires on ")
        if row.score is not None:
            assert 0 <= row.score <= 1
            assert row.score_definition == "graph_f1"


def test_a_latent_of_one_word_is_pruned_to_it_and_its_graph_finds_it_again(model, corpus):
    """At the embedding a latent can be one word: text around it changes nothing."""
    site = "resid_pre.0"
    embedding = model.model.get_input_embeddings().weight.detach()
    coder = TopKConfig(d_in=8, d_sae=32, k=1, aux_k=4).build()
    with torch.no_grad():
        rows = embedding / embedding.norm(dim=1, keepdim=True).clamp(min=1e-6)
        coder.W_enc.copy_(rows)
        coder.W_dec.copy_(rows)
        coder.b_enc.zero_()
        coder.b_dec.zero_()
    found.clear()
    explain_site(model, corpus, site, {"a": coder}, [Spy(method="spy")])
    own = found[0]._replace(corpus=corpus)
    cfg = PrunedMaxActConfig(num_substitutes=0)
    said = {row.latent: row for row in cfg.explain(own)}
    graphs = cfg.graphs(own)
    assert len(said) > 20
    for latent in said:
        assert said[latent].keywords == [f"w{latent - 4:02d}"]
        assert said[latent].keyword_scores == pytest.approx([1.0])
        assert said[latent].score in (None, 1.0)
        tokens = torch.arange(4, 32)
        assert graphs[latent].predict(tokens).nonzero().flatten().tolist() == [latent - 4]


def test_predicted_substitutes_are_what_the_model_says_next(model, evidence):
    from sae_lib.explain._substitutes import neighbours, predicted

    is_word = evidence.vocabulary.is_word
    told = predicted(model, [(4, 5), (), (9,)], 3, is_word)
    for prefix, own in zip([(4, 5), (), (9,)], told, strict=True):
        logits = model.logits(torch.tensor([[1, *prefix]]))[0, -1]
        expected = logits.masked_fill(~is_word, -torch.inf).topk(3).indices.tolist()
        assert own == expected
    near = neighbours(model, [4, 9, 4], 2, is_word)
    assert set(near) == {4, 9}
    assert 4 not in near[4]
    with_both = PrunedMaxActConfig(substitutes="both", context=3).explain(evidence)
    assert with_both


def test_without_the_corpus_it_says_so(evidence):
    with pytest.raises(NotApplicable, match="corpus is not at hand"):
        PrunedMaxActConfig().explain(evidence._replace(corpus=None))


def test_an_unknown_mask_is_named(evidence):
    with pytest.raises(BadInput, match="no such token"):
        PrunedMaxActConfig(mask="nowhere").check(evidence)
    PrunedMaxActConfig(mask="<unk>").check(evidence)
    with pytest.raises(BadInput, match=r"explain\.keep_ratio"):
        read_explainer({"method": "pruned_max_act", "keep_ratio": 0})
