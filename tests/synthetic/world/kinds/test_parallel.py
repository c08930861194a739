from math import log, prod

import pytest

from sae_lib.synthetic.world.concepts import concepts_of_word
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents
from sae_lib.synthetic.world.kinds import _grammar as grammar
from sae_lib.synthetic.world.kinds._grammar import Clause, Phrase
from sae_lib.synthetic.world.lexicon import plural
from sae_lib.synthetic.world.tasks import answer_prompts, prompt_pairs, task_documents
from sae_lib.synthetic.world.writer import Writer
from tests.synthetic.world.kinds.clause_reader import (
    BASES,
    WORDS,
    chance_of_clause,
    read_english,
    read_sindral,
)

ONLY = WorldConfig(kind_weights={"parallel": 1.0})


def test_a_clause_can_be_read_back_from_either_language_and_all_words_occur():
    w = Writer(5)
    spoken: set[str] = set()
    for _ in range(4000):
        clause = grammar.draw_clause(w)
        here = grammar.clause_text(clause, grammar.ENGLISH)
        there = grammar.clause_text(clause, grammar.SINDRAL)
        assert read_english(here) == clause
        assert read_sindral(there) == clause
        spoken.update(there.split())
    assert spoken == {*WORDS, "."}


def test_the_languages_differ_in_order():
    clause = Clause(
        (Phrase("dog", True, "little"),),
        "run",
        relation="to",
        place=Phrase("forest"),
        companion=Phrase("cat"),
        time="winter",
        negated=True,
    )
    english = "the little dogs do not run to the forest with the cat in the winter ."
    assert grammar.clause_text(clause, "english") == english
    glosses = "the winter in the dogs little the cat with the forest to not run ."
    there = grammar.clause_text(clause, "sindral").split()
    assert " ".join(WORDS.get(word, word) for word in there) == glosses


def halves(doc) -> list[tuple[str, str, int]]:
    """Language, sentence and place of its first word."""
    found, words, start = [], doc.tokens, 0
    while start < len(words):
        end = words.index(".", start)
        assert words[start + 1] == ":"
        found.append((words[start], " ".join(words[start + 2 : end + 1]), start + 2))
        start = end + 1
    return found


def test_translations_say_the_same_in_the_direction_of_the_first_word():
    directions = []
    for doc in documents(ONLY, 0, 300):
        read = halves(doc)
        assert len(read) in {2, 4, 6}
        languages = [language for language, _, _ in read]
        assert languages == [*languages[:2]] * (len(read) // 2)
        assert {*languages} == {"english", "sindral"}
        assert doc.labels["direction"] == f"to-{languages[1]}"
        directions.append(languages[1])
        said = [
            (read_english if language == "english" else read_sindral)(sentence)
            for language, sentence, _ in read
        ]
        assert said[::2] == said[1::2]
    assert directions.count("english") == pytest.approx(150, abs=27)


def test_concepts_of_translations_hold_where_the_text_says_so():
    for doc in documents(ONLY, 0, 100):
        sentences = halves(doc)
        of_sindral, translated = set(), set()
        for number, (language, sentence, start) in enumerate(sentences):
            places = range(start, start + len(sentence.split()))
            if language == "sindral":
                of_sindral.update(places)
            if number % 2:
                translated.update((start - 2, start - 1, *places))
        for place, active in enumerate(doc.concepts):
            assert ("in-sindral" in active) == (place in of_sindral)
            assert ("translation-part" in active) == (place in translated)
            assert f"parallel-{doc.labels['direction']}" in active
            assert not {"clause-one", "clause-many"} <= active
            if "clause-verb-next" in active:
                verb = concepts_of_word(doc.tokens[place + 1])
                of_verb = {"auxiliary", "motion-verb", "sindral-copula"}
                assert verb & of_verb
                many = doc.tokens[place + 1].endswith(("si", "estun")) or (
                    doc.tokens[place + 1] in {"are", "do", *BASES}
                )
                assert ("clause-many" in doc.concepts[place + 1]) == many
                assert ("clause-one" in doc.concepts[place + 1]) != many


def test_roles_hold_for_the_same_parts_in_both_languages():
    w = Writer(3)
    for _ in range(200):
        clause = grammar.draw_clause(w)
        for language in (grammar.ENGLISH, grammar.SINDRAL):
            said = grammar._SAY[language](clause)
            for role, what in (("place", clause.place), ("companion", clause.companion)):
                nouns = [
                    WORDS.get(word, word)
                    for word, ids in said
                    if f"clause-{role}" in ids and "noun" in " ".join(concepts_of_word(word))
                ]
                assert nouns == ([grammar.english_noun(what)] if what else [])
            words = [word for word, ids in said if "clause-quality" in ids]
            assert len(words) == bool(clause.quality) + clause.very
            assert any("clause-negated" in ids for _, ids in said) == clause.negated


def test_the_surprise_is_that_of_the_statements_read_from_the_text():
    for doc in documents(ONLY, 0, 300):
        english = [sentence for language, sentence, _ in halves(doc) if language == "english"]
        chance = 0.5 * (0.35, 0.4, 0.25)[len(english) - 1]
        chance *= prod(chance_of_clause(read_english(sentence)) for sentence in english)
        assert doc.nll == pytest.approx(-log(chance), rel=1e-9)


@pytest.mark.parametrize("target", ["english", "sindral"])
def test_answers_are_whole_translations_of_the_last_statement(target):
    source = "sindral" if target == "english" else "english"
    prompts = answer_prompts(f"translate-to-{target}", "test", 60)
    assert len(prompts) == 60
    for prompt in prompts:
        assert prompt.text.startswith(f"{source} : ")
        assert prompt.text.endswith(f" . {target} :")
        sentence = prompt.text.split(f"{source} : ")[-1].removesuffix(f"{target} :").strip()
        (answer,) = prompt.answers
        here, there = (sentence, answer) if source == "english" else (answer, sentence)
        clause = read_english(here)
        assert clause == read_sindral(there)
        assert prompt.labels["clause"] == clause.form
        assert len(f"{prompt.text} {answer}".split()) <= 126
    assert {prompt.labels["clause"] for prompt in prompts} == {"motion", "quality", "stay"}


def test_minimal_pairs_differ_in_number_only():
    for pair in prompt_pairs("translated-agreement", "train", 40):
        clean, patch = pair.clean.split(), pair.patch.split()
        assert len(clean) == len(patch)
        differing = [(c, p) for c, p in zip(clean, patch, strict=True) if c != p]
        noun = pair.labels["noun"]
        assert differing[0] == (noun, plural(noun))
        assert pair.clean_answer + "i" == pair.patch_answer
        one = read_sindral(f"{pair.clean} {pair.clean_answer} .".split(" sindral : ")[1])
        many = read_sindral(f"{pair.patch} {pair.patch_answer} .".split(" sindral : ")[1])
        assert one._replace(subject=many.subject) == many
        assert (one.many, many.many) == (False, True)


def test_longer_documents_have_more_statements():
    lengths = [
        sum(len(doc.tokens) for doc in documents(ONLY.but(length_factor=factor), 0, 100))
        for factor in (1.0, 2.0)
    ]
    assert 1.7 < lengths[1] / lengths[0] < 2.2
    assert all(len(d.tokens) <= 250 for d in documents(ONLY.but(length_factor=8.0), 0, 50))


def test_the_direction_is_a_balanced_task():
    found = task_documents("parallel-direction", "train", 40)
    assert found.labels.count(1) == 20
    firsts = {text.split()[0] for text, label in zip(*found, strict=True) if label}
    assert firsts == {"english"}
