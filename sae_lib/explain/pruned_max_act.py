"""PruningMaxAct: the shortest stretches of text that still make a latent fire.

    argmax over K pruned spans P(x) of sum a_c(P(x)),   a_c(P(x)) >= keep_ratio * a_c(x)   (eq. 5)

Around a latent's strongest places text is pruned (see `_pruning`), and every shortened text is read
by itself behind a BOS. Then, as in Neuron-to-Graph:

    importance    1 - activation with the token masked / activation, for each token that is left
    augmentation  important tokens are exchanged for likely others; what still fires is kept too
    graph         all of these, read backwards, predict where the latent fires (`neuron_graph`)

Keywords are the tokens that matter, by importance x activation / largest activation, mean over
spans; a token counts once per span. Special tokens never stand inside a text.

Differs from Foote et al. 2023: every length is tried and the limit itself is enough; substitutes
come from the language model itself (what it predicts from the text to the left, and tokens with
similar embeddings), not from a masked language model, which sees the right side as well; a span
that cannot be cut to ``context`` tokens on either side is left out.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from pydantic import Field

from sae_lib.errors import BadInput
from sae_lib.explain._kept_spans import KeptSpan, Variant, graph_of, keywords_of, sentence_of
from sae_lib.explain._latent_reader import LatentReader, strongest_windows
from sae_lib.explain._pruning import (
    Pruned,
    Reading,
    Span,
    Strategy,
    importance,
    prune,
    readings,
    search_together,
)
from sae_lib.explain._substitutes import neighbours, predicted
from sae_lib.explain.base import Evidence, ExplainerConfig, register
from sae_lib.explain.neuron_graph import Agreement, NeuronGraph, firing_agreement
from sae_lib.papers import Paper
from sae_lib.warehouse.rows import ExplanationRow


class _Text(NamedTuple):
    """A span of the corpus before it is pruned."""

    latent: int
    span: Span
    activation: float
    """Of the pivot, in the corpus."""


@register
class PrunedMaxActConfig(ExplainerConfig):
    """How text is shortened, and what is tried with what is left."""

    papers: ClassVar = (
        Paper("Shu et al. 2025", "https://arxiv.org/abs/2503.05613", "3.1, equation 5"),
        Paper("Foote et al. 2023", "https://arxiv.org/abs/2305.19911", "Neuron to Graph"),
        Paper("Gao et al. 2025", "https://arxiv.org/abs/2406.04093", "N2G explanations"),
    )
    summary: ClassVar = "Shortest texts on which the latent still fires, and which words matter."
    dials: ClassVar = ("num_spans", "keep_ratio", "strategy", "num_substitutes")
    trust: ClassVar = 1

    method: Literal["pruned_max_act"] = "pruned_max_act"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    num_keywords: int = Field(default=20, gt=0)
    """Token types listed per latent."""

    num_candidates: int = Field(default=8, gt=0)
    """Strongest places per latent around which text is pruned, one per document."""

    num_spans: int = Field(default=5, gt=0)
    """Pruned texts that are kept of these: the strongest distinct ones."""

    context: int = Field(default=12, ge=0)
    """Tokens on either side of such a place that pruning starts from."""

    keep_ratio: float = Field(default=0.5, gt=0, le=1)
    """Share of the activation in the corpus that a pruned text keeps at least."""

    is_strict: bool = False
    """Whether it must keep more than that share, as in Neuron-to-Graph."""

    strategy: Strategy = "left"
    """left: only text before the place; greedy_mask, greedy_delete: any token, at the cost of
    about context squared texts per place."""

    mask: str | None = None
    """Token that stands for a masked one; by default the tokenizer's padding or unknown token."""

    substitutes: Literal["predicted", "neighbours", "both"] = "neighbours"
    """What is tried in place of an important token: predicted by the model, or similar tokens."""

    num_substitutes: int = Field(default=3, ge=0)
    """Substitutes per important token and source; 0 tries none."""

    substitute_from: float = Field(default=0.8, ge=0, le=1)
    """Importance from which on a token is exchanged for others."""

    matter_from: float = Field(default=0.5, ge=0, le=1)
    """Importance from which on a token is a keyword and no wildcard of the graph."""

    num_test: int = Field(default=2, ge=0)
    """Further places, never pruned, on whose text the graph's predictions are scored."""

    def check(self, evidence: Evidence) -> None:
        _mask_id(self.mask, evidence.model)

    def explain(self, evidence: Evidence) -> list[ExplanationRow]:
        kept, test = self._prune(evidence)
        scores = self._score(evidence, kept, test)
        rows = []
        for latent, spans in sorted(kept.items()):
            largest = float(evidence.statistics.max_activation[latent])
            words = keywords_of(
                spans, largest, evidence.vocabulary, self.matter_from, self.num_keywords
            )
            told = scores.get(latent)
            rows.append(
                ExplanationRow(
                    latent,
                    self.method,
                    sentence_of(spans, evidence.vocabulary, self.matter_from),
                    [word for word, _ in words],
                    [score for _, score in words],
                    None if told is None else told.f1,
                    None if told is None else "graph_f1",
                )
            )
        return rows

    def graphs(self, evidence: Evidence) -> dict[int, NeuronGraph]:
        """A predictor of every latent that has a pruned text."""
        return self._graphs(evidence, self._prune(evidence)[0])

    def _graphs(
        self, evidence: Evidence, kept: Mapping[int, Sequence[KeptSpan]]
    ) -> dict[int, NeuronGraph]:
        largest = evidence.statistics.max_activation
        return {
            latent: graph_of(spans, float(largest[latent]), self.matter_from)
            for latent, spans in kept.items()
        }

    def _prune(self, evidence: Evidence) -> tuple[dict[int, list[KeptSpan]], list[_Text]]:
        """Kept texts by latent, and the texts that were set aside."""
        reader = LatentReader(evidence.model, evidence.site, evidence.coder)
        mask = _mask_id(self.mask, evidence.model)
        texts, test = _texts(
            self.method, evidence, self.num_candidates, self.num_test, self.context
        )
        found = search_together(
            [
                prune(
                    text.span,
                    self.keep_ratio * text.activation,
                    strategy=self.strategy,
                    mask=mask,
                    is_strict=self.is_strict,
                )
                for text in texts
            ],
            lambda spans, who: _read(reader, spans, [texts[i].latent for i in who]),
        )
        good = _strongest_distinct(texts, found, self.num_spans)
        owners = [texts[i].latent for i, _ in good]
        weights = search_together(
            [importance(pruned, mask) for _, pruned in good],
            lambda spans, who: _read(reader, spans, [owners[i] for i in who]),
        )
        variants = self._substitute(evidence, reader, [texts[i] for i, _ in good], good, weights)
        kept: dict[int, list[KeptSpan]] = {}
        for owner, (_, pruned), own, others in zip(owners, good, weights, variants, strict=True):
            kept.setdefault(owner, []).append(KeptSpan(pruned, own, others))
        return kept, test

    def _substitute(
        self,
        evidence: Evidence,
        reader: LatentReader,
        texts: Sequence[_Text],
        good: Sequence[tuple[int, Pruned]],
        weights: Sequence[Sequence[float]],
    ) -> list[list[Variant]]:
        """Per kept text the exchanges after which its pivot keeps the share of its activation."""
        found: list[list[Variant]] = [[] for _ in good]
        if not self.num_substitutes:
            return found
        places = [
            (i, place)
            for i, own in enumerate(weights)
            for place, weight in enumerate(own)
            if weight >= self.substitute_from
        ]
        others = self._others(evidence, texts, good, places)
        tried = [
            (i, place, token)
            for (i, place), tokens in zip(places, others, strict=True)
            for token in tokens
            if token != good[i][1].span.tokens[place]
        ]
        spans = [good[i][1].span.replaced(place, token) for i, place, token in tried]
        told = _read(reader, spans, [texts[i].latent for i, _, _ in tried]) if tried else []
        for (i, place, token), reading in zip(tried, told, strict=True):
            if reading.at_pivot >= self.keep_ratio * good[i][1].activation:
                found[i].append(Variant(place, token, reading.at_pivot))
        return found

    def _others(
        self,
        evidence: Evidence,
        texts: Sequence[_Text],
        good: Sequence[tuple[int, Pruned]],
        places: Sequence[tuple[int, int]],
    ) -> list[list[int]]:
        model, is_word = evidence.model, evidence.vocabulary.is_word
        found: list[list[int]] = [[] for _ in places]
        if self.substitutes != "neighbours" and model.is_causal and model.has_lm_head:
            prefixes = [texts[i].span.tokens[: good[i][1].places[place]] for i, place in places]
            found = predicted(model, prefixes, self.num_substitutes, is_word)
        if self.substitutes != "predicted":
            own = [good[i][1].span.tokens[place] for i, place in places]
            near = neighbours(model, own, self.num_substitutes, is_word)
            found = [
                list(dict.fromkeys([*some, *near[token]]))
                for some, token in zip(found, own, strict=True)
            ]
        return found

    def _score(
        self, evidence: Evidence, kept: Mapping[int, Sequence[KeptSpan]], test: Sequence[_Text]
    ) -> dict[int, Agreement]:
        """How the graphs' predictions agree with what the latents do on text set aside."""
        test = [text for text in test if text.latent in kept]
        if not test:
            return {}
        graphs = self._graphs(evidence, kept)
        reader = LatentReader(evidence.model, evidence.site, evidence.coder)
        truth = reader.read([text.span.tokens for text in test], [text.latent for text in test])
        found: dict[int, Agreement] = {}
        for text, true in zip(test, truth, strict=True):
            tokens = torch.tensor(text.span.tokens)
            largest = float(evidence.statistics.max_activation[text.latent])
            own = firing_agreement(
                graphs[text.latent].predict(tokens), true[: len(tokens)] / largest
            )
            sums = zip(own, found.get(text.latent, Agreement(0, 0, 0)), strict=True)
            found[text.latent] = Agreement(*(a + b for a, b in sums))
        return {latent: own for latent, own in found.items() if sum(own)}


