"""Contrast: what is different about the text around a latent's strongest places, in plain words.

    score(w) = p(w) ln(p(w) / q(w)),   p = share of the places, weighted by activation
                                       q = share in the whole corpus, in nats

is taken of the word a latent fires on, of the word before, of the word after and of all words
nearby, each against the corpus, nearly all of which is text on which it does not fire. What is said
is only what most of the places have and little of the corpus: words, letter case, numbers, symbols,
the beginning of a document. No language model is asked, so that the same places always give the
same line. (explanations.md, section 7.5; scores as in `tally`.)
"""

import math
import string
from functools import cached_property
from typing import ClassVar, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from pydantic import Field
from torch import Tensor

from sae_lib.explain._latent_reader import strongest_windows
from sae_lib.explain._words import quoted
from sae_lib.explain.base import Evidence, ExplainerConfig, register
from sae_lib.explain.examples import Windows
from sae_lib.explain.vocabulary import Vocabulary
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ExplanationRow

_OPENING = 3
"""Tokens of a document that are its beginning, the special one included."""

_SHOWN = 5
_SHOWN_AROUND = 3


class Told(NamedTuple):
    """What is remarkable about some places, each word with its score, most telling first."""

    fires_on: list[tuple[str, float]]
    before: list[tuple[str, float]]
    """Words that come right after the places: these are before them."""

    after: list[tuple[str, float]]
    near: list[tuple[str, float]]
    traits: list[str]
    """Of the words it fires on, or of where they are."""

    covered: float
    """Share of the activation that is on the words listed."""


class Traits(NamedTuple):
    """Token types that have each trait."""

    is_capital: Bool[Tensor, " vocab"]
    """Begins with a capital letter."""

    is_number: Bool[Tensor, " vocab"]
    is_symbol: Bool[Tensor, " vocab"]
    """Punctuation and other signs alone."""

    is_piece: Bool[Tensor, " vocab"]
    """Goes on with a word, in vocabularies that mark where words begin."""


_SAID = ("words with a capital letter", "numbers", "punctuation", "pieces inside a word")


class Background:
    """Shares of token types in the corpus."""

    def __init__(self, token_counts: Int[Tensor, " vocab"], vocabulary: Vocabulary) -> None:
        self.vocabulary = vocabulary
        # half a token more for every type, so that no share is 0
        counts = token_counts.double() + 0.5
        self.share: Float[Tensor, " vocab"] = counts / counts.sum()

    @cached_property
    def traits(self) -> Traits:
        text = self.vocabulary.text
        words = [shown.strip() for shown in text]
        marks = any(shown.startswith(" ") for shown in text)
        return Traits(
            torch.tensor([word[:1].isupper() for word in words]),
            torch.tensor([word.isdigit() for word in words]),
            torch.tensor([bool(word) and not any(c.isalnum() for c in word) for word in words]),
            torch.tensor(
                [
                    marks and bool(w) and not t.startswith(" ") and w[0] not in string.punctuation
                    for t, w in zip(text, words, strict=True)
                ]
            ),
        )

    def contrast(
        self,
        token_ids: Int[Tensor, " tokens"],
        weights: Float[Tensor, " tokens"],
        *,
        least_share: float,
        num: int,
    ) -> list[tuple[str, float]]:
        """Words of larger share among ``token_ids`` than in the corpus, most telling first.

        Variants of a word count together; words below ``least_share`` are left out.
        """
        total = float(weights.sum())
        if total <= 0:
            return []
        types, place = token_ids.unique(return_inverse=True)
        sums = torch.zeros(len(types), dtype=torch.float64).index_add_(0, place, weights.double())
        held: dict[str, tuple[str, float, float]] = {}
        shares = (sums / total).tolist()
        bases = self.share[types].tolist()
        for token, p, q in zip(types.tolist(), shares, bases, strict=True):
            if self.vocabulary.is_word[token]:
                word = self.vocabulary.merged(token)
                shown, p0, q0 = held.get(word, (self.vocabulary.text[token].strip(), 0.0, 0.0))
                held[word] = (shown, p0 + p, q0 + q)
        scored = [
            (shown, p * math.log(p / q))
            for shown, p, q in held.values()
            if p >= least_share and p > q
        ]
        return sorted(scored, key=lambda pair: (-pair[1], pair[0]))[:num]


@register
class ContrastConfig(ExplainerConfig):
    """How much text is looked at, and what counts as remarkable."""

    papers: ClassVar = (
        Paper("Shu et al. 2025", "https://arxiv.org/abs/2503.05613", "3.1"),
        Paper("Foote et al. 2023", "https://arxiv.org/abs/2305.19911", "context of neurons"),
    )
    summary: ClassVar = (
        "One line on what the strongest places have in common and other text has not."
    )
    dials: ClassVar = ("num_windows", "radius", "clear", "num_keywords")
    trust: ClassVar = 1

    method: Literal["contrast"] = "contrast"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    num_keywords: int = Field(default=20, gt=0)
    """Words listed per latent."""

    num_windows: int = Field(default=40, gt=0)
    """Strongest places per latent that are looked at, one per document."""

    radius: int = Field(default=6, gt=0)
    """Tokens on either side that are nearby."""

    clear: float = Field(default=0.5, gt=0, le=1)
    """Share of places from which on something is said of a latent's surroundings or of traits."""

    def explain(self, evidence: Evidence) -> list[ExplanationRow]:
        owners, windows, activation = strongest_windows(
            self.method, evidence, num=self.num_windows, radius=self.radius
        )
        if not owners:
            return []
        background = Background(evidence.statistics.token_counts, evidence.vocabulary)
        latents, sizes = torch.tensor(owners).unique_consecutive(return_counts=True)
        rows, start = [], 0
        for latent, size in zip(latents.tolist(), sizes.tolist(), strict=True):
            own = slice(start, start + size)
            start += size
            told = tell(
                Windows(*(part[own] for part in windows)), activation[own], background,
                clear=self.clear, num=self.num_keywords,
            )  # fmt: skip
            if told.fires_on or told.traits:
                words = [word for word, _ in told.fires_on]
                scores = [score for _, score in told.fires_on]
                rows.append(ExplanationRow(latent, self.method, sentence(told), words, scores))
        return rows


