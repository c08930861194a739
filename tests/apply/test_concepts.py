import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from sklearn.metrics import f1_score, roc_auc_score

from sae_lib.activations.world_tokens import WorldTokens, enough_documents, read_world
from sae_lib.apply.concept_probes import auc, probe_concepts
from sae_lib.apply.concepts import ConceptsConfig, _linear, groups, recover
from sae_lib.errors import BadInput, NotApplicable
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.synthetic.world.concepts import CONCEPTS
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import documents
from sae_lib.synthetic.world.truth import concept_ids

NAMES = ["animal", "bird", "color", "digit"]


def planted(seed: int, num: int = 3000) -> tuple[WorldTokens, torch.Tensor]:
    """Activations that are the concepts themselves; birds are animals."""
    draw = np.random.default_rng(seed)
    bird = draw.random(num) < 0.1
    truth = np.stack(
        [bird | (draw.random(num) < 0.1), bird, draw.random(num) < 0.05, draw.random(num) < 0.2], 1
    )
    x = torch.from_numpy(truth * (1 + 0.1 * draw.random((num, 4)))).float()
    tokens = WorldTokens({"here": x}, csr_matrix(truth.astype(np.int8)), NAMES,
                         torch.zeros(num), ["story"])  # fmt: skip
    return tokens, x


def by_name(recovery):
    return {one.concept: one for one in recovery.concepts}


def test_a_dictionary_of_the_concepts_recovers_all_and_names_the_latents():
    (first, _), (second, _) = planted(0), planted(1)
    shuffle = [2, 0, 3, 1]
    found = recover(lambda x: x[:, shuffle], first, second, "here")
    for name, one in by_name(found).items():
        assert one.f1 == pytest.approx(1.0)
        assert shuffle[one.latent] == NAMES.index(name)
    assert found.coverage(0.8) == 1
    assert found.purity == pytest.approx(1.0)


def test_one_latent_serves_one_concept_only_but_may_be_the_best_of_two():
    (first, _), (second, _) = planted(0), planted(1)
    found = recover(lambda x: x[:, [0, 2, 3]], first, second, "here")  # no latent for birds
    one = by_name(found)
    assert one["animal"].f1 == pytest.approx(1.0)
    assert one["bird"].f1 < 0.2
    assert one["bird"].best_latent == one["animal"].latent
    truth = second.truth.toarray()
    assert one["bird"].best_f1 == pytest.approx(f1_score(truth[:, 1], truth[:, 0]), abs=1e-6)
    assert one["bird"].recall == 0 or one["bird"].latent is not None


def test_a_threshold_separates_a_strong_concept_from_a_weak_one():
    (first, _), (second, _) = planted(0), planted(1)

    def encode(x):  # fires weakly for colors, strongly for digits
        return (0.2 * x[:, 2] + x[:, 3])[:, None]

    one = by_name(recover(encode, first, second, "here"))
    assert one["digit"].f1 > 0.95
    assert one["digit"].precision > 0.95


def test_a_union_forgives_splitting_and_a_single_latent_does_not():
    (first, _), (second, _) = planted(0), planted(1)

    def encode(x):  # animals are split over birds and the others, beside a latent of digits
        return torch.stack([x[:, 1], x[:, 0] * (x[:, 1] == 0), x[:, 3]], dim=1)

    one = by_name(recover(encode, first, second, "here"))["animal"]
    assert one.f1 < 0.8
    assert one.union_f1 == pytest.approx(1.0)
    alone = by_name(recover(encode, first, second, "here", union=1))["animal"]
    assert alone.union_f1 == pytest.approx(alone.best_f1)


def test_linear_probes_find_mixed_directions_that_no_coordinate_shows():
    (first, x), (second, y) = planted(0), planted(1)
    mix = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(0))).Q
    first, second = (t._replace(x={"here": v @ mix}) for t, v in ((first, x), (second, y)))
    found = recover(_linear(first, "here"), first, second, "here", union=0)
    assert found.coverage(0.9) == 1
    assert recover(lambda x: x.relu(), first, second, "here").coverage(0.9) < 1
    assert all(one.union_f1 == 0 for one in found.concepts), "nobody asked for unions"


def test_scores_come_from_the_other_half():
    (first, _), (second, _) = planted(0), planted(1)
    wrong = second._replace(truth=csr_matrix(np.roll(second.truth.toarray(), 7, axis=0)))
    assert recover(lambda x: x, first, wrong, "here").coverage(0.8) == 0


def test_what_is_hardly_true_is_not_recovered_and_twins_count_once():
    changed = []
    for tokens in (planted(0)[0], planted(1)[0]):
        truth = tokens.truth.toarray()
        truth[:, 2] = np.arange(len(truth)) == 5  # one colour only
        truth[:, 3] = truth[:, 0]  # digits are where animals are
        changed.append(tokens._replace(truth=csr_matrix(truth)))
    found = recover(lambda x: x, *changed, "here")
    assert [one.concept for one in found.concepts] == ["animal", "bird", "color"]
    assert by_name(found)["color"].f1 == 0
    assert found.coverage(0.8) == pytest.approx(2 / 3)


def test_bands_hold_every_concept_once():
    found = recover(lambda x: x, planted(0)[0], planted(1)[0], "here").concepts
    bands = [m for name, m in groups(found).items() if name.startswith("frequency")]
    assert sum(map(len, bands)) == len(found)
    assert {len(groups(found)["scope:token"])} == {sum(CONCEPTS[n].scope == "token" for n in NAMES)}


def test_the_area_under_the_curve_is_that_of_scikit_learn():
    draw = np.random.default_rng(0)
    scores = draw.integers(0, 20, 500)  # with ties
    labels = draw.random(500) < 0.3
    expected = roc_auc_score(labels, scores)
    assert auc(scores[labels], scores[~labels]) == pytest.approx(expected, abs=1e-12)


def test_only_the_world_knows_its_concepts(bench):
    with pytest.raises(NotApplicable, match="only the bundled world"):
        ConceptsConfig().check(bench)


def test_a_tokenizer_without_the_words_is_refused(model):
    with pytest.raises(BadInput, match="does not know this word"):
        read_world(model, ["resid_post.0"], enough_documents(WorldConfig(), 50, split="test"))


@pytest.mark.model
def test_words_are_aligned_with_their_truth_and_their_activations():
    model = load_model(ModelConfig(id="world"))
    docs = list(documents(WorldConfig(), 0, 5, split="test"))
    read = read_world(model, ["resid_pre.0"], docs)
    words = sorted(docs, key=lambda doc: len(doc.tokens))
    flat = [word for doc in words for word in doc.tokens]
    embedding = model.model.get_input_embeddings().weight
    ids = model.tokenizer.get_vocab()
    expected = embedding[[ids[word] for word in flat]]
    assert torch.allclose(read.x["resid_pre.0"], expected.float(), atol=1e-6)
    truth = read.truth.toarray().astype(bool)
    names = np.array(concept_ids())
    active = [frozenset(names[row]) for row in truth]
    assert active == [concepts for doc in words for concepts in doc.concepts]


@pytest.mark.model
def test_words_themselves_can_be_read_off_the_embedding():
    model = load_model(ModelConfig(id="world"))
    probes = probe_concepts(model, ["resid_pre.0"], tokens=12_000)
    one = {probe.concept: probe for probe in probes}
    for concept in ("animal", "digit", "full-stop", "first-name"):
        assert one[concept].auc > 0.98
    assert one["subject-female"].auc < 0.9, "the word alone does not tell whose document it is"
