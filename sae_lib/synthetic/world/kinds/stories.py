"""Short stories of animals and children, in the present tense, with number agreement.

The hero is one animal or a group; verbs agree with it, also across a phrase that holds a noun of
the other number. The plot decides the ending, and the ending the feelings.
"""

from typing import NamedTuple

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.lexicon import (
    ANIMAL_WORDS,
    FOODS,
    HAPPY,
    MOTIONS,
    PARTS_OF_DAY,
    PLACES,
    SAD,
    SIZES,
    article,
    listed,
    plural,
)
from sae_lib.synthetic.world.task import (
    AnswerTask,
    LabelledTask,
    Prompt,
    SteeringConcept,
    add_answers,
    add_steering,
    add_task,
)
from sae_lib.synthetic.world.writer import Table, Writer

NAMES = listed("pip momo tansy biscuit pepper fern bramble tuft clover nib")


class Plot(NamedTuple):
    """Each sentence: # hero, + friend, ~ is or are, /x/y/ singular or plural verb form."""

    happens: tuple[str, ...]
    ends: tuple[str, ...]
    happy: bool


PLOTS = {
    "lost": Plot(
        ("one day # /loses/lose/ the way .", "# /looks/look/ for the path .",
         "it is getting dark and # ~ FEEL ."),
        ("# /finds/find/ the way home .", "# /sees/see/ the lights of the house ."), True),
    "hunger": Plot(
        ("# /wants/want/ some FOOD .", "# /finds/find/ no FOOD .", "# ~ FEEL ."),
        ("the + shares the FOOD with # .",), True),
    "storm": Plot(
        ("rain falls on the PLACE .", "# /hides/hide/ under a tree .",
         "the wind breaks the tree ."),
        ("the nest is gone forever .", "# ~ left in the mud ."), False),
    "quarrel": Plot(
        ("# /steals/steal/ FOOD from the + .", "the + shouts at # .", "# /feels/feel/ FEEL ."),
        ("the + never speaks to # again .",), False),
    "treasure": Plot(
        ("# /digs/dig/ a hole near the PLACE .", "# /finds/find/ a golden ring .",
         "# /shows/show/ it to the + ."),
        ("# /becomes/become/ famous in the PLACE .",), True),
    "trap": Plot(
        ("# /falls/fall/ into a trap .", "nobody hears # .", "# ~ FEEL ."),
        ("the + opens the trap .", "# /escapes/escape/ through a hole ."), True),
}  # fmt: skip

declare("story-name", "The word is the name of an animal in a story.", parents=("proper-name",),
        words=NAMES)  # fmt: skip
tag("adjective", SIZES + HAPPY + SAD + ("golden", "dark", "famous", "gone", "left"))
tag("noun-singular", PLACES)
tag("noun-singular", "way path house tree rain wind nest mud hole ring trap end")
tag("noun-plural", "lights")
tag("verb-present-plural", "lose look want hide steal feel dig find show become fall escape "
    "see")  # fmt: skip
tag("verb-present", "loses looks wants hides steals feels digs finds shows becomes falls opens "
    "escapes shares speaks sees lives breaks shouts hears getting")  # fmt: skip
for _base, _third in MOTIONS:
    tag("verb-present-plural", _base)
    tag("verb-present", _third)
tag("pronoun", "nobody")
tag("preposition", "through")
tag("adverb", "forever")
tag("determiner", "no one")
tag("verb-past", "named")

declare("hero-number", "The story has told whether its hero is one or many.", scope="context")
declare("hero-singular", "The hero of the story is one animal, as the first verb has told.",
        parents=("hero-number",), scope="context")  # fmt: skip
declare("hero-plural", "The heroes of the story are many, as the first verb has told.",
        parents=("hero-number",), scope="context")  # fmt: skip
declare("plot", "The story has told its plot.", scope="context")
for _name in PLOTS:
    declare(f"plot-{_name}", f"The plot of the story is {_name}, which was told.",
            parents=("plot",), scope="context")  # fmt: skip
declare("story-ending", "It is known how the story ends.", scope="context")
declare("ends-well", "The story ends well, as its plot has told.", parents=("story-ending",),
        scope="context")  # fmt: skip
declare("ends-badly", "The story ends badly, as its plot has told.", parents=("story-ending",),
        scope="context")  # fmt: skip
declare("verb-next", "The next word is a verb that agrees with the hero.", scope="context")

_NUM_HABITS = Table((1, 2), (0.5, 0.5))


class _Cast:
    """Who and what a story is about. What a plot may leave out is chosen where it first appears."""

    def __init__(self, animal: str, hero: str, place: str, *, many: bool) -> None:
        self.animal, self.hero, self.place, self.many = animal, hero, place, many
        self._friend = self._food = ""

    def friend(self, w: Writer) -> str:
        self._friend = self._friend or w.pick([a for a in ANIMAL_WORDS if a != self.animal])
        return self._friend

    def food(self, w: Writer) -> str:
        self._food = self._food or w.pick(FOODS)
        return self._food


