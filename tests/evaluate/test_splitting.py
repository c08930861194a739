import pytest
import torch

from sae_lib.evaluate.splitting import SplittingConfig, fates, next_wider

NARROW = torch.eye(4)
WIDE = torch.tensor(
    [
        [1.0, 0.0, 0.0, 0.0],  # keeps the first
        [0.0, 0.8, 0.6, 0.0],  # two that the second split into
        [0.0, 0.9, 0.0, 0.4],
        [0.0, 0.0, -1.0, 0.0],  # not the third
        [0.0, 0.6, 0.6, 0.5],  # along none
        [0.0, 0.0, 0.5, 1.0],  # keeps the fourth
    ]
)


def coder_of(tools, W_dec):
    d_sae, d_in = W_dec.shape
    return tools.coder_of(W_dec.clone(), W_dec.clone(), torch.zeros(d_sae), torch.zeros(d_in))


def values(rows, definition="mean_of_pairs"):
    return {row.name: row.value for row in rows if row.definition == definition}


def test_fates_by_hand():
    found = fates(NARROW, WIDE)
    assert found.heirs.tolist() == [1, 2, 0, 1]
    assert (found.nearest < 0.7).tolist() == [False, False, False, True, True, False]


def test_lengths_and_order_mean_nothing():
    order = torch.tensor([3, 1, 5, 0, 4, 2])
    found = fates(5 * NARROW, 0.1 * WIDE[order])
    assert found.heirs.tolist() == [1, 2, 0, 1]
    assert found.nearest == pytest.approx(fates(NARROW, WIDE).nearest[order.numpy()])


def test_chunks_change_nothing(monkeypatch):
    whole = fates(NARROW, WIDE)
    monkeypatch.setattr("sae_lib.evaluate.splitting.CHUNK_ELEMENTS", 1)
    assert fates(NARROW, WIDE).heirs.tolist() == whole.heirs.tolist()
    assert fates(NARROW, WIDE).nearest.tolist() == whole.nearest.tolist()


def test_a_coder_is_compared_with_the_next_wider_one(tools):
    coders = {
        "narrow": coder_of(tools, NARROW),
        "wide": coder_of(tools, WIDE),
        "widest": coder_of(tools, torch.cat([WIDE, WIDE])),
    }
    families = {"narrow": "plain-w4-k2", "wide": "plain-w6-k2", "widest": "plain-w12-k2"}
    assert next_wider(coders, families) == {
        "narrow": ["wide"],
        "wide": ["widest"],
        "widest": [],
    }
    found = SplittingConfig().compare(coders, families)
    narrow = values(found["narrow"])
    assert [narrow[f"splitting_{fate}"] for fate in ("lost", "kept", "split")] == [0.25, 0.5, 0.25]
    assert narrow["splitting_novel"] is None
    assert values(found["wide"])["splitting_novel"] == pytest.approx(2 / 6)
    # every latent occurs twice in the widest, where nothing is new
    assert values(found["wide"])["splitting_split"] == 1
    assert values(found["widest"])["splitting_novel"] == 0
    assert values(found["widest"])["splitting_lost"] is None
    assert "no wider coder" in next(r.reason for r in found["widest"] if r.name == "splitting_lost")


def test_seeds_are_averaged_and_give_the_error(tools):
    coders = {
        "narrow": coder_of(tools, NARROW),
        "wide-s0": coder_of(tools, WIDE),
        "wide-s1": coder_of(tools, torch.cat([NARROW, NARROW[:2]])),
    }
    families = {"narrow": "w4", "wide-s0": "w6", "wide-s1": "w6"}
    rows = SplittingConfig().compare(coders, families)["narrow"]
    (row,) = [r for r in rows if (r.name, r.definition) == ("splitting_lost", "mean_of_pairs")]
    assert (row.value, row.n, row.unit) == (0.125, 2, "partners")
    assert row.stderr == pytest.approx(0.125)
    parts = [r for r in rows if (r.name, r.definition) == ("splitting_lost", "pair_of_one")]
    assert {r.params["wider"]: r.value for r in parts} == {"wide-s0": 0.25, "wide-s1": 0.0}


def test_other_lines_of_coders_are_not_compared(tools):
    coders = {"a": coder_of(tools, NARROW), "b": coder_of(tools, WIDE)}
    assert next_wider(coders, {"a": "w4-k2", "b": "w6-k8"}) == {"a": [], "b": []}
