from collections import Counter
from math import exp, log

import pytest

from sae_lib.errors import BadInput
from sae_lib.synthetic.world import lexicon  # noqa: F401  declares the words used here
from sae_lib.synthetic.world.writer import Table, Writer

NOUNS = Table(("dog", "cat", "owl"), (1.0, 2.0, 5.0))


def write(w: Writer) -> str:
    """Six texts; whether it is one sentence or two shows only at the end."""
    long = w.flip(0.25)
    w.say("the")
    w.say(w.draw(NOUNS))
    if long:
        w.say("and")
        w.say(w.pick(("she", "he")))
    return " ".join(w.tokens)


def exact() -> dict[str, float]:
    nouns = {"dog": 1 / 8, "cat": 2 / 8, "owl": 5 / 8}
    short = {f"the {noun}": 0.75 * p for noun, p in nouns.items()}
    long = {f"the {n} and {who}": 0.25 * p / 2 for n, p in nouns.items() for who in ("she", "he")}
    return short | long


def test_nll_is_the_surprise_of_the_text():
    for seed in range(200):
        w = Writer(seed)
        text = write(w)
        assert exp(-w.nll) == pytest.approx(exact()[text], rel=1e-12)


def test_mean_nll_is_the_entropy_of_the_grammar():
    entropy = -sum(p * log(p) for p in exact().values())
    surprises = []
    for seed in range(20_000):
        w = Writer(seed)
        write(w)
        surprises.append(w.nll)
    # standard deviation of one surprise is about 0.9
    assert sum(surprises) / len(surprises) == pytest.approx(entropy, abs=0.02)


def test_texts_come_with_their_probabilities():
    counts = Counter(write(Writer(seed)) for seed in range(20_000))
    for text, p in exact().items():
        assert counts[text] / 20_000 == pytest.approx(p, abs=5 * (p * (1 - p) / 20_000) ** 0.5)


def test_entropy_of_a_table_by_hand():
    assert Table("ab", (1.0, 3.0)).entropy() == pytest.approx(
        0.25 * log(4) + 0.75 * log(4 / 3), rel=1e-12
    )


def test_arrangements_are_drawn_without_repetition_and_scored():
    w = Writer(0)
    drawn = w.arrange("abcd", 3)
    assert len(set(drawn)) == 3
    assert w.nll == pytest.approx(log(4 * 3 * 2))
    counts = Counter("".join(Writer(seed).arrange("abc", 2)) for seed in range(6000))
    assert len(counts) == 6
    assert max(counts.values()) < 1200  # 1000 each, 29 the standard deviation


def test_a_certain_choice_costs_nothing():
    w = Writer(0)
    assert w.pick(["only"]) == "only"
    assert w.nll == 0.0


def test_what_is_impossible_is_never_drawn():
    table = Table("ab", (0.0, 1.0))
    assert {Writer(seed).draw(table) for seed in range(100)} == {"b"}


def test_a_word_nobody_declared_is_refused_with_the_nearest():
    with pytest.raises(BadInput, match="Did you mean 'dog'"):
        Writer(0).say("the dogg")


def test_what_was_told_holds_from_the_word_that_told_it():
    w = Writer(0)
    w.set_context("c")
    w.say("the dog and")
    w.tell("dog", since=1)
    w.tell("more")
    w.say("cat", "d")
    w.tell("next", since=len(w.tokens))
    w.say("the")
    assert w.contexts == [
        ("c",), ("c", "dog"), ("c", "dog", "more"), ("c", "dog", "more", "d"),
        ("c", "dog", "more", "next"),
    ]  # fmt: skip


def test_context_concepts_reach_the_words_they_are_said_of():
    w = Writer(0)
    w.set_context("c")
    w.say("the dog", "d")
    w.value("pet", "cat")
    w.set_context()
    w.say("and")
    assert w.contexts == [("c", "d"), ("c", "d", "next-pet"), ("c", "value-pet"), ()]
