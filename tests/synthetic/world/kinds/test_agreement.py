from collections import Counter

import pytest

from sae_lib.synthetic.world.concepts import lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import document, documents, text
from sae_lib.synthetic.world.tasks import answer_prompts, prompt_pairs, task_documents

CFG = WorldConfig(kind_weights={"agreement": 1.0})
DOCS = [document(CFG, index) for index in range(200)]
SINGULAR_NOUNS = set(lexicon("noun-singular"))
SINGULAR = {
    *("runs", "walks", "jumps", "crawls", "wanders", "rushes", "sleeps", "sings", "waits"),
    *("rests", "smiles", "swims", "follows", "admires", "chases", "watches", "sees"),
}
PLURAL = {verb[:-2] if verb in ("rushes", "watches") else verb[:-1] for verb in SINGULAR}
STRUCTURES = ("simple", "pp", "rc", "within-rc")


def many(noun: str) -> bool:
    assert (noun in SINGULAR_NOUNS) != (noun in set(lexicon("noun-plural"))), noun
    return noun not in SINGULAR_NOUNS


def parse(sentence: str) -> tuple[str, list[tuple[str, str]], str]:
    """The structure, subjects with their verbs, and the noun in the way."""
    words = [w for w in sentence.split() if w not in set(lexicon("size-word"))]
    if words[0] == "in":
        return "simple", [(words[3], words[4])], ""
    if words[2] in ("near", "with", "behind"):
        return "pp", [(words[1], words[5])], words[4]
    if words[2] == "that":
        return "rc", [(words[4], words[5]), (words[1], words[6])], words[4]
    assert words[5] == "that"
    return "within-rc", [(words[1], words[2]), (words[7], words[8])], words[4]


def sentences(doc) -> list[str]:
    return text(doc).removeprefix("lesson : ").removesuffix(" .").split(" . ")


def test_every_verb_agrees_with_its_subject_and_labels_are_those_of_the_last_sentence():
    structures = Counter()
    differing = tried = 0
    for doc in DOCS:
        for sentence in sentences(doc):
            structure, verbs, distractor = parse(sentence)
            structures[structure] += 1
            for subject, verb in verbs:
                assert verb in (PLURAL if many(subject) else SINGULAR)
            asked = verbs[-1][0]
            if distractor:
                tried += 1
                differing += many(distractor) != many(asked)
        structure, verbs, distractor = parse(sentences(doc)[-1])
        asked = verbs[-1][0]
        assert doc.labels == {
            "structure": structure,
            "number": "plural" if many(asked) else "singular",
            "distractor": "none" if not distractor
            else "same" if many(distractor) == many(asked) else "other",
        }  # fmt: skip
        assert doc.tokens[doc.marks["answer"]] == verbs[-1][1]
    total = sum(structures.values())
    for structure in STRUCTURES:
        spread = (total * 0.25 * 0.75) ** 0.5
        assert structures[structure] == pytest.approx(total / 4, abs=3 * spread)
    assert differing == pytest.approx(tried / 2, abs=1.5 * tried**0.5)


def test_a_verb_is_expected_exactly_where_only_a_verb_can_come():
    for doc in DOCS[:100]:
        for at, (word, ids) in enumerate(zip(doc.tokens[1:], doc.contexts, strict=False)):
            for number, forms in (("singular", SINGULAR), ("plural", PLURAL)):
                if f"agreement-{number}-expected" in ids:
                    assert word in forms
                elif word in forms:
                    # the main verb before a relative clause, in whose place one could have stood
                    # as well
                    assert doc.tokens[at + 2] == "the"
                    assert doc.tokens[at + 4] == "that"


def test_subjects_hold_from_themselves_to_their_verb():
    for doc in DOCS[:100]:
        for level in ("subject", "inner"):
            for number, forms in (("singular", SINGULAR), ("plural", PLURAL)):
                id = f"agreement-{level}-{number}"
                held = [id in ids for ids in doc.contexts]
                for at, holds in enumerate(held):
                    if holds and not held[at - 1]:
                        assert many(doc.tokens[at]) == (number == "plural")
                    if holds and not held[at + 1]:
                        assert doc.tokens[at] in forms


def test_a_differing_noun_is_said_to_differ_only_while_the_verb_is_awaited():
    for doc in DOCS[:100]:
        start = 2
        for sentence in sentences(doc):
            words = sentence.split()
            end = start + len(words)
            _, verbs, distractor = parse(sentence)
            differs = bool(distractor) and many(distractor) != many(verbs[-1][0])
            held = [
                at for at in range(start, end) if "agreement-distractor-differs" in doc.contexts[at]
            ]
            assert bool(held) == differs
            if held:
                assert doc.tokens[held[-1] + 1] == verbs[-1][1]
            start = end + 1


@pytest.mark.parametrize("structure", STRUCTURES)
def test_pairs_differ_in_the_number_of_one_noun(structure):
    pairs = prompt_pairs(f"agreement-{structure}", "test", 30)
    assert len(pairs) == 30
    for pair in pairs:
        clean, patch = pair.clean.split(), pair.patch.split()
        assert len(clean) == len(patch)
        changed = [(a, b) for a, b in zip(clean, patch, strict=True) if a != b]
        assert len(changed) == 1
        assert many(changed[0][0]) != many(changed[0][1])
        assert (pair.clean_answer in PLURAL) == many(changed[0][0])
        assert (pair.patch_answer in PLURAL) == many(changed[0][1])
        sentence = f"{pair.clean} {pair.clean_answer}".removeprefix("lesson : ")
        assert parse(sentence)[:2][0] == pair.labels["structure"] == structure
        assert parse(sentence)[1][-1] == (changed[0][0], pair.clean_answer)


def test_right_answers_are_all_forms_of_the_right_number():
    asked = Counter()
    for prompt in answer_prompts("agreement", "test", 60):
        assert set(prompt.answers) == (PLURAL if prompt.labels["number"] == "plural" else SINGULAR)
        last = prompt.text.removeprefix("lesson : ").split(" . ")[-1]
        structure, verbs, _ = parse(f"{last} {prompt.answers[0]}")
        assert structure == prompt.labels["structure"]
        assert many(verbs[-1][0]) == (prompt.labels["number"] == "plural")
        asked[structure] += 1
    assert set(asked) == set(STRUCTURES)


def test_longer_documents_have_more_sentences():
    usual = sum(len(sentences(doc)) for doc in DOCS[:60])
    long = list(documents(CFG.but(length_factor=3), 0, 60))
    assert sum(len(sentences(doc)) for doc in long) == pytest.approx(3 * usual, rel=0.1)
    assert max(len(d.tokens) for d in documents(CFG.but(length_factor=8), 0, 60)) <= 250


def test_the_number_task_ends_before_the_verb():
    found = task_documents("agreement-number", "test", 20)
    for line, label in zip(found.texts, found.labels, strict=True):
        last = line.removeprefix("lesson : ").split(" . ")[-1]
        assert many(parse(f"{last} verb")[1][-1][0]) == bool(label)
