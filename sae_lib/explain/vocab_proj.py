"""VocabProj: a latent is the words that its decoder row makes the model say.

    scores = W_U . final_norm(W_dec,i),    the largest are promoted, the smallest suppressed (eq. 6)

``norm`` says what is done to the lone direction: "final_norm" applies the model's last norm
(Gur-Arieh et al.), "gain" only multiplies by its gain, "none" does nothing. For RMSNorm the first
two give the same order. ``centre`` subtracts the mean over the vocabulary, which a softmax would
not notice, and makes the sign mean something.

Differs from the paper: the bias of a LayerNorm is left out, being the same for every latent;
variants of a word (case, leading space) are listed once, by the most extreme of them.
"""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_lib.errors import NotApplicable
from sae_lib.explain.base import Evidence, ExplainerConfig, register
from sae_lib.explain.vocabulary import Vocabulary
from sae_lib.models.places import Place
from sae_lib.models.sites import Site
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ExplanationRow

_CHUNK_SCORES = 2**25
"""Scores (latents x vocabulary) held at a time: 128 MiB."""

_VARIANTS = 4
"""Tokens looked at per wanted word, since variants of one word are merged."""

_IN_THE_STREAM = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out")


@register
class VocabProjConfig(ExplainerConfig):
    """How a decoder row is read as words."""

    papers: ClassVar = (
        Paper("Shu et al. 2025", "https://arxiv.org/abs/2503.05613", "3.2, equation 6"),
        Paper("Gur-Arieh et al. 2025", "https://arxiv.org/abs/2501.08319", "VocabProj"),
    )
    summary: ClassVar = "Words the decoder row promotes and suppresses through the unembedding."
    dials: ClassVar = ("num_keywords", "norm", "centre")
    trust: ClassVar = 1

    method: Literal["vocab_proj"] = "vocab_proj"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    num_keywords: int = Field(default=20, gt=0)
    """Words listed on either side: so many promoted, then so many suppressed."""

    norm: Literal["final_norm", "gain", "none"] = "final_norm"
    """What of the model's last norm is applied to the decoder row."""

    centre: bool = True
    """Whether scores are relative to their mean over the vocabulary."""

    def check(self, evidence: Evidence) -> None:
        model, written = evidence.model, Place.parse(evidence.site).writes
        if not model.has_lm_head:
            raise NotApplicable(self.method, "the model has no language-model head.")
        if len(written) != 1:
            raise NotApplicable(
                self.method, f"decoder rows of {evidence.site} belong to several sites."
            )
        if Site.parse(written[0]).kind not in _IN_THE_STREAM:
            raise NotApplicable(
                self.method,
                f"decoder rows of {evidence.site} do not live in the residual stream; "
                f"sites that do are {', '.join(_IN_THE_STREAM)}.",
            )

    def explain(self, evidence: Evidence) -> list[ExplanationRow]:
        self.check(evidence)
        rows = []
        alive = torch.tensor(evidence.alive, dtype=torch.int64)
        chunk = max(1, _CHUNK_SCORES // evidence.vocabulary.size)
        for latents in alive.split(chunk):
            directions = evidence.coder.W_dec.detach()[latents]
            scores = vocabulary_scores(
                evidence.model, directions, norm=self.norm, centre=self.centre
            ).cpu()
            promoted = _extreme_words(scores, evidence.vocabulary, self.num_keywords)
            suppressed = _extreme_words(-scores, evidence.vocabulary, self.num_keywords)
            for latent, up, down in zip(latents.tolist(), promoted, suppressed, strict=True):
                text = f"promotes {_listed(up)}; suppresses {_listed(down)}"
                words = [word for word, _ in up + down]
                marks = [score for _, score in up] + [-score for _, score in down]
                rows.append(ExplanationRow(latent, self.method, text, words, marks))
        return rows


@torch.no_grad()
def vocabulary_scores(
    model: Any, directions: Float[Tensor, "latents d_model"], *, norm: str, centre: bool
) -> Float[Tensor, "latents vocab"]:
    """Score of every token for every direction, in float32 logits of a direction of that length."""
    unembedding = model.unembedding().float()
    directions = directions.to(unembedding.device)
    if norm == "final_norm":
        nothing = torch.zeros_like(directions[:1])
        directions = model.final_norm(directions) - model.final_norm(nothing)
    elif norm == "gain":
        directions = directions * model.final_norm_gain()
    scores = directions.float() @ unembedding.mT
    return scores - scores.mean(-1, keepdim=True) if centre else scores


def _extreme_words(
    scores: Float[Tensor, "latents vocab"], vocabulary: Vocabulary, num_words: int
) -> list[list[tuple[str, float]]]:
    """Per latent the words of the largest scores above 0, variants merged."""
    scores = scores.masked_fill(~vocabulary.is_word, -torch.inf)
    top = scores.topk(min(num_words * _VARIANTS, scores.shape[1]), dim=1)
    found = []
    for values, ids in zip(top.values.tolist(), top.indices.tolist(), strict=True):
        words: dict[str, tuple[str, float]] = {}
        for value, token in zip(values, ids, strict=True):
            if value > 0 and len(words) < num_words:
                words.setdefault(vocabulary.merged(token), (vocabulary.text[token].strip(), value))
        found.append(list(words.values()))
    return found


def _listed(words: list[tuple[str, float]]) -> str:
    return ", ".join(word for word, _ in words[:5]) or "nothing"
