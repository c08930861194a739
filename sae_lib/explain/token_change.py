"""TokenChange: a latent is the words that become likelier when it is made to fire.

    clamp    x' = x + (s m - z) W_dec,  m the latent's largest activation, s a strength
    add      x' = x + s m W_dec
    ablate   x' = x - z W_dec, on text where the latent fires; what becomes less likely counts

The edit acts at every token of some corpus text that is not special, the coder's error is kept, and

    score(w) = mean over those tokens of l'(w) - l(w)

with l the logits less their mean over the vocabulary, or log-probabilities, which have the same
order, or probabilities. Unlike a projection, this goes through the layers that follow.

All latents are read on the same text, so one pass without edits gives the activations and the
probabilities of all, and rows of a batch belong to different latents. Source: Gur-Arieh et al.
2025, TokenChange. Differs from it: strengths are in units of the latent's largest activation.
"""

from collections.abc import Iterator
from typing import ClassVar, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from sae_lib.errors import BadInput, NotApplicable
from sae_lib.explain._latent_reader import strongest_windows
from sae_lib.explain._words import leading_words, quoted
from sae_lib.explain.base import Evidence, ExplainerConfig, register
from sae_lib.models.places import Place
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ExplanationRow

_CHUNK_LOGITS = 2**24
"""Logits (tokens x vocabulary) held at a time: 64 MiB."""

_CHUNK_TOKENS = 2**14
_CHUNK_CODES = 2**24


class _Text(NamedTuple):
    """Token rows to read."""

    tokens: Int[Tensor, "texts seq"]
    mask: Bool[Tensor, "texts seq"]
    """False on padding."""

    keep: Bool[Tensor, "texts seq"]
    """Where edits act and probabilities count."""


Changed: TypeAlias = tuple[list[int], Float[Tensor, "latents vocab"]]
"""Some latents, and by how much each word's score rises with them."""


@register
class TokenChangeConfig(ExplainerConfig):
    """What is done to a latent, how strongly, and on how much text."""

    papers: ClassVar = (
        Paper("Gur-Arieh et al. 2025", "https://arxiv.org/abs/2501.08319", "TokenChange"),
        Paper("Shu et al. 2025", "https://arxiv.org/abs/2503.05613", "3.2"),
    )
    summary: ClassVar = "Words that become likelier, or less likely, when the latent is changed."
    dials: ClassVar = ("mode", "strength", "num_prompts", "num_keywords")
    trust: ClassVar = 1

    method: Literal["token_change"] = "token_change"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    num_keywords: int = Field(default=20, gt=0)
    """Words listed on either side: so many promoted, then so many suppressed."""

    mode: Literal["clamp", "add", "ablate"] = "clamp"
    """clamp: hold it at a value; add: raise it by a value; ablate: take it out where it fires."""

    strength: float = 1.0
    """The value, in units of the latent's largest activation; may be negative."""

    num_prompts: int = Field(default=8, gt=0)
    """Stretches of corpus text; for ablation those where the latent is strongest."""

    prompt_tokens: int = Field(default=16, gt=0)
    """Tokens of each."""

    measure: Literal["logit", "log_probability", "probability"] = "logit"
    """What is compared with the unchanged model."""

    def check(self, evidence: Evidence) -> None:
        written = Place.parse(evidence.site).writes
        if not (evidence.model.has_lm_head and evidence.model.is_causal):
            raise NotApplicable(self.method, "the model predicts no next token.")
        if len(written) != 1:
            raise NotApplicable(
                self.method, f"decoder rows of {evidence.site} belong to several sites."
            )
        if evidence.corpus is None:
            raise NotApplicable(self.method, "it reads text again, and the corpus is not at hand.")
        if self.strength == 0 and self.mode == "add":
            raise BadInput("adding nothing changes nothing.", key="strength", value=0)

    @torch.no_grad()
    def explain(self, evidence: Evidence) -> list[ExplanationRow]:
        self.check(evidence)
        is_out = self.mode == "ablate"
        changes = self._where_it_fires(evidence) if is_out else self._anywhere(evidence)
        rows = []
        for latents, change in changes:
            up = leading_words(change, evidence.vocabulary, self.num_keywords)
            down = leading_words(-change, evidence.vocabulary, self.num_keywords)
            for latent, more, less in zip(latents, up, down, strict=True):
                words = [word for word, _ in more + less]
                scores = [score for _, score in more] + [-score for _, score in less]
                text = f"makes {_listed(more)} likelier, {_listed(less)} less likely"
                rows.append(ExplanationRow(latent, self.method, text, words, scores))
        return rows

    def _anywhere(self, evidence: Evidence) -> Iterator[Changed]:
        """On text that all latents share."""
        text = _prompts(evidence, self.num_prompts, self.prompt_tokens)
        plain = _mean_score(_logits(evidence, text), text, self.measure).mean(0)
        held = _codes(evidence, text)
        num = _num_latents(evidence, text.tokens.numel())
        for latents in torch.tensor(evidence.alive, dtype=torch.int64).split(num):
            value = self.strength * evidence.statistics.max_activation[latents][:, None, None]
            z = held[:, :, latents].permute(2, 0, 1)  # (latents, texts, seq)
            by = value - z if self.mode == "clamp" else value.expand_as(z)
            many = _Text(*(field.repeat(len(latents), 1) for field in text))
            owner = latents.repeat_interleave(len(text.tokens))
            logits = _logits(evidence, many, by.flatten(0, 1) * many.keep, owner)
            score = _mean_score(logits, many, self.measure)
            yield latents.tolist(), score.view(len(latents), len(text.tokens), -1).mean(1) - plain

    def _where_it_fires(self, evidence: Evidence) -> Iterator[Changed]:
        """What taking a latent out costs each word, at the tokens on which it fires."""
        radius = self.prompt_tokens // 2
        owners, windows, _ = strongest_windows(
            self.method, evidence, num=self.num_prompts, radius=radius
        )
        special = torch.tensor(sorted(evidence.model.special_ids), dtype=torch.int64)
        keep = windows.inside & ~torch.isin(windows.token_ids, special)
        whole = _Text(windows.token_ids.masked_fill(~windows.inside, 0), windows.inside, keep)
        owner = torch.tensor(owners, dtype=torch.int64)
        num = _num_latents(evidence, self.num_prompts * whole.tokens.shape[1])
        for latents in owner.unique().split(num):
            rows = torch.isin(owner, latents)
            text, own = _Text(*(field[rows] for field in whole)), owner[rows]
            at = own[:, None, None].expand(-1, text.tokens.shape[1], 1)
            by = -_codes(evidence, text).gather(2, at)[..., 0] * text.keep
            fires = text._replace(keep=by < 0)
            plain = _mean_score(_logits(evidence, text), fires, self.measure)
            without = _mean_score(_logits(evidence, text, by, own), fires, self.measure)
            place = torch.searchsorted(latents, own)
            counts = torch.zeros(len(latents)).index_add_(0, place, fires.keep.any(1).float())
            total = torch.zeros(len(latents), plain.shape[1]).index_add_(0, place, plain - without)
            yield latents.tolist(), total / counts.clamp(min=1)[:, None]


