from collections import Counter
from math import log

import pytest

from sae_lib.synthetic.world.concepts import lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import Document, document, documents
from sae_lib.synthetic.world.kinds.diaries import EMOTIONS, OCCASIONS, PURITY
from sae_lib.synthetic.world.tasks import answer_prompts, steering_texts, task_documents

CFG = WorldConfig(kind_weights={"diary": 1.0})
DOCS = [document(CFG, index) for index in range(200)]
EMOTION_OF = {word: name for name in EMOTIONS for word in lexicon(f"{name}-word")}
OCCASION_OF = {word: name for name in OCCASIONS for word in lexicon(f"{name}-word")}


def told(doc: Document, of: dict[str, str]) -> list[tuple[int, str]]:
    return [(place, of[word]) for place, word in enumerate(doc.tokens) if word in of]


def test_lexica_are_small_and_do_not_overlap():
    assert {"anger", "joy", "fear", "sadness", "surprise", "love", "disgust"} == set(EMOTIONS)
    assert len(OCCASIONS) >= 5
    for names in (EMOTIONS, OCCASIONS):
        words = [word for name in names for word in lexicon(f"{name}-word")]
        assert len(words) == len(set(words))
        for name in names:
            used = set(lexicon(f"{name}-word")) & {word for doc in DOCS for word in doc.tokens}
            assert 8 <= len(used) <= 12  # of the second language none


def test_first_and_last_words_of_emotion_tell_it_and_one_in_ten_between_strays():
    strayed = between = 0
    for doc in DOCS:
        emotions = [name for _, name in told(doc, EMOTION_OF)]
        assert emotions[0] == emotions[-1] == doc.labels["emotion"]
        between += len(emotions) - 2
        strayed += sum(name != emotions[0] for name in emotions)
        assert {name for _, name in told(doc, OCCASION_OF)} == {doc.labels["occasion"]}
    spread = (between * PURITY * (1 - PURITY)) ** 0.5
    assert strayed == pytest.approx(between * (1 - PURITY), abs=3 * spread)


def test_contexts_hold_from_the_first_word_that_tells():
    for doc in DOCS:
        for key, of in (("emotion", EMOTION_OF), ("occasion", OCCASION_OF)):
            first, _ = told(doc, of)[0]
            # only a journey is something to be on, and only an exam takes "an"
            if doc.tokens[first] == "journey":
                assert doc.tokens[first - 2] == "on"
                first -= 2
            elif doc.tokens[first] == "exam":
                assert doc.tokens[first - 1] == "an"
                first -= 1
            for place, context in enumerate(doc.contexts):
                named = {id for id in context if id.removeprefix("diary-") in of.values()}
                wanted = {f"diary-{doc.labels[key]}"} if place >= first else set()
                assert named & {f"diary-{name}" for name in of.values()} == wanted
        for place, name in told(doc, EMOTION_OF):
            strays = name != doc.labels["emotion"]
            assert ("diary-stray-emotion" in doc.contexts[place]) == strays


def test_the_surprise_can_be_computed_from_the_text():
    nums = {1: 0.3, 2: 0.4, 3: 0.2, 4: 0.1}
    for doc in DOCS[:60]:
        header, weather, *sentences, close = " ".join(doc.tokens).removesuffix(" .").split(" . ")
        assert (len(header.split()), len(weather.split()), len(close.split())) == (4, 7, 4)
        nats = log(7 * 5) + log(7 * 4) + log(6 * 8) + log(4) - log(nums[len(sentences) - 2])
        own, seen = doc.labels["emotion"], False
        for place, sentence in enumerate(sentences):
            nats += log((3, 5, 7)[min(place, 2)])
            for word in sentence.split():
                if word in EMOTION_OF:
                    emotion = EMOTION_OF[word]
                    if seen:
                        nats -= log(0.9 if emotion == own else 0.1 / 6)
                    seen = True
                    nats += log(len(next(part for part in EMOTIONS[emotion] if word in part)))
                elif word in OCCASION_OF and word != OCCASION_OF[word]:
                    nats += log(len(OCCASIONS[doc.labels["occasion"]]))
                elif word in lexicon("kinship"):
                    nats += log(8)
        assert doc.nll == pytest.approx(nats, abs=1e-9)


def test_longer_diaries_have_more_sentences_and_stay_below_250_words():
    usual = sum(doc.tokens.count(".") - 3 for doc in DOCS[:60])
    long = list(documents(CFG.but(length_factor=3), 0, 60))
    assert sum(doc.tokens.count(".") - 3 for doc in long) == pytest.approx(3 * usual, rel=0.1)
    longest = max(len(doc.tokens) for doc in documents(CFG.but(length_factor=8), 0, 60))
    assert 150 < longest <= 250


def test_tasks_end_before_the_close_and_do_not_lose_the_emotion():
    found = task_documents("diary-anger", "test", 40)
    for text, label in zip(found.texts, found.labels, strict=True):
        assert "today i feel" not in text
        counts = Counter(EMOTION_OF[word] for word in text.split() if word in EMOTION_OF)
        if label:
            assert counts["anger"]
    assert sorted(set(task_documents("diary-occasion", "test", 10).labels)) == [0, 1, 2, 3, 4]


def test_a_closing_feeling_of_the_right_emotion_is_a_right_answer():
    for prompt in answer_prompts("diary-emotion-consistent", "test", 20):
        assert prompt.text.endswith("today i feel")
        assert set(prompt.answers) <= set(lexicon(f"{prompt.labels['emotion']}-word"))
        first = next(word for word in prompt.text.split() if word in EMOTION_OF)
        assert EMOTION_OF[first] == prompt.labels["emotion"]


@pytest.mark.parametrize("name", ["anger", "joy", "wedding"])
def test_steering_texts_have_the_concept_and_prompts_leave_it_open(name):
    words = set(lexicon(f"{name}-word"))
    texts = steering_texts(name, "test", 20)
    assert all(words & set(text.split()) for text in texts.positive)
    assert len(set(texts.prompts)) == 20
    for prompt in texts.prompts:
        assert not (EMOTION_OF.keys() | OCCASION_OF.keys()) & set(prompt.split())
