from collections import Counter
from math import log

import pytest

from sae_lib.errors import UnknownName
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents
from sae_lib.synthetic.world.kinds.first_letters import (
    QUERY,
    WORD_FROM_END,
    first_letter_prompt,
    first_letter_words,
)
from sae_lib.synthetic.world.kinds.spelling import spelled_words
from sae_lib.synthetic.world.lexicon import LETTERS
from sae_lib.synthetic.world.tasks import answer_prompts

CFG = WorldConfig(kind_weights={"first-letters": 1.0})
DOCS = list(documents(CFG, 0, 300))


def lines(doc) -> list[tuple[str, ...]]:
    assert len(doc.tokens) % 8 == 0
    return [doc.tokens[place : place + 8] for place in range(0, len(doc.tokens), 8)]


def test_letters_are_the_first_of_their_words():
    for doc in DOCS:
        for word, *phrase, letter, end in lines(doc):
            assert " ".join(phrase) == QUERY
            assert (letter, end) == (word[0].upper(), ".")
        assert len({line[0] for line in lines(doc)}) == len(lines(doc))
        assert doc.labels["num_words"] == str(len(lines(doc)))
        assert (doc.labels["last"], doc.labels["letter"]) == (lines(doc)[-1][0], doc.tokens[-2])
        assert doc.marks["answer"] == len(doc.tokens) - 2
    assert {len(lines(doc)) for doc in DOCS} == set(range(4, 13))


def test_surprise_is_the_number_of_words_and_the_words():
    for doc in DOCS[:50]:
        by_hand = log(9) + sum(log(len(spelled_words()) - i) for i in range(len(lines(doc))))
        assert doc.nll == pytest.approx(by_hand, rel=1e-12)


def test_the_letter_is_a_concept_of_the_word_and_its_colon():
    for doc in DOCS:
        for place, active in enumerate(doc.concepts):
            word = doc.tokens[place - place % 8]
            expected = {f"starts-with-{word[0]}"} if place % 8 in {0, 5} else set()
            assert {id for id in active if id.startswith("starts-with-")} == expected
            assert ("starts-with" in active) == bool(expected)


def test_every_letter_begins_a_word():
    assert {word[0].upper() for word in spelled_words()} == set(LETTERS)


def test_words_are_split_four_to_one_and_the_split_is_fixed():
    train, test = first_letter_words("train"), first_letter_words("test")
    assert not set(train) & set(test)
    assert sorted(train + test) == list(spelled_words())
    assert len(test) / len(spelled_words()) == pytest.approx(0.2, abs=0.04)
    # hashes of the words alone, so new words leave them where they are
    assert [w in test for w in ("hound", "dog", "piano", "monday", "hospital")] == [
        False,
        False,
        False,
        False,
        True,
    ]
    with pytest.raises(UnknownName):
        first_letter_words("validation")


def test_a_prompt_asks_for_the_word_at_a_fixed_place():
    prompt = first_letter_prompt("hound", ("dog", "piano"))
    assert prompt == (
        "dog has the first letter : D . piano has the first letter : P . "
        "hound has the first letter :"
    )
    assert prompt.split()[-WORD_FROM_END] == "hound"


def test_answer_prompts_show_ten_other_words():
    prompts = answer_prompts("first-letter", "test", 60)
    for prompt in prompts:
        words = prompt.text.split()
        assert len(words) == 10 * 8 + 6
        shown, asked = words[:-6:8], words[-WORD_FROM_END]
        assert asked not in shown
        assert prompt.answers == (asked[0].upper(),)
        assert prompt.labels["letter"] == asked[0].upper()
    assert len(Counter(prompt.labels["letter"] for prompt in prompts)) > 8
