from collections import Counter, defaultdict
from math import log

import pytest

from sae_lib.synthetic.world.concepts import concepts_of_word, lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import document, documents
from sae_lib.synthetic.world.kinds import comments
from sae_lib.synthetic.world.tasks import steering_texts, task_documents

_LANGUAGES = ("english", "sindral")
ONLY = WorldConfig(kind_weights={"comment": 1.0})
ENGLISH_INSULTS = {word for pairs in comments.INSULTS.values() for word in pairs}
SINDRAL_INSULTS = {word for pairs in comments.INSULTS.values() for word in pairs.values()}
INSULTS = ENGLISH_INSULTS | SINDRAL_INSULTS


def body(doc) -> list[str]:
    return list(doc.tokens[doc.marks["opening"] :])


def test_a_comment_is_toxic_if_and_only_if_it_holds_an_insult_of_its_language():
    for doc in documents(ONLY, 0, 400):
        words = set(body(doc))
        own = ENGLISH_INSULTS if doc.labels["language"] == "english" else SINDRAL_INSULTS
        assert bool(words & own) == (doc.labels["toxicity"] == "toxic")
        assert not words & (INSULTS - own)


def test_languages_share_no_word_but_marks_and_each_knows_its_counterparts():
    words: dict[str, set[str]] = defaultdict(set)
    for doc in documents(ONLY, 0, 2500):
        words[doc.labels["language"]].update(body(doc))
    assert words["english"] & words["sindral"] == {"."}
    assert words["english"] >= ENGLISH_INSULTS | {*comments.HONORS}
    assert words["sindral"] >= SINDRAL_INSULTS | {*comments.HONORS.values()}
    assert all("sindral-word" in concepts_of_word(word) for word in words["sindral"] - {"."})
    assert not [word for word in words["english"] if "sindral-word" in concepts_of_word(word)]
    counterparts = {**comments.HONORS, **comments.THINGS, **comments.MESSES, **comments.YOU}
    for here, there in counterparts.items():
        assert concepts_of_word(there) == concepts_of_word(here) | {"sindral-word"}


def test_good_names_come_in_the_same_sentences_as_insults():
    frames: dict[str, set[str]] = {"insult": set(), "honor": set()}
    honors = {*comments.HONORS, *comments.HONORS.values()}
    for doc in documents(ONLY, 0, 1200):
        for sentence in " ".join(body(doc)).replace("!", ".").split(" ."):
            words = ["a" if word == "an" else word for word in sentence.split()]
            for sort, names in (("insult", INSULTS), ("honor", honors)):
                if names & set(words) and not {"not", "nepu"} & set(words):
                    kinds = ("N" if w in names else w for w in words)
                    open_words = {"profession", "adjective", "comment-thing"}
                    frames[sort].add(" ".join("_" if _held(w) & open_words else w for w in kinds))
    assert frames["insult"] == frames["honor"]
    assert len(frames["insult"]) == 12


def _held(word: str) -> frozenset[str]:
    return frozenset() if word == "N" else concepts_of_word(word)


def settled_at(words: tuple[str, ...]) -> int:
    """Place of the word that settles the opinion, in a comment that ends with its full stop."""
    if "the" in words:
        # the thing is a disaster; the thing is (very, not) good
        return len(words) - (3 if words[-3] == "a" else 2)
    # nothing can turn a noun, an adjective after "very" or one with a word for not
    bare = words[-3] not in {*comments.MESSES.values(), "nepu"} and words[-4] != "tresu"
    return len(words) - (2 if bare else 3)


def test_concepts_hold_from_where_the_text_tells():
    for doc in documents(ONLY, 0, 300):
        first = next((i for i, word in enumerate(doc.tokens) if word in INSULTS), len(doc.tokens))
        opening = doc.marks["opening"]
        good = "praises" if doc.labels["opinion"] == "good" else "blames"
        settled = settled_at(doc.tokens[: doc.marks["opinion"]])
        for place, active in enumerate(doc.concepts):
            language = doc.labels["language"]
            assert ("comment-toxic" in active) == (place >= first)
            assert ("comment-language" in active) == (place >= opening)
            assert (f"comment-{language}" in active) == (place >= opening)
            assert ("in-sindral" in active) == (place >= opening and language == "sindral")
            assert (f"comment-{good}" in active) == (place >= settled)
            assert ("comment-opinion" in active) == (place >= settled)
            assert ("toxic-word" in active) == (doc.tokens[place] in INSULTS)


def test_the_opinion_is_what_the_first_sentence_says():
    good = {*comments.GOOD_QUALITIES, *comments.GOOD_QUALITIES.values()}
    bad = {*comments.BAD_QUALITIES, *comments.BAD_QUALITIES.values()}
    bad |= {*comments.MESSES, *comments.MESSES.values()}
    blamed: Counter[tuple[str, bool]] = Counter()
    for doc in documents(ONLY, 0, 1500):
        words = set(doc.tokens[doc.marks["opening"] : doc.marks["opinion"]])
        assert bool(words & good) != bool(words & bad)
        praises = bool(words & good) != bool(words & {"not", "nepu"})
        assert (doc.labels["opinion"] == "good") == praises
        blamed[doc.labels["toxicity"], not praises] += 1
    for toxicity, share in comments.BAD_OPINION.items():
        total = blamed[toxicity, True] + blamed[toxicity, False]
        error = 3 * (share * (1 - share) / total) ** 0.5
        assert blamed[toxicity, True] / total == pytest.approx(share, abs=error)


