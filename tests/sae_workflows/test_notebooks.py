"""The notebooks run from beginning to end and show what they are about."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from sae_workflows.experiment import load_experiment
from sae_workflows.headless import run_study

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_results_notebook_runs_on_a_finished_study(write, tmp_path: Path, monkeypatch):
    home = tmp_path / "home"
    file = write(
        sites="[resid_post.1]",
        saes="[{kind: topk, d_sae: 16, k: 2}, {kind: standard, d_sae: 16, l1: 0.01}]",
        train="{batch_tokens: 512, tokens: 4096}",
    )
    run_study(load_experiment(file), home)
    monkeypatch.setenv("SAE_HOME", str(home))
    notebook = nbformat.read(NOTEBOOKS / "results.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(NOTEBOOKS))
    shown = [
        output.data.get("text/html", "")
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if output.output_type == "execute_result"
    ]
    assert any("topk-w16-k2-s0" in text for text in shown)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_notebook_of_the_world_shows_documents_and_concepts(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("SAE_HOME", str(tmp_path))
    notebook = nbformat.read(NOTEBOOKS / "world.ipynb", as_version=4)
    NotebookClient(notebook, timeout=120, kernel_name="python3").execute(cwd=str(NOTEBOOKS))
    shown = str([cell.outputs for cell in notebook.cells if cell.cell_type == "code"])
    assert "<mark>" in shown
    assert "sae world report" in shown, "nothing was measured in this home, and the cell says so"
