"""MutInfo: the words that tell most about a latent, not merely those it promotes.

    p(w|c) = softmax_w(L[c, w] / alpha),  p(c|w) = softmax_c(L[c, w] / beta),  L = E_out . W_c
                                                                                             (eq. 8)

    published   p(w|c) log p(c|w)                                                            (eq. 7)
    corrected   p(w|c) (log p(c|w) + log C)                                   C latents, the default
    bayes       p(w|c) log(p(c|w) / p(c)),  p(c) = 1 / C,  p(c|w) = p(w|c) / sum_c' p(w|c')

The published score is never above 0 and nears 0 for words that have nothing to do with the latent,
so its largest values are those of the least related words; it is there to be compared with. What it
lacks is the constant log C: with it a word scores above 0 where it singles out the latent better
than chance. ``bayes`` takes both probabilities from one joint distribution, so that the mean of its
sums over latents is a mutual information. Scores are in nats.

Latents are those that fire on the corpus; dead ones would only blur p(c|w). Differs from the
released code of Wu et al. 2025: words are tokens of the vocabulary, not averages over the tokens of
5,000 words; the temperature is set so that p(w|c) is neither flat nor one word alone.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, NamedTuple, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from sae_lib.errors import NotApplicable
from sae_lib.explain._words import leading_words, quoted
from sae_lib.explain.base import Evidence, ExplainerConfig, register
from sae_lib.explain.vocab_proj import vocabulary_scores
from sae_lib.models.places import Place
from sae_lib.models.sites import Site
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ExplanationRow

Form: TypeAlias = Literal["corrected", "bayes", "published"]

_CHUNK_SCORES = 2**24
"""Scores (latents x vocabulary) held at a time: 64 MiB."""

_CALIBRATION_LATENTS = 256
_HALVINGS = 40
_IN_THE_STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")

Blocks: TypeAlias = Callable[[], Iterator[Float[Tensor, "latents vocab"]]]
"""Scores L of all latents, some rows at a time; may be asked again."""


class WordNormalisers(NamedTuple):
    """Per word the sums over all latents that turn a row of scores into p(c|w), in logarithms."""

    features: Float[Tensor, " vocab"]
    """log sum_c exp(L[c, w] / beta)."""

    joint: Float[Tensor, " vocab"]
    """log sum_c p(w|c)."""

    num_latents: int


def normalisers(
    blocks: Blocks, is_word: Bool[Tensor, " vocab"], *, alpha: float, beta: float
) -> WordNormalisers:
    """One pass over the scores of all latents, in float64."""
    features = joint = torch.full((len(is_word),), -torch.inf, dtype=torch.float64)
    num = 0
    for block in blocks():
        scores = block.double()
        features = torch.logaddexp(features, (scores / beta).logsumexp(0))
        joint = torch.logaddexp(joint, _log_words(scores, is_word, alpha).logsumexp(0))
        num += len(scores)
    return WordNormalisers(features, joint, num)


def word_scores(
    scores: Float[Tensor, "latents vocab"],
    over: WordNormalisers,
    is_word: Bool[Tensor, " vocab"],
    *,
    alpha: float,
    beta: float,
    form: Form,
) -> Float[Tensor, "latents vocab"]:
    """What each word adds to a latent's mutual information, in nats; 0 where ``is_word`` is not."""
    scores = scores.double()
    log_words = _log_words(scores, is_word, alpha)
    if form == "bayes":
        log_feature = log_words - over.joint + math.log(over.num_latents)
    else:
        log_feature = scores / beta - over.features
        if form == "corrected":
            log_feature = log_feature + math.log(over.num_latents)
    return torch.where(is_word, log_words.exp() * log_feature, 0.0)


def mutual_information(blocks: Blocks, is_word: Bool[Tensor, " vocab"], *, alpha: float) -> float:
    """Of latents, all as likely, and words under p(w|c), in nats."""
    over = normalisers(blocks, is_word, alpha=alpha, beta=alpha)
    total = sum(
        float(word_scores(b, over, is_word, alpha=alpha, beta=alpha, form="bayes").sum())
        for b in blocks()
    )
    return total / over.num_latents


def temperature_for(
    scores: Float[Tensor, "latents vocab"], is_word: Bool[Tensor, " vocab"], perplexity: float
) -> float:
    """The alpha at which the median perplexity of p(w|c) is ``perplexity``, by halving its log."""
    scores = scores.double()
    low, high = -20.0, 20.0
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        log_p = _log_words(scores, is_word, math.exp(middle))
        entropy = -(log_p.exp() * log_p.masked_fill(~is_word, 0.0)).sum(1)
        if float(entropy.median().exp()) > perplexity:
            high = middle
        else:
            low = middle
    return math.exp((low + high) / 2)


