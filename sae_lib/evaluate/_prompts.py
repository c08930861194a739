"""Prompts whose continuation is asked for: tokens, log-probabilities, greedy answers.

A prompt is ``[BOS] tokens``, padded on the left, so that every prompt of a batch ends in the same
column. Interventions are the caller's (`LanguageModel.intervene`).
"""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.errors import BadInput
from sae_lib.models.language_model import LanguageModel

_WORD = re.compile(r"\w+")


class PaddedPrompts(NamedTuple):
    """Rows of token ids as the model takes them."""

    tokens: Int[Tensor, "rows seq"]
    mask: Bool[Tensor, "rows seq"]
    """False on padding, which is on the left."""


def token_ids(model: LanguageModel, text: str) -> list[int]:
    """The tokens of ``text`` without any special ones."""
    return list(model.tokenizer(text, add_special_tokens=False)["input_ids"])


def prompt_ids(model: LanguageModel, text: str) -> list[int]:
    """The tokens of a prompt, behind the beginning of a sequence where the model has one."""
    bos, ids = model.tokenizer.bos_token_id, token_ids(model, text)
    if not ids:
        raise BadInput("a prompt has no token.", value=text)
    return ids if bos is None else [int(bos), *ids]


def continuation_ids(model: LanguageModel, prompt: str, answer: str) -> list[int]:
    """The tokens that continue ``prompt`` by a space and ``answer``."""
    head, whole = token_ids(model, prompt), token_ids(model, f"{prompt} {answer}")
    if whole[: len(head)] == head and len(whole) > len(head):
        return whole[len(head) :]
    return token_ids(model, f" {answer}")


def token_at(model: LanguageModel, text: str, end: int) -> int:
    """Place among the tokens of ``text`` of the one that holds its character ``end`` - 1."""
    if not model.tokenizer.is_fast:
        before = token_ids(model, text[:end])
        if token_ids(model, text)[: len(before)] != before:
            raise BadInput(
                "the tokenizer does not say where its tokens lie in a text; use a fast one.",
                value=text,
            )
        return len(before) - 1
    given = model.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, stop in given["offset_mapping"] if start < end and stop > start]
    return len(starts) - 1


def padded(model: LanguageModel, rows: Sequence[Sequence[int]]) -> PaddedPrompts:
    """Rows of ids, padded on the left to the longest."""
    pad, longest = model.tokenizer.pad_token_id, max(map(len, rows))
    tokens = torch.full((len(rows), longest), 0 if pad is None else int(pad))
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        tokens[i, longest - len(row) :] = torch.tensor(row)
        mask[i, longest - len(row) :] = True
    return PaddedPrompts(tokens, mask)


def by_length(lengths: Sequence[int], batch_rows: int) -> Iterator[list[int]]:
    """Places of all rows in batches of rows of like length."""
    order = sorted(range(len(lengths)), key=lambda i: (lengths[i], i))
    for low in range(0, len(order), batch_rows):
        yield order[low : low + batch_rows]


def end_logits(
    model: LanguageModel, prompts: PaddedPrompts, num: int
) -> Float[Tensor, "rows num vocab"]:
    """Logits at the last ``num`` positions, float32, with gradients where they are on."""
    mask = prompts.mask.to(model.device, torch.long)
    padding = (
        {}
        if bool(mask.all())
        else {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1).clamp_min(0)}
    )
    output = model.model(
        input_ids=prompts.tokens.to(model.device),
        use_cache=False,
        logits_to_keep=num,
        **padding,
    )
    return output.logits[:, -num:].float()


def continuation_log_probs(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> tuple[Float[Tensor, "rows longest"], Bool[Tensor, "rows longest"]]:
    """Log-probability of each token of the answers, and which entries are tokens.

    The rows that the model runs over are `answered_rows`: an intervention must fit those.
    """
    longest = max(map(len, answers))
    batch = padded(model, answered_rows(prompts, answers))
    logits = end_logits(model, batch, longest)
    wanted = torch.zeros(len(answers), longest, dtype=torch.long)
    is_token = torch.zeros(len(answers), longest, dtype=torch.bool)
    for i, answer in enumerate(answers):
        wanted[i, longest - len(answer) :] = torch.tensor(answer)
        is_token[i, longest - len(answer) :] = True
    wanted, is_token = wanted.to(logits.device), is_token.to(logits.device)
    found = logits.log_softmax(-1).gather(2, wanted[..., None])[..., 0]
    return found.masked_fill(~is_token, 0.0), is_token


def answered_rows(
    prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[list[int]]:
    """Each prompt with all of its answer but the last token, whose logits nobody needs."""
    return [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]


@torch.no_grad()
def greedy_answers(
    model: LanguageModel, prompts: PaddedPrompts, *, max_new_tokens: int
) -> list[str]:
    """What the model says next, each step its most probable token."""
    found = model.generate(
        prompts.tokens, mask=prompts.mask, max_new_tokens=max_new_tokens, greedy=True
    )
    new = found[:, prompts.tokens.shape[1] :]
    return list(model.tokenizer.batch_decode(new, skip_special_tokens=True))


def begins_with(text: str, answers: Sequence[str]) -> bool:
    """Whether ``text`` begins with the words of one of ``answers``; case and punctuation aside."""
    words = _WORD.findall(text.lower())
    return any(
        bool(own := _WORD.findall(answer.lower())) and words[: len(own)] == own
        for answer in answers
    )


Put = Callable[[Tensor], Tensor]


def put_at(
    rows: Int[Tensor, " places"],
    columns: Int[Tensor, " places"],
    shape: tuple[int, int],
    values: Float[Tensor, "places d_in"],
) -> Put:
    """An edit that writes ``values`` at some places of a forward over tokens of this ``shape``.

    Forwards over another number of columns, which are steps of a generation, are left alone.
    """

    def edit(x: Tensor) -> Tensor:
        if x.shape[1] != shape[1]:
            return x
        if x.shape[:2] != shape:
            raise BadInput(f"the edit is for prompts of shape {shape}, not {tuple(x.shape[:2])}.")
        return x.index_put((rows.to(x.device), columns.to(x.device)), values.to(x))

    return edit
