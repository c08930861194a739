"""Comments on things and on people, in either language, toxic or clean.

A toxic comment calls somebody a name in one of its sentences at least. The same sentences call
people good names (genius, wizard) in clean comments, and a clean comment may be harsh about the
thing or say that somebody is no genius. The languages share no word but names and marks, so a
list of toxic words of one tells nothing about the other; the concepts are the same.
"""

from collections.abc import Iterator
from functools import partial

from sae_lib.synthetic.world.concepts import declare, is_word, tag, tag_like
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.foreign import FUNCTION_WORDS, TO_SINDRAL
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.kinds import _grammar, reviews
from sae_lib.synthetic.world.lexicon import (
    FEMALE_NAMES,
    MALE_NAMES,
    NEUTRAL_NAMES,
    article,
)
from sae_lib.synthetic.world.task import (
    LabelledTask,
    SteeringConcept,
    add_steering,
    add_task,
)
from sae_lib.synthetic.world.writer import Table, Writer

ENGLISH, SINDRAL, PROFESSIONS = _grammar.ENGLISH, _grammar.SINDRAL, _grammar.PROFESSIONS
ENGLISH_SHARE = 0.6
NAME_SHARE = 0.7
"""Chance that a sentence of a toxic comment calls names; one does in any case."""
BAD_OPINION = {"toxic": 0.75, "clean": 0.35}
MOST_SENTENCES = 20

INSULTS = {
    "insult-of-wits": {
        "blockhead": "gromeklo", "nitwit": "zibreko", "dimwit": "vurdamo", "numskull": "plodruko",
        "dunce": "hebrago", "bonehead": "skrambo", "halfwit": "tizuplo", "dolt": "dugrovo",
    },
    "insult-of-manners": {
        "clod": "bruzeko", "buffoon": "fagrilo", "oaf": "hupramo", "lout": "jogretho",
        "boor": "krazhino", "twerp": "pizgoto", "pest": "mugrado",
    },
}  # fmt: skip
HONORS = {
    "genius": "lumidero", "wizard": "velorimo", "hero": "arvaneo", "champion": "sentorilo",
    "legend": "ilvarendo", "angel": "oriselo", "gem": "celvinio", "master": "amodaro",
    "marvel": "elisundo", "saint": "naviremo", "ace": "ulmerio", "sage": "iravelo",
}  # fmt: skip
THINGS = {
    "film": "uvento",
    "meal": "okrino",
    "post": "egrapho",
    "idea": "isemio",
    "song": "alirano",
}
MESSES = {"mess": "uskrabo", "disaster": "ekrunzo"}
BAD_QUALITIES = {"poor": "agroza", "awful": "izbura", "dull": "omuda"}
GOOD_QUALITIES = {"lovely": "amirela", "charming": "ovanda"}
YOU = {"you": "tevu"}
MANNERS = ("young", "old", "clever", "lazy", "little")
"""Adjectives before names of either sort."""
STATES = ("lazy", "clever", "tired", "happy", "sad", "angry", "proud", "hungry")
"""What else a comment says of people: harsh or kind, never toxic."""
NAMES = FEMALE_NAMES + MALE_NAMES + NEUTRAL_NAMES

_JUDGEMENTS = " ".join((*reviews.POSITIVE.values(), *reviews.NEGATIVE.values())).split()
if not {*BAD_QUALITIES, *GOOD_QUALITIES} <= set(_JUDGEMENTS):
    raise ValueError("the judgements of comments are words of the reviews")
_TO_SINDRAL = {**TO_SINDRAL, **FUNCTION_WORDS}
for _pairs in (*INSULTS.values(), HONORS, THINGS, MESSES, BAD_QUALITIES, GOOD_QUALITIES, YOU):
    for _there in _pairs.values():
        if is_word(_there):
            raise ValueError(f"{_there!r} is a word already")
    _TO_SINDRAL |= _pairs

_SLURS = {here: there for pairs in INSULTS.values() for here, there in pairs.items()}
declare("toxic-word", "The word is an insult, in either language.")
declare("toxic-word-english", "The word is an English insult.", parents=("toxic-word",),
        words=_SLURS.keys())  # fmt: skip
declare("toxic-word-sindral", "The word is an insult of the second language.",
        parents=("toxic-word",), words=_SLURS.values())  # fmt: skip
for _sort, _pairs in INSULTS.items():
    declare(_sort, f"The word is an {_sort.replace('-', ' ')}, in either language.",
            parents=("toxic-word",), words=(*_pairs, *_pairs.values()))  # fmt: skip
