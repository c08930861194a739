"""Latents to look at: labels, keywords and examples, gathered from the answers to the questions."""

from collections import defaultdict
from typing import Any, NamedTuple

import polars as pl

from sae_lib.report.tokens import ShownToken, shown_tokens


class Keywords(NamedTuple):
    """What one method lists for a latent."""

    method: str
    heading: str
    words: list[str]


class Example(NamedTuple):
    """One stretch of text."""

    document: int
    tokens: list[ShownToken]


class Card(NamedTuple):
    """One latent of the gallery."""

    latent: int
    label: str
    density: float
    mean_activation: float | None
    max_activation: float
    score: float | None
    keywords: list[Keywords]
    examples: list[Example]


def gallery(answers: dict[str, pl.DataFrame]) -> list[tuple[str, str, list[Card]]]:
    """(site, variant, cards) of every SAE with explained latents."""
    keys = ("site", "variant", "latent")
    keywords: dict[tuple[Any, ...], list[Keywords]] = defaultdict(list)
    for row in answers["explanations"].iter_rows(named=True):
        keywords[tuple(row[key] for key in keys)] += _keywords(row)
    examples: dict[tuple[Any, ...], list[Example]] = defaultdict(list)
    for row in answers["examples"].iter_rows(named=True):
        # relative to the latent's strongest example, so that weaker ones look weaker
        found = examples[tuple(row[key] for key in keys)]
        strongest = max(found[0].tokens, key=_activation).activation if found else None
        shown = shown_tokens(
            row["tokens"],
            row["activations"],
            strongest=strongest or row["max_activation"],
            peak=row["peak"],
        )
        found.append(Example(row["document"], shown))
    cards: dict[tuple[str, str], list[Card]] = defaultdict(list)
    for row in answers["latents"].iter_rows(named=True):
        key = tuple(row[name] for name in keys)
        cards[row["site"], row["variant"]].append(
            Card(
                row["latent"],
                row["label"] or f"latent {row['latent']}",
                row["density"],
                row["mean_activation"],
                row["max_activation"],
                row["score"],
                keywords[key],
                examples[key],
            )
        )
    return [(site, variant, found) for (site, variant), found in cards.items()]


def _activation(token: ShownToken) -> float:
    return token.activation


def _keywords(row: dict[str, Any]) -> list[Keywords]:
    """The words of one explanation; what a latent suppresses apart from what it promotes."""
    words = list(zip(row["keywords"], row["keyword_scores"], strict=True))
    if row["method"] != "vocab_proj":
        return [Keywords(row["method"], "fires on", [word for word, _ in words[:8]])]
    return [
        Keywords(row["method"], heading, chosen[:8])
        for heading, chosen in (
            ("promotes", [word for word, score in words if score > 0]),
            ("suppresses", [word for word, score in words if score < 0]),
        )
        if chosen
    ]
