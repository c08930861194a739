"""Two answers to one question, and which of them is better.

An entry is decided by manners (the polite answer wins) or by length (the concise one wins); it says
by which, and the answers differ in it. In the other respect they are like or unlike by chance.
Whether an answer is written as a numbered list decides nothing.
"""

from typing import NamedTuple

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.lexicon import (
    ANIMAL_WORDS,
    CLIMATES,
    COLORS,
    FOODS,
    INSTRUMENTS,
    PLACES,
    SIZES,
)
from sae_lib.synthetic.world.task import (
    AnswerTask,
    LabelledTask,
    Prompt,
    add_answers,
    add_task,
)
from sae_lib.synthetic.world.writer import Table, Writer

MANNERS_SHARE = 0.6
"""Share of entries that manners decide; length decides the others."""
LISTED_SHARE = 0.3
"""Share of answers that are numbered lists."""


class _Subject(NamedTuple):
    question: str
    clause: str
    """``#`` stands for one of the words."""
    words: tuple[str, ...]


_SUBJECTS = (
    _Subject("how is the weather", "it is #", CLIMATES),
    _Subject("which color has the house", "it is #", COLORS),
    _Subject("what is on the table", "there are some #",
             tuple(food for food in FOODS if food.endswith("s"))),
    _Subject("what is in the garden", "there is the #", ANIMAL_WORDS),
    _Subject("where is the path", "it is near the #", PLACES),
    _Subject("how is the teacher", "the teacher is #", SIZES),
    _Subject("what is in the box", "there is the #", INSTRUMENTS),
)  # fmt: skip
POLITE_OPENINGS = (
    "certainly dear friend",
    "thanks for asking",
    "gladly and with pleasure",
    "welcome dear guest",
    "kindly allow me",
)
POLITE_ENDS = ("please ask again", "thanks again", "have a pleasant day")
RUDE_OPENINGS = (
    "what a silly question",
    "obviously you fool",
    "listen you dimwit",
    "whatever you lazy clod",
    "stop asking nonsense",
)
RUDE_ENDS = ("now go away", "never bother me again", "get lost you fool")
POLITE_WORDS = "certainly dear thanks gladly pleasure welcome kindly please pleasant"
RUDE_WORDS = "silly obviously fool dimwit clod whatever nonsense bother"
_ORDER = ("first", "second")
_NUM_CLAUSES = {False: Table((1,), (1,)), True: Table((3, 4), (0.5, 0.5))}

declare("polite-word", "The word is polite.", words=POLITE_WORDS)
declare("rude-word", "The word is rude.", words=RUDE_WORDS)
declare("rank-word", "The word says which of two.", words=_ORDER)
declare(
    "preference-word", "The word says what is better, or by what.", words="better manners length"
)
declare("list-item", "The word opens an item of a list.", words="item")
declare("filler-word", "The word opens an answer that will be long.", words="well")
tag("question-word", "how")
tag("verb-base", "ask allow stop listen bother get have go")
tag("adverb", "away now also well certainly gladly kindly obviously")
tag("adjective", "dear pleasant silly better lost")
tag("noun-singular", "weather friend guest pleasure fool dimwit clod nonsense length item")
tag("noun-plural", "manners thanks")
tag("pronoun", "you me")
tag("verb-present", "asking")

for _id, _description, _parent in (
    ("preference-manners", "The answer has polite or rude manners.", ""),
    ("preference-polite", "The answer is a polite one.", "preference-manners"),
    ("preference-rude", "The answer is a rude one.", "preference-manners"),
    ("preference-length", "The answer turned out concise or rambling.", ""),
    ("preference-concise", "The answer is a concise one.", "preference-length"),
    ("preference-rambling", "The answer is a rambling one.", "preference-length"),
    ("preference-listed", "The answer is written as a numbered list.", ""),
    ("preference-decided", "It is said what decides which answer is better.", ""),
    ("preference-by-manners", "Manners decide which answer is better.", "preference-decided"),
    ("preference-by-length", "Length decides which answer is better.", "preference-decided"),
    ("preference-verdict-next", "The next word says which answer is better.", ""),
    ("preference-first-next", "The next word says that the first answer is better.",
     "preference-verdict-next"),
    ("preference-second-next", "The next word says that the second answer is better.",
     "preference-verdict-next"),
):  # fmt: skip
    declare(_id, _description, parents=(_parent,) if _parent else (), scope="context")


