import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from sae_lib.evaluate.bench import Bench, measure_task
from sae_lib.evaluate.geometry import (
    CoFiring,
    GeometryConfig,
    graph_clusters,
    linkage_clusters,
    neighbours,
    plane,
    shuffled_coordinates,
    silhouette,
)
from sae_lib.evaluate.reader import TextReader
from sae_lib.synthetic.controls import duplicated, expected_largest_cosine
from sae_lib.synthetic.dictionary import DictionaryConfig

SITE = "resid_post.0"


def rows_of(num, width=16, seed=0):
    return torch.randn(num, width, generator=torch.Generator().manual_seed(seed))


def groups(num=5, each=6, width=32, spread=0.1, seed=0):
    """Directions in bundles."""
    centres = normalize(rows_of(num, width, seed), dim=1).repeat_interleave(each, 0)
    return centres + spread * normalize(rows_of(num * each, width, seed + 1), dim=1)


# --- by hand (evaluation.md, 13) ---


def test_nearest_rows_by_hand():
    found = neighbours(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]]))
    assert found.largest.tolist() == pytest.approx([0.6, 0.8, 0.8])
    assert found.largest.mean().item() == pytest.approx(0.7333, abs=1e-4)
    assert found.nearest.tolist() == [2, 2, 1]
    assert found.smallest.tolist() == pytest.approx([0.0, 0.0, 0.6])


def test_a_chain_is_one_cluster_only_where_its_links_are_close():
    rows = torch.tensor([[1.0, 0.0], [0.98, 0.199], [0.0, 1.0]])
    assert graph_clusters(rows, 0.9).tolist() == [0, 0, 1]
    assert graph_clusters(rows, 0.19).tolist() == [0, 0, 0]
    assert linkage_clusters(rows, 2).tolist() in ([1, 1, 2], [2, 2, 1])


def test_an_antipode_is_not_alike_but_the_most_negative():
    found = neighbours(torch.tensor([[1.0, 0.0], [-2.0, 0.0], [0.0, 1.0]]))
    assert found.smallest.tolist() == [-1.0, -1.0, 0.0]
    assert found.largest.tolist() == [0.0, 0.0, 0.0]


