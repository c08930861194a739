from collections import Counter
from math import log

import pytest

from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents, text
from sae_lib.synthetic.world.kinds import choices
from sae_lib.synthetic.world.kinds.facts import QUESTIONS
from sae_lib.synthetic.world.knowledge import ATTRIBUTES, KNOWN_BY_RANK, entities
from sae_lib.synthetic.world.tasks import answer_prompts
from sae_lib.synthetic.world.writer import Writer

ONLY = WorldConfig(kind_weights={"choice": 1.0})
KNOWN = {entity.name: entity for entity in entities("known")}


def read(line: str) -> list[dict]:
    """What a document asks, from its text alone."""
    found = []
    for part in line.split("question : ")[1:]:
        asked, rest = part.split(" ? ")
        options, answer = rest.split(" answer : ( ")
        pieces = options.removeprefix("( A ) ").replace("( B ) ", "|").replace("( C ) ", "|")
        listed = [piece.strip() for piece in pieces.replace("( D ) ", "|").split("|")]
        name = max((n for n in KNOWN if f" {n} " in f" {asked} "), key=len)
        attribute, form = next(
            (attribute, form)
            for attribute in ATTRIBUTES[KNOWN[name].type]
            for form, wording in enumerate(QUESTIONS[attribute])
            if wording.replace("@", name) == asked + " ?"
        )
        found.append(
            {"entity": KNOWN[name], "attribute": attribute, "form": form, "options": listed,
             "letter": answer.split()[0]}
        )  # fmt: skip
    return found


def test_the_letter_is_that_of_the_value_and_options_are_values_of_the_attribute():
    for doc in documents(ONLY, 0, 300):
        for asked in read(text(doc)):
            entity, attribute, options = asked["entity"], asked["attribute"], asked["options"]
            assert options["ABCD".index(asked["letter"])] == entity.attributes[attribute]
            others = {e.attributes.get(attribute) for e in KNOWN.values()}
            assert len(set(options)) == 4
            assert set(options) <= others


def test_labels_are_those_of_the_last_question_and_the_domain_is_of_all():
    seen = Counter()
    for doc in documents(ONLY, 0, 300):
        asked = read(text(doc))
        assert doc.labels["letter"] == asked[-1]["letter"]
        assert doc.labels["entity"] == asked[-1]["entity"].name
        assert doc.labels["attribute"] == asked[-1]["attribute"]
        assert doc.tokens[doc.marks["answer"]] == doc.labels["letter"]
        types = {question["entity"].type for question in asked}
        assert types <= set(choices.DOMAINS[doc.labels["domain"]])
        seen[doc.labels["domain"], len(asked)] += 1
    assert set(seen) == {(domain, num) for domain in choices.DOMAINS for num in (1, 2)}


def test_letters_and_domains_come_equally_often():
    num = 1200
    docs = list(documents(ONLY, 0, num))
    for key, values in (("letter", "ABCD"), ("domain", tuple(choices.DOMAINS))):
        counts = Counter(doc.labels[key] for doc in docs)
        share = 1 / len(values)
        error = 3 * (share * (1 - share) / num) ** 0.5
        for value in values:
            assert counts[value] / num == pytest.approx(share, abs=error)


def test_the_surprise_is_what_the_text_says():
    """Recomputed from the text: domain, number, and per question all that was drawn."""
    for doc in documents(ONLY, 0, 200):
        asked = read(text(doc))
        chance = log(1 / 2) + log(0.35 if len(asked) == 1 else 0.65)
        types = choices.DOMAINS[doc.labels["domain"]]
        weights = {
            e.name: (rank + 10) ** -0.5 for rank, e in enumerate(KNOWN_BY_RANK) if e.type in types
        }
        for question in asked:
            attribute = question["attribute"]
            others = len({e.attributes.get(attribute) for e in KNOWN.values()} - {None}) - 1
            chance += log(weights[question["entity"].name] / sum(weights.values()))
            chance -= log(4) + log(2) + log(4)  # attribute, wording, letter
            chance -= log(others) + log(others - 1) + log(others - 2)
        assert doc.nll == pytest.approx(-chance, rel=1e-9)