def _answer(w: Writer, subject: _Subject, *, polite: bool, rambling: bool) -> None:
    around = w.around
    listed = w.flip(LISTED_SHARE)
    w.add_context("preference-polite" if polite else "preference-rude")
    w.say(w.pick(POLITE_OPENINGS if polite else RUDE_OPENINGS))
    w.say(".")
    w.add_context("preference-rambling" if rambling else "preference-concise")
    if rambling:
        w.say("well")
    if listed:
        w.add_context("preference-listed")
    opening, _, rest = subject.clause.partition("#")
    chosen = w.arrange(subject.words, w.draw(_NUM_CLAUSES[rambling]))
    for place, word in enumerate(chosen):
        if listed:
            w.say(f"item {('one', 'two', 'three', 'four')[place]} :")
        elif place:
            w.say("and also")
        w.say(opening)
        w.say(word)
        if rest:
            w.say(rest)
    w.say(".")
    w.say(w.pick(POLITE_ENDS if polite else RUDE_ENDS))
    w.say(".")
    w.around = around


def write(w: Writer, cfg: WorldConfig) -> None:
    by_manners = w.flip(MANNERS_SHARE)
    # whichever attribute decides, the answers differ in it
    polite = [w.flip(0.5), w.flip(0.5) if not by_manners else False]
    rambling = [w.flip(0.5), w.flip(0.5) if by_manners else False]
    if by_manners:
        polite[1] = not polite[0]
        best = 0 if polite[0] else 1
    else:
        rambling[1] = not rambling[0]
        best = 1 if rambling[0] else 0
    subject = w.pick(_SUBJECTS)
    attribute = "manners" if by_manners else "length"
    w.labels |= {
        "preferred": _ORDER[best],
        "attribute": attribute,
        "first_manners": "polite" if polite[0] else "rude",
        "second_manners": "polite" if polite[1] else "rude",
        "first_length": "rambling" if rambling[0] else "concise",
        "second_length": "rambling" if rambling[1] else "concise",
    }
    w.say("ask :")
    w.say(subject.question)
    w.say("?")
    for place, name in enumerate(_ORDER):
        w.say(name)
        w.say(":")
        w.mark(name)
        _answer(w, subject, polite=polite[place], rambling=rambling[place])
        w.mark(f"end_{name}")
    w.say("better by")
    w.add_context(f"preference-by-{attribute}")
    w.say(attribute)
    w.say(":", f"preference-{_ORDER[best]}-next")
    w.mark("answer")
    w.say(_ORDER[best])
    w.say(".")


class PreferenceRow(NamedTuple):
    """What preference optimisation reads. Chosen and rejected text continue the prompt."""

    prompt: str
    chosen: str
    rejected: str
    attribute: str
    """``manners`` or ``length``: what decided."""


def preference_rows(split: str, num: int, *, cfg: WorldConfig | None = None) -> list[PreferenceRow]:
    """``num`` pairs of answers from documents of ``split``.

    A prompt ends where the first answer of a document begins. The documents are those of the
    stream ``preference-rows/<split>``: no model read them unless the split is ``train``.
    """
    from sae_lib.synthetic.world.generate import documents  # which reads the kinds

    rows = []
    cfg = (cfg or WorldConfig()).but(kind_weights={"preference": 1.0})
    for doc in documents(cfg, 0, num, split=f"preference-rows/{split}"):
        answers = [
            " ".join(doc.tokens[doc.marks[name] : doc.marks[f"end_{name}"]]) for name in _ORDER
        ]
        best = _ORDER.index(doc.labels["preferred"])
        rows.append(
            PreferenceRow(
                " ".join(doc.tokens[: doc.marks["first"]]),
                answers[best],
                answers[1 - best],
                doc.labels["attribute"],
            )
        )
    return rows


register(Kind("preference", "two answers to one question and which is better", write, weight=0.04))
add_task(
    LabelledTask(
        name="preference",
        description="Which answer is better? The text ends before it is said.",
        classes=_ORDER,
        key="preferred",
        kind="preference",
        cut="answer",
        positive_concept="preference-second-next",
    )
)
add_task(
    LabelledTask(
        name="completion-polite",
        description="Is the answer polite? The text ends with the first answer.",
        classes=("rude", "polite"),
        key="first_manners",
        kind="preference",
        cut="end_first",
        positive_concept="preference-polite",
        lexicon_concept="polite-word",
    )
)
add_task(
    LabelledTask(
        name="completion-concise",
        description="Is the answer concise? The text ends with the first answer.",
        classes=("rambling", "concise"),
        key="first_length",
        kind="preference",
        cut="end_first",
        positive_concept="preference-concise",
    )
)


def _which_is_better(w: Writer, cfg: WorldConfig) -> Prompt:
    write(w, cfg)
    return Prompt(" ".join(w.tokens[: w.marks["answer"]]), (w.labels["preferred"],), dict(w.labels))


add_answers(
    AnswerTask(
        name="preference",
        description="The better answer is told by the attribute that decides.",
        prompt=_which_is_better,
        goal=0.95,
        break_down="attribute",
    )
)