def tell(
    windows: Windows,
    activation: Float[Tensor, " windows"],
    background: Background,
    *,
    clear: float,
    num: int,
) -> Told:
    """What is remarkable about the places in the middle of ``windows``."""
    centre = windows.rows.shape[1] // 2
    peaks = windows.token_ids[:, centre]
    fires_on = background.contrast(peaks, activation, least_share=0.0, num=num)

    def beside(offset: int) -> list[tuple[str, float]]:
        held = windows.inside[:, centre + offset]
        ids = windows.token_ids[:, centre + offset]
        # a share of all places, so those at an end of a document count against it
        share = clear * float(activation.sum()) / max(float(activation[held].sum()), 1e-12)
        return background.contrast(
            ids[held], activation[held], least_share=share, num=_SHOWN_AROUND
        )

    listed = {word for word, _ in fires_on[:_SHOWN]}
    on_listed = torch.tensor(
        [background.vocabulary.text[t].strip() in listed for t in peaks.tolist()]
    )
    before, after = beside(1), beside(-1)
    known = listed | {word for word, _ in before + after}
    near = [
        pair for pair in _nearby(windows, activation, background, clear) if pair[0] not in known
    ]
    return Told(
        fires_on,
        before,
        after,
        near[:_SHOWN_AROUND],
        _traits(windows, activation, background, clear),
        float(activation[on_listed].sum() / activation.sum()),
    )


def sentence(told: Told) -> str:
    """The line for people."""
    words = [word for word, _ in told.fires_on]
    if not words:
        parts = ["fires on no word in particular"]
    elif told.covered >= 0.5 or not (told.traits or told.before or told.after):
        parts = [f"fires on {quoted(words, _SHOWN)}"]
    else:
        parts = [f"fires on many words, such as {quoted(words, _SHOWN_AROUND)}"]
    for name, found in (("before", told.before), ("after", told.after), ("near", told.near)):
        if found:
            parts.append(f"{name} {quoted([word for word, _ in found], _SHOWN_AROUND)}")
    return "; ".join(parts + told.traits)


def _nearby(
    windows: Windows, activation: Float[Tensor, " windows"], background: Background, clear: float
) -> list[tuple[str, float]]:
    """Words that most windows have somewhere beside the middle; each counts once per window."""
    centre = windows.rows.shape[1] // 2
    held = windows.inside.clone()
    held[:, centre] = False
    where = held.nonzero()[:, 0]
    pairs = torch.stack([where, windows.token_ids[held]], dim=1).unique(dim=0)
    num = int(windows.inside.sum(1).max()) - 1
    found = background.contrast(pairs[:, 1], activation[pairs[:, 0]], least_share=0.0, num=50)
    share = _share_of_windows(pairs, activation, background.vocabulary)
    # a word of corpus share q is in 1 - (1 - q)^num of all windows
    base = 1 - (1 - background.share).pow(max(num, 1))
    ids = {background.vocabulary.text[t].strip(): t for t in pairs[:, 1].unique().tolist()}
    return [
        (word, score)
        for word, score in found
        if share[word.lower()] >= clear and float(base[ids[word]]) <= clear / 2
    ]


def _share_of_windows(
    pairs: Int[Tensor, "pairs 2"], activation: Float[Tensor, " windows"], vocabulary: Vocabulary
) -> dict[str, float]:
    total = float(activation.sum())
    seen: dict[str, set[int]] = {}
    for window, token in pairs.tolist():
        seen.setdefault(vocabulary.merged(token), set()).add(window)
    strengths: list[float] = activation.tolist()
    return {word: sum(strengths[w] for w in held) / total for word, held in seen.items()}


def _traits(
    windows: Windows, activation: Float[Tensor, " windows"], background: Background, clear: float
) -> list[str]:
    """What nearly all places have and less than half of the corpus."""
    centre = windows.rows.shape[1] // 2
    peaks = windows.token_ids[:, centre]
    nearly = 1 - clear / 5
    total = float(activation.sum())
    found = []
    for said, has in zip(_SAID, background.traits, strict=True):
        share = float(activation[has[peaks]].sum()) / total
        if share >= nearly and float(background.share[has].sum()) <= 0.5:
            found.append(f"{said} only")
    opening = windows.position < _OPENING
    if float(activation[opening].sum()) / total >= nearly:
        found.append("at the beginning of documents")
    return found
