import pytest
import torch

from sae_lib.explain import explain_site
from sae_lib.explain.examples import ExamplesConfig
from sae_lib.explain.max_act import MaxActConfig
from sae_lib.explain.near_miss import propose
from sae_lib.saes.topk import TopKConfig
from sae_lib.warehouse.tables import table
from sae_lib.warehouse.write import Provenance, to_frame

SITE = "resid_post.0"
SHOWN = ExamplesConfig(
    num_examples=4, radius=2, num_intervals=3, per_interval=2, num_silent=3, num_near_misses=4
)
METHODS = [MaxActConfig(examples=SHOWN)]


@pytest.fixture(scope="module")
def coder():
    return TopKConfig(d_in=8, d_sae=32, k=3, aux_k=4).build()


@pytest.fixture(scope="module")
def truth(model, corpus, coder):
    """Codes of every kept token, by hand."""
    held = corpus.held
    with torch.no_grad():
        return coder.encode(model.capture(held.tokens, [SITE])[SITE]) * held.keep.unsqueeze(-1)


@pytest.fixture(scope="module")
def found(model, corpus, coder):
    return explain_site(model, corpus, SITE, {"a": coder}, METHODS, batch_contexts=5)["a"]


def place_of(corpus, row) -> tuple[int, int]:
    at = (corpus.held.document == row.document) & (corpus.held.position == row.position)
    context, position = at.nonzero()[0].tolist()
    return context, position


def test_the_strongest_come_first_and_each_kind_is_there(found):
    kinds = [row.kind for row in found.examples]
    first_other = next(i for i, kind in enumerate(kinds) if kind != "top")
    assert set(kinds[first_other:]) == {"quantile", "silent", "near_miss"}
    tops = [row for row in found.examples if row.kind == "top"]
    assert [row.latent for row in tops] == sorted(row.latent for row in tops)


def test_all_show_what_the_latent_does_there(found, truth, corpus, model):
    held = corpus.held
    for row in found.examples:
        context, centre = place_of(corpus, row)
        places = [
            p
            for p in range(max(0, centre - 2), min(corpus.context, centre + 3))
            if held.document[context, p] == row.document
        ]
        wanted = truth[context, places, row.latent].tolist()
        assert row.activations == pytest.approx(wanted, abs=1e-5)
        assert places[row.peak] == centre
        assert row.max_activation == row.activations[row.peak]
        shown = [model.tokenizer.decode([t]) for t in held.tokens[context, places].tolist()]
        assert row.tokens == shown


def test_an_example_lies_in_its_interval_and_shares_are_those_of_the_corpus(found, truth):
    rows = [row for row in found.examples if row.kind == "quantile"]
    assert {row.interval for row in rows} == {0, 1, 2}
    for row in rows:
        own = truth[..., row.latent]
        own = own[own > 0]
        assert row.low <= row.max_activation <= row.high
        inside = (own >= row.low) & ((own < row.high) | (row.interval == 2))
        assert row.share == pytest.approx(float(inside.double().mean()), abs=1e-6)


def test_silent_examples_are_in_contexts_without_the_latent(found, truth, corpus):
    rows = [row for row in found.examples if row.kind == "silent"]
    for row in rows:
        context, _ = place_of(corpus, row)
        assert truth[context, :, row.latent].max() == 0
        assert (row.interval, row.low, row.share, row.other) == (None,) * 4


def test_at_a_near_miss_the_other_fires_and_the_latent_does_not(found, truth, corpus):
    near = {(row.latent, row.other) for row in found.pairs}
    rows = [row for row in found.examples if row.kind == "near_miss"]
    for row in rows:
        context, centre = place_of(corpus, row)
        assert (row.latent, row.other) in near
        assert truth[context, centre, row.other] > 0
        assert max(row.activations) == 0
    for latent in {row.latent for row in rows}:
        assert sum(row.latent == latent for row in rows) <= SHOWN.num_near_misses
        ranks = [row.rank for row in rows if row.latent == latent]
        assert ranks == list(range(len(ranks)))


