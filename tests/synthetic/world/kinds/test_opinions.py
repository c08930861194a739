"""Opinions: truth, opinion and reply are read from the text again."""

import re
from math import isclose, log

import pytest

from sae_lib.synthetic.world.concepts import lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents, text
from sae_lib.synthetic.world.kinds.facts import known_table
from sae_lib.synthetic.world.kinds.opinions import (
    ASKED_ATTRIBUTES,
    CLASS_OF,
    OPENINGS,
    SORT_OF,
    values_of,
    write,
)
from sae_lib.synthetic.world.knowledge import entities
from sae_lib.synthetic.world.tasks import answer_prompts, task_documents
from sae_lib.synthetic.world.writer import Writer

CFG = WorldConfig(kind_weights={"opinion": 1.0})
KNOWN = {entity.name: entity for entity in entities("known")}
FORM = re.compile(
    rf"(?:(?P<open>{'|'.join(OPENINGS)}) (?P<about>.+) is (?P<opinion>[^.]+) \. is it|"
    r"is (?P<asked>.+?)) \( A \) (?P<A>.+) or \( B \) (?P<B>.+) \?"
    r"(?: reply : \( (?P<letter>[AB]) \) (?P<reply>.+) \.)?"
)


def bare(option: str) -> str:
    """Without its article."""
    return option.split()[-1]


def true_of(subject: str, options: set[str]) -> str:
    """The option that is true, by the knowledge and by the token concepts of the lexicon."""
    fact = re.fullmatch(r"the (\w+) of (.+)", subject)
    if fact:
        return KNOWN[fact[2]].attributes[fact[1]]
    (true,) = [name for name in options if bare(subject) in lexicon(name)]
    return true


def read(line: str) -> list[dict[str, str]]:
    found = []
    for part in line.split("request : ")[1:]:
        match = FORM.fullmatch(part.strip())
        assert match, part
        said = {key: bare(value) for key, value in match.groupdict().items()
                if value and key in {"A", "B", "opinion", "reply", "letter"}}  # fmt: skip
        subject = match["about"] or match["asked"]
        true = true_of(subject, {said["A"], said["B"]})
        truth = "A" if said["A"] == true else "B"
        assert said[truth] == true
        opinion = "none"
        if "opinion" in said:
            assert said["opinion"] in {said["A"], said["B"]}
            opinion = "right" if said["opinion"] == true else "wrong"
        if "letter" in said:
            assert said["reply"] == said[said["letter"]]
        found.append(
            {
                "subject": subject,
                "opinion": opinion,
                "truth": truth,
                "letter": said.get("letter", ""),
                "A": said["A"],
                "B": said["B"],
            }
        )
    return found


def test_labels_and_replies_follow_from_the_text():
    for doc in documents(CFG, 0, 200):
        parts = read(text(doc))
        for part in parts:
            if part["opinion"] != "wrong":
                assert part["letter"] == part["truth"]
        last = parts[-1]
        agreeable = [part["letter"] != part["truth"] for part in parts]
        other = {"A": "B", "B": "A"}[last["truth"]]
        said = {"none": "none", "right": last["truth"], "wrong": other}[last["opinion"]]
        assert doc.labels["opinion"] == last["opinion"]
        assert doc.labels["first_opinion"] == parts[0]["opinion"]
        assert doc.labels["truth"] == last["truth"]
        assert doc.labels["said"] == said
        assert doc.labels["reply"] == ("agreeable" if agreeable[-1] else "honest")
        assert doc.labels["sycophantic"] == ("yes" if any(agreeable) else "no")


@pytest.mark.parametrize("sycophancy", [0.5, 0.85])
def test_shares_follow_their_dials(sycophancy):
    cfg = CFG.but(sycophancy=sycophancy)
    parts = [part for doc in documents(cfg, 0, 300) for part in read(text(doc))]
    wrong = [part["letter"] != part["truth"] for part in parts if part["opinion"] == "wrong"]
    opinions = [part["opinion"] for part in parts]
    for hits, num, share in (
        (sum(wrong), len(wrong), sycophancy),
        (len(wrong), len(parts), 0.375),
        (opinions.count("none"), len(parts), 0.25),
        (sum(part["truth"] == "A" for part in parts), len(parts), 0.5),
        (sum(" of " in part["subject"] for part in parts), len(parts), 0.3),
    ):
        assert hits / num == pytest.approx(share, abs=3.5 * (share * (1 - share) / num) ** 0.5)


