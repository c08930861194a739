"""Experiment files: what they come to, and what is said when they are wrong."""

import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from sae_lib.errors import BadInput, MissingFile
from sae_lib.evaluate import read_metric
from sae_lib.interop.pretrained import PretrainedConfig
from sae_workflows._yaml import read_yaml
from sae_workflows.experiment import BUNDLED, ExperimentFile, load_experiment
from sae_workflows.schema import experiment_schema

EVERY_BUNDLED = pytest.mark.parametrize(
    "file", sorted(BUNDLED.glob("*.yaml")), ids=lambda file: file.stem
)


@EVERY_BUNDLED
def test_every_bundled_experiment_can_be_read_and_is_named_as_its_file(file: Path):
    study = load_experiment(file)
    assert study.name == file.stem
    assert study.cells()


@EVERY_BUNDLED
def test_every_bundled_experiment_fits_the_published_schema(file: Path):
    jsonschema.validate(yaml.safe_load(file.read_text()), experiment_schema())


@pytest.mark.parametrize(
    "wrong",
    [
        {"saes": [{"kind": "topk", "d_sae": 8, "kk": 2}]},
        {"saes": [{"kind": "topkk", "d_sae": 8}]},
        {"saes": [{"kind": "topk", "k": 2}]},
        {"sites": []},
        {"evaluate": ["reconstructions"]},
        {"nam": "x"},
    ],
)
def test_the_published_schema_refuses_what_the_parser_refuses(wrong, write):
    content = yaml.safe_load(write().read_text())
    jsonschema.validate(content, experiment_schema())
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**content, **wrong}, experiment_schema())


def test_the_schema_is_itself_valid_and_is_json():
    schema = experiment_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    assert json.loads(json.dumps(schema)) == schema


def test_lists_span_a_grid_and_ids_say_what_differs(write):
    study = load_experiment(
        write(
            saes="[{kind: topk, d_sae: 32, k: [2, 4], seed: [0, 1]}, "
            "{kind: topk, d_sae: 32, k: 2, aux_weight: 0.5}, "
            "{kind: standard, d_sae: [16, 32], target_l0: 3, train: {lr: 1.0e-2}}]"
        )
    )
    assert [variant.id for variant in study.variants] == [
        "topk-w32-k2-s0",
        "topk-w32-k2-s1",
        "topk-w32-k4-s0",
        "topk-w32-k4-s1",
        "topk-w32-k2-auxweight0.5-s0",
        "standard-w16-targetl03-lr0.01-s0",
        "standard-w32-targetl03-lr0.01-s0",
    ]
    assert study.variants[-1].train.lr == 1e-2
    assert len(study.cells()) == 2 * 7


def test_what_was_left_open_is_derived_and_written_back(write):
    asked = load_experiment(write(train=None)).asked()
    train = asked["saes"][0]["train"]
    assert train["tokens"] == 8000
    assert train["steps"] == 8000 // train["batch_tokens"]
    assert train["lr"] > 0
    assert asked["sites"] == {"resid_post.0": 16, "resid_post.1": 16}


def test_identities_know_what_changes_them(write):
    one = load_experiment(write())
    same = load_experiment(write("other", saes="[{kind: topk, d_sae: 32, k: [4, 8]}]"))
    assert one.tokens.hash == same.tokens.hash
    site = "resid_post.0"
    assert one.harvested(site).hash == same.harvested(site).hash
    assert (
        one.sae(site, one.variant("topk-w32-k4-s0")).hash
        == same.sae(site, same.variant("topk-w32-k4-s0")).hash
    )
    assert one.harvested(site).hash != one.harvested("resid_post.1").hash
    longer = load_experiment(write("longer", train="{batch_tokens: 256, tokens: 9000}"))
    variant = longer.variants[0]
    assert longer.sae(site, variant).hash != one.sae(site, one.variants[0]).hash
    # how often a checkpoint is written changes nothing that is built
    often = load_experiment(
        write("often", train="{batch_tokens: 256, tokens: 8192, checkpoint_every_seconds: 1}")
    )
    assert often.sae(site, often.variants[0]).hash == one.sae(site, one.variants[0]).hash


