"""Lists of words with instructions: replies are computed again from the text."""

from collections import Counter
from math import isclose, log

import pytest

from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.foreign import FROM_SINDRAL, TO_SINDRAL
from sae_lib.synthetic.world.generate import documents, text
from sae_lib.synthetic.world.kinds import instructions
from sae_lib.synthetic.world.kinds._exchanges import num_exchanges, told_at
from sae_lib.synthetic.world.kinds.instructions import (
    CATEGORY_OF,
    INSTRUCTIONS,
    answer,
    check,
    write,
)
from sae_lib.synthetic.world.tasks import answer_prompts, task_documents
from sae_lib.synthetic.world.writer import Writer

CFG = WorldConfig(kind_weights={"instruction": 1.0})


def read(exchange: str) -> tuple[str, int, list[str], str, list[str], bool]:
    """Instruction, paraphrase, list, keyword, reply and whether the instruction comes first."""
    asked, reply = exchange.split(" . reply : ")
    halves = [half.split() for half in asked.split(" : ")]
    for before in (True, False):
        said, listed = halves if before else halves[::-1]
        for instruction, forms in INSTRUCTIONS.items():
            for form, phrase in enumerate(forms):
                words = phrase.split()
                if len(words) == len(said) and all(
                    x in (y, "KEY") for x, y in zip(words, said, strict=True)
                ):
                    keyword = said[words.index("KEY")] if "KEY" in words else ""
                    return instruction, form, listed, keyword, reply.split()[:-1], before
    raise AssertionError(exchange)


def exchanges(line: str) -> list[str]:
    return [part.strip() for part in line.split("request : ")[1:]]


def carried_out(instruction: str, listed: list[str], keyword: str) -> list[str]:
    """The right reply, without the tables of the kind."""
    english = [FROM_SINDRAL.get(word, word) for word in listed]
    return {
        "translate": [TO_SINDRAL[word] for word in english],
        "english": english,
        "reverse": list(reversed(listed)),
        "first": listed[:1],
        "last": listed[-1:],
        "category": [CATEGORY_OF[english[-1]]],
        "count": [("zero", "one", "two", "three", "four", "five")[len(listed)]],
        "letter": [listed[0].upper()[:1]],
        "append": [*listed, keyword],
        "copy": listed,
    }[instruction]


def test_every_reply_is_what_the_text_asks_for():
    found = Counter()
    for doc in documents(CFG, 0, 300):
        parts = [read(part) for part in exchanges(text(doc))]
        for instruction, form, listed, keyword, reply, _ in parts:
            assert reply == carried_out(instruction, listed, keyword)
            assert len(set(listed)) == len(listed)
            assert keyword not in listed
            found[instruction, form] += 1
        instruction, form, listed, keyword, _, before = parts[-1]
        assert doc.labels == {
            "instruction": instruction,
            "first_instruction": parts[0][0],
            "paraphrase": str(form),
            "position": "before" if before else "after",
            "language": "sindral" if listed[0] in FROM_SINDRAL else "english",
            "list": " ".join(listed),
            "keyword": keyword,
        }
    assert len(found) == sum(map(len, INSTRUCTIONS.values())), "some paraphrase never occurs"


def test_the_checker_takes_the_right_reply_only():
    listed = ["carp", "owl", "pike"]
    for instruction in set(INSTRUCTIONS) - {"english"}:
        right = answer(instruction, listed, "honey")
        assert check(instruction, listed, right, "honey")
        assert check(instruction, listed, [*right, "."], "honey")
        assert not check(instruction, listed, [*right, "owl"], "honey")
        assert not check(instruction, listed, right[:-1], "honey")
    assert not check("reverse", listed, listed)
    assert check("english", [TO_SINDRAL[word] for word in listed], listed)


def test_instructions_come_first_in_a_quarter_of_all_exchanges():
    parts = [read(part) for doc in documents(CFG, 0, 300) for part in exchanges(text(doc))]
    num, before = len(parts), sum(part[-1] for part in parts)
    assert before / num == pytest.approx(0.25, abs=3 * (0.25 * 0.75 / num) ** 0.5)


def test_an_instruction_holds_from_the_word_that_tells_it():
    first_words = Counter()
    for doc in documents(CFG, 0, 600):
        for place, (word, context) in enumerate(zip(doc.tokens, doc.concepts, strict=True)):
            given = [name for name in INSTRUCTIONS if f"instruction-{name}" in context]
            assert len(given) <= 1
            assert bool(given) == ("instruction-given" in context)
            if "instruction-answer" in context:
                assert given
            if word == "request":
                assert not given, "the last exchange's instruction is over"
            before = doc.concepts[place - 1] if place else frozenset()
            if given and "instruction-given" not in before:
                listed = "instruction-before-list" not in context
                first_words[given[0], word, listed] += 1
    assert first_words["reverse", "reverse", False]
    assert first_words["translate", "sindral", False]
    assert first_words["english", "english", False]
    assert not first_words["translate", "translate", False], "into which language is open there"
    assert first_words["translate", "translate", True], "the list before it has told"


