"""Pruned texts of a latent, and what they amount to: a graph, keywords, a line for people."""

from collections.abc import Sequence
from typing import NamedTuple

from sae_lib.explain._pruning import Pruned
from sae_lib.explain.neuron_graph import NeuronGraph, path_of
from sae_lib.explain.vocabulary import Vocabulary


class Variant(NamedTuple):
    """A pruned text with one token exchanged, on which the latent still fires."""

    place: int
    token: int
    activation: float


class KeptSpan(NamedTuple):
    """One pruned text and what was found out about it."""

    pruned: Pruned
    weights: list[float]
    """Importance of each token; 1 at the pivot."""

    variants: list[Variant]


def graph_of(spans: Sequence[KeptSpan], largest: float, least: float) -> NeuronGraph:
    """The graph of pruned texts and their variants; ``largest`` is the latent's maximum."""
    paths = []
    for kept in spans:
        tokens, pivot = kept.pruned.span
        paths.append(
            (path_of(tokens, pivot, kept.weights, least), kept.pruned.activation / largest)
        )
        for variant in kept.variants:
            changed = kept.pruned.span.replaced(variant.place, variant.token).tokens
            path = path_of(changed, pivot, kept.weights, least)
            paths.append((path, variant.activation / largest))
    return NeuronGraph(paths)


def keywords_of(
    spans: Sequence[KeptSpan], largest: float, vocabulary: Vocabulary, least: float, num: int
) -> list[tuple[str, float]]:
    """Words that matter, with mean over spans of importance x activation / largest."""
    totals: dict[str, float] = {}
    shown: dict[str, str] = {}
    for kept in spans:
        own = [
            (token, weight * kept.pruned.activation)
            for token, weight in zip(kept.pruned.span.tokens, kept.weights, strict=True)
            if weight >= least
        ]
        own += [(v.token, kept.weights[v.place] * v.activation) for v in kept.variants]
        best: dict[str, float] = {}
        for token, value in own:
            if vocabulary.is_word[token]:
                word = vocabulary.merged(token)
                best[word] = max(value, best.get(word, 0.0))
                shown.setdefault(word, vocabulary.text[token].strip())
        for word, value in best.items():
            totals[word] = totals.get(word, 0.0) + value / (largest * len(spans))
    ranked = sorted(totals.items(), key=lambda pair: (-pair[1], pair[0]))
    return [(shown[word], value) for word, value in ranked[:num]]


def sentence_of(spans: Sequence[KeptSpan], vocabulary: Vocabulary, least: float) -> str:
    """The strongest three texts: in brackets what fires, dots for what may be anything."""
    shown = []
    for kept in spans:
        tokens, pivot = kept.pruned.span
        parts = [
            f"[{vocabulary.text[token].strip()}]"
            if i == pivot
            else vocabulary.text[token].strip()
            if weight >= least
            else "…"
            for i, (token, weight) in enumerate(zip(tokens, kept.weights, strict=True))
        ]
        shown.append(" ".join(parts))
    alone = sum(len(kept.pruned.span.tokens) == 1 for kept in spans)
    patterns = "; ".join(list(dict.fromkeys(shown))[:3])
    return f"fires on {patterns}; {alone} of {len(spans)} shortest texts are one token"
