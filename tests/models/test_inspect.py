"""What can be said of a model before it is loaded, and of one that cannot be."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from safetensors.torch import load_file, save_file
from transformers import AutoConfig

from sae_lib.errors import BadInput, MissingFile
from sae_lib.models import inspect as inspect_module
from sae_lib.models.config import ModelConfig
from sae_lib.models.families import BY_MODEL_TYPE
from sae_lib.models.inspect import ModelInfo, bundled_models, inspect_model, resolve_model
from sae_lib.models.language_model import load_model


@pytest.fixture
def folder(folder_of, tmp_path) -> Path:
    """A copy of a tiny Llama to spoil."""
    return Path(shutil.copytree(folder_of("llama"), tmp_path / "model"))


def change(folder: Path, **values) -> None:
    file = folder / "config.json"
    raw = {**json.loads(file.read_text()), **values}
    file.write_text(json.dumps({key: value for key, value in raw.items() if value is not None}))


def test_the_config_alone_says_what_the_loaded_model_is(lm):
    info = inspect_model(ModelConfig(id=str(lm.info.path)))
    assert info == lm.info
    assert (info.num_layers, info.d_model, info.d_mlp, info.vocab_size) == (3, 16, 24, 37)
    assert info.max_context == 24
    assert info.model_type == lm.model.config.model_type
    predicts = type(lm.model).__name__.endswith(("ForCausalLM", "LMHeadModel"))
    assert info.is_causal == info.has_lm_head == predicts


@pytest.mark.parametrize("model_type", sorted(BY_MODEL_TYPE))
def test_what_a_config_leaves_out_is_the_default_of_transformers(folder, model_type):
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    info = inspect_model(ModelConfig(id=str(folder)))
    truth = AutoConfig.for_model(model_type)
    assert info.num_layers == truth.num_hidden_layers
    assert info.d_model == truth.hidden_size
    assert info.vocab_size == truth.vocab_size
    assert info.max_context == truth.max_position_embeddings - 2 * (model_type == "roberta")
    assert info.d_mlp >= info.d_model


def test_the_default_width_of_gpt2s_mlp_is_four_times_the_models(folder_of, tmp_path):
    folder = Path(shutil.copytree(folder_of("gpt2"), tmp_path / "model"))
    change(folder, n_inner=None)
    assert inspect_model(ModelConfig(id=str(folder))).d_mlp == 64


def test_directories_are_below_the_given_one(folder):
    cfg = ModelConfig(id="model")
    assert resolve_model(cfg, folder.parent) == folder
    assert inspect_model(cfg, relative_to=folder.parent).path == folder
    assert load_model(cfg, relative_to=folder.parent).d_model == 16


def test_bundled_names_come_before_directories(folder, monkeypatch):
    monkeypatch.setattr(inspect_module, "BUNDLED", folder.parent)
    change(folder, num_hidden_layers=2)
    elsewhere = folder.parent / "elsewhere"
    shutil.copytree(folder, elsewhere / "model")
    change(elsewhere / "model", num_hidden_layers=1)
    assert bundled_models() == ["model"]
    assert inspect_model(ModelConfig(id="model"), relative_to=elsewhere).num_layers == 2


def test_a_revision_of_a_local_model_is_a_directory_inside_it(folder):
    shutil.copytree(folder, folder.parent / "old")
    change(folder.parent / "old", num_hidden_layers=2)
    shutil.move(folder.parent / "old", folder / "revisions" / "old")
    assert inspect_model(ModelConfig(id=str(folder))).num_layers == 3
    assert inspect_model(ModelConfig(id=str(folder), revision="old")).num_layers == 2
    with pytest.raises(MissingFile, match=r"no revision 'older'\. It has: old"):
        inspect_model(ModelConfig(id=str(folder), revision="older"))


def test_a_path_to_nothing_is_named():
    for name in ("./nowhere", "~/no/where", "/no/where", "a/b/c", ""):
        with pytest.raises(MissingFile, match="There is no directory"):
            inspect_model(ModelConfig(id=name))


@pytest.mark.parametrize(
    ("removed", "says"),
    [
        ("config.json", "has no config.json"),
        ("model.safetensors", "has no weights; expected model.safetensors"),
        ("tokenizer.json", "has no tokenizer"),
    ],
)
def test_what_a_directory_lacks_is_named(folder, removed, says):
    (folder / removed).unlink()
    with pytest.raises(MissingFile, match=says) as caught:
        inspect_model(ModelConfig(id=str(folder)))
    assert caught.value.file == folder


def test_pickled_weights_are_refused_without_being_read(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(BadInput, match=r"pytorch_model\.bin.*Convert them.*save_pretrained"):
        load_model(ModelConfig(id=str(folder)))


def test_weights_may_come_in_shards(folder):
    plain = load_model(ModelConfig(id=str(folder)))
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: weights[name] for name in members}, folder / file, {"format": "pt"})
    where = {name: file for file, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": where})
    )
    tokens = torch.tensor([[4, 5, 6]])
    cfg = ModelConfig(id=str(folder))
    assert torch.equal(load_model(cfg).logits(tokens), plain.logits(tokens))
    (folder / "b.safetensors").unlink()
    with pytest.raises(MissingFile, match=r"names b\.safetensors, which is not there"):
        inspect_model(cfg)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"model_type": "mamba"}, "key model_type, value 'mamba': .*not supported.*gpt2"),
        ({"model_type": "lama"}, "Did you mean 'llama'"),
        ({"model_type": "gemma3"}, "gemma3_text"),
        ({"num_hidden_layers": 0}, "key num_hidden_layers, value 0"),
        ({"hidden_size": "wide"}, "key hidden_size, value 'wide'"),
        ({"is_encoder_decoder": True}, "cross attention"),
    ],
)
def test_what_is_wrong_in_a_config_is_named(folder, values, says):
    change(folder, **values)
    with pytest.raises(BadInput, match=says):
        inspect_model(ModelConfig(id=str(folder)))


@pytest.mark.parametrize("text", ["{", "[]", ""])
def test_a_config_that_is_no_json_object_is_refused(folder, text):
    (folder / "config.json").write_text(text)
    with pytest.raises(BadInput, match=r"config\.json: .*JSON"):
        inspect_model(ModelConfig(id=str(folder)))


def test_weights_that_are_missing_are_not_replaced_by_random_ones(folder):
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.down_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadInput, match=r"lack.*model\.layers\.1\.mlp\.down_proj\.weight"):
        load_model(ModelConfig(id=str(folder)))


def test_weights_of_another_shape_are_refused(folder):
    change(folder, intermediate_size=32)
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_model(ModelConfig(id=str(folder)))


def test_a_damaged_weight_file_is_refused(folder):
    (folder / "model.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(BadInput, match="cannot be loaded"):
        load_model(ModelConfig(id=str(folder)))


def test_a_causal_model_saved_without_head_still_captures(folder):
    change(folder, architectures=["LlamaModel"])
    lm = load_model(ModelConfig(id=str(folder)))
    assert not lm.has_lm_head
    tokens = torch.tensor([[4, 5, 6]])
    whole = lm.capture(tokens, ["resid_post.2"])["resid_post.2"]
    change(folder, architectures=["LlamaForCausalLM"])
    full = load_model(ModelConfig(id=str(folder)))
    assert torch.equal(full.capture(tokens, ["resid_post.2"])["resid_post.2"], whole)
    with pytest.raises(Exception, match="saved without its language-model head"):
        lm.logits(tokens)


def test_bfloat16_is_what_it_says(folder):
    lm = load_model(ModelConfig(id=str(folder), dtype="bfloat16"))
    exact = load_model(ModelConfig(id=str(folder)))
    tokens = torch.tensor([[4, 5, 6]])
    x = lm.capture(tokens, ["resid_post.1"])["resid_post.1"]
    assert x.dtype == torch.bfloat16
    truth = exact.capture(tokens, ["resid_post.1"])["resid_post.1"]
    torch.testing.assert_close(x.float(), truth, rtol=0.05, atol=0.05)
    assert lm.generate(tokens, max_new_tokens=2, greedy=True).shape == (1, 5)


def test_a_device_that_is_not_here_is_named(folder):
    for device in ("tpu9", "cuda:99"):
        with pytest.raises(BadInput, match=f"key device, value '{device}'"):
            load_model(ModelConfig(id=str(folder)), device=device)


def test_loading_says_nothing(folder, capfd):
    load_model(ModelConfig(id=str(folder)))
    assert capfd.readouterr() == ("", "")


def transport_error(*_args: object, **_kwargs: object):
    """What the HTTP library raises when there is no network."""
    kind = next(c for c in HfHubHTTPError.__mro__ if c.__name__ == "HTTPError")
    raise kind("Name or service not known")


def test_an_unknown_name_without_the_hub_suggests_a_bundled_one(folder, monkeypatch):
    monkeypatch.setattr(inspect_module, "BUNDLED", folder.parent)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", transport_error)
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_, **__: None)
    with pytest.raises(BadInput, match=r"hub cannot be reached.*Did you mean 'model'") as caught:
        inspect_model(ModelConfig(id="modle"))
    assert caught.value.is_transient
    assert caught.value.key == "id"


def test_a_name_that_the_hub_could_not_have_is_refused_at_once():
    with pytest.raises(BadInput, match="neither a bundled model") as caught:
        inspect_model(ModelConfig(id="no such name"))
    assert not caught.value.is_transient


def test_without_the_hub_its_cache_will_do(folder, monkeypatch):
    snapshot = folder.parent / "snapshots" / ("0123456789abcdef" + "0" * 24)
    shutil.copytree(folder, snapshot)

    def download(name, file, revision):
        assert (name, revision) == ("someone/llama", snapshot.name)
        return str(snapshot / file)

    monkeypatch.setattr("huggingface_hub.HfApi.model_info", transport_error)
    monkeypatch.setattr(
        "huggingface_hub.try_to_load_from_cache", lambda *_, **__: str(snapshot / "config.json")
    )
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    info = inspect_model(ModelConfig(id="someone/llama"))
    assert (info.path, info.num_layers, info.id) == (None, 3, "someone/llama")


def test_asking_about_a_model_does_not_import_torch(folder):
    program = f"""
import sys
import sae_lib.models.sites, sae_lib.models.fingerprint
from sae_lib.models.config import ModelConfig
from sae_lib.models.inspect import inspect_model
cfg = ModelConfig(id={str(folder)!r})
assert sae_lib.models.sites.sites_of(inspect_model(cfg))
assert sae_lib.models.fingerprint.fingerprint(cfg)
assert "torch" not in sys.modules and "transformers" not in sys.modules
"""
    root = Path(inspect_module.__file__).parents[2]
    subprocess.run([sys.executable, "-c", program], check=True, cwd=root)


def test_every_bundled_model_can_be_inspected():
    for name in bundled_models():
        info = inspect_model(ModelConfig(id=name))
        assert isinstance(info, ModelInfo)
        assert info.path is not None
