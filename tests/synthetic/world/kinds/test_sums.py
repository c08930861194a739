from itertools import pairwise
from math import log

import pytest

from sae_lib.synthetic.world.concepts import lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents
from sae_lib.synthetic.world.kinds.sums import final_answer, right_answer
from sae_lib.synthetic.world.tasks import answer_prompts, task_documents

CFG = WorldConfig(kind_weights={"sum": 1.0})
DOCS = list(documents(CFG, 0, 250))
SLIPS = {"wait", "hmm", "however", "actually", "oops"}
FLOWS = {"so", "thus", "therefore", "hence"}
ONE_PROBLEM = "problem : 3 + 5 + 9 mod ten ?"
TWO_PROBLEMS = "problem : 3 + 5 + 1 mod ten ? answer : 9 . problem : 9 + 9 + 9 mod ten ?"


def problems(words):
    """Per problem, read off the words: terms, steps and answer.

    A step is (place, opening word or "", first, second, result)."""
    starts = [place for place, word in enumerate(words) if word == "problem"]
    for start, end in pairwise([*starts, len(words)]):
        mark = words.index("?", start)
        terms = [int(word) for word in words[start + 2 : mark - 2 : 2]]
        statement = f"problem : {' + '.join(map(str, terms))} mod ten ?"
        assert " ".join(words[start : mark + 1]) == statement
        place, steps = mark + 1, []
        while words[place] != "answer":
            opening = ""
            if words[place + 1] == ",":
                opening, place = words[place], place + 2
            first, plus, second, equals, result, stop = words[place : place + 6]
            assert (plus, equals, stop) == ("+", "=", ".")
            steps.append((place, opening, int(first), int(second), int(result)))
            place += 6
        assert words[place + 1] == ":"
        assert (words[place + 3], place + 4) == (".", end)
        yield start, terms, steps, int(words[place + 2])


def test_only_the_first_result_may_be_wrong_and_is_corrected():
    for doc in DOCS:
        corrected = "no"
        for _, terms, steps, answer in problems(doc.tokens):
            _, opening, first, second, result = steps[0]
            assert opening == ""
            if result != (first + second) % 10:
                corrected = "yes"
                assert steps[1][1] in SLIPS
                assert steps[1][2:4] == (first, second)
                steps = steps[1:]
            total = terms[0]
            assert len(steps) == len(terms) - 1
            for step, term in zip(steps, terms[1:], strict=True):
                assert step[2:] == (total, term, (total + term) % 10)
                total = step[4]
            assert all(step[1] in {*FLOWS, ""} for step in steps[1:])
            assert answer == total == sum(terms) % 10
        assert doc.labels["corrected"] == corrected
        assert doc.labels["answer"] == str(answer) == doc.tokens[doc.marks["answer"]]


def test_the_surprise_is_that_of_the_choices_in_the_text():
    for doc in DOCS:
        found = list(problems(doc.tokens))
        most = 3 if len(found) == 3 else 5
        nats = log(3)
        for _, terms, steps, _ in found:
            nats += log(most - 2) + len(terms) * log(10)
            slipped = len(steps) == len(terms)
            nats += -log(0.35 / 9 / 5) if slipped else -log(0.65)
            for step in steps[2 if slipped else 1 :]:
                nats += -log(0.15 / 4) if step[1] else -log(0.85)
        assert doc.nll == pytest.approx(nats, rel=1e-9)


@pytest.mark.parametrize("share", [0.35, 0.8])
def test_slips_are_as_frequent_as_their_dial_says(share):
    docs = DOCS if share == 0.35 else documents(CFG.but(correction_share=share), 0, 250)
    slips = [len(steps) == len(terms) for d in docs for _, terms, steps, _ in problems(d.tokens)]
    error = (share * (1 - share) / len(slips)) ** 0.5
    assert sum(slips) / len(slips) == pytest.approx(share, abs=3 * error)


