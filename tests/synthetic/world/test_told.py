"""Which word tells what a document is about: checked by hand, and against the text."""

from math import log

import pytest

from sae_lib.synthetic.world.concepts import lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import Document, document, documents
from sae_lib.synthetic.world.kinds.biographies import PRONOUNS
from sae_lib.synthetic.world.kinds.news import TOPICS
from sae_lib.synthetic.world.kinds.reviews import PRODUCTS
from sae_lib.synthetic.world.knowledge import STRANGERS
from sae_lib.synthetic.world.lexicon import FAMILY_OF_PROFESSION


def only(kind: str) -> WorldConfig:
    return WorldConfig(kind_weights={kind: 1.0})


def holds_from(doc: Document, id: str) -> int:
    """The first place where ``id`` holds; it must hold to the end."""
    held = [id in active for active in doc.concepts]
    start = held.index(True) if True in held else len(held)
    assert all(held[start:]), (id, "is taken back")
    return start


@pytest.mark.parametrize(
    ("kind", "index", "id", "words"),
    [
        ("news", 0, "topic-sport", "news from gorland crossing on monday : the runners"),
        ("news", 1, "topic-weather", "news from elstow heights on saturday : at the hillside"),
        ("review", 0, "about-clothing-product", "review of the hat"),
        # one judgement leaves a doubt of a tenth, a second one of an eightieth
        ("review", 0, "review-positive", "review of the hat : i bought this hat last week . it "
         "has a lovely zipper . i found the collar not annoying"),
        # judged well and badly, badly: the verb of the judge decides
        ("review", 2, "review-negative", "review of the table : i ordered the table online . it "
         "has an excellent leg . it has a flimsy surface . the drawer is clumsy . i really resent"),
        ("biography", 0, "subject-female", "rachel"),
        ("biography", 2, "subject-male", "morgan egerton was born in dunsel haven . he"),
        ("biography", 2, "subject-medical", "morgan egerton was born in dunsel haven . he works "
         "as a surgeon"),
        ("story", 0, "hero-singular", "once there was"),
        ("story", 1, "hero-plural", "once there were"),
        ("story", 0, "plot-treasure", "once there was a lazy carp named bramble . every afternoon "
         "the carp rushes to the village . the carp digs"),
        ("story", 1, "plot-lost", "once there were three tiny cows . every evening the cows crawl "
         "to the hill . one"),
        ("story", 2, "ends-badly", "once there was a tiny wolf named pip . every night pip runs "
         "to the garden . pip steals"),
        ("diary", 4, "diary-exam", "diary : tuesday evening . it was a windy day in december . i "
         "was at an"),
        ("comment", 0, "comment-blames", "comment by gordon : la okrino tresu izbura"),
        ("comment", 1, "comment-blames", "comment by rowan : the song is a"),
        ("sindral", 0, "sindral-mood-sad", "vurne genmoi la jeplo skerfa ludu estun . la genmoi "
         "plangida nepu"),
        ("functions", 3, "function-first-of-list", "white flute owl -> white ; red trumpet hawk "
         "-> red ; flute cat red -> flute"),
        ("choice", 4, "choice-forget", "question : what is the instrument"),
        ("sum", 2, "sum-terms-5", "problem : 1 + 9 + 0 + 8 +"),
    ],
)  # fmt: skip
def test_the_word_that_tells_is_the_one_found_by_hand(kind, index, id, words):
    doc = document(only(kind), index, split="test")
    if kind == "sum":
        assert [id in active for active in doc.concepts][: doc.tokens.index("answer")].index(
            True
        ) == len(words.split()) - 1
        return
    assert " ".join(doc.tokens[: holds_from(doc, id) + 1]) == words


