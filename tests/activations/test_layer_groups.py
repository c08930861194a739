"""Angular distances by hand, and groups on a small matrix and on a real residual stream."""

import math

import numpy as np
import pytest
import torch

from sae_lib.activations import layer_groups as module
from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.harvest import harvest
from sae_lib.activations.layer_groups import Distances, angular_distances, layer_groups
from sae_lib.activations.stats import RunningStats
from sae_lib.activations.store import ActivationStore, Rows
from sae_lib.activations.tokens import Tokens, build_tokens
from sae_lib.errors import BadInput
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model


class InMemory:
    """A store of contexts of four rows."""

    def __init__(self, x):
        self.x = x
        rows = len(next(iter(x.values())))
        self.num_contexts = rows // 4
        self.kept_per_context = np.full(self.num_contexts, 4)
        self.largest_read = 0

    def width(self, site):
        return self.x[site].shape[1]

    def stats(self, site):
        running = RunningStats(self.width(site))
        running.add(self.x[site])
        return running.result()

    def contexts(self, site, contexts):
        self.largest_read = max(self.largest_read, len(contexts))
        rows = (torch.as_tensor(contexts)[:, None] * 4 + torch.arange(4)).flatten()
        return Rows(self.x[site][rows], rows)


def turned(x, degrees):
    """Rows of width 2, each turned by the same angle."""
    a = math.radians(degrees)
    return x @ torch.tensor([[math.cos(a), math.sin(a)], [-math.sin(a), math.cos(a)]])


@pytest.fixture
def plane():
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    angles = {"same": 0, "eighth": 45, "orthogonal": 90, "opposite": 180}
    return InMemory({"it": x, **{name: 3 * turned(x, degrees) for name, degrees in angles.items()}})


def test_distances_by_hand(plane):
    found = angular_distances(plane, list(plane.x), centre=False)
    expected = [0, 0, 0.25, 0.5, 1]
    np.testing.assert_allclose(found.matrix[0], expected, atol=2e-4)
    assert np.array_equal(found.matrix, found.matrix.T)
    assert not np.diag(found.matrix).any()
    assert found.matrix[2, 4] == pytest.approx(0.75, abs=1e-4)
    assert found.num_rows == 400


def test_chunks_do_not_change_the_distances_and_bound_what_is_read(plane, monkeypatch):
    whole = angular_distances(plane, list(plane.x)).matrix
    plane.largest_read = 0
    monkeypatch.setattr(module, "CHUNK_NUMBERS", 3 * 4 * 2 * 5)
    chunked = angular_distances(plane, list(plane.x)).matrix
    assert plane.largest_read == 3
    np.testing.assert_allclose(chunked, whole, rtol=1e-12, atol=1e-12)


def test_a_common_offset_hides_the_difference_unless_it_is_subtracted():
    x = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    far = torch.tensor([1000.0, 0.0])
    store = InMemory({"p": x - x.mean(0) + far, "q": turned(x - x.mean(0), 90) + far})
    assert angular_distances(store, ["p", "q"], centre=False).matrix[0, 1] < 0.01
    assert angular_distances(store, ["p", "q"]).matrix[0, 1] == pytest.approx(0.5, abs=1e-3)


def test_a_sample_of_contexts_is_enough_and_is_the_same_every_time(plane):
    one = angular_distances(plane, ["it", "eighth"], tokens=40, seed=1)
    again = angular_distances(plane, ["it", "eighth"], tokens=40, seed=1)
    assert one.num_rows == 40
    assert one.matrix[0, 1] == again.matrix[0, 1]


def test_zero_activations_are_orthogonal_and_not_nan():
    store = InMemory({"p": torch.zeros(8, 2), "q": torch.ones(8, 2)})
    assert angular_distances(store, ["p", "q"], centre=False).matrix[0, 1] == 0.5


