"""SAEs of several sites: their cells, their training, their metrics, and what is refused."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from assets.grid import cell_key, rectangle
from sae_lib.artifacts import ArtifactStore
from sae_lib.errors import BadInput
from sae_lib.saes.files import load_sae
from sae_lib.warehouse.query import query
from sae_workflows.definitions import build
from sae_workflows.experiment import load_experiment
from sae_workflows.headless import run_study
from sae_workflows.home import memo_file, outline_of

ACROSS = "resid_post.0+resid_post.1+resid_post.2"
OVER = "resid_mid.1>mlp_out.1"

STUDY = """\
name: places
model: {{id: {model}}}
corpus: {{id: {text}, tokens: 6000, context: 32, eval_tokens: 1500}}
sites: [resid_post.0, resid_post.1, resid_post.2, "{over}", "{across}"]
saes:
  - {{kind: topk, d_sae: 32, k: 4, sites: resid_post.1}}
  - {{kind: topk, d_sae: 32, k: 4, objective: {{kind: layer_group, groups: 2}}}}
  - {{kind: topk, d_sae: 32, k: 4, sites: resid_post.1,
     objective: {{kind: end_to_end, downstream: 0.5}}}}
  - {{kind: topk, d_sae: 32, k: 4, sites: resid_post.1, objective: {{kind: formal_causal}}}}
  - {{kind: topk, d_sae: 32, k: 4, sites: resid_post.1, objective: {{kind: feature_aligned}}}}
  - {{kind: batch_topk, d_sae: 32, k: 4, sites: resid_post.1,
     objective: {{kind: specialized, queries: seeds.txt, retrieve: bm25, contexts: 40, tilt: 1}}}}
  - {{kind: transcoder, activation: topk, d_sae: 32, k: 4, skip: true,
     objective: {{kind: transcode}}}}
  - {{kind: crosscoder, activation: batch_topk, d_sae: 32, k: 4, objective: {{kind: crosscode}}}}
  - {{preset: gemma_scope, d_sae: 32, target_l0: 4, sites: resid_post.1, threshold: 0.1,
     bandwidth: 0.1, train: {{batch_tokens: 256, sparsity_warmup_steps: 4, warmup_steps: 4}}}}
