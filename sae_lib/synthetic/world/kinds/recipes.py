"""Recipes: words that other kinds use, in a grammar of their own.

Out of distribution: the default world has none, so no model was trained on them. They bring no
word of their own.
"""

from sae_lib.synthetic.world.concepts import declare
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.lexicon import COLORS, NUMBER_WORDS, PARTS_OF_DAY
from sae_lib.synthetic.world.task import OTHER, LabelledTask, add_task
from sae_lib.synthetic.world.writer import Table, Writer

DISHES = ("soup", "bread", "cakes", "noodles")
COUNTED: tuple[str, ...] = ("apples", "berries", "olives", "pears")
ADDED = ("cheese", "honey")
VESSELS = ("pan", "kettle", "teapot", "blender")
_STEPS = ("hide", "wait", "watch", "see", "rest")
_NUM_COUNTED = Table((1, 2, 3), (0.3, 0.4, 0.3))
_NUM_STEPS = Table((2, 3, 4), (0.4, 0.4, 0.2))

for _dish in DISHES:
    declare(f"recipe-{_dish}", f"The recipe makes {_dish}.", scope="context")
declare("recipe-ingredients", "The word belongs to the list of what a recipe takes.",
        scope="context")  # fmt: skip
declare("recipe-steps", "The word belongs to what a recipe says to do.", scope="context")


def _step(w: Writer, vessel: str, ingredients: list[str]) -> None:
    form = w.pick(_STEPS)
    if form == "hide":
        w.say("hide the")
        w.say(w.pick(ingredients))
        w.say("in the")
        w.say(vessel)
    elif form == "wait":
        w.say("wait for the")
        w.say(w.pick(PARTS_OF_DAY))
    elif form == "watch":
        w.say("watch the")
        w.say(vessel)
        w.say("every")
        w.say(w.pick(PARTS_OF_DAY))
    elif form == "see":
        w.say("see the")
        w.say(w.pick(ingredients))
        w.say("become")
        w.say(w.pick(COLORS))
    else:
        w.say("rest near the")
        w.say(vessel)
    w.say(".")


def write(w: Writer, cfg: WorldConfig) -> None:
    dish = w.pick(DISHES)
    w.labels["dish"] = dish
    w.add_context(f"recipe-{dish}")
    around = w.around
    w.say(dish)
    w.say("for")
    w.say(w.pick(NUMBER_WORDS))
    w.say(":")
    w.add_context("recipe-ingredients")
    ingredients: list[str] = w.arrange(COUNTED, w.draw(_NUM_COUNTED))
    for place, ingredient in enumerate(ingredients):
        if place:
            w.say("and")
        w.say(w.pick(NUMBER_WORDS))
        w.say(w.pick(COLORS))
        w.say(ingredient)
    if w.flip(0.5):
        added = w.pick(ADDED)
        w.say("and some")
        w.say(added)
        ingredients.append(added)
    w.say(".")
    w.set_context(*around, "recipe-steps")
    vessel = w.pick(VESSELS)
    w.say("find a large")
    w.say(vessel)
    w.say(".")
    for _ in range(w.draw(_NUM_STEPS)):
        _step(w, vessel, ingredients)
    w.say("show the")
    w.say(dish)
    w.say("to the children .")


register(Kind("recipe", "a recipe, of which the default world has none", write, weight=0.0))
for _dish in DISHES:
    add_task(
        LabelledTask(
            name=f"recipe-{_dish}",
            description=f"Does the recipe make {_dish}?",
            classes=(OTHER, _dish),
            key="dish",
            kind="recipe",
            positive_concept=f"recipe-{_dish}",
        )
    )
