from types import SimpleNamespace

import pytest
import torch

from sae_lib.activations.labelled import LabelledTexts
from sae_lib.apply.base import Bench
from sae_lib.apply.tasks import (
    WORLD_CONCEPTS,
    WORLD_TASKS,
    ConceptConfig,
    document_pool,
    one_against_rest,
    probe_tasks,
    steering_concepts,
)
from sae_lib.errors import BadInput, NotApplicable, UnknownName
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.tasks import get_steering_concept


@pytest.fixture
def world(bench) -> Bench:
    return bench._replace(world=WorldConfig())


def texts_of(labels: list[int], classes: str = "abc") -> LabelledTexts:
    return LabelledTexts(
        "file.csv",
        [f"{label} {i}" for i, label in enumerate(labels)],
        labels,
        list(classes),
        "train",
    )


def test_one_class_against_the_rest_is_balanced_and_draws_evenly_on_the_rest():
    found = one_against_rest(texts_of([0] * 50 + [1] * 8 + [2] * 40), 1, num_texts=12, seed=0)
    assert found.labels.count(1) == found.labels.count(0) == 6
    assert all(
        text.startswith("1") == bool(y) for text, y in zip(found.texts, found.labels, strict=True)
    )
    negatives = [text[0] for text, y in zip(found.texts, found.labels, strict=True) if not y]
    assert negatives.count("0") == negatives.count("2") == 3


def test_the_rarer_side_bounds_both_and_nothing_repeats():
    found = one_against_rest(texts_of([0] * 50 + [1] * 3, "ab"), 1, num_texts=40, seed=0)
    assert found.labels.count(1) == found.labels.count(0) == 3
    assert len(set(found.texts)) == 6


def test_classes_do_not_come_in_blocks_and_the_seed_decides():
    given = texts_of([0] * 50 + [1] * 50, "ab")
    one, same, other = (one_against_rest(given, 1, num_texts=40, seed=s) for s in (0, 0, 1))
    assert one == same != other
    changes = sum(a != b for a, b in zip(one.labels, one.labels[1:], strict=False))
    assert changes > 10


def test_a_class_without_texts_is_named():
    with pytest.raises(BadInput, match="no text of class 'c'"):
        one_against_rest(texts_of([0, 0, 1]), 2, num_texts=4, seed=0)


def test_the_worlds_own_tasks_are_the_default_on_the_world_and_nowhere_else(bench, world):
    tasks = probe_tasks((), world, train_texts=10, test_texts=6, seed=0)
    assert [task.name for task in tasks] == list(WORLD_TASKS)
    for task in tasks:
        assert (len(task.train.texts), len(task.test.texts)) == (10, 6)
        assert not set(task.train.texts) & set(task.test.texts)
    with pytest.raises(NotApplicable, match="no tasks are named"):
        probe_tasks((), bench, train_texts=10, test_texts=6, seed=0)


def test_a_task_with_many_classes_is_one_task_per_class(world):
    tasks = probe_tasks(("world:diary-emotion",), world, train_texts=40, test_texts=24, seed=0)
    assert len(tasks) == 5  # at most five classes are asked for
    assert tasks[0].name == "world:diary-emotion:joy"


def test_a_misspelt_world_task_is_answered_with_the_right_one(world):
    with pytest.raises(UnknownName, match="Did you mean 'topic-sea'"):
        probe_tasks(("world:topic-see",), world, train_texts=4, test_texts=4, seed=0)


def test_a_local_file_is_a_task(bench, tmp_path):
    lines = [
        "text,label",
        *(f"w{i % 20:02d} w0{i % 9},{'yes' if i % 3 else 'no'}" for i in range(90)),
    ]
    (tmp_path / "mine.csv").write_text("\n".join(lines))
    (task,) = probe_tasks(
        ("mine.csv",), bench._replace(relative_to=tmp_path), train_texts=20, test_texts=8, seed=0
    )
    assert task.name == "mine.csv"
    assert task.train.labels.count(1) == task.train.labels.count(0)


def test_the_worlds_concepts_have_texts_prompts_and_words_of_their_own(world, bench):
    concepts = steering_concepts((), world, train_texts=6, num_prompts=4)
    assert [concept.name for concept in concepts] == list(WORLD_CONCEPTS)
    for concept in concepts:
        assert (len(concept.positive), len(concept.negative), len(concept.prompts)) == (6, 6, 4)
        own = set(get_steering_concept(concept.name.removeprefix("world:")).lexicon)
        assert set(concept.lexicon) == own
        found = [any(w in own for w in text.split()) for text in concept.positive]
        assert all(found)
    with pytest.raises(NotApplicable, match="no concepts are named"):
        steering_concepts((), bench, train_texts=6, num_prompts=4)
    with pytest.raises(BadInput, match="a concept is world:NAME"):
        steering_concepts(("animal",), world, train_texts=6, num_prompts=4)


def test_a_concept_given_by_examples_is_cut_to_what_was_asked_for(bench):
    given = ConceptConfig(
        name="mine",
        positive=tuple("abcdefgh"),
        negative=tuple("abcdefgh"),
        prompts=tuple("abcdef"),
        lexicon=("a",),
    )
    (found,) = steering_concepts((given,), bench, train_texts=5, num_prompts=4)
    assert (found.positive, found.prompts) == (tuple("abcde"), tuple("abcd"))


def test_the_worlds_documents_come_with_their_kinds(world):
    pool = document_pool(world, 12)
    assert len(pool.texts) == len(set(pool.numbers)) == 12
    assert pool.labels is not None
    assert len(set(pool.labels)) > 1


def test_documents_of_a_corpus_are_put_together_from_its_contexts(bench):
    tokens = torch.tensor([[1, 5, 6, 2], [1, 7, 8, 9], [10, 2, 1, 11]])
    document = torch.tensor([[0, 0, 0, 0], [4, 4, 4, 4], [4, 4, 9, 9]])
    rows = SimpleNamespace(tokens=tokens, document=document, keep=tokens > 3)
    split = SimpleNamespace(batches=lambda n: iter([(range(3), rows)]))
    pool = document_pool(bench._replace(split=split), 2)
    assert pool.texts == ["w01 w02", "w03 w04 w05 w06"]
    assert pool.numbers == [0, 4]
    assert pool.labels is None
