"""Dyck-2: balanced brackets of two kinds.

    S -> S S (.3) | B (.35) for each of the two kinds
    B -> open S close (nesting) | open close

On average a symbol S leaves .6 + .7 nesting others: with the default of .5 that is .95, so strings
end, but their lengths have a heavy tail (28 tokens on average, before the limits).
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from sae_lib.errors import BadInput
from sae_lib.synthetic.formal.language import FormalLanguage, Truth
from sae_lib.synthetic.formal.pcfg import Rules

KINDS = {"round": ("(", ")"), "square": ("[", "]")}
CLOSING = tuple(pair[1] for pair in KINDS.values())
_OPENS = {opening: (kind, closing) for kind, (opening, closing) in KINDS.items()}
_CLOSES = {closing: kind for kind, (_, closing) in KINDS.items()}


class Dyck(FormalLanguage):
    """Balanced brackets of two kinds."""

    concepts: ClassVar[dict[str, str]] = {
        "opening": "The token opens a pair of brackets.",
        "closing": "The token closes a pair of brackets.",
        "round": "The token is a round bracket.",
        "square": "The token is a square bracket.",
        "round-due": "The innermost open bracket is round: only a round one may be closed next.",
        "square-due": "The innermost open bracket is square: only a square one may be closed next.",
        "balanced": "Every bracket is closed: the string may end here if it is long enough.",
    }
    measures: ClassVar[dict[str, str]] = {
        "depth": "Brackets that are open after the token.",
        "peak": "Most brackets that were open at once so far.",
    }

    kind: Literal["dyck"] = "dyck"
    """Name of the language."""

    nesting: float = Field(default=0.5, ge=0, lt=1)
    """Chance that a pair of brackets has something inside it; .3 makes shallow strings."""

    min_tokens: int = Field(default=10, ge=1)
    """Shorter strings are drawn again; at 10 there are 1,344 of them and none is common."""

    def rules(self) -> Rules:
        return {
            "S": [(0.3, ("S", "S"))] + [(0.35, (kind,)) for kind in KINDS],
            **{
                kind: [(self.nesting, (opening, "S", closing)),
                       (1 - self.nesting, (opening, closing))]
                for kind, (opening, closing) in KINDS.items()
            },
        }  # fmt: skip

    def truth(self, tokens: Sequence[str]) -> Truth:
        concepts, depths, peaks = [], [], []
        due: list[str] = []
        peak = 0
        for token in tokens:
            if token in _OPENS:
                kind, _ = _OPENS[token]
                due.append(kind)
                found = {"opening", kind}
            elif due and _CLOSES.get(token) == due[-1]:
                found = {"closing", due.pop()}
            else:
                raise BadInput("this token cannot come here", key=" ".join(tokens), value=token)
            found.add(f"{due[-1]}-due" if due else "balanced")
            concepts.append(frozenset(found))
            depths.append(len(due))
            peak = max(peak, len(due))
            peaks.append(peak)
        return Truth(tuple(concepts), {"depth": tuple(depths), "peak": tuple(peaks)})
