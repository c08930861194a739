"""A chat model of Hugging Face on this machine, behind the same interface as an endpoint.

It is asked one question after the other, greedily, so replies depend on nothing else. They are kept
on disk under the fingerprint of the model's weights.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from pydantic import Field

from sae_lib.errors import NotApplicable
from sae_lib.llm.account import Account
from sae_lib.llm.base import ChatConfig, ChatModel, Question, Reply
from sae_lib.llm.cache import ReplyCache, default_folder, key_of
from sae_lib.models.config import ModelConfig
from sae_lib.models.fingerprint import fingerprint
from sae_lib.models.language_model import LanguageModel, load_model


class LocalChatConfig(ChatConfig):
    """A language model on this machine."""

    kind: Literal["local"] = "local"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    model: ModelConfig
    """The model that is asked."""

    max_reply_tokens: int = Field(default=400, gt=0)
    """Longest reply."""

    keep_replies: bool = True
    """Whether replies are kept on disk."""

    def open(self, *, device: str = "cpu", relative_to: Path | None = None) -> "LocalChat":
        model = load_model(self.model, device=device, relative_to=relative_to)
        name = f"{self.model.id}@{fingerprint(self.model, relative_to)}"
        folder = default_folder() if self.keep_replies else None
        return LocalChat(model, name, max_reply_tokens=self.max_reply_tokens, folder=folder)


class LocalChat(ChatModel):
    """Asks ``model``; ``name`` is what replies are kept under."""

    def __init__(
        self, model: LanguageModel, name: str, *, max_reply_tokens: int, folder: Path | None = None
    ) -> None:
        if not model.has_lm_head:
            raise NotApplicable("a local chat", f"{model.info.id} predicts no next token.")
        self.model, self.name, self.max_reply_tokens = model, name, max_reply_tokens
        self.folder, self.cache = folder, ReplyCache(folder)
        self.account = Account()

    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        replies = {question: self._reply(question) for question in dict.fromkeys(questions)}
        return [replies[question] for question in questions]

    def _reply(self, question: Question) -> Reply:
        num = question.max_tokens or self.max_reply_tokens
        asked = {"path": "local", "body": {"model": self.name, "messages": question.chat, "n": num}}
        key = key_of(asked)
        with self.cache.claimed(key):
            held = self.cache.find(key)
            if held is None:
                self.account.send()
                ids = chat_ids(self.model, question)
                said = say(self.model, ids, num)
                self.account.receive(len(ids), said.num_tokens)
                held = {"text": said.text, "is_cut": said.is_cut}
                self.cache.keep(key, asked, held)
            else:
                self.account.find()
        if held["is_cut"]:
            return Reply(None, "cut off: the reply is longer than max_reply_tokens", held["text"])
        return Reply(held["text"]) if held["text"].strip() else Reply(None, "empty: nothing said")


def chat_ids(model: LanguageModel, question: Question) -> list[int]:
    """A question in the tokenizer's chat form, where it has one, up to the reply."""
    tokenizer = model.tokenizer
    if getattr(tokenizer, "chat_template", None):
        whole = tokenizer.apply_chat_template(
            question.chat, tokenize=False, add_generation_prompt=True
        )
        return with_bos(model, tokenizer(whole, add_special_tokens=False)["input_ids"])
    return with_bos(model, tokenizer(question.plain, add_special_tokens=False)["input_ids"])


def with_bos(model: LanguageModel, ids: list[int]) -> list[int]:
    """``ids`` behind the tokenizer's first token, once."""
    bos = model.tokenizer.bos_token_id
    return ids if bos is None or ids[:1] == [bos] else [bos, *ids]


class Said(NamedTuple):
    """What a model says next."""

    text: str
    is_cut: bool
    """Whether it had not come to an end."""

    num_tokens: int


def say(model: LanguageModel, ids: list[int], max_new_tokens: int) -> Said:
    """What the model says next, greedily.

    A prompt that is too long loses its front.
    """
    room = model.info.max_context
    ids = ids[-(room - 1) :]
    most = min(max_new_tokens, room - len(ids))
    whole = model.generate(torch.tensor([ids]), max_new_tokens=most, greedy=True)
    new = whole[0, len(ids) :]
    text = model.tokenizer.decode(new, skip_special_tokens=True)
    return Said(text, len(new) == most and int(new[-1]) not in model.special_ids, len(new))
