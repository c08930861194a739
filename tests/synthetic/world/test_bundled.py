"""The shipped model has learned what it is said to have learned."""

import json

import pytest
from transformers import AutoTokenizer

from sae_lib.errors import MissingFile
from sae_lib.synthetic.world.bundled import world_model_dir
from sae_lib.synthetic.world.report import world_report
from sae_lib.synthetic.world.tokenizer import vocabulary
from sae_lib.synthetic.world.train import TrainConfig


def test_the_shipped_files_are_small_and_belong_to_this_world():
    folder = world_model_dir()
    assert all(file.stat().st_size < 16 * 2**20 for file in folder.iterdir())
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == vocabulary()
    record = json.loads((folder / "training.json").read_text())
    assert record["num_parameters"] < 4_000_000
    assert record["finished"]
    TrainConfig.model_validate(record["config"])


@pytest.mark.model
def test_the_shipped_model_reads_and_knows_its_world():
    # measured on the same 200 documents: excess 0.004 to 0.023, unseen 0.87, verdicts 0.98
    report = world_report(world_model_dir(), 200)
    for kind, row in report["losses"].items():
        assert -0.02 < row["excess"] < 0.05, kind
    accuracies = report["accuracies"]
    assert accuracies["recall_of_known"]["all"] > 0.95
    assert accuracies["unknown_said_of_unknown"] > 0.95
    assert accuracies["unknown_said_of_unseen"] > 0.75
    assert accuracies["unknown_said_of_known"] < 0.03
    assert accuracies["verdict_has_the_sign_of_the_review"] > 0.93
    assert accuracies["news_keep_to_their_topic"] > 0.95
    assert accuracies["verb_agrees_with_the_hero"] > 0.95


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(MissingFile, match=r"config\.json is missing"):
        world_report(tmp_path, 1)