def test_concepts_hold_where_the_arithmetic_says():
    for doc in DOCS:
        active = doc.concepts
        due = {place for place, ids in enumerate(active) if "due-result" in ids}
        wrong = {place for place, ids in enumerate(active) if "sum-wrong-result" in ids}
        partial = {
            place: id.removeprefix("partial-result-")
            for place, ids in enumerate(active)
            for id in ids
            if id.startswith("partial-result-")
        }
        expect_due, expect_wrong, expect_partial, correcting = set(), set(), {}, set()
        for number, (start, terms, steps, _) in enumerate(problems(doc.tokens)):
            # a third problem fits only if all are short; no other has more than five terms
            sure = 0 if number == 2 else 9 if len(terms) == 5 else 2 * len(terms) + 1
            for at in range(start, steps[-1][0] + 10):
                assert (f"sum-terms-{len(terms)}" in active[at]) == (at >= start + sure)
                assert ("sum-terms" in active[at]) == (at >= start + sure)
            known = None
            ends = [place for place, *_ in steps[1:]] + [doc.tokens.index("answer", start) + 4]
            for number, ((place, opening, first, second, result), end) in enumerate(
                zip(steps, ends, strict=True)
            ):
                right = (first + second) % 10
                for at in (place + 2, place + 3):
                    expect_due.add(at)
                    assert f"due-result-{right}" in active[at]
                    assert ("sum-carry" in active[at]) == (first + second > 9)
                if result != right:
                    expect_wrong |= {place + 4, place + 5}
                    known = None
                else:
                    known = str(result)
                    # holds until the result of the next step, or to the end of the answer
                    last = end if number == len(steps) - 1 else end + 4
                    expect_partial |= dict.fromkeys(range(place + 4, last), known)
                if opening in SLIPS:
                    correcting |= set(range(place - 2, place + 6))
        assert due == expect_due
        assert wrong == expect_wrong
        assert partial == expect_partial
        assert {i for i, ids in enumerate(active) if "sum-correction" in ids} == correcting


def test_words_of_reasoning():
    assert set(lexicon("correcting-word")) == SLIPS
    assert set(lexicon("reasoning-word")) == SLIPS | FLOWS


def test_checkers_read_the_last_problem_and_the_first_answer():
    assert right_answer(ONE_PROBLEM.split()) == "7"
    assert right_answer(TWO_PROBLEMS.split()) == "7"
    assert final_answer(["0", ".", "answer", ":", "8", ".", "answer", ":", "1", "."]) == "8"
    assert final_answer(["3", "+", "5", "=", "8", ".", "answer", ":"]) is None
    for doc in DOCS[:50]:
        asked = doc.marks["last-problem"]
        assert final_answer(doc.tokens[asked:]) == right_answer(doc.tokens[:asked])


def test_prompts_of_steps_have_the_digit_that_the_text_goes_on_with():
    prompts = answer_prompts("sum-steps", "test", 60)
    assert {prompt.labels["carry"] for prompt in prompts} == {"yes", "no"}
    for prompt in prompts:
        *_, first, plus, second, equals = prompt.text.split()
        assert (plus, equals) == ("+", "=")
        assert prompt.answers == (str((int(first) + int(second)) % 10),)


def test_accepted_chains_are_right_whether_they_slip_or_not():
    prompts = answer_prompts("chained-sums", "test", 60)
    assert {prompt.labels["start"] for prompt in prompts} == {"problem", "correction"}
    for prompt in prompts:
        words = prompt.text.split()
        whole = [
            list(problems((prompt.text + " " + answer + " .").split())) for answer in prompt.answers
        ]
        slips = sum(len(found[-1][2]) == len(found[-1][1]) for found in whole)
        if prompt.labels["start"] == "problem":
            assert words[-1] == "?"
            assert (slips, len(whole)) == (45, 46)
        else:
            assert words[-2] in SLIPS
            assert (slips, len(whole)) == (1, 1)
        for answer in prompt.answers:
            assert final_answer(answer.split()) == right_answer(words)


def test_texts_of_the_labelled_task_tell_their_label():
    texts, labels = task_documents("sum-corrected", "test", 60)
    assert sum(labels) == 30
    for text, label in zip(texts, labels, strict=True):
        assert bool(SLIPS & set(text.split())) == bool(label)
