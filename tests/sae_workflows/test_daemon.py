"""Through the real daemon and web server: a backfill, a changed model, and what follows it."""

import shutil
from pathlib import Path

import pytest

from sae_lib.warehouse.query import query
from sae_workflows.home import adopt, study_at
from tests.sae_workflows.served import LOCATION, Served, served, wait_for
from tests.sae_workflows.test_model_change import STUDY, change_weights

KEYS = ("tokens", "activations", "saes", "metrics", "frontier", "claims")


@pytest.fixture
def place(tmp_path: Path, tiny_model: Path, text: Path) -> tuple[Path, Path, Path]:
    """A model of its own, an experiment file with everything switched off, and a home."""
    model, home = tmp_path / "model", tmp_path / "home"
    shutil.copytree(tiny_model, model)
    file = tmp_path / "study.yaml"
    file.write_text(STUDY.format(model=model, text=text, saes="keep", when="never"))
    adopt(home, file, "study")
    return model, file, home


def finish(ui: Served, backfill: str) -> int:
    """Wait for a backfill; how many runs it took."""

    def status():
        found = ui.backfill_status(backfill)
        assert found["status"] not in ("FAILED", "COMPLETED_FAILED", "CANCELED"), found
        return found if found["status"] == "COMPLETED_SUCCESS" else None

    return len(wait_for("end of the backfill", status, 900)["runs"])


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_changed_model_makes_its_descendants_stale_and_only_results_follow(place, tmp_path):
    model, file, home = place
    cells = [f"{site}|{variant.id}" for site, variant in study_at(home, file).cells()]
    with served(home, tmp_path / "ui.log") as ui:
        ui.start_sensor("watch_local_models")
        before = study_at(home, file).model_fingerprint
        watched = wait_for("first look at the model", lambda: fingerprint_seen(ui), 120)
        assert watched == before
        num_runs = finish(ui, ui.backfill(*(f"study/{key}" for key in KEYS), "results/database"))
        # one run for what has no partitions, one for the sites, one per site of the grid, ...
        assert num_runs <= 8, "SAEs of a site are one run"
        saes = sorted((home / "artifacts" / "sae").glob("[!.]*/sae.safetensors"))
        written = {one: one.stat().st_mtime_ns for one in saes}
        assert len(saes) == len(cells) == 4
        for key in ("tokens", "frontier", "claims"):
            assert ui.staleness(f"study/{key}")[0] == "FRESH", key
        for key in ("saes", "metrics"):
            for cell in cells:
                assert ui.staleness(f"study/{key}", cell)[0] == "FRESH", (key, cell)

        # switched on as in the UI; what changes from now on is followed
        ui.start_sensor("follow_study")
        ui.start_sensor("publish_results")
        wait_for("first look of the sensors", lambda: len(ticks(ui, "follow_study")) > 1, 180)
        change_weights(model, 1)
        now = study_at(home, file).model_fingerprint
        wait_for("look at the changed model", lambda: fingerprint_seen(ui) == now, 120)
        cause = ["models/model has a new data version"]
        assert ui.staleness("study/tokens") == ("STALE", cause)
        for site in ("resid_post.0", "resid_post.1"):
            status, causes = ui.staleness("study/activations", site)
            assert status == "STALE"
            assert cause[0] in causes
        for key in ("saes", "metrics"):
            for cell in cells:
                status, causes = ui.staleness(f"study/{key}", cell)
                assert status == "STALE", (key, cell)
                assert cause[0] in causes
        # what does not depend on this model is left alone
        assert ui.staleness("world/concepts")[0] != "STALE"

        def drifted():
            if not (home / "results.duckdb").is_file():
                return None
            rows = query(home / "results.duckdb", "select * from drift where name = 'fvu'")
            return None if rows.is_empty() else [rows]  # a frame has no truth

        (drift,) = wait_for("rows of drift", drifted, 900)
        assert set(drift["fingerprint_before"]) == {before}
        assert set(drift["fingerprint_after"]) == {now}
        assert drift.select("site", "variant").unique().height == 4
        after = sorted((home / "artifacts" / "sae").glob("[!.]*/sae.safetensors"))
        assert {one: one.stat().st_mtime_ns for one in after} == written, "no SAE was trained"
        for cell in cells:
            assert ui.staleness("study/saes", cell)[0] == "STALE"
            assert ui.staleness("study/metrics", cell)[0] != "MISSING"


def ticks(ui: Served, sensor: str) -> list[str]:
    """States of the evaluations of a sensor so far."""
    question = """
    query($selector: SensorSelector!) { sensorOrError(sensorSelector: $selector) {
        ... on Sensor { sensorState { ticks(limit: 20) { status } } } } }
    """
    found = ui.ask(question, selector={**LOCATION, "sensorName": sensor})["sensorOrError"]
    return [tick["status"] for tick in found["sensorState"]["ticks"]]


def fingerprint_seen(ui: Served) -> str | None:
    """Version of the model that the graph knows of."""
    question = """
    { assetNodeOrError(assetKey: {path: ["models", "model"]}) {
        ... on AssetNode { assetObservations(limit: 1) { metadataEntries {
            label ... on TextMetadataEntry { text } } } } } }
    """
    found = ui.ask(question)["assetNodeOrError"].get("assetObservations") or []
    if not found:
        return None
    return {one["label"]: one.get("text") for one in found[0]["metadataEntries"]}["fingerprint"]
