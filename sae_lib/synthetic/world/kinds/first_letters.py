"""First letters of words, in the form that absorption is measured with.

``hound has the first letter : H .`` Words are drawn evenly, as in `spelling`.
"""

import hashlib
from collections.abc import Sequence
from functools import cache

from sae_lib.errors import UnknownName
from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.kinds.spelling import spelled_words, starts_with
from sae_lib.synthetic.world.lexicon import LETTERS
from sae_lib.synthetic.world.task import AnswerTask, Prompt, add_answers
from sae_lib.synthetic.world.writer import Writer

QUERY = "has the first letter :"
WORD_FROM_END = len(QUERY.split()) + 1
"""The word that is asked about is the token this far from the end of a prompt."""
NUM_SHOWN = 10
"""Examples in front of a query."""
FEWEST, MOST = 4, 12
LONGEST = 31
"""As many lines fill a long context."""
TEST_SHARE = 0.2

tag("noun-singular", "letter")
for _letter in LETTERS:
    declare(
        f"starts-with-{_letter.lower()}",
        f"The word before a question about letters, or the word asked about at the colon, "
        f"starts with {_letter}.",
        parents=("starts-with",),
        scope="context",
    )


def _say_line(w: Writer, word: str) -> None:
    starts = starts_with(word)
    w.say(word, starts)
    w.say("has the first letter")
    w.say(":", starts)
    w.mark("answer")
    w.say(word[0].upper())
    w.say(".")


def write(w: Writer, cfg: WorldConfig) -> None:
    few, many = round(FEWEST * cfg.length_factor), round(MOST * cfg.length_factor)
    num = w.pick(range(min(few, LONGEST), min(many, LONGEST) + 1))
    words = w.arrange(spelled_words(), num)
    for word in words:
        _say_line(w, word)
    w.labels |= {"last": words[-1], "letter": words[-1][0].upper(), "num_words": str(num)}


register(Kind("first-letters", "first letters of words, line by line", write, weight=0.04))


@cache
def first_letter_words(split: str) -> tuple[str, ...]:
    """Words whose first letter is asked for, four fifths for training probes, by their hash.

    The model itself has read all of them.
    """
    if split not in ("train", "test"):
        raise UnknownName("split of words", split, ("train", "test"))

    def in_test(word: str) -> bool:
        place = int.from_bytes(hashlib.blake2b(word.encode(), digest_size=4).digest())
        return place / 2**32 < TEST_SHARE

    return tuple(word for word in spelled_words() if in_test(word) == (split == "test"))


def first_letter_prompt(word: str, examples: Sequence[str]) -> str:
    """Lines about ``examples`` and the question about ``word``, without its answer.

    The word is token `WORD_FROM_END` from the end.
    """
    lines = [f"{example} {QUERY} {example[0].upper()} ." for example in examples]
    return " ".join([*lines, word, QUERY])


def _asked(w: Writer, cfg: WorldConfig) -> Prompt:
    *examples, word = w.arrange(spelled_words(), NUM_SHOWN + 1)
    letter = word[0].upper()
    return Prompt(first_letter_prompt(word, examples), (letter,), {"letter": letter, "word": word})


add_answers(
    AnswerTask(
        name="first-letter",
        description="After ten examples, is the first letter of a word right?",
        prompt=_asked,
        goal=0.95,
        break_down="letter",
    )
)
