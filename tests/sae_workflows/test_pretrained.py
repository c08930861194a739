"""SAEs that were trained elsewhere are evaluated like our own."""

import shutil
from pathlib import Path

import pytest

from sae_lib.artifacts import ArtifactStore
from sae_lib.errors import BadInput
from sae_lib.saes.files import load_sae, save_sae
from sae_lib.saes.topk import TopKConfig
from sae_lib.warehouse.query import query
from sae_workflows.experiment import load_experiment
from sae_workflows.headless import run_study
from sae_workflows.home import memo_file

STUDY = """\
name: released
model: {{id: {model}}}
corpus: {{id: {text}, tokens: 4000, context: 32, eval_tokens: 1500}}
sites: [resid_post.0, resid_post.1]
saes:
  - {{kind: pretrained, format: sae-workflows, path: {path}, sites: resid_post.1{more}}}
  - {{kind: topk, d_sae: 32, k: 2, sites: resid_post.1}}
train: {{batch_tokens: 512, tokens: 2048}}
evaluate: [reconstruction, sparsity]
"""


def write(folder: Path, model: Path, text: Path, *, path: str = "sae", more: str = "") -> Path:
    file = folder / "study.yaml"
    file.write_text(STUDY.format(model=model, text=text, path=path, more=more))
    return file


@pytest.fixture
def released(tmp_path: Path) -> Path:
    coder = TopKConfig(d_in=16, d_sae=24, k=3, seed=5).build()
    save_sae(coder, tmp_path / "sae", facts={"site": "resid_post.1"})
    return tmp_path


def test_it_is_measured_beside_trained_ones_under_the_identity_of_its_files(
    released, tiny_model, text
):
    file, home = write(released, tiny_model, text), released / "home"
    study = load_experiment(file, memo=memo_file(home))
    variant = study.variants[0]
    assert variant.id == "sae-w24-s0"
    run_study(study, home)
    found = query(
        home / "results.duckdb", "select variant, kind, l0, fvu from leaderboard order by d_sae"
    )
    assert found["variant"].to_list() == ["sae-w24-s0", "topk-w32-k2-s0"]
    assert found["kind"].to_list() == ["topk", "topk"]
    assert found["l0"].to_list() == pytest.approx([3.0, 2.0], abs=0.05)
    identity = study.sae("resid_post.1", variant)
    kept = load_sae(ArtifactStore(home).path(identity))
    assert kept.cfg.seed == 5
    # moving the files changes nothing, changing them does
    shutil.move(released / "sae", released / "moved")
    moved = load_experiment(write(released, tiny_model, text, path="moved", more=", name: sae"))
    assert moved.sae("resid_post.1", moved.variants[0]) == identity
    save_sae(TopKConfig(d_in=16, d_sae=24, k=3, seed=6).build(), released / "moved", facts={})
    other = load_experiment(write(released, tiny_model, text, path="moved", more=", name: sae"))
    assert other.sae("resid_post.1", other.variants[0]) != identity


@pytest.mark.parametrize(
    ("path", "more", "problem"),
    [
        ("sea", "", r"saes\[0\]\.path.*there is no such folder"),
        ("owner/name", "", r"saes\[0\].*say d_sae of an SAE that is on the hub"),
        ("sae", ", d_sae: 25", r"saes\[0\]\.d_sae.*the SAE has 24 latents"),
        ("sae", ", train: {tokens: 5}", r"saes\[0\]\.train.*not trained here"),
        ("sae", ", fromat: x", r"saes\[0\]\.fromat.*Did you mean 'format'"),
        ("sae", ", folder: inside", r"saes\[0\]\.folder.*there is no such folder"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_built(
    released, tiny_model, text, path, more, problem
):
    with pytest.raises(BadInput, match=f"(?s){problem}"):
        load_experiment(write(released, tiny_model, text, path=path, more=more))


def test_an_sae_of_another_width_is_refused(tmp_path, tiny_model, text):
    save_sae(TopKConfig(d_in=8, d_sae=24, k=3).build(), tmp_path / "sae", facts={})
    with pytest.raises(BadInput, match=r"reads 8 numbers, and resid_post\.1 is 16 wide"):
        load_experiment(write(tmp_path, tiny_model, text))


def test_another_metric_computes_itself_alone(released, tiny_model, text):
    file, home = write(released, tiny_model, text), released / "home"
    study = load_experiment(file)
    run_study(study, home)
    before = {
        one["name"]: one["created_at"] for one in ArtifactStore(home).manifests("measurements")
    }
    file.write_text(file.read_text().replace("sparsity]", "sparsity, geometry, weights]"))
    more = load_experiment(file)
    _, alone = more.metric_parts().values()
    assert [metric.name for metric in alone] == ["geometry"]
    file.write_text(file.read_text().replace(", weights]", "]"))
    run_study(load_experiment(file), home)
    after = {
        one["name"]: one["created_at"] for one in ArtifactStore(home).manifests("measurements")
    }
    assert before.items() < after.items()
    assert {name for name in after if name not in before} == {
        "geometry-resid_post.1-sae-w24-s0",
        "geometry-resid_post.1-topk-w32-k2-s0",
    }
