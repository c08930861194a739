"""The shipped models have learned what they are said to have learned."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import sae_lib
from sae_lib.errors import BadInput, MissingFile, UnknownName
from sae_lib.models.config import ModelConfig
from sae_lib.models.inspect import inspect_model, resolve_model
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.recipes import chat_world, recipe, world_of
from sae_lib.synthetic.world.report import world_report
from sae_lib.synthetic.world.task import Prompt
from sae_lib.synthetic.world.tokenizer import vocabulary
from sae_lib.synthetic.world.train import TrainConfig

BUNDLED = Path(sae_lib.__file__).parent / "models" / "bundled"
MODELS = {
    "world": ModelConfig(id="world"),
    "early": ModelConfig(id="world", revision="early"),
    "world-chat": ModelConfig(id="world-chat"),
}
MISSED = {"answers-without-opinion", "decision-policy-excess", "chat-answers-without-opinion"}
"""Goals that the shipped models do not reach; docs/world.md says by how much."""


@pytest.fixture(params=MODELS)
def folder(request) -> Path:
    found = resolve_model(MODELS[request.param])
    assert found is not None
    return found


def test_the_shipped_files_are_small():
    sizes = {file: file.stat().st_size for file in BUNDLED.rglob("*") if file.is_file()}
    assert max(sizes.values()) < 16 * 2**20
    assert sum(sizes.values()) < 48 * 2**20


def test_models_belong_to_this_world_and_say_how_they_were_made(folder):
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == vocabulary()
    record = json.loads((folder / "training.json").read_text())
    TrainConfig.model_validate(record["config"])
    assert record["finished"] == (folder.name != "early")
    assert record["curve"][-1]["step"] == record["step"]
    assert inspect_model(ModelConfig(id=str(folder))).max_context == 256


def test_models_follow_their_recipes(folder):
    name = "world" if folder.name == "early" else folder.name
    record = json.loads((folder / "training.json").read_text())
    planned = recipe(name)
    assert TrainConfig.model_validate(record["config"]) == planned.config
    assert world_of(folder) == planned.config.world
    if folder.name == "early":
        assert record["step"] == planned.revisions["early"]
    with pytest.raises(UnknownName, match="Did you mean 'world'"):
        recipe("wolrd")


def test_the_chat_model_grew_out_of_the_world_and_the_early_one_is_another():
    weights = {
        name: load_file(path / "model.safetensors")["model.embed_tokens.weight"]
        for name, cfg in MODELS.items()
        if (path := resolve_model(cfg)) is not None
    }
    ids = vocabulary()
    word = ids["fox"]
    cosine = torch.nn.functional.cosine_similarity
    assert cosine(weights["world"][word], weights["world-chat"][word], dim=0) > 0.95
    assert cosine(weights["world"][word], weights["early"][word], dim=0) < 0.9


@pytest.mark.model
def test_a_chat_template_writes_what_documents_of_a_chat_say():
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / "world-chat")
    said = [
        {"role": "user", "content": "what is this ?"},
        {"role": "assistant", "content": "sure ."},
    ]
    text = tokenizer.apply_chat_template(said, tokenize=False)
    assert text == "<user> what is this ? <assistant> sure ."
    asked = tokenizer.apply_chat_template(said[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<user> what is this ? <assistant>"


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("name", ["world", "world-chat"])
def test_the_shipped_models_know_their_world(name):
    folder = BUNDLED / name
    world = world_of(folder)
    rows = world_report(folder, 150, cfg=world, chat=world.chat)
    found = {(row.what, row.group): row for row in rows}
    assert found["excess", "all"].value < 0.10
    kinds = {row.group: row.value for row in rows if row.what == "excess"}
    assert len(kinds) == 1 + sum(weight > 0 for weight in world.kind_weights.values())
    assert max(kinds.values()) < 0.25
    for row in rows:
        if row.goal is None or row.what in {"excess", *MISSED}:
            continue
        slack = 0.07 if row.unit == "share" else 0.0  # of 30 prompts one may be wrong
        assert row._replace(value=row.value + slack).reached, row
    if name == "world":
        assert 0.5 < found["says-unknown-of-unseen", "all"].value < 0.98, "refusals and inventions"
        assert found["says-unknown-of-known", "all"].value < 0.05


@pytest.mark.model
@pytest.mark.slow
def test_the_report_says_what_the_model_says(tmp_path):
    """Against the model called by hand, on the answers of one prompt."""
    from sae_lib.synthetic.world.report import Reader

    reader = Reader(BUNDLED / "world")
    model = AutoModelForCausalLM.from_pretrained(BUNDLED / "world").eval()
    text = "spell hound :"
    ids = [reader.tokenizer.bos_token_id, *reader.encode(text)]
    with torch.no_grad():
        made = model.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False)
    said = reader.tokenizer.decode(made[0, len(ids) :])
    assert said == "H O U N D ."
    prompts = [Prompt(text, (answer,)) for answer in (said, "H O U N D", "H O U N T", "H", "K")]
    prompts.append(Prompt(text, ("K", "H O U", "X")))
    assert reader.begins_with_an_answer(prompts) == [True, True, False, True, False, True]
    with torch.no_grad():
        whole = torch.tensor([[*ids, *reader.encode(said), reader.tokenizer.eos_token_id]])
        nats = float(model(whole, labels=whole).loss) * (whole.shape[1] - 1)
    assert reader.losses([f"{text} {said}"])[0] == pytest.approx(nats, rel=1e-4)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(MissingFile, match=r"config\.json is missing"):
        world_report(tmp_path, 1)


def test_a_training_record_of_another_world_is_refused(tmp_path):
    assert world_of(tmp_path) == WorldConfig()
    (tmp_path / "training.json").write_text(json.dumps({"config": {"world": {"seeed": 1}}}))
    with pytest.raises(BadInput, match="train it again"):
        world_of(tmp_path)


def test_the_chat_world_refuses_and_agrees():
    world = chat_world()
    assert world.chat
    assert world.refusal_share > 0.95
    exchanges = sum(world.kind_weights[kind] for kind in ("instruction", "request", "opinion"))
    assert exchanges == pytest.approx(0.6)
    assert sum(world.kind_weights.values()) == pytest.approx(1.0)
