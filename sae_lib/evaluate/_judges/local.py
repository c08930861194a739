"""A judge that is a local language model, read by its next-token probabilities.

    score = P(yes) / (P(yes) + P(no)),   level of a token = sum_v v P(v) / sum_v P(v),  v = 0 .. 9

Nothing has to be parsed, so a window has no score only where both words are impossible. Levels are
read after every token in one forward, each in place of a mark that stands for "not said yet", and
are stretched to 0 .. 10.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import torch
from jaxtyping import Float, Int
from pydantic import Field
from torch import Tensor

from sae_lib.errors import BadInput, NotApplicable
from sae_lib.evaluate._judgements import expected_level
from sae_lib.evaluate._judges import prompts
from sae_lib.evaluate._judges.base import (
    Asked,
    Description,
    Excerpt,
    Judge,
    JudgeConfig,
    Scores,
    Sets,
)
from sae_lib.evaluate._judges.prompts import Prompt
from sae_lib.llm.base import Question
from sae_lib.llm.local import chat_ids, say, with_bos
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import LanguageModel, load_model

_CHUNK_LOGITS = 2**25
"""Logits (tokens x vocabulary) held at a time: 128 MiB."""

_UNKNOWN_LEVEL = "?"


class LocalConfig(JudgeConfig):
    """Judge by a language model on this machine."""

    kind: Literal["local"] = "local"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    model: ModelConfig
    """The judge; it may be the model whose latents are described, which then judges itself."""

    batch_prompts: int = Field(default=16, gt=0)
    """Prompts per forward pass."""

    yes: str = "yes"
    """The word that means yes; its first token is read."""

    no: str = "no"
    """The word that means no."""

    max_new_tokens: int = Field(default=400, gt=0)
    """Length of texts that are written."""

    def models(self) -> list[str]:
        return [self.model.id]

    def start(self, bench: Any) -> Judge:
        device = str(bench.model.device)
        found = load_model(self.model, device=device, relative_to=bench.relative_to)
        return LocalJudge(found, self)


class LocalJudge(Judge):
    """Asks ``model`` one window at a time, many in a batch."""

    def __init__(self, model: LanguageModel, cfg: LocalConfig) -> None:
        if not model.has_lm_head:
            raise NotApplicable("the local judge", f"{model.info.id} predicts no next token.")
        self.model, self.cfg = model, cfg
        self.yes, self.no = self._words(cfg.yes, "judge.yes"), self._words(cfg.no, "judge.no")
        if set(self.yes) & set(self.no):
            raise BadInput(
                "yes and no begin with the same token; give words that do not.",
                key="judge.yes",
                value=cfg.yes,
            )

    def detect(self, asked: Sequence[Asked]) -> Scores:
        return self._yes_no(
            [[prompts.yes_no_prompt(a.description, e) for e in a.excerpts] for a in asked]
        )

    def fuzz(self, asked: Sequence[Asked]) -> Scores:
        return self._yes_no(
            [[prompts.highlight_prompt(a.description, e) for e in a.excerpts] for a in asked]
        )

    def intrude(self, groups: Sequence[Sequence[Excerpt]]) -> list[int | None]:
        return self._choose([(prompts.intruder_prompt(group), len(group)) for group in groups])

    def match(self, asked: Sequence[Sets]) -> list[int | None]:
        return self._choose(
            [(prompts.matching_prompt(a.description, a.sets), len(a.sets)) for a in asked]
        )

    @torch.no_grad()
    def simulate(self, asked: Sequence[Asked]) -> list[list[list[float] | None]]:
        digits = self._digits()
        return [[self._levels(a.description, e, digits) for e in a.excerpts] for a in asked]

    def surprise(self, asked: Sequence[Asked]) -> Scores:
        """Mean loss per token behind no description, minus that behind the description."""
        plain = "Various texts that have nothing in common.\nText: "
        found: Scores = []
        for description, excerpts in asked:
            told = f"Texts with something in common: {description.text}\nText: "
            found.append([self._loss(plain, e.text) - self._loss(told, e.text) for e in excerpts])
        return found

    def resemble(self, asked: Sequence[Asked]) -> Scores:
        """Cosine of mean activations after the last block, each less the mean of all that is
        compared."""
        found: Scores = []
        for description, excerpts in asked:
            texts = [description.text, *(e.text for e in excerpts)]
            means = torch.stack([self._mean_activation(text) for text in texts])
            own = torch.nn.functional.normalize(means - means[1:].mean(0), dim=1)
            found.append((own[1:] @ own[0]).tolist())
        return found

    def write(
        self, descriptions: Sequence[Description], num: int, *, fitting: bool
    ) -> list[list[str] | None]:
        asked = [prompts.writing_prompt(d, num, fitting=fitting) for d in descriptions]
        return [prompts.read_texts(self._say(prompt), num) for prompt in asked]

    def continue_like(self, examples: Sequence[Sequence[str]], num: int) -> list[list[str] | None]:
        asked = [prompts.similar_prompt(texts, num) for texts in examples]
        return [prompts.read_texts(self._say(prompt), num) for prompt in asked]

    def token_ids(self, prompt: Prompt) -> list[int]:
        """The prompt in the tokenizer's chat form, where it has one, up to the reply."""
        return chat_ids(self.model, Question.of(prompt.system, prompt.user))

    def _with_bos(self, ids: list[int]) -> list[int]:
        return with_bos(self.model, ids)

    def _ids(self, text: str) -> list[int]:
        return self.model.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _words(self, word: str, key: str) -> list[int]:
        """First tokens of a word's spellings."""
        never = {self.model.tokenizer.unk_token_id}
        forms = (word, f" {word}", word.capitalize(), f" {word.capitalize()}")
        split = [ids for ids in map(self._ids, forms) if ids]
        blank = {ids[0] for ids in split if not self.model.tokenizer.decode(ids[:1]).strip()}
        found = sorted({ids[0] for ids in split} - never - blank)
        if not found:
            raise BadInput(
                "the judge's tokenizer does not know this word; give one that it knows.",
                key=key,
                value=word,
            )
        return found

    def _yes_no(self, asked: list[list[Prompt]]) -> Scores:
        flat = [prompt for group in asked for prompt in group]
        logp = self._next_logp([self.token_ids(prompt) for prompt in flat])
        yes, no = logp[:, self.yes].logsumexp(1), logp[:, self.no].logsumexp(1)
        score = iter((yes - no).sigmoid().tolist())
        return [[_number(next(score)) for _ in group] for group in asked]

    def _choose(self, asked: list[tuple[Prompt, int]]) -> list[int | None]:
        logp = self._next_logp([self.token_ids(prompt) for prompt, _ in asked])
        found: list[int | None] = []
        for row, (_, num) in zip(logp, asked, strict=True):
            options = [self._words(str(i), "judge.model") for i in range(1, num + 1)]
            found.append(int(torch.stack([row[ids].logsumexp(0) for ids in options]).argmax()))
        return found

    @torch.no_grad()
    def _next_logp(self, rows: list[list[int]]) -> Float[Tensor, "prompts vocab"]:
        """Log-probabilities of the token after each prompt; too long prompts lose their front."""
        room = self.model.info.max_context
        found = torch.zeros(len(rows), self.model.vocab_size)
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        for low in range(0, len(order), self.cfg.batch_prompts):
            part = order[low : low + self.cfg.batch_prompts]
            width = min(room, max(len(rows[i]) for i in part))
            tokens, mask = (
                torch.zeros(len(part), width, dtype=torch.long),
                torch.zeros(len(part), width, dtype=torch.bool),
            )
            for place, i in enumerate(part):
                own = rows[i][-width:]
                tokens[place, width - len(own) :] = torch.tensor(own)
                mask[place, width - len(own) :] = True
            logits = self.model.logits(tokens, mask=mask)[:, -1].float().cpu()
            found[part] = logits.log_softmax(-1)
        return found

    @cached_property
    def _digit_ids(self) -> list[list[int]]:
        return [self._words(str(i), "judge.model") for i in range(10)]

    def _digits(self) -> list[list[int]]:
        try:
            return self._digit_ids
        except BadInput as error:
            raise NotApplicable(
                "simulation", "the judge's tokenizer does not know the digits."
            ) from error

    def _levels(
        self, description: Description, excerpt: Excerpt, digits: list[list[int]]
    ) -> list[float] | None:
        prompt = prompts.simulation_prompt(description, excerpt)
        ids, reads = self.token_ids(prompt), []
        for token in excerpt.tokens:
            ids += self._ids(f"\n{token.strip()}\t")
            reads.append(len(ids) - 1)
            ids += self._ids(_UNKNOWN_LEVEL)
        too_long = max(0, len(ids) - self.model.info.max_context)
        if too_long > reads[0]:
            return None
        logits = self._logits(ids[too_long:])[[at - too_long for at in reads]]
        p = logits.softmax(-1)
        found = []
        for row in p:
            level = expected_level({v: float(row[own].sum()) for v, own in enumerate(digits)})
            if level is None:
                return None
            found.append(level * prompts.MAX_LEVEL / 9)
        return found

    @torch.no_grad()
    def _logits(self, ids: list[int]) -> Float[Tensor, "tokens vocab"]:
        return self.model.logits(torch.tensor([ids]))[0].float().cpu()

    def _loss(self, before: str, text: str) -> float:
        """Mean loss of the tokens of ``text`` behind ``before``, nats."""
        lead, own = self._with_bos(self._ids(before)), self._ids(text)
        ids = [*lead, *own][-self.model.info.max_context :]
        num = min(len(own), len(ids) - 1)
        logp = self._logits(ids)[-num - 1 : -1].log_softmax(-1)
        return float(-logp[torch.arange(num), torch.tensor(ids[-num:])].mean())

    @torch.no_grad()
    def _mean_activation(self, text: str) -> Float[Tensor, " d_model"]:
        ids: Int[Tensor, "one seq"] = torch.tensor([self._with_bos(self._ids(text))])
        site = f"resid_post.{self.model.num_layers - 1}"
        ids = ids[:, : self.model.info.max_context]
        return self.model.capture(ids, [site])[site][0, 1:].float().mean(0).cpu()

    def _say(self, prompt: Prompt) -> str:
        return say(self.model, self.token_ids(prompt), self.cfg.max_new_tokens).text


def _number(score: float) -> float | None:
    return score if score == score else None
