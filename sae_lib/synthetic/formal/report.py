"""What a model has learned of a formal language, next to what could be learned.

Losses are nats per predicted token (words and the end mark), each string read alone from its
start, on strings of the test split; the floor is the grammar's own surprise on the same strings.
"""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache

from sae_lib.errors import MissingFile
from sae_lib.synthetic.formal.dyck import CLOSING
from sae_lib.synthetic.formal.language import FormalLanguage, formal_strings, surprises
from sae_lib.synthetic.formal.languages import named_language
from sae_lib.synthetic.word_level import BOS, EOS, PAD

BATCH = 64
"""Strings that are read at once."""

UNLIKELY = 1e-3
"""A model that gives less than this to an ending knows that the string cannot end yet."""

MAY_END = frozenset({"balanced", "whole", "may-end"})
"""Concepts of which one holds where a string may end, in any language."""


class _Score(NamedTuple):
    """What is measured on one string."""

    nats: float
    unfinished: int
    """Tokens after which the string cannot end."""
    goes_on: int
    """Those of them at which the model knows it."""
    closings: int
    """Closing brackets."""
    right_closings: int
    """Those of them that the model prefers to the other kind."""


class _Reader:
    """A model with its tokenizer, evaluated without gradients in float32."""

    def __init__(self, folder: Path) -> None:
        if not (folder / "config.json").exists():
            raise MissingFile("there is no model here: config.json is missing", file=folder)
        self.ids: dict[str, int] = AutoTokenizer.from_pretrained(folder).get_vocab()
        self.words = {id: word for word, id in self.ids.items()}
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def log_probs(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "row place vocab"]:
        """Log-probabilities of what follows each token; rows are padded on the right."""
        ids = torch.full((len(rows), max(map(len, rows))), PAD)
        for target, row in zip(ids, rows, strict=True):
            target[: len(row)] = torch.tensor(row)
        with torch.inference_mode():
            found = self.model(input_ids=ids, attention_mask=(ids != PAD).long())
        return found.logits.log_softmax(-1)

    def sample(self, num: int, most: int, seed: int) -> list[list[str] | None]:
        """``num`` random strings; None for one that has not ended within ``most`` words."""
        draw = torch.Generator().manual_seed(seed)
        cache = DynamicCache(config=self.model.config)
        ids = torch.full((num, 1), BOS)
        columns: list[Int[Tensor, "row"]] = []
        ended = torch.zeros(num, dtype=torch.bool)
        with torch.inference_mode():
            while len(columns) <= most and not ended.all():
                logits = self.model(
                    input_ids=ids,
                    attention_mask=torch.ones(num, len(columns) + 1, dtype=torch.long),
                    past_key_values=cache,
                    use_cache=True,
                ).logits
                ids = torch.multinomial(logits[:, -1].softmax(-1), 1, generator=draw)
                columns.append(ids[:, 0])
                ended |= ids[:, 0] == EOS
        rows = torch.stack(columns, 1).tolist()
        return [
            [self.words[id] for id in row[: row.index(EOS)]] if EOS in row else None for row in rows
        ]


def _scores(reader: _Reader, language: FormalLanguage, strings: Sequence[Sequence[str]]):
    """One `_Score` per string."""
    closing = [reader.ids[word] for word in CLOSING if word in reader.ids]
    for first in range(0, len(strings), BATCH):
        part = strings[first : first + BATCH]
        rows = [[BOS, *(reader.ids[word] for word in words), EOS] for words in part]
        log_p = reader.log_probs([row[:-1] for row in rows])
        for words, row, found in zip(part, rows, log_p, strict=True):
            targets = torch.tensor(row[1:])
            unfinished = [
                place
                for place, concepts in enumerate(language.truth(words).concepts, 1)
                if not concepts & MAY_END
            ]
            closed = [place for place, id in enumerate(row[1:]) if id in closing]
            yield _Score(
                nats=-float(found[: len(targets)].gather(1, targets[:, None]).sum()),
                unfinished=len(unfinished),
                goes_on=int((found[unfinished, EOS].exp() < UNLIKELY).sum()),
                closings=len(closed),
                right_closings=sum(
                    closing[int(found[place, closing].argmax())] == row[place + 1]
                    for place in closed
                ),
            )


def formal_report(
    language: FormalLanguage | str, folder: Path, num_strings: int = 1000
) -> dict[str, Any]:
    """Loss, floor and accuracies of the model in ``folder``, on ``num_strings`` test strings.

    ``language`` may be the name of one with its default dials. The shares are

    - ``valid_samples``: of as many strings that the model draws from ``<bos>`` on, those that
      end in time and that the language has;
    - ``goes_on``: of the tokens after which a string cannot end, those at which the model gives
      the end less than `UNLIKELY`;
    - ``right_bracket`` (of brackets only): of the brackets that are closed, those where the right
      closing bracket gets more than the other one.

    Raises `MissingFile` where there is no model, `UnknownName` where there is no such language.
    """
    if isinstance(language, str):
        language = named_language(language)
    reader = _Reader(folder)
    strings = [one.tokens for one in formal_strings(language, 0, num_strings, split="test")]
    scores = list(_scores(reader, language, strings))
    num_tokens = sum(len(words) + 1 for words in strings)
    loss = sum(score.nats for score in scores) / num_tokens
    lowest = sum(surprises(language, strings)) / num_tokens
    drawn: list[list[str] | None] = []
    for first in range(0, num_strings, 250):
        drawn += reader.sample(min(250, num_strings - first), language.max_tokens, seed=first)
    ended = [words for words in drawn if words is not None]
    report = {
        "num_strings": num_strings,
        "num_tokens": num_tokens,
        "loss": loss,
        "floor": lowest,
        "excess": loss - lowest,
        "valid_samples": sum(map(isfinite, surprises(language, ended))) / num_strings,
        "goes_on": sum(s.goes_on for s in scores) / sum(s.unfinished for s in scores),
    }
    closings = sum(score.closings for score in scores)
    if closings:
        report["right_bracket"] = sum(score.right_closings for score in scores) / closings
    return report
