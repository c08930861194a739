"""Steered and unsteered text of one model and site, measured.

Generation is paired: a prompt gets the same random numbers whatever the direction and strength, so
two runs differ only where their probabilities do. Every direction is run by itself, so that what is
found for one does not depend on which others are tried.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lib.apply.interventions import Edit, Positions, add, at_positions
from sae_lib.apply.reading import TextBatch, encode_texts
from sae_lib.apply.steering_scores import Cells, distinct_bigrams
from sae_lib.errors import BadInput
from sae_lib.models.language_model import LanguageModel

_CHUNK_LOGITS = 2**25
"""Logits (tokens x vocabulary) held at a time: 128 MiB."""


class Generated(NamedTuple):
    """Continuations of prompts."""

    cells: Cells
    new: Int[Tensor, "rows new"]
    """Generated tokens; first one continuation of every prompt, then another of every prompt."""

    is_text: Bool[Tensor, "rows new"]
    """Tokens that are not special; behind the end of a text there is only padding."""


class SideEffect(NamedTuple):
    """What an edit does to neutral text, per text."""

    kl: Float[np.ndarray, " texts"]
    """KL(unsteered || steered), summed over the text's predictions, in nats."""

    ce_increase: Float[np.ndarray, " texts"]
    """Cross-entropy of the text's own tokens, steered minus unsteered, summed, in nats."""

    tokens: Float[np.ndarray, " texts"]
    """Predictions: kept tokens that are followed by a kept token."""


def lexicon_ids(model: LanguageModel, words: Sequence[str]) -> Int[Tensor, " ids"]:
    """Tokens that are a whole word of ``words``, in any case and with or without leading space.

    Words of several tokens are left out, since part of a word is not the word. Raises `BadInput`
    where no word is left.
    """
    forms = [form for w in words for form in (w, f" {w}", w.capitalize(), f" {w.capitalize()}")]
    split = model.tokenizer(forms, add_special_tokens=False, return_attention_mask=False)
    never = model.special_ids | {model.tokenizer.unk_token_id}
    ids = {row[0] for row in split["input_ids"] if len(row) == 1} - never
    if not ids:
        raise BadInput(
            "no word of the lexicon is a single token of this model; give words that are.",
            key="lexicon",
            value=list(words)[:5],
        )
    return torch.tensor(sorted(ids), dtype=torch.long)


def direction_edit(
    direction: Float[Tensor, " d_in"],
    strength: float,
    batch: TextBatch,
    positions: Positions,
) -> Edit:
    """Add ``strength`` times ``direction`` at ``positions`` of the texts in ``batch``."""
    return at_positions(
        lambda x: add(x, direction.to(x.device), strength),
        positions,
        mask=batch.mask,
        keep=batch.keep,
    )


