"""Explanations by a language model are scored like all others, of the latents that are drawn."""

import json
from zlib import crc32

import pytest
import torch

from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.tokens import Tokens, build_tokens
from sae_lib.errors import BadInput
from sae_lib.evaluate._scorers import SILENT
from sae_lib.evaluate.autointerp import AutointerpConfig
from sae_lib.evaluate.bench import Bench, measure_task
from sae_lib.evaluate.descriptions import DescriptionsConfig
from sae_lib.evaluate.reader import TextReader
from sae_lib.explain._asked import AskingConfig
from sae_lib.llm import Account, ChatModel, Reply
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.topk import TopKConfig
from sae_lib.synthetic.world.config import WorldConfig

SITE = "resid_pre.0"
ENTRY = {"method": "llm", "chat": {"model": "m", "api_key_env": None}, "num_strongest": 4}
DIALS = {
    "methods": (ENTRY, "max_act"), "num_latents": 6, "min_activations": 10, "train_tokens": 6000,
    "held_out_tokens": 6000,
}  # fmt: skip


class Reader(ChatModel):
    """Says the strongest tokens of the first text; refuses every third question."""

    def __init__(self):
        self.seen, self.account = [], Account()

    def ask(self, questions):
        replies = []
        for question in questions:
            self.seen.append(question)
            if crc32(question.messages[1].content.encode()) % 3 == 0:
                replies.append(Reply(None, "refused: no"))
                continue
            first = json.loads(question.messages[1].content)["texts"][0]
            words = [word for word, level in first["tokens"] if level == 10]
            replies.append(Reply(json.dumps({"explanation": "those", "keywords": words})))
        return replies


@pytest.fixture(scope="module")
def bench(tmp_path_factory):
    model = load_model(ModelConfig(id="world"))
    folder = tmp_path_factory.mktemp("tokens")
    build_tokens(
        CorpusConfig(id="world", tokens=6_000, eval_tokens=6_000, context=96),
        model.tokenizer, model.info, folder,
    )  # fmt: skip
    tokens = Tokens.open(folder)
    coder = TopKConfig(d_in=model.width(SITE), d_sae=64, k=2, aux_k=8, seed=0).build()
    with TextReader(model, SITE) as reader:
        yield Bench(
            model, SITE, {"a": coder}, reader, torch.zeros(model.width(SITE)),
            tokens.split("train"), tokens.split("eval"), WorldConfig(),
        )  # fmt: skip


@pytest.fixture
def chat(monkeypatch):
    found = Reader()
    monkeypatch.setattr(AskingConfig, "open_chat", lambda self, evidence: found)
    return found


def test_each_method_has_its_scores_and_only_drawn_latents_are_asked_about(bench, chat):
    cfg = AutointerpConfig(scorers=("detection", "simulation"), oracle=False, **DIALS)
    measured = measure_task(cfg, bench)["a"]
    own = [r for r in measured.latents if r.definition == "held_out"]
    detection = [r for r in own if r.name == "detection_balanced_accuracy"]
    assert len({r.latent for r in detection}) == 6
    assert {r.method for r in detection} == {"llm", "max_act"}
    firsts = [q for q in chat.seen if len(q.messages) == 2]
    assert len(firsts) == 6
    # what got no answer has no score, and says so
    no_answer = sum(chat.account.no_answer.values())
    silent = [r for r in detection if r.method == "llm" and r.value is None]
    assert len(silent) == no_answer
    assert {r.reason for r in silent} <= {SILENT}
    assert sum(r.value is not None for r in detection if r.method == "llm") == 6 - no_answer
    headline = next(r for r in measured.measurements if r.name == "detection_balanced_accuracy")
    assert headline.params["method"] == "llm"


def test_input_based_scores_are_of_each_method_as_well(bench, chat):
    cfg = DescriptionsConfig(num_steered=0, pool_texts=200, **DIALS)
    rows = measure_task(cfg, bench)["a"].latents
    scored = {(r.method, r.definition) for r in rows if r.name == "input_success"}
    assert {("llm", "own"), ("max_act", "own"), ("max_act", "another_latent")} <= scored


def test_a_method_stands_in_the_list_once(bench):
    cfg = AutointerpConfig(methods=(ENTRY, "max_act", ENTRY))
    with pytest.raises(BadInput, match=r"methods.*llm"):
        cfg.check(bench)
