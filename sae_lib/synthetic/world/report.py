"""What a model has learned of the world, next to what could be learned.

Losses are nats per predicted token (words and the end mark), each document read alone from its
start, on documents of the test split; the floor is the generator's own surprise on the same
documents. A prompt counts as answered when greedy continuation gives a whole accepted answer.
"""

from collections.abc import Callable, Iterator, Sequence
from math import log, sqrt
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from sae_lib.errors import MissingFile
from sae_lib.synthetic.world.config import WorldConfig
from sae_lib.synthetic.world.generate import Document, document, documents
from sae_lib.synthetic.world.kinds import bandits, decisions
from sae_lib.synthetic.world.kinds._learner import ActionPlace
from sae_lib.synthetic.world.task import ANSWERS, Prompt
from sae_lib.synthetic.world.tasks import answer_prompts

BATCH_TOKENS = 8192
"""Tokens, padding included, that the model reads at once."""


class ReportRow(NamedTuple):
    """One number about a model."""

    what: str
    """``loss``, ``floor``, ``excess``, or the name of a task."""
    group: str
    """Kind of document, or what the share is broken down by; ``all`` for the whole."""
    value: float
    stderr: float | None
    """Over documents or prompts."""
    n: int
    """Documents, prompts or choices."""
    unit: str
    goal: float | None
    """What a model that learned the world reaches; None where a number is only to be known."""
    description: str

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached: shares from it on, nats up to it."""
        if self.goal is None:
            return None
        return self.value >= self.goal if self.unit == "share" else self.value <= self.goal


class Reader:
    """A model with its tokenizer, evaluated without gradients in float32."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").exists():
            raise MissingFile("there is no model here: config.json is missing", file=folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self._ids: dict[str, int] = self.tokenizer.get_vocab()

    def encode(self, text: str) -> list[int]:
        """Ids of the words, none added. Raises KeyError for a word the model has no token for."""
        return [self._ids[word] for word in text.split()]

    def read(
        self, rows: Sequence[Sequence[int]]
    ) -> Iterator[tuple[int, Float[Tensor, "seq vocab"]]]:
        """Logits after each token of ``<bos> row``, for every row, with the row's number.

        Rows come back in the order of their lengths, so that little is read for nothing.
        """
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        while order:
            num = max(1, BATCH_TOKENS // (len(rows[order[min(len(order), 64) - 1]]) + 1))
            part, order = order[: min(num, 64)], order[min(num, 64) :]
            width = max(len(rows[i]) for i in part) + 1
            ids = torch.full((len(part), width), self.tokenizer.pad_token_id)
            ids[:, 0] = self.tokenizer.bos_token_id
            for place, i in enumerate(part):
                ids[place, 1 : len(rows[i]) + 1] = torch.tensor(rows[i], dtype=torch.long)
            # attention is causal, so padding on the right needs no mask
            with torch.inference_mode():
                logits = self.model(input_ids=ids).logits
            for place, i in enumerate(part):
                yield i, logits[place, : len(rows[i]) + 1]

    def losses(self, texts: Sequence[str]) -> list[float]:
        """Per text, summed nats of its words and of the end mark."""
        rows = [self.encode(text) for text in texts]
        found = [0.0] * len(rows)
        for i, logits in self.read(rows):
            ids = torch.tensor([*rows[i], self.tokenizer.eos_token_id])
            found[i] = -float(logits.log_softmax(-1).gather(1, ids[:, None]).sum())
        return found

    def begins_with_an_answer(self, prompts: Sequence[Prompt]) -> list[bool]:
        """Whether greedy continuation of each prompt begins with one of its answers."""
        rows: list[list[int]] = []
        owners: list[tuple[int, int, frozenset[int]]] = []  # prompt, words before, first words
        for number, prompt in enumerate(prompts):
            told = self.encode(prompt.text)
            answers = [self.encode(answer) for answer in prompt.answers]
            short = frozenset(answer[0] for answer in answers if len(answer) == 1)
            if short:
                rows.append(told)
                owners.append((number, len(told), short))
            for answer in (answer for answer in answers if len(answer) > 1):
                rows.append(told + answer)
                owners.append((number, len(told), frozenset()))
        right = [False] * len(prompts)
        for i, logits in self.read(rows):
            number, before, short = owners[i]
            guesses = logits[before:].argmax(-1).tolist()
            # teacher forcing equals greedy continuation as long as every guess is right
            right[number] |= guesses[0] in short if short else guesses[:-1] == rows[i][before:]
        return right


def _mean(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and its standard error."""
    n = len(values)
    mean = sum(values) / n
    if n < 2:
        return mean, None
    return mean, sqrt(sum((v - mean) ** 2 for v in values) / (n - 1) / n)


def _ratio(over: Sequence[float], under: Sequence[int]) -> tuple[float, float | None]:
    """Ratio of sums and its standard error over pairs, by linearisation."""
    ratio = sum(over) / sum(under)
    if len(over) < 2:
        return ratio, None
    _, error = _mean([o - ratio * u for o, u in zip(over, under, strict=True)])
    return ratio, None if error is None else error * len(under) / sum(under)


def _kind_only(cfg: WorldConfig, kind: str, num: int) -> list[Document]:
    """Documents of one kind, whose surprise includes that it is this kind."""
    only = cfg.but(kind_weights={kind: 1.0})
    extra = log(sum(cfg.kind_weights.values()) / cfg.kind_weights[kind])
    return [
        doc.but_nll(doc.nll + extra)
        for doc in (document(only, i, split=f"report-{kind}/test") for i in range(num))
    ]


def _loss_rows(reader: Reader, group: str, docs: list[Document], goal: float) -> list[ReportRow]:
    nats = reader.losses([" ".join(doc.tokens) for doc in docs])
    sizes = [len(doc.tokens) + 1 for doc in docs]
    floors = [doc.nll for doc in docs]
    rows = []
    for what, over, wanted, text in (
        ("loss", nats, None, "mean surprise of the model"),
        ("floor", floors, None, "mean surprise of an ideal predictor"),
        ("excess", [a - b for a, b in zip(nats, floors, strict=True)], goal, "loss - floor"),
    ):
        value, error = _ratio(over, sizes)
        rows.append(ReportRow(what, group, value, error, len(docs), "nats per token", wanted, text))
    return rows


def _shares(
    name: str, right: Sequence[bool], groups: Sequence[str], goal: float | None, description: str
) -> list[ReportRow]:
    rows = []
    for group in ("all", *sorted(set(groups) - {""})):
        chosen = [
            float(hit) for hit, its in zip(right, groups, strict=True) if group in ("all", its)
        ]
        value, error = _mean(chosen)
        wanted = goal if group == "all" else None
        rows.append(ReportRow(name, group, value, error, len(chosen), "share", wanted, description))
    return rows


def _answer_rows(reader: Reader, name: str, cfg: WorldConfig, num: int) -> list[ReportRow]:
    task = ANSWERS[name]
    prompts = answer_prompts(name, "test", num, cfg=cfg)
    right = reader.begins_with_an_answer(prompts)
    groups = [prompt.labels.get(task.break_down, "") for prompt in prompts]
    return _shares(name, right, groups, task.goal or None, task.description)


def _policy_rows(
    reader: Reader,
    cfg: WorldConfig,
    kind: str,
    places: Callable[[Sequence[str]], list[ActionPlace]],
    num: int,
) -> list[ReportRow]:
    """How far the model's choices are from the policy that the traces follow."""
    docs = _kind_only(cfg, kind, num)
    rows = [reader.encode(" ".join(doc.tokens)) for doc in docs]
    divergences: list[float] = []
    entropies: list[float] = []
    for i, logits in reader.read(rows):
        log_p = logits.log_softmax(-1)
        for place, actions, first in places(docs[i].tokens):
            here = [
                (p, float(log_p[place, reader.encode(action)[0]]))
                for action, p in zip(actions, (first, 1 - first), strict=True)
            ]
            divergences.append(sum(p * (log(p) - found) for p, found in here if p > 0))
            entropies.append(-sum(p * log(p) for p, _ in here if p > 0))
    value, error = _mean(divergences)
    n = len(divergences)
    return [
        ReportRow(f"{kind}-policy-entropy", "all", *_mean(entropies), n, "nats per choice", None,
                  "entropy of the policy that drew the choices"),
        ReportRow(f"{kind}-policy-excess", "all", value, error, n, "nats per choice", 0.02,
                  "divergence of the model's next word from the policy, where a choice is due"),
    ]  # fmt: skip


def world_report(
    model_dir: Path | str,
    num_documents: int = 2000,
    *,
    cfg: WorldConfig | None = None,
    chat: bool = False,
) -> list[ReportRow]:
    """Losses by kind (with floor and excess), accuracies, and policies of a model folder.

    ``num_documents`` test documents are read for the loss over all kinds, a fifth as many for
    each kind, and a fifth as many prompts for each accuracy. The chat model is asked the tasks
    of the chat form; ``cfg`` are the dials it was trained with. Raises `MissingFile` when the
    folder holds no model.
    """
    cfg = cfg or WorldConfig()
    reader = Reader(Path(model_dir))
    part = max(2, num_documents // 5)
    rows = _loss_rows(reader, "all", list(documents(cfg, 0, num_documents, split="test")), 0.10)
    for kind, weight in cfg.kind_weights.items():
        if weight > 0:
            rows += _loss_rows(reader, kind, _kind_only(cfg, kind, part), 0.25)
    for name in ANSWERS:
        if ANSWERS[name].chat == chat:
            rows += _answer_rows(reader, name, cfg, part)
    for kind, places in (
        ("bandit", bandits.action_places),
        ("decision", decisions.action_places),
    ):
        if cfg.kind_weights.get(kind, 0) > 0:
            rows += _policy_rows(reader, cfg, kind, places, part // 2 + 1)
    return rows


def report_json(rows: Sequence[ReportRow]) -> list[dict[str, object]]:
    """The rows as ``training.json`` keeps them."""
    return [row._asdict() for row in rows]
