import polars as pl
import pytest

from assets.store import Store
from assets.world import FORMAL, land_formal
from sae_lib.errors import UnknownName
from sae_workflows.formal import sample_rows, train


def test_samples_say_what_is_true_at_each_token():
    rows = sample_rows("dyck", 3, 1)
    assert [row["string"] for row in rows] == [0, 1, 2]
    for row in rows:
        tokens = row["text"].split()
        depths = [sum(t in "([" for t in tokens[:i]) - sum(t in ")]" for t in tokens[:i])
                  for i in range(1, len(tokens) + 1)]  # fmt: skip
        assert row["measures"]["depth"] == depths
        assert len(row["concepts"]) == len(tokens)
        assert row["nats"] > 0
    assert sample_rows("dyck", 3, 2) != rows
    with pytest.raises(UnknownName, match="formal language"):
        sample_rows("latin", 1, 0)


@pytest.mark.model
def test_what_a_model_learned_lands_in_the_warehouse(tmp_path):
    store = Store(home=str(tmp_path))
    rows = land_formal(store, "dyck", 20)
    assert {row["what"] for row in rows} == set(FORMAL)
    files = list((tmp_path / "warehouse" / "abilities" / "model=dyck").glob("*.parquet"))
    assert len(files) == 1
    stored = {row["what"]: row for row in pl.read_parquet(files[0]).to_dicts()}
    assert stored["excess"]["value"] == pytest.approx(
        stored["loss"]["value"] - stored["floor"]["value"]
    )
    assert stored["right_bracket"]["reached"]
    with pytest.raises(UnknownName, match="formal language"):
        land_formal(store, "latin", 1)


@pytest.mark.slow
def test_training_shows_its_progress(tmp_path):
    seen = []
    train(
        "expr", tmp_path / "model", tokens=3 * 16 * 160, seed=0, threads=1,
        show=lambda done, of: seen.append((done, of)),
    )  # fmt: skip
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert (tmp_path / "model" / "model.safetensors").exists()
