from collections import Counter
from math import comb, factorial, log

import pytest

from sae_lib.synthetic.world.concepts import CONCEPTS, lexicon
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents
from sae_lib.synthetic.world.kinds.functions import (
    FUNCTIONS,
    consistent_functions,
    function_prompt,
    write,
)
from sae_lib.synthetic.world.tasks import answer_prompts, task_documents
from sae_lib.synthetic.world.writer import Writer

CFG = WorldConfig(kind_weights={"functions": 1.0})
DOCS = list(documents(CFG, 0, 300))


def parsed(words) -> list[tuple[str, str]]:
    text = " ".join(words)
    assert text.endswith(" .")
    pairs = (part.split(" -> ") for part in text[:-2].split(" ; "))
    return [(x, y) for x, y in pairs]


def fitting(examples) -> list[str]:
    return [
        name
        for name, function in FUNCTIONS.items()
        if all(function.table.get(x) == y for x, y in examples)
    ]


BEGINNINGS = {
    name: {
        tuple(words[:end])
        for x, y in function.table.items()
        for words in [[*x.split(), "->", *y.split()]]
        for end in range(1, len(words) + 1)
    }
    for name, function in FUNCTIONS.items()
}
"""All that an example of a function can begin with."""


def first_word_that_tells(doc) -> int:
    """Place of the first word that leaves one function; the end of the document if none does."""
    possible, start = set(FUNCTIONS), 0
    for place, word in enumerate(doc.tokens):
        if word == ";":
            start = place + 1
            continue
        shown = doc.tokens[start : place + 1]
        possible = {name for name in possible if shown in BEGINNINGS[name]}
        if len(possible) == 1:
            return place
    return len(doc.tokens)


def test_every_answer_is_that_of_the_labelled_function_and_no_input_comes_twice():
    for doc in DOCS:
        examples = parsed(doc.tokens)
        assert doc.labels["function"] in fitting(examples)
        assert doc.labels["num_examples"] == str(len(examples))
        assert doc.labels["num_fitting"] == str(len(fitting(examples)))
        assert len({x for x, _ in examples}) == len(examples) >= 3
        assert doc.tokens[doc.marks["answer"] - 1] == "->"
    assert {doc.labels["function"] for doc in DOCS} == set(FUNCTIONS)


def test_functions_by_hand():
    asked = {
        "category": ("purple", "color"), "animal-group": ("goose", "bird"),
        "plural": ("goose", "geese"), "singular": ("mice", "mouse"), "digit": ("nine", "9"),
        "workplace": ("midwife", "hospital"), "initial": ("cello", "C"),
        "identity": ("cold", "cold"), "opposite": ("cold", "hot"), "next-number": ("nine", "ten"),
        "previous-number": ("three", "two"), "next-time": ("winter", "spring"),
        "previous-time": ("monday", "sunday"), "first-of-list": ("red dog harp", "red"),
        "last-of-list": ("red dog harp", "harp"), "animal-of-list": ("red dog harp", "dog"),
        "color-of-list": ("dog harp red", "red"),
    }  # fmt: skip
    assert {name: FUNCTIONS[name].apply(x) for name, (x, _) in asked.items()} == {
        name: y for name, (_, y) in asked.items()
    }
    there, back = FUNCTIONS["to-sindral"], FUNCTIONS["from-sindral"]
    assert all(back.apply(there.apply(noun)) == noun for noun in there.inputs)
    assert len(FUNCTIONS["capital"].inputs) == 48


def test_functions_said_to_be_distinct_are_told_by_any_one_example():
    for name, function in FUNCTIONS.items():
        for other, another in FUNCTIONS.items():
            shared = name != other and set(function.table.items()) & set(another.table.items())
            assert not shared or not function.distinct
    assert sum(function.distinct for function in FUNCTIONS.values()) >= 10
    assert consistent_functions([("red dog harp", "red")]) == {"first-of-list", "color-of-list"}