tag("noun-singular", (*_SLURS, *_SLURS.values()))
tag("sindral-word", _SLURS.values())
declare("honor-word", "The word calls somebody something good, in either language.", words=HONORS)
declare("comment-thing", "The word names a thing that people comment on.", words=THINGS)
declare("harsh-noun", "The word is a harsh noun for a thing, no insult to anybody.", words=MESSES)
tag("noun-singular", (*HONORS, *THINGS, *MESSES, "comment"))
tag("pronoun", "you")
tag("verb-base", "like think sound")
tag("auxiliary", "would")
tag("adverb", "only")
for _pairs in (HONORS, THINGS, MESSES, BAD_QUALITIES, GOOD_QUALITIES, YOU):
    for _here, _there in _pairs.items():
        tag_like(_there, _here, "sindral-word")

declare("comment-language", "The comment has a language.", scope="context")
declare("comment-english", "The comment is in English, as its first own word has told.",
        parents=("comment-language",), scope="context")  # fmt: skip
declare("comment-sindral", "The comment is in the second language, as its first own word has told.",
        parents=("comment-language", "in-sindral"), scope="context")  # fmt: skip
declare("comment-opinion", "The comment thinks well or badly of a thing.", scope="context")
declare("comment-praises", "The comment thinks well of the thing.", parents=("comment-opinion",),
        scope="context")  # fmt: skip
declare("comment-blames", "The comment thinks badly of the thing.", parents=("comment-opinion",),
        scope="context")  # fmt: skip
declare("comment-toxic", "The comment is toxic, as some insult has told.", scope="context")

_NUM_SENTENCES = Table((1, 2, 3), (0.35, 0.4, 0.25))
_DEGREES = Table(("", "very", "not"), (0.55, 0.25, 0.2))
_GOOD, _BAD = tuple(GOOD_QUALITIES), tuple(BAD_QUALITIES)
# N the name that somebody is called, P a profession, A an adjective, T the thing of the comment
_CALLS = {
    ENGLISH: Table(
        ("you are a N .", "you are a A N .", "the P is a N .", "what a N you are !",
         "only a N would like the T .", "i think the P is a A N .", "you sound like a N ."),
        (0.2, 0.15, 0.2, 0.15, 0.1, 0.1, 0.1),
    ),
    SINDRAL: Table(
        ("you N is .", "you N A is .", "the P N is .", "you the N with is .", "the P N A is ."),
        (0.25, 0.2, 0.25, 0.15, 0.15),
    ),
}  # fmt: skip
_OTHERWISE = {
    ENGLISH: Table(
        ("you are not a N .", "the P is not a N .", "the P is S .", "you are very S ."),
        (0.25, 0.15, 0.35, 0.25),
    ),
    SINDRAL: Table(
        ("you N not is .", "the P N not is .", "the P S is .", "you very S is ."),
        (0.25, 0.15, 0.35, 0.25),
    ),
}
_CALLS_HONOR = 0.55
"""Chance that a sentence without insult calls somebody a good name."""


def _word(word: str, language: str) -> str:
    return word if language == ENGLISH or word in {".", "!"} else _TO_SINDRAL[word]


def _opinion(w: Writer, thing: str, language: str, *, good: bool) -> None:
    """Says what the thing is like; ``good`` holds from the word on that settles it."""
    id = "comment-praises" if good else "comment-blames"
    noun = ""
    if not good and w.flip(0.3):
        noun = w.pick(tuple(MESSES))
        degree = ""
    else:
        degree = w.draw(_DEGREES)
    quality = noun or w.pick(_GOOD if good != (degree == "not") else _BAD)
    if language == ENGLISH:
        w.say(f"the {thing} is")
        settled = len(w.tokens)  # the article, if a noun comes: only bad ones do
        w.say("a" if noun else degree)
        settled = settled if noun else len(w.tokens)
        w.say(quality)
    else:
        w.say(_word("the", language))
        w.say(_word(thing, language))
        if degree == "very":
            w.say(_word("very", language))
        # a bare adjective leaves open whether a word for not comes before the verb
        settled = len(w.tokens) + (not noun and degree != "very")
        w.say(_word(quality, language))
        if degree == "not":
            w.say(_word("not", language))
        w.say(_word("is", language))
    w.say(".")
    w.tell(id, since=settled)