def _num_latents(evidence: Evidence, tokens: int) -> int:
    """Latents per batch, each with so many tokens."""
    per_token = max(evidence.model.vocab_size, evidence.coder.d_sae)
    return max(1, min(_CHUNK_LOGITS // (tokens * per_token), _CHUNK_TOKENS // tokens))


def _prompts(evidence: Evidence, num: int, length: int) -> _Text:
    """The beginnings of contexts, spread over the corpus."""
    assert evidence.corpus is not None
    chosen = torch.linspace(0, evidence.corpus.num_contexts - 1, num).long().unique()
    held = evidence.corpus.rows(chosen)
    parts = (held.tokens, held.document >= 0, held.keep)
    text = _Text(*(part[:, :length] for part in parts))
    return _Text(*(part[text.keep.any(1)] for part in text))


def _codes(evidence: Evidence, text: _Text) -> Float[Tensor, "texts seq d_sae"]:
    model, coder = evidence.model, evidence.coder
    x = model.capture(
        text.tokens.to(model.device), [evidence.site], mask=text.mask.to(model.device)
    )
    x = x[evidence.site].to(coder.W_dec.device, torch.float32)
    rows = max(1, _CHUNK_CODES // (coder.d_sae * x.shape[1]))
    return torch.cat([coder.encode(part).float().cpu() for part in x.split(rows)])


def _logits(
    evidence: Evidence,
    text: _Text,
    by: Float[Tensor, "texts seq"] | None = None,
    latents: Int[Tensor, " texts"] | None = None,
) -> Float[Tensor, "texts seq vocab"]:
    """Logits with ``by`` times the decoder row of each text's latent added, or without an edit."""
    model = evidence.model
    edits = {}
    if by is not None and latents is not None:
        rows = evidence.coder.W_dec.detach()
        directions = rows[latents.to(rows.device)].to(model.device)
        by = by.to(model.device)

        def edit(x: Tensor) -> Tensor:
            return x + (by.unsqueeze(-1) * directions.unsqueeze(1)).to(x)

        edits = {Place.parse(evidence.site).writes[0]: edit}
    with model.intervene(edits):
        logits = model.logits(text.tokens.to(model.device), mask=text.mask.to(model.device))
    return logits.float()


def _mean_score(
    logits: Float[Tensor, "texts seq vocab"], text: _Text, measure: str
) -> Float[Tensor, "texts vocab"]:
    """Mean over the kept tokens of each text; 0 for a text without."""
    weight = text.keep.to(logits) / text.keep.sum(1, keepdim=True).clamp(min=1).to(logits)
    if measure == "probability":
        return torch.einsum("btv,bt->bv", logits.softmax(-1), weight).cpu()
    # means come first: the log of the sum is one number per token
    level = logits.logsumexp(-1) if measure == "log_probability" else logits.mean(-1)
    mean = torch.einsum("btv,bt->bv", logits, weight)
    return (mean - (level * weight).sum(1, keepdim=True)).cpu()


def _listed(words: list[tuple[str, float]]) -> str:
    return quoted([word for word, _ in words], 5) or "nothing"
