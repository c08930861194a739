import re
from itertools import count, islice

import pytest

from sae_lib.errors import BadInput
from sae_lib.synthetic.formal.dyck import Dyck
from sae_lib.synthetic.formal.english import CLASS_OF, English
from sae_lib.synthetic.formal.expr import ARITY, Expr
from sae_lib.synthetic.formal.language import formal_strings

RICH = English(relatives=True, prepositions=True, num_conjunctions=10)


def holding(truth, concept: str) -> list[bool]:
    return [concept in found for found in truth.concepts]


@pytest.mark.parametrize("language", [Dyck(), Dyck(nesting=0.3)])
def test_brackets_balance_and_the_innermost_open_one_is_due(language):
    for one in formal_strings(language, 0, 150):
        truth = language.truth(one.tokens)
        for i, token in enumerate(one.tokens):
            left = "".join(one.tokens[: i + 1])
            while (shorter := re.sub(r"\(\)|\[\]", "", left)) != left:
                left = shorter
            assert set(left) <= {"(", "["}  # nothing is closed that is not open
            assert truth.measures["depth"][i] == len(left)
            assert truth.measures["peak"][i] == max(truth.measures["depth"][: i + 1])
            expected = {"opening" if token in "([" else "closing"}
            expected |= {"round" if token in "()" else "square"}
            expected |= {{"(": "round-due", "[": "square-due", "": "balanced"}[left[-1:]]}
            assert truth.concepts[i] == expected
        assert truth.measures["depth"][-1] == 0


def parse_prefix(tokens: list[str], depth: int = 0, place: int = 0) -> list[tuple[int, int]]:
    """Takes one expression off; per token, operators around it and which operand it is."""
    token = tokens.pop(0)
    found = [(depth, place)]
    for operand in range(1, ARITY[token] + 1):
        found += parse_prefix(tokens, depth + 1, operand)
    return found


def test_prefix_expressions_parse_with_their_arities():
    language = Expr()
    names = ("first-operand", "second-operand", "third-operand")
    for one in formal_strings(language, 0, 200):
        rest = list(one.tokens)
        parsed = parse_prefix(rest)
        assert rest == []
        truth = language.truth(one.tokens)
        assert truth.measures["depth"] == tuple(depth for depth, _ in parsed)
        assert [found & set(names) for found in truth.concepts] == [
            {names[place - 1]} if place else set() for _, place in parsed
        ]
        # what is pending is what a list of digits has to be appended for
        for i, pending in enumerate(truth.measures["pending"]):
            completed = [*one.tokens[: i + 1], *["0"] * pending]
            assert parse_prefix(completed)
            assert completed == []
        assert holding(truth, "whole") == [False] * (len(one.tokens) - 1) + [True]


def test_postfix_expressions_evaluate_on_a_stack():
    language = Expr(notation="postfix")
    for one in formal_strings(language, 0, 200):
        stack: list[list] = []
        truth = language.truth(one.tokens)
        for i, token in enumerate(one.tokens):
            operands = [stack.pop() for _ in range(ARITY[token])]
            stack.append([token, operands])
            assert truth.measures["pending"][i] == len(stack)
            assert ("whole" in truth.concepts[i]) == (len(stack) == 1)
        assert len(stack) == 1


def test_postfix_is_prefix_read_from_the_right():
    strings = [one.tokens for one in formal_strings(Expr(notation="postfix"), 0, 100)]
    mirrored = [words[::-1] for words in strings]
    assert Expr(notation="postfix").grammar.log_probs(strings) == pytest.approx(
        Expr().grammar.log_probs(mirrored)
    )


@pytest.mark.parametrize("language", [English(), RICH])
def test_a_sentence_may_end_where_the_grammar_has_what_was_read(language):
    for one in formal_strings(language, 0, 60):
        truth = language.truth(one.tokens)
        parts = [one.tokens[: i + 1] for i in range(len(one.tokens))]
        log_p = language.grammar.log_probs(parts)
        assert holding(truth, "may-end") == [found > -1e9 for found in log_p]


def test_constituents_of_plain_sentences_lie_around_the_verb():
    language = English()
    for one in formal_strings(language, 0, 150):
        truth = language.truth(one.tokens)
        classes = [CLASS_OF[word] for word in one.tokens]
        verb = classes.index("verb")
        named = ("noun", "pronoun", "adjective")
        assert holding(truth, "subject") == [
            i < verb and name in named for i, name in enumerate(classes)
        ]
        assert holding(truth, "object") == [
            i > verb and name in named for i, name in enumerate(classes)
        ]
        assert holding(truth, "predicate") == [name in ("verb", "adverb") for name in classes]
        assert holding(truth, "verb-seen") == [i >= verb for i in range(len(classes))]
        assert all(name in found for name, found in zip(classes, truth.concepts, strict=True))
        assert set(truth.measures["clause_depth"]) == {0}
        joined = [sum(n == "conjunction" for n in classes[: i + 1]) for i in range(len(classes))]
        assert truth.measures["conjunctions"] == tuple(joined)


def test_relative_clauses_end_at_the_main_verb():
    truth = RICH.truth(["dogs", "who", "followed", "cats", "who", "left", "heard", "you"])
    assert truth.measures["clause_depth"] == (0, 1, 1, 1, 2, 2, 0, 0)
    assert holding(truth, "verb-seen") == [False] * 6 + [True] * 2
    assert holding(truth, "object") == [False, False, False, True, False, False, False, True]


@pytest.mark.parametrize("language", [Dyck(), Expr(), Expr(notation="postfix"), RICH])
def test_every_declared_concept_and_number_occurs_and_no_other(language):
    seen, numbers = set(), set()
    for one in formal_strings(language, 0, 300):
        truth = language.truth(one.tokens)
        seen |= set().union(*truth.concepts)
        numbers |= set(truth.measures)
        assert {len(values) for values in truth.measures.values()} == {len(one.tokens)}
        assert len(truth.concepts) == len(one.tokens)
    if language == Expr(notation="postfix"):
        prefix_only = {c for c, text in language.concepts.items() if "prefix only" in text}
        assert seen | prefix_only == set(language.concepts)
        assert numbers == {"pending"}
    else:
        assert seen == set(language.concepts)
        assert numbers == set(language.measures)


@pytest.mark.parametrize("language", [Dyck(), Expr(), Expr(notation="postfix"), RICH])
def test_the_truth_of_a_token_needs_only_what_was_read(language):
    for one in formal_strings(language, 0, 20):
        whole = language.truth(one.tokens)
        for stop in islice(count(1, 3), len(one.tokens) // 3):
            part = language.truth(one.tokens[:stop])
            assert part.concepts == whole.concepts[:stop]
            assert all(part.measures[name] == whole.measures[name][:stop] for name in part.measures)


@pytest.mark.parametrize(
    ("language", "text"),
    [
        (Dyck(), "( ]"), (Dyck(), ") ("), (Dyck(), "( x"), (Expr(), "neg 1 2"), (Expr(), "plus 1"),
        (Expr(notation="postfix"), "1 add"), (English(), "followed dogs"), (English(), "dogs old"),
        (English(), "dogs slowly"), (English(), "dogs followed cats heard"),
        (English(), "dogs and followed"), (RICH, "dogs who you"), (English(), "zebras"),
    ],
)  # fmt: skip
def test_a_token_that_cannot_come_is_named(language, text):
    with pytest.raises(BadInput, match="cannot come here"):
        language.truth(text.split())
