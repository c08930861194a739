"""The models that come with the library learned their languages."""

import json
import time

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lib.models.config import ModelConfig
from sae_lib.models.inspect import BUNDLED, inspect_model
from sae_lib.synthetic.formal.language import formal_strings
from sae_lib.synthetic.formal.languages import LANGUAGES, named_language, vocabulary
from sae_lib.synthetic.formal.report import formal_report
from sae_lib.synthetic.formal.train import FormalTrainConfig

pytestmark = [pytest.mark.model, pytest.mark.parametrize("name", LANGUAGES)]


def test_it_loads_quickly_and_is_small(name):
    began = time.perf_counter()
    AutoModelForCausalLM.from_pretrained(BUNDLED / name)
    AutoTokenizer.from_pretrained(BUNDLED / name)
    assert time.perf_counter() - began < 3
    assert (BUNDLED / name / "model.safetensors").stat().st_size < 1.71e6


def test_it_is_a_model_like_any_other(name):
    info = inspect_model(ModelConfig(id=name))
    assert (info.family, info.num_layers, info.d_model) == ("gpt2", 2, 128)
    assert info.is_causal
    assert info.has_lm_head
    assert info.max_context >= named_language(name).max_tokens + 2


def test_its_tokenizer_has_the_words_of_its_language(name):
    language = named_language(name)
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / name)
    assert tokenizer.get_vocab() == vocabulary(language)
    for one in formal_strings(language, 0, 50):
        ids = tokenizer(" ".join(one.tokens))["input_ids"]
        assert tokenizer.convert_ids_to_tokens(ids) == list(one.tokens)


def test_its_record_is_of_the_default_training(name):
    record = json.loads((BUNDLED / name / "training.json").read_text())
    expected = FormalTrainConfig(language=named_language(name))
    assert FormalTrainConfig.model_validate(record["config"]) == expected
    assert record["report"]["excess"] < 0.05


def test_it_is_near_the_floor(name):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    report = formal_report(name, BUNDLED / name, 200)
    torch.set_num_threads(threads)
    assert -0.02 < report["excess"] < 0.1
    assert report["valid_samples"] > 0.8
    assert report["goes_on"] > 0.9
    if name == "dyck":
        assert report["right_bracket"] > 0.98
