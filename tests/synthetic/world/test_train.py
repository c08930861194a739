import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lib.errors import BadInput, MissingFile
from sae_lib.synthetic.lm_training import learning_rate
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.train import TrainConfig, _Contexts, train_world

TINY = TrainConfig(
    world=WorldConfig(kind_weights={"news": 1, "story": 1}), layers=1, hidden=16, heads=2,
    intermediate=16, context=16,
    batch_contexts=4, num_tokens=30 * 64, warmup_steps=5, compile=False, long_every=3,
)  # fmt: skip


def losses(folder) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # such small products are slower on more
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    steps = []
    train_world(
        folder / "model", TINY, work_dir=folder / "work", report_documents=0,
        on_progress=steps.append,
    )  # fmt: skip
    assert [s.step for s in steps] == list(range(1, 31))
    return folder


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(trained, tmp_path):
    for stop in (13, 14, None):
        train_world(
            tmp_path / "model", TINY, work_dir=tmp_path / "work", report_documents=0,
            stop_after=stop,
        )  # fmt: skip
    assert losses(tmp_path / "work") == losses(trained / "work")
    whole = load_file(trained / "model" / "model.safetensors")
    parts = load_file(tmp_path / "model" / "model.safetensors")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_training_that_broke_off_after_a_checkpoint_repeats_what_was_lost(trained, tmp_path):
    def power_cut(step):
        if step.step == 17:
            raise KeyboardInterrupt

    options = {"work_dir": tmp_path / "work", "report_documents": 0, "checkpoint_every": 5}
    with pytest.raises(KeyboardInterrupt):
        train_world(tmp_path / "model", TINY, on_progress=power_cut, **options)
    assert len(losses(tmp_path / "work")) == 17
    train_world(tmp_path / "model", TINY, **options)
    assert losses(tmp_path / "work") == losses(trained / "work")


def test_the_result_is_a_hugging_face_folder_that_learned_something(trained):
    model = AutoModelForCausalLM.from_pretrained(trained / "model")
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    assert model.config.vocab_size == len(tokenizer)
    record = json.loads((trained / "model" / "training.json").read_text())
    assert record["finished"] is True
    assert record["config"] == TINY.model_dump(mode="json")
    assert [point["step"] for point in record["curve"]] == list(range(1, 31))
    assert model.config.max_position_embeddings == 32
    found = losses(trained / "work")
    assert sum(found[-5:]) < sum(found[:5])
    assert not list(trained.glob(".model.partial"))


def test_a_checkpoint_of_other_settings_is_refused(trained):
    with pytest.raises(BadInput, match="other settings"):
        train_world(trained / "model", TINY.but(lr=1e-3), work_dir=trained / "work")


def test_the_seed_decides_the_weights_and_the_global_generator_stays(tmp_path):
    short = TINY.but(num_tokens=64)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        train_world(
            tmp_path / name, short.but(seed=seed), work_dir=tmp_path / f"{name}-work",
            report_documents=0,
        )  # fmt: skip
        torch.manual_seed(len(name))
    a, b, c = (load_file(tmp_path / name / "model.safetensors") for name in "abc")
    assert all(torch.equal(a[name], b[name]) for name in a)
    assert not torch.equal(a["lm_head.weight"], c["lm_head.weight"])


def test_contexts_can_be_entered_anywhere():
    contexts = _Contexts(TINY)
    for step in range(5):
        contexts.batch(step)
    later = _Contexts(TINY, **contexts.position)
    for step in range(5, 9):
        assert torch.equal(contexts.batch(step), later.batch(step))


def test_every_third_batch_has_contexts_of_twice_the_length_and_as_many_tokens():
    contexts = _Contexts(TINY)
    shapes = [tuple(contexts.batch(step).shape) for step in range(6)]
    assert shapes == [(4, 16), (4, 16), (2, 32)] * 2


def test_the_learning_rate_rises_and_falls_to_a_hundredth():
    rates = [learning_rate(TINY, step) for step in range(30)]
    assert rates[0] == pytest.approx(TINY.lr / 5)
    assert max(rates) == rates[4] == rates[5] == pytest.approx(TINY.lr)
    assert rates[5:] == sorted(rates[5:], reverse=True)
    assert learning_rate(TINY, 30) == pytest.approx(TINY.lr / 100)


def test_an_unfinished_model_is_published_as_a_revision(trained, tmp_path):
    train_world(
        tmp_path / "model", TINY, work_dir=tmp_path / "work", report_documents=0,
        revisions={"early": 10},
    )  # fmt: skip
    early = AutoModelForCausalLM.from_pretrained(tmp_path / "model" / "revisions" / "early")
    record = json.loads((tmp_path / "model/revisions/early/training.json").read_text())
    assert (record["step"], record["finished"], len(record["curve"])) == (10, False, 10)
    last = load_file(tmp_path / "model" / "model.safetensors")
    assert not torch.equal(early.lm_head.weight, last["lm_head.weight"])
    # and the training itself is not disturbed by it
    assert torch.equal(
        load_file(trained / "model" / "model.safetensors")["lm_head.weight"], last["lm_head.weight"]
    )


def test_training_goes_on_from_another_model(trained, tmp_path):
    cfg = TINY.but(start=str(trained / "model"), num_tokens=2 * 64, lr=1e-9, warmup_steps=1)
    train_world(tmp_path / "chat", cfg, work_dir=tmp_path / "work", report_documents=0)
    begun = load_file(trained / "model" / "model.safetensors")
    gone_on = load_file(tmp_path / "chat" / "model.safetensors")
    for name in begun:
        assert torch.allclose(begun[name], gone_on[name], atol=1e-6)
    with pytest.raises(MissingFile, match="no model to begin with"):
        train_world(
            tmp_path / "x", cfg.but(start=str(tmp_path / "nothing")), work_dir=tmp_path / "w"
        )
