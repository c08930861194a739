"""Scenes in the second language: who is where, what happens there, and how it feels.

The scene (wild, yard, market ...) has its own creatures, and likes some places and companions; the
first subject tells it. The mood shows in feelings, first in that of the hero, and less surely in
how one moves. The verb comes last and agrees with the subject.
"""

from functools import cache
from typing import NamedTuple

from sae_lib.synthetic.world.concepts import declare
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.foreign import TO_SINDRAL
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.kinds._grammar import (
    CREATURES,
    FUNCTION_WORDS,
    SINDRAL,
    THIRD_PERSON,
    VERBS,
    Cast,
    Phrase,
    draw_action,
    draw_look,
    draw_mood,
    draw_phrase,
    draw_subject,
    others,
    say_clause,
    sindral_noun,
)
from sae_lib.synthetic.world.lexicon import FOODS, INSTRUMENTS, PLACES, PROFESSIONS, listed
from sae_lib.synthetic.world.task import (
    AnswerTask,
    LabelledTask,
    Prompt,
    add_answers,
    add_task,
)
from sae_lib.synthetic.world.writer import Table, Writer

MOST_MIDDLE_SENTENCES = 13
PLACE_PREFERENCE = 6
"""How many times as likely a place of the scene is as another."""
VERB_PREFERENCE = 4
"""How many times as likely a verb is that suits the mood, or the scene."""
MOOD_AGREEMENT = 0.9
"""Chance that somebody else feels like the hero."""
SCENE_PURITY = 0.85
"""Chance that somebody else belongs to the scene."""


class Scene(NamedTuple):
    creatures: tuple[str, ...]
    places: str
    verbs: str
    companions: tuple[str, ...]


_YARD = listed("dog hound puppy cat kitten horse pony cow calf lamb goat duck goose "
               "farmer gardener")  # fmt: skip
_WILD = listed("wolf fox bear rabbit mouse owl crow raven sparrow finch eagle hawk pike eel carp "
               "lizard snake turtle bee ant beetle")  # fmt: skip
_HOME = ("sister", "mother", "daughter", "aunt", "brother", "father", "son", "uncle")
_FEAST = listed(PROFESSIONS["artistic"])
_OUTING = listed(f"{PROFESSIONS['medical']} {PROFESSIONS['academic']}")
SCENES = {
    "wild": Scene(_WILD, "forest cave hill", "crawl wander", _WILD),
    "yard": Scene(_YARD, "mill pond garden", "jump run", _YARD[:-2]),
    "home": Scene(_HOME, "garden village", "walk run", FOODS),
    "feast": Scene(_FEAST, "village bridge", "jump walk", INSTRUMENTS),
    "outing": Scene(_OUTING, "hill forest pond", "wander walk", _HOME),
    "market": Scene(
        others(CREATURES, (*_YARD, *_WILD, *_HOME, *_FEAST, *_OUTING)),
        "village mill bridge", "rush walk", FOODS,
    ),
}  # fmt: skip
VERBS_OF_MOOD = {"happy": ("jump", "run"), "sad": ("crawl", "wander")}

declare("sindral-scene", "The text in the second language has some scene.", scope="context")
for _name in SCENES:
    declare(f"sindral-scene-{_name}",
            f"The scene of the text is of the kind {_name}, as its hero has told.",
            parents=("sindral-scene",), scope="context")  # fmt: skip
declare("sindral-mood", "The text in the second language has some mood.", scope="context")
for _mood in VERBS_OF_MOOD:
    declare(f"sindral-mood-{_mood}",
            f"The mood of the text is {_mood}, as the feeling of its hero has told.",
            parents=("sindral-mood",), scope="context")  # fmt: skip

_NUM_MIDDLE = Table((1, 2, 3), (0.35, 0.4, 0.25))
_MIDDLE = Table(("again", "other", "feeling", "look"), (0.25, 0.35, 0.2, 0.2))


