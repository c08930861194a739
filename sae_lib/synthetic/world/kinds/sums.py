"""Chained additions modulo ten with a scratchpad, and with slips that are corrected.

``problem : 3 + 5 + 9 mod ten ? 3 + 5 = 6 . wait , 3 + 5 = 8 . 8 + 9 = 7 . answer : 7 .``

Only the first partial result may be wrong. Then a correcting word and the right sum follow, and the
chain goes on from there. Later steps may be opened by a concluding word. What is likeliest at every
place is the plain chain of right sums.
"""

from collections.abc import Sequence
from functools import cache

from sae_lib.synthetic.world.concepts import declare, tag
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.kind import Kind, register
from sae_lib.synthetic.world.lexicon import DIGITS
from sae_lib.synthetic.world.task import (
    AnswerTask,
    LabelledTask,
    Prompt,
    SteeringConcept,
    add_answers,
    add_steering,
    add_task,
)
from sae_lib.synthetic.world.writer import Contexts, Writer

CORRECTING = ("wait", "hmm", "however", "actually", "oops")
CONCLUDING = ("so", "thus", "therefore", "hence")
CONCLUDING_SHARE = 0.15
"""Chance that a step after the first is opened by a concluding word."""
FEWEST_TERMS, MOST_TERMS = 3, 5
MOST_WORDS, MOST_WORDS_LONG = 126, 250

declare("arithmetic-sign", "The word is a sign of arithmetic.", words="+ = mod")
declare("reasoning-word", "The word shows how somebody reasons.")
declare("correcting-word", "The word announces a correction.", parents=("reasoning-word",),
        words=CORRECTING)  # fmt: skip
declare("concluding-word", "The word announces a conclusion.", parents=("reasoning-word",),
        words=CONCLUDING)  # fmt: skip
tag("noun-singular", "problem")

declare("sum-wrong-result", "The result just written is wrong.", scope="context")
declare("sum-correction", "A wrong result is being corrected.", scope="context")
declare("sum-carry", "The digits to be added make ten or more.", scope="context")
declare("sum-terms", "It is known how many terms are to be added.", scope="context")
declare("sum-step", "The word belongs to a step of the chain.", scope="context")
declare("due-result", "Both digits of a step are known, its result is not written yet.",
        scope="context")  # fmt: skip
declare("partial-result", "There is a right partial result to go on from.", scope="context")
for _num in range(FEWEST_TERMS, MOST_TERMS + 1):
    declare(f"sum-terms-{_num}", f"{_num} terms are to be added, as was told.",
            parents=("sum-terms",), scope="context")  # fmt: skip
for _num in range(1, MOST_TERMS):
    declare(f"sum-step-{_num}", f"The word belongs to step {_num} of the chain.",
            parents=("sum-step",), scope="context")  # fmt: skip
for _digit in DIGITS:
    declare(f"due-result-{_digit}", f"The result of the step, not written yet, is {_digit}.",
            parents=("due-result",), scope="context")  # fmt: skip
    declare(f"partial-result-{_digit}", f"The partial result so far is {_digit}.",
            parents=("partial-result",), scope="context")  # fmt: skip

_DUE = tuple((f"due-result-{digit}",) for digit in DIGITS)
_DUE_CARRY = tuple((*due, "sum-carry") for due in _DUE)
_PARTIAL = tuple((f"partial-result-{digit}",) for digit in DIGITS)
DIGIT_VALUES = tuple(range(10))
SHIFTS = tuple(range(1, 10))


def _longest(num_terms: int) -> int:
    """Words of a problem with a correction and all concluding words."""
    return 2 + 2 * num_terms - 1 + 3 + 6 * (num_terms - 1) + 8 + 2 * (num_terms - 2) + 4


def _add(
    w: Writer, stage: Contexts, partial: Contexts, first: int, second: int, result: int
) -> None:
    """Write one sum; ``partial`` is what holds besides ``stage`` until its result."""
    right = (first + second) % 10
    due = _DUE_CARRY[right] if first + second > 9 else _DUE[right]
    w.around = stage + partial
    w.say(DIGITS[first])
    w.say("+")
    w.say(DIGITS[second], *due)
    w.say("=", *due)
    w.around = stage + (_PARTIAL[right] if result == right else ("sum-wrong-result",))
    w.say(DIGITS[result])
    w.say(".")


def _problem(w: Writer, cfg: WorldConfig, most_terms: int, most_expected: int) -> int:
    """Write a problem with its solution, and return its number of terms.

    ``most_expected`` is the most terms it can have for all that the text before it has told.
    """
    kind = w.around
    terms = [w.pick(DIGIT_VALUES) for _ in range(w.pick(range(FEWEST_TERMS, most_terms + 1)))]
    known = (*kind, f"sum-terms-{len(terms)}")
    w.around = (*kind, "question-part")
    start = len(w.tokens)
    w.say("problem :")
    w.say(" + ".join([DIGITS[term] for term in terms]))
    if len(terms) < most_expected:
        told = len(w.tokens)  # no sign that announces another term
    else:  # the sign before the last term, or nothing is left to be told
        told = start + 2 * len(terms) - 1 if len(terms) > FEWEST_TERMS else start
    w.tell(f"sum-terms-{len(terms)}", since=told)
    w.say("mod ten ?")
    w.marks.setdefault("problem", len(w.tokens))
    w.mark("last-problem")

    total, partial, slip = terms[0], (), False
    for step, term in enumerate(terms[1:], 1):
        right = (total + term) % 10
        stage = (*known, f"sum-step-{step}")
        w.around = stage + partial
        if step == 1:
            slip = w.flip(cfg.correction_share)
            if slip:
                _add(w, stage, partial, total, term, (right + w.pick(SHIFTS)) % 10)
                stage += ("sum-correction",)
                w.around = stage
                w.say(w.pick(CORRECTING))
                w.say(",")
            w.mark("last-chain")
        elif w.flip(CONCLUDING_SHARE):
            w.say(w.pick(CONCLUDING))
            w.say(",")
        _add(w, stage, partial, total, term, right)
        total, partial = right, _PARTIAL[right]
    w.around = (*known, *partial, "answer-part")
    w.say("answer :")
    w.mark("answer")
    w.say(DIGITS[total])
    w.say(".")
    w.around = kind
    if slip:
        w.labels["corrected"] = "yes"
    w.labels |= {
        "answer": DIGITS[total],
        "last_corrected": "yes" if slip else "no",
        "num_terms": str(len(terms)),
    }
    return len(terms)


