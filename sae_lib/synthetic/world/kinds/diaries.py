"""Diary entries about an occasion, in the mood of one emotion.

The first word that tells an emotion is always of the emotion of the entry; each later one is of it
with probability `PURITY`, else of another emotion. The closing feeling is of it again. The words of
the occasion never stray.
"""

from functools import cache
from typing import NamedTuple

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.lexicon import (
    CLIMATES,
    DAYS,
    MONTHS,
    PARTS_OF_DAY,
    listed,
)
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

PURITY = 0.9
"""Chance that a later word of emotion is of the emotion of the entry."""
LONGEST = 28
"""Sentences between the opening and the close, whatever the length factor: at most 250 words."""


class Emotion(NamedTuple):
    adjectives: tuple[str, ...]
    """What one can feel."""
    nouns: tuple[str, ...]
    """What a heart can be full of."""
    verbs: tuple[str, ...]
    """Past tense, intransitive."""


EMOTIONS = {
    "joy": Emotion(
        ("happy", "joyful", "glad", "cheerful"),
        ("delight", "bliss", "laughter"),
        ("laughed", "smiled", "sang"),
    ),
    "anger": Emotion(
        ("angry", "furious", "enraged", "outraged"),
        ("anger", "rage", "fury", "wrath"),
        ("raged", "fumed", "cursed", "scowled"),
    ),
    "fear": Emotion(
        ("afraid", "scared", "frightened", "anxious"),
        ("fear", "dread", "terror"),
        ("trembled", "shivered", "hid"),
    ),
    "sadness": Emotion(
        ("sad", "lonely", "gloomy", "heartbroken"),
        ("sorrow", "grief", "tears"),
        ("wept", "cried", "sighed"),
    ),
    "surprise": Emotion(
        ("surprised", "amazed", "astonished", "stunned"),
        ("wonder", "amazement", "astonishment"),
        ("gasped", "stared", "blinked"),
    ),
    "love": Emotion(
        ("loving", "tender", "devoted", "smitten"),
        ("affection", "tenderness", "devotion"),
        ("swooned", "blushed", "melted"),
    ),
    "disgust": Emotion(
        ("disgusted", "revolted", "nauseous", "repelled"),
        ("disgust", "revulsion", "nausea"),
        ("retched", "gagged", "grimaced"),
    ),
}
OCCASIONS = {
    "wedding": listed("bride groom bridesmaid vows bouquet veil altar"),
    "birthday": listed("candles presents balloons party streamers ribbons cards"),
    "funeral": listed("coffin grave priest mourners hymn wreath cemetery"),
    "journey": listed("train luggage ticket passport suitcase platform compass"),
    "exam": listed("examiner pencil professor classroom grade blackboard eraser"),
}
"""What one sees there; the name is a word of the occasion, too."""
_PLURALS = frozenset(
    listed("vows candles presents balloons streamers ribbons cards mourners tears")
)
_KIN = listed("sister mother daughter aunt brother father son uncle")
_OTHERS = {own: tuple(name for name in EMOTIONS if name != own) for own in EMOTIONS}

declare("emotion-word", "The word tells an emotion, as a diary does.")
declare("occasion-word", "The word belongs to an occasion.")
declare("diary-emotion", "The diary entry is in the mood of an emotion that was told.",
        scope="context")  # fmt: skip
declare("diary-occasion", "The diary entry is about an occasion that was told.", scope="context")
for _name, _emotion in EMOTIONS.items():
    _words = (*_emotion.adjectives, *_emotion.nouns, *_emotion.verbs)
    declare(f"{_name}-word", f"The word tells {_name}.", parents=("emotion-word",), words=_words)
    tag("adjective", _emotion.adjectives)
    tag("verb-past", _emotion.verbs)
    tag("noun-singular", [word for word in _emotion.nouns if word not in _PLURALS])
    declare(f"diary-{_name}", f"The diary entry is one of {_name}, and a word of it was told.",
            parents=("diary-emotion",), scope="context")  # fmt: skip
for _name, _things in OCCASIONS.items():
    declare(f"{_name}-word", f"The word belongs to the occasion {_name}.",
            parents=("occasion-word",), words=(_name, *_things))  # fmt: skip
    tag("noun-singular", [word for word in (_name, *_things) if word not in _PLURALS])
    declare(f"diary-{_name}", f"The diary entry is about the occasion {_name}, which was told.",
            parents=("diary-occasion",), scope="context")  # fmt: skip
tag("noun-plural", _PLURALS)
tag("noun-singular", "diary heart")
tag("adjective", "full")
tag("pronoun", "me")
tag("conjunction", "when")
tag("time-word", "today")
tag("verb-past", "made")
declare("diary-stray-emotion", "The word tells another emotion than that of the entry.",
        scope="context")  # fmt: skip
declare("diary-emotion-next", "The next word of the diary tells an emotion.", scope="context")
declare("diary-close", "The diary entry sums up what was felt.", scope="context")

_FORMS = ("was", "heart", "made", "near", "when", "saw", "kin")
_WITH_EMOTION = ("was", "heart", "made", "near", "when")
_ABOUT_OCCASION = ("event", "saw", "kin")


@cache
def _num_sentences(length_factor: float) -> Table[int]:
    """How many sentences follow the first two."""
    chances: dict[int, float] = {}
    for num, chance in ((1, 0.3), (2, 0.4), (3, 0.2), (4, 0.1)):
        longer = min(round((num + 2) * length_factor), LONGEST) - 2
        chances[longer] = chances.get(longer, 0.0) + chance
    return Table(chances.keys(), chances.values())