train: {{batch_tokens: 256, tokens: 8192}}
explain: [max_act, vocab_proj]
apply: [selection]
"""


def write_study(folder: Path, model: Path, text: Path) -> Path:
    file = folder / "places.yaml"
    file.write_text(STUDY.format(model=model, text=text, over=OVER, across=ACROSS))
    (folder / "seeds.txt").write_text("w1 w2 w3 w4 w5\n\nw2 w3 w6 w7\n")
    return file


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, text: Path) -> Any:
    folder = tmp_path_factory.mktemp("places")
    home = folder / "home"
    study = load_experiment(write_study(folder, tiny_model, text), memo=memo_file(home))
    return study, home, run_study(study, home)


def test_cells_are_those_that_make_sense(finished):
    study, _, _ = finished
    cells = {(site, variant.id) for site, variant in study.cells()}
    group = "topk-w32-k4-layer_group-groups2-s0"
    assert {site for site, variant in cells if variant == group} == {
        "resid_post.0",
        "resid_post.1",
        "resid_post.2",
    }
    assert [variant for site, variant in cells if site == OVER] == [
        "transcoder-w32-k4-skipTrue-transcode-s0"
    ]
    assert [variant for site, variant in cells if site == ACROSS] == [
        "crosscoder-w32-k4-activationbatch_topk-crosscode-s0"
    ]
    assert len(cells) == 11


def test_every_cell_has_its_sae_its_numbers_and_its_explanations(finished):
    study, home, _ = finished
    leaders = query(home / "results.duckdb", "select * from leaderboard")
    assert leaders.height == len(study.cells())
    for column in ("l0", "fvu", "delta_lm_loss"):
        assert leaders[column].null_count() == 0, column
    assert leaders["fvu"].min() < 0.9
    saes = query(home / "results.duckdb", "select * from saes")
    assert (saes["cpu_seconds"] > 0).all()
    assert (saes["flops"] > 0).all()
    assert (saes["status"] == "complete").all()
    explained = query(home / "results.duckdb", "select distinct site, variant from explanations")
    assert explained.height == len(study.cells())


def test_a_second_run_does_nothing(finished):
    study, home, _ = finished
    again = run_study(load_experiment(study.file, memo=memo_file(home)), home)
    assert not any(result.built for result in again), again


def test_members_of_a_group_share_what_was_learnt(finished):
    study, home, _ = finished
    distances = query(home / "results.duckdb", "select * from site_distances")
    assert distances.height == 3
    groups = query(home / "results.duckdb", "select * from layer_groups where num_groups = 2")
    pair = groups.filter(pl.len().over("group") == 2)["member"].to_list()
    store = ArtifactStore(home)
    variant = next(one for one in study.variants if "layer_group" in one.id)
    first, second = (load_sae(store.path(study.sae(site, variant))) for site in pair)
    (alone,) = {"resid_post.0", "resid_post.1", "resid_post.2"} - set(pair)
    other = load_sae(store.path(study.sae(alone, variant)))
    assert torch.equal(first.W_dec, second.W_dec)
    assert not torch.equal(first.W_dec, other.W_dec)
    # one bias learnt, at the scale of each site
    ratio = first.b_dec / second.b_dec
    torch.testing.assert_close(ratio, ratio.mean().expand_as(ratio), rtol=1e-4, atol=0)


def test_specialised_saes_show_what_they_read(finished):
    study, home, _ = finished
    chosen = query(home / "results.duckdb", "select * from chosen_contexts order by rank")
    assert chosen.height == 40
    assert chosen["score"].to_list() == sorted(chosen["score"].to_list(), reverse=True)
    assert chosen["context"].n_unique() == 40
    # the general SAE that it starts from is an artefact of its own
    saes = [m["content"]["objective"]["kind"] for m in ArtifactStore(home).manifests("sae")]
    variant = next(one for one in study.variants if "specialized" in one.id)
    general = study.general(variant)
    assert general is not None
    assert ArtifactStore(home).exists(study.sae("resid_post.1", general))
    assert saes.count("specialized") == 1


def test_what_was_trained_along_is_kept(finished):
    study, home, _ = finished
    variant = next(one for one in study.variants if "feature_aligned" in one.id)
    folder = ArtifactStore(home).path(study.sae("resid_post.1", variant))
    first, second = load_sae(folder), load_sae(folder / "company-1")
    assert first.W_dec.shape == second.W_dec.shape
    assert not torch.equal(first.W_dec, second.W_dec)


def test_the_graph_has_a_partition_per_cell_and_knows_what_it_reads(finished):
    study, home, _ = finished
    outline = outline_of(study)
    assert not outline.is_rectangular
    definitions = build([outline], home)
    graph = definitions.resolve_asset_graph()
    key = next(key for key in graph.get_all_asset_keys() if key.path == ["places", "saes"])
    partitions = graph.get(key).partitions_def
    assert partitions is not None
    keys = partitions.get_partition_keys()
    assert keys == [cell_key(site, variant.id) for site, variant in study.cells()]
    assert outline.cells[cell_key(OVER, study.cells()[-2][1].id)] == ("resid_mid.1", "mlp_out.1")
    assert outline.single_sites == [
        *("resid_post.0", "resid_post.1", "resid_post.2", "resid_mid.1", "mlp_out.1")
    ]
    whole = [(site, variant.id) for site, variant in study.cells()]
    assert rectangle(outline, whole) == (keys[0], keys[-1])


@pytest.mark.parametrize(
    ("sites", "saes", "said"),
    [
        ("[resid_post.0]", "{kind: transcoder, k: 2, activation: topk}", "only the objective"),
        (
            "[resid_post.0]",
            "{kind: transcoder, k: 2, activation: topk, objective: {kind: transcode}}",
            "no such place",
        ),
        ("[resid_post.0]", "{kind: topk, k: 2, objective: {kind: transcode}}", "transcoder"),
        ("[resid_post.0, resid_post.9+resid_post.0]", "{kind: topk, k: 2}", "layers"),
        ("[resid_post.0, resid_post.0+resid_post.0]", "{kind: topk, k: 2}", "twice"),
        ("[resid_post.0]", "{kind: topk, k: 2, sites: resid_post.1}", "add it to the file's sites"),
        (
            "[resid_post.0]",
            "{kind: topk, k: 2, objective: {kind: layer_group, groups: 3}}",
            "at most 1 groups",
        ),
        ("[resid_post.0]", "{preset: gemma_scop, target_l0: 2}", "gemma_scope"),
        ("[resid_post.0]", "{preset: gemma_scope, kind: topk, k: 2}", "leave kind out"),
        (
            "[resid_post.0]",
            "{kind: matryoshka, k: 2, objective: {kind: end_to_end}}",
            "prefixes",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_with_its_place(sites: str, saes: str, said: str, write):
    with pytest.raises(BadInput) as error:
        load_experiment(write(sites=sites, saes=f"[{saes[:-1]}, d_sae: 32}}]"))
    assert said in str(error.value)
    assert "study.yaml:" in str(error.value)
