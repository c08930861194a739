from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from sae_lib.errors import NotApplicable
from sae_lib.explain.base import Evidence
from sae_lib.explain.mut_info import (
    MutInfoConfig,
    mutual_information,
    normalisers,
    temperature_for,
    word_scores,
)
from sae_lib.explain.statistics import LatentStatistics
from sae_lib.explain.vocabulary import Vocabulary

L = torch.tensor([[8.0, 4.0, 1.0], [1.0, 4.0, 1.0]], dtype=torch.float64).log()


def scored(scores, form, alpha=1.0, beta=1.0, is_word=None):
    is_word = torch.ones(scores.shape[1], dtype=torch.bool) if is_word is None else is_word
    over = normalisers(lambda: iter([scores]), is_word, alpha=alpha, beta=beta)
    return word_scores(scores, over, is_word, alpha=alpha, beta=beta, form=form)


def assert_is(found, expected):
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_the_published_score_is_never_positive_and_leads_with_the_least_related_word():
    found = scored(L, "published")
    assert_is(found[0], [-0.072482, -0.213276, -0.053319])
    assert found[0].argmax() == 2


def test_the_corrected_score_singles_out_the_latent():
    assert_is(scored(L, "corrected"), [[0.354070, 0.0, 0.0], [-0.250680, 0.0, 0.0]])


def test_the_bayes_form_sums_to_the_mutual_information():
    found = scored(L, "bayes") / 2  # p(c) = 1/2
    assert_is(found, [[0.139531, -0.070697, -0.017674], [-0.071065, 0.104553, 0.026138]])
    is_word = torch.ones(3, dtype=torch.bool)
    assert mutual_information(lambda: iter([L]), is_word, alpha=1.0) == pytest.approx(
        0.110785, abs=1e-6
    )


def test_a_frequent_word_does_not_win():
    scores = torch.tensor([[4.0, 5.0, 0.0], [0.0, 5.0, 0.0]], dtype=torch.float64)
    assert scores[0].argmax() == 1  # the plain projection
    assert_is(scored(scores, "corrected")[0], [0.180645, 0.0, 0.0])
    assert_is(scored(scores, "published")[0], [-0.004857, -0.504247, -0.003398])


@pytest.mark.parametrize("form", ["corrected", "bayes", "published"])
def test_latents_in_pieces_give_the_same_scores(form):
    scores = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    is_word = torch.tensor([True, True, False, True, True])
    whole = scored(scores, form, 0.7, 1.3, is_word)
    over = normalisers(lambda: iter(scores.split(2)), is_word, alpha=0.7, beta=1.3)
    pieces = torch.cat(
        [word_scores(p, over, is_word, alpha=0.7, beta=1.3, form=form) for p in scores.split(3)]
    )
    torch.testing.assert_close(pieces, whole)
    assert (whole[:, 2] == 0).all()
    alone = scored(scores[:, is_word], form, 0.7, 1.3)
    torch.testing.assert_close(whole[:, is_word], alone)


def test_one_latent_alone_tells_nothing():
    scores = torch.randn(1, 6, generator=torch.Generator().manual_seed(0))
    assert_is(scored(scores, "corrected")[0], [0.0] * 6)
    assert_is(scored(scores, "bayes")[0], [0.0] * 6)


@pytest.mark.parametrize("scale", [1.0, 3.0, 10.0])
def test_planted_words_are_found(scale):
    good = 0
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)

        def random(*shape, generator=generator):
            return torch.randn(*shape, generator=generator) / 64**0.5

        topic, shared = F.normalize(random(64), dim=0), F.normalize(random(64), dim=0)
        features, words = random(200, 64), random(500, 64)
        features[0] = topic
        features += 0.3 * shared
        words[:5] = 0.9 * topic + 0.3 * random(5, 64)
        words[499] = 3 * shared
        best = scored(scale * features @ words.mT, "corrected")[0].topk(5).indices
        good += int((best < 5).sum() >= 4)
    assert good >= 19


def test_the_temperature_gives_the_perplexity_that_was_asked_for():
    scores = 5 * torch.randn(9, 300, generator=torch.Generator().manual_seed(0))
    is_word = torch.arange(300) < 280
    alpha = temperature_for(scores, is_word, 25.0)
    p = (scores[:, is_word].double() / alpha).softmax(1)
    perplexity = (-(p * p.log()).sum(1)).exp()
    assert float(perplexity.median()) == pytest.approx(25.0, rel=1e-3)


def evidence_of(W_dec, unembedding, site="resid_post.1", alive=None) -> Evidence:
    size = len(unembedding)
    return Evidence(
        model=SimpleNamespace(
            has_lm_head=True, unembedding=lambda: unembedding, final_norm=lambda v: v
        ),
        site=site,
        coder=SimpleNamespace(W_dec=W_dec, W_enc=2 * W_dec),  # type: ignore[arg-type]
        statistics=LatentStatistics(len(W_dec), size, 1),
        examples={},
        vocabulary=Vocabulary([f"w{i}" for i in range(size)], torch.ones(size, dtype=torch.bool)),
        alive=list(range(len(W_dec))) if alive is None else alive,
    )


def test_rows_list_the_words_that_tell_most():
    cfg = MutInfoConfig(alpha=1.0, norm="none")
    rows = cfg.explain(evidence_of(torch.eye(2), L.float().mT))
    assert [row.keywords for row in rows] == [["w0"], []]
    assert rows[0].keyword_scores == pytest.approx([0.354070], abs=1e-5)
    assert rows[0].text == 'told by "w0"'
    published = cfg.but(form="published").explain(evidence_of(torch.eye(2), L.float().mT))
    assert published[0].keywords == ["w2", "w0", "w1"]


def test_dead_latents_do_not_count_among_those_to_choose_from():
    W_dec = torch.tensor([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0]])
    unembedding = torch.cat([L.float(), torch.full((1, 3), 9.0)]).mT  # the third likes every word
    cfg = MutInfoConfig(alpha=1.0, norm="none")
    rows = cfg.explain(evidence_of(W_dec, unembedding, alive=[0, 1]))
    assert rows[0].keyword_scores == pytest.approx([0.354070], abs=1e-5)
    assert cfg.explain(evidence_of(W_dec, unembedding, alive=[])) == []


def test_the_encoder_may_stand_for_the_latent():
    cfg = MutInfoConfig(alpha=2.0, norm="none")
    encoder = cfg.but(direction="encoder").explain(evidence_of(torch.eye(2), L.float().mT))
    assert encoder[0].keyword_scores == pytest.approx(
        [0.354070], abs=1e-5
    )  # twice L at twice alpha


def test_outside_the_stream_it_does_not_apply():
    with pytest.raises(NotApplicable, match="residual stream"):
        MutInfoConfig().check(evidence_of(torch.eye(2), L.float().mT, site="mlp_act.1"))
