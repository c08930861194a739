"""MaxAct: a latent is what the text has in common on which it is strongest.

    I_c = argmax over K-subsets X' of X of sum_{x in X'} a_c(x)      (the K largest; eq. 4)

with a_c(x) the latent's code on token x. The K stretches of text are the latent's examples; its
keywords are the token types that carry its activation over the *whole* corpus, weighted against
how frequent they are (see `tally`), because the K strongest places may all show one word.
Special tokens are never strongest: they are not among the kept tokens.

Differs from the survey: the sum uses the latent's code (bias and nonlinearity included), not the
dot product with the decoder row; and no stretch repeats a document or another's tokens.
"""

from typing import ClassVar, Literal

from pydantic import Field

from sae_lib.explain.base import Evidence, ExplainerConfig, register
from sae_lib.explain.examples import ExamplesConfig
from sae_lib.explain.tally import keywords
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ExampleRow, ExplanationRow


@register
class MaxActConfig(ExplainerConfig):
    """What is listed of the text on which a latent is strongest."""

    papers: ClassVar = (
        Paper("Shu et al. 2025", "https://arxiv.org/abs/2503.05613", "3.1, equation 4"),
        Paper(
            "Bricken et al. 2023",
            "https://transformer-circuits.pub/2023/monosemantic-features",
            "feature dashboards",
        ),
    )
    summary: ClassVar = "Tokens and stretches of text on which the latent is strongest."
    dials: ClassVar = ("num_keywords", "rank_by", "examples")
    trust: ClassVar = 2

    method: Literal["max_act"] = "max_act"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    examples: ExamplesConfig = ExamplesConfig()
    """The stretches of text that are kept for each latent."""

    num_keywords: int = Field(default=20, gt=0)
    """Token types listed per latent."""

    rank_by: Literal["contribution", "mean_activation"] = "contribution"
    """Keyword score: share of activation times its log ratio to frequency, or the plain mean."""

    def explain(self, evidence: Evidence) -> list[ExplanationRow]:
        statistics = evidence.statistics
        found = keywords(
            statistics.tally,
            statistics.token_counts,
            evidence.vocabulary.is_word,
            num_keywords=self.num_keywords,
            rank_by=self.rank_by,
        )
        rows = []
        for latent in evidence.alive:
            if latent not in found and latent not in evidence.examples:
                continue
            ids, scores = found.get(latent, ([], []))
            words = [evidence.vocabulary.text[i].strip() for i in ids]
            text = _sentence(words, evidence.examples.get(latent, []))
            rows.append(ExplanationRow(latent, self.method, text, words, list(scores)))
        return rows


def _sentence(words: list[str], examples: list[ExampleRow]) -> str:
    """One line for people: the leading words, and the strongest place with its token marked."""
    parts = [f"fires on {', '.join(words[:5])}" if words else "fires on no word in particular"]
    if examples:
        best = examples[0]
        shown = [
            f"[{token.strip()}]" if i == best.peak else token.strip()
            for i, token in enumerate(best.tokens)
            if abs(i - best.peak) <= 5
        ]
        parts.append(f"strongest in: {' '.join(' '.join(shown).split())}")
    return "; ".join(parts)
