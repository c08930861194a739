"""The tree of layers: every merge once, at its distance, in the colour of its group."""

import numpy as np
import pytest

from sae_lib.activations.layer_groups import Distances, layer_groups
from sae_lib.report.layer_groups import amad_curve, dendrogram
from sae_lib.report.theme import to_svg


@pytest.fixture
def found():
    places = np.array([0, 0.1, 0.25, 0.7, 0.75])
    sites = tuple(f"resid_post.{i}" for i in range(5))
    return layer_groups(Distances(sites, np.abs(places[:, None] - places), 9, True))


def rows_of(chart):
    spec = chart.to_dict()
    return [row for rows in spec["datasets"].values() for row in rows if "merge" in row]


def test_merges_stand_at_their_distances_in_the_colour_of_their_group(found):
    rows = rows_of(dendrogram(found, num_groups=2))
    top = {}
    for row in rows:
        top[row["merge"]] = max(top.get(row["merge"], (0, ""))[0], row["x"]), row["group"]
    assert sorted(top.values()) == [
        (pytest.approx(0.05), "group 2"),
        (pytest.approx(0.1), "group 1"),
        (pytest.approx(0.25), "group 1"),
        (pytest.approx(0.75), "between groups"),
    ]


def test_sites_are_named_and_the_cut_is_drawn(found):
    svg = to_svg(dendrogram(found, num_groups=2))
    for i in range(5):
        assert f"resid_post.{i}" in svg
    assert "between groups" in svg
    assert "stroke-dasharray" in svg
    assert "stroke-dasharray" not in to_svg(dendrogram(found))


def test_a_single_site_has_no_tree():
    assert dendrogram(layer_groups(Distances(("a",), np.zeros((1, 1)), 1, True))) is None


def test_the_curve_has_every_number_of_groups(found):
    (rows,) = amad_curve(found).to_dict()["datasets"].values()
    assert [row["groups"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["amad"] for row in rows] == pytest.approx([0.75, 0.15, 0.05, 0.0125, 0])
    assert "AMAD" in to_svg(amad_curve(found))
