import pytest
import torch

from sae_lib.errors import BadInput, UnknownName
from sae_lib.explain import EXPLAINERS, explain_site, read_explainer
from sae_lib.explain.max_act import MaxActConfig
from sae_lib.explain.vocab_proj import VocabProjConfig
from sae_lib.saes.topk import TopKConfig

SITE = "resid_post.0"
METHODS = [MaxActConfig(), VocabProjConfig()]


@pytest.fixture(scope="module")
def coders():
    return {
        f"topk-s{seed}": TopKConfig(d_in=8, d_sae=16, k=3, aux_k=4, seed=seed).build()
        for seed in (0, 1)
    }


@pytest.fixture(scope="module")
def truth(model, corpus, coders):
    """Codes of every kept token, by hand, all contexts in one batch."""
    held = corpus.held
    x = model.capture(held.tokens, [SITE])[SITE]
    with torch.no_grad():
        return {name: coder.encode(x) * held.keep.unsqueeze(-1) for name, coder in coders.items()}


@pytest.fixture(scope="module")
def explained(model, corpus, coders):
    return explain_site(model, corpus, SITE, coders, METHODS, batch_contexts=5)


def test_every_latent_has_a_row_and_dead_ones_density_zero(explained, coders, truth, corpus):
    for name, found in explained.items():
        z = truth[name][corpus.held.keep]
        assert [row.latent for row in found.latents] == list(range(16))
        for row in found.latents:
            own = z[:, row.latent]
            assert row.density == pytest.approx(float((own > 0).double().mean()))
            assert row.max_activation == pytest.approx(float(own.max()), rel=1e-5)
            if row.density:
                assert row.mean_activation == pytest.approx(
                    float(own[own > 0].double().mean()), rel=1e-5
                )
            else:
                assert row.mean_activation is None
                assert row.label is None


def test_only_alive_latents_are_explained_and_each_by_every_method(explained):
    for found in explained.values():
        alive = [row.latent for row in found.latents if row.density > 0]
        for method in ("max_act", "vocab_proj"):
            assert [row.latent for row in found.explanations if row.method == method] == alive
        assert {row.latent for row in found.examples} == set(alive)


def test_examples_show_the_activations_of_their_tokens(explained, truth, corpus, model):
    held = corpus.held
    for name, found in explained.items():
        for row in found.examples:
            at = (held.document == row.document) & (held.position == row.position)
            context, centre = at.nonzero()[0].tolist()
            places = [
                p
                for p in range(max(0, centre - 10), min(corpus.context, centre + 11))
                if held.document[context, p] == row.document
            ]
            codes = truth[name][context, places, row.latent]
            assert row.activations == pytest.approx(codes.tolist(), abs=1e-5)
            assert places[row.peak] == centre
            assert row.max_activation == row.activations[row.peak]
            shown = [model.tokenizer.decode([t]) for t in held.tokens[context, places].tolist()]
            assert row.tokens == shown


def test_the_first_example_is_the_strongest_kept_token(explained, truth):
    for name, found in explained.items():
        firsts = [row for row in found.examples if row.rank == 0 and row.kind == "top"]
        assert firsts
        for row in firsts:
            assert row.max_activation == pytest.approx(
                float(truth[name][..., row.latent].max()), rel=1e-5
            )


def test_no_special_token_is_ever_a_maximum(explained, model, corpus, coders):
    x = model.capture(corpus.held.tokens, [SITE])[SITE]
    with torch.no_grad():
        z = coders["topk-s0"].encode(x)
    special = ~corpus.held.keep
    # the test would say nothing if special tokens were weak
    assert (z[special].max(0).values > z[corpus.held.keep].max(0).values).any()
    for found in explained.values():
        for row in found.examples:
            assert row.tokens[row.peak] not in ("<bos>", "<eos>", "<pad>")


def test_company_and_batches_change_nothing(model, corpus, coders, explained):
    name = "topk-s1"
    alone = explain_site(model, corpus, SITE, {name: coders[name]}, METHODS, batch_contexts=5)
    assert alone[name] == explained[name]
    one_by_one = explain_site(model, corpus, SITE, {name: coders[name]}, METHODS, batch_contexts=1)
    assert [row.density for row in one_by_one[name].latents] == [
        row.density for row in explained[name].latents
    ]


def test_reading_side_by_side_changes_nothing(model, corpus, coders, explained):
    threads = torch.get_num_threads()
    assert len(coders) > 1
    try:
        torch.set_num_threads(2)
        assert explain_site(model, corpus, SITE, coders, METHODS, batch_contexts=5) == explained
        assert torch.get_num_threads() == 2
        broken = {name: coder for name, coder in coders.items()}
        name = list(coders)[-1]
        broken[name] = type(coders[name])(coders[name].cfg)
        with torch.no_grad():
            broken[name].W_enc.fill_(torch.nan)
        with pytest.raises(BadInput, match="not finite"):
            explain_site(model, corpus, SITE, broken, METHODS, batch_contexts=5)
    finally:
        torch.set_num_threads(threads)


def test_codes_in_pieces_are_the_same_codes(model, corpus, coders, explained, monkeypatch):
    monkeypatch.setattr("sae_lib.explain.run._CHUNK_CODES", 1)
    pieces = explain_site(model, corpus, SITE, coders, METHODS, batch_contexts=5)
    for name, found in explained.items():
        assert [(r.latent, r.document, r.position) for r in pieces[name].examples] == [
            (r.latent, r.document, r.position) for r in found.examples
        ]


def test_a_method_that_does_not_apply_is_named_with_its_reason(model, corpus):
    coder = TopKConfig(d_in=16, d_sae=8, k=2, aux_k=4).build()
    found = explain_site(model, corpus, "mlp_act.0", {"a": coder}, METHODS)["a"]
    assert "residual stream" in found.not_applicable["vocab_proj"]
    assert {row.method for row in found.explanations} == {"max_act"}


def test_labels_come_from_the_most_trusted_method(explained):
    for found in explained.values():
        said = {row.latent: row for row in found.explanations if row.method == "max_act"}
        for row in found.latents:
            if row.latent in said and said[row.latent].keywords:
                assert row.label == ", ".join(said[row.latent].keywords[:3])


def test_progress_ends_where_it_said(model, corpus, coders):
    seen = []
    explain_site(model, corpus, SITE, coders, [], on_progress=lambda *at: seen.append(at))
    assert seen[-1] == (2 * corpus.num_contexts, 2 * corpus.num_contexts)
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_method_is_read_from_its_name_or_from_a_mapping():
    assert read_explainer("max_act") == MaxActConfig()
    assert read_explainer({"method": "max_act", "num_keywords": 3}).num_keywords == 3
    with pytest.raises(UnknownName, match=r"'maxact'.*Did you mean 'max_act'\?"):
        read_explainer("maxact")
    with pytest.raises(BadInput, match=r"explain.num_keyword\b.*num_keywords"):
        read_explainer({"method": "max_act", "num_keyword": 3})


def test_every_method_says_what_it_is_and_where_it_comes_from():
    assert set(EXPLAINERS) >= {"max_act", "vocab_proj"}
    for config in EXPLAINERS.values():
        assert config.summary
        assert config.papers
        assert all(field.description for field in config.model_fields.values())