def test_partners_are_those_of_brute_force(found, truth, corpus):
    on = (truth[corpus.held.keep] > 0).double()
    both, fired = on.T @ on, on.sum(0)
    for row in found.pairs:
        if row.kind == "cofire":
            n = both[row.latent, row.other]
            assert row.num_tokens == n
            assert row.share == pytest.approx(float(n / fired[row.latent]))
            assert row.value == pytest.approx(float(n / (fired[row.latent] + fired[row.other] - n)))
            assert row.is_exact
        else:
            assert (row.num_tokens, row.share, row.lift, row.is_exact) == (None,) * 4


def test_histograms_count_every_token_on_which_a_latent_fires(found, truth):
    for row in found.latents:
        own = truth[..., row.latent]
        own = own[own > 0]
        if not len(own):
            assert row.histogram is row.histogram_edges is row.std_activation is None
            continue
        assert len(row.histogram_edges) == len(row.histogram) + 1
        assert sum(row.histogram) == len(own)
        assert row.histogram[0] > 0
        assert row.histogram[-1] > 0
        low, high = row.histogram_edges[-2:]
        assert low <= row.max_activation < high
        assert row.std_activation == pytest.approx(float(own.double().std(correction=0)), rel=1e-4)


def test_reading_again_gives_what_the_log_gives(model, corpus, coder, found, monkeypatch):
    monkeypatch.setattr("sae_lib.explain.run._LOG_BYTES", 0)
    again = explain_site(model, corpus, SITE, {"a": coder}, METHODS, batch_contexts=5)["a"]
    assert len(again.examples) == len(found.examples)
    for mine, theirs in zip(again.examples, found.examples, strict=True):
        assert mine._replace(activations=[], max_activation=0) == theirs._replace(
            activations=[], max_activation=0
        )
        assert mine.activations == pytest.approx(theirs.activations, abs=1e-5)
    assert again.pairs == found.pairs


def test_latents_in_pieces_give_the_same_rows(model, corpus, coder, found, monkeypatch):
    monkeypatch.setattr("sae_lib.explain.run._CHUNK_LATENTS", 5)
    pieces = explain_site(model, corpus, SITE, {"a": coder}, METHODS, batch_contexts=5)["a"]
    assert pieces.latents == found.latents
    assert [row for row in pieces.examples if row.kind == "top"] == [
        row for row in found.examples if row.kind == "top"
    ]
    assert sorted(pieces.examples, key=repr) == sorted(found.examples, key=repr)
    assert pieces.pairs == found.pairs


def test_a_bare_config_gives_the_strongest_and_nothing_else(model, corpus, coder, found):
    methods = [MaxActConfig(examples=SHOWN.bare())]
    bare = explain_site(model, corpus, SITE, {"a": coder}, methods, batch_contexts=5)["a"]
    assert bare.examples == [row for row in found.examples if row.kind == "top"]
    assert list(bare.pairs) == []


@pytest.mark.parametrize("name", ["latents", "examples", "latent_pairs"])
def test_rows_fit_their_tables(found, name):
    rows = {"latents": found.latents, "examples": found.examples, "latent_pairs": found.pairs}
    cell = {"experiment": "e", "site": SITE, "variant": "a"}
    frame = to_frame(table(name), cell, rows[name], Provenance("m", "f"))
    assert len(frame) == len(rows[name]) > 0


def test_the_strongest_place_of_each_neighbour_comes_before_the_second_of_any():
    neighbours = torch.tensor([[4, 7, -1]])
    strongest = torch.tensor([[[10, 11], [10, 12], [13, 14]]])
    found = propose(neighbours, strongest)
    assert found.row.tolist() == [[10, -1, -1, 11, 12, -1]]
    assert found.other.tolist() == [[4, -1, -1, 4, 7, -1]]