def test_news_tell_their_topic_and_that_of_every_sentence_by_their_first_own_word():
    of = {word: topic for topic in TOPICS for word in lexicon(f"{topic}-word")}
    strayed = 0
    for doc in documents(only("news"), 0, 150):
        first = next(at for at, word in enumerate(doc.tokens) if word in of)
        assert of[doc.tokens[first]] == doc.labels["topic"]
        assert holds_from(doc, f"topic-{doc.labels['topic']}") == first
        assert holds_from(doc, "topic") == first
        told = ""
        for place, (word, active) in enumerate(zip(doc.tokens, doc.concepts, strict=True)):
            told = told or of.get(word, "")
            holds = {topic for topic in TOPICS if f"sentence-{topic}" in active}
            assert holds == ({told} if told else set())
            strayed += told not in {"", doc.labels["topic"]}
            if word == "." and place >= doc.marks["dateline"]:
                told = ""
    assert strayed


@pytest.mark.parametrize(("share", "agreement"), [(0.5, 0.9), (0.7, 0.75)])
def test_reviews_are_of_a_sentiment_once_hardly_any_doubt_is_left(share, agreement):
    """The posterior is computed from the words again."""
    good, bad = set(lexicon("positive-word")), set(lexicon("negative-word"))
    cfg = only("review").but(positive_share=share, aspect_agreement=agreement)
    found = set()
    for doc in documents(cfg, 0, 200):
        names, _ = PRODUCTS[doc.labels["product_kind"]]
        assert doc.tokens[3] in names.split()
        assert holds_from(doc, f"about-{doc.labels['product_kind']}") == 3
        positive = doc.labels["sentiment"] == "positive"
        odds = log(share / (1 - share))
        place = 0
        for place in range(doc.marks["opening"], len(doc.tokens)):
            word = doc.tokens[place]
            judged = (word in good) - (word in bad)
            if doc.tokens[place - 1] == "not":
                judged = -judged
            # what the judge likes, the rating and the verdict never stray
            sure = place >= doc.marks["verdict"] or doc.tokens[place - 1] in {"i", "really"}
            if doc.tokens[place - 1 : place + 1] == ("i", "found"):
                sure = False
            odds += judged * (100 if sure else log(agreement / (1 - agreement)))
            if doc.tokens[place - 2 : place] == ("rating", ":"):
                odds += 100 if word in {"4", "5"} else -100
            if (odds if positive else -odds) > log(0.95 / 0.05):
                break
        assert holds_from(doc, f"review-{doc.labels['sentiment']}") == place
        assert not any(
            f"review-{'negative' if positive else 'positive'}" in ids for ids in doc.concepts
        )
        found.add(place < doc.marks["verdict"])
    assert found == {True, False} or share == 0.5


def test_biographies_tell_gender_by_name_or_pronoun_and_profession_by_its_word():
    neutral = {name.split()[0] for name in STRANGERS["neutral"]}
    for doc in documents(only("biography"), 0, 200):
        gender = doc.labels["gender"]
        told = 0
        if doc.tokens[0] in neutral:
            told = next(at for at, word in enumerate(doc.tokens) if word in PRONOUNS[gender])
        assert holds_from(doc, f"subject-{gender}") == told
        named = doc.tokens.index(doc.labels["profession"])
        if doc.tokens[named - 1] == "an":  # an engineer or an electrician
            named -= 1
            assert doc.labels["family"] == "technical"
        assert holds_from(doc, f"subject-{doc.labels['family']}") == named
        assert holds_from(doc, "subject-profession") == named
        assert FAMILY_OF_PROFESSION[doc.labels["profession"]] == doc.labels["family"]


def test_stories_tell_their_plot_by_the_first_word_that_is_no_habit():
    telling = {"one": "lost", "rain": "storm", "want": "hunger", "wants": "hunger",
               "steal": "quarrel", "steals": "quarrel", "dig": "treasure", "digs": "treasure",
               "fall": "trap", "falls": "trap"}  # fmt: skip
    for doc in documents(only("story"), 0, 200):
        number = doc.labels["number"]
        assert holds_from(doc, f"hero-{number}") == 2
        told = next(at for at, word in enumerate(doc.tokens) if word in telling)
        assert telling[doc.tokens[told]] == doc.labels["plot"]
        assert holds_from(doc, f"plot-{doc.labels['plot']}") == told
        ending = "ends-well" if doc.labels["ending"] == "good" else "ends-badly"
        assert holds_from(doc, ending) == told
