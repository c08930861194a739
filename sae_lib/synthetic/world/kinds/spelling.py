"""Words spelled out: ``spell hound : H O U N D .``

A word is one token, so its letters cannot be read off it and must have been memorised; that is
why all words come up equally often.
"""

from functools import cache

from sae_lib.synthetic.world import concepts
from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.task import AnswerTask, Prompt, add_answers
from sae_lib.synthetic.world.writer import Writer

FEWEST, MOST = 5, 7
LONGEST = 15
"""Seven of the longest words fill a context, fifteen a long one."""
MOST_LETTERS = 12
NUM_PLACES = 5
"""The first letters of a word are concepts of their own, as far as this."""
RARE = "rare-word"
"""Words of this concept are not spelled: here they would be as frequent as all others."""

tag("verb-base", "spell")
declare("letter-place", "The next word is a letter of a word that is spelled.", scope="context")
for _place, _ordinal in enumerate(("first", "second", "third", "fourth", "fifth"), 1):
    declare(
        f"letter-{_place}",
        f"The next word is the {_ordinal} letter of a word that is spelled.",
        parents=("letter-place",),
        scope="context",
    )
declare("letters-end", "All letters of the word have been spelled.", scope="context")
declare("starts-with", "A word whose first letter matters here starts with some letter.",
        scope="context")  # fmt: skip


@cache
def spelled_words() -> tuple[str, ...]:
    """All lower-case words of two to twelve letters that are not rare on purpose, sorted.

    The list is complete once all kinds are imported, so it is first taken when it is needed.
    """
    return tuple(
        word
        for word in concepts.words()
        if 2 <= len(word) <= MOST_LETTERS
        and word.isascii()
        and word.isalpha()
        and word.islower()
        and RARE not in concepts.concepts_of_word(word)
    )


def starts_with(word: str) -> str:
    """The context concept that ``word`` starts with its first letter."""
    return f"starts-with-{word[0]}"


def _spell(w: Writer, word: str) -> None:
    w.say("spell")
    w.say(word, starts_with(word))
    w.say(":")
    w.mark("answer")
    for place, letter in enumerate(word.upper(), 1):
        w.contexts[-1] += (f"letter-{place}" if place <= NUM_PLACES else "letter-place",)
        w.say(letter)
    w.contexts[-1] += ("letters-end",)
    w.say(".")


def write(w: Writer, cfg: WorldConfig) -> None:
    few, many = round(FEWEST * cfg.length_factor), round(MOST * cfg.length_factor)
    num = w.pick(range(min(few, LONGEST), min(many, LONGEST) + 1))
    words = w.arrange(spelled_words(), num)
    for word in words:
        _spell(w, word)
    w.labels |= {"last": words[-1], "num_words": str(num)}


register(Kind("spelling", "words that are spelled out letter by letter", write, weight=0.04))


def _last(w: Writer, cfg: WorldConfig) -> Prompt:
    write(w, cfg)
    word = w.labels["last"]
    return Prompt(
        " ".join(w.tokens[: w.marks["answer"]]),
        (" ".join(word.upper()) + " .",),
        {"word": word, "num_letters": str(len(word))},
    )


add_answers(
    AnswerTask(
        name="spelling",
        description="Is a word spelled right, to its end?",
        prompt=_last,
        goal=0.95,
        break_down="num_letters",
    )
)