def _tell(w: Writer, line: str, cast: _Cast) -> None:
    for word in line.split():
        if word == "#":
            w.say(cast.hero)
        elif word == "+":
            w.say(cast.friend(w))
        elif word == "~":
            w.say("are" if cast.many else "is")
        elif word == "FOOD":
            w.say(cast.food(w))
        elif word == "PLACE":
            w.say(cast.place)
        elif word == "FEEL":
            w.say(w.pick(SAD))
        elif word.startswith("/"):
            singular, plural_form = word.strip("/").split("/")
            w.contexts[-1] += ("verb-next",)
            w.say(plural_form if cast.many else singular)
        else:
            w.say(word)


def write(w: Writer, cfg: WorldConfig) -> None:
    many = w.flip(0.4)
    plot_name = w.pick(tuple(PLOTS))
    plot = PLOTS[plot_name]
    animal = w.pick(ANIMAL_WORDS)
    place = w.pick(PLACES)
    w.labels |= {
        "form": "story",
        "hero": animal,
        "number": "plural" if many else "singular",
        "plot": plot_name,
        "ending": "good" if plot.happy else "bad",
    }
    w.say("once there")
    w.mark("opening")
    size = w.pick(SIZES)
    noun = plural(animal) if many else animal
    if many:
        w.say("were")
        w.tell("hero-plural")
        w.say(w.pick(("two", "three", "four")))
        w.say(size)
        w.say(noun)
        hero = f"the {noun}"
    else:
        w.say("was")
        w.tell("hero-singular")
        w.say(article(size))
        w.say(size)
        w.say(noun)
        name = w.pick(NAMES)
        w.say("named")
        w.say(name)
        hero = f"the {noun}" if w.flip(0.5) else name
    w.say(".")

    for _ in range(round(w.draw(_NUM_HABITS) * cfg.length_factor)):
        w.say("every")
        w.say(w.pick(PARTS_OF_DAY))
        w.say(hero)
        if w.flip(0.4):
            # a noun of the other number comes between subject and verb
            other = w.pick(PLACES)
            w.say("near the")
            w.say(other if many else other + "s")
        w.contexts[-1] += ("verb-next",)
        w.say(w.pick(MOTIONS)[0 if many else 1])
        w.say("to the")
        w.say(place)
        w.say(".")

    cast = _Cast(animal, hero, place, many=many)
    start = len(w.tokens)
    for line in (*plot.happens, w.pick(plot.ends)):
        _tell(w, line, cast)
    # plots that open with the hero are told by their first verb, the others by their first word
    told = start + len(hero.split()) if plot.happens[0].startswith("#") else start
    w.tell(f"plot-{plot_name}", "ends-well" if plot.happy else "ends-badly", since=told)
    w.say("in the end")
    w.say(hero)
    w.contexts[-1] += ("verb-next",)
    w.say("are" if many else "is")
    w.mark("feeling")
    w.say(w.pick(HAPPY if plot.happy else SAD))
    w.say(".")


tag("noun-plural", [place + "s" for place in PLACES])
tag("story-place", [place + "s" for place in PLACES])

register(Kind("story", "a short story about an animal or several", write, weight=0.08))
add_task(
    LabelledTask(
        name="story-ending",
        description="Does the story end well? The text ends before the last feeling.",
        classes=("bad", "good"),
        key="ending",
        kind="story",
        cut="feeling",
        positive_concept="ends-well",
        lexicon_concept="happy-feeling",
    )
)
add_task(
    LabelledTask(
        name="hero-number",
        description="Is the hero of the story one or many?",
        classes=("singular", "plural"),
        key="number",
        kind="story",
        positive_concept="hero-plural",
        lexicon_concept="verb-present-plural",
    )
)
add_steering(
    SteeringConcept(
        name="animal",
        description="Speak of animals.",
        concept="kind-story",
        lexicon_concept="animal",
        kind="story",
        key="form",
        value="story",
        contrast_kind="news",
        prompt_kind="news",
        prompt_cut="dateline",
    )
)


def _ending(w: Writer, cfg: WorldConfig) -> Prompt:
    write(w, cfg)
    text = " ".join(w.tokens[: w.marks["feeling"] - 1])
    return Prompt(text, ("are",) if w.labels["number"] == "plural" else ("is",), w.labels)


add_answers(
    AnswerTask(
        name="story-agreement",
        description="At the end of a story, does the verb agree with the hero in number?",
        prompt=_ending,
        goal=0.98,
        break_down="number",
    )
)