def test_concepts_hold_where_the_text_tells_them():
    for doc in documents(CFG, 0, 150):
        parts = read(text(doc))
        number = -1
        for place, (word, concepts) in enumerate(zip(doc.tokens, doc.concepts, strict=True)):
            if word == "request":
                number += 1
                start = place + 2
                end = place + doc.tokens[place:].index("(")
            part = parts[number]
            if part["opinion"] == "none":
                assert "opinion-stated" not in concepts
            else:
                # the value ends three words before the first option: . is it (
                known = place >= end - 4
                assert ("opinion-stated" in concepts) == (place >= start)
                assert ("opinion-mistaken" in concepts) == (known and part["opinion"] == "wrong")
                assert ("opinion-right" in concepts) == (known and part["opinion"] == "right")
            chosen = word in {"A", "B"} and "reply-turn" in concepts
            if chosen and part["opinion"] == "wrong":
                honest = part["letter"] == part["truth"]
                assert "reply-honest" in concepts if honest else "reply-agreeable" in concepts
                assert not {"reply-honest", "reply-agreeable"} & doc.concepts[place - 1]
            # which question it is: "the" begins facts, and only animals have a class
            subject = part["subject"].split()
            if "opinion-question" in concepts and "opinion-question" not in doc.concepts[place - 1]:
                if subject[0] == "the":
                    assert word == "the"
                    assert doc.tokens[place : place + len(subject)] == tuple(subject)
                elif subject[-1] in CLASS_OF:
                    assert word in {*CLASS_OF.values(), *SORT_OF.values()}
                else:
                    assert word == subject[-1]
            if word in {"A", "B"} and "user-turn" in concepts:
                assert "opinion-option" in concepts
                truths = {"opinion-option-true", "opinion-option-false"}
                is_true = word == part["truth"]
                wanted = {"opinion-option-true" if is_true else "opinion-option-false"}
                # of the first option the letter says nothing yet, its last word does
                assert truths & concepts == (wanted if word == "B" else set())
                last = place + 1 + doc.tokens[place + 1 :].index("or" if word == "A" else "?") - 1
                assert truths & doc.concepts[last] == wanted


def test_the_surprise_is_that_of_an_independent_calculation():
    table = known_table(CFG.entity_zipf)
    chances = dict(
        zip((e.name for e in table.items), (2.718281828459045**-s for s in table.surprises),
            strict=True)
    )  # fmt: skip
    cfg = CFG.but(sycophancy=0.8)
    for seed in range(100):
        w = Writer(seed)
        w.set_context("kind-opinion")
        write(w, cfg)
        parts = read(" ".join(w.tokens))
        p = {1: 0.3, 2: 0.4, 3: 0.3}[len(parts)]
        for part in parts:
            p *= 0.5  # which letter is true
            p *= 0.25 if part["opinion"] == "none" else 0.375 / len(OPENINGS)
            if part["opinion"] == "wrong":
                p *= 0.2 if part["letter"] == part["truth"] else 0.8
            fact = re.fullmatch(r"the (\w+) of (.+)", part["subject"])
            if fact:
                type = KNOWN[fact[2]].type
                p *= 0.3 * chances[fact[2]] / len(ASKED_ATTRIBUTES[type])
                p /= len(values_of(type, fact[1])) - 1
            else:
                names = CLASS_OF if part["A"] in CLASS_OF.values() else SORT_OF
                p *= 0.7 / 2 / len(names) / (len(set(names.values())) - 1)
        assert isclose(w.nll, -log(p), rel_tol=1e-6)


def test_prompts_ask_what_their_names_say():
    for name, opinion in (
        ("answers-without-opinion", "none"),
        ("chat-answers-without-opinion", "none"),
        ("chat-agrees-with-mistakes", "wrong"),
    ):
        for prompt in answer_prompts(name, "test", 60):
            line = prompt.text.replace("<user>", "request :").replace("<assistant>", "reply :")
            *earlier, last = read(line.removesuffix(" reply :"))
            assert last["opinion"] == opinion
            assert all(part["letter"] == part["truth"] for part in earlier)
            wanted = last["truth"]
            if opinion == "wrong":
                wanted = "B" if wanted == "A" else "A"
            assert prompt.answers == (f"( {wanted}",)


def test_texts_of_the_tasks_have_their_labels():
    found = task_documents("opinion-mistaken", "train", 40)
    for line, label in zip(found.texts, found.labels, strict=True):
        (part,) = read(line.removesuffix(" reply :"))
        assert (part["opinion"] == "wrong") == bool(label)
    found = task_documents("opinion-sycophantic", "train", 40)
    for line, label in zip(found.texts, found.labels, strict=True):
        assert any(part["letter"] != part["truth"] for part in read(line)) == bool(label)
