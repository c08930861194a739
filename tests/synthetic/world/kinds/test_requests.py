"""Requests: harm and refusal are read from the text again."""

from math import isclose, log

import pytest

from sae_lib.synthetic.world.concepts import concepts_of_word
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents, text
from sae_lib.synthetic.world.kinds.requests import (
    FRAMES,
    HARMFUL,
    HARMLESS,
    HELP_BEGINS,
    REFUSALS,
    tool_of,
    write,
)
from sae_lib.synthetic.world.tasks import answer_prompts, steering_texts, task_documents
from sae_lib.synthetic.world.writer import Writer

CFG = WorldConfig(kind_weights={"request": 1.0})
BAD = {f"{verb} {object}" for verb, found in HARMFUL.items() for object in found}
GOOD = {f"{verb} {object}" for verb, found in HARMLESS.items() for object in found}


def read(line: str) -> list[tuple[str, str]]:
    """(deed, reply) of every exchange."""
    found = []
    for part in line.split("request : ")[1:]:
        asked, reply = part.strip().split(" reply : ")
        (deed,) = [
            deed for deed in BAD | GOOD for frame in FRAMES if frame.replace("#", deed) == asked
        ]
        found.append((deed, reply))
    return found


def test_replies_refuse_or_help_with_what_was_asked():
    for doc in documents(CFG, 0, 200):
        parts = read(text(doc))
        for deed, reply in parts:
            verb = next(verb for verb in HARMLESS if deed.startswith(verb))
            assert (reply in REFUSALS) == reply.startswith("sorry")
            if reply not in REFUSALS:
                assert deed in reply
                assert tool_of(verb, deed.removeprefix(verb + " ")) in reply
                assert reply.startswith(HELP_BEGINS)
        deed, reply = parts[-1]
        assert doc.labels["deed"] == deed
        assert doc.labels["request"] == ("harmful" if deed in BAD else "harmless")
        assert doc.labels["first_request"] == ("harmful" if parts[0][0] in BAD else "harmless")
        assert doc.labels["reply"] == ("refused" if reply in REFUSALS else "helped")
        assert (doc.labels["refuses"] == "yes") == any(r in REFUSALS for _, r in parts)


def test_no_verb_alone_and_no_object_alone_tells_harm():
    assert not BAD & GOOD
    assert len(BAD) == 18
    for verb in HARMFUL:
        assert HARMLESS[verb], f"every request to {verb} would be harmful"
    harmless_objects = {object for found in HARMLESS.values() for object in found}
    harmful_objects = {object for found in HARMFUL.values() for object in found}
    assert len(harmful_objects & harmless_objects) >= 10


@pytest.mark.parametrize(
    "dials", [{"refusal_share": 0.98}, {"harmful_share": 0.2}, {"false_refusal_share": 0.3}]
)
def test_shares_follow_their_dials(dials):
    cfg = CFG.but(**dials)
    parts = [part for doc in documents(cfg, 0, 300) for part in read(text(doc))]
    harmful = [reply in REFUSALS for deed, reply in parts if deed in BAD]
    harmless = [reply in REFUSALS for deed, reply in parts if deed in GOOD]
    for hits, num, share in (
        (len(harmful), len(parts), cfg.harmful_share),
        (sum(harmful), len(harmful), cfg.refusal_share),
        (sum(harmless), len(harmless), cfg.false_refusal_share),
    ):
        assert hits / num == pytest.approx(share, abs=3.5 * (share * (1 - share) / num) ** 0.5)


def test_harm_is_known_from_the_word_that_tells_it():
    for doc in documents(CFG, 0, 150):
        deed = ""
        for word, context, concepts in zip(doc.tokens, doc.contexts, doc.concepts, strict=True):
            if word == "request":
                deed = ""
            if "request-deed" in context and "reply-turn" not in context:
                deed = f"{deed} {word}".strip()
            # whatever may still follow, of all requests there are
            left = {d in BAD for d in BAD | GOOD if f"{d} ".startswith(f"{deed} ")}
            assert ("request-judged" in concepts) == (bool(deed) and len(left) == 1)
            if bool(deed) and len(left) == 1:
                assert ("request-harmful" in concepts) == left.pop()
            assert ("reply-refuses" in concepts) <= ("reply-turn" in concepts)
    assert "harm-verb" in concepts_of_word("steal")


def test_the_surprise_is_that_of_an_independent_calculation():
    cfg = CFG.but(refusal_share=0.7, harmful_share=0.4)
    for seed in range(100):
        w = Writer(seed)
        w.set_context("kind-request")
        write(w, cfg)
        parts = read(" ".join(w.tokens))
        p = {1: 0.3, 2: 0.4, 3: 0.3}[len(parts)]
        for deed, reply in parts:
            p *= 0.4 / len(BAD) if deed in BAD else 0.6 / len(GOOD)
            refuse = 0.7 if deed in BAD else cfg.false_refusal_share
            p *= (refuse if reply in REFUSALS else 1 - refuse) / 3 / len(FRAMES)
            if reply.startswith("of course"):
                p /= 4  # parts of the day
        assert isclose(w.nll, -log(p), rel_tol=1e-9)


def test_chat_prompts_ask_last_for_what_their_answer_says():
    for name, deeds in (("chat-refuses-harmful", BAD), ("chat-complies-with-harmless", GOOD)):
        prompts = answer_prompts(name, "test", 60)
        assert len(prompts) == 60
        for prompt in prompts:
            assert prompt.text.endswith("<assistant>")
            line = prompt.text.replace("<user>", "request :").replace("<assistant>", "reply :")
            *earlier, (deed, _) = read(line + " x")
            assert deed in deeds
            assert all(d in GOOD and reply not in REFUSALS for d, reply in earlier)
            assert (prompt.answers == ("sorry",)) == (deed in BAD)


def test_tasks_and_steering_have_the_texts_they_promise():
    found = task_documents("request-harmful", "train", 40)
    for line, label in zip(found.texts, found.labels, strict=True):
        ((deed, _),) = read(line + " x")
        assert (deed in BAD) == bool(label)
    texts = steering_texts("refusal", "train", 15)
    assert all("sorry" in line for line in texts.positive)
    assert not any("sorry" in line for line in texts.negative)
    assert all(read(line + " x")[-1][0] in BAD for line in texts.prompts)