def _sentence(w: Writer, line: str, names: tuple[str, ...], thing: str, language: str) -> None:
    words = line.split()
    chosen: dict[str, str] = {}
    for slot in words:
        if slot == "N":
            chosen[slot] = w.pick(names)
        elif slot == "P":
            chosen[slot] = w.pick(PROFESSIONS)
        elif slot == "A":
            chosen[slot] = w.pick(MANNERS)
        elif slot == "S":
            chosen[slot] = w.pick(STATES)
        elif slot == "T":
            chosen[slot] = thing
    for place, slot in enumerate(words):
        word = chosen.get(slot, slot)
        if slot == "a":
            word = article(chosen[words[place + 1]])
        if slot == "N" and names is _INSULTS and "comment-toxic" not in w.around:
            w.add_context("comment-toxic")
        w.say(_word(word, language))


_INSULTS, _HONORS = tuple(_SLURS), tuple(HONORS)


def _write(w: Writer, cfg: WorldConfig, language: str) -> None:
    """Write a comment in ``language``."""
    toxic = w.flip(cfg.toxic_share)
    toxicity = "toxic" if toxic else "clean"
    good = not w.flip(BAD_OPINION[toxicity])
    thing = w.pick(tuple(THINGS))
    w.labels |= {
        "language": language,
        "toxicity": toxicity,
        "thing": thing,
        "opinion": "good" if good else "bad",
    }
    w.say("comment by")
    w.say(w.pick(NAMES))
    w.say(":")
    w.mark("opening")
    w.add_context(f"comment-{language}")
    _opinion(w, thing, language, good=good)
    w.mark("opinion")
    num = min(round(w.draw(_NUM_SENTENCES) * cfg.length_factor), MOST_SENTENCES)
    pending = toxic  # whether an insult is still owed
    for place in range(num):
        insult = False
        if toxic:
            # sentences insult independently of each other, given that one of them does
            none = (1 - NAME_SHARE) ** (num - place) if pending else 0.0
            chance = NAME_SHARE / (1 - none)
            insult = chance > 1 - 1e-9 or w.flip(chance)
        if insult:
            pending = False
            _sentence(w, w.draw(_CALLS[language]), _INSULTS, thing, language)
        else:
            table = (_CALLS if w.flip(_CALLS_HONOR) else _OTHERWISE)[language]
            _sentence(w, w.draw(table), _HONORS, thing, language)


def write(w: Writer, cfg: WorldConfig) -> None:
    _write(w, cfg, ENGLISH if w.flip(ENGLISH_SHARE) else SINDRAL)


register(Kind("comment", "a comment on a thing and on people, toxic or clean", write, weight=0.06))


def _in_language(language: str, stream: str) -> Iterator[tuple[str, int]]:
    """Comments in one language with 1 for the toxic ones."""
    from sae_lib.synthetic.world.generate import documents  # it reads the kinds

    cfg = WorldConfig(kind_weights={"comment": 1.0})
    for doc in documents(cfg, split=f"task/comment-toxic-{language}/{stream}"):
        if doc.labels["language"] == language:
            yield " ".join(doc.tokens), int(doc.labels["toxicity"] == "toxic")


add_task(
    LabelledTask(
        name="comment-toxic",
        description="Is the comment toxic, in whichever language?",
        classes=("clean", "toxic"),
        key="toxicity",
        kind="comment",
        positive_concept="comment-toxic",
        lexicon_concept="toxic-word",
    )
)
for _language in (ENGLISH, SINDRAL):
    add_task(
        LabelledTask(
            name=f"comment-toxic-{_language}",
            description=f"Is the comment toxic? All are in {_language}.",
            classes=("clean", "toxic"),
            key="toxicity",
            kind="comment",
            positive_concept="comment-toxic",
            lexicon_concept=f"toxic-word-{_language}",
            examples=partial(_in_language, _language),
        )
    )
add_task(
    LabelledTask(
        name="comment-language",
        description="Is the comment in the second language?",
        classes=(ENGLISH, SINDRAL),
        key="language",
        kind="comment",
        positive_concept="comment-sindral",
        lexicon_concept="sindral-word",
    )
)
add_task(
    LabelledTask(
        name="comment-opinion",
        description="Does the comment think well of the thing?",
        classes=("bad", "good"),
        key="opinion",
        kind="comment",
        positive_concept="comment-praises",
    )
)
add_steering(
    SteeringConcept(
        name="toxicity",
        description="Call people names.",
        concept="comment-toxic",
        lexicon_concept="toxic-word",
        kind="comment",
        key="toxicity",
        value="toxic",
        prompt_kind="comment",
        prompt_cut="opinion",
    )
)
add_steering(
    SteeringConcept(
        name=SINDRAL,
        description="Speak the second language.",
        concept="in-sindral",
        lexicon_concept="sindral-word",
        kind="comment",
        key="language",
        value=SINDRAL,
        prompt_kind="comment",
        prompt_cut="opening",
    )
)
