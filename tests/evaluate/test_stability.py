import math

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from sae_lib.evaluate.stability import StabilityConfig, match, same_family


def rows_of(num, width=16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(num, width, generator=generator), dim=1)


def coder_of(tools, W_dec):
    d_sae, d_in = W_dec.shape
    return tools.coder_of(W_dec.clone(), W_dec.clone(), torch.zeros(d_sae), torch.zeros(d_in))


def one(rows, name, definition, **params):
    (found,) = [
        r
        for r in rows
        if (r.name, r.definition) == (name, definition) and params.items() <= r.params.items()
    ]
    return found


def test_matches_by_hand():
    found = match(torch.eye(2), torch.tensor([[0.8, 0.6], [0.0, 1.0], [-1.0, 0.0]]))
    assert found.nearest.tolist() == pytest.approx([0.8, 1.0])
    assert found.nearest_there.tolist() == pytest.approx([0.8, 1.0, 0.0])
    assert found.assigned.mean() == pytest.approx(0.9)


def test_one_to_one_gives_nothing_twice():
    twice = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    found = match(twice, torch.eye(2))
    assert found.nearest.mean() == 1
    assert found.assigned.mean() == 0.5


def test_neither_order_nor_length_means_anything():
    a, b = rows_of(12), rows_of(20, seed=1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    plain, other = match(a, b), match(3 * a, 0.1 * b[order])
    assert plain.nearest == pytest.approx(other.nearest, abs=1e-6)
    assert plain.assigned == pytest.approx(other.assigned, abs=1e-6)
    assert plain.nearest_there[order.numpy()] == pytest.approx(other.nearest_there, abs=1e-6)


def test_latents_that_never_fire_are_left_out_where_they_are_known():
    a, b = torch.eye(4), torch.cat([torch.eye(4)[:2], rows_of(2, 4, seed=5)])
    alive = torch.tensor([True, True, False, False])
    found = match(a, b, alive, alive)
    assert found.nearest.tolist() == [1.0, 1.0]
    assert match(a, b).nearest.mean() < 1
    assert len(match(a, b, ~alive & alive, alive).nearest) == 0


def test_the_same_directions_in_another_order_are_found_again(tools):
    W_dec = rows_of(24)
    coders = {"a": coder_of(tools, W_dec), "b": coder_of(tools, 2 * W_dec.flip(0))}
    found = StabilityConfig().compare(coders, {"a": "f", "b": "f"})
    for name in coders:
        for definition in ("to_partner", "from_partner", "one_to_one"):
            row = one(found[name], "stability_cosine", definition)
            assert row.value == pytest.approx(1.0, abs=1e-6)
            assert (row.unit, row.n) == ("latents", 24)
        for tau in (0.7, 0.9):
            assert (
                one(found[name], "stability_matched_share", "to_partner", threshold=tau).value == 1
            )
        floor = one(found[name], "stability_cosine", "random_directions").value
        assert 0.2 < floor < 0.75
    assert found["a"][0].definition == "to_partner"


def test_half_of_the_directions_are_found_again(tools):
    first = torch.eye(8)
    second = torch.cat([torch.eye(8)[:4], -torch.eye(8)[4:]])
    found = StabilityConfig().compare(
        {"a": coder_of(tools, first), "b": coder_of(tools, second)}, {"a": "f", "b": "f"}
    )["a"]
    # the opposite of a direction is not the direction
    assert one(found, "stability_cosine", "to_partner").value == 0.5
    assert one(found, "stability_matched_share", "to_partner", threshold=0.9).value == 0.5


def test_random_directions_are_at_their_own_floor(tools):
    coders = {name: coder_of(tools, rows_of(40, seed=s)) for s, name in enumerate("abc")}
    found = StabilityConfig(seed=9).compare(coders, dict.fromkeys(coders, "f"))["a"]
    row = one(found, "stability_cosine", "to_partner")
    floor = one(found, "stability_cosine", "random_directions")
    assert row.value == pytest.approx(floor.value, abs=5 * floor.stderr)
    assert (row.unit, row.n) == ("partners", 2)
    own = [one(found, "stability_cosine", "to_partner_of_one", partner=p).value for p in "bc"]
    assert row.value == pytest.approx(np.mean(own))
    assert row.stderr == pytest.approx(np.std(own, ddof=1) / math.sqrt(2))


def test_only_seeds_of_one_family_are_partners(tools):
    assert same_family("abc", {"a": "f", "b": "g", "c": "f"}) == [("a", "c")]
    coders = {name: coder_of(tools, rows_of(6, seed=s)) for s, name in enumerate("ab")}
    found = StabilityConfig().compare(coders, {"a": "f", "b": "g"})
    for rows in found.values():
        assert all(row.value is None and "no other seed" in row.reason for row in rows)
