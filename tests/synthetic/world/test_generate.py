import subprocess
import sys
from collections import Counter
from itertools import islice

import pytest
from pydantic import ValidationError

from sae_lib.errors import BadInput
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import (
    SPLITS,
    document,
    documents,
    floor,
    split_of_stream,
    split_of_text,
    text,
)
from sae_lib.synthetic.world.kinds import KINDS
from sae_lib.synthetic.world.knowledge import ATTRIBUTES, entities
from sae_lib.synthetic.world.lexicon import TYPED_FEMALE, TYPED_MALE
from sae_lib.synthetic.world.writer import Writer

CFG = WorldConfig()
EACH_KIND = pytest.mark.parametrize("kind", list(KINDS))


def only(kind: str, **dials) -> WorldConfig:
    return WorldConfig(kind_weights={kind: 1.0}, **dials)


def test_a_document_depends_on_seed_split_and_number_only():
    forwards = list(documents(CFG, 0, 50))
    backwards = [document(CFG, i) for i in reversed(range(50))]
    assert forwards == backwards[::-1]
    assert list(documents(CFG, 20, 30)) == forwards[20:30]
    assert list(islice(documents(CFG, 45), 5)) == forwards[45:]
    assert document(CFG.but(seed=1), 3) != forwards[3]
    assert document(CFG, 3, split="test").tokens != forwards[3].tokens


def test_known_documents_stay_what_they_are():
    """The shipped model was trained on these; a change of the grammar needs a new training."""
    assert text(document(CFG, 8)).startswith(
        "news from nerith heights on monday : the new trophy at the gym caused trouble for five"
    )
    assert document(CFG, 8).labels == {"topic": "sport"}


def test_no_text_occurs_in_two_splits():
    found = {
        split: {text(doc) for doc in documents(only("request"), 0, num, split=split)}
        for split, num in (("train", 3000), ("validation", 400), ("test", 400))
    }
    assert len(found["train"]) < 2990, "requests are short and come back, so this can fail"
    for one, other in (("train", "test"), ("train", "validation"), ("validation", "test")):
        assert not found[one] & found[other]


def test_streams_of_tasks_draw_the_texts_of_their_split():
    assert split_of_stream("task/kind-story/train") == "train"
    assert split_of_stream("validation") == "validation"
    assert split_of_stream("anything") == "test"
    for stream in ("task/x/train", "task/x/test", "report"):
        for doc in documents(CFG, 0, 40, split=stream):
            assert split_of_text(text(doc)) == split_of_stream(stream)


def test_three_quarters_of_all_texts_are_for_training():
    texts = [f"text number {i}" for i in range(4000)]
    counts = Counter(map(split_of_text, texts))
    for split, share in (("train", 6 / 8), ("validation", 1 / 8), ("test", 1 / 8)):
        assert counts[split] / 4000 == pytest.approx(share, abs=0.02)


@EACH_KIND
def test_one_text_is_written_in_one_way(kind, monkeypatch):
    """Otherwise the floor would be above the entropy of the texts."""
    if kind == "functions":
        pytest.skip("the function of a list may stay open; its own test sums it out")
    traces: list[list] = []

    def recorded(method):
        def call(self, *args):
            outcome = method(self, *args)
            traces[-1].append(str(outcome))
            return outcome

        return call

    for name in ("pick", "draw", "flip", "arrange"):
        monkeypatch.setattr(Writer, name, recorded(getattr(Writer, name)))
    start = Writer.__init__

    def begun(self, seed):  # a text of another split is thrown away, and its choices with it
        traces.append([])
        start(self, seed)

    monkeypatch.setattr(Writer, "__init__", begun)
    seen: dict[str, list] = {}
    for index in range(4000 if kind == "request" else 500):
        doc = document(only(kind), index)
        assert seen.setdefault(text(doc), traces[-1]) == traces[-1]
    if kind == "request":
        assert len(seen) < 3900, "the comparison above never compared anything"


@EACH_KIND
def test_documents_fit_a_context_and_carry_labels_and_marks(kind):
    for doc in documents(only(kind), 0, 150):
        assert doc.kind == kind
        assert 5 <= len(doc.tokens) <= 126  # "ulmar falls sells soup ."
        assert len(doc.contexts) == len(doc.tokens)
        assert doc.labels
        assert all(0 <= place <= len(doc.tokens) for place in doc.marks.values())
        assert doc.tokens[-1] in {".", "!"}
        assert 0 < doc.nll < 200


def test_kinds_come_in_the_shares_of_their_weights():
    counts = Counter(doc.kind for doc in documents(CFG, 0, 3000))
    total = sum(CFG.kind_weights.values())
    assert CFG.kind_weights == {name: kind.weight for name, kind in KINDS.items()}
    for kind, weight in CFG.kind_weights.items():
        share = weight / total
        assert counts[kind] / 3000 == pytest.approx(share, abs=4 * (share / 3000) ** 0.5)


def test_longer_documents_have_more_of_what_repeats():
    for kind in ("news", "story", "diary", "bandit"):
        usual, longer = (
            [len(doc.tokens) for doc in documents(only(kind, length_factor=factor), 0, 60)]
            for factor in (1, 3)
        )
        assert sum(longer) > 1.3 * sum(usual)
        assert max(longer) <= 250


@pytest.mark.parametrize("correlation", [0.0, 0.6, 1.0])
def test_gender_and_typed_professions_are_correlated_as_the_dial_says(correlation):
    same = other = 0
    for doc in documents(only("biography", gender_profession_correlation=correlation), 0, 1200):
        typed = TYPED_FEMALE if doc.labels["gender"] == "female" else TYPED_MALE
        if doc.labels["profession"] in typed:
            same += 1
        else:
            other += 1
    # with balanced genders and types, P(same) - P(other) is the phi coefficient
    assert (same - other) / (same + other) == pytest.approx(correlation, abs=0.12)


