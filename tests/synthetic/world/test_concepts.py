import pytest

from sae_lib.errors import UnknownName
from sae_lib.synthetic.world.concepts import (
    CONCEPTS,
    ancestors,
    concepts_of_word,
    declare,
    lexicon,
    words,
)
from sae_lib.synthetic.world.kinds import KINDS


def test_a_dog_is_a_mammal_and_an_animal_in_every_form():
    assert len(KINDS) >= 5
    for word in ("dog", "dogs", "hound", "puppies"):
        assert {"dog", "mammal", "animal"} <= concepts_of_word(word)
        assert "bird" not in concepts_of_word(word)
    assert concepts_of_word("nurse") >= {"nurse", "medical-profession", "profession"}


def test_there_are_many_concepts_of_both_scopes_and_all_are_described():
    scopes = [concept.scope for concept in CONCEPTS.values()]
    assert scopes.count("token") >= 100
    assert scopes.count("context") >= 80
    for concept in CONCEPTS.values():
        assert concept.description.endswith((".", "?")), concept.id
        assert "{" not in concept.description, concept.id


def test_no_concept_is_its_own_ancestor_and_scopes_do_not_mix():
    for concept in CONCEPTS.values():
        above = {general for parent in concept.parents for general in ancestors(parent)}
        assert concept.id not in above
        assert {CONCEPTS[general].scope for general in above} <= {concept.scope}


def test_every_token_concept_has_a_word_and_every_word_a_concept():
    for concept in CONCEPTS.values():
        if concept.scope == "token":
            assert lexicon(concept.id), concept.id
        else:
            assert not lexicon(concept.id), concept.id
    assert all(concepts_of_word(word) for word in words())


def test_lexica_of_topics_do_not_overlap():
    topics = [c.id for c in CONCEPTS.values() if "topic-word" in c.parents]
    assert len(topics) >= 8
    everything = [word for topic in topics for word in lexicon(topic)]
    assert len(everything) == len(set(everything))
    assert min(len(lexicon(topic)) for topic in topics) >= 15


def test_unknown_names_and_mixed_scopes_are_refused():
    with pytest.raises(UnknownName, match="Did you mean 'animal'"):
        lexicon("animall")
    with pytest.raises(ValueError, match="differ in scope"):
        declare("broken", "Never added.", parents=("animal",), scope="context")
    assert "broken" not in CONCEPTS
