from typing import Any

import numpy as np
import pytest
import torch

from sae_lib.apply.steering_scores import Cells
from sae_lib.apply.tasks import ConceptConfig
from sae_lib.errors import NotApplicable
from sae_lib.evaluate.bench import Bench, measure_task
from sae_lib.evaluate.concept_steering import (
    METHODS,
    NO_ACTIVATION,
    ConceptSteeringConfig,
    Trial,
    Yardstick,
    along,
    best_outcome,
    overall,
    ratings,
    yardstick_of,
)
from sae_lib.evaluate.reader import TextActivations, TextReader
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.topk import TopKConfig
from sae_lib.synthetic.world.config import WorldConfig

SITE = "resid_post.2"
BY = Yardstick(positive_rate=0.2, fluent=1.0, garbled=4.0, distinct=1.0, gain=2.0)


def cells(hits=1.0, tokens=10.0, nll=10.0, distinct=1.0):
    return Cells(*(np.array([[float(value)]]) for value in (hits, tokens, nll, distinct)))


def rated(alone=40.0, **given):
    return ratings(cells(**given), np.array([[float(alone)]]), BY)[0, 0].tolist()


def test_the_harmonic_mean_by_hand():
    given = np.array([[1.0, 2, 2], [0, 2, 2], [2, 2, 2], [1, 1, 2], [0, 0, 0]])
    assert overall(given).tolist() == pytest.approx([1.5, 0, 2, 1.2, 0])


@pytest.mark.parametrize(("hits", "wanted"), [(0, 0), (0.5, 1), (1, 2), (5, 2)])
def test_words_of_the_concept(hits, wanted):
    # half of the rate of texts that have the concept is one word in ten
    assert rated(hits=hits)[0] == wanted


@pytest.mark.parametrize(("alone", "wanted"), [(10, 0), (9, 0), (15, 1), (20, 2), (40, 2)])
def test_whether_the_prompt_matters(alone, wanted):
    # nll is 10 for ten tokens; unsteered text gains 2 nats per token
    assert rated(alone=alone, nll=10.0)[1] == wanted


@pytest.mark.parametrize(
    ("nll", "distinct", "wanted"),
    [(10, 1, 2), (11, 1, 1), (39, 1, 1), (40, 1, 0), (90, 1, 0), (5, 0.4, 0), (5, 0.6, 2)],
)
def test_fluency(nll, distinct, wanted):
    assert rated(nll=nll, distinct=distinct, alone=nll + 20)[2] == wanted


def test_a_text_without_words_has_nothing():
    assert rated(hits=0.0, tokens=0.0, nll=0.0) == [0, 0, 0]


def test_the_yardstick_is_unsteered_text():
    rng = np.random.default_rng(0)
    tokens = np.full((50, 2), 10.0)
    nll = 10 + rng.random((50, 2))
    plain = Cells(np.zeros((50, 2)), tokens, nll, np.full((50, 2), 0.9))
    found = yardstick_of(plain, nll + 50, nll + 30, 0.3)
    assert found.fluent == pytest.approx(np.quantile(nll, 0.9) / 10)
    assert found.garbled == pytest.approx(np.quantile(nll + 50, 0.1) / 10)
    assert (found.gain, found.distinct, found.positive_rate) == pytest.approx((3.0, 0.9, 0.3))
    # nine in ten unsteered texts are fluent, and nine in ten shuffled ones are not
    assert (ratings(plain, nll + 30, found)[..., 2] == 2).mean() == pytest.approx(0.9, abs=0.01)
    shuffled = plain._replace(nll=nll + 50)
    assert (ratings(shuffled, nll + 80, found)[..., 2] == 0).mean() >= 0.89
    with pytest.raises(NotApplicable, match="without its prompt"):
        yardstick_of(plain, nll + 50, nll - 1, 0.3)
    with pytest.raises(NotApplicable, match="writes nothing"):
        yardstick_of(plain._replace(tokens=0 * tokens), nll, nll, 0.3)


def trial(strength, *by_prompt):
    return Trial(strength, np.array([[[value] * 3] for value in by_prompt], dtype=np.float64))


def test_the_strength_is_chosen_on_other_prompts_than_those_reported():
    trials = [trial(1.0, 2, 1, 2, 1), trial(2.0, 1, 2, 1, 2), trial(3.0, 2, 0, 2, 0)]
    found = best_outcome("c", trials, {"latent": 7})
    assert found.params == {"latent": 7, "strength": 1.0}  # of equals the weakest
    assert found.scores[:, 0].tolist() == [1.0, 1.0]
    assert found.scores.shape == (2, 4)


