"""A model on this machine behind the interface of an endpoint."""

import pytest

from sae_lib.llm import LocalChat, LocalChatConfig, Question
from sae_lib.llm.local import chat_ids, say
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model

ASKED = Question.of("You are brief.", "the dog saw a bird .", max_tokens=6)


@pytest.fixture(scope="module")
def model():
    return load_model(ModelConfig(id="world"))


def test_replies_are_greedy_kept_and_counted(model, tmp_path):
    chat = LocalChat(model, "world@1", max_reply_tokens=6, folder=tmp_path)
    first, other, same = chat.ask([ASKED, ASKED._replace(max_tokens=2), ASKED])
    ids = chat_ids(model, ASKED)
    told = say(model, ids, 6)
    assert first == same
    assert (first.text or first.partial) == told.text
    assert other.reason is None or other.reason.startswith("cut off")
    assert (chat.account.sent, chat.account.prompt_tokens) == (2, 2 * len(ids))
    again = LocalChat(model, "world@1", max_reply_tokens=6, folder=tmp_path)
    assert again.ask([ASKED]) == [first]
    assert (again.account.sent, again.account.from_disk) == (0, 1)
    # other weights are another model
    changed = LocalChat(model, "world@2", max_reply_tokens=6, folder=tmp_path)
    changed.ask([ASKED])
    assert changed.account.sent == 1


def test_a_prompt_that_is_too_long_loses_its_front(model):
    ids = chat_ids(model, Question.of("", "the dog saw a bird . " * 500))
    assert len(ids) > model.info.max_context
    assert say(model, ids, 5).num_tokens == 1  # the room that is left


def test_the_settings_open_a_model(monkeypatch, tmp_path):
    monkeypatch.setenv("SAE_LLM_CACHE", str(tmp_path))
    cfg = LocalChatConfig(model=ModelConfig(id="world"), max_reply_tokens=2)
    chat = cfg.open()
    chat.ask([ASKED])
    assert chat.name.startswith("world@")
    assert len(list(tmp_path.rglob("*.json"))) == 1
