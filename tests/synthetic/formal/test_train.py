import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lib.errors import BadInput, MissingFile, UnknownName
from sae_lib.synthetic.formal.dyck import Dyck
from sae_lib.synthetic.formal.language import formal_strings, surprises
from sae_lib.synthetic.formal.languages import vocabulary
from sae_lib.synthetic.formal.report import formal_report
from sae_lib.synthetic.formal.train import (
    FormalTrainConfig,
    _Contexts,
    new_model,
    train_formal,
)
from sae_lib.synthetic.lm_training import learning_rate
from sae_lib.synthetic.word_level import BOS, EOS

TINY = FormalTrainConfig(
    language=Dyck(max_tokens=30), layers=1, hidden=16, heads=2, context=40, batch_contexts=4,
    num_tokens=30 * 160, warmup_steps=5, lr=1e-2,
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
    train_formal(
        folder / "model", TINY, work_dir=folder / "work", report_strings=0,
        on_progress=steps.append,
    )  # fmt: skip
    assert [s.step for s in steps] == list(range(1, 31))
    return folder


def test_a_stopped_training_goes_on_as_if_nothing_had_happened(trained, tmp_path):
    for stop in (13, 14, None):
        train_formal(
            tmp_path / "model", TINY, work_dir=tmp_path / "work", report_strings=0, stop_after=stop
        )
    assert losses(tmp_path / "work") == losses(trained / "work")
    whole = load_file(trained / "model" / "model.safetensors")
    parts = load_file(tmp_path / "model" / "model.safetensors")
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_a_training_that_broke_off_after_a_checkpoint_repeats_what_was_lost(trained, tmp_path):
    def power_cut(step):
        if step.step == 17:
            raise KeyboardInterrupt

    options = {"work_dir": tmp_path / "work", "report_strings": 0, "checkpoint_every": 5}
    with pytest.raises(KeyboardInterrupt):
        train_formal(tmp_path / "model", TINY, on_progress=power_cut, **options)
    assert len(losses(tmp_path / "work")) == 17
    train_formal(tmp_path / "model", TINY, **options)
    assert losses(tmp_path / "work") == losses(trained / "work")


def test_the_result_is_a_hugging_face_folder_that_learned_something(trained):
    model = AutoModelForCausalLM.from_pretrained(trained / "model")
    tokenizer = AutoTokenizer.from_pretrained(trained / "model")
    assert model.config.vocab_size == len(tokenizer) == len(vocabulary(TINY.language))
    assert model.lm_head.weight is model.transformer.wte.weight
    record = json.loads((trained / "model" / "training.json").read_text())
    assert FormalTrainConfig.model_validate(record["config"]) == TINY
    found = losses(trained / "work")
    assert sum(found[-5:]) < sum(found[:5])
    assert not list(trained.glob(".model.partial"))


def test_the_report_says_what_the_model_says(trained):
    report = formal_report(TINY.language, trained / "model", 70)
    model = AutoModelForCausalLM.from_pretrained(trained / "model").eval()
    strings = [one.tokens for one in formal_strings(TINY.language, 0, 70, split="test")]
    ids = vocabulary(TINY.language)
    nats, closed, right = 0.0, 0, 0
    for words in strings:
        row = torch.tensor([BOS, *(ids[word] for word in words), EOS])
        with torch.no_grad():
            log_p = model(row[None, :-1]).logits[0].log_softmax(-1)
        nats -= sum(float(log_p[i, id]) for i, id in enumerate(row[1:]))
        for i, word in enumerate(words):
            if word in (")", "]"):
                closed += 1
                other = {")": "]", "]": ")"}[word]
                right += bool(log_p[i, ids[word]] > log_p[i, ids[other]])
    num_tokens = sum(len(words) + 1 for words in strings)
    assert report["num_tokens"] == num_tokens
    assert report["loss"] == pytest.approx(nats / num_tokens, rel=1e-4)
    assert report["floor"] == pytest.approx(sum(surprises(TINY.language, strings)) / num_tokens)
    assert report["excess"] == pytest.approx(report["loss"] - report["floor"])
    assert report["right_bracket"] == pytest.approx(right / closed)
    assert 0 <= report["valid_samples"] < 0.7  # thirty steps are not enough to close brackets


def test_contexts_are_whole_strings_but_for_the_last():
    contexts = _Contexts(TINY)
    strings = list(formal_strings(TINY.language, 0, 100))
    ids = vocabulary(TINY.language)
    used = 0
    for row in contexts.batch(0).tolist():
        expected: list[int] = []
        while len(expected) < TINY.context:
            expected += [BOS, *(ids[word] for word in strings[used].tokens), EOS]
            used += 1
        assert row == expected[: TINY.context]
    assert contexts.position == {"string": used}


def test_the_loss_leaves_out_the_beginnings_of_strings(tmp_path):
    cfg = TINY.but(num_tokens=160, bf16=False)
    train_formal(tmp_path / "model", cfg, work_dir=tmp_path / "work", report_strings=0)
    ids = _Contexts(cfg).batch(0)
    with torch.no_grad():
        log_p = new_model(cfg)(input_ids=ids).logits.log_softmax(-1)
    guessed = [
        float(log_p[row, place, ids[row, place + 1]])
        for row in range(len(ids))
        for place in range(cfg.context - 1)
        if ids[row, place + 1] != BOS
    ]
    assert losses(tmp_path / "work") == [pytest.approx(-sum(guessed) / len(guessed), rel=1e-5)]


def test_the_seed_decides_the_weights_and_nothing_else_does(tmp_path):
    short = TINY.but(num_tokens=160)
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        torch.manual_seed(ord(name))  # must not matter
        train_formal(
            tmp_path / name, short.but(seed=seed), work_dir=tmp_path / f"{name}-work",
            report_strings=0,
        )  # fmt: skip
    weights = {name: load_file(tmp_path / name / "model.safetensors") for name in "abc"}
    key = "transformer.wte.weight"
    assert torch.equal(weights["a"][key], weights["b"][key])
    assert not torch.equal(weights["a"][key], weights["c"][key])


def test_the_learning_rate_rises_then_falls():
    cfg = FormalTrainConfig()
    found = [learning_rate(cfg, step) for step in range(cfg.num_steps)]
    assert found.index(max(found)) in (cfg.warmup_steps - 1, cfg.warmup_steps)
    assert max(found) == pytest.approx(cfg.lr)
    assert found[-1] == pytest.approx(cfg.lr / 100, rel=0.01)


def test_mistakes_are_named(trained, tmp_path):
    with pytest.raises(BadInput, match="other settings"):
        train_formal(trained / "model", TINY.but(lr=1e-3), work_dir=trained / "work")
    with pytest.raises(BadInput, match="fit into a context"):
        train_formal(tmp_path / "model", TINY.but(context=31), work_dir=tmp_path / "work")
    with pytest.raises(MissingFile, match="no model here"):
        formal_report("dyck", tmp_path)
    with pytest.raises(UnknownName, match="formal language"):
        formal_report("latin", trained / "model")
