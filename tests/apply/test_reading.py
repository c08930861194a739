import pytest
import torch

from sae_lib.apply.reading import encode_texts, encoder, pool_texts
from sae_lib.errors import BadInput

SITE = "resid_post.0"
TEXTS = ["w01 w02 w03 w04 w05", "w06", "w07 w08 w09"]


def by_hand(model, text: str) -> torch.Tensor:
    """Activations of the words of one text, read alone behind a BOS."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return model.capture(torch.tensor([[1, *ids]]), [SITE])[SITE][0, 1:]


def test_texts_get_a_bos_and_padding_and_neither_is_kept(model):
    batch = encode_texts(model, TEXTS, max_tokens=5)
    assert batch.tokens.tolist() == [[1, 5, 6, 7, 8], [1, 10, 0, 0, 0], [1, 11, 12, 13, 0]]
    assert batch.mask.sum(1).tolist() == [5, 2, 4]
    assert batch.keep.sum(1).tolist() == [4, 1, 3]
    left = encode_texts(model, TEXTS, max_tokens=5, padding_side="left")
    assert left.tokens[1].tolist() == [0, 0, 0, 1, 10]
    assert left.keep[1].tolist() == [False, False, False, False, True]


@pytest.mark.parametrize("batch_texts", [1, 2, 3])
def test_padding_and_company_change_no_pooled_value(model, coders, batch_texts):
    encoders = {name: encoder(coder) for name, coder in coders.items()}
    mean, largest = (
        pool_texts(model, SITE, TEXTS, encoders, pool=pool, batch_texts=batch_texts)
        for pool in ("mean", "max")
    )
    for i, text in enumerate(TEXTS):
        x = by_hand(model, text)
        torch.testing.assert_close(mean.x_mean[i].float(), x.mean(0))
        torch.testing.assert_close(mean.norm_sum[i].float(), x.norm(dim=1).sum())
        assert mean.num_tokens[i] == len(x)
        for name, coder in coders.items():
            z = coder.encode(x)
            torch.testing.assert_close(mean.z[name][i], z.mean(0))
            torch.testing.assert_close(largest.z[name][i], z.max(0).values)


def test_a_code_that_is_not_zero_at_zero_does_not_leak_from_padding(model):
    shifted = {"ones": lambda x: torch.ones(len(x), 2)}
    found = pool_texts(model, SITE, TEXTS, shifted, pool="mean")
    assert torch.equal(found.z["ones"], torch.ones(3, 2))
    assert found.l0["ones"] == 2


def test_codes_in_pieces_are_the_same(model, coders, monkeypatch):
    encoders = {"a": encoder(coders["topk-s0"])}
    whole = pool_texts(model, SITE, TEXTS, encoders, pool="max")
    monkeypatch.setattr("sae_lib.apply.reading._CHUNK_CODES", 16)
    pieces = pool_texts(model, SITE, TEXTS, encoders, pool="max")
    torch.testing.assert_close(pieces.z["a"], whole.z["a"])
    assert pieces.l0 == whole.l0


def test_the_model_runs_once_per_batch_for_all_coders(model, coders, monkeypatch):
    calls = []
    capture = type(model).capture
    monkeypatch.setattr(
        type(model), "capture", lambda self, *a, **k: calls.append(1) or capture(self, *a, **k)
    )
    encoders = {name: encoder(coder) for name, coder in coders.items()}
    pool_texts(model, SITE, TEXTS, encoders, pool="mean", batch_texts=2)
    assert len(calls) == 2


def test_a_text_without_tokens_is_named(model):
    with pytest.raises(BadInput, match="text 1 has no token"):
        encode_texts(model, ["w01", " "], max_tokens=4)