def test_co_firing_by_hand():
    counts = CoFiring(torch.tensor([[1, 0, 0]]))
    on = torch.tensor([[1, 1, 0], [1, 0, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)
    counts.add(on[:1])
    counts.add(on[1:])
    assert counts.jaccard[0].tolist() == pytest.approx([2 / 3, 2 / 3, 0.0])


# --- what must hold of any rows ---


def test_blocks_lengths_and_order_change_nothing(monkeypatch):
    rows = rows_of(30)
    plain, clusters = neighbours(rows), graph_clusters(rows, 0.3)
    monkeypatch.setattr("sae_lib.evaluate.geometry.CHUNK_ELEMENTS", 70)
    cut = neighbours(rows * torch.linspace(0.1, 9, 30)[:, None])
    torch.testing.assert_close(plain.largest, cut.largest)
    torch.testing.assert_close(plain.smallest, cut.smallest)
    assert graph_clusters(rows, 0.3).tolist() == clusters.tolist()
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(neighbours(rows[order]).largest, plain.largest[order])
    sizes = [sorted(np.bincount(c)) for c in (clusters, graph_clusters(rows[order], 0.3))]
    assert sizes[0] == sizes[1]


def test_random_directions_are_as_near_as_their_number_makes_them():
    found = neighbours(rows_of(1000, 64)).largest.mean().item()
    assert found == pytest.approx(expected_largest_cosine(64, 999), abs=0.005)
    assert found < math.sqrt(2 * math.log(1000) / 64)  # which many more would approach


def test_bundles_are_clusters_and_shuffled_coordinates_are_not():
    rows = groups()
    assert sorted(np.bincount(graph_clusters(rows, 0.7))) == [6] * 5
    linked = linkage_clusters(rows, 5)
    assert len({(c, i // 6) for i, c in enumerate(linked.tolist())}) == 5
    value = silhouette(rows, linked)
    null = shuffled_coordinates(rows, 0)
    assert value > 0.9
    assert silhouette(null, linkage_clusters(null, 5)) < 0.4
    assert silhouette(rows, np.zeros(30, dtype=np.int64)) is None
    torch.testing.assert_close(null.sort(0).values, rows.sort(0).values)
    assert not torch.equal(null, rows)


def test_the_map_is_the_same_for_any_order_and_has_the_most_spread_first():
    rows = groups()
    found = plane(rows)
    order = torch.randperm(30, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(plane(rows[order]), found[order])
    assert found[:, 0].var() >= found[:, 1].var()


# --- the metric ---


def measured(model, tools, coder, metric, monkeypatch, x):
    monkeypatch.setattr("sae_lib.evaluate.geometry._activations", lambda bench, num: x)
    with TextReader(model, SITE) as reader:
        bench = Bench(model, SITE, {"one": coder}, reader, torch.zeros(8))
        return measure_task(metric, bench)["one"]


def of(found, name, definition, **params):
    (row,) = [
        r
        for r in found.measurements
        if (r.name, r.definition) == (name, definition) and params.items() <= r.params.items()
    ]
    return row


def coder_of(tools, rows):
    d_sae, d_in = rows.shape
    return tools.coder_of(rows.clone(), rows.clone(), torch.zeros(d_sae), torch.zeros(d_in))


METRIC = GeometryConfig(clusters=4, shuffles=2)


def test_latents_that_occur_twice_are_seen_and_fire_together(model, tools, monkeypatch):
    cfg = DictionaryConfig(d_in=32, num_features=24, is_orthonormal=True, mean_active=2.0)
    W_dec = duplicated(cfg, 0.25).weights.W_dec
    twins = 12 / 30  # a quarter of 24, each with its copy
    found = measured(model, tools, coder_of(tools, W_dec), METRIC, monkeypatch, rows_of(400, 32))
    for who in ("all_latents", "alive_latents"):
        assert of(found, "decoder_nearest_cosine", who).value == pytest.approx(twins, abs=1e-4)
        assert of(found, "decoder_near_share", who, threshold=0.9).value == pytest.approx(twins)
        assert of(found, "encoder_near_share", who, threshold=0.9).value == pytest.approx(twins)
        assert of(found, "clustered_share", who).value == pytest.approx(twins)
        assert of(found, "num_clusters", who).value == 6
        assert of(found, "largest_cluster_share", who).value == pytest.approx(2 / 30)
    assert of(found, "decoder_near_share", "random_directions", threshold=0.9).value == 0
    assert of(found, "encoder_decoder_alignment", "alive_latents").value == pytest.approx(1.0)
    # a copy fires wherever the other does; unrelated ones together in a third of either's tokens
    near = of(found, "co_firing", "nearest_neighbour_jaccard")
    random = of(found, "co_firing", "random_pair_jaccard")
    assert near.value == pytest.approx(twins + (1 - twins) / 3, abs=0.05)
    assert random.value == pytest.approx(1 / 3, abs=0.08)
    head = found.measurements[0]
    assert (head.name, head.definition) == ("decoder_nearest_cosine", "alive_latents")


def test_latents_that_never_fire_are_left_out_and_still_counted_among_all(
    model, tools, monkeypatch
):
    rows = torch.cat([torch.eye(8), torch.eye(8)[:4]])
    coder = coder_of(tools, rows)
    coder.b_enc.data[8:] = -1000  # the copies are dead
    found = measured(model, tools, coder, METRIC, monkeypatch, rows_of(200, 8))
    assert of(found, "geometry_alive_share", "fires_in_text").value == pytest.approx(8 / 12)
    assert of(found, "decoder_nearest_cosine", "alive_latents").value == pytest.approx(0.0)
    assert of(found, "decoder_nearest_cosine", "alive_latents").n == 8
    assert of(found, "decoder_nearest_cosine", "all_latents").value == pytest.approx(8 / 12)
    assert of(found, "num_clusters", "alive_latents").value == 0
    assert of(found, "num_clusters", "all_latents").value == 4


def test_without_a_text_only_all_latents_have_numbers(model, tools):
    with TextReader(model, SITE) as reader:
        bench = Bench(model, SITE, {"one": tools.random_coder()}, reader, torch.zeros(8))
        found = measure_task(METRIC, bench)["one"]
    assert of(found, "decoder_nearest_cosine", "all_latents").value is not None
    row = of(found, "decoder_nearest_cosine", "alive_latents")
    assert row.value is None
    assert "no text" in row.reason


def test_a_split_is_read_without_special_tokens(model, tools):
    tokens = tools.TokensInMemory(tools.random_tokens())
    with TextReader(model, SITE) as reader:
        bench = Bench(
            model, SITE, {"one": tools.random_coder()}, reader, torch.zeros(8), split=tokens
        )
        found = measure_task(METRIC, bench)["one"]
        again = measure_task(METRIC, bench)["one"]
    assert found == again
    kept = int((tools.random_tokens() >= tools.first_word).sum())
    assert of(found, "geometry_alive_share", "fires_in_text").params["tokens"] == kept
    keys = {(r.name, r.definition) for r in found.measurements}
    assert keys == {(d.name, d.definition) for d in GeometryConfig.definitions()}
    assert len(found.latents) == 4 * 20
    assert {row.name for row in found.latents} >= {"map_x", "map_y"}


def test_one_latent_has_no_geometry(model, tools):
    with TextReader(model, SITE) as reader:
        bench = Bench(model, SITE, {"one": tools.random_coder(d_sae=1)}, reader, torch.zeros(8))
        rows = measure_task(METRIC, bench)["one"].measurements
    assert all(row.value is None and "only one latent" in row.reason for row in rows)
