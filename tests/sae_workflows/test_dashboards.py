"""Dashboards in the graph and on the command line, on a tiny model."""

import json
import warnings

import dagster as dg
import pytest
from typer.testing import CliRunner

from assets.dashboards import (
    build_dashboards,
    dashboards_asset,
    identity_of,
    is_fresh,
    page_at,
)
from assets.store import Store
from sae_lib.errors import MissingFile, NotApplicable, UnknownName
from sae_workflows.cli import app
from sae_workflows.headless import run_study
from sae_workflows.home import outline_of, study_at


@pytest.fixture
def finished(write, tmp_path):
    """A study that was run, its store, and its only cell."""
    file = write(
        sites="[resid_post.0]", saes="[{kind: topk, d_sae: 32, k: 2}]", evaluate="[sparsity]"
    )
    home = tmp_path / "home"
    study = study_at(home, file)
    run_study(study, home)
    return study, Store(home=str(home)), study.cells()[0]


def test_a_page_is_made_once_and_again_when_its_rows_are_others(finished, write):
    study, store, (site, variant) = finished
    page = page_at(store.root, study.name, site, variant.id)
    build_dashboards(study, store, study.cells(), lambda _: None)
    assert is_fresh(study, store, site, variant)
    made = page.read_bytes()
    assert build_dashboards(study, store, study.cells(), lambda _: None) == 0
    page.unlink()
    assert not is_fresh(study, store, site, variant)
    assert build_dashboards(study, store, study.cells(), lambda _: None) == 0
    assert page.read_bytes() == made
    assert list(page.parent.iterdir()) == [page]
    before = identity_of(study, store, site, variant)
    file = write(
        sites="[resid_post.0]",
        saes="[{kind: topk, d_sae: 32, k: 2}]",
        evaluate="[sparsity]",
        explain="[{method: max_act, num_keywords: 3}]",
    )
    other = study_at(store.root, file)
    assert identity_of(other, store, *other.cells()[0]) != before
    assert not is_fresh(other, store, *other.cells()[0])
    with pytest.raises(MissingFile, match="not explained yet"):
        build_dashboards(other, store, other.cells(), lambda _: None)


def test_the_asset_tells_where_its_page_is(finished):
    study, store, (site, variant) = finished
    outline = outline_of(study)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", dg.BetaWarning)
        asset = dashboards_asset(outline, lambda: study)
    key = dg.MultiPartitionKey({"site": site, "variant": variant.id})
    result = dg.materialize([asset], partition_key=key, resources={"store": store})
    assert result.success
    metadata = result.get_asset_materialization_events()[0].materialization.metadata
    page = page_at(store.root, study.name, site, variant.id)
    assert metadata["page"].value == str(page)
    assert metadata["bytes"].value == page.stat().st_size
    assert "%7C" in str(metadata["open"].value)
    deps = {key.path[-1] for key in asset.keys_by_input_name.values()}
    assert deps == {"explanations", "metrics"}


def test_the_command_line_writes_pages_and_json(finished, tmp_path, monkeypatch):
    study, store, (site, variant) = finished
    opened = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    home = ["--home", str(store.root)]
    runner = CliRunner()

    def said(*words):
        found = runner.invoke(app, [*words, *home], catch_exceptions=False)
        assert found.exit_code == 0, found.output
        return found.stdout

    row = json.loads(said("dashboard", study.name, site, variant.id, "--open", "--json"))[0]
    assert row["page"] == str(page_at(store.root, study.name, site, variant.id))
    assert row["latents"] == 32
    assert opened[0].startswith("file://")
    file = tmp_path / "x.html"
    said("dashboard", study.sae(site, variant).hash, "--out", str(file), "--latents", "3")
    assert "3 of 32 latents are on this page" in file.read_text("utf-8")
    folder = study.sae(site, variant).folder
    to = tmp_path / "np"
    row = json.loads(said("export", "neuronpedia", folder, "--to", str(to), "--json"))[0]
    assert row["latents"] == 32
    assert "logits_hist_data_bar_heights" in row["null"]
    features = json.loads((to / "batch-0.json").read_text())["features"]
    assert features[0]["n_tokens_in_prompt"] == 32
    assert features[0]["neuron_alignment_values"] is not None
    with pytest.raises(UnknownName, match="Did you mean"):
        runner.invoke(app, ["dashboard", variant.id + "x", *home], catch_exceptions=False)


def test_an_experiment_that_explains_nothing_has_no_page(write, tmp_path):
    file = write(
        sites="[resid_post.0]",
        saes="[{kind: topk, d_sae: 32, k: 2}]",
        explain=None,
        evaluate="[reconstruction]",
    )
    home = tmp_path / "home"
    study = study_at(home, file)
    run_study(study, home)
    with pytest.raises(NotApplicable, match="no explained latents"):
        CliRunner().invoke(
            app, ["dashboard", study.cells()[0][1].id, "--home", str(home)], catch_exceptions=False
        )
