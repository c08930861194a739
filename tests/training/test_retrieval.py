"""BM25, dense retrieval and TracIn by hand, and which contexts they choose."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.harvest import capture_rows, harvest
from sae_lib.activations.store import ActivationStore
from sae_lib.activations.tokens import Tokens, build_tokens
from sae_lib.errors import BadInput, MissingFile, UnknownName
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.standard import StandardConfig
from sae_lib.saes.topk import TopKConfig
from sae_lib.training.objectives.specialized import SpecializedConfig
from sae_lib.training.retrieval import best, choose_contexts, dense, seed_texts, texts_of
from sae_lib.training.retrieval.bm25 import bm25_scores, words_of
from sae_lib.training.retrieval.dense import dense_scores, pooled
from sae_lib.training.retrieval.tracin import (
    Checkpoint,
    TokensOf,
    mean_gradient,
    products,
    read_texts,
    stored,
    streamed,
    tracin_scores,
)

SITE = "resid_post.1"
CONTEXTS = ["the hive needs a smoker", "the dog saw the cat", "a hive and a hive", "kiln kiln dog"]


# --- the choice ---


def test_the_best_ascend_and_of_equal_scores_the_lower_number_goes_first():
    chosen = best(np.array([1.0, 3.0, 2.0, 3.0, 2.0]), 3)
    assert chosen.contexts.tolist() == [1, 2, 3]
    assert chosen.scores.tolist() == [3, 2, 3]
    assert chosen.contexts.dtype == np.int64
    again = best(np.array([5.0, 5.0, 6.0]), 2, np.array([10, 20, 30]))
    assert again.contexts.tolist() == [10, 30]
    for count in (0, 4):
        with pytest.raises(BadInput, match="between 1 and 3"):
            best(np.ones(3), count)
    with pytest.raises(BadInput, match=r"value 7.*no score"):
        best(np.array([1.0, math.nan]), 1, np.array([3, 7]))


# --- BM25 ---


def by_hand(texts, seeds, k1=1.5, b=0.75):
    found = [text.split() for text in texts]
    avg = sum(map(len, found)) / len(found)
    scores = []
    for words in found:
        score = 0.0
        for word in " ".join(seeds).split():
            df = sum(word in other for other in found)
            tf = words.count(word)
            idf = math.log(1 + (len(found) - df + 0.5) / (df + 0.5))
            score += idf * tf * (k1 + 1) / (tf + k1 * (1 - b + b * len(words) / avg))
        scores.append(score / len(seeds))
    return scores


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (1.2, 0.0), (2.0, 1.0)])
def test_bm25_is_its_formula(k1, b):
    seeds = ["hive smoker hive", "the dog nowhere"]
    got = bm25_scores(CONTEXTS, seeds, k1=k1, b=b)
    np.testing.assert_allclose(got, by_hand(CONTEXTS, seeds, k1, b), rtol=1e-12)


def test_bm25_by_hand_to_the_digit():
    # one of four contexts has it, twice in 3 words; they have 4.5 on average
    expected = math.log(1 + 3.5 / 1.5) * 2 * 2.5 / (2 + 1.5 * (0.25 + 0.75 * 3 / 4.5))
    assert bm25_scores(CONTEXTS, ["kiln"])[3] == pytest.approx(expected)


def test_words_are_compared_whatever_their_case_and_signs():
    assert words_of("The hive's (new) Bee_1!") == ["the", "hive", "s", "new", "bee_1"]
    assert bm25_scores(["Hive.", "dog"], ["HIVE"])[0] > 0


@pytest.mark.parametrize("seeds", [["zebra"], ["..."], []])
def test_seeds_without_a_word_of_the_corpus_are_refused(seeds):
    with pytest.raises(BadInput, match=r"words|word of the seeds"):
        bm25_scores(CONTEXTS, seeds)


# --- TracIn ---


def gradients(coder, x):
    """Of the mean squared error of one text, by autograd, latents held fixed."""
    coder.zero_grad()
    z = coder.encode(x).detach()
    (x - coder.decode(z)).square().sum(-1).mean().backward()
    return torch.cat([coder.W_dec.grad.flatten(), coder.b_dec.grad])


@pytest.mark.parametrize("cfg", [TopKConfig.example(), StandardConfig.example()])
def test_products_of_gradients_are_those_of_autograd(cfg, mixtures):
    coder = cfg.build().double()
    x = mixtures(40).double()
    sizes = [7, 1, 12, 20]
    owner = torch.repeat_interleave(torch.arange(4), torch.tensor(sizes))
    texts = x.split(sizes)
    seeds = TokensOf(mixtures(9, seed=1).double(), torch.tensor([0] * 4 + [1] * 5), 2)
    aim = (gradients(coder, seeds.x[:4]) + gradients(coder, seeds.x[4:])) / 2
    expected = [float(gradients(coder, text) @ aim) for text in texts]
    with torch.no_grad():
        aim_W, aim_b = mean_gradient(coder, [seeds])
        got = products(coder, TokensOf(x, owner, 4), aim_W, aim_b)
    torch.testing.assert_close(torch.cat([aim_W.flatten(), aim_b]), aim)
    np.testing.assert_allclose(got, expected, rtol=1e-10)


def test_one_latent_and_one_token_by_hand():
    coder = StandardConfig(d_in=1, d_sae=1, l1=0.0).build()
    with torch.no_grad():
        for parameter, value in zip(
            (coder.W_enc, coder.W_dec, coder.b_enc, coder.b_dec), (0.5, 1.0, 0.0, 0.0), strict=True
        ):
            parameter.fill_(value)
    # x = 2: z = 1, e = 1, g = (-2, -2);  x = 4: z = 2, e = 2, g = (-8, -4); product 16 + 8
    seed = TokensOf(torch.tensor([[2.0]]), torch.tensor([0]), 1)
    other = TokensOf(torch.tensor([[4.0]]), torch.tensor([0]), 1)
    twice = [Checkpoint(coder, 0.1), Checkpoint(coder, 0.4)]
    scores = tracin_scores(twice, [seed], lambda contexts: other, np.array([5]))
    assert scores.tolist() == pytest.approx([0.5 * 24])


def test_chunks_change_nothing_and_a_text_without_tokens_scores_0(mixtures, monkeypatch):
    coder, x = TopKConfig.example().build(), mixtures(60)
    sizes = torch.tensor([5, 0, 7, 8] * 3)

    def read(contexts):
        starts = (sizes.cumsum(0) - sizes)[contexts]
        rows = torch.cat([torch.arange(s, s + n) for s, n in zip(starts, sizes[contexts])])  # noqa: B905
        owner = torch.repeat_interleave(torch.arange(len(contexts)), sizes[contexts])
        return TokensOf(x[rows], owner, len(contexts))

    seeds = [TokensOf(x[:5], torch.zeros(5, dtype=torch.int64), 1)]
    whole = tracin_scores([Checkpoint(coder)], seeds, read, np.arange(12))
    monkeypatch.setattr("sae_lib.training.retrieval.tracin.CHUNK_CONTEXTS", 3)
    chunked = tracin_scores([Checkpoint(coder)], seeds, read, np.arange(12))
    np.testing.assert_allclose(chunked, whole, rtol=1e-5)
    assert not whole[1::4].any()
    assert whole[0] > 0  # a gradient's product with itself
    with pytest.raises(BadInput, match="at least one seed"):
        tracin_scores([Checkpoint(coder)], [], read, np.arange(12))


def test_pooling_is_the_mean_over_kept_tokens():
    x = torch.arange(12.0).view(2, 3, 2)
    keep = torch.tensor([[True, False, True], [False, False, False]])
    assert pooled(x, keep).tolist() == [[2, 3], [0, 0]]


# --- on the world ---


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """The bundled model, and a corpus in which every eighth document is about archery."""
    folder = tmp_path_factory.mktemp("world")
    others = [seed_texts(concept=name, count=12) for name in ("tea", "pottery", "puppetry")]
    common = [text for group in others for text in group]
    rare = seed_texts(concept="archery", count=40)
    texts = [rare[i // 8] if i % 8 == 0 else common[i % len(common)] for i in range(160)]
    (folder / "corpus.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    model = load_model(ModelConfig(id="world"))
    cfg = CorpusConfig(
        id=str(folder / "corpus.jsonl"), tokens=6000, context=64, eval_tokens=300, pack="document"
    )
    build_tokens(cfg, model.tokenizer, model.info, folder / "tokens")
    split = Tokens.open(folder / "tokens").split("train")
    harvest(model, split, [SITE], folder / "h", batch_contexts=16)
    is_rare = np.array(["archery" in text for text in texts_of(split, model.tokenizer)])
    assert 5 < is_rare.sum() < split.num_contexts / 4
    return model, split, ActivationStore.open(folder / "h"), is_rare, rare[20:]


def test_texts_of_contexts_are_what_was_tokenised_without_special_tokens(world):
    model, split, *_ = world
    texts = list(texts_of(split, model.tokenizer))
    assert len(texts) == split.num_contexts
    assert all("<" not in text for text in texts)
    assert list(texts_of(split, model.tokenizer, np.array([3, 1]))) == [texts[3], texts[1]]


@pytest.mark.model
@pytest.mark.parametrize("how", ["bm25", "dense"])
@pytest.mark.parametrize("rerank", ["none", "tracin"])
def test_contexts_of_the_subdomain_are_found(world, how, rerank):
    model, split, store, is_rare, seeds = world
    count = int(is_rare.sum())
    cfg = SpecializedConfig(retrieve=how, concept="archery", contexts=count, rerank=rerank,
                            candidates_per_context=2)  # fmt: skip
    coder = TopKConfig(d_in=store.width(SITE), d_sae=256, k=8).build()
    x = store.contexts(SITE, np.arange(store.num_contexts)).x.float()
    coder.initialise_(x)

    def choose():
        return choose_contexts(cfg, split, model, seeds, site=SITE, read=stored(store, SITE),
                               checkpoints=[Checkpoint(coder)])  # fmt: skip

    chosen = choose()
    again = choose()
    assert np.array_equal(chosen.contexts, again.contexts)
    assert np.array_equal(chosen.scores, again.scores)
    assert (np.diff(chosen.contexts) > 0).all()
    share = is_rare[chosen.contexts].mean()
    assert share > (0.9 if rerank == "none" else 2 * is_rare.mean())


@pytest.mark.model
def test_dense_scores_are_centred_cosines_of_mean_hidden_states(world, monkeypatch):
    model, split, _, _, seeds = world
    site = f"resid_post.{model.num_layers // 2}"
    means = []
    for context in range(split.num_contexts):
        values, _ = capture_rows(model, split, [site], [context])
        means.append(values[site].double().mean(0))
    centre = torch.stack(means).mean(0)
    aims = []
    for text in seeds[:3]:
        tokens, mask = model.encode_text([text], max_tokens=64, padding_side="right")
        x = model.capture(tokens, [site], mask=mask)[site][0]
        keep = [int(token) not in model.special_ids for token in tokens[0]]
        aims.append(x[keep].double().mean(0) - centre)
    expected = [
        np.mean([float(functional.cosine_similarity(mean - centre, aim, dim=0)) for aim in aims])
        for mean in means
    ]
    got = dense_scores(split, model, seeds[:3])
    np.testing.assert_allclose(got, expected, atol=2e-4)
    monkeypatch.setattr(dense, "BATCH_CONTEXTS", 7)
    np.testing.assert_allclose(dense_scores(split, model, seeds[:3]), got, atol=2e-4)


@pytest.mark.model
def test_an_encoder_reads_texts_at_its_last_layer(world):
    model, split, _, is_rare, seeds = world
    got = dense_scores(split, model, seeds, encoder=model)
    assert is_rare[best(got, int(is_rare.sum())).contexts].mean() > 0.9
    assert not np.allclose(got, dense_scores(split, model, seeds), atol=1e-3)


@pytest.mark.model
def test_contexts_read_from_the_model_are_those_of_the_store(world):
    model, split, store, *_ = world
    chosen = np.array([2, 3, 11])
    one, other = stored(store, SITE)(chosen), streamed(model, split, SITE)(chosen)
    assert torch.equal(one.owner, other.owner)
    assert one.num_texts == other.num_texts == 3
    torch.testing.assert_close(one.x, other.x, rtol=1e-2, atol=1e-2)
    (texts,) = read_texts(model, SITE, list(texts_of(split, model.tokenizer, chosen)))
    assert torch.equal(texts.owner, one.owner)
    torch.testing.assert_close(texts.x, other.x, rtol=1e-3, atol=1e-3)


@pytest.mark.model
def test_what_cannot_be_chosen_is_refused_before_anything_is_read(world):
    model, split, _, _, seeds = world
    bm25 = SpecializedConfig(retrieve="bm25", concept="archery", contexts=3)
    for cfg, told in (
        (SpecializedConfig(), "nothing is retrieved"),
        (bm25.but(contexts=10**6), f"has {split.num_contexts} contexts"),
        (bm25.but(rerank="tracin"), "needs a general SAE"),
    ):
        with pytest.raises(BadInput, match=told):
            choose_contexts(cfg, split, model, seeds)
    with pytest.raises(BadInput, match="no seed"):
        choose_contexts(bm25, split, model, [])


# --- seeds ---


def test_seeds_of_a_file_and_of_the_world(tmp_path: Path):
    file = tmp_path / "seeds.jsonl"
    file.write_text('{"note": "one"}\n{"note": ""}\n{"note": "two"}\n{"note": "three"}\n')
    assert seed_texts(queries=file, count=2, column="note") == ["one", "two"]
    with pytest.raises(BadInput, match="column"):
        seed_texts(queries=file, count=2)
    with pytest.raises(MissingFile):
        seed_texts(queries=tmp_path / "none.txt", count=2)
    notes = seed_texts(concept="puppetry", count=5)
    assert notes == seed_texts(concept="puppetry", count=5)
    assert len(set(notes)) == 5
    assert all(note.startswith("notes on puppetry .") for note in notes)
    with pytest.raises(UnknownName, match="puppetry"):
        seed_texts(concept="pupetry", count=5)
    for both in ({}, {"queries": file, "concept": "tea"}):
        with pytest.raises(BadInput, match="exactly one"):
            seed_texts(count=1, **both)
