"""Questions, replies, and what a language model that answers them is."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from sae_lib.config import Config
from sae_lib.llm.account import Account, note


class Message(NamedTuple):
    """One turn of a chat."""

    role: str
    """system, user or assistant."""

    content: str


class Question(NamedTuple):
    """All that is said before a reply; equal questions have equal replies."""

    messages: tuple[Message, ...]
    max_tokens: int | None = None
    """Longest reply; None: what the model's settings say."""

    @classmethod
    def of(cls, system: str, user: str, max_tokens: int | None = None) -> "Question":
        """A question with instructions."""
        return cls((Message("system", system), Message("user", user)), max_tokens)

    @property
    def chat(self) -> list[dict[str, str]]:
        """The messages as endpoints and templates want them."""
        return [message._asdict() for message in self.messages]

    @property
    def plain(self) -> str:
        """The messages for a model that knows no chat."""
        return "\n\n".join(message.content for message in self.messages) + "\nAnswer:"


class Reply(NamedTuple):
    """What a model said, or why it said nothing that counts."""

    text: str | None
    reason: str | None = None
    """Why there is no text: refused, cut off, empty, malformed, ..."""

    partial: str | None = None
    """What there is of a reply that was cut off or refused."""


class ChatModel(ABC):
    """Answers questions, many at a time; ``account`` says what that took."""

    name: str
    """What the model is called in the ledger."""

    account: Account
    folder: Path | None = None
    """Where replies and the ledger are kept."""

    @abstractmethod
    def ask(self, questions: Sequence[Question]) -> list[Reply]:
        """One reply per question, in order; equal questions are asked once.

        A question that cannot be answered has a reply without text. Where the model itself fails,
        an error is raised, and what was answered before it is kept.
        """

    def note(self) -> None:
        """Write down what came to the account, where replies are kept."""
        if self.folder is not None:
            note(self.folder, self.name, self.account)


class ChatConfig(Config):
    """Which language model is asked."""

    kind: str
    """Name in experiment files."""

    def open(self, *, device: str = "cpu", relative_to: Path | None = None) -> ChatModel:
        """The model, ready to be asked."""
        raise TypeError(f"{type(self).__name__} opens nothing")
