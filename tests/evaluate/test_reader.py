import pytest
import torch

from sae_lib.errors import BadInput
from sae_lib.evaluate.reader import TextReader
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model

TEXTS = ["the dog saw a bird .", "the review of the lamp :", "a dog ."]
SITE = "resid_post.1"


@pytest.fixture(scope="module")
def model():
    return load_model(ModelConfig(id="world"))


@pytest.fixture
def reader(model):
    with TextReader(model, SITE, batch_texts=2) as found:
        yield found


def test_rows_are_what_the_model_holds_without_bos_and_padding(model, reader):
    found = reader.read(TEXTS)
    for i, text in enumerate(TEXTS):
        ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        tokens = torch.tensor([[model.tokenizer.bos_token_id, *ids]])
        wanted = model.capture(tokens, [SITE])[SITE][0, 1:].float()
        own = found.text == i
        torch.testing.assert_close(found.x[own], wanted, atol=1e-5, rtol=1e-5)
        assert found.token[own].tolist() == ids
        assert found.position[own].tolist() == list(range(1, len(ids) + 1))
    assert found.length.tolist() == [len(model.tokenizer.tokenize(text)) for text in TEXTS]


def test_equal_texts_are_read_once(reader):
    assert reader.read(TEXTS).x is reader.read(list(TEXTS)).x
    assert reader.read(TEXTS[::-1]).x is not reader.read(TEXTS).x


@pytest.mark.parametrize("chunk", [1, 10_000])
def test_pooling_is_over_the_tokens_of_each_text(reader, monkeypatch, chunk):
    monkeypatch.setattr("sae_lib.evaluate.reader.CHUNK_ELEMENTS", chunk)
    found = reader.read(TEXTS)
    own = [found.x[found.text == i] for i in range(len(TEXTS))]

    def encode(x):
        return x[:, :5] - 3

    for pool, wanted in {
        "mean": [x[:, :5].mean(0) - 3 for x in own],
        "max": [x[:, :5].amax(0) - 3 for x in own],
        "last": [x[-1, :5] - 3 for x in own],
    }.items():
        torch.testing.assert_close(found.pooled(encode, 5, pool), torch.stack(wanted))
    wanted = torch.stack([x.double().mean(0) for x in own])
    torch.testing.assert_close(found.pooled_x(), wanted, atol=1e-5, rtol=1e-5)


def test_no_texts_and_empty_texts_are_refused(reader):
    with pytest.raises(BadInput, match="no texts"):
        reader.read([])
    with pytest.raises(BadInput, match="text"):
        reader.read(["a dog .", ""])