def _texts(
    method: str, evidence: Evidence, num: int, num_test: int, radius: int
) -> tuple[list[_Text], list[_Text]]:
    """``num`` texts per latent to prune and ``num_test`` others, both spread over all strengths."""
    owners, windows, activation = strongest_windows(
        method, evidence, num=num + num_test, radius=radius
    )
    special = torch.tensor(sorted(evidence.model.special_ids), dtype=torch.int64)
    inside = windows.inside & ~torch.isin(windows.token_ids, special)
    pivots = inside[:, :radius].sum(1).tolist()
    share = num_test / (num + num_test)
    sides: tuple[list[_Text], list[_Text]] = ([], [])
    rank, last = 0, -1
    for i, (latent, ids, held) in enumerate(
        zip(owners, windows.token_ids.tolist(), inside.tolist(), strict=True)
    ):
        rank = rank + 1 if latent == last else 0
        last = latent
        tokens = tuple(token for token, is_in in zip(ids, held, strict=True) if is_in)
        is_test = int((rank + 1) * share) > int(rank * share)
        sides[is_test].append(_Text(latent, Span(tokens, pivots[i]), float(activation[i])))
    return sides


def _read(reader: LatentReader, spans: list[Span], latents: list[int]) -> list[Reading]:
    return readings(reader.read([span.tokens for span in spans], latents), spans)


