"""News of one topic each; now and then a sentence strays to another.

The first sentence after the dateline always keeps to the topic of the item, so the topic can be
read from the text; each later one keeps to it with probability ``topic_purity``.
"""

from typing import NamedTuple

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.knowledge import KNOWN_CITIES, STRANGERS
from sae_lib.synthetic.world.lexicon import DAYS, NUMBER_WORDS, article
from sae_lib.synthetic.world.task import (
    OTHER,
    AnswerTask,
    LabelledTask,
    Prompt,
    SteeringConcept,
    add_answers,
    add_steering,
    add_task,
)
from sae_lib.synthetic.world.writer import Table, Writer


class Topic(NamedTuple):
    people: str
    """Plural nouns."""
    things: str
    """Singular nouns."""
    verbs: str
    """Past tense, transitive."""
    adjectives: str
    places: str


TOPICS = {
    "sea": Topic(
        "divers captains crews fishermen",
        "whale reef anchor tide lighthouse ferry vessel",
        "sailed towed anchored rescued",
        "salty coastal deep",
        "coast dock bay",
    ),
    "sport": Topic(
        "players coaches runners referees",
        "match goal league tournament trophy race team",
        "scored trained kicked defeated",
        "athletic final national",
        "stadium track gym",
    ),
    "politics": Topic(
        "ministers senators voters mayors",
        "election law treaty debate vote speech campaign",
        "elected debated signed vetoed",
        "political federal loyal",
        "parliament embassy senate",
    ),
    "economy": Topic(
        "bankers traders investors brokers",
        "loan tax budget profit market debt wage",
        "invested traded borrowed taxed",
        "financial costly rich",
        "bank office exchange",
    ),
    "weather": Topic(
        "forecasters islanders hikers villagers",
        "storm blizzard flood fog thunder drought rainbow",
        "flooded froze drenched forecast",
        "stormy humid icy",
        "valley plain hillside",
    ),
    "space": Topic(
        "astronauts astronomers pilots scientists",
        "planet comet rocket telescope satellite moon galaxy",
        "launched orbited observed landed",
        "lunar distant solar",
        "observatory station crater",
    ),
    "health": Topic(
        "doctors patients therapists healers",
        "vaccine fever virus cure diet illness pill",
        "cured vaccinated infected diagnosed",
        "healthy sick contagious",
        "ward laboratory surgery",
    ),
    "music": Topic(
        "drummers violinists composers fans",
        "concert melody album opera choir band song",
        "composed performed recorded conducted",
        "musical loud harmonic",
        "hall studio festival",
    ),
    "crime": Topic(
        "thieves detectives judges robbers",
        "theft jewel trial clue weapon alibi fraud",
        "stole arrested convicted confessed",
        "guilty illegal suspicious",
        "court prison jail",
    ),
    "farming": Topic(
        "growers shepherds harvesters ranchers",
        "tractor wheat harvest barley plow corn barn",
        "planted harvested plowed watered",
        "fertile ripe rural",
        "meadow orchard field",
    ),
    "technology": Topic(
        "hackers coders designers users",
        "software chip network server website gadget code",
        "programmed encrypted hacked updated",
        "digital electronic wireless",
        "lab datacenter garage",
    ),
}

declare("topic-word", "The word belongs to the vocabulary of a topic of the news.")
declare("topic", "The news item has told its topic.", scope="context")
declare("sentence-topic", "The sentence has told its topic.", scope="context")
for _name, _topic in TOPICS.items():
    declare(
        f"{_name}-word",
        f"The word belongs to the vocabulary of {_name}.",
        parents=("topic-word",),
        words=" ".join(_topic),
    )
    declare(
        f"topic-{_name}",
        f"The news item is about {_name}, from its first word of {_name} on.",
        parents=("topic",),
        scope="context",
    )
    declare(
        f"sentence-{_name}",
        f"The sentence is about {_name}, from its first word of {_name} on.",
        parents=("sentence-topic",),
        scope="context",
    )
    tag("noun-plural", _topic.people)
    tag("noun-singular", f"{_topic.things} {_topic.places}")
    tag("verb-past", _topic.verbs)
    tag("adjective", _topic.adjectives)