class Prompts:
    """Prompts of one concept, and everything about them that steering does not change."""

    def __init__(
        self,
        model: LanguageModel,
        site: str,
        prompts: Sequence[str],
        lexicon: Int[Tensor, " ids"],
        *,
        max_new_tokens: int,
        num_samples: int,
        temperature: float,
        seed: int,
        positions: Positions,
    ) -> None:
        self.model, self.site, self.lexicon = model, site, lexicon
        self.max_new_tokens, self.num_samples = max_new_tokens, num_samples
        self.temperature, self.seed = temperature, seed
        self.positions: Positions = positions
        room = model.info.max_context - max_new_tokens
        self.batch = encode_texts(model, prompts, max_tokens=room, padding_side="left")
        self.repeated = TextBatch(*(part.repeat(num_samples, 1) for part in self.batch))
        self._plain_logp = self._lexicon_logp({})

    @property
    def typical_length(self) -> int:
        """Median length of the prompts in tokens, BOS included."""
        return int(self.batch.mask.sum(1).median())

    def generate(self, direction: Float[Tensor, " d_in"] | None, strength: float) -> Generated:
        """Continuations under the edit, or unsteered for None."""
        with self.model.intervene(self._edits(direction, strength, self.repeated)):
            whole = self.model.generate(
                self.repeated.tokens,
                mask=self.repeated.mask,
                max_new_tokens=self.max_new_tokens,
                temperature=self.temperature,
                seed=self.seed,
            ).cpu()
        new = whole[:, self.repeated.tokens.shape[1] :]
        special = torch.tensor(sorted(self.model.special_ids), dtype=torch.long)
        is_text = ~torch.isin(new, special)  # what follows an end is padding
        hits = (torch.isin(new, self.lexicon) & is_text).sum(1).double()
        cells = Cells(
            hits=self._by_prompt(hits),
            tokens=self._by_prompt(is_text.sum(1).double()),
            nll=self._by_prompt(self._nll(new, is_text)),
            distinct=self._by_prompt(
                torch.from_numpy(distinct_bigrams(new.numpy(), is_text.numpy()))
            ),
        )
        return Generated(cells, new, is_text)

    def shuffled_nll(self, given: Generated) -> Float[np.ndarray, "prompts samples"]:
        """Summed nll of the continuations ``given`` with their tokens in random order."""
        shuffled = _shuffled(given.new, given.is_text, self.seed)
        return self._by_prompt(self._nll(shuffled, given.is_text))

    def lexicon_gain(
        self, direction: Float[Tensor, " d_in"], strength: float
    ) -> Float[np.ndarray, " prompts"]:
        """log p(a word of the lexicon comes next), steered minus unsteered, in nats."""
        return self._lexicon_logp(self._edits(direction, strength, self.batch)) - self._plain_logp

    def _by_prompt(self, values: Float[Tensor, " rows"]) -> Float[np.ndarray, "prompts samples"]:
        return values.view(self.num_samples, -1).T.contiguous().numpy()

    def _edits(
        self, direction: Float[Tensor, " d_in"] | None, strength: float, batch: TextBatch
    ) -> dict[str, Edit]:
        if direction is None:
            return {}
        return {self.site: direction_edit(direction, strength, batch, self.positions)}

    def _lexicon_logp(self, edits: dict[str, Edit]) -> Float[np.ndarray, " prompts"]:
        with self.model.intervene(edits):
            logits = self.model.logits(self.batch.tokens, mask=self.batch.mask)[:, -1].cpu()
        return logits.double().log_softmax(-1)[:, self.lexicon].logsumexp(-1).numpy()

    def _nll(
        self, new: Int[Tensor, "rows new"], is_text: Bool[Tensor, "rows new"]
    ) -> Float[Tensor, " rows"]:
        """Summed nll of the text tokens under the unsteered model, float64."""
        tokens = torch.cat([self.repeated.tokens, new], dim=1)
        mask = torch.cat([self.repeated.mask, torch.ones_like(is_text)], dim=1)
        found = []
        rows = max(1, _CHUNK_LOGITS // (self.model.vocab_size * tokens.shape[1]))
        for low in range(0, len(tokens), rows):
            part = slice(low, low + rows)
            logits = self.model.logits(tokens[part], mask=mask[part])
            logits = logits[:, -new.shape[1] - 1 : -1].cpu().float()
            nll = -logits.log_softmax(-1).gather(-1, new[part].unsqueeze(-1)).squeeze(-1)
            found.append((nll.double() * is_text[part]).sum(1))
        return torch.cat(found)


class NeutralText:
    """Text on which steering should change nothing."""

    def __init__(self, model: LanguageModel, site: str, batch: TextBatch) -> None:
        self.model, self.site = model, site
        predicts = batch.keep & torch.cat(
            [batch.keep[:, 1:], torch.zeros_like(batch.keep[:, :1])], dim=1
        )
        rows = max(1, _CHUNK_LOGITS // (model.vocab_size * batch.tokens.shape[1]))
        self._parts = list(
            zip(
                (TextBatch(*some) for some in zip(*(f.split(rows) for f in batch), strict=True)),
                predicts.split(rows),
                strict=True,
            )
        )
        self._plain: Tensor | None = None

    def side_effect(self, direction: Float[Tensor, " d_in"], strength: float) -> SideEffect:
        """Edited at every token that is not special, whatever the positions elsewhere."""
        found = []
        for part, predicts in self._parts:
            edit = direction_edit(direction, strength, part, "all_but_special")
            with self.model.intervene({self.site: edit}):
                steered = self.model.logits(part.tokens, mask=part.mask).cpu()
            found.append(_compare(self._unsteered(part), steered, part.tokens, predicts))
        return SideEffect(*(np.concatenate(parts) for parts in zip(*found, strict=True)))

    def _unsteered(self, part: TextBatch) -> Float[Tensor, "texts seq vocab"]:
        """Kept where it is one part, which is small; otherwise computed again."""
        if self._plain is not None:
            return self._plain
        logits = self.model.logits(part.tokens, mask=part.mask).cpu()
        if len(self._parts) == 1:
            self._plain = logits
        return logits


def positive_rate(
    batch: TextBatch, lexicon: Int[Tensor, " ids"], *, skip: int, length: int
) -> float:
    """Share of lexicon tokens in the stretch of texts where a continuation would be.

    That is ``length`` tokens after the first ``skip``; of all tokens where no text is so long.
    """
    stretch = torch.zeros_like(batch.keep)
    stretch[:, skip : skip + length] = batch.keep[:, skip : skip + length]
    counted = stretch if bool(stretch.any()) else batch.keep
    return float(torch.isin(batch.tokens, lexicon)[counted].double().mean())


def _compare(
    plain: Float[Tensor, "texts seq vocab"],
    steered: Float[Tensor, "texts seq vocab"],
    tokens: Int[Tensor, "texts seq"],
    predicts: Bool[Tensor, "texts seq"],
) -> SideEffect:
    text = predicts.nonzero()[:, 0]
    before, after = (logits[predicts].float().log_softmax(-1) for logits in (plain, steered))
    target = tokens.roll(-1, dims=1)[predicts].unsqueeze(-1)
    kl = (before.exp() * (before - after)).sum(-1)
    increase = (before.gather(-1, target) - after.gather(-1, target)).squeeze(-1)
    num = len(tokens)
    return SideEffect(
        *(
            torch.zeros(num, dtype=torch.float64).index_add_(0, text, value.double()).numpy()
            for value in (kl, increase, torch.ones(len(text)))
        )
    )


def _shuffled(
    new: Int[Tensor, "rows new"], is_text: Bool[Tensor, "rows new"], seed: int
) -> Int[Tensor, "rows new"]:
    """The text tokens of each row in random order; the others stay where they are."""
    generator = torch.Generator().manual_seed(seed)
    found = new.clone()
    for row, valid in zip(found, is_text, strict=True):
        own = row[valid]
        row[valid] = own[torch.randperm(len(own), generator=generator)]
    return found
