import json

import pytest
import torch

from sae_lib.errors import BadInput, NotApplicable
from sae_lib.report.dashboard import Cell, Published
from sae_lib.report.neuronpedia import ACTIVATION_FIELDS, FIELDS, export
from sae_lib.saes import VARIANTS
from sae_lib.saes.files import save_sae
from tests.report.synthetic_latents import Fixed, Synthetic


def features(files):
    return [one for file in files for one in json.loads(file.read_text("utf-8"))["features"]]


TABLES = {
    "latents": [
        {"latent": 0, "density": 0.25, "max_activation": 4.0, "histogram": [3.0, 1.0],
         "histogram_edges": [1.0, 2.0, 4.0]},
        {"latent": 1, "density": 0.0, "max_activation": 0.0, "histogram": None,
         "histogram_edges": None},
    ],
    "explanations": [
        {"latent": 0, "method": "vocab_proj", "text": "", "keywords": ["a", "b", "c"],
         "keyword_scores": [2.0, 1.0, -3.0]},
        {"latent": 0, "method": "max_act", "text": "", "keywords": ["z"], "keyword_scores": [9.0]},
    ],
    "examples": [
        {"latent": 0, "kind": kind, "rank": rank, "interval": interval, "low": low, "high": high,
         "share": share, "peak": 1, "tokens": ["x", "</script>"], "activations": [0.0, value]}
        for kind, rank, interval, low, high, share, value in (
            ("quantile", 0, 0, 0.0, 2.0, 0.75, 1.0),
            ("quantile", 0, 1, 2.0, 4.0, 0.25, 3.0),
            ("silent", 0, None, None, None, None, 0.0),
            ("top", 1, None, None, None, None, 3.5),
            ("top", 0, None, None, None, None, 4.0),
        )
    ],
    "latent_pairs": [
        {"latent": 0, "other": other, "kind": kind, "rank": rank, "value": 0.5}
        for kind, rank, other in (("cofire", 1, 7), ("decoder", 0, 3), ("cofire", 0, 1))
    ],
}  # fmt: skip


def test_every_field_is_there_and_what_is_not_known_is_null(tmp_path):
    made = export(Fixed(TABLES), tmp_path)
    first, dead = features(made.files)
    assert list(first) == list(FIELDS)
    assert made.num_latents == 2
    assert first["frac_nonzero"] == 0.25
    assert (first["pos_str"], first["pos_values"]) == (["a", "b"], [2.0, 1.0])
    assert (first["neg_str"], first["neg_values"]) == (["c"], [-3.0])
    assert first["freq_hist_data_bar_heights"] == [3, 1]
    assert first["freq_hist_data_bar_values"] == [1.5, 3.0]
    assert first["correlated_features_indices"] == [1, 7]
    assert {"correlated_features_pearson", "vector", "neuron_alignment_indices"} <= set(made.nulls)
    assert first["decoder_weights_dist"] is None
    assert dead["activations"] == []
    assert dead["pos_str"] is None
    assert dead["freq_hist_data_bar_heights"] is None


def test_examples_are_the_strongest_then_those_of_intervals_from_the_strongest(tmp_path):
    first = features(export(Fixed(TABLES), tmp_path).files)[0]
    rows = first["activations"]
    assert [row["values"][1] for row in rows] == [4.0, 3.5, 3.0, 1.0]
    assert [row["bin_min"] for row in rows] == [None, None, 2.0, 0.0]
    assert rows[2] | {} == {
        **dict.fromkeys(ACTIVATION_FIELDS), "bin_min": 2.0, "bin_max": 4.0, "bin_contains": 0.25,
        "tokens": ["x", "</script>"], "values": [0.0, 3.0], "qualifying_token_index": 1,
    }  # fmt: skip


def test_alignment_is_the_largest_entries_of_the_decoder_row(tmp_path):
    config = VARIANTS["topk"].model_validate({"kind": "topk", "d_in": 4, "d_sae": 2, "k": 1})
    coder = config.build()
    with torch.no_grad():
        coder.W_dec.copy_(torch.tensor([[0.1, -0.6, 0.2, 0.1], [1.0, 0.0, 0.0, 0.0]]))
    save_sae(coder, tmp_path / "artifacts" / "sae" / "moved", facts={})
    source = Fixed(TABLES, home=tmp_path)
    source.sae = {"path": "/gone/sae/moved", "model": "m"}
    first, dead = features(export(source, tmp_path / "out", vectors=True).files)
    assert first["neuron_alignment_indices"] == [1, 2, 0]
    assert first["neuron_alignment_values"] == pytest.approx([-0.6, 0.2, 0.1])
    assert first["neuron_alignment_l1"] == pytest.approx([0.6, 0.2, 0.1])
    assert first["vector"] == pytest.approx([0.1, -0.6, 0.2, 0.1])
    assert dead["neuron_alignment_l1"][0] == 1
    assert features(export(source, tmp_path / "out").files)[0]["vector"] is None


def test_latents_go_into_batches_and_older_batches_go_away(tmp_path):
    made = export(Synthetic(10), tmp_path, batch=4)
    assert [file.name for file in made.files] == ["batch-0.json", "batch-1.json", "batch-2.json"]
    numbers = [one["feature_index"] for one in features(made.files)]
    assert numbers == list(range(10))
    assert len(features(made.files)[1]["activations"]) == 25
    export(Synthetic(10), tmp_path, batch=10)
    assert [file.name for file in tmp_path.iterdir()] == ["batch-0.json"]
    with pytest.raises(BadInput, match="batch"):
        export(Synthetic(10), tmp_path, batch=0)
    with pytest.raises(NotApplicable):
        export(Fixed({}), tmp_path)


def test_what_was_read_is_said_of_every_batch(study, tmp_path):
    cell = Cell("world-variants", "resid_post.2", "topk-w2048-k16-s0")
    made = export(Published(study.db, cell), tmp_path)
    head = json.loads(made.files[0].read_text("utf-8"))
    assert head["layer"] == "resid_post.2"
    assert head["sae_set"] == "world-variants/topk-w2048-k16-s0"
    assert set(head) >= {"model_id", "dataset", "n_prompts_total", "n_tokens_in_prompt"}
    assert head["features"][0]["pos_str"] == ["cat", "dog", "horse"]
