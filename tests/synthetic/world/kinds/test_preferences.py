import re
from math import log

import pytest

from sae_lib.synthetic.world.concepts import lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import document, documents, text
from sae_lib.synthetic.world.kinds.preferences import (
    LISTED_SHARE,
    MANNERS_SHARE,
    POLITE_ENDS,
    POLITE_OPENINGS,
    RUDE_ENDS,
    RUDE_OPENINGS,
    preference_rows,
)
from sae_lib.synthetic.world.tasks import answer_prompts, task_documents

CFG = WorldConfig(kind_weights={"preference": 1.0})
DOCS = [document(CFG, index) for index in range(300)]
FORM = re.compile(
    r"ask : (?P<question>.+) \? first : (?P<first>.+) \. second : (?P<second>.+) \. "
    r"better by (?P<attribute>manners|length) : (?P<better>first|second) \."
)
POLITE, RUDE = set(lexicon("polite-word")), set(lexicon("rude-word"))


def is_polite(answer: str) -> bool:
    words = set(answer.split())
    assert bool(words & POLITE) != bool(words & RUDE)
    return bool(words & POLITE)


def num_clauses(answer: str) -> int:
    _, body, _ = answer.split(" . ")
    return body.count("item") or 1 + body.count("and also")


def test_the_better_answer_follows_from_the_text_and_the_attribute_it_names():
    for doc in DOCS:
        found = FORM.fullmatch(text(doc))
        assert found is not None
        answers = found["first"], found["second"]
        if found["attribute"] == "manners":
            best = [is_polite(answer) for answer in answers]
        else:
            best = [num_clauses(answer) == 1 for answer in answers]
        assert sorted(best) == [False, True]
        assert found["better"] == ("first", "second")[best.index(True)] == doc.labels["preferred"]
        assert found["attribute"] == doc.labels["attribute"]
        for name in ("first", "second"):
            manners = "polite" if is_polite(found[name]) else "rude"
            assert manners == doc.labels[f"{name}_manners"]


def test_what_does_not_decide_is_like_or_unlike_by_chance():
    by_manners = [doc for doc in DOCS if doc.labels["attribute"] == "manners"]
    spread = (300 * MANNERS_SHARE * (1 - MANNERS_SHARE)) ** 0.5
    assert len(by_manners) == pytest.approx(300 * MANNERS_SHARE, abs=3 * spread)
    same = sum(doc.labels["first_length"] == doc.labels["second_length"] for doc in by_manners)
    assert same == pytest.approx(len(by_manners) / 2, abs=1.5 * len(by_manners) ** 0.5)
    lists = sum(doc.tokens.count("item") > 0 for doc in DOCS) / 300
    assert lists == pytest.approx(1 - (1 - LISTED_SHARE) ** 2, abs=3 * 0.5 / 300**0.5)


def test_the_surprise_can_be_computed_from_the_text():
    sizes = {"weather": 6, "color": 10, "table": 6, "path": 8, "teacher": 7, "box": 8}
    for doc in DOCS[:60]:
        found = FORM.fullmatch(text(doc))
        assert found is not None
        size = next((n for word, n in sizes.items() if word in found["question"].split()), None)
        if size is None:
            continue
        nats = -log(0.6 if found["attribute"] == "manners" else 0.4) + log(2**3) + log(7)
        for name in ("first", "second"):
            answer = found[name]
            polite, num = is_polite(answer), num_clauses(answer)
            nats += log(len(POLITE_OPENINGS if polite else RUDE_OPENINGS))
            nats += log(len(POLITE_ENDS if polite else RUDE_ENDS))
            nats -= log(0.3 if "item" in answer else 0.7)
            nats += log(2) if num > 1 else 0
            nats += sum(log(size - place) for place in range(num))
        assert doc.nll == pytest.approx(nats, abs=1e-9)


def test_contexts_follow_the_text():
    for doc in DOCS[:100]:
        place = doc.marks["answer"]
        assert doc.tokens[place] == doc.labels["preferred"]
        for name in ("first", "second"):
            inside = range(doc.marks[name], doc.marks[f"end_{name}"])
            wanted = f"preference-{doc.labels[f'{name}_manners']}"
            assert all(wanted in doc.contexts[at] for at in inside)
            length = f"preference-{doc.labels[f'{name}_length']}"
            told = [at for at in inside if length in doc.contexts[at]]
            assert told[0] > inside[0]
            assert told[-1] == inside[-1]
        verdict = f"preference-{doc.labels['preferred']}-next"
        assert [at for at, ids in enumerate(doc.contexts) if verdict in ids] == [place - 1]
        by = f"preference-by-{doc.labels['attribute']}"
        assert [at for at, ids in enumerate(doc.contexts) if by in ids] == list(
            range(place - 2, len(doc.tokens))
        )


def test_rows_put_the_better_answer_first_and_belong_to_their_split():
    rows = preference_rows("test", 40)
    assert rows == preference_rows("test", 40)
    assert rows != preference_rows("train", 40)
    for row in rows:
        assert row.prompt.startswith("ask :")
        assert row.prompt.endswith("? first :")
        assert row.chosen.endswith(".")
        if row.attribute == "manners":
            assert (is_polite(row.chosen), is_polite(row.rejected)) == (True, False)
        else:
            chosen, rejected = (
                num_clauses(answer.removesuffix(" .")) for answer in (row.chosen, row.rejected)
            )
            assert chosen == 1 < rejected
    assert {row.attribute for row in rows} == {"manners", "length"}
    firsts = sum(
        f"{row.prompt} {row.chosen}" in text(doc)
        for row, doc in zip(rows, documents(CFG, 0, 40, split="preference-rows/test"), strict=True)
    )
    assert 5 < firsts < 35


def test_the_answer_task_asks_for_the_better_answer():
    for prompt in answer_prompts("preference", "test", 30):
        found = FORM.fullmatch(f"{prompt.text} {prompt.answers[0]} .")
        assert found is not None
        better, worse = found["first"], found["second"]
        if prompt.answers == ("second",):
            better, worse = worse, better
        if prompt.labels["attribute"] == "manners":
            assert (is_polite(better), is_polite(worse)) == (True, False)
        else:
            assert num_clauses(better) == 1 < num_clauses(worse)


def test_texts_of_completion_tasks_end_with_the_first_answer():
    found = task_documents("completion-polite", "test", 20)
    for line, label in zip(found.texts, found.labels, strict=True):
        assert "second :" not in line
        assert is_polite(line.split(" first : ")[1]) == bool(label)
