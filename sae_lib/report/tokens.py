"""Tokens as people read them: how strong each is, and what is invisible made visible.

Nothing here is HTML. A template that escapes everything draws it, so that text which looks like
markup stays text.
"""

import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

_NAMES = {"\n": "↵", "\r": "␍", "\t": "⇥", "\u00a0": "⍽"}
_INVISIBLE = {"Cc", "Cf", "Cn", "Co", "Cs", "Zl", "Zp"}
"""Unicode categories that draw nothing, change the direction of text, or end a line."""


class Piece(NamedTuple):
    """Part of a token: text as it is, or the name of one character that cannot be seen."""

    text: str
    is_sign: bool


class ShownToken(NamedTuple):
    """A token with its share of the strongest activation around."""

    pieces: list[Piece]
    share: float
    """In [0, 1]; 0 where the latent does not fire."""

    activation: float
    is_peak: bool


def pieces(text: str) -> list[Piece]:
    """``text`` cut at invisible characters, which become signs: ↵ for a newline, U+200B, ..."""
    found: list[Piece] = []
    for character in text:
        sign = _sign(character)
        if sign is not None:
            found.append(Piece(sign, is_sign=True))
        elif found and not found[-1].is_sign:
            found[-1] = Piece(found[-1].text + character, is_sign=False)
        else:
            found.append(Piece(character, is_sign=False))
    return found


def shown_tokens(
    tokens: Sequence[str], activations: Sequence[float], *, strongest: float, peak: int
) -> list[ShownToken]:
    """``tokens`` with activations relative to ``strongest``.

    Where no token brings a space of its own (a vocabulary of whole words), each but the first is
    given one.
    """
    has_spaces = any(token[:1].isspace() or token[-1:].isspace() for token in tokens)
    shown = []
    for i, (token, activation) in enumerate(zip(tokens, activations, strict=True)):
        text = token if has_spaces or i == 0 else f" {token}"
        share = min(max(activation / strongest, 0.0), 1.0) if strongest > 0 else 0.0
        shown.append(ShownToken(pieces(text), share, activation, i == peak))
    return shown


def _sign(character: str) -> str | None:
    if character in _NAMES:
        return _NAMES[character]
    if unicodedata.category(character) in _INVISIBLE:
        return f"U+{ord(character):04X}"
    return None