class _Entry:
    """One entry: what it is about, and how much of that was told."""

    def __init__(self, w: Writer, emotion: str, occasion: str) -> None:
        self.w, self.emotion, self.occasion = w, emotion, occasion
        self._emotion_told = self._occasion_told = False

    def thing(self) -> None:
        self.occasion_word(self.w.pick(OCCASIONS[self.occasion]))

    def occasion_word(self, word: str) -> None:
        """Write words that can only stand in an entry about this occasion."""
        if not self._occasion_told:
            self._occasion_told = True
            self.w.add_context(f"diary-{self.occasion}")
        self.w.say(word)

    def feel(self, part: int, *, next_known: bool = True) -> None:
        """Write an adjective (part 0), a noun (1) or a verb (2) that tells an emotion."""
        w, emotion = self.w, self.emotion
        if not self._emotion_told:
            self._emotion_told = True
            w.add_context(f"diary-{emotion}")
        elif not w.flip(PURITY):
            emotion = w.pick(_OTHERS[emotion])
        if next_known:
            w.contexts[-1] += ("diary-emotion-next",)
        word = w.pick(EMOTIONS[emotion][part])
        if emotion == self.emotion:
            w.say(word)
        else:
            w.say(word, "diary-stray-emotion")

    def sentence(self, form: str) -> None:
        w = self.w
        if form == "event":
            # the preposition or the article tells some occasions before their name does
            if self.occasion == "journey":
                w.say("i was")
                self.occasion_word("on a")
            elif self.occasion == "exam":
                w.say("i was at")
                self.occasion_word("an")
            else:
                w.say("i was at a")
            self.occasion_word(self.occasion)
            w.say("with my")
            w.say(w.pick(_KIN))
        elif form == "saw":
            w.say("i saw the")
            self.thing()
        elif form == "kin":
            w.say("my")
            w.say(w.pick(_KIN))
            w.say("found the")
            self.thing()
        elif form == "was":
            w.say("i was very")
            self.feel(0)
        elif form == "heart":
            w.say("my heart was full of")
            self.feel(1)
        elif form == "made":
            w.say("the")
            self.thing()
            w.say("made me")
            self.feel(0)
        else:
            w.say("i")
            self.feel(2, next_known=False)
            w.say("near the" if form == "near" else "when i saw the")
            self.thing()
        w.say(".")


def write(w: Writer, cfg: WorldConfig) -> None:
    emotion = w.pick(tuple(EMOTIONS))
    occasion = w.pick(tuple(OCCASIONS))
    w.labels |= {"emotion": emotion, "occasion": occasion}
    w.say("diary :")
    w.say(w.pick(DAYS))
    w.say(w.pick(PARTS_OF_DAY))
    w.say(". it was a")
    w.say(w.pick(CLIMATES))
    w.say("day in")
    w.say(w.pick(MONTHS))
    w.say(".")
    w.mark("opening")
    entry = _Entry(w, emotion, occasion)
    entry.sentence(w.pick(_ABOUT_OCCASION))
    entry.sentence(w.pick(_WITH_EMOTION))
    for _ in range(w.draw(_num_sentences(cfg.length_factor))):
        entry.sentence(w.pick(_FORMS))
    w.mark("closing")
    w.add_context("diary-close")
    w.say("today i feel")
    w.mark("answer")
    w.contexts[-1] += ("diary-emotion-next",)
    w.say(w.pick(EMOTIONS[emotion].adjectives))
    w.say(".")


register(Kind("diary", "a diary entry about an occasion, in the mood of an emotion", write,
              weight=0.05))  # fmt: skip
add_task(
    LabelledTask(
        name="diary-emotion",
        description="Which emotion is the diary entry one of? The text ends before the close.",
        classes=tuple(EMOTIONS),
        key="emotion",
        kind="diary",
        cut="closing",
    )
)
add_task(
    LabelledTask(
        name="diary-occasion",
        description="Which occasion is the diary entry about?",
        classes=tuple(OCCASIONS),
        key="occasion",
        kind="diary",
    )
)
for _key, _names in (("emotion", EMOTIONS), ("occasion", OCCASIONS)):
    for _name in _names:
        add_task(
            LabelledTask(
                name=f"diary-{_name}",
                description=f"Is the {_key} of the diary entry {_name}? The text ends before "
                "the close.",
                classes=(OTHER, _name),
                key=_key,
                kind="diary",
                cut="closing",
                positive_concept=f"diary-{_name}",
                lexicon_concept=f"{_name}-word",
            )
        )
for _key, _name in (("emotion", "anger"), ("emotion", "joy"), ("occasion", "wedding")):
    add_steering(
        SteeringConcept(
            name=_name,
            description=f"Write of {'a ' if _key == 'occasion' else ''}{_name}.",
            concept=f"diary-{_name}",
            lexicon_concept=f"{_name}-word",
            kind="diary",
            key=_key,
            value=_name,
            prompt_kind="diary",
            prompt_cut="opening",
        )
    )


def _closing_feeling(w: Writer, cfg: WorldConfig) -> Prompt:
    write(w, cfg)
    emotion = w.labels["emotion"]
    return Prompt(
        " ".join(w.tokens[: w.marks["answer"]]), EMOTIONS[emotion].adjectives, {"emotion": emotion}
    )


add_answers(
    AnswerTask(
        name="diary-emotion-consistent",
        description="The closing feeling is of the emotion of the diary entry.",
        prompt=_closing_feeling,
        goal=0.95,
        break_down="emotion",
    )
)