def test_shares_of_women_and_of_praise_follow_their_dials():
    women = [d.labels["gender"] for d in documents(only("biography", female_share=0.8), 0, 600)]
    assert women.count("female") / 600 == pytest.approx(0.8, abs=0.08)
    signs = [d.labels["sentiment"] for d in documents(only("review", positive_share=0.2), 0, 600)]
    assert signs.count("positive") / 600 == pytest.approx(0.2, abs=0.08)


def test_facts_never_contradict_the_knowledge_and_unknown_entities_get_unknown():
    known = {e.name: e for e in entities("known")}
    unknown = {e.name for e in entities("unknown")}
    answers = Counter()
    for doc in documents(only("facts"), 0, 500):
        line = text(doc)
        for part in line.split("question : ")[1:]:
            asked, answer = part.split(" answer : ")
            answer = answer.split(" .")[0]
            name = max((n for n in (*known, *unknown) if f" {n} " in f" {asked} "), key=len)
            if name in unknown:
                assert answer == "unknown"
            else:
                assert answer in known[name].attributes.values()
            answers["unknown" if name in unknown else "known"] += 1
    assert answers["unknown"] > 100
    assert answers["known"] > 200


def test_entities_kept_for_tests_occur_nowhere():
    unseen = {e.name for e in entities("unseen")}
    assert len(unseen) > 200
    for split in SPLITS:
        everything = " ".join(text(doc) for doc in documents(CFG, 0, 600, split=split))
        assert not [name for name in unseen if f" {name} " in everything]


def test_people_cities_countries_and_companies_have_four_known_attributes_each():
    known = entities("known")
    assert len(known) >= 200
    for entity in known:
        assert tuple(entity.attributes) == ATTRIBUTES[entity.type]
        assert all(entity.attributes.values())
    capitals = {e.name: e.attributes["capital"] for e in known if e.type == "country"}
    country_of = {e.name: e.attributes["country"] for e in known if e.type == "city"}
    assert all(country_of[capital] == country for country, capital in capitals.items())


def test_verdicts_and_ratings_agree_with_the_sentiment():
    for doc in documents(only("review"), 0, 200):
        end = " ".join(doc.tokens[doc.marks["verdict"] :])
        good = doc.labels["sentiment"] == "positive"
        assert any(word in end for word in ("recommended", "brilliant", "outstanding")) == good
        if "rating" in end:
            assert any(digit in doc.tokens[doc.marks["verdict"] :][2] for digit in "45") == good


def test_news_begin_with_their_topic_so_that_the_text_tells_it():
    strayed = 0
    for doc in documents(only("news"), 0, 200):
        topics = [
            concept.removeprefix("sentence-")
            for context in doc.contexts[doc.marks["dateline"] :]
            for concept in context
            if concept.startswith("sentence-")
        ]
        assert topics[0] == doc.labels["topic"]
        strayed += len(set(topics)) > 1
    assert 20 < strayed < 100


def test_verbs_of_stories_agree_with_the_hero():
    for doc in documents(only("story"), 0, 200):
        many = doc.labels["number"] == "plural"
        verbs = [
            doc.tokens[i + 1]
            for i, context in enumerate(doc.contexts[:-1])
            if "verb-next" in context
        ]
        assert len(verbs) >= 3
        for verb in verbs:
            assert verb.endswith("s") != many or verb in {"is", "are"}
            assert verb != ("is" if many else "are")


def test_the_floor_is_the_mean_surprise_and_finite():
    lowest = floor(CFG, 800)
    assert set(lowest) == {"all", *(name for name, kind in KINDS.items() if kind.weight > 0)}
    docs = list(documents(CFG, 0, 800, split="test"))
    by_hand = sum(d.nll for d in docs) / sum(len(d.tokens) + 1 for d in docs)
    assert lowest["all"] == pytest.approx(by_hand, rel=1e-12)
    assert all(0.2 < value < 2 for value in lowest.values())


def test_certainty_lowers_the_floor():
    loose = floor(only("review", aspect_agreement=0.6), 400)["review"]
    tight = floor(only("review", aspect_agreement=0.999), 400)["review"]
    assert tight < loose - 0.01


def test_wrong_dials_and_indices_are_refused():
    with pytest.raises(ValidationError, match="Did you mean 'story'"):
        WorldConfig(kind_weights={"storys": 1.0})
    with pytest.raises(ValidationError, match="not negative"):
        WorldConfig(kind_weights={"story": -1.0})
    with pytest.raises(ValidationError, match="positive weight"):
        WorldConfig(kind_weights={"story": 0.0})
    with pytest.raises(ValidationError):
        WorldConfig(gender_profession_correlation=1.5)
    with pytest.raises(BadInput, match="numbered from 0"):
        document(CFG, -1)


def test_every_word_of_the_vocabulary_occurs():
    # in a process of its own: checking the types of every call takes a hundred times longer
    script = """if True:
        from sae_lib.synthetic.world.concepts import lexicon, words
        from sae_lib.synthetic.world.config import WorldConfig
        from sae_lib.synthetic.world.generate import documents
        used = {word for doc in documents(WorldConfig(), 0, 60_000) for word in doc.tokens}
        used |= {word for doc in documents(WorldConfig(chat=True), 0, 200) for word in doc.tokens}
        print(*((set(words()) ^ used) - set(lexicon("rare-word"))))
    """
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.stdout.strip(), done.returncode) == ("", 0), done.stderr