def test_the_largest_activation_is_the_unit():
    x = torch.tensor([[1.0, 0], [3, 0], [-5, 0]])
    zeros, start = torch.zeros(3, dtype=torch.long), torch.tensor([0, 3])
    texts = TextActivations(x, zeros, zeros, zeros, start)
    assert along(texts, torch.tensor([1.0, 0])).unit == 3.0
    assert along(texts, torch.tensor([0.0, 1])).unit == NO_ACTIVATION


@pytest.fixture(scope="module")
def model():
    return load_model(ModelConfig(id="world"))


def bench_of(model, reader, coders, world):
    return Bench(model, SITE, coders, reader, torch.zeros(192), world=world)


SMALL = ConceptSteeringConfig(
    concepts=("world:topic-sea",),
    strengths=(0.8, 2.0),
    train_texts=24,
    num_prompts=6,
    max_new_tokens=12,
    samples=2,
)


@pytest.fixture(scope="module")
def measured(model):
    coder = TopKConfig(d_in=192, d_sae=256, k=8).build()
    with TextReader(model, SITE) as reader:
        bench = bench_of(model, reader, {"a": coder, "b": coder}, WorldConfig())
        yield measure_task(SMALL, bench), measure_task(SMALL, bench)


def test_the_world_gives_rows_of_every_definition(measured):
    found, again = measured
    rows = found["a"].measurements
    assert found["a"] == found["b"] == again["a"]
    defined = [(d.name, d.definition) for d in SMALL.definitions()]
    assert {(r.name, r.definition) for r in rows} == set(defined)
    assert (rows[0].name, rows[0].definition) == defined[0] == ("concept_steering_overall", "sae")
    assert all(r.value is not None or r.reason for r in rows)
    ones = [r for r in rows if r.definition == "diff_mean_of_one"]
    assert {r.params["strength"] for r in ones} <= set(SMALL.strengths)
    assert {(r.n, r.unit) for r in ones} == {(3, "prompts")}


def test_the_difference_in_means_steers_and_a_random_direction_does_not(measured):
    at = {
        (r.name, r.definition): r.value
        for r in measured[0]["a"].measurements
        if not r.definition.endswith("_of_one")
    }
    concept = {m: at["concept_steering_concept", m] for m in METHODS}
    assert concept["diff_mean"] > 1.2
    assert concept["diff_mean"] > max(concept["random"], concept["unsteered"]) + 0.5
    # unsteered text keeps to its prompt and reads well
    assert at["concept_steering_instruction", "unsteered"] > 1.5
    assert at["concept_steering_fluency", "unsteered"] > 1.5
    assert at["concept_steering_overall", "diff_mean"] > at["concept_steering_overall", "random"]
    gap = at["concept_steering_overall", "sae"] - at["concept_steering_overall", "diff_mean"]
    assert at["concept_steering_gap", "sae_minus_diff_mean"] == pytest.approx(gap)


def test_shuffled_labels_make_a_direction_that_does_not_steer(model):
    from sae_lib.apply.tasks import world_concept

    nothing: Any = None
    bench = bench_of(model, nothing, {}, WorldConfig()).for_applications
    given = world_concept("world:topic-sea", bench, 24, 6)
    mixed = [t for pair in zip(given.positive, given.negative, strict=True) for t in pair]
    # every other text of either side, so that both sides have as many of each class
    one = ConceptConfig(
        name="mixed",
        positive=(*mixed[0::4], *mixed[1::4]),
        negative=(*mixed[2::4], *mixed[3::4]),
        prompts=given.prompts,
        lexicon=given.lexicon,
    )
    coder = TopKConfig(d_in=192, d_sae=64, k=8).build()
    with TextReader(model, SITE) as reader:
        cfg = SMALL.but(concepts=(one,), strengths=(0.8,))
        found = measure_task(cfg, bench_of(model, reader, {"a": coder}, None))
    at = {(r.name, r.definition): r.value for r in found["a"].measurements}
    assert at["concept_steering_concept", "diff_mean"] < 0.7


def test_what_cannot_be_asked_is_refused(model):
    nothing: Any = None
    with pytest.raises(NotApplicable, match="no concepts are named"):
        ConceptSteeringConfig().check(bench_of(model, nothing, {}, None))
