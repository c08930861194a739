"""Words that start with a letter, and prompts that ask for it.

Words are entries of the tokenizer's vocabulary or of a table. In a prompt other words stand before
a word as examples, each with its letter; it is read at the word, or where its letter is asked for.
"""

import string
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lib.activations.task_tables import TableConfig, TableSplit, table_rows
from sae_lib.apply.reading import text_batches
from sae_lib.errors import BadInput
from sae_lib.evaluate.bench import Bench
from sae_lib.models.language_model import LanguageModel


class WordSplit(NamedTuple):
    """Words as they stand in a prompt, those of one spelling on one side."""

    train: list[str]
    test: list[str]
    left_out: dict[str, int]
    """Words that are not used, by reason."""


def letter_of(word: str) -> str:
    """Its first letter, in upper case."""
    return word.strip()[0].upper()


def vocabulary_words(tokenizer: Any) -> list[str]:
    """Entries of ASCII letters, with at most one space in front, sorted.

    The marks by which tokenizers write a space in front are read as a space.
    """
    spelled = (
        entry.replace("\u0120", " ").replace("\u2581", " ") for entry in tokenizer.get_vocab()
    )
    allowed = set(string.ascii_letters)
    return sorted({w for w in spelled if set(w.removeprefix(" ")) <= allowed and w.strip()})


def table_words(table: TableConfig, split: TableSplit, bench: Bench, most: int) -> list[str]:
    """The first ``most`` different words of one side of a table."""
    rows = table_rows(table, ("word",), split, world=bench.world, relative_to=bench.relative_to)
    words = list(dict.fromkeys(str(row["word"]) for row in rows))
    letters = set(string.ascii_letters)
    if wrong := [word for word in words if not word.strip() or not set(word.strip()) <= letters]:
        raise BadInput("a word has letters from a to z alone.", key="words", value=wrong[0])
    return words[:most]


def split_words(
    words: Sequence[str], *, test_share: float, most: int, seed: int
) -> tuple[list[str], list[str]]:
    """At random; spellings that differ in case or in a space fall on the same side."""
    rng = np.random.default_rng(seed)
    forms = sorted({word.strip().lower() for word in words})
    order = [forms[i] for i in rng.permutation(len(forms))]
    test = set(order[: round(test_share * len(order))])
    chosen = sorted(words)
    if len(chosen) > most:
        chosen = [chosen[i] for i in sorted(rng.permutation(len(chosen))[:most])]
    sides: tuple[list[str], list[str]] = ([], [])
    for word in chosen:
        sides[word.strip().lower() in test].append(word)
    return sides


def prompts(
    words: Sequence[str],
    line: str,
    between: str,
    num_examples: int,
    seed: int,
    *,
    with_question: bool = False,
) -> list[str]:
    """Per word the prompt up to and with the word, or with the question up to its answer.

    ``num_examples`` other words, drawn at random, stand before it with their letters.
    """
    rng = np.random.default_rng(seed)
    if len(words) <= num_examples:
        raise BadInput(
            f"{num_examples} examples besides the word itself need more words; there are"
            f" {len(words)}.",
            key="num_examples",
            value=num_examples,
        )
    before, after = line.split("{word}", 1)
    asked = after[: after.index("{letter}")].rstrip() if with_question else ""
    start = between if between.strip(" ") else ""  # a line break also stands before the first
    made = []
    for place, word in enumerate(words):
        drawn = rng.choice(len(words) - 1, num_examples, replace=False)
        others = [words[int(i) + int(i >= place)] for i in drawn]
        shown = [line.format(word=other, letter=letter_of(other)) for other in others]
        made.append(start + between.join([*shown, before + word + asked]))
    return made


@torch.no_grad()
def at_last_token(
    model: LanguageModel, site: str, texts: Sequence[str], *, batch_texts: int = 64
) -> Float[Tensor, "texts d_in"]:
    """Activation of the last token of each text; float32 on the CPU."""
    found: Tensor | None = None
    most = model.info.max_context
    for chosen, batch in text_batches(model, texts, max_tokens=most, batch_texts=batch_texts):
        if batch.tokens.shape[1] >= most:
            raise BadInput(
                f"prompts are as long as the model can read, {most} tokens; give fewer examples.",
                key="num_examples",
            )
        at = model.capture(batch.tokens, [site], mask=batch.mask)[site]
        places = torch.arange(batch.keep.shape[1]).expand_as(batch.keep)
        last = places.masked_fill(~batch.keep, -1).amax(1).to(at.device)
        rows = at[torch.arange(len(at), device=at.device), last].float().cpu()
        found = torch.zeros(len(texts), rows.shape[1]) if found is None else found
        found[chosen] = rows
    assert found is not None  # `prompts` refuses an empty list
    return found


def is_one_token(tokenizer: Any, between: str, word: str) -> bool:
    """Whether the word, as it stands at the beginning of a line, is a single token."""
    alone, with_word = (
        len(tokenizer(text, add_special_tokens=False)["input_ids"])
        for text in (between, between + word)
    )
    return with_word - alone == 1
