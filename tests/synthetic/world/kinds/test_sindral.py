from collections import Counter
from math import log

import pytest

from sae_lib.synthetic.world.concepts import concepts_of_word
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents
from sae_lib.synthetic.world.kinds import _grammar as grammar
from sae_lib.synthetic.world.kinds import sindral
from sae_lib.synthetic.world.tasks import answer_prompts, task_documents
from tests.synthetic.world.kinds.clause_reader import (
    chance_of_action,
    chance_of_degree,
    chance_of_look,
    chance_of_phrase,
    chance_of_subject,
    chance_of_time,
    read_sindral,
)

foreign = grammar.foreign
ONLY = WorldConfig(kind_weights={"sindral": 1.0})
GLOSS: dict[str, str] = {
    **foreign.FROM_SINDRAL,
    **{b: a for a, b in foreign.FUNCTION_WORDS.items()},
}
SUBJECTS = {*grammar.CREATURES, *grammar.PLACES}


def gloss(doc) -> list[list[str]]:
    """Sentences, word for word in English."""
    words = [GLOSS[word] if word in GLOSS else word for word in doc.tokens]  # noqa: SIM401
    return [part.split() for part in " ".join(words).removesuffix(" .").split(" . ")]


def feeling_of(sentence: list[str]) -> str:
    """The mood that a sentence with a feeling shows; empty for others."""
    for word in sentence:
        if word in foreign.ADJECTIVES and "emotion" in concepts_of_word(word):
            happy = "happy-feeling" in concepts_of_word(word)
            return "happy" if happy != ("not" in sentence) else "sad"
    return ""


def singular(noun: str) -> str:
    return {grammar.plural(one): one for one in foreign.WITH_PLURAL}.get(noun, noun)


def subject_of(sentence: list[str]) -> list[str]:
    """Nouns of the subject; a time before it is left out."""
    if (
        sentence[0] == "the"
        and sentence[2] == "in"
        and "time-word" in concepts_of_word(sentence[1])
    ):
        sentence = sentence[3:]
    elif sentence[1] == "in":
        sentence = sentence[2:]
    nouns = [sentence[1]]
    if "and" in sentence:
        nouns.append(sentence[sentence.index("and") + 2])
    return nouns


def test_only_words_of_the_second_language_and_all_of_them():
    spoken = {word for doc in documents(ONLY, 0, 1500) for word in doc.tokens}
    assert spoken == {*GLOSS, "."}


def test_verbs_come_last_and_agree_with_the_subject():
    for doc in documents(ONLY, 0, 300):
        for number, sentence in enumerate(gloss(doc)):
            nouns = subject_of(sentence)
            assert {singular(noun) for noun in nouns} <= SUBJECTS
            many = len(nouns) > 1 or nouns[0] != singular(nouns[0])
            plural_forms = {"are", *(base for base, _ in foreign.VERBS)}
            singular_forms = {"is", *(third for _, third in foreign.VERBS)}
            assert sentence[-1] in (plural_forms if many else singular_forms)
            if number == 0:
                assert doc.labels["number"] == ("plural" if many else "singular")


def test_scenes_keep_their_creatures_apart_and_the_first_subject_tells_the_scene():
    members = [noun for scene in sindral.SCENES.values() for noun in scene.creatures]
    assert sorted(members) == sorted(grammar.CREATURES)
    own = strayed = 0
    for doc in documents(ONLY, 0, 600):
        creatures = sindral.SCENES[doc.labels["scene"]].creatures
        first, *rest = gloss(doc)
        (hero,) = subject_of(first)
        assert singular(hero) in creatures
        for sentence in rest:
            other = singular(subject_of(sentence)[0])
            if other in grammar.CREATURES and other != singular(hero):
                own += other in creatures
                strayed += other not in creatures
        for place, active in enumerate(doc.concepts):
            known = place >= doc.tokens.index(foreign.TO_SINDRAL[hero])
            assert ("sindral-scene" in active) == known
            assert (f"sindral-scene-{doc.labels['scene']}" in active) == known
    total = own + strayed
    error = 3 * (0.85 * 0.15 / total) ** 0.5
    assert own / total == pytest.approx(sindral.SCENE_PURITY, abs=error)


def test_the_mood_is_that_of_the_hero_and_mostly_of_others():
    agreeing = other = 0
    for doc in documents(ONLY, 0, 600):
        first, second, *rest = gloss(doc)
        assert feeling_of(first) == ""
        assert feeling_of(second) == doc.labels["mood"]
        assert subject_of(second) == subject_of(first)
        for sentence in rest:
            if feeling_of(sentence):
                agreeing += feeling_of(sentence) == doc.labels["mood"]
                other += feeling_of(sentence) != doc.labels["mood"]
        # the verb tells that the feeling was not negated, the word for not that it was
        told = len(first) + 1 + len(second) - 1 - ("not" in second)
        for place, active in enumerate(doc.concepts):
            assert (f"sindral-mood-{doc.labels['mood']}" in active) == (place >= told)
    total = agreeing + other
    error = 3 * (0.9 * 0.1 / total) ** 0.5
    assert agreeing / total == pytest.approx(sindral.MOOD_AGREEMENT, abs=error)


