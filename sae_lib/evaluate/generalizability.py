"""What a coder is worth away from where it was trained: other text, longer text, a finetuned model.

Each quantity is measured on documents like the training text and on those of every other corpus:

    fvu            sum |e|^2 / sum |x - mean|^2     the mean of training tokens, or the corpus's own
    ev             1 - fvu, for both means
    ce_score       (CE(ablated) - CE(spliced)) / (CE(ablated) - CE(clean))
    delta_lm_loss  CE(spliced) - CE(clean), nats
    l0, dead_share (never on), dense_share (on for more than 10 % of the tokens)
    divergence     Jensen-Shannon, in bits, of the latents' firing frequencies from those on
                   in-distribution text

    difference = value there - value in distribution
    ratio      = value there / value in distribution        of ce_score: the transfer ratio

A second sample of in-distribution documents goes through the same mill: its differences are what
chance alone makes (`control`). A row of tokens is one document behind a BOS, never packed.
Longer contexts: tokens are grouped by place (1-7, 8-31, 32-127, ...), and places beyond the
training context are compared with those of the quarter before it and later *in the same
documents*, since the first tokens are always worse. Finetuned model: the same coders on its
activations, over plain text and over chats, where tokens of the user, of the assistant and of the
template are told apart.

Standard errors: bootstrap over documents (both corpora drawn anew; the same draws where they are
the same documents). Shares of latents and divergences have none, for a sample of documents drawn
from the sample fires fewer latents: compare them with the control. Means are over corpora.

Source: protocol after Lieberum et al. 2024 and He et al. 2024. SAEBench has no such evaluation.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field
from torch import Tensor

from sae_lib.activations.task_tables import TableConfig, local_files, table_rows
from sae_lib.apply.tasks import document_pool
from sae_lib.errors import NotApplicable
from sae_lib.evaluate._moments import Estimate
from sae_lib.evaluate._transfer import (
    QUANTITIES,
    Ablation,
    Documents,
    Sums,
    by_position,
    by_speaker,
    firing_frequency,
    jensen_shannon,
    quantities,
    resample,
    transfer_sums,
)
from sae_lib.evaluate.base import Definition, register
from sae_lib.evaluate.bench import Bench, Measured, OnProgress, TaskMetric
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import LanguageModel, load_model
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import Measurement

WORLD_IN_DISTRIBUTION = "world:in-distribution"
WORLD_CORPORA = (
    "world:ood-recipes",
    "world:ood-mixed-topics",
    "world:ood-gender-correlated",
)
WORLD_LONG = ("world:longer-context",)
WORLD_CHATS = ("world:ood-chat",)
WORLD_CHAT_MODEL = "world-chat"

DENSE = 0.1
"""Share of tokens above which a latent is dense."""

IN_DISTRIBUTION, CONTROL = "in-distribution", "control"

OF_LATENTS = ("dead_share", "dense_share", "divergence")

_TEXTS = {
    "fvu": ("sum |e|^2 / sum |x - training mean|^2", "lower"),
    "fvu_own_mean": ("sum |e|^2 / sum |x - mean of the corpus|^2", "lower"),
    "explained_variance": ("1 - sum |e|^2 / sum |x - training mean|^2", "higher"),
    "explained_variance_own_mean": ("1 - sum |e|^2 / sum |x - mean of the corpus|^2", "higher"),
    "ce_score": ("(CE(ablated) - CE(spliced)) / (CE(ablated) - CE(clean))", "higher"),
    "delta_lm_loss": ("CE(spliced) - CE(clean), nats per token", "lower"),
    "l0": ("mean over tokens of the number of z > 0", "neither"),
    "dead_share": ("share of latents that are never on in the corpus", "lower"),
    "dense_share": ("share of latents that are on for more than a tenth of the tokens", "lower"),
    "divergence": (
        "Jensen-Shannon divergence, bits, of firing frequencies from those in distribution",
        "lower",
    ),
}

_KINDS = {
    "transfer_ratio": "mean over corpora of other text of: value there / in distribution",
    "transfer_difference": "mean over corpora of other text of: value there - in distribution",
    "long_context_difference": (
        "mean over corpora of long documents of: value beyond the training context - value at"
        " earlier places of the same documents, past the first"
    ),
    "chat_model_ratio": "finetuned model on in-distribution text / the model itself there",
    "chat_model_difference": "finetuned model on in-distribution text - the model itself there",
    "control_difference": "another sample of in-distribution text - in distribution: chance alone",
    "in_distribution": "on text like the training text",
    "value_of_one": "on one corpus, by the model named",
    "difference_of_one": "on one corpus - in distribution",
    "ratio_of_one": "on one corpus / in distribution",
    "group_of_one": "on the tokens of one group of one corpus: places, or who speaks",
    "long_context_difference_of_one": "beyond the training context - earlier, in one corpus",
}

_IN_GROUPS = ("fvu", "ce_score", "delta_lm_loss", "l0")
"""Quantities of which a group of tokens has its own."""

_OF_DIVERGENCE = ("transfer_difference", "chat_model_difference", "control_difference")


def _definition(quantity: str, kind: str) -> Definition:
    text, better = _TEXTS[quantity]
    if quantity == "divergence":
        words = _KINDS["value_of_one"] if kind == "value_of_one" else _KINDS[kind].split(":")[0]
        return Definition(
            "generalizability_divergence", kind, f"{text}; {words}", "lower", 0.0, 1.0
        )
    if kind.endswith(("ratio", "ratio_of_one")):
        towards: Any = "neither" if better == "neither" else better
    else:
        towards = better
    return Definition(f"generalizability_{quantity}", kind, f"{text}; {_KINDS[kind]}", towards)


def _kinds(quantity: str) -> list[str]:
    """Kinds of rows that a quantity has."""
    if quantity == "divergence":
        return [*_OF_DIVERGENCE, "value_of_one"]
    if quantity in OF_LATENTS:
        return [k for k in _KINDS if "group" not in k and "long" not in k]
    if quantity not in _IN_GROUPS:
        return [k for k in _KINDS if "group" not in k and "long" not in k]
    return list(_KINDS)


DEFINITIONS = {
    (quantity, kind): _definition(quantity, kind)
    for quantity in _TEXTS
    for kind in _kinds(quantity)
}
HEADLINE = DEFINITIONS["ce_score", "transfer_ratio"]


class _Corpus(NamedTuple):
    """One text condition."""

    name: str
    documents: Documents
    pair: int
    """Conditions of the same documents have the same number, and the same bootstrap samples."""

    model: str
    """Id of the model that reads it."""

    role: Literal["control", "text", "chat_model", "both"]
    """What a difference from in-distribution text is due to."""


class Value(NamedTuple):
    """A number and its bootstrap samples; both NaN where there is none."""

    value: float
    draws: Float[Tensor, " draws"]

    def estimate(self, num: int, missing: str = "") -> Estimate:
        """The number with the standard deviation of the samples."""
        if not math.isfinite(self.value):
            return Estimate(None, n=num, unit="documents", reason=missing or "0 divided by 0")
        known = self.draws[self.draws.isfinite()]
        stderr = float(known.std()) if len(known) > 1 and num > 1 else None
        return Estimate(self.value, stderr, num, "documents")


@register
class GeneralizabilityConfig(TaskMetric):
    """Which corpora, which finetuned model, and how many documents of each."""

    papers = (
        Paper("Lieberum et al. 2024", "https://arxiv.org/abs/2408.05147", "4.6, 4.4, transfer"),
        Paper("He et al. 2024", "https://arxiv.org/abs/2410.20526", "longer contexts, finetuned"),
        Paper("Shu et al. 2025", "https://arxiv.org/abs/2503.05613", "4.2, generalizability"),
    )
    summary = "the coder on other text, longer contexts and a finetuned model, beside its own text"
    survey = (
        "Generalizability",
        "FVU",
        "Explained Variance",
        "Cross-Entropy Loss",
        "Delta LM Loss",
        "L0 Sparsity",
        "Latent Firing Frequency",
    )

    name: Literal["generalizability"] = "generalizability"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    in_distribution: TableConfig | None = None
    """Documents like the training text, column ``text``; none: the world's, else the corpus's."""

    corpora: tuple[str | TableConfig, ...] = ()
    """Corpora of other text, column ``text``; none: the world's, on the world."""

    long: tuple[str | TableConfig, ...] = ()
    """Corpora of documents longer than a training context; none: the world's, on the world."""

    chats: tuple[str | TableConfig, ...] = ()
    """Chats, written in the template, column ``text``; none: the world's, on the world."""

    chat_model: str | None = None
    """Finetuned model that the coders are tried on; none: the world's, on the world."""

    markers: Mapping[str, str] = Field(
        default_factory=lambda: {"user": "<user>", "assistant": "<assistant>"}
    )
    """By speaker, how a turn begins in the chats."""

    template: tuple[str, ...] = ()
    """Other pieces of the template, such as what ends a turn."""

    num_documents: int = Field(default=32, ge=4)
    """Documents per corpus; of in-distribution text as many again for the control."""

    context: int = Field(default=128, gt=1)
    """Positions of a training context, where the experiment has no corpus that says so."""

    ablation: Ablation = "zero"
    """What ce_score takes as worst: zeros, or the mean activation over training tokens."""

    resamples: int = Field(default=1000, gt=1)
    """Bootstrap samples."""

    seed: int = Field(default=0, ge=0)
    """Seed of the bootstrap."""

    @classmethod
    def definitions(cls) -> list[Definition]:
        return [HEADLINE, *(d for d in DEFINITIONS.values() if d != HEADLINE)]

    def check(self, bench: Bench) -> None:
        if not bench.model.has_lm_head:
            raise NotApplicable(self.name, "the model has no language-model head.")
        if not bench.model.is_causal:
            raise NotApplicable(self.name, "the model sees the next token before predicting it.")
        if bench.world is None and not (self.corpora or self.long or self.chats or self.chat_model):
            raise NotApplicable(
                self.name, "no other corpora are named, and only the bundled world brings its own."
            )
        if bench.world is None and bench.split is None and self.in_distribution is None:
            raise NotApplicable(self.name, "there is no in-distribution text to compare with.")

    def files(self, relative_to: Path) -> list[Path]:
        named = [self.in_distribution, *self.corpora, *self.long, *self.chats]
        return local_files(*named, relative_to=relative_to)

    def models(self) -> list[str]:
        # on another model than the world's the default is not loaded, and costs nothing to name
        return [self.chat_model or WORLD_CHAT_MODEL]

    def measure(self, bench: Bench, on_progress: OnProgress) -> dict[str, Measured]:
        context = bench.split.context if bench.split is not None else self.context
        chat_model, no_chat_model = self._chat_model(bench)
        corpora = self._corpora(bench, context, chat_model)
        weights = {
            c.pair: resample(len(c.documents.tokens), self.resamples, self.seed + c.pair)
            for c in corpora
        }
        sums: dict[int, dict[str, Sums]] = {}
        for number, corpus in enumerate(corpora):
            on_progress(number, len(corpora))
            model = bench.model if corpus.model == bench.model.info.id else chat_model
            assert model is not None
            sums[number] = transfer_sums(
                model,
                bench.site,
                bench.coders,
                corpus.documents,
                bench.mean_activation.to(model.device),
                ablation=self.ablation,
            )
        on_progress(len(corpora), len(corpora))
        return {
            name: Measured(
                self._rows(corpora, [sums[i][name] for i in sums], weights, context, no_chat_model)
            )
            for name in bench.coders
        }

    def _chat_model(self, bench: Bench) -> tuple[LanguageModel | None, str]:
        """The finetuned model, or why there is none."""
        name = self.chat_model
        if name is None and bench.world is not None and bench.model.info.id != WORLD_CHAT_MODEL:
            name = WORLD_CHAT_MODEL
        if name is None:
            return None, "no finetuned model is named"
        model = load_model(
            ModelConfig(id=name), device=str(bench.model.device), relative_to=bench.relative_to
        )
        ours, other = bench.model.info, model.info
        if (ours.d_model, ours.num_layers) != (other.d_model, other.num_layers):
            return None, f"{name} has another shape than the model that the coders read"
        return model, ""

    def _corpora(
        self, bench: Bench, context: int, chat_model: LanguageModel | None
    ) -> list[_Corpus]:
        """In-distribution text, its control, then everything else."""
        on_world = bench.world is not None
        chats = self.chats or (WORLD_CHATS if on_world else ())
        texts = [
            *(self.corpora or (WORLD_CORPORA if on_world else ())),
            *(self.long or (WORLD_LONG if on_world else ())),
        ]
        own = bench.model.info.id
        both = self._in_distribution(bench)
        first, second = both[: len(both) // 2], both[len(both) // 2 :]
        found = [
            _Corpus(IN_DISTRIBUTION, by_position(bench.model, first, context), 0, own, "text"),
            _Corpus(CONTROL, by_position(bench.model, second, context), 1, own, "control"),
        ]
        for table in texts:
            given = self._texts(bench, table, self.num_documents)
            documents = by_position(bench.model, given, context)
            found.append(_Corpus(_name(table), documents, len(found), own, "text"))
        for table in chats:
            given = self._texts(bench, table, self.num_documents)
            documents = by_speaker(bench.model, given, self.markers, self.template)
            found.append(_Corpus(_name(table), documents, len(found), own, "text"))
        if chat_model is not None:
            name = chat_model.info.id
            read = [found[0], *(c for c in found if c.name in {_name(t) for t in chats})]
            found += [
                c._replace(model=name, role="chat_model" if c is found[0] else "both") for c in read
            ]
        return found

    def _in_distribution(self, bench: Bench) -> list[str]:
        num = 2 * self.num_documents
        table = self.in_distribution
        if table is None and bench.world is not None:
            table = TableConfig(id=WORLD_IN_DISTRIBUTION)
        if table is not None:
            return self._texts(bench, table, num)
        return document_pool(bench.for_applications, num).texts

    def _texts(self, bench: Bench, table: str | TableConfig, num: int) -> list[str]:
        cfg = TableConfig(id=table) if isinstance(table, str) else table
        rows = table_rows(
            cfg.but(max_rows=num),
            ["text"],
            "test",
            world=bench.world,
            relative_to=bench.relative_to,
        )
        texts = [str(row["text"]) for row in rows if str(row["text"]).strip()]
        if len(texts) < 2:
            raise NotApplicable(self.name, f"{cfg.id} has fewer than two documents.")
        return texts

    def _rows(
        self,
        corpora: Sequence[_Corpus],
        sums: Sequence[Sums],
        weights: Mapping[int, Float[Tensor, "draws documents"]],
        context: int,
        no_chat_model: str,
    ) -> list[Measurement]:
        base = values_of(sums[0], weights[0])
        frequency = firing_frequency(sums[0])
        one: list[Measurement] = []
        compared: list[tuple[_Corpus, dict[str, tuple[Value, Value]]]] = []
        for corpus, own in zip(corpora, sums, strict=True):
            here = values_of(own, weights[corpus.pair])
            here["divergence"] = _fixed(float(jensen_shannon(firing_frequency(own), frequency)))
            num = len(corpus.documents.tokens)
            params = {"corpus": corpus.name, "model": corpus.model}
            if corpus is not corpora[0]:
                both = {q: (difference(here[q], base[q]), ratio(here[q], base[q])) for q in base}
                both["divergence"] = here["divergence"], here["divergence"]
                compared.append((corpus, both))
            for quantity, value in here.items():
                if corpus is corpora[0]:
                    if quantity != "divergence":
                        kind = DEFINITIONS[quantity, "in_distribution"]
                        one.append(kind.row(value.estimate(num, "no gap to recover"), **params))
                    continue
                estimate = value.estimate(num, "the ablation costs nothing, or no latent is on")
                one.append(DEFINITIONS[quantity, "value_of_one"].row(estimate, **params))
            one += self._group_rows(corpus, own, weights[corpus.pair], params)
        longer = self._longer(corpora, sums, weights, context)
        aggregated = self._aggregated(compared, longer, no_chat_model)
        for corpus, both in compared:
            num = len(corpus.documents.tokens)
            params = {"corpus": corpus.name, "model": corpus.model}
            for quantity, (change, share) in both.items():
                if quantity == "divergence" or corpus.role == "control":
                    continue
                for kind, value in (("difference_of_one", change), ("ratio_of_one", share)):
                    estimate = value.estimate(num, "there is no value to compare")
                    aggregated.append(DEFINITIONS[quantity, kind].row(estimate, **params))
        for corpus, both in longer:
            params = {"corpus": corpus.name, "model": corpus.model, "context": context}
            for quantity, value in both.items():
                estimate = value.estimate(
                    len(corpus.documents.tokens), "no ablation costs anything"
                )
                kind = DEFINITIONS[quantity, "long_context_difference_of_one"]
                aggregated.append(kind.row(estimate, **params))
        return aggregated + one

    def _group_rows(
        self,
        corpus: _Corpus,
        sums: Sums,
        weights: Float[Tensor, "draws documents"],
        params: Mapping[str, Any],
    ) -> list[Measurement]:
        rows = []
        for number, group in enumerate(corpus.documents.names):
            own = sums.of([number])
            tokens = own.columns[..., 0]
            if not float(tokens.sum()):
                continue
            values = values_of(own, weights)
            for quantity in _IN_GROUPS:
                estimate = values[quantity].estimate(
                    int((tokens > 0).sum()), "no loss counts here, or the ablation costs nothing"
                )
                kind = DEFINITIONS[quantity, "group_of_one"]
                rows.append(kind.row(estimate, **params, group=group, tokens=int(tokens.sum())))
        return rows

    def _longer(
        self,
        corpora: Sequence[_Corpus],
        sums: Sequence[Sums],
        weights: Mapping[int, Float[Tensor, "draws documents"]],
        context: int,
    ) -> list[tuple[_Corpus, dict[str, Value]]]:
        """Beyond the training context against before it, for corpora that go beyond."""
        found = []
        for corpus, own in zip(corpora, sums, strict=True):
            if corpus.documents.names[0] == "template":
                continue
            starts = [int(name.split("-")[0]) for name in corpus.documents.names]
            beyond = [i for i, start in enumerate(starts) if start >= context]
            before = [i for i, start in enumerate(starts) if context // 4 <= start < context]
            reaches = own.columns[:, beyond, 0].sum(1) > 0
            if not before or int(reaches.sum()) < 2:
                continue
            # the same documents on both sides
            part, drawn = _only(own, reaches), weights[corpus.pair][:, reaches]
            there, here = (values_of(part.of(groups), drawn) for groups in (beyond, before))
            found.append((corpus, {q: difference(there[q], here[q]) for q in _IN_GROUPS}))
        return found

    def _aggregated(
        self,
        compared: Sequence[tuple[_Corpus, dict[str, tuple[Value, Value]]]],
        longer: Sequence[tuple[_Corpus, dict[str, Value]]],
        no_chat_model: str,
    ) -> list[Measurement]:
        text = [both for corpus, both in compared if corpus.role == "text"]
        chat = [(corpus, both) for corpus, both in compared if corpus.role == "chat_model"]
        control = [(corpus, both) for corpus, both in compared if corpus.role == "control"]
        rows: list[Measurement] = []

        def add(quantity: str, kind: str, estimate: Estimate) -> None:
            if (quantity, kind) in DEFINITIONS:
                rows.append(DEFINITIONS[quantity, kind].row(estimate))

        order = ("ce_score", *(q for q in _TEXTS if q != "ce_score"))
        for quantity in order:
            add(quantity, "transfer_ratio", _mean([b[quantity][1].value for b in text]))
            add(quantity, "transfer_difference", _mean([b[quantity][0].value for b in text]))
            if quantity in _IN_GROUPS:
                values = [both[quantity].value for _, both in longer]
                add(quantity, "long_context_difference", _mean(values, "no document goes beyond"))
            for which, kind in ((1, "chat_model_ratio"), (0, "chat_model_difference")):
                estimate = Estimate(None, reason=no_chat_model)
                if chat:
                    corpus, both = chat[0]
                    num = len(corpus.documents.tokens)
                    estimate = both[quantity][which].estimate(num, "there is no value to compare")
                add(quantity, kind, estimate)
            for corpus, both in control:
                num = len(corpus.documents.tokens)
                estimate = both[quantity][0].estimate(num, "there is no value to compare")
                add(quantity, "control_difference", estimate)
        return rows


def values_of(sums: Sums, weights: Float[Tensor, "draws documents"]) -> dict[str, Value]:
    """Every quantity of one condition, with its bootstrap samples where it has any."""
    whole = quantities(sums, torch.ones(1, len(sums.columns), dtype=torch.float64))
    drawn = quantities(sums, weights)
    frequency = firing_frequency(sums)
    return {
        **{name: Value(float(whole[name][0]), drawn[name]) for name in QUANTITIES},
        "dead_share": _fixed(float((frequency == 0).double().mean())),
        "dense_share": _fixed(float((frequency > DENSE).double().mean())),
    }


def _fixed(value: float) -> Value:
    """A number without bootstrap samples."""
    return Value(value, torch.zeros(0, dtype=torch.float64))


def difference(there: Value, here: Value) -> Value:
    return Value(there.value - here.value, there.draws - here.draws)


def ratio(there: Value, here: Value) -> Value:
    if here.value == 0:
        return Value(math.nan, torch.zeros(0, dtype=torch.float64))
    return Value(there.value / here.value, there.draws / here.draws)


def _only(sums: Sums, documents: Tensor) -> Sums:
    return Sums(*(part[documents] for part in sums))


def _mean(values: Sequence[float], missing: str = "no other corpora are named") -> Estimate:
    """Mean over corpora and its standard error."""
    known = torch.tensor([v for v in values if math.isfinite(v)], dtype=torch.float64)
    if not len(known):
        reason = "no corpus has a value" if values else missing
        return Estimate(None, n=0, unit="corpora", reason=reason)
    stderr = float(known.std()) / math.sqrt(len(known)) if len(known) > 1 else None
    return Estimate(float(known.mean()), stderr, len(known), "corpora")


def _name(table: str | TableConfig) -> str:
    return table if isinstance(table, str) else table.id
