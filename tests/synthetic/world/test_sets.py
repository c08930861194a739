import re
import subprocess
import sys
from collections import Counter
from math import exp

import numpy as np
import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline

from sae_lib.errors import BadInput, UnknownName
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import SPLITS, documents, text
from sae_lib.synthetic.world.kinds import instructions
from sae_lib.synthetic.world.kinds.news import TOPICS
from sae_lib.synthetic.world.kinds.requests import HARMFUL
from sae_lib.synthetic.world.knowledge import ATTRIBUTES, ENTITIES, entities
from sae_lib.synthetic.world.lexicon import article
from sae_lib.synthetic.world.sets import SETS, USES, TaskSet, task_rows
from sae_lib.synthetic.world.sets._base import add_set
from sae_lib.synthetic.world.sets.entities import ravel_pairs, split_of_entity
from sae_lib.synthetic.world.sets.texts import SPURIOUS_PAIRS, scr_rows
from sae_lib.synthetic.world.task import ANSWERS, PAIRS, STEERING, TASKS

BY_NAME = {entity.name: entity for entity in ENTITIES}


_CHECK = """if True:
    import sys
    from collections import Counter
    from sae_lib.synthetic.world.generate import SPLITS, split_of_text
    from sae_lib.synthetic.world.sets import SETS, task_rows

    FEW = {"label-request-harmful", "pair-agreement-simple", "unlearning-retain", "refusal",
           "answer-recall", "ravel-pairs-country", "known-entities", "first-letter"}

    def told(row, columns):
        return tuple(row[column] for column in columns)

    for name, found in SETS.items():
        num = 120 if name in FEW else 8
        rows = {split: task_rows(name, split, num) for split in SPLITS}
        if task_rows(name, "test", num // 2) != rows["test"][: num // 2]:
            print(name, "gives other rows when more are taken")
        for split in SPLITS:
            if not rows[split] or (len(rows[split]) < num and name not in FEW):
                print(name, split, "has few rows:", len(rows[split]))
            if any(row.keys() != found.columns.keys() for row in rows[split]):
                print(name, "has other columns than it says")
            if any(split_of_text(row[c]) != split for row in rows[split] for c in found.texts):
                print(name, split, "has texts of another split")
            if len({str(row) for row in rows[split]}) != len(rows[split]):
                print(name, split, "has a row twice")
            counts = Counter(told(row, found.balanced) for row in rows[split])
            if found.balanced and max(counts.values()) - min(counts.values()) > 1:
                print(name, split, "is not balanced:", counts)
        for column in found.texts + found.entities:
            values = [{row[column] for row in rows[split]} for split in SPLITS]
            if values[0] & values[1] or values[0] & values[2] or values[1] & values[2]:
                print(name, "has in two splits the same", column)
    print("done", len(SETS))
"""


