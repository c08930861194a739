"""An experiment file that asks for several devices: what it says, and what comes of it."""

from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from safetensors.torch import load_file

from sae_lib.artifacts import ArtifactStore
from sae_lib.errors import BadInput
from sae_lib.training.distributed.config import DevicesConfig
from sae_workflows.experiment import load_experiment
from sae_workflows.headless import run_study
from sae_workflows.schema import experiment_schema

SAES = "[{kind: topk, d_sae: 32, k: 2}, {kind: standard, d_sae: 32, l1: 0.01}]"


def train(devices: str) -> str:
    return f"{{batch_tokens: 256, tokens: 8192, devices: {devices}}}"


def test_a_number_and_a_mapping_say_how_many(write):
    short = load_experiment(write(train=train("2"))).variants[0]
    assert short.train.devices == DevicesConfig(count=2, split="batch")
    long = load_experiment(write(train=train("{count: 2, split: latents}"))).variants[0]
    assert long.train.devices == DevicesConfig(count=2, split="latents")
    for devices in ("2", "{count: 2, split: latents}"):
        content = yaml.safe_load(write(train=train(devices)).read_text())
        jsonschema.validate(content, experiment_schema())
    content = yaml.safe_load(write(train=train("many")).read_text())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(content, experiment_schema())


def test_devices_are_no_part_of_what_an_sae_is(write):
    studies = [
        load_experiment(write(train=train("1"))),
        load_experiment(write(train=train("{count: 2, split: latents}"))),
        load_experiment(write(saes="[{kind: topk, d_sae: 32, k: [2, 4], train: {devices: 2}}]")),
    ]
    hashes = {
        tuple(study.sae(site, variant).hash for site, variant in study.cells()) for study in studies
    }
    assert len(hashes) == 1
    assert studies[2].variants[0].id == "topk-w32-k2-s0"


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"train": train("3")}, r"key train.*batch_tokens=256 do not split evenly among 3"),
        (
            {"train": train("{count: 3, split: latents}")},
            r"key train.devices, value 3: topk-w32-k2-s0: d_sae=32 .* such as 33",
        ),
        (
            {"train": train("2"), "activations": "{store: stream}"},
            r"key train.devices, value 2: several devices read activations from the disk",
        ),
        (
            {"saes": "[{kind: topk, d_sae: 32, train: {devices: {count: 2, split: rows}}}]"},
            r"key saes\[0\].train.devices.split, value 'rows'",
        ),
    ],
)
def test_what_cannot_be_split_is_refused_with_its_place(
    parts: dict[str, Any], expected: str, write
):
    with pytest.raises(BadInput, match=expected):
        load_experiment(write(**parts))


def test_a_variant_nobody_has_split_is_refused_with_those_there_are(
    write, monkeypatch: pytest.MonkeyPatch
):
    from sae_lib.training.distributed.rules import RULES

    monkeypatch.delitem(RULES._items, "standard")
    file = write(saes="[{kind: standard, d_sae: 32, l1: 0.1}]", train=train("2"))
    with pytest.raises(BadInput, match=r"'standard' is split .* one of: batch_topk, topk\."):
        load_experiment(file)


@pytest.mark.slow
def test_a_run_on_two_devices_gives_the_saes_of_a_run_on_one(write, tmp_path: Path):
    parts = {"saes": SAES, "sites": "[resid_post.1]", "explain": None, "evaluate": "[sparsity]"}
    found = {}
    for name, devices in {"one": "1", "two": "{count: 2, split: latents}"}.items():
        home = tmp_path / name
        run_study(load_experiment(write(train=train(devices), **parts)), home)
        found[name] = {
            manifest["name"]: manifest for manifest in ArtifactStore(home).manifests("sae")
        }
        assert not list((home / "artifacts").rglob("checkpoint*"))
    assert len(found["two"]) == 2
    for name, manifest in found["two"].items():
        other = found["one"][name]
        assert manifest["hash"] == other["hash"]
        assert manifest["facts"]["status"] == "complete"
        assert manifest["facts"]["train"]["devices"]["count"] == 2
        weights, expected = (
            load_file(Path(one["path"]) / "sae.safetensors") for one in (manifest, other)
        )
        assert weights.keys() == expected.keys()
        for key, value in expected.items():
            assert float((weights[key] - value).norm()) <= 1e-4 * float(value.norm()), (name, key)
