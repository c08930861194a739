import random
from functools import cache
from itertools import product
from math import exp, inf, log, sqrt

import numpy as np
import pytest

from sae_lib.errors import BadInput
from sae_lib.synthetic.formal.dyck import Dyck
from sae_lib.synthetic.formal.english import English
from sae_lib.synthetic.formal.expr import Expr
from sae_lib.synthetic.formal.pcfg import Grammar


@cache
def dyck_prob(text: str, nesting: float = 0.5) -> float:
    """p(S derives text), straight from the rules."""
    total = 0.0
    for split in range(2, len(text) - 1, 2):
        total += 0.3 * dyck_prob(text[:split], nesting) * dyck_prob(text[split:], nesting)
    if text[:1] + text[-1:] in ("()", "[]"):
        inner = text[1:-1]
        total += 0.35 * (nesting * dyck_prob(inner, nesting) if inner else 1 - nesting)
    return total


def test_probabilities_of_brackets_sum_over_derivations():
    grammar = Dyck().grammar
    lengths = grammar.length_probs(8)
    for n in range(1, 9):
        texts = ["".join(t) for t in product("()[]", repeat=n)]
        found = np.exp(grammar.log_probs([list(text) for text in texts]))
        assert found == pytest.approx([dyck_prob(text) for text in texts], abs=1e-15)
        assert found.sum() == pytest.approx(lengths[n], abs=1e-12)
    assert lengths[8] > 0
    assert exp(grammar.log_probs([list("()()()")])[0]) == pytest.approx(2 * 0.3**2 * 0.175**3)


# renames, a cycle of renames, an expansion of three parts, words beside symbols
TANGLED = {
    "S": [(0.2, ("T",)), (0.3, ("A", "S", "b")), (0.5, ("a",))],
    "T": [(0.5, ("S",)), (0.25, ("A", "A", "A")), (0.25, ("A",))],
    "A": [(0.6, ("a",)), (0.4, ("b",))],
}


@cache
def tangled_prob(symbol: str, text: str, renames: int = 60) -> float:
    """Sums over derivations by brute force; no more than ``renames`` in a row."""
    if symbol not in TANGLED:
        return float(symbol == text)
    return sum(p * sequence_prob(parts, text, renames - 1) for p, parts in TANGLED[symbol])


def sequence_prob(parts: tuple[str, ...], text: str, renames: int) -> float:
    if len(parts) == 1:
        return tangled_prob(parts[0], text, renames) if renames > 0 else 0.0
    return sum(
        tangled_prob(parts[0], text[:i]) * sequence_prob(parts[1:], text[i:], 60)
        for i in range(1, len(text) - len(parts) + 2)
    )


def test_renames_and_long_expansions_are_summed_out():
    grammar = Grammar(TANGLED)
    lengths = grammar.length_probs(6)
    for n in range(1, 7):
        texts = ["".join(t) for t in product("ab", repeat=n)]
        found = np.exp(grammar.log_probs([list(text) for text in texts]))
        assert found == pytest.approx([tangled_prob("S", text) for text in texts], abs=1e-12)
        assert found.sum() == pytest.approx(lengths[n], abs=1e-12)


@pytest.mark.parametrize("language", [Expr(), Expr(notation="postfix")])
def test_an_expression_has_one_derivation(language):
    grammar, uniform = language.grammar, random.Random(0).random
    for _ in range(200):
        choices: list[tuple[str, int]] = []
        words = grammar.derive(uniform, 10**6, choices)
        chosen = sum(log(grammar.rules[symbol][place][0]) for symbol, place in choices)
        assert grammar.log_probs([words]) == pytest.approx([chosen])