def test_wrong_sites_are_refused(plane):
    for sites, tokens in ([], 1), (["it", "it"], 1), (["it"], 0):
        with pytest.raises(BadInput, match="each once and all of one width"):
            angular_distances(plane, sites, tokens=tokens)
    store = InMemory({"p": torch.zeros(8, 2), "q": torch.ones(8, 3)})
    with pytest.raises(BadInput, match="p 2, q 3"):
        angular_distances(store, ["p", "q"])


def on_a_line(*places):
    places = np.array(places, float)
    sites = tuple(f"s{i}" for i in range(len(places)))
    return Distances(sites, np.abs(places[:, None] - places), 1, False)


def test_complete_linkage_and_amad_by_hand():
    found = layer_groups(on_a_line(0, 0.1, 0.25, 0.7, 0.75))
    assert found.of(3).groups == (("s0", "s1"), ("s2",), ("s3", "s4"))
    assert found.of(3).amad == pytest.approx((0.1 + 0 + 0.05) / 3)
    assert found.of(2).groups == (("s0", "s1", "s2"), ("s3", "s4"))
    assert found.of(2).amad == pytest.approx((0.25 + 0.05) / 2)
    assert found.of(1).amad == pytest.approx(0.75)
    np.testing.assert_allclose(found.linkage[:, 2], [0.05, 0.1, 0.25, 0.75])


def test_what_is_clustered_is_the_distances_and_not_the_rows_of_their_matrix():
    # s0 and s1 are nearest, but the rows of their distances to the others differ most
    matrix = np.full((4, 4), 0.5)
    matrix[0, 1] = matrix[1, 0] = 0.4
    matrix[0, 2] = matrix[2, 0] = 0.9
    matrix[1, 3] = matrix[3, 1] = 0.9
    np.fill_diagonal(matrix, 0)
    found = layer_groups(Distances(("s0", "s1", "s2", "s3"), matrix, 1, False))
    assert found.of(3).groups[0] == ("s0", "s1")


def test_as_many_groups_as_sites_are_singletons_and_a_site_alone_is_a_group():
    found = layer_groups(on_a_line(0, 0.1, 0.1, 0.5))  # a tie and an exact double
    for count in range(1, 5):
        assert len(found.of(count).groups) == count
    assert found.of(4).groups == (("s0",), ("s1",), ("s2",), ("s3",))
    assert found.of(4).amad == 0
    alone = layer_groups(on_a_line(0))
    assert alone.of(1).groups == (("s0",),)
    for count in (0, 5):
        with pytest.raises(BadInput, match="between 1 and 4"):
            found.of(count)


def test_a_matrix_that_is_not_of_distances_is_refused():
    good = on_a_line(0, 1, 3)
    for wrong in (np.eye(3), np.full((3, 3), np.nan), np.triu(good.matrix), good.matrix[:2]):
        with pytest.raises(BadInput, match="symmetric matrix"):
            layer_groups(good._replace(matrix=wrong))


@pytest.mark.model
def test_groups_on_a_residual_stream_are_contiguous_layers(tmp_path):
    model = load_model(ModelConfig(id="world"))
    cfg = CorpusConfig(id="world", tokens=4096, context=64, eval_tokens=1024)
    build_tokens(cfg, model.tokenizer, model.info, tmp_path / "tokens")
    split = Tokens.open(tmp_path / "tokens").split("train")
    sites = [f"resid_post.{layer}" for layer in range(model.num_layers)]
    harvest(model, split, sites, tmp_path / "h", batch_contexts=16)
    store = ActivationStore.open(tmp_path / "h")
    for centre in (True, False):
        found = layer_groups(angular_distances(store, sites, centre=centre))
        assert 0 < found.distances.matrix[0, 1] < found.distances.matrix[0, -1]
        for grouping in found.groupings:
            order = [site for group in grouping.groups for site in group]
            assert order == sites, "a group has a gap"
        amad = [grouping.amad for grouping in found.groupings]
        assert amad == sorted(amad, reverse=True)
