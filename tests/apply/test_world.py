"""On the bundled world and its model: what the baselines must be able to do."""

import pytest

from sae_lib.apply import Bench, apply_site
from sae_lib.apply.concepts import ConceptsConfig
from sae_lib.apply.probing import ProbingConfig
from sae_lib.apply.steering import SteeringConfig
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.topk import TopKConfig
from sae_lib.synthetic.world.config import WorldConfig

pytestmark = pytest.mark.model


@pytest.fixture(scope="module")
def world() -> Bench:
    model = load_model(ModelConfig(id="world"))
    coder = TopKConfig(d_in=model.d_model, d_sae=64, k=4).build().requires_grad_(False)
    return Bench(model, "resid_post.2", {"untrained": coder}, world=WorldConfig())


def test_the_difference_in_means_steers_and_a_random_direction_does_not(world):
    config = SteeringConfig(
        concepts=("world:topic-sea",), strengths=(0.5, 0.75, 1.0), train_texts=40, num_prompts=12
    )
    rows = apply_site(world, [config]).rows["untrained"]
    found = {
        row.method: row.measurement.value
        for row in rows
        if row.measurement.name == "best_overall" and row.task == "world:topic-sea"
    }
    assert found["none"] == 0.0
    assert found["difference_in_means"] > 0.5
    assert found["difference_in_means"] > (found["random"] or 0.0) + 0.3


def test_words_decide_the_topic_and_do_not_decide_what_is_known(world):
    config = ProbingConfig(
        tasks=("world:topic-sea", "world:known-entity"), k=(1,), train_texts=120, test_texts=100
    )
    rows = apply_site(world, [config]).rows["untrained"]
    auc = {
        (row.method, row.task.removeprefix("world:")): row.measurement.value
        for row in rows
        if row.measurement.name == "auc"
    }
    assert auc["bag_of_words", "topic-sea"] > 0.95
    assert auc["dense_probe", "topic-sea"] > 0.95
    assert auc["bag_of_words", "known-entity"] < 0.7


def test_one_direction_finds_most_concepts_that_are_common_and_an_untrained_sae_none(world):
    config = ConceptsConfig(tokens=8000, f1=(0.8,))
    rows = apply_site(world, [config]).rows["untrained"]
    found = {
        (row.method, row.task): row.measurement.value or 0.0
        for row in rows
        if (row.measurement.name, row.measurement.definition) == ("coverage", "one_to_one")
    }
    common = "frequency:0.01-0.1"
    assert found["linear_probes", common] > 0.6
    assert found["linear_probes", "all"] > 0.2
    assert found["linear_probes", "frequency:0-0.0001"] == 0, "too rare in so few words"
    for method in ("sae", "random_dictionary", "coordinates"):
        assert found[method, common] < 0.1