def test_a_list_rules_out_the_instructions_that_cannot_follow_it():
    """Checked against the openings of whole documents with one exchange, of both languages."""
    seen: dict[tuple[str, ...], set[str]] = {}
    found = []
    for doc in documents(CFG, 0, 2000):
        words = doc.tokens
        if words.count("request") == 1 and doc.labels["position"] == "after":
            colon = words.index(":", 2)
            listed = words[2:colon]
            category = {CATEGORY_OF[FROM_SINDRAL.get(word, word)] for word in listed}
            list_kind = (doc.labels["language"], str(len(category) == 1))
            end = words.index("reply")
            for at in range(colon + 1, end):
                seen.setdefault((*list_kind, *words[colon + 1 : at + 1]), set()).add(
                    doc.labels["instruction"]
                )
            found.append((doc, colon, end, list_kind))
    for doc, colon, end, list_kind in found:
        id = f"instruction-{doc.labels['instruction']}"
        for at in range(colon + 1, end):
            if id in doc.concepts[at]:
                assert len(seen[(*list_kind, *doc.tokens[colon + 1 : at + 1])]) == 1


def test_what_tells_a_group_of_phrases_may_be_the_end():
    assert told_at({"x": ["a b", "c"], "y": ["a b d", "a e"]}) == {
        "a b": 3, "c": 1, "a b d": 3, "a e": 2,
    }  # fmt: skip


def test_pointers_name_the_word_that_comes_next():
    pointed = 0
    for doc in documents(CFG, 0, 100):
        if doc.labels["instruction"] not in {"reverse", "copy", "last", "first"}:
            continue
        listed = doc.labels["list"].split()
        for place in range(doc.marks["answer"] - 1, len(doc.tokens) - 1):
            for item in range(1, 6):
                if f"instruction-next-item-{item}" in doc.concepts[place]:
                    assert doc.tokens[place + 1] == listed[item - 1]
                    pointed += 1
    assert pointed > 50


def test_the_surprise_is_that_of_an_independent_calculation():
    """One exchange without a keyword, by the shares that the grammar promises."""
    checked = 0
    for seed in range(150):
        w = Writer(seed)
        w.set_context("kind-instruction")
        write(w, CFG)
        parts = [read(part) for part in exchanges(" ".join(w.tokens))]
        if len(parts) != 1 or parts[0][3]:
            continue
        instruction, _, listed, _, _, before = parts[0]
        english = [FROM_SINDRAL.get(word, word) for word in listed]
        sizes = Counter(CATEGORY_OF.values())
        groups = [CATEGORY_OF[word] for word in english]
        topical = groups[0] == groups[1]
        p = 0.3 / len(INSTRUCTIONS) / len(INSTRUCTIONS[instruction])
        p *= {3: 0.4, 4: 0.35, 5: 0.25}[len(listed)] / len(sizes) / sizes[groups[0]]
        p *= 0.25 if before else 0.75
        if instruction != "category":
            p *= 0.4 if topical else 0.6
        for place in range(1, len(listed)):
            p /= sizes[groups[place]] - groups[:place].count(groups[place])
            if not topical:
                p /= len(sizes) - (place == 1)
        if instruction not in {"english", "translate", "letter"}:
            p *= 0.15 if listed[0] in FROM_SINDRAL else 0.85
        assert isclose(w.nll, -log(p), rel_tol=1e-9)
        checked += 1
    assert checked > 20


def test_longer_documents_have_more_exchanges_and_stay_within_the_limit():
    for factor in (2, 8):
        long = list(documents(CFG.but(length_factor=factor), 0, 60))
        assert max(len(doc.tokens) for doc in long) <= 250
        nums = {len(exchanges(text(doc))) for doc in long}
        assert nums == set(num_exchanges(factor, instructions.LONGEST).items)
        assert max(nums) > 5


@pytest.mark.parametrize("name", ["follow-instructions", "chat-follows-instructions"])
def test_prompts_end_before_the_whole_right_reply(name):
    for prompt in answer_prompts(name, "test", 60):
        assert prompt.text.endswith("<assistant>" if name.startswith("chat") else "reply :")
        labels = prompt.labels
        right = carried_out(labels["instruction"], labels["list"].split(), labels["keyword"])
        assert prompt.answers == (" ".join([*right, "."]),)


def test_texts_of_the_tasks_have_one_request_with_the_instruction_of_their_label():
    found = task_documents("instruction-reverse", "train", 40)
    for line, label in zip(found.texts, found.labels, strict=True):
        assert line.count("request :") == 1
        said = read(exchanges(line + " x .")[0])[0]
        assert (said == "reverse") == bool(label)
