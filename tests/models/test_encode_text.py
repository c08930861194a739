"""Text to padded rows of tokens."""

import pytest
import torch

from sae_lib.errors import BadInput

TEXTS = ["w0 w1 w2", "w3"]


@pytest.mark.parametrize(
    ("side", "rows"),
    [("right", [[4, 5, 6], [7, 0, 0]]), ("left", [[4, 5, 6], [0, 0, 7]])],
)
def test_short_rows_are_padded_on_the_side_asked_for(tiny, side, rows):
    tokens, mask = tiny("llama").encode_text(TEXTS, max_tokens=9, padding_side=side)
    assert tokens.tolist() == rows
    assert torch.equal(mask, tokens != 0)
    assert mask.dtype == torch.bool


def test_long_texts_are_cut(tiny):
    tokens, mask = tiny("llama").encode_text(TEXTS, max_tokens=2, padding_side="right")
    assert tokens.tolist() == [[4, 5], [7, 0]]
    assert mask.tolist() == [[True, True], [True, False]]


@pytest.mark.parametrize(("texts", "says"), [([], "no text"), (["w0", ""], "Text 1 has no token")])
def test_a_text_without_tokens_is_named(tiny, texts, says):
    with pytest.raises(BadInput, match=says):
        tiny("llama").encode_text(texts, max_tokens=4, padding_side="left")


def test_special_ids_are_those_of_config_and_tokenizer(lm):
    assert lm.special_ids == frozenset({0, 1, 2})