WRONG = {
    "unknown key": ({"trian": "{tokens: 5}"}, r"study.yaml:\d+, key trian: .*Did you mean 'train'"),
    "unknown key inside": (
        {"corpus": "{id: world, tokns: 5}"},
        r"key corpus.tokns.*Did you mean 'tokens'",
    ),
    "unknown key of a variant": (
        {"saes": "[{kind: topk, d_sae: 32, kk: 2}]"},
        r"key saes\[0\].kk: there is no key 'kk' here. Known: .*k",
    ),
    "unknown training setting": ({"train": "{learning_rate: 1}"}, r"key train.learning_rate"),
    "wrong type": ({"saes": "[{kind: topk, d_sae: wide}]"}, r"key saes\[0\].d_sae, value 'wide'"),
    "missing key": ({"model": None}, r"key model: this key is missing"),
    "missing key of a variant": ({"saes": "[{kind: topk, k: 2}]"}, r"saes\[0\].d_sae: .*missing"),
    "impossible combination": (
        {"saes": "[{kind: topk, d_sae: 32, k: 64}]"},
        r"saes\[0\].*d_sae=32.*k=64",
    ),
    "unknown variant": (
        {"saes": "[{kind: topkk, d_sae: 32}]"},
        r"value 'topkk': no SAE variant.*Did you mean 'topk'",
    ),
    "no variant": ({"saes": "[{d_sae: 32}]"}, r"say which variant under 'kind'"),
    "unknown objective": (
        {"saes": "[{kind: topk, d_sae: 32, k: 2, objective: plane}]"},
        r"no objective is called 'plane'.*Did you mean 'plain'",
    ),
    "unknown metric": ({"evaluate": "[reconstructon]"}, r"Did you mean 'reconstruction'"),
    "unknown explainer": ({"explain": "[maxact]"}, r"key explain\[0\].*Did you mean 'max_act'"),
    "unknown application": ({"apply": "[steer]"}, r"key apply\[0\].*Did you mean 'steering'"),
    "layer the model lacks": ({"sites": "[resid_post.3]"}, r"key sites\[0\].*3.*0 to 2"),
    "kind of site": ({"sites": "[resid_pst.1]"}, r"Did you mean 'resid_post"),
    "site twice": ({"sites": "[resid_post.1, resid_post.1]"}, r"this site stands twice"),
    "variant twice": (
        {"saes": "[{kind: topk, d_sae: 32, k: 2}, {kind: topk, d_sae: 32, k: [2, 4]}]"},
        r"topk-w32-k2-s0 stands in saes\[0\] already",
    ),
    "empty grid": ({"saes": "[{kind: topk, d_sae: 32, k: []}]"}, r"an empty list spans no SAE"),
    "name": ({"name": "A b"}, r"key name, value 'A b'"),
    "context": (
        {"corpus": "{id: world, tokens: 5000, context: 128}"},
        r"key corpus.context, value 128: .*at most 64 tokens",
    ),
    "missing corpus": (
        {"corpus": "{id: ./txt.jsonl, tokens: 5000, context: 32}"},
        r"corpus.id.*txt.jsonl",
    ),
    "missing model": ({"model": "{id: ./modle}"}, r"key model.id.*modle"),
    "d_in": ({"saes": "[{kind: topk, d_sae: 32, k: 2, d_in: 4}]"}, r"leave d_in out"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_file_says_where_and_what_would_be_right(case, write):
    parts, said = WRONG[case]
    with pytest.raises(BadInput, match=said) as error:
        load_experiment(write(**parts))
    assert ".yaml:" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_folder_without_weights_is_refused(write, tmp_path: Path, tiny_model: Path):
    folder = tmp_path / "hollow"
    folder.mkdir()
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    with pytest.raises(BadInput, match=r"key model.id.*hollow.*model.safetensors"):
        load_experiment(write(model=f"{{id: {folder}}}"))


def test_a_corpus_that_is_empty_is_refused(write, tmp_path: Path):
    (tmp_path / "nothing.txt").write_text("")
    with pytest.raises(BadInput, match=r"key corpus.*nothing.txt.*empty"):
        load_experiment(write(corpus="{id: nothing.txt, tokens: 5000, context: 32}"))


def test_steering_an_encoder_is_refused_before_compute(write, tiny_encoder: Path):
    with pytest.raises(BadInput, match=r"key apply\[0\]: steering needs a model that predicts"):
        load_experiment(write(model=f"{{id: {tiny_encoder}}}", apply="[steering]"))


def test_an_objective_that_runs_the_model_is_refused_on_an_encoder(
    write, tiny_encoder: Path, monkeypatch: pytest.MonkeyPatch
):
    from sae_lib.training.objectives import OBJECTIVES

    plain = OBJECTIVES["plain"]
    monkeypatch.setattr(plain, "needs_model", True)
    with pytest.raises(BadInput, match=r"key saes\[0\].objective: the objective plain needs"):
        load_experiment(write(model=f"{{id: {tiny_encoder}}}"))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "this file holds nothing"),
        ("- a\n- b\n", "this file holds list"),
        ("a: [1\n", r"x.yaml:\d+: this is not valid YAML"),
        ("name: a\nname: b\n", r"x.yaml:2: .*'name' stands twice"),
    ],
)
def test_what_is_no_mapping_in_yaml_is_refused_with_its_line(tmp_path: Path, text, said):
    file = tmp_path / "x.yaml"
    file.write_text(text)
    with pytest.raises(BadInput, match=said):
        load_experiment(file)


def test_yaml_cannot_run_code(tmp_path: Path):
    file = tmp_path / "x.yaml"
    file.write_text("name: !!python/object/apply:os.system ['touch bad']\n")
    with pytest.raises(BadInput, match="not valid YAML"):
        load_experiment(file)
    assert not (tmp_path / "bad").exists()


def test_a_missing_file_is_answered_with_the_nearest(write):
    file = write("study")
    with pytest.raises(MissingFile, match=r"stduy.yaml: there is no such file.*'study.yaml'"):
        load_experiment(file.with_name("stduy.yaml"))
    with pytest.raises(MissingFile, match="Did you mean 'world-demo'"):
        load_experiment(Path("world-dmo"))


@pytest.mark.parametrize(
    "file", sorted((BUNDLED / "hub").glob("*.yaml")), ids=lambda file: file.stem
)
def test_files_that_need_the_hub_say_what_the_schema_allows(file):
    raw, _ = read_yaml(file)
    said = ExperimentFile.model_validate(raw)
    assert [read_metric(one) for one in said.evaluate]
    for entry in said.saes:
        assert (
            PretrainedConfig.model_validate({"d_in": 1, "d_sae": 1, **entry}).kind == "pretrained"
        )
