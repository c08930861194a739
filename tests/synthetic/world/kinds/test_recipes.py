from collections import Counter

import pytest

from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import document, documents
from sae_lib.synthetic.world.kinds import KINDS
from sae_lib.synthetic.world.kinds.recipes import ADDED, COUNTED, DISHES, VESSELS
from sae_lib.synthetic.world.tasks import task_documents

CFG = WorldConfig(kind_weights={"recipe": 1.0})
DOCS = [document(CFG, index) for index in range(200)]


def test_the_default_world_has_no_recipes():
    assert KINDS["recipe"].weight == 0
    assert all(doc.kind != "recipe" for doc in documents(WorldConfig(), 0, 200))


def test_recipes_bring_no_word_of_their_own():
    others = {
        "story": 400,
        "review": 200,
        "agreement": 200,
        "news": 100,
        "biography": 200,
        "rare": 200,
    }
    known = {
        word
        for kind, num in others.items()
        for doc in documents(WorldConfig(kind_weights={kind: 1.0}), 0, num)
        for word in doc.tokens
    }
    assert {word for doc in DOCS for word in doc.tokens} <= known


def test_steps_use_only_what_the_recipe_lists():
    dishes = Counter()
    for doc in DOCS:
        listed, *steps = " ".join(doc.tokens).removesuffix(" .").split(" . ")
        dish, ingredients = listed.split(" : ")
        assert dish.split()[0] == doc.labels["dish"]
        assert steps[-1] == f"show the {doc.labels['dish']} to the children"
        have = set(ingredients.split())
        vessel = steps[0].split()[-1]
        for step in steps[:-1]:
            words = set(step.split())
            assert words & {*COUNTED, *ADDED} <= have
            assert words & set(VESSELS) <= {vessel}
        dishes[doc.labels["dish"]] += 1
    assert set(dishes) == set(DISHES)


def test_contexts_tell_the_dish_and_the_part():
    for doc in DOCS[:50]:
        stop = doc.tokens.index(".")
        for at, ids in enumerate(doc.contexts):
            assert f"recipe-{doc.labels['dish']}" in ids
            assert ("recipe-ingredients" in ids) == (4 <= at <= stop)
            assert ("recipe-steps" in ids) == (at > stop)


@pytest.mark.parametrize("dish", DISHES)
def test_each_dish_has_a_task(dish):
    found = task_documents(f"recipe-{dish}", "test", 10)
    for line, label in zip(found.texts, found.labels, strict=True):
        assert line.startswith(f"{dish} for") == bool(label)