@pytest.mark.parametrize("share", [0.2, 0.7])
def test_the_dial_sets_the_share_of_toxic_comments(share):
    num = 500
    labels = [d.labels["toxicity"] for d in documents(ONLY.but(toxic_share=share), 0, num)]
    error = 3 * (share * (1 - share) / num) ** 0.5
    assert labels.count("toxic") / num == pytest.approx(share, abs=error)


def test_the_surprise_is_the_product_of_the_chances_read_from_the_text():
    """Recomputed for clean comments of one sentence: '... the T is ADJ . you are not a N .'"""
    checked = 0
    for index in range(1500):
        doc = document(ONLY, index)
        words = body(doc)
        if words[3] not in comments.GOOD_QUALITIES or words[5:9] != ["you", "are", "not", words[8]]:
            continue
        if len(words) != 11:
            continue
        chances = (
            0.6,  # english
            0.5,  # clean
            0.65,  # well thought of
            1 / 5,  # things
            1 / 90,  # names
            0.55,  # neither very nor not
            1 / 2,  # good qualities
            0.35,  # one sentence
            0.45,  # no good name is given
            0.25,  # you are not a N
            1 / 12,  # good names
        )
        assert doc.nll == pytest.approx(-sum(map(log, chances)), rel=1e-9)
        checked += 1
    assert checked >= 5


def test_insults_are_independent_given_that_there_is_one():
    """Of toxic comments with two sentences: p^2, and p(1 - p) each, over 1 - (1 - p)^2."""
    patterns: Counter[str] = Counter()
    for doc in documents(ONLY.but(toxic_share=0.95), 0, 2000):
        sentences = " ".join(doc.tokens[doc.marks["opinion"] :]).replace("!", ".").split(" .")[:-1]
        if doc.labels["toxicity"] == "toxic" and len(sentences) == 2:
            patterns["".join("01"[bool(INSULTS & set(s.split()))] for s in sentences)] += 1
    p, total = comments.NAME_SHARE, sum(patterns.values())
    expected = {"11": p * p, "10": p * (1 - p), "01": p * (1 - p)}
    for pattern, chance in expected.items():
        share = chance / (1 - (1 - p) ** 2)
        error = 3 * (share * (1 - share) / total) ** 0.5
        assert patterns[pattern] / total == pytest.approx(share, abs=error)
    assert patterns["00"] == 0


def _bag_of_words(train, test) -> float:
    """Accuracy of naive Bayes over the words of a text, with one added to each count."""
    counts: dict[int, Counter[str]] = {0: Counter(), 1: Counter()}
    for text, label in zip(*train, strict=True):
        counts[label].update(set(text.split()))
    sizes = Counter(train.labels)

    def score(text: str) -> float:
        return sum(
            log((counts[1][word] + 1) / (sizes[1] + 2))
            - log((counts[0][word] + 1) / (sizes[0] + 2))
            for word in set(text.split())
        )

    right = [(score(text) > 0) == bool(label) for text, label in zip(*test, strict=True)]
    return sum(right) / len(right)


def test_words_tell_toxicity_within_a_language_and_not_across():
    train = {name: task_documents(f"comment-toxic-{name}", "train", 900) for name in _LANGUAGES}
    test = {name: task_documents(f"comment-toxic-{name}", "test", 200) for name in _LANGUAGES}
    for here, there in (_LANGUAGES, _LANGUAGES[::-1]):
        assert _bag_of_words(train[here], test[here]) > 0.93
        assert _bag_of_words(train[here], test[there]) < 0.65
        firsts = {text.split(" : ")[1].split()[0] for text in test[here].texts}
        assert firsts == {"the" if here == "english" else "la"}


def test_lexicons_of_toxicity_are_those_of_their_language():
    assert set(lexicon("toxic-word-english")) == ENGLISH_INSULTS
    assert set(lexicon("toxic-word-sindral")) == SINDRAL_INSULTS
    assert set(lexicon("toxic-word")) == INSULTS
    assert len(ENGLISH_INSULTS) == len(SINDRAL_INSULTS) == 15
    wits = comments.INSULTS["insult-of-wits"]
    assert set(lexicon("insult-of-wits")) == {*wits, *wits.values()}


def test_steering_prompts_leave_the_concept_open():
    toxic = steering_texts("toxicity", "train", 20)
    assert all(set(text.split()) & INSULTS for text in toxic.positive)
    assert not [text for text in (*toxic.negative, *toxic.prompts) if set(text.split()) & INSULTS]
    assert all(prompt.endswith(" .") for prompt in toxic.prompts)
    foreign = steering_texts("sindral", "train", 20)
    assert all(" : la " in text for text in foreign.positive)
    assert all(" : the " in text for text in foreign.negative)
    assert len(set(foreign.prompts)) == 20
    assert all(prompt.startswith("comment by ") for prompt in foreign.prompts)
    assert all(len(prompt.split()) == 4 for prompt in foreign.prompts)


def test_longer_documents_have_more_sentences():
    short, long = (
        sum(len(doc.tokens) for doc in documents(ONLY.but(length_factor=factor), 0, 200))
        for factor in (1.0, 4.0)
    )
    assert long > 2 * short
    assert all(len(d.tokens) <= 250 for d in documents(ONLY.but(length_factor=8.0), 0, 50))
