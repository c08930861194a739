from collections import Counter

import pytest
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sae_lib.errors import UnknownName
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.knowledge import ENTITIES
from sae_lib.synthetic.world.tasks import (
    get_steering_concept,
    get_task,
    list_steering_concepts,
    list_tasks,
    steering_texts,
    task_documents,
)


def bag_of_words_accuracy(name: str, num_train: int = 400, num_test: int = 300) -> float:
    train, test = task_documents(name, "train", num_train), task_documents(name, "test", num_test)
    bag = CountVectorizer(token_pattern=r"\S+")
    model = make_pipeline(bag, LogisticRegression(max_iter=1000))
    return model.fit(train.texts, train.labels).score(test.texts, test.labels)


def test_a_bag_of_words_solves_sentiment_and_topic():
    assert bag_of_words_accuracy("review-sentiment") > 0.9
    assert bag_of_words_accuracy("topic-sea") > 0.9


def test_a_bag_of_words_cannot_tell_known_from_unknown_entities():
    assert bag_of_words_accuracy("known-entity") < 0.6


def test_entities_of_training_and_test_questions_are_different_ones():
    names = [e.name for e in ENTITIES]

    def asked(split: str) -> set[str]:
        texts = task_documents("known-entity", split, 200).texts
        return {max((n for n in names if t.endswith(f" {n}")), key=len) for t in texts}

    assert not asked("train") & asked("test")


def test_labels_of_known_entities_are_their_status():
    known = {e.name for e in ENTITIES if e.status == "known"}
    unseen = {e.name for e in ENTITIES if e.status == "unseen"}
    drawn = task_documents("known-entity", "train", 100)
    for text, label in zip(*drawn, strict=True):
        assert any(text.endswith(f" {name}") for name in known) == bool(label)
        assert not any(text.endswith(f" {name}") for name in unseen)


@pytest.mark.parametrize("name", list_tasks())
def test_every_task_is_balanced_repeatable_and_split(name):
    task = get_task(name)
    num = 4 * len(task.classes) + 1
    drawn = task_documents(name, "train", num)
    assert task_documents(name, "train", num) == drawn
    counts = Counter(drawn.labels)
    assert set(counts) == set(range(len(task.classes)))
    assert max(counts.values()) - min(counts.values()) == 1
    assert not set(drawn.texts) & set(task_documents(name, "test", num).texts) or (
        name == "kind-facts"
    )


def test_there_are_tasks_of_all_the_needed_families():
    names = set(list_tasks())
    assert {"review-sentiment", "news-topic", "document-kind", "subject-gender"} <= names
    assert {"profession-family", "known-entity", "topic-sea", "topic-sport"} <= names
    assert len([name for name in names if name.startswith("topic-")]) >= 8


def test_the_review_task_does_not_show_the_verdict():
    for text in task_documents("review-sentiment", "train", 50).texts:
        assert "verdict" not in text
        assert "rating" not in text


def test_label_noise_flips_its_share_of_labels_and_no_text():
    clean = task_documents("topic-sea", "train", 300)
    noisy = task_documents("topic-sea", "train", 300, cfg=WorldConfig(label_noise=0.2))
    assert clean.texts == noisy.texts
    flipped = sum(a != b for a, b in zip(clean.labels, noisy.labels, strict=True))
    assert 30 <= flipped <= 95  # 60 expected, 7 the standard deviation


@pytest.mark.parametrize("name", list_steering_concepts())
def test_positive_texts_have_words_of_the_concept_more_often_than_negative_ones(name):
    concept = get_steering_concept(name)
    drawn = steering_texts(name, "train", 12)
    assert len(drawn.positive) == len(drawn.negative) == len(drawn.prompts) == 12
    words = set(concept.lexicon)

    def share(texts: list[str]) -> float:
        listed = [word for text in texts for word in text.split()]
        return sum(word in words for word in listed) / len(listed)

    assert share(drawn.positive) > 2 * share(drawn.negative)
    assert share(drawn.prompts) == 0


def test_prompts_about_gender_have_names_of_either():
    prompts = steering_texts("subject-female", "train", 10).prompts
    from sae_lib.synthetic.world.lexicon import NEUTRAL_NAMES

    assert all(prompt.split()[0] in NEUTRAL_NAMES for prompt in prompts)


def test_unknown_tasks_concepts_and_splits_are_refused_with_the_nearest():
    with pytest.raises(UnknownName, match="Did you mean 'topic-sea'"):
        task_documents("topic-see", "train", 2)
    with pytest.raises(UnknownName, match="Did you mean 'train'"):
        task_documents("topic-sea", "trains", 2)
    with pytest.raises(UnknownName, match="steering concept"):
        steering_texts("nothing", "train", 2)