def test_a_chain_of_conjunctions_has_many_derivations():
    grammar = English().grammar
    noun, conjunction = 0.2 / 10, 0.15 / 2
    chain = ["dogs", "and", "cats", "or", "dogs", "followed"]
    assert exp(grammar.log_probs([chain])[0]) == pytest.approx(
        2 * 0.15**2 * 0.5**2 * noun**3 * 0.2 / 10
    )
    # the adverb may belong to both verbs
    shared = ["dogs", "followed", "and", "heard", "slowly"]
    assert exp(grammar.log_probs([shared])[0]) == pytest.approx(
        2 * noun * (0.2 / 10) ** 2 * conjunction * 0.45 / 10
    )


def test_what_is_no_string_has_no_probability():
    strings = [["(", "]"], ["("], [], ["(", ")", "word"], ["(", ")"]]
    assert Dyck().grammar.log_probs(strings) == [-inf] * 4 + [pytest.approx(log(0.175))]


def test_long_strings_keep_a_finite_probability():
    words = ["("] * 64 + [")"] * 64
    assert Dyck().grammar.log_probs([words])[0] == pytest.approx(64 * log(0.35 * 0.5))
    sentence = ["dogs", "followed"] + ["slowly"] * 126
    assert English().grammar.log_probs([sentence])[0] == pytest.approx(
        log(0.2 / 10) + log(0.2 / 10) + 126 * log(0.45 / 10)
    )


LANGUAGES = [
    Dyck(), Dyck(nesting=0.3), Expr(), English(), English(relatives=True, prepositions=True),
]  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_rules_are_applied_as_often_as_the_grammar_says(language):
    grammar, uniform = language.grammar, random.Random(1).random
    choices: list[tuple[str, int]] = []
    for _ in range(1500):
        grammar.derive(uniform, 10**6, choices)
    for symbol, expansions in grammar.rules.items():
        places = [place for name, place in choices if name == symbol]
        assert len(places) > 100
        for place, (p, _) in enumerate(expansions):
            share = places.count(place) / len(places)
            assert abs(share - p) <= 4 * sqrt(p * (1 - p) / len(places)) + 1e-9


@pytest.mark.parametrize("language", LANGUAGES)
def test_lengths_are_as_computed(language):
    grammar, uniform = language.grammar, random.Random(2).random
    found = [len(grammar.derive(uniform, 60) or [0] * 61) for _ in range(1500)]
    shares = grammar.length_probs(60)
    for low, high in ((1, 2), (3, 5), (6, 12), (13, 60)):
        p = shares[low : high + 1].sum()
        share = sum(low <= n <= high for n in found) / len(found)
        assert abs(share - p) <= 4 * sqrt(p * (1 - p) / len(found)) + 1e-9


@pytest.mark.parametrize(
    ("language", "length"), [(Dyck(), 28), (Dyck(nesting=0.3), 1.4 / 0.19), (Expr(), 1 / 0.196)]
)
def test_expected_lengths_follow_from_the_branching(language, length):
    grammar = language.grammar
    assert grammar.expected_length == pytest.approx(length)
    shares = grammar.length_probs(2000)
    assert shares.sum() == pytest.approx(1, abs=1e-3)
    assert (shares * np.arange(2001)).sum() == pytest.approx(length, rel=0.02)


def test_grammars_that_never_end_or_do_not_add_up_are_refused():
    with pytest.raises(BadInput, match=r"1\.020 on average"):
        Grammar({"S": [(0.51, ("S", "S")), (0.49, ("a",))]})
    with pytest.raises(BadInput, match="sum to one"):
        Grammar({"S": [(0.3, ("S", "S")), (0.6, ("a",))]})
    with pytest.raises(BadInput, match="no expansion may be empty"):
        Grammar({"S": [(0.5, ()), (0.5, ("a",))]})


def test_a_string_that_gets_too_long_is_given_up():
    grammar = Dyck().grammar
    found = [grammar.derive(random.Random(seed).random, 6) for seed in range(300)]
    kept = [words for words in found if words is not None]
    assert 0 < len(kept) < 300
    whole = [grammar.derive(random.Random(seed).random, 10**6) for seed in range(300)]
    assert kept == [words for words in whole if words and len(words) <= 6]
