"""Packing by hand, what is kept, and what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from sae_lib.activations._packing import ContextWriter, padded_document, whole_document
from sae_lib.activations.corpus import CorpusConfig, split_documents
from sae_lib.activations.tokens import Tokens, build_tokens, special_ids
from sae_lib.errors import BadInput, CorruptData

PAD, BOS, EOS, UNK = range(4)
SIDES = ("train", "eval")


def all_rows(split):
    return split.rows(range(split.num_contexts))


@pytest.fixture
def two_documents(write_corpus):
    """Six words and three; with BOS and EOS they are eight and five tokens long."""
    path = write_corpus(["w0 w1 w2 w3 w4 w5", "w6 w7 w8"] * 30)
    return CorpusConfig(id=str(path), tokens=320, context=8, eval_tokens=80)


def test_documents_run_on_and_are_cut_at_the_context(tmp_path):
    special = np.array([PAD, BOS, EOS], np.int32)
    writer = ContextWriter(tmp_path, "train", context=5, wanted_contexts=9, shard_tokens=10)
    for number, ids in enumerate([[10, 11, 12, 13], [20], [30, 31, 32, 33]]):
        writer.add(whole_document(ids, number, bos=BOS, eos=EOS, special=special))
    writer.close()
    assert writer.num_contexts == 3
    assert (writer.num_kept, writer.documents) == (9, 3)
    assert writer.contexts_per_file == [2, 1]
    first, second = (load_file(tmp_path / record.name) for record in writer.records)
    tokens = [[BOS, 10, 11, 12, 13], [EOS, BOS, 20, EOS, BOS], [30, 31, 32, 33, EOS]]
    assert first["tokens"].tolist() == tokens[:2]
    assert second["tokens"].tolist() == tokens[2:]
    assert first["document"].tolist() == [[0] * 5, [0, 1, 1, 1, 2]]
    assert first["position"].tolist() == [[0, 1, 2, 3, 4], [5, 0, 1, 2, 0]]
    assert second["position"].tolist() == [[1, 2, 3, 4, 5]]
    assert first["keep"].tolist() == [[False, *[True] * 4], [False, False, True, False, False]]
    assert second["keep"].tolist() == [[*[True] * 4, False]]


def test_a_tail_and_what_nobody_asked_for_are_dropped(tmp_path):
    writer = ContextWriter(tmp_path, "train", context=4, wanted_contexts=2, shard_tokens=4)
    special = np.array([], np.int32)
    writer.add(whole_document([5, 6, 7], 0, bos=None, eos=None, special=special))
    assert not writer.is_full
    writer.add(whole_document(list(range(10, 30)), 1, bos=None, eos=None, special=special))
    assert writer.is_full
    writer.close()
    found = [load_file(tmp_path / record.name)["tokens"].tolist() for record in writer.records]
    assert found == [[[5, 6, 7, 10]], [[11, 12, 13, 14]]]
    tail = ContextWriter(tmp_path, "eval", context=4, wanted_contexts=5)
    tail.add(whole_document([5, 6, 7, 8, 9], 0, bos=None, eos=None, special=special))
    tail.close()
    assert (tail.num_contexts, tail.num_positions) == (1, 5)


def test_a_document_per_context_is_cut_in_chunks_and_padded():
    piece = padded_document(
        [10, 11, 12, 13],
        7,
        context=5,
        prefix=[BOS],
        suffix=[EOS],
        pad=PAD,
        special=np.array([PAD, BOS, EOS]),
    )
    assert piece.tokens.tolist() == [BOS, 10, 11, 12, EOS, BOS, 13, EOS, PAD, PAD]
    assert piece.document.tolist() == [7] * 8 + [-1, -1]
    assert piece.position.tolist() == [0, 1, 2, 3, 4, 5, 6, 7, -1, -1]
    assert np.flatnonzero(piece.keep).tolist() == [1, 2, 3, 6]


def test_a_causal_model_gets_documents_between_bos_and_eos(
    two_documents, tokenizer, make_info, tmp_path
):
    summary = build_tokens(two_documents, tokenizer, make_info(), tmp_path / "t")
    assert summary.pack == "concat"
    for name in ("train", "eval"):
        rows = all_rows(Tokens.open(tmp_path / "t").split(name))
        stream = []
        for document in split_documents(two_documents):
            if document.split == name:
                words = [int(word[1:]) + 4 for word in document.text.split()]
                stream += [BOS, *words, EOS]
        found = rows.tokens.reshape(-1).tolist()
        assert found == stream[: len(found)]
        assert torch.equal(rows.keep, rows.tokens >= 3)


def test_a_tokenizer_that_adds_bos_itself_does_not_give_two(
    two_documents, tokenizer, bos_adding_tokenizer, make_info, tmp_path
):
    build_tokens(two_documents, tokenizer, make_info(), tmp_path / "a")
    build_tokens(two_documents, bos_adding_tokenizer, make_info(), tmp_path / "b")
    a, b = (Tokens.open(tmp_path / name).split("train") for name in "ab")
    assert a.digest == b.digest


def test_one_token_that_is_both_bos_and_eos_stands_once_between_documents(
    two_documents, make_tokenizer, make_info, tmp_path
):
    tokenizer = make_tokenizer(bos_token="<eos>", eos_token="<eos>")
    build_tokens(two_documents, tokenizer, make_info(), tmp_path / "t")
    tokens = all_rows(Tokens.open(tmp_path / "t").split("train")).tokens.reshape(-1)
    ends = tokens == EOS
    assert ends.any()
    assert not (ends[1:] & ends[:-1]).any()


def test_an_encoder_gets_one_document_per_context_with_its_own_special_tokens(
    two_documents, encoder_tokenizer, make_info, tmp_path
):
    info = make_info(is_causal=False)
    summary = build_tokens(two_documents, encoder_tokenizer, info, tmp_path / "t")
    assert summary.pack == "document"
    split = Tokens.open(tmp_path / "t").split("train")
    rows = all_rows(split)
    assert (rows.tokens[:, 0] == BOS).all()
    for row, mask in zip(rows.tokens, split.attention_mask(range(split.num_contexts)), strict=True):
        real = row[mask].tolist()
        assert real[0] == BOS
        assert real[-1] == EOS
        assert real[1:-1] in ([4, 5, 6, 7, 8, 9], [10, 11, 12])
        assert (row[~mask] == PAD).all()
    assert torch.equal(rows.keep, rows.tokens >= 3)
    assert split.num_kept == int(rows.keep.sum())


def test_concatenated_contexts_have_no_padding_to_mask(tokens):
    split = tokens.split("train")
    assert split.attention_mask(range(split.num_contexts)).all()


def test_rows_come_in_the_order_they_were_asked_for_across_shards(tokens):
    split = tokens.split("train")
    assert len(tokens.summary.train.files) > 2
    chosen = torch.tensor([50, 3, 17, 3, 0, split.num_contexts - 1])
    rows, everything = split.rows(chosen), all_rows(split)
    for one, whole in zip(rows, everything, strict=True):
        assert torch.equal(one, whole[chosen])
    for contexts, batch in split.batches(7):
        assert torch.equal(batch.tokens, everything.tokens[list(contexts)])
    assert split.kept_per_context.tolist() == everything.keep.sum(1).tolist()
    places = everything.keep.reshape(-1).nonzero().squeeze(1)
    assert split.kept_rows(range(split.num_contexts)).tolist() == places.tolist()
    inner = places[(places >= 5 * 16) & (places < 40 * 16)]
    assert split.kept_rows(range(5, 40)).tolist() == inner.tolist()
    for wrong in ([-1], [split.num_contexts]):
        with pytest.raises(BadInput, match="numbered from 0 to"):
            split.rows(wrong)


def test_no_document_is_on_both_sides(tokens):
    sides = [set(all_rows(tokens.split(name)).document.unique().tolist()) for name in SIDES]
    assert not sides[0] & sides[1]


def test_the_summary_counts_what_is_there(tokens):
    for name in SIDES:
        mine, rows = tokens.summary.of(name), all_rows(tokens.split(name))
        assert mine.num_contexts == len(rows.tokens) == sum(mine.contexts_per_file)
        assert mine.num_kept == int(rows.keep.sum())
        assert mine.num_documents == len(rows.document.unique())
        assert mine.short == (mine.num_contexts * 16 < mine.wanted_tokens)


def test_wanted_tokens_are_reached_and_not_exceeded(
    write_corpus, documents, tokenizer, make_info, tmp_path
):
    cfg = CorpusConfig(id=str(write_corpus(documents)), tokens=161, context=16, eval_tokens=48)
    calls = []
    summary = build_tokens(
        cfg, tokenizer, make_info(), tmp_path / "t", on_progress=lambda *at: calls.append(at)
    )
    assert (summary.train.num_contexts, summary.eval.num_contexts) == (11, 3)
    assert not summary.train.short
    assert not summary.eval.short
    assert calls[-1] == (14 * 16, 14 * 16)


def test_a_corpus_with_fewer_tokens_than_asked_says_so(
    write_corpus, documents, tokenizer, make_info, tmp_path
):
    cfg = CorpusConfig(id=str(write_corpus(documents)), tokens=3000, context=16, eval_tokens=300)
    summary = build_tokens(cfg, tokenizer, make_info(), tmp_path / "t")
    assert summary.train.short
    assert 0 < summary.train.num_contexts < summary.train.wanted_tokens / 16
    assert json.loads((tmp_path / "t" / "tokens.json").read_text())["train"]["short"] is True


def test_the_share_of_unknown_tokens_is_counted(write_corpus, tokenizer, make_info, tmp_path):
    path = write_corpus(["w1 w2 what w3"] * 100)
    cfg = CorpusConfig(id=str(path), tokens=160, context=8, eval_tokens=80)
    summary = build_tokens(cfg, tokenizer, make_info(), tmp_path / "t")
    assert summary.unknown_share == 0.25


def test_special_ids_are_those_the_tokenizer_has(tokenizer, encoder_tokenizer, make_tokenizer):
    assert special_ids(tokenizer) == {PAD, BOS, EOS}
    assert special_ids(encoder_tokenizer) == {PAD, BOS, EOS}
    assert special_ids(make_tokenizer(mask_token="w3")) == {7}


def test_a_context_longer_than_the_models_is_refused(two_documents, tokenizer, make_info, tmp_path):
    with pytest.raises(BadInput, match=r"corpus\.context, value 8.*at most 7"):
        build_tokens(two_documents, tokenizer, make_info(max_context=7), tmp_path / "t")


def test_a_corpus_shorter_than_a_context_says_how_many_tokens_it_has(
    write_corpus, tokenizer, make_info, tmp_path
):
    cfg = CorpusConfig(id=str(write_corpus(["w1 w2 w3"])), tokens=100, context=8)
    with pytest.raises(BadInput, match=r"no training context of 8.*1 documents with 3 tokens"):
        build_tokens(cfg, tokenizer, make_info(), tmp_path / "t")


def test_a_corpus_without_a_held_out_context_says_what_to_change(
    write_corpus, tokenizer, make_info, tmp_path
):
    path = write_corpus([" ".join(["w1"] * 100)])
    cfg = CorpusConfig(id=str(path), tokens=10**6, context=8, eval_tokens=8)
    with pytest.raises(BadInput, match=r"no evaluation context of 8.*corpus\.eval_tokens"):
        build_tokens(cfg, tokenizer, make_info(), tmp_path / "t")


@pytest.mark.parametrize(("text", "made"), [("ж ш щ", "only unknown tokens"), ("", "no tokens")])
def test_a_tokenizer_that_knows_nothing_of_the_text_is_refused(
    write_corpus, tokenizer, make_tokenizer, make_info, tmp_path, text, made
):
    if not text:  # a tokenizer that finds nothing where there is something
        from tokenizers.normalizers import Replace

        tokenizer = make_tokenizer(bos_token="<bos>")
        tokenizer.backend_tokenizer.normalizer = Replace("x", "")
    cfg = CorpusConfig(id=str(write_corpus([text or "xxx"] * 50)), tokens=100, context=8)
    with pytest.raises(BadInput, match=rf"corpus\.id.*{made}"):
        build_tokens(cfg, tokenizer, make_info(), tmp_path / "t")


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(
    two_documents, tokenizer, make_info, tmp_path
):
    with pytest.raises(BadInput, match=r"id 12, and the model knows 10"):
        build_tokens(two_documents, tokenizer, make_info(vocab_size=10), tmp_path / "t")


def test_the_same_corpus_gives_the_same_bytes(two_documents, tokenizer, make_info, tmp_path):
    for name in ("a", "b"):
        build_tokens(two_documents, tokenizer, make_info(), tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_a_damaged_shard_is_noticed(tokens):
    shard = tokens.folder / tokens.summary.train.files[1].name
    whole = shard.read_bytes()
    tokens.verify()

    shard.write_bytes(whole[:-1])
    with pytest.raises(CorruptData, match=rf"{shard.name}.*bytes, not the {len(whole)}"):
        Tokens.open(tokens.folder)

    flipped = bytearray(whole)
    flipped[-5] ^= 1
    shard.write_bytes(flipped)
    with pytest.raises(CorruptData, match=rf"{shard.name}.*checksum"):
        Tokens.open(tokens.folder).verify()

    for place in range(8 + int.from_bytes(whole[:8], "little")):
        flipped = bytearray(whole)
        flipped[place] ^= 0x41
        shard.write_bytes(flipped)
        with pytest.raises(CorruptData, match=shard.name):
            Tokens.open(tokens.folder).split("train").rows([20])

    shard.unlink()
    with pytest.raises(CorruptData, match="missing"):
        Tokens.open(tokens.folder)


def test_a_damaged_summary_is_noticed(tokens):
    path = tokens.folder / "tokens.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "format_version": 2}))
    with pytest.raises(CorruptData, match=r"tokens\.json(?s:.)*format_version"):
        Tokens.open(tokens.folder)
    path.unlink()
    with pytest.raises(CorruptData, match=r"tokens\.json.*missing"):
        Tokens.open(tokens.folder)