@cache
def _cast(scene: str, mood: str) -> Cast:
    creatures, places, verbs, companions = SCENES[scene]
    liked = verbs.split()
    return Cast(
        creatures,
        companions,
        Table(PLACES, [PLACE_PREFERENCE if place in places.split() else 1 for place in PLACES]),
        Table(
            VERBS,
            [
                VERB_PREFERENCE ** ((verb in liked) + (verb in VERBS_OF_MOOD[mood]))
                for verb in VERBS
            ],
        ),
    )


def _somebody_else(w: Writer, scene: str, hero: str) -> tuple[Phrase, ...]:
    """Of the scene, as a rule; never the hero."""
    own = SCENES[scene].creatures
    if w.flip(SCENE_PURITY):
        return draw_subject(w, others(own, (hero,)))
    return draw_subject(w, others(CREATURES, own))


def write(w: Writer, cfg: WorldConfig) -> None:
    scene, mood = w.pick(tuple(SCENES)), w.pick(tuple(VERBS_OF_MOOD))
    cast = _cast(scene, mood)
    hero = draw_phrase(w, w.pick(cast.creatures))
    w.labels |= {"scene": scene, "mood": mood, "number": "plural" if hero.many else "singular"}
    w.add_context("in-sindral")

    say_clause(w, draw_action(w, (hero,), cast, stay=0.25), SINDRAL)
    w.marks["hero-verb"] = w.marks["verb"]
    w.tell(f"sindral-scene-{scene}", since=w.tokens.index(sindral_noun(hero)))
    w.mark("feeling")
    again = (Phrase(hero.noun, hero.many),)
    feels = draw_mood(w, again, happy=mood == "happy")
    say_clause(w, feels, SINDRAL)
    # a word for not may come between the feeling and the verb: where it does not, the verb tells
    w.tell(f"sindral-mood-{mood}", since=w.marks["verb"] - feels.negated)

    num = min(round(w.draw(_NUM_MIDDLE) * cfg.length_factor), MOST_MIDDLE_SENTENCES)
    for _ in range(num):
        form = w.draw(_MIDDLE)
        if form == "again":
            clause = draw_action(w, again, cast, stay=0.25)
        elif form == "other":
            clause = draw_action(w, _somebody_else(w, scene, hero.noun), cast, stay=0.25)
        elif form == "feeling":
            same = w.flip(MOOD_AGREEMENT)
            whose = _somebody_else(w, scene, hero.noun)
            clause = draw_mood(w, whose, happy=same == (mood == "happy"))
        else:
            clause = draw_look(w, cast.places)
        say_clause(w, clause, SINDRAL)


register(Kind("sindral", "a scene in the second language", write, weight=0.04))
add_task(
    LabelledTask(
        name="sindral-mood",
        description="Is the mood of the scene happy? The text is in the second language.",
        classes=("sad", "happy"),
        key="mood",
        kind="sindral",
        positive_concept="sindral-mood-happy",
        lexicon_concept="happy-feeling",
    )
)
add_task(
    LabelledTask(
        name="sindral-scene",
        description="Which scene is it? The text is in the second language.",
        classes=tuple(SCENES),
        key="scene",
        kind="sindral",
    )
)
_VERBS_THAT_AGREE = {
    "singular": (*(TO_SINDRAL[third] for third in THIRD_PERSON.values()), FUNCTION_WORDS["is"]),
    "plural": (*(TO_SINDRAL[base] for base in VERBS), FUNCTION_WORDS["are"]),
}


def _agreement(w: Writer, cfg: WorldConfig) -> Prompt:
    write(w, cfg)
    text = " ".join(w.tokens[: w.marks["hero-verb"]])
    return Prompt(text, _VERBS_THAT_AGREE[w.labels["number"]], dict(w.labels))


add_answers(
    AnswerTask(
        name="sindral-agreement",
        description="A verb of the second language agrees with its subject, across other nouns.",
        prompt=_agreement,
        goal=0.97,
        break_down="number",
    )
)
