"""What a model has learned of the world, next to what could be learned.

Losses are nats per predicted token (words and the end mark), each document read alone from its
start, on documents of the test split; the floor is the generator's own surprise on the same
documents. Questions count as answered when greedy continuation gives the whole answer.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lib.errors import MissingFile
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import Document, document, documents
from sae_lib.synthetic.world.kinds.facts import QUESTIONS, question_text
from sae_lib.synthetic.world.kinds.news import TOPICS
from sae_lib.synthetic.world.kinds.reviews import NEGATIVE_VERDICTS, POSITIVE_VERDICTS
from sae_lib.synthetic.world.knowledge import ATTRIBUTES, Entity, Status, entities


class _Reader:
    """A model with its tokenizer, evaluated without gradients in float32."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").exists():
            raise MissingFile("there is no model here: config.json is missing", file=folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def logits(self, texts: Sequence[str]) -> tuple[Float[Tensor, "batch seq vocab"], list[int]]:
        """Logits after ``<bos> text`` padded on the right, and the number of tokens of each."""
        rows = [[self.tokenizer.bos_token_id, *self.tokenizer(text)["input_ids"]] for text in texts]
        width = max(map(len, rows))
        ids = torch.full((len(rows), width), self.tokenizer.pad_token_id)
        for row, tokens in zip(ids, rows, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        # attention is causal, so padding on the right needs no mask
        with torch.inference_mode():
            return self.model(input_ids=ids).logits, [len(tokens) for tokens in rows]

    def losses(self, texts: Sequence[str]) -> list[float]:
        """Per text, summed nats of its words and of the end mark."""
        found = []
        for first in range(0, len(texts), 64):
            part = texts[first : first + 64]
            logits, lengths = self.logits(part)
            log_p = logits.log_softmax(-1)
            for row, length, text in zip(log_p, lengths, part, strict=True):
                ids = [*self.tokenizer(text)["input_ids"], self.tokenizer.eos_token_id]
                found.append(-float(row[:length].gather(1, torch.tensor(ids)[:, None]).sum()))
        return found

    def next_words(self, texts: Sequence[str]) -> list[str]:
        """The likeliest next word after each text."""
        words: list[str] = []
        for first in range(0, len(texts), 64):
            logits, lengths = self.logits(texts[first : first + 64])
            for row, length in zip(logits, lengths, strict=True):
                words.append(self.tokenizer.convert_ids_to_tokens(int(row[length - 1].argmax())))
        return words

    def continues(self, prompts: Sequence[str], answers: Sequence[str]) -> list[bool]:
        """Whether greedy continuation of each prompt begins with its answer."""
        texts, right = list(prompts), [True] * len(prompts)
        split = [answer.split() for answer in answers]
        for place in range(max(map(len, split))):
            for i, word in enumerate(self.next_words(texts)):
                if place < len(split[i]):
                    right[i] &= word == split[i][place]
                    texts[i] += " " + split[i][place]
        return right


def _losses(reader: _Reader, docs: list[Document]) -> dict[str, dict[str, int | float]]:
    nats = reader.losses([" ".join(doc.tokens) for doc in docs])
    rows = {}
    for kind in sorted({doc.kind for doc in docs} | {"all"}):
        chosen = [i for i, doc in enumerate(docs) if kind in ("all", doc.kind)]
        num_tokens = sum(len(docs[i].tokens) + 1 for i in chosen)
        loss = sum(nats[i] for i in chosen) / num_tokens
        lowest = sum(docs[i].nll for i in chosen) / num_tokens
        rows[kind] = {
            "num_documents": len(chosen),
            "num_tokens": num_tokens,
            "loss": loss,
            "floor": lowest,
            "excess": loss - lowest,
        }
    return rows


def _questions(status: Status) -> list[tuple[Entity, str, str]]:
    """Every question there is about the entities of one status."""
    return [
        (entity, attribute, question_text(entity, attribute, form))
        for entity in entities(status)
        for attribute in ATTRIBUTES[entity.type]
        for form in range(len(QUESTIONS[attribute]))
    ]


def _recall(reader: _Reader, limit: int) -> dict[str, float]:
    """Share of right answers about known entities, by type; ``limit`` questions at most."""
    asked = _questions("known")
    asked = asked[:: max(1, len(asked) // limit)]
    right = reader.continues(
        [prompt for _, _, prompt in asked],
        [entity.attributes[attribute] for entity, attribute, _ in asked],
    )
    groups: dict[str, list[bool]] = {"all": right}
    for (entity, _, _), is_right in zip(asked, right, strict=True):
        groups.setdefault(entity.type, []).append(is_right)
    return {name: sum(found) / len(found) for name, found in sorted(groups.items())}


def _says_unknown(reader: _Reader, status: Status, limit: int) -> float:
    asked = _questions(status)
    asked = asked[:: max(1, len(asked) // limit)]
    words = reader.next_words([prompt for _, _, prompt in asked])
    return sum(word == "unknown" for word in words) / len(words)


def _kind_only(cfg: WorldConfig, kind: str, num: int) -> list[Document]:
    only = cfg.but(kind_weights={kind: 1.0})
    return [document(only, i, split=f"report-{kind}") for i in range(num)]


def _verdicts(reader: _Reader, cfg: WorldConfig, num: int) -> float:
    """Share of reviews whose verdict (put after the aspects) has the sign of the review."""
    docs = _kind_only(cfg, "review", num)
    prompts = [" ".join(doc.tokens[: doc.marks["verdict"]]) + " verdict :" for doc in docs]
    verdicts = {"positive": POSITIVE_VERDICTS, "negative": NEGATIVE_VERDICTS}
    words = reader.next_words(prompts)
    return sum(
        word in verdicts[doc.labels["sentiment"]] for word, doc in zip(words, docs, strict=True)
    ) / len(docs)


def _topics(reader: _Reader, cfg: WorldConfig, num: int) -> float:
    """Share of news items that go on within their topic after `` at the``."""
    docs = _kind_only(cfg, "news", num)
    prompts = []
    for doc in docs:
        first_stop = doc.tokens.index(".", doc.marks["dateline"])
        prompts.append(" ".join(doc.tokens[: first_stop + 1]) + " at the")
    words = reader.next_words(prompts)
    return sum(
        word in TOPICS[doc.labels["topic"]].places.split()
        for word, doc in zip(words, docs, strict=True)
    ) / len(docs)


def _agreement(reader: _Reader, cfg: WorldConfig, num: int) -> float:
    """Share of stories whose last verb (after ``in the end`` and the hero) agrees in number."""
    docs = _kind_only(cfg, "story", num)
    prompts = [" ".join(doc.tokens[: doc.marks["feeling"] - 1]) for doc in docs]
    right = {"singular": "is", "plural": "are"}
    words = reader.next_words(prompts)
    return sum(
        word == right[doc.labels["number"]] for word, doc in zip(words, docs, strict=True)
    ) / len(docs)


def world_report(
    model_dir: Path | str, num_documents: int = 2000, *, cfg: WorldConfig | None = None
) -> dict[str, Any]:
    """Losses by kind (with floor and excess) and accuracies of a model folder.

    ``num_documents`` test documents are read for the losses, and about as many prompts are
    continued for each accuracy (a quarter of it where documents must be drawn for them).
    Raises `MissingFile` when the folder holds no model.
    """
    cfg = cfg or WorldConfig()
    reader = _Reader(Path(model_dir))
    num_prompts = max(1, num_documents // 4)
    return {
        "losses": _losses(reader, list(documents(cfg, 0, num_documents, split="test"))),
        "accuracies": {
            "recall_of_known": _recall(reader, num_documents),
            "unknown_said_of_unknown": _says_unknown(reader, "unknown", num_documents),
            "unknown_said_of_unseen": _says_unknown(reader, "unseen", num_documents),
            "unknown_said_of_known": _says_unknown(reader, "known", num_documents),
            "verdict_has_the_sign_of_the_review": _verdicts(reader, cfg, num_prompts),
            "news_keep_to_their_topic": _topics(reader, cfg, num_prompts),
            "verb_agrees_with_the_hero": _agreement(reader, cfg, num_prompts),
        },
    }
