from itertools import islice

from transformers import AutoTokenizer

from sae_lib.synthetic.word_level import UNK
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents, text
from sae_lib.synthetic.world.tokenizer import (
    BOS,
    EOS,
    build_tokenizer,
    encode,
    save_tokenizer,
    token_stream,
    vocabulary,
)

CFG = WorldConfig()


def test_special_tokens_come_first_and_the_size_is_moderate():
    assert [vocabulary()[t] for t in ("<pad>", "<bos>", "<eos>", "<unk>")] == [0, 1, 2, 3]
    assert sorted(vocabulary().values()) == list(range(len(vocabulary())))
    assert 1500 <= len(vocabulary()) <= 3000


def test_text_survives_a_round_trip_through_a_saved_tokenizer(tmp_path):
    save_tokenizer(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    for doc in documents(CFG, 0, 200):
        ids = tokenizer(text(doc))["input_ids"]
        assert ids == encode(doc.tokens)
        assert UNK not in ids
        assert tokenizer.decode(ids) == text(doc)
    assert (tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1, 2)


def test_words_from_elsewhere_are_unknown():
    assert build_tokenizer()("the zeppelin")["input_ids"] == [vocabulary()["the"], UNK]


def test_the_stream_is_the_documents_between_their_marks():
    docs = list(documents(CFG, 7, 10))
    drawn = list(islice(token_stream(CFG, 7), 3))
    assert drawn == [(doc.index + 1, [BOS, *encode(doc.tokens), EOS]) for doc in docs]