declare("reporting-verb", "The verb says that something was said.",
        words="reported said")  # fmt: skip
tag("verb-past", "reported said had caused surprised")
tag("noun-singular", "nobody news trouble plan")
tag("adjective", "new")

_SPLIT = {name: tuple(tuple(words.split()) for words in topic) for name, topic in TOPICS.items()}
_NUM_SENTENCES = Table((3, 4, 5), (0.3, 0.4, 0.3))
_PEOPLE = [name for names in STRANGERS.values() for name in names]
_OWN = frozenset("PTVAL")
"""Slots for words of the topic, none of which belongs to another one."""
_SENTENCES = (
    "the A P V the T .",
    "N P V the A T near the L .",
    "at the L the A T surprised the P .",
    "the P said that they V the T .",
    "after the T the P V another T .",
    "the new T at the L caused trouble for N P .",
    "the P of CITY had aA plan for the T .",
)


def _sentence(w: Writer, topic: str) -> int:
    """Write a sentence; returns the place of its first word of the topic, which tells it."""
    people, things, verbs, adjectives, places = _SPLIT[topic]
    around = w.around
    told = -1
    for word in w.pick(_SENTENCES).split():
        if told < 0 and word in _OWN:
            told = len(w.tokens)
            w.add_context(f"sentence-{topic}")
        if word == "P":
            w.say(w.pick(people))
        elif word == "T":
            w.say(w.pick(things))
        elif word == "V":
            w.say(w.pick(verbs))
        elif word == "A":
            w.say(w.pick(adjectives))
        elif word == "aA":
            adjective = w.pick(adjectives)
            w.say(article(adjective))
            w.say(adjective)
        elif word == "L":
            w.say(w.pick(places))
        elif word == "N":
            w.say(w.pick(NUMBER_WORDS))
        elif word == "CITY":
            w.say(w.pick(KNOWN_CITIES), "mention-city")
        else:
            w.say(word)
    w.set_context(*around)
    return told


def write(w: Writer, cfg: WorldConfig) -> None:
    topics = tuple(TOPICS)
    topic = w.pick(topics)
    w.labels["topic"] = topic
    w.say("news from")
    w.say(w.pick(KNOWN_CITIES), "mention-city")
    w.say("on")
    w.say(w.pick(DAYS))
    w.say(":")
    w.mark("dateline")
    for place in range(round(w.draw(_NUM_SENTENCES) * cfg.length_factor)):
        if place == 0:
            w.tell(f"topic-{topic}", since=_sentence(w, topic))
        elif w.flip(cfg.topic_purity):
            _sentence(w, topic)
        else:
            _sentence(w, w.pick([other for other in topics if other != topic]))
    if w.flip(0.5):
        w.say("this was reported by")
        w.say(w.pick(_PEOPLE), "mention-person")
        w.say(".")


register(Kind("news", "a news item on one topic", write, weight=0.08))
add_task(
    LabelledTask(
        name="news-topic",
        description="What is the news item about?",
        classes=tuple(TOPICS),
        key="topic",
        kind="news",
    )
)
for _name in TOPICS:
    add_task(
        LabelledTask(
            name=f"topic-{_name}",
            description=f"Is the news item about {_name}?",
            classes=(OTHER, _name),
            key="topic",
            kind="news",
            positive_concept=f"topic-{_name}",
            lexicon_concept=f"{_name}-word",
        )
    )
    add_steering(
        SteeringConcept(
            name=f"topic-{_name}",
            description=f"Report on {_name}.",
            concept=f"topic-{_name}",
            lexicon_concept=f"{_name}-word",
            kind="news",
            key="topic",
            value=_name,
            prompt_kind="news",
            prompt_cut="dateline",
        )
    )


def _at_the(w: Writer, cfg: WorldConfig) -> Prompt:
    write(w, cfg)
    first_stop = w.tokens.index(".", w.marks["dateline"])
    text = " ".join(w.tokens[: first_stop + 1]) + " at the"
    return Prompt(text, tuple(TOPICS[w.labels["topic"]].places.split()), w.labels)


add_answers(
    AnswerTask(
        name="news-topic",
        description="After a first sentence and `at the`, is the place one of the topic?",
        prompt=_at_the,
        goal=0.95,
        break_down="topic",
    )
)