@pytest.mark.parametrize("factor", [1.0, 2.0])
def test_surprise_is_that_of_the_mixture_of_all_functions_that_fit(factor):
    cfg, open_texts = CFG.but(length_factor=factor), 0
    for seed in range(3000):
        w = Writer(seed)
        write(w, cfg)
        examples = parsed(w.tokens)
        p = 0.0
        for name in fitting(examples):
            num_inputs, num = len(FUNCTIONS[name].inputs), len(examples)
            most = min(round(12 * factor), 30, num_inputs)
            possible = range(min(round(3 * factor), most), most + 1)
            assert num in possible
            p += 1 / (len(FUNCTIONS) * len(possible) * comb(num_inputs, num) * factorial(num))
        assert w.nll == pytest.approx(-log(p), rel=1e-9)
        open_texts += len(fitting(examples)) > 1
    assert open_texts or factor > 1, "no text left its function open, so no sum was checked"


def test_functions_and_numbers_of_examples_come_equally_often():
    docs = list(documents(CFG, 0, 2000))
    shares = Counter(doc.labels["function"] for doc in docs)
    error = 4 * (0.05 * 0.95 / 2000) ** 0.5
    assert all(abs(shares[name] / 2000 - 1 / 20) < error for name in FUNCTIONS)
    numbers = Counter(
        doc.labels["num_examples"] for doc in docs if doc.labels["function"] == "category"
    )
    assert set(numbers) == {str(num) for num in range(3, 13)}


def test_the_function_is_a_concept_from_the_first_word_that_tells_it():
    for doc in DOCS:
        start = first_word_that_tells(doc)
        for place, active in enumerate(doc.concepts):
            told = {id for id in active if id.startswith("function-") and id[9:] in FUNCTIONS}
            assert told == ({f"function-{doc.labels['function']}"} if place >= start else set())
            assert ("function-known" in active) == (place >= start)


def test_arrows_inputs_and_answers_are_told_apart():
    for doc in DOCS[:100]:
        in_input = True
        for word, active in zip(doc.tokens, doc.concepts, strict=True):
            assert ("arrow" in active) == ("function-answer-next" in active) == (word == "->")
            mark = word in {"->", ";", "."}
            if mark:
                in_input = word != "->"
            assert ("function-input" in active) == (in_input and not mark)
            assert ("function-answer" in active) == (not in_input and not mark)
    assert all(f"function-{name}" in CONCEPTS for name in FUNCTIONS)


@pytest.mark.parametrize("task", ["in-context-functions", "in-context-hard"])
def test_prompts_show_four_examples_and_accept_what_fits_them(task):
    prompts = answer_prompts(task, "test", 150)
    assert {prompt.labels["function"] for prompt in prompts} == {
        name for name, f in FUNCTIONS.items() if f.distinct == (task == "in-context-functions")
    }
    for prompt in prompts:
        *shown, query = prompt.text.split(" ; ")
        examples = [tuple(part.split(" -> ")) for part in shown]
        x = query.removesuffix(" ->")
        assert len(examples) == 4
        assert x != query
        assert x not in {seen for seen, _ in examples}
        assert set(prompt.answers) == {FUNCTIONS[name].apply(x) for name in fitting(examples)}


def test_one_example_of_a_list_leaves_several_answers_right():
    prompts = [function_prompt(Writer(seed), "first-of-list", 1) for seed in range(60)]
    assert {len(prompt.answers) for prompt in prompts} == {1, 2}
    for prompt in prompts:
        assert prompt.text.split(" ; ")[1].split()[0] in prompt.answers


def test_the_labelled_task_has_all_functions_as_classes():
    texts, labels = task_documents("function", "test", 40)
    assert Counter(labels) == dict.fromkeys(range(20), 2)
    for text, label in zip(texts, labels, strict=True):
        assert tuple(FUNCTIONS)[label] in fitting(parsed(text.split()))


def test_names_of_kinds_of_things_are_told_from_names_of_groups_of_animals():
    groups = {"mammal", "bird", "fish", "reptile", "insect"}
    assert set(lexicon("animal-group-name")) == groups
    assert set(lexicon("category-name")) == groups | set(FUNCTIONS["category"].table.values())
