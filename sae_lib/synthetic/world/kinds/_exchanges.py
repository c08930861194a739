"""What the kinds made of exchanges (somebody asks, somebody replies) have in common."""

from collections.abc import Mapping, Sequence
from functools import cache

from sae_lib.synthetic.world.writer import Table

MOST_WORDS = 250
"""No document is longer, whatever ``length_factor`` is."""
_SHARES = {1: 0.3, 2: 0.4, 3: 0.3}


@cache
def num_exchanges(length_factor: float, longest: int) -> Table[int]:
    """How many exchanges a document has, none of them of more than ``longest`` words.

    Numbers that the limit makes equal share one entry, so that the text tells what was drawn.
    """
    shares: dict[int, float] = {}
    for num, share in _SHARES.items():
        limited = min(round(num * length_factor), MOST_WORDS // longest)
        shares[limited] = shares.get(limited, 0.0) + share
    return Table(shares, shares.values())


def told_at(phrases: Mapping[str, Sequence[str]]) -> dict[str, int]:
    """Per phrase, how many of its words tell in which group of ``phrases`` it stands.

    One more than the phrase has where only its end tells.
    """
    groups: dict[tuple[str, ...], set[str]] = {}
    for group, members in phrases.items():
        for phrase in members:
            words = (*phrase.split(), "")
            for end in range(1, len(words) + 1):
                groups.setdefault(words[:end], set()).add(group)
    found: dict[str, int] = {}
    for members in phrases.values():
        for phrase in members:
            words = (*phrase.split(), "")
            found[phrase] = next(
                end for end in range(1, len(words) + 1) if len(groups[words[:end]]) == 1
            )
    return found
