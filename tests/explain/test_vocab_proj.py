from types import SimpleNamespace

import pytest
import torch

from sae_lib.errors import NotApplicable
from sae_lib.explain.base import Evidence
from sae_lib.explain.statistics import LatentStatistics
from sae_lib.explain.vocab_proj import VocabProjConfig, vocabulary_scores
from sae_lib.explain.vocabulary import Vocabulary, read_vocabulary

E_OUT = torch.tensor([[2.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.0]])


def rms_norm(gain: torch.Tensor):
    return lambda v: v * gain / v.square().mean(-1, keepdim=True).add(1e-12).sqrt()


def fake_model(gain: torch.Tensor | None = None, unembedding: torch.Tensor = E_OUT):
    gain = torch.ones(unembedding.shape[1]) if gain is None else gain
    return SimpleNamespace(
        has_lm_head=True,
        unembedding=lambda: unembedding,
        final_norm=rms_norm(gain),
        final_norm_gain=lambda: gain,
    )


def evidence_of(model, W_dec: torch.Tensor, site: str = "resid_post.1", words=None) -> Evidence:
    size = len(model.unembedding()) if model.has_lm_head else 4
    vocabulary = Vocabulary(
        words or [f"w{i}" for i in range(size)], torch.ones(size, dtype=torch.bool)
    )
    return Evidence(
        model=model,
        site=site,
        coder=SimpleNamespace(W_dec=W_dec),  # type: ignore[arg-type]
        statistics=LatentStatistics(len(W_dec), size, 1),
        examples={},
        vocabulary=vocabulary,
        alive=list(range(len(W_dec))),
    )


def test_scores_are_products_with_the_rows_of_the_unembedding():
    v = torch.tensor([[1.0, 0.5]])
    scores = vocabulary_scores(fake_model(), v, norm="none", centre=False)
    assert scores.tolist() == [[2.0, 0.5, 1.5, -1.0]]
    assert scores[0].argsort(descending=True).tolist() == [0, 2, 1, 3]


def test_the_final_norm_is_applied_with_its_gain():
    identity = fake_model(torch.tensor([1.0, 2.0]), torch.eye(2))
    v = torch.tensor([[3.0, 4.0]])
    scores = vocabulary_scores(identity, v, norm="final_norm", centre=False)
    torch.testing.assert_close(scores, torch.tensor([[0.848528, 2.262742]]))
    only_gain = vocabulary_scores(identity, v, norm="gain", centre=False)
    assert only_gain.tolist() == [[3.0, 8.0]]


def test_centred_scores_have_mean_zero_and_the_same_order():
    v = torch.tensor([[1.0, 0.5], [-2.0, 1.0]])
    plain, centred = (
        vocabulary_scores(fake_model(), v, norm="none", centre=centre) for centre in (False, True)
    )
    torch.testing.assert_close(centred.mean(1), torch.zeros(2))
    assert torch.equal(plain.argsort(1), centred.argsort(1))


def test_keywords_are_the_promoted_words_and_then_the_suppressed_ones():
    (row,) = VocabProjConfig(norm="none", centre=False, num_keywords=2).explain(
        evidence_of(fake_model(), torch.tensor([[1.0, 0.5]]))
    )
    assert row.keywords == ["w0", "w2", "w3"]
    assert row.keyword_scores == [2.0, 1.5, -1.0]
    assert row.text == "promotes w0, w2; suppresses w3"


def test_variants_of_a_word_are_listed_once_by_the_most_extreme():
    evidence = evidence_of(
        fake_model(), torch.tensor([[1.0, 0.5]]), words=["The", "cat", " the", "x"]
    )
    (row,) = VocabProjConfig(norm="none", centre=False, num_keywords=3).explain(evidence)
    assert row.keywords == ["The", "cat", "x"]


def test_only_alive_latents_are_explained_however_they_are_chunked(monkeypatch):
    W_dec = torch.randn(7, 2, generator=torch.Generator().manual_seed(0))
    evidence = evidence_of(fake_model(), W_dec)._replace(alive=[1, 2, 5, 6])
    whole = VocabProjConfig().explain(evidence)
    assert [row.latent for row in whole] == [1, 2, 5, 6]
    monkeypatch.setattr("sae_lib.explain.vocab_proj._CHUNK_SCORES", 8)
    for mine, theirs in zip(VocabProjConfig().explain(evidence), whole, strict=True):
        assert mine.keywords == theirs.keywords
        assert mine.keyword_scores == pytest.approx(theirs.keyword_scores)


@pytest.mark.parametrize("site", ["mlp_act.1", "module:model.embed_tokens"])
def test_a_site_outside_the_residual_stream_is_refused_with_the_reason(site):
    with pytest.raises(NotApplicable, match="do not live in the residual stream"):
        VocabProjConfig().check(evidence_of(fake_model(), torch.ones(1, 2), site=site))


def test_a_model_without_a_head_is_refused_with_the_reason():
    with pytest.raises(NotApplicable, match="no language-model head"):
        VocabProjConfig().check(evidence_of(SimpleNamespace(has_lm_head=False), torch.ones(1, 2)))


def test_special_tokens_blanks_and_ids_without_text_are_no_words(model):
    vocabulary = read_vocabulary(model.tokenizer, 35, model.special_ids)
    assert vocabulary.text[4:6] == ["w00", "w01"]
    assert vocabulary.is_word.tolist() == [False] * 4 + [True] * 28 + [False] * 3


@pytest.mark.model
def test_the_real_projection_is_the_logit_lens(model):
    W_dec = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    scores = vocabulary_scores(model, W_dec, norm="final_norm", centre=False)
    with torch.no_grad():
        expected = model.model.lm_head(model.model.model.norm(W_dec))
    torch.testing.assert_close(scores, expected)
