from itertools import islice, product
from math import exp, inf, isfinite, sqrt

import pytest
from pydantic import ValidationError

from sae_lib.errors import BadInput, UnknownName
from sae_lib.synthetic.formal.dyck import Dyck
from sae_lib.synthetic.formal.english import English
from sae_lib.synthetic.formal.expr import Expr
from sae_lib.synthetic.formal.language import (
    floor,
    formal_string,
    formal_strings,
    split_of_text,
    surprises,
)
from sae_lib.synthetic.formal.languages import (
    LANGUAGES,
    named_language,
    token_stream,
    vocabulary,
)

ALL = [Dyck(), Expr(), English()]


@pytest.mark.parametrize("language", ALL)
def test_a_string_depends_on_its_number_only(language):
    drawn = list(formal_strings(language, 0, 30, split="test"))
    assert [formal_string(language, i, split="test") for i in reversed(range(30))] == drawn[::-1]
    assert list(formal_strings(language.but(seed=1), 0, 30, split="test")) != drawn
    assert [one.index for one in drawn] == list(range(30))


@pytest.mark.parametrize("language", ALL)
def test_no_text_is_in_two_splits_and_none_is_common(language):
    texts = {
        split: [one.tokens for one in formal_strings(language, 0, 400, split=split)]
        for split in ("train", "validation", "test")
    }
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not set(texts[one]) & set(texts[other])
    # eight times as common as in the whole language, since a text is in one of eight parts
    assert max(texts["test"].count(text) for text in set(texts["test"])) <= 16


@pytest.mark.parametrize("language", [*ALL, Dyck(min_tokens=20, max_tokens=22)])
def test_lengths_are_allowed_ones(language):
    for one in formal_strings(language, 0, 200):
        assert language.min_tokens <= len(one.tokens) <= language.max_tokens
        assert isfinite(surprises(language, [one.tokens])[0])


def test_the_share_of_splits_is_that_of_their_texts():
    """Rejection leaves the distribution as it was: mean surprise and length agree across splits."""
    for language in ALL:
        means = {}
        for split in ("train", "test"):
            strings = [one.tokens for one in formal_strings(language, 0, 500, split=split)]
            found = surprises(language, strings)
            mean = sum(found) / 500
            error = sqrt(sum((x - mean) ** 2 for x in found)) / 500
            means[split] = (mean, error)
        (a, a_error), (b, b_error) = means.values()
        assert abs(a - b) < 4 * sqrt(a_error**2 + b_error**2)


def test_probabilities_of_the_allowed_strings_sum_to_one():
    language = Dyck(min_tokens=4, max_tokens=8)
    strings = [t for n in range(2, 9, 2) for t in product("()[]", repeat=n)]
    found = surprises(language, strings)
    assert sum(exp(-nats) for nats in found) == pytest.approx(1)
    assert surprises(language, [("(", ")")]) == [inf]
    assert exp(language.log_allowed) == pytest.approx(language.grammar.length_probs(8)[4:].sum())


def test_the_floor_is_the_mean_surprise_per_token_and_end():
    language = Expr()
    strings = [one.tokens for one in formal_strings(language, 0, 40, split="test")]
    nats = sum(surprises(language, strings))
    assert floor(language, 40) == pytest.approx(nats / sum(len(words) + 1 for words in strings))


@pytest.mark.parametrize("kind", [Dyck, Expr, English])
def test_unknown_keys_and_impossible_dials_are_refused(kind):
    with pytest.raises(ValidationError, match="colour"):
        kind(colour="red")
    with pytest.raises(ValidationError, match="min_tokens"):
        kind(min_tokens=9, max_tokens=8)


def test_dials_that_make_strings_endless_or_empty_are_refused():
    with pytest.raises(ValidationError, match="finite expected length"):
        Dyck(nesting=0.6)
    with pytest.raises(ValidationError, match="finite expected length"):
        English(conjunction=0.5)
    with pytest.raises(ValidationError, match="switch on"):
        English(adjectives=False)


def test_a_split_without_texts_says_so():
    language = Dyck(min_tokens=2, max_tokens=2)
    assert {split_of_text("( )"), split_of_text("[ ]")} == {"train"}
    with pytest.raises(BadInput, match="allow more lengths"):
        formal_string(language, 0, split="test")
    assert formal_string(language, 0).tokens in (("(", ")"), ("[", "]"))


def test_languages_have_names():
    for name, kind in LANGUAGES.items():
        assert named_language(name) == kind()
        assert named_language(name).kind == name
    with pytest.raises(UnknownName, match="dyck"):
        named_language("dick")


def test_the_stream_is_the_strings_between_their_marks():
    ids = vocabulary(Dyck())
    assert list(ids)[:4] == ["<pad>", "<bos>", "<eos>", "<unk>"]
    strings = formal_strings(Dyck(), 3, 6)
    assert list(islice(token_stream(Dyck(), 3), 3)) == [
        [1, *(ids[word] for word in one.tokens), 2] for one in strings
    ]