@register
class MutInfoConfig(ExplainerConfig):
    """Which form of the score, and how sharp the distributions are."""

    papers: ClassVar = (
        Paper("Shu et al. 2025", "https://arxiv.org/abs/2503.05613", "3.2, equations 7 and 8"),
        Paper("Wu et al. 2025", "https://arxiv.org/abs/2502.15576", "mutual information"),
    )
    summary: ClassVar = "Words that single out the latent among all latents, by mutual information."
    dials: ClassVar = ("form", "perplexity", "alpha", "beta")
    trust: ClassVar = 1

    method: Literal["mut_info"] = "mut_info"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    num_keywords: int = Field(default=20, gt=0)
    """Words listed per latent."""

    form: Form = "corrected"
    """corrected; bayes: from one joint distribution; published: as printed, which lists the words
    that are least related."""

    direction: Literal["decoder", "encoder"] = "decoder"
    """Row that stands for the latent: what it writes; or what it reads, as in the released code."""

    norm: Literal["final_norm", "gain", "none"] = "final_norm"
    """What of the model's last norm is applied to the row."""

    perplexity: float = Field(default=30.0, gt=1)
    """Number of words among which p(w|c) spreads, as a median over latents; sets alpha."""

    alpha: float | None = Field(default=None, gt=0)
    """Temperature of p(w|c); by default it follows from ``perplexity``."""

    beta: float | None = Field(default=None, gt=0)
    """Temperature of p(c|w); by default that of p(w|c)."""

    def check(self, evidence: Evidence) -> None:
        place = Place.parse(evidence.site)
        sites = place.reads if self.direction == "encoder" else place.writes
        if not evidence.model.has_lm_head:
            raise NotApplicable(self.method, "the model has no language-model head.")
        if len(sites) != 1 or Site.parse(sites[0]).kind not in _IN_THE_STREAM:
            raise NotApplicable(
                self.method,
                f"{self.direction} rows of {evidence.site} do not live in the residual stream; "
                f"sites that do are {', '.join(_IN_THE_STREAM)}.",
            )

    def explain(self, evidence: Evidence) -> list[ExplanationRow]:
        if not evidence.alive:
            return []
        is_word = evidence.vocabulary.is_word
        alive = torch.tensor(evidence.alive, dtype=torch.int64)
        parts = alive.split(max(1, _CHUNK_SCORES // evidence.vocabulary.size))

        def logits(latents: Int[Tensor, " latents"]) -> Float[Tensor, "latents vocab"]:
            return self._logits(evidence, latents)

        alpha, beta = self._temperatures(logits, alive, is_word)
        over = normalisers(lambda: map(logits, parts), is_word, alpha=alpha, beta=beta)
        rows = []
        # the published score is at most 0: there the list takes what the formula calls largest
        above = -math.inf if self.form == "published" else 0.0
        for latents in parts:
            scores = word_scores(
                logits(latents), over, is_word, alpha=alpha, beta=beta, form=self.form
            )
            found = leading_words(scores, evidence.vocabulary, self.num_keywords, above=above)
            for latent, words in zip(latents.tolist(), found, strict=True):
                names = [word for word, _ in words]
                text = f"told by {quoted(names, 5)}" if names else "told by no word"
                rows.append(
                    ExplanationRow(latent, self.method, text, names, [score for _, score in words])
                )
        return rows

    def _temperatures(
        self,
        logits: Callable[[Tensor], Tensor],
        alive: Int[Tensor, " latents"],
        is_word: Bool[Tensor, " vocab"],
    ) -> tuple[float, float]:
        alpha = self.alpha
        if alpha is None:
            num = min(len(alive), _CALIBRATION_LATENTS, max(1, _CHUNK_SCORES // len(is_word)))
            chosen = alive[torch.linspace(0, len(alive) - 1, num).long()]
            alpha = temperature_for(logits(chosen), is_word, self.perplexity)
        return alpha, self.beta or alpha

    def _logits(self, evidence: Evidence, latents: Tensor) -> Float[Tensor, "latents vocab"]:
        coder: Any = evidence.coder
        rows = (coder.W_enc if self.direction == "encoder" else coder.W_dec).detach()
        scores = vocabulary_scores(
            evidence.model, rows[latents.to(rows.device)], norm=self.norm, centre=False
        )
        return scores.cpu()


def _log_words(
    scores: Float[Tensor, "latents vocab"], is_word: Bool[Tensor, " vocab"], alpha: float
) -> Float[Tensor, "latents vocab"]:
    """log p(w|c), -inf for what is no word."""
    return (scores / alpha).masked_fill(~is_word, -torch.inf).log_softmax(1)
