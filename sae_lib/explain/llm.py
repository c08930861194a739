"""LLM: a language model reads where a latent fires, and says what these places have in common.

It is shown the latent's strongest stretches of text and some on which it fires more weakly, each
with its active tokens marked, its strength and the strongest tokens with their activations from 0
to 10 (`ceil(10 a / max)`). Texts are strings of JSON, marked by signs that occur in none of them
(`sae_lib.llm.quoting`). The reply is one JSON object, read strictly; where there is none after one
question back, the row says so and counts as no explanation.

Sources: Bills et al. 2023, Paulo et al. 2024 (delphi; runs of marked tokens, strong and weaker
examples), Karvonen et al. 2025 (SAEBench; one short phrase). Differs from them: the wording; weaker
examples come from intervals of activation instead of ranks; marks are relative to each text's own
largest activation, so that weak texts have marks as well; the reply has a fixed form.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from sae_lib.explain._asked import FORM, AskingConfig, level, words_and_levels
from sae_lib.explain._weaker import weaker_examples
from sae_lib.explain.base import Evidence, register
from sae_lib.llm import Question
from sae_lib.llm.quoting import DATA_IS_DATA, Marks, as_json, marked_text, marks_for
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ExampleRow, ExplanationRow

_PAIRS = 11
"""Tokens of a text that are listed with their activation, at most."""


@register
class LlmConfig(AskingConfig):
    """What a language model is shown of a latent."""

    papers: ClassVar = (
        Paper(
            "Bills et al. 2023",
            "https://openaipublic.blob.core.windows.net/neuron-explainer/paper/index.html",
            "explaining",
        ),
        Paper("Paulo et al. 2024", "https://arxiv.org/abs/2410.13928", "explainers"),
        Paper("Shu et al. 2025", "https://arxiv.org/abs/2503.05613", "3.1"),
    )
    summary: ClassVar = "A language model's phrase for what the places have in common."
    dials: ClassVar = ("chat", "max_latents", "num_strongest", "num_weaker")
    trust: ClassVar = 4

    method: Literal["llm"] = "llm"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    num_strongest: int = Field(default=10, gt=0)
    """Strongest stretches of text shown per latent, of those that are kept as examples."""

    num_weaker: int = Field(default=2, ge=0)
    """Stretches shown from each weaker interval of activation."""

    num_intervals: int = Field(default=5, gt=0, le=10)
    """Intervals between 0 and the latent's maximum."""

    radius: int = Field(default=10, ge=0)
    """Tokens of a weaker stretch on either side; strongest ones are as they are kept."""

    mark_share: float = Field(default=0.3, ge=0, lt=1)
    """Tokens above this share of their text's largest activation are marked."""

    show_activations: bool = True
    """Whether tokens are also listed with their activation."""

    def explain(self, evidence: Evidence) -> list[ExplanationRow]:
        latents = [latent for latent in self.chosen(evidence) if evidence.examples.get(latent)]
        weaker = weaker_examples(
            evidence, latents, num_intervals=self.num_intervals, per_interval=self.num_weaker,
            radius=self.radius,
        )  # fmt: skip
        largest: list[float] = evidence.statistics.max_activation.tolist()
        questions = {}
        for latent in latents:
            shown = evidence.examples[latent][: self.num_strongest]
            places = {(row.document, row.position) for row in shown}
            more = [
                row for row in weaker.get(latent, ()) if (row.document, row.position) not in places
            ]
            questions[latent] = self.question([*shown, *more], largest[latent])
        return self.ask(evidence, questions)

    def question(self, examples: Sequence[ExampleRow], largest: float) -> Question:
        """What the model is asked about a latent with these examples."""
        marks = marks_for(token for row in examples for token in row.tokens)
        texts = [self._shown(row, largest, marks) for row in examples]
        return Question.of(_instructions(marks, self.show_activations), as_json({"texts": texts}))

    def _shown(self, row: ExampleRow, largest: float, marks: Marks) -> dict[str, object]:
        least = self.mark_share * max(row.activations)
        is_marked = [value > 0 and value >= least for value in row.activations]
        shown: dict[str, object] = {
            "text": marked_text(row.tokens, is_marked, marks),
            "strength": level(row.max_activation, largest),
        }
        if self.show_activations:
            shown["tokens"] = words_and_levels(row.tokens, row.activations, largest, _PAIRS)
        return shown


def _instructions(marks: Marks, with_activations: bool) -> str:
    listed = (
        " Under tokens the strongest tokens of the text are listed, each with how active the unit"
        " is on it, from 0 to 10."
        if with_activations
        else ""
    )
    return (
        "You study units inside a language model. A unit is active on tokens that have something"
        " in common: a word, a part of words, a kind of thing, a topic, a form, a role in the"
        " sentence. You get texts on which one unit is active, as JSON, the strongest first. In"
        f" each text the tokens on which it is active stand between {marks.before} and"
        f" {marks.after}, and strength says how active it gets there, from 0 to 10.{listed}\n\n"
        f"{DATA_IS_DATA}\n\n"
        "Say what the marked tokens have in common, or what always stands before or around them."
        " Be as specific as all of the texts allow, and no more; texts of great strength count"
        " most. Write about the texts, not about marks, tokens or units."
        f"\n\n{FORM}"
    )