@cache
def _most_terms(num_problems: int, room: int) -> int:
    """How many terms each of so many problems may have."""
    return max(
        terms
        for terms in range(FEWEST_TERMS, MOST_TERMS + 1)
        if num_problems * _longest(terms) <= room
    )


def write(w: Writer, cfg: WorldConfig) -> None:
    room = MOST_WORDS if cfg.length_factor == 1 else MOST_WORDS_LONG
    nums = [
        min(round(num * cfg.length_factor), room // _longest(FEWEST_TERMS)) for num in (1, 2, 3)
    ]
    num = w.pick(nums)
    most_terms = _most_terms(num, room)
    w.labels |= {"corrected": "no", "num_problems": str(num)}
    most_so_far = 0
    for place in range(num):
        possible = [_most_terms(more, room) for more in nums if more > place]
        most_expected = max(most for most in possible if most >= most_so_far)
        most_so_far = max(most_so_far, _problem(w, cfg, most_terms, most_expected))


def _terms(words: Sequence[str]) -> Sequence[str]:
    """The terms of the last problem that is stated in ``words``."""
    start = len(words) - 1 - list(reversed(words)).index("problem")
    return words[start + 2 : words.index("mod", start) : 2]


def right_answer(words: Sequence[str]) -> str:
    """The answer of the last problem that is stated in ``words``."""
    return str(sum(map(int, _terms(words))) % 10)


def final_answer(words: Sequence[str]) -> str | None:
    """What ``words``, a continuation of a problem, first give as the answer; None if nothing."""
    for place in range(len(words) - 2):
        if words[place] == "answer" and words[place + 1] == ":":
            return words[place + 2]
    return None


register(
    Kind("sum", "chained additions with a scratchpad, sometimes with a slip", write, weight=0.05)
)
add_task(
    LabelledTask(
        name="sum-corrected",
        description="Was a wrong result corrected?",
        classes=("no", "yes"),
        key="corrected",
        kind="sum",
        positive_concept="sum-correction",
        lexicon_concept="correcting-word",
    )
)
add_task(
    LabelledTask(
        name="sum-answer",
        description="Which digit is the last answer? The text ends before it.",
        classes=DIGITS,
        key="answer",
        kind="sum",
        cut="answer",
    )
)
add_steering(
    SteeringConcept(
        name="self-correction",
        description="Make a slip and correct it.",
        concept="sum-correction",
        lexicon_concept="correcting-word",
        kind="sum",
        key="corrected",
        value="yes",
        prompt_kind="sum",
        prompt_cut="problem",
    )
)


def _step(w: Writer, cfg: WorldConfig) -> Prompt:
    """A step of the last problem, after any correction."""
    write(w, cfg)
    words = w.tokens
    steps = [place for place in range(w.marks["last-chain"], len(words)) if words[place] == "="]
    step = w.pick(range(len(steps)))
    place = steps[step]
    total = int(words[place - 3]) + int(words[place - 1])
    labels = {"step": str(step + 1), "carry": "yes" if total > 9 else "no"}
    return Prompt(" ".join(words[: place + 1]), (DIGITS[total % 10],), labels)


def _chain(terms: Sequence[int]) -> tuple[str, str]:
    """The plain chain for these terms as far as the answer's digit, and its first sum."""
    said, total = [], terms[0]
    for term in terms[1:]:
        result = (total + term) % 10
        said.append(f"{total} + {term} = {result} .")
        total = result
    return " ".join([*said, f"answer : {total}"]), said[0]


def _whole(w: Writer, cfg: WorldConfig) -> Prompt:
    """The last problem, alone or with its wrong result and the word that announces another."""
    write(w, cfg)
    stated, start = w.tokens[: w.marks["last-problem"]], w.marks["last-chain"]
    chain, first = _chain([int(word) for word in _terms(stated)])
    answers = [chain]
    if start == len(stated):
        # a continuation may slip as documents do, if it corrects itself
        right = first[-3]
        answers += [
            f"{first[:-3]}{digit} . {word} , {chain}"
            for digit in DIGITS
            if digit != right
            for word in CORRECTING
        ]
    labels = {**w.labels, "start": "problem" if start == len(stated) else "correction"}
    return Prompt(" ".join(w.tokens[:start]), tuple(answers), labels)


add_answers(
    AnswerTask(
        name="sum-steps",
        description="Is one step of a chained sum right?",
        prompt=_step,
        goal=0.95,
        break_down="carry",
    )
)
add_answers(
    AnswerTask(
        name="chained-sums",
        description="Is a whole chain right, from the problem or from a slip to the answer?",
        prompt=_whole,
        goal=0.9,
        break_down="start",
    )
)