def _strongest_distinct(
    texts: Sequence[_Text], found: Sequence[Pruned | None], num: int
) -> list[tuple[int, Pruned]]:
    """Per latent the strongest pruned texts, none twice, with the number of the original."""
    good = [(i, pruned) for i, pruned in enumerate(found) if pruned is not None]
    good.sort(key=lambda pair: (texts[pair[0]].latent, -pair[1].activation))
    taken: dict[int, set[Span]] = {}
    kept = []
    for i, pruned in good:
        known = taken.setdefault(texts[i].latent, set())
        if pruned.span not in known and len(known) < num:
            known.add(pruned.span)
            kept.append((i, pruned))
    return kept


def _mask_id(mask: str | None, model: Any) -> int:
    tokenizer = model.tokenizer
    if mask is not None:
        token = tokenizer.get_vocab().get(mask)
        if token is None:
            raise BadInput(
                "the tokenizer has no such token; name one of its tokens, or leave it out for its "
                "padding token.",
                key="mask",
                value=mask,
            )
        return int(token)
    known = (tokenizer.pad_token_id, tokenizer.unk_token_id, tokenizer.eos_token_id)
    found = [int(token) for token in known if token is not None]
    if not found:
        raise BadInput(
            "the tokenizer has no padding, unknown or end token; name a token to mask with.",
            key="mask",
        )
    return found[0]