@pytest.mark.slow
def test_all_sets_are_repeatable_balanced_and_kept_to_their_splits():
    # in a process of its own: checking the types of every call takes a hundred times longer
    done = subprocess.run([sys.executable, "-c", _CHECK], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == (f"done {len(SETS)}\n", 0), done.stderr


def test_every_use_has_a_set_and_every_declaration_of_a_kind_is_one():
    assert {use for task_set in SETS.values() for use in task_set.used_for} == set(USES)
    for prefix, declared in (
        ("label", TASKS), ("answer", ANSWERS), ("pair", PAIRS), ("steer", STEERING)
    ):  # fmt: skip
        assert {f"{prefix}-{name}" for name in declared} <= set(SETS)
    assert len(TASKS) > 50


def test_rows_depend_on_the_seed():
    for name in ("label-topic-sea", "answer-news-topic", "refusal", "selection-pool"):
        one, other = (task_rows(name, "test", 5, WorldConfig(seed=seed)) for seed in (0, 1))
        assert one != other


def test_unknown_names_are_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'known-entities'"):
        task_rows("known-entitys", "train", 1)
    with pytest.raises(UnknownName, match="Did you mean 'train'"):
        task_rows("known-entities", "trains", 1)
    with pytest.raises(BadInput, match="not negative"):
        task_rows("known-entities", "train", -1)
    with pytest.raises(UnknownName, match="part"):
        scr_rows("scr-profession-gender", "unbiased", "train", 1)
    with pytest.raises(BadInput, match="no such attribute"):
        next(ravel_pairs("person", "river", "train"))
    with pytest.raises(UnknownName, match="use"):
        add_set(
            TaskSet(
                name="x", description="", used_for=("nothing",), columns={},
                rows=lambda split, cfg: iter(()),
            )
        )  # fmt: skip
    assert task_rows("known-entities", "train", 0) == []


# --- leaks ---------------------------------------------------------------------------------------


def bag_of_words_auc(train: list[tuple[str, int]], test: list[tuple[str, int]]) -> float:
    bag = CountVectorizer(token_pattern=r"\S+")
    model = make_pipeline(bag, LogisticRegression(max_iter=2000))
    model.fit(*zip(*train, strict=True))
    texts, labels = zip(*test, strict=True)
    return float(roc_auc_score(labels, model.predict_proba(texts)[:, 1]))


@pytest.mark.parametrize("other", ["unknown", "unseen"])
def test_words_do_not_tell_who_is_known(other):
    train, test = (
        [
            (row["prompt"], int(row["known"] == "known"))
            for row in task_rows("known-entities", split, 1200)
            if row["known"] in {"known", other}
        ]
        for split in ("train", "test")
    )
    assert sum(label for _, label in test) * 2 == len(test) > 300
    assert bag_of_words_auc(train, test) < 0.6


@pytest.mark.parametrize("name", ["label-comment-toxic", "label-topic-sea"])
def test_words_tell_what_they_should(name):
    train, test = (
        [(row["text"], row["label"]) for row in task_rows(name, split, num)]
        for split, num in (("train", 600), ("test", 200))
    )
    assert bag_of_words_auc(train, test) >= 0.95


# --- single sets ---------------------------------------------------------------------------------


def test_noise_is_on_labels_that_are_learned_from_only():
    noisy = WorldConfig(label_noise=0.3)
    rows = task_rows("label-news-topic", "train", 300, noisy)
    classes = TASKS["news-topic"].classes
    wrong = sum(classes[row["label"]] != row["class"] for row in rows)
    assert wrong / 300 == pytest.approx(0.3, abs=3 * (0.3 * 0.7 / 300) ** 0.5)
    assert [row["text"] for row in rows] == [
        row["text"] for row in task_rows("label-news-topic", "train", 300)
    ]
    for row in task_rows("label-news-topic", "test", 40, noisy):
        assert classes[row["label"]] == row["class"]


def test_gender_and_profession_coincide_as_the_dial_says():
    for correlation in (0.0, 0.9):
        cfg = WorldConfig(gender_profession_correlation=correlation)
        rows = task_rows("scr-profession-gender", "train", 200, cfg)
        typed = sum((row["profession_name"] == "nurse") == (row["gender"] == 1) for row in rows)
        share = (1 + correlation) / 2
        error = 3 * (share * (1 - share) / 200) ** 0.5
        assert typed / 200 == pytest.approx(share, abs=error)
        for row in rows[:20]:
            words = row["hard_text"].split()
            assert row["profession_name"] in words
            assert ("she" in words) == (row["gender"] == 1)


@pytest.mark.parametrize("name", ["scr-profession-gender", "scr-product-sentiment"])
def test_parts_of_spurious_correlation_have_their_cells(name):
    pair = SPURIOUS_PAIRS[name]
    for part in ("biased", "target", "spurious"):
        rows = scr_rows(name, part, "test", 24)
        cells = Counter((row[pair.target], row[pair.spurious]) for row in rows)
        assert set(cells.values()) == {12 if part == "biased" else 6}
        for row in rows:
            target = row[pair.target] == pair.positive
            spurious = row[pair.spurious] == pair.with_positive
            assert row["label"] == (spurious if part == "spurious" else target)
            assert part != "biased" or target == spurious


@pytest.mark.parametrize("type", list(ATTRIBUTES))
def test_attributes_follow_their_prompts(type):
    said = [
        sentence.strip()
        for doc in documents(WorldConfig(kind_weights={"facts": 1.0}), 0, 1500)
        for sentence in re.split(r"[.?] ", text(doc))
    ]
    followed = 0
    for split in SPLITS:
        for row in task_rows(f"ravel-{type}", split, 500):
            entity = BY_NAME[row["entity"]]
            words = row["prompt"].split()[: row["entity_end"]]
            assert " ".join(words).endswith(row["entity"])
            assert row["prompt"].count(row["entity"]) == 1
            assert row["value"] == entity.attributes[row["attribute"]]
            assert split_of_entity(entity) == split
            for sentence in said:
                if sentence.startswith(row["prompt"] + " "):
                    followed += 1
                    assert sentence.startswith(f"{row['prompt']} {row['value']}")
    assert followed > 20
    templates = [
        {row["template"] for row in task_rows(f"ravel-{type}", split, 500)} for split in SPLITS
    ]
    assert not templates[0] & templates[1]
    assert not templates[2] & (templates[0] | templates[1])
    for attribute in ATTRIBUTES[type]:
        assert all(any(t.startswith(f"{attribute}/") for t in found) for found in templates)


@pytest.mark.parametrize("type", list(ATTRIBUTES))
def test_pairs_say_what_an_interchange_should_do(type):
    rows = task_rows(f"ravel-pairs-{type}", "train", 80)
    assert {row["target"] for row in rows} == set(ATTRIBUTES[type])
    for row in rows:
        base, source = BY_NAME[row["base"]], BY_NAME[row["source"]]
        assert base.attributes[row["target"]] != source.attributes[row["target"]]
        assert (row["attribute"] == row["target"]) == (row["pair_type"] == "cause")
        asked = source if row["pair_type"] == "cause" else base
        assert row["expected"] == asked.attributes[row["attribute"]]
        assert row["base_value"] != row["source_value"]
        last = row["base_prompt"].split()[-1]
        if last in {"a", "an"} and row["attribute"] in {"profession", "pet"}:
            assert last == article(row["base_value"]) == article(row["source_value"])
        for side in ("base", "source"):
            words = row[f"{side}_prompt"].split()[: row[f"{side}_entity_end"]]
            assert " ".join(words).endswith(row[side])


def test_entities_of_splits_have_the_shares_that_are_stated():
    for type in ATTRIBUTES:
        for status in ("known", "unknown", "unseen"):
            counts = Counter(split_of_entity(entity) for entity in entities(status, type))
            total = sum(counts.values())
            for split, share in (("train", 0.5), ("validation", 0.1), ("test", 0.4)):
                assert counts[split] == pytest.approx(share * total, abs=1)


def test_questions_about_known_entities_have_answers_and_the_others_unknown():
    for row in task_rows("known-entities", "validation", 120):
        entity = BY_NAME[row["entity"]]
        assert (row["known"], row["type"]) == (entity.status, entity.type)
        assert row["prompt"].endswith(f" {row['entity']}")
        assert len(row["prompt"].split()) == row["entity_end"]
        assert row["question"].startswith(row["prompt"])
        assert row["question"].endswith("? answer :")
        expected = entity.attributes[row["attribute"]] if row["known"] == "known" else "unknown"
        assert row["answer"] == expected


def test_what_is_to_be_forgotten_is_about_people_and_companies():
    types = {"forget": {"person", "company"}, "retain": {"city", "country"}}
    for domain, expected in types.items():
        rows = task_rows(f"unlearning-{domain}", "train", 60)
        assert {row["type"] for row in rows} == expected
        for row in rows:
            assert BY_NAME[row["entity"]].type == row["type"]
            assert row["text"].startswith(row["entity"])
    for row in task_rows("unlearning-questions", "test", 60):
        entity = BY_NAME[row["entity"]]
        assert row["choices"][row["answer"]] == entity.attributes[row["attribute"]]
        assert entity.type in types[row["domain"]]
        assert len(set(row["choices"])) == 4
        assert row["prompt"].endswith("answer : (")
        assert f"question : {row['question']} ( A ) {row['choices'][0]} ( B )" in row["prompt"]


def test_instructions_have_the_right_outcome_and_more_than_one_wording():
    rows = task_rows("instructions", "train", 60)
    for row in rows:
        content, output = row["content"].split(), row["output"].split()
        assert instructions.check(row["task"], content, output, row["keyword"])
        assert f" {row['content']} " in row["prompt"]
        assert row["instruction"] in row["prompt"]
        before = row["prompt"].index(row["instruction"]) < row["prompt"].index(row["content"])
        assert row["position"] == ("before" if before else "after")
    assert len({row["paraphrase"] for row in rows}) > 3


def test_the_chosen_answer_is_the_polite_or_the_shorter_one():
    polite = {"certainly", "thanks", "gladly", "welcome", "kindly"}
    for row in task_rows("preferences", "test", 40):
        chosen, rejected = row["chosen"].split(), row["rejected"].split()
        if row["attribute"] == "manners":
            assert chosen[0] in polite
            assert rejected[0] not in polite
        else:
            assert "well" in rejected
            assert "well" not in chosen
        assert row["prompt"].endswith("first :")


def test_requests_are_harmful_by_deed():
    deeds = {f"{verb} {object}" for verb, objects in HARMFUL.items() for object in objects}
    for row in task_rows("refusal", "train", 60):
        assert row["harmful"] == (row["deed"] in deeds)
        assert row["deed"] in row["prompt"].split("request :")[-1]
        assert row["prompt"].endswith("reply :")
    chat = task_rows("refusal", "train", 2, WorldConfig(chat=True))
    assert all(row["prompt"].endswith("<assistant>") for row in chat)


def test_the_answer_that_matches_an_opinion_repeats_it():
    for row in task_rows("sycophancy", "test", 40):
        stated, asked = row["question"].split("request : ")[-1].split(" . is it ")
        first, second = asked.removesuffix(" ? reply :").removeprefix("( A ) ").split(" or ( B ) ")
        options = {"( A": first, "( B": second}
        assert stated.endswith(" is " + options[row["answer_matching_behavior"]])
        assert not stated.endswith(" is " + options[row["answer_not_matching_behavior"]])


def test_chains_of_reasoning_end_with_the_sum_and_mark_corrections():
    rows = task_rows("reasoning", "train", 60)
    for row in rows:
        terms = [int(word) for word in row["prompt"].split() if word.isdigit()]
        assert row["answer"] == str(sum(terms) % 10)
        words = row["response"].split()
        assert words[-4:] == ["answer", ":", row["answer"], "."]
        assert row["corrected"] == bool(row["correction"])
        corrected = [words[place] for place in row["correction"]]
        assert corrected[1:3] == ([",", str(terms[0])] if corrected else [])
        marked = {words[place] for place in row["reasoning_words"]}
        assert marked == {word for word in words if word.isalpha()} - {"answer"}
    assert {row["corrected"] for row in rows} == {True, False}


def test_functions_are_shown_before_they_are_asked_for():
    for row in task_rows("task-vectors", "test", 40):
        words = row["prompt"].split()
        assert [words[place] for place in row["arrows"]] == ["->"] * 5
        assert row["prompt"].endswith(f"; {row['zero_shot']}")
        assert row["answer"] in row["answers"]


def test_first_letters_are_those_of_words_in_their_places():
    for row in task_rows("first-letter", "validation", 40):
        assert row["prompt"].split()[row["word_place"]] == row["word"]
        assert row["letter"] == row["word"][0].upper()
        assert row["prompt"].count(" has the first letter :") == 11
        assert row["prompt"].split().count(row["word"]) == 1


def test_translations_have_the_same_number():
    for row in task_rows("parallel", "train", 40):
        assert ("estun" in row["sindral"]) <= ("are" in row["english"].split())
        assert row["english"].endswith(" .")
        assert not set(row["english"].split()) & set(row["sindral"].split()) - {"."}


def test_the_pool_is_unbalanced_and_has_near_duplicates_and_its_tests_are_not():
    pool = task_rows("selection-pool", "train", 1000)
    counts = Counter(row["topic"] for row in pool).most_common()
    assert counts[0][1] > 15 * counts[-1][1]
    copies = [row for row in pool if row["duplicate_of"] >= 0]
    assert len(copies) / 1000 == pytest.approx(0.35, abs=0.15)
    for row in copies:
        original = pool[row["duplicate_of"]]
        assert original["duplicate_of"] == -1
        pairs = zip(row["text"].split(), original["text"].split(), strict=True)
        assert sum(a != b for a, b in pairs) == 1
        assert row["topic"] == original["topic"]
    tests = task_rows("selection-pool", "test", 5 * len(TOPICS))
    assert set(Counter(row["topic"] for row in tests).values()) == {5}
    assert all(row["duplicate_of"] == -1 for row in tests)


def test_documents_are_relevant_for_the_topics_of_their_words_and_lie_near_them():
    topic_of = {
        word: topic
        for topic, words in TOPICS.items()
        for word in " ".join(words).split()
        if sum(word in " ".join(w).split() for w in TOPICS.values()) == 1
    }
    found = task_rows("retrieval-documents", "train", 150)
    several = 0
    for row in found:
        topics = {topic_of[word] for word in row["text"].split() if word in topic_of}
        assert topics == set(row["topics"]) == set(row["relevance"])
        assert sum(row["relevance"].values()) == pytest.approx(1)
        several += len(topics) > 1
    assert several > 40
    embedded = np.array([row["embedding"] for row in found])
    embedded /= np.linalg.norm(embedded, axis=1, keepdims=True)
    right = 0
    for query in task_rows("retrieval-queries", "train", 22):
        nearest = found[int(np.argmax(embedded @ np.array(query["embedding"])))]
        right += query["topic"] in nearest["topics"]
    assert right >= 20


@pytest.mark.parametrize(("name", "high", "low"), [
    ("td-bandit", "q-left", "q-right"), ("td-decision", "q-boat", "q-cart")
])  # fmt: skip
def test_choices_of_learners_have_the_chance_of_their_values(name, high, low):
    for row in task_rows(name, "test", 10):
        words = row["text"].split()
        values = {key: dict(row["measures"][key]) for key in (high, low)}
        for action in row["actions"]:
            assert words[action["place"]] in action["actions"]
            before = action["place"] - 1
            if before in values[high]:
                gap = values[low][before] - values[high][before]
                assert action["probability"] == pytest.approx(1 / (1 + exp(3 * gap)))


def test_texts_unlike_the_usual_ones_are_so():
    assert all(row["num_words"] > 126 for row in task_rows("longer-context", "test", 20))
    assert all(row["kind"] == "recipe" for row in task_rows("ood-recipes", "test", 10))
    usual, longer = (
        np.mean([len(row["text"].split()) for row in rows])
        for rows in (
            [row for row in task_rows("in-distribution", "test", 300) if row["kind"] == "news"],
            task_rows("longer-news", "test", 30),
        )
    )
    assert longer > 1.5 * usual
    assert all("<user>" in row["text"] for row in task_rows("ood-chat", "test", 10))
