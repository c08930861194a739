"""Prompts about entities as the model answers them while activations at the entity are replaced.

Activations at the exchanged tokens of all prompts are read once. Answers are generated greedily, or
their cross-entropy is taken with gradients, so that masks can be learned.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lib.evaluate import _prompts
from sae_lib.evaluate._ravel_masks import Change, Losses
from sae_lib.evaluate._ravel_pairs import Prompt
from sae_lib.evaluate._ravel_splits import Pairs
from sae_lib.evaluate.bench import Bench


class Ends(NamedTuple):
    """Activations of pairs, one row per token that is exchanged."""

    base: Float[Tensor, "rows d_in"]
    source: Float[Tensor, "rows d_in"]
    pair: Int[Tensor, " rows"]
    group: Int[Tensor, " rows"]


class Interchange:
    """Prompts about entities, their activations, and the model that answers them."""

    def __init__(
        self,
        bench: Bench,
        prompts: Sequence[Prompt],
        positions: Literal["last", "all"],
        *,
        batch_rows: int,
        max_new_tokens: int | None,
    ) -> None:
        self.model, self.site, self.prompts = bench.model, bench.site, prompts
        self.batch_rows, self.max_new_tokens = batch_rows, max_new_tokens
        self.ids = [_prompts.prompt_ids(self.model, prompt.text) for prompt in prompts]
        last = [_prompts.token_at(self.model, p.text, p.end) for p in prompts]
        first = (
            last
            if positions == "last"
            else [_prompts.token_at(self.model, p.text, p.start + 1) for p in prompts]
        )
        self.sizes = [high - low + 1 for low, high in zip(first, last, strict=True)]
        has_bos = self.model.tokenizer.bos_token_id is not None
        self.column = [place + has_bos for place in first]
        longest = max(map(len, self.ids))
        texts = bench.reader.read([p.text for p in prompts], max_tokens=longest)
        begins = texts.start[:-1] + torch.tensor(first)
        self.x = texts.x[_ranges(begins, self.sizes)].clone()
        self.begin = torch.tensor([0, *self.sizes]).cumsum(0)
        self.device = self.model.device

    def answered(
        self,
        places: Sequence[int],
        x: Float[Tensor, "tokens d_in"] | None,
        expected: Sequence[tuple[str, ...]],
    ) -> list[bool]:
        """Whether each prompt is answered as expected, ``x`` replacing its entity's activations."""
        longest = max(
            len(_prompts.token_ids(self.model, f" {value}"))
            for value in {value for values in expected for value in values}
        )
        num_new = self.max_new_tokens or longest
        found = [False] * len(places)
        sizes = [self.sizes[i] for i in places]
        begin = torch.tensor([0, *sizes]).cumsum(0)
        lengths = [len(self.ids[i]) for i in places]
        for rows in _prompts.by_length(lengths, self.batch_rows):
            chosen = [places[row] for row in rows]
            batch = _prompts.padded(self.model, [self.ids[i] for i in chosen])
            edits = {}
            if x is not None:
                own = x[_ranges(begin[rows], [sizes[row] for row in rows]).to(x.device)]
                edits[self.site] = self._put(chosen, batch.tokens.shape[1], own)
            with self.model.intervene(edits):
                texts = _prompts.greedy_answers(self.model, batch, max_new_tokens=num_new)
            for row, text in zip(rows, texts, strict=True):
                found[row] = _prompts.begins_with(text, expected[row])
        return found

    def _put(
        self,
        places: Sequence[int],
        longest: int,
        x: Float[Tensor, "tokens d_in"],
        extra: Sequence[int] | None = None,
    ) -> Callable[[Tensor], Tensor]:
        """The edit of prompts padded on the left to ``longest``, each behind ``extra`` tokens."""
        extra = extra or [0] * len(places)
        sizes = [self.sizes[i] for i in places]
        first = [
            longest - len(self.ids[i]) - more + self.column[i]
            for i, more in zip(places, extra, strict=True)
        ]
        rows = torch.arange(len(places)).repeat_interleave(torch.tensor(sizes))
        columns = _ranges(torch.tensor(first), sizes)
        return _prompts.put_at(rows, columns, (len(places), longest), x)

    def losses(
        self, train: Pairs, change: Change, train_on: Literal["answer", "first_token"]
    ) -> Losses:
        """Cross-entropy of the expected answers of training pairs."""
        pairs = train.pairs
        answers = [
            _prompts.continuation_ids(self.model, self.prompts[p.base].text, p.expected[0])
            for p in pairs
        ]
        if train_on == "first_token":
            answers = [answer[:1] for answer in answers]

        def losses(mask: Tensor, rows: Tensor) -> Tensor:
            chosen = rows.tolist()
            places = [pairs[i].base for i in chosen]
            own, wanted = [self.ids[i] for i in places], [answers[i] for i in chosen]
            more = [len(answer) - 1 for answer in wanted]
            longest = max(len(p) + m for p, m in zip(own, more, strict=True))
            ends = self.ends(train, rows)
            x = change(ends.base, ends.source, mask[ends.pair.to(mask.device)], ends.group)
            with self.model.intervene({self.site: self._put(places, longest, x, more)}):
                log_probs, is_token = _prompts.continuation_log_probs(self.model, own, wanted)
            return -log_probs.sum(1) / is_token.sum(1)

        return losses

    def ends(self, some: Pairs, rows: Int[Tensor, " rows"]) -> Ends:
        """Activations of some pairs."""
        chosen = [some.pairs[i] for i in rows.tolist()]
        sizes = [self.sizes[pair.base] for pair in chosen]
        pair = torch.arange(len(rows)).repeat_interleave(torch.tensor(sizes))
        base = _ranges(self.begin[[pair.base for pair in chosen]], sizes)
        source = _ranges(self.begin[[pair.source for pair in chosen]], sizes)
        return Ends(
            self.x[base].to(self.device),
            self.x[source].to(self.device),
            pair,
            some.group[rows][pair],
        )


def _ranges(first: Int[Tensor, " ranges"], sizes: Sequence[int]) -> Int[Tensor, " places"]:
    """``first``, ``first`` + 1, ... for each range, one range after the other."""
    size = torch.tensor(list(sizes))
    begin = torch.cat([torch.zeros(1, dtype=torch.long), size.cumsum(0)[:-1]])
    return torch.arange(int(size.sum())) + (first - begin).repeat_interleave(size)
