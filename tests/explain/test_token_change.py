import pytest
import torch

from sae_lib.errors import BadInput, NotApplicable
from sae_lib.explain import explain_site
from sae_lib.explain.base import Evidence, ExplainerConfig
from sae_lib.explain.token_change import TokenChangeConfig
from sae_lib.saes.topk import TopKConfig

SITE = "resid_post.0"
LAST = "resid_post.1"
held: list[Evidence] = []


class Spy(ExplainerConfig):
    """Takes away the evidence."""

    def explain(self, evidence: Evidence):
        held.append(evidence)
        return []


def evidence_at(model, corpus, site) -> Evidence:
    coder = TopKConfig(d_in=8, d_sae=16, k=3, aux_k=4, seed=0).build()
    held.clear()
    explain_site(model, corpus, site, {"a": coder}, [Spy(method="spy")])
    return held[0]._replace(corpus=corpus)


@pytest.fixture(scope="module")
def evidence(model, corpus) -> Evidence:
    return evidence_at(model, corpus, SITE)


def by_hand(evidence, latent, cfg, value):
    """Mean change at the kept tokens of the prompts, one latent and one prompt at a time."""
    model, coder, corpus = evidence.model, evidence.coder, evidence.corpus
    chosen = torch.linspace(0, corpus.num_contexts - 1, cfg.num_prompts).long().unique()
    rows = corpus.rows(chosen)
    changes = []
    for tokens, keep in zip(rows.tokens, rows.keep, strict=True):
        tokens, keep = tokens[None, : cfg.prompt_tokens], keep[: cfg.prompt_tokens]

        def edit(x, keep=keep):
            z = coder.encode(x)[..., latent]
            by = value - z if cfg.mode == "clamp" else torch.full_like(z, value)
            return x + (by * keep).unsqueeze(-1) * coder.W_dec[latent]

        plain = model.logits(tokens)[0]
        with model.intervene({evidence.site: edit}):
            steered = model.logits(tokens)[0]
        if cfg.measure == "logit":
            change = (steered - steered.mean(-1, keepdim=True)) - (
                plain - plain.mean(-1, keepdim=True)
            )
        elif cfg.measure == "log_probability":
            change = steered.log_softmax(-1) - plain.log_softmax(-1)
        else:
            change = steered.softmax(-1) - plain.softmax(-1)
        changes.append(change[keep].mean(0))
    return torch.stack(changes).mean(0)


@pytest.mark.parametrize("measure", ["logit", "log_probability", "probability"])
@pytest.mark.parametrize("mode", ["clamp", "add"])
def test_many_latents_at_once_change_what_each_alone_changes(evidence, mode, measure):
    cfg = TokenChangeConfig(
        mode=mode, measure=measure, strength=2.0, num_prompts=3, prompt_tokens=6, num_keywords=40
    )
    rows = cfg.explain(evidence)
    assert [row.latent for row in rows] == evidence.alive
    with torch.no_grad():
        for row in rows[:4]:
            value = 2.0 * float(evidence.statistics.max_activation[row.latent])
            change = by_hand(evidence, row.latent, cfg, value)
            for word, score in zip(row.keywords, row.keyword_scores, strict=True):
                assert score == pytest.approx(float(change[4 + int(word[1:])]), abs=1e-4)
            up = [score for score in row.keyword_scores if score > 0]
            assert up == sorted(up, reverse=True)
            assert len(row.keywords) == 28


def test_latents_in_pieces_give_the_same_rows(evidence, monkeypatch):
    cfg = TokenChangeConfig(num_prompts=3, prompt_tokens=6)
    for mode in ("clamp", "ablate"):
        whole = cfg.but(mode=mode).explain(evidence)
        with monkeypatch.context() as patch:
            patch.setattr("sae_lib.explain.token_change._CHUNK_LOGITS", 1)
            pieces = cfg.but(mode=mode).explain(evidence)
        assert [row.latent for row in pieces] == [row.latent for row in whole]
        for mine, theirs in zip(pieces, whole, strict=True):
            assert mine.keyword_scores == pytest.approx(theirs.keyword_scores, abs=1e-4)


def test_at_the_last_layer_a_small_rise_is_the_projection(model, corpus):
    """Nothing follows but the norm: to first order the change is W_U J d, linear in strength."""
    evidence = evidence_at(model, corpus, LAST)
    cfg = TokenChangeConfig(mode="add", num_prompts=2, prompt_tokens=5, num_keywords=40)
    once, twice = (cfg.but(strength=s).explain(evidence) for s in (1e-3, 2e-3))
    for a, b in zip(once, twice, strict=True):
        first = dict(zip(a.keywords, a.keyword_scores, strict=True))
        second = dict(zip(b.keywords, b.keyword_scores, strict=True))
        biggest = max(first, key=lambda word: abs(first[word]))
        assert second[biggest] == pytest.approx(2 * first[biggest], rel=0.05)


def test_ablation_speaks_of_latents_that_fire(evidence):
    cfg = TokenChangeConfig(mode="ablate", num_prompts=2, prompt_tokens=6, num_keywords=40)
    rows = cfg.explain(evidence)
    assert rows
    assert {row.latent for row in rows} <= set(evidence.alive)
    assert any(abs(score) > 1e-4 for row in rows for score in row.keyword_scores)


def test_opposite_signs_of_a_small_rise_swap_the_sides(evidence):
    cfg = TokenChangeConfig(mode="add", num_prompts=2, prompt_tokens=5, num_keywords=40)
    up, down = (cfg.but(strength=s).explain(evidence) for s in (1e-3, -1e-3))
    for a, b in zip(up, down, strict=True):
        first = dict(zip(a.keywords, a.keyword_scores, strict=True))
        second = dict(zip(b.keywords, b.keyword_scores, strict=True))
        biggest = max(first, key=lambda word: abs(first[word]))
        assert second[biggest] == pytest.approx(-first[biggest], rel=0.05)


def test_where_it_does_not_apply_there_is_a_reason(evidence):
    cfg = TokenChangeConfig()
    with pytest.raises(NotApplicable, match="corpus is not at hand"):
        cfg.explain(evidence._replace(corpus=None))
    with pytest.raises(NotApplicable, match="several sites"):
        cfg.check(evidence._replace(site="resid_post.0+resid_post.1"))
    with pytest.raises(BadInput, match="changes nothing"):
        cfg.but(mode="add", strength=0.0).check(evidence)