def test_verbs_and_places_follow_scene_and_mood():
    verbs: Counter[tuple[str, str, str]] = Counter()
    places: Counter[tuple[str, str]] = Counter()
    for doc in documents(ONLY, 0, 1000):
        for sentence in gloss(doc):
            verb = dict(zip(grammar.THIRD_PERSON.values(), grammar.VERBS, strict=True)).get(
                sentence[-1], sentence[-1]
            )
            verbs[doc.labels["scene"], doc.labels["mood"], verb] += verb in grammar.VERBS
            places.update(
                (doc.labels["scene"], singular(word))
                for word in sentence
                if singular(word) in grammar.PLACES
            )
    # yard likes jump and run, and so do the happy: 16 each, crawl and the other three 1 each
    yard = {verb: verbs["yard", "happy", verb] for verb in grammar.VERBS}
    assert (yard["jump"] + yard["run"]) / sum(yard.values()) == pytest.approx(32 / 36, abs=0.08)
    sad = {verb: verbs["market", "sad", verb] for verb in grammar.VERBS}
    liked = sad["rush"] + sad["walk"] + sad["crawl"] + sad["wander"]
    assert liked / sum(sad.values()) == pytest.approx(16 / 18, abs=0.08)
    wild = {place: places["wild", place] for place in grammar.PLACES}
    for place in ("forest", "cave", "hill"):
        assert wild[place] / sum(wild.values()) == pytest.approx(6 / 23, abs=0.07)


def chance_of_document(doc) -> float:
    """From the text, its scene and mood."""
    ends = [i for i, word in enumerate(doc.tokens) if word == "."]
    starts = [0, *(end + 1 for end in ends[:-1])]
    clauses = [
        read_sindral(" ".join(doc.tokens[start : end + 1]))
        for start, end in zip(starts, ends, strict=True)
    ]
    scene, mood = sindral.SCENES[doc.labels["scene"]], doc.labels["mood"]
    places = {place: 6.0 if place in scene.places.split() else 1.0 for place in grammar.PLACES}
    verbs = dict.fromkeys(grammar.VERBS, 1.0)
    for verb in (*scene.verbs.split(), *sindral.VERBS_OF_MOOD[mood]):
        verbs[verb] *= 4
    places = {place: weight / sum(places.values()) for place, weight in places.items()}
    verbs = {verb: weight / sum(verbs.values()) for verb, weight in verbs.items()}

    def action(clause):
        return chance_of_action(clause, scene.companions, places, verbs)

    def feeling(clause, shown: str):
        choices = 5 if (shown == "happy") != clause.negated else 6
        return chance_of_degree(clause) / choices * chance_of_time(clause.time, 0.2)

    def somebody(clause):
        num, everybody = len(scene.creatures), len(grammar.CREATURES)
        own = clause.subject[0].noun in scene.creatures
        return (
            0.85 * chance_of_subject(clause.subject, num - 1)
            if own
            else 0.15 * chance_of_subject(clause.subject, everybody - num)
        )

    first, second, *rest = clauses
    (hero,) = first.subject
    chance = 1 / 6 / 2 / len(scene.creatures) * chance_of_phrase(hero, 0.35) * action(first)
    chance *= feeling(second, mood) * (0.35, 0.4, 0.25)[len(rest) - 1]
    for clause in rest:
        noun = clause.subject[0].noun
        if noun in grammar.PLACES:
            chance *= 0.2 * chance_of_look(clause, places)
        elif clause.quality:
            happy = clause.quality in {"happy", "glad", "proud", "joyful", "grateful"}
            shown = "happy" if happy != clause.negated else "sad"
            chance *= 0.2 * (0.9 if shown == mood else 0.1)
            chance *= somebody(clause) * feeling(clause, shown)
        elif len(clause.subject) == 1 and noun == hero.noun:
            chance *= 0.25 * action(clause)
        else:
            chance *= 0.35 * somebody(clause) * action(clause)
    return chance


def test_the_surprise_is_that_of_the_choices_read_from_the_text():
    for doc in documents(ONLY, 0, 300):
        assert doc.nll == pytest.approx(-log(chance_of_document(doc)), rel=1e-9)


def test_agreement_prompts_end_before_the_verb_of_the_hero():
    prompts = answer_prompts("sindral-agreement", "test", 60)
    counts = Counter(prompt.labels["number"] for prompt in prompts)
    assert min(counts["singular"], counts["plural"]) >= 5
    for prompt in prompts:
        words = [GLOSS[word] for word in prompt.text.split()]
        (noun,) = subject_of(words)
        many = noun != singular(noun)
        assert (prompt.labels["number"] == "plural") == many
        ends = ("si", "estun") if many else ("as", "estu")
        assert len(prompt.answers) == 7
        assert all(answer.endswith(ends) for answer in prompt.answers)


def test_scenes_and_moods_are_tasks():
    assert Counter(task_documents("sindral-scene", "train", 60).labels) == dict.fromkeys(
        range(6), 10
    )
    assert sum(task_documents("sindral-mood", "test", 20).labels) == 10


def test_longer_documents_have_more_sentences():
    short, long = (
        sum(len(doc.tokens) for doc in documents(ONLY.but(length_factor=factor), 0, 200))
        for factor in (1.0, 4.0)
    )
    assert long > 2 * short
    assert all(len(d.tokens) <= 250 for d in documents(ONLY.but(length_factor=8.0), 0, 50))