DOMAINS_BY_OPENING: dict[tuple[str, ...], set[str]] = {}
for _domain, _types in choices.DOMAINS.items():
    for _entity in KNOWN.values():
        for _attribute in ATTRIBUTES[_entity.type] if _entity.type in _types else ():
            for _wording in QUESTIONS[_attribute]:
                _words = _wording.replace("@", _entity.name).split()
                for _end in range(1, len(_words) + 1):
                    DOMAINS_BY_OPENING.setdefault(tuple(_words[:_end]), set()).add(_domain)


def openings(words: tuple[str, ...]) -> set[str]:
    """Domains of the questions that begin with these words."""
    return DOMAINS_BY_OPENING.get(words, set())


def words_that_are_right(question: dict) -> int:
    """How many last words of the right option are known to be of it."""
    right = question["entity"].attributes[question["attribute"]].split()
    values = {e.attributes.get(question["attribute"], "") for e in KNOWN.values()} - {""}
    if question["letter"] == "D":
        return len(right)
    for end in range(1, len(right)):
        if sum(value.split()[:end] == right[:end] for value in values) == 1:
            return len(right) - end + 1
    return 1


def test_concepts_are_active_where_they_are_true():
    for doc in documents(ONLY, 0, 150):
        asked = read(text(doc))
        place, known = -1, False
        for at, (token, active) in enumerate(zip(doc.tokens, doc.concepts, strict=True)):
            place += token == "question"
            question = asked[place]
            domain = f"choice-{doc.labels['domain']}"
            known = known or openings(doc.tokens[2 : at + 1]) == {doc.labels["domain"]}
            assert (domain in active) == known
            assert not {"choice-forget", "choice-retain"} - {domain} & active
            if "option-right" in active:
                right = question["entity"].attributes[question["attribute"]]
                assert token in right.split()
                assert f"value-{question['attribute']}" in active
        options = sum("option-right" in active for active in doc.concepts)
        assert options == sum(map(words_that_are_right, asked))
        letters = [
            doc.tokens[i + 1] for i, active in enumerate(doc.concepts) if "answer-letter" in active
        ]
        assert letters == [question["letter"] for question in asked]
        for i, active in enumerate(doc.concepts):
            for letter in "ABCD":
                assert (f"answer-letter-{letter}" in active) == (
                    "answer-letter" in active and doc.tokens[i + 1] == letter
                )


def test_prompts_end_where_the_letter_follows():
    prompts = answer_prompts("multiple-choice", "test", 40)
    assert len(prompts) == 40
    for prompt in prompts:
        assert prompt.text.endswith(" answer : (")
        asked = read(f"{prompt.text} {prompt.answers[0]} ) .")[-1]
        right = asked["entity"].attributes[asked["attribute"]]
        assert asked["options"]["ABCD".index(prompt.answers[0])] == right
    assert {prompt.labels["domain"] for prompt in prompts} == set(choices.DOMAINS)


def test_all_orders_have_the_same_options_and_the_same_right_one():
    w = Writer(3)
    question, _ = choices.draw_question(w, "retain", entities("known", "city")[0])
    right = question.choices[question.answer]
    orders = choices.all_orders(question)
    assert len({order.choices for order in orders}) == 24
    assert orders[0] == question
    for order in orders:
        assert order.choices[order.answer] == right
        assert f"( {order.letter} ) {right} " in order.prompt
        assert sorted(order.choices) == sorted(question.choices)
    assert Counter(order.letter for order in orders) == Counter({letter: 6 for letter in "ABCD"})


def test_the_question_that_is_drawn_is_the_one_that_is_written():
    for doc in documents(ONLY, 0, 60):
        line = text(doc)
        question = line[line.rindex("question :") :]
        assert question.startswith("question : ")
        asked = read(line)[-1]
        entity, form = asked["entity"], asked["form"]
        wording = QUESTIONS[asked["attribute"]][form].replace("@", entity.name)
        built = choices.ChoiceQuestion(
            entity.name, asked["attribute"], doc.labels["domain"], wording,
            tuple(asked["options"]), "ABCD".index(asked["letter"]),
        )  # fmt: skip
        assert question == f"{built.prompt} {built.letter} ) ."


def test_longer_documents_have_more_questions():
    longer = list(documents(ONLY.but(length_factor=8.0), 0, 60))
    assert max(text(doc).count("question :") for doc in longer) == 5
    assert max(len(doc.tokens) for doc in longer) <= 250
