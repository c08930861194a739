import subprocess
import sys
from collections import Counter
from math import log

import pytest

from sae_lib.synthetic.world.concepts import is_word, lexicon, words
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents
from sae_lib.synthetic.world.kinds.spelling import MOST_LETTERS, spelled_words
from sae_lib.synthetic.world.tasks import answer_prompts

CFG = WorldConfig(kind_weights={"spelling": 1.0})
DOCS = list(documents(CFG, 0, 200))


def parsed(doc) -> list[tuple[str, str]]:
    """Words and how they are spelled."""
    lines = " ".join(doc.tokens).removesuffix(" .").split(" . ")
    parts = [line.removeprefix("spell ").split(" : ") for line in lines]
    return [(word, letters) for word, letters in parts]


def test_all_words_that_are_not_letters_marks_long_or_rare_are_spelled():
    left_out = set(words()) - set(spelled_words())
    assert set(spelled_words()) <= set(words())
    assert left_out >= {"a", "i", "A", "3", ".", "disappointing"}
    for word in left_out - set(lexicon("rare-word")):
        assert len(word) in {1, *range(MOST_LETTERS + 1, 40)} or not word.isalpha()
    assert not set(spelled_words()) & set(lexicon("rare-word"))
    assert {"hound", "xylophone", "of"} <= set(spelled_words())


def test_words_are_spelled_right():
    for doc in DOCS:
        spelled = parsed(doc)
        assert doc.labels["num_words"] == str(len(spelled))
        assert 5 <= len(spelled) <= 7
        assert len({word for word, _ in spelled}) == len(spelled)
        assert doc.labels["last"] == spelled[-1][0]
        for word, letters in spelled:
            assert "".join(letters.split()) == word.upper()
            assert all(len(letter) == 1 and is_word(letter) for letter in letters.split())


def test_every_word_comes_up_about_equally_often():
    counts = Counter(word for doc in documents(CFG, 0, 3000) for word, _ in parsed(doc))
    mean = sum(counts.values()) / len(spelled_words())
    assert set(counts) > set(spelled_words()[::7])
    assert max(counts.values()) < mean + 6 * mean**0.5


def test_surprise_is_the_number_of_words_and_the_words():
    for doc in DOCS[:50]:
        num, all_words = len(parsed(doc)), len(spelled_words())
        by_hand = log(3) + sum(log(all_words - drawn) for drawn in range(num))
        assert doc.nll == pytest.approx(by_hand, rel=1e-12)


def test_places_of_letters_are_concepts_of_the_word_before():
    for doc in DOCS[:80]:
        place = 0
        for word, _ in parsed(doc):
            assert f"starts-with-{word[0]}" in doc.concepts[place + 1]
            assert not {"letter-place", "letters-end"} & doc.concepts[place + 1]
            for letter in range(len(word)):
                active = doc.concepts[place + 2 + letter]
                own = {f"letter-{letter + 1}"} if letter < 5 else set()
                assert {id for id in active if id[:7] == "letter-"} == own | {"letter-place"}
                assert "letters-end" not in active
            assert "letters-end" in doc.concepts[place + 2 + len(word)]
            assert "letter-place" not in doc.concepts[place + 2 + len(word)]
            place += len(word) + 4
        assert place == len(doc.tokens)


def test_long_documents_fit_a_long_context():
    docs = list(documents(CFG.but(length_factor=8), 0, 100))
    assert all(len(parsed(doc)) == 15 for doc in docs)
    assert max(len(doc.tokens) for doc in docs) <= 250
    assert 7 * (MOST_LETTERS + 4) <= 126
    assert 15 * (MOST_LETTERS + 4) <= 250


def test_the_answer_is_the_whole_word_to_its_end():
    for prompt in answer_prompts("spelling", "test", 50):
        word = prompt.text.split()[-2]
        assert prompt.text.endswith(f"spell {word} :")
        assert prompt.answers == (f"{' '.join(word.upper())} .",)
        assert prompt.labels["num_letters"] == str(len(word))


@pytest.mark.parametrize("module", ["foreign", "kinds.spelling", "kinds.first_letters", "task"])
def test_the_list_of_words_does_not_depend_on_what_is_imported_first(module):
    script = f"""if True:
        import sae_lib.synthetic.world.{module}
        from sae_lib.synthetic.world.kinds.spelling import spelled_words
        print(len(spelled_words()))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == (str(len(spelled_words())), 0), done.stderr
