"""Output LLM: a language model sees what a latent makes the model say, and names it.

It is shown the words that the latent's decoder row promotes and suppresses (as `vocab_proj` ranks
them), or texts that go on with and without the latent being raised, or both. Nothing of where the
latent fires is shown: this explains the output side alone. Reading of replies is that of `llm`.

Source: Gur-Arieh et al. 2025 (output-centric descriptions). Differs from it: the wording, and that
both kinds of evidence can be shown at once. What is added when texts are continued is
``strength`` times the latent's largest activation times its decoder row, at every token that is not
special.
"""

from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Int
from pydantic import Field
from torch import Tensor

from sae_lib.errors import NotApplicable
from sae_lib.explain._asked import FORM, AskingConfig
from sae_lib.explain.base import Evidence, register
from sae_lib.explain.vocab_proj import VocabProjConfig
from sae_lib.llm import Question
from sae_lib.llm.quoting import DATA_IS_DATA, as_json, one_line
from sae_lib.models.places import Place
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ExplanationRow

_TRIED_CONTEXTS = 16
"""Contexts looked at per prompt that is wanted."""


@register
class OutputLlmConfig(AskingConfig):
    """What a language model is shown of a latent's effect."""

    papers: ClassVar = (
        Paper("Gur-Arieh et al. 2025", "https://arxiv.org/abs/2501.08319", "output-centric"),
        Paper("Shu et al. 2025", "https://arxiv.org/abs/2503.05613", "3.2"),
    )
    summary: ClassVar = "A language model's phrase for what the latent makes the model say."
    dials: ClassVar = ("chat", "max_latents", "shows", "strength")
    trust: ClassVar = 0

    method: Literal["output_llm"] = "output_llm"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    shows: Literal["words", "continuations", "both"] = "words"
    """Promoted and suppressed words, texts that go on with the latent raised, or both."""

    num_words: int = Field(default=30, gt=0)
    """Words on either side."""

    norm: Literal["final_norm", "gain", "none"] = "final_norm"
    """What of the model's last norm is applied to the decoder row, as in vocab_proj."""

    strength: float = 1.0
    """Value that is added, in units of the latent's largest activation."""

    num_prompts: int = Field(default=4, gt=0)
    """Stretches of the corpus that are continued."""

    prompt_tokens: int = Field(default=8, gt=0)
    """Tokens of each."""

    max_new_tokens: int = Field(default=20, gt=0)
    """Tokens of a continuation."""

    temperature: float = Field(default=0.7, gt=0)
    """Sampling temperature of continuations."""

    def check(self, evidence: Evidence) -> None:
        if self.shows != "continuations":
            self._projection.check(evidence)
        if self.shows == "words":
            return
        if not (evidence.model.has_lm_head and evidence.model.is_causal):
            raise NotApplicable(self.method, "the model predicts no next token.")
        place = Place.parse(evidence.site)
        if len(place.writes) != 1 or evidence.coder.W_dec.ndim != 2:
            raise NotApplicable(
                self.method, f"decoder rows of {evidence.site} belong to several sites."
            )
        if evidence.corpus is None:
            raise NotApplicable(self.method, "it continues text, and the corpus is not at hand.")
        if self.prompt_tokens + self.max_new_tokens > evidence.model.info.max_context:
            raise NotApplicable(
                self.method,
                f"prompt and continuation are longer than {evidence.model.info.max_context}"
                " tokens; give smaller prompt_tokens or max_new_tokens.",
            )

    @property
    def _projection(self) -> VocabProjConfig:
        return VocabProjConfig(num_keywords=self.num_words, norm=self.norm)

    def explain(self, evidence: Evidence) -> list[ExplanationRow]:
        latents = self.chosen(evidence)
        shown: dict[int, dict[str, object]] = {latent: {} for latent in latents}
        if self.shows != "continuations":
            for row in self._projection.explain(evidence._replace(alive=latents)):
                pairs = list(zip(row.keywords, row.keyword_scores, strict=True))
                shown[row.latent] |= {
                    "promoted": [one_line(word) for word, score in pairs if score > 0],
                    "suppressed": [one_line(word) for word, score in pairs if score < 0],
                }
        if self.shows != "words":
            for latent, texts in self.continuations(evidence, latents).items():
                shown[latent]["texts"] = texts
        return self.ask(evidence, {latent: self.question(what) for latent, what in shown.items()})

    def question(self, shown: dict[str, object]) -> Question:
        """What the model is asked about a latent with this effect."""
        told = []
        if "promoted" in shown:
            told.append(
                "promoted and suppressed list the words that become likelier and less likely when"
                " the unit is active, the strongest first"
            )
        if "texts" in shown:
            told.append(
                "texts are beginnings, each with how the model goes on by itself (plain) and how it"
                " does while the unit is held active (raised)"
            )
        return Question.of(
            "You study units inside a language model. A unit that is active makes some words"
            f" likelier. You get what one unit does, as JSON: {'; '.join(told)}.\n\n"
            f"{DATA_IS_DATA}\n\n"
            "Say what concept the unit makes the model speak of, or what kind of word it makes the"
            " model choose. Rare words and pieces of words may be noise; look for what most of the"
            f" evidence shares. Write about the concept, not about the unit.\n\n{FORM}",
            as_json(shown),
        )

    @torch.no_grad()
    def continuations(
        self, evidence: Evidence, latents: list[int]
    ) -> dict[int, list[dict[str, str]]]:
        """By latent how each beginning goes on without and with the latent raised."""
        model = evidence.model
        tokens, keep = self._prompts(evidence)
        special = torch.tensor(sorted(model.special_ids), dtype=torch.int64)
        acts = keep & ~torch.isin(tokens, special)
        begin = [self._text(model, row) for row in tokens]
        plain = self._go_on(evidence, tokens)
        largest = evidence.statistics.max_activation
        mask = acts.to(model.device)
        found = {}
        # one latent at a time: row i of a batch always draws the same, with and without the latent
        for latent in latents:
            row = evidence.coder.W_dec.detach()[latent].to(model.device)
            added = self.strength * float(largest[latent]) * row

            def edit(x: Tensor, added: Tensor = added) -> Tensor:
                # every step but the first has the newest token alone
                where = mask if x.shape[1] == mask.shape[1] else mask.new_ones(x.shape[:2])
                return x + (where.unsqueeze(-1) * added).to(x)

            with model.intervene({Place.parse(evidence.site).writes[0]: edit}):
                raised = self._go_on(evidence, tokens)
            found[latent] = [
                {"begins": a, "plain": b, "raised": c}
                for a, b, c in zip(begin, plain, raised, strict=True)
            ]
        return found

    def _prompts(
        self, evidence: Evidence
    ) -> tuple[Int[Tensor, "prompts seq"], Bool[Tensor, "prompts seq"]]:
        """Beginnings of contexts that lie in one document, spread over the corpus."""
        corpus = evidence.corpus
        assert corpus is not None
        num = self.num_prompts * _TRIED_CONTEXTS
        chosen = torch.linspace(0, corpus.num_contexts - 1, num).long().unique()
        held = corpus.rows(chosen)
        document = held.document[:, : self.prompt_tokens]
        whole = (document >= 0).all(1) & (document == document[:, :1]).all(1)
        rows = whole.nonzero().flatten()
        if not len(rows):
            raise NotApplicable(
                self.method,
                f"no document has {self.prompt_tokens} tokens at the beginning of a context; give"
                " smaller prompt_tokens.",
            )
        at = torch.linspace(0, len(rows) - 1, self.num_prompts).long().unique()
        cut = slice(0, self.prompt_tokens)
        return held.tokens[rows[at], cut], held.keep[rows[at], cut]

    def _go_on(self, evidence: Evidence, tokens: Int[Tensor, "texts seq"]) -> list[str]:
        whole = evidence.model.generate(
            tokens.to(evidence.model.device), max_new_tokens=self.max_new_tokens,
            temperature=self.temperature, seed=self.seed,
        )  # fmt: skip
        return [self._text(evidence.model, row) for row in whole[:, tokens.shape[1] :]]

    @staticmethod
    def _text(model: Any, row: Int[Tensor, " seq"]) -> str:
        return one_line(model.tokenizer.decode(row.cpu(), skip_special_tokens=True))
