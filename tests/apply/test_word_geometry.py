import numpy as np
import pytest

from sae_lib.apply.word_geometry import (
    explained,
    held_out,
    indicators_of,
    known_words,
    measure_words,
    word_geometry,
)
from sae_lib.errors import BadInput
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.truth import concept_ids

NUM_WORDS, NUM_CONCEPTS, WIDTH = 600, 12, 32


def memberships(seed: int = 0) -> np.ndarray:
    """Concepts of about 60 words; the last is implied by the first two."""
    found = np.random.default_rng(seed).random((NUM_WORDS, NUM_CONCEPTS)) < 0.1
    found[:, -1] = found[:, 0] | found[:, 1]
    return found


def sums(indicators: np.ndarray, seed: int = 1) -> np.ndarray:
    """One vector per concept, added up, and a common one."""
    draw = np.random.default_rng(seed)
    return indicators @ draw.normal(size=(indicators.shape[1], WIDTH)) + 3


def noise(seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(NUM_WORDS, WIDTH))


def test_sums_of_concept_vectors_are_explained_wholly():
    assert explained(sums(memberships()), memberships()) == pytest.approx(1)


def test_random_vectors_are_explained_as_far_as_there_are_independent_concepts():
    found = explained(noise(), memberships())
    assert found == pytest.approx(NUM_CONCEPTS / (NUM_WORDS - 1), abs=0.006)
    doubled = np.concatenate([memberships(), memberships()], axis=1)
    assert explained(noise(), doubled) == pytest.approx(found), "copies explain nothing more"


def test_what_is_particular_to_words_is_left_over_in_proportion():
    shared, own = sums(memberships()), noise()
    own *= np.sqrt(
        3 * shared.var(0).sum() / own.var(0).sum()
    )  # a quarter of the variance is shared
    chance = NUM_CONCEPTS / (NUM_WORDS - 1)
    expected = 0.25 + 0.75 * chance
    assert explained(shared + own, memberships()) == pytest.approx(expected, abs=0.03)


def test_equal_vectors_cannot_be_explained():
    with pytest.raises(BadInput, match="same vector"):
        explained(np.ones((NUM_WORDS, WIDTH)), memberships())


def test_shared_directions_are_found_on_words_that_were_not_seen_and_lists_are_not():
    shared = held_out(sums(memberships()) + 0.3 * noise(), memberships())
    assert len(shared) == NUM_CONCEPTS
    assert np.median(shared) > 0.99
    listed = held_out(noise(), memberships())
    assert 0.4 < np.median(listed) < 0.6


def test_concepts_of_few_words_are_left_out():
    few = memberships()
    few[:, 3] = np.arange(NUM_WORDS) < 7
    few[:, 4] = np.arange(NUM_WORDS) < 8
    assert len(held_out(noise(), few)) == NUM_CONCEPTS - 1


def test_each_measure_lies_beside_its_control():
    rows = {row.what: row for row in measure_words(sums(memberships()), memberships(), "input")}
    assert set(rows) == {"explained", "held_out_auc", "held_out_high"}
    assert rows["explained"].value == pytest.approx(1)
    assert rows["explained"].control == pytest.approx(NUM_CONCEPTS / (NUM_WORDS - 1), abs=0.01)
    assert rows["explained"].n == NUM_WORDS
    assert rows["held_out_high"].value == 1
    assert rows["held_out_high"].control < 0.1
    assert 0.35 < rows["held_out_auc"].control < 0.65
    assert rows["held_out_auc"].n == NUM_CONCEPTS


def test_words_carry_their_concepts_and_those_above():
    columns = concept_ids("token")
    row = indicators_of(["hound"])[0]
    carried = {name for name, on in zip(columns, row, strict=True) if on}
    assert {"dog", "mammal", "animal"} <= carried
    assert "bird" not in carried


def test_only_words_that_occur_often_enough_count():
    often = known_words(WorldConfig(), 3000, 20, split="words/train")
    rare = known_words(WorldConfig(), 3000, 1, split="words/train")
    assert set(often) < set(rare)
    assert "." in often


def test_a_model_that_does_not_know_the_words_is_refused(model):
    with pytest.raises(BadInput, match="does not know this word"):
        word_geometry(model, tokens=1000)


@pytest.mark.model
def test_word_vectors_of_the_world_share_directions_but_are_mostly_their_own():
    rows = {(row.embedding, row.what): row for row in
            word_geometry(load_model(ModelConfig(id="world")), tokens=60_000)}  # fmt: skip
    assert {embedding for embedding, _ in rows} == {"input", "output"}
    for embedding in ("input", "output"):
        part = rows[embedding, "explained"]
        assert 1.5 * part.control < part.value < 0.6
        assert rows[embedding, "held_out_auc"].value > 0.95
        assert abs(rows[embedding, "held_out_auc"].control - 0.5) < 0.1
