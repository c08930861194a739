"""Expr: arithmetic without parentheses, operators before (or after) their operands.

    S -> Expr
    Expr -> Op (.4) | digit (.6)
    Op -> unary Expr (.33) | binary Expr Expr (.33) | ternary Expr Expr Expr (.34)

with ten digits and three operators of each arity, all equally likely. An expression has .804 others
in it on average and 5.1 tokens, before the limits. The postfix notation is the same expressions
read from the right, so every string is as likely as its mirror image in prefix notation.
"""

from collections.abc import Sequence
from typing import ClassVar, Literal

from pydantic import Field

from sae_lib.errors import BadInput
from sae_lib.synthetic.formal.language import FormalLanguage, Truth
from sae_lib.synthetic.formal.pcfg import Rules

DIGITS = tuple("0123456789")
OPERATORS = {
    "unary": ("neg", "abs", "sqrt"),
    "binary": ("add", "sub", "mul"),
    "ternary": ("if", "clip", "sum"),
}
ARITY = {digit: 0 for digit in DIGITS} | {
    word: arity for arity, words in enumerate(OPERATORS.values(), 1) for word in words
}
_CONCEPTS = {digit: frozenset({"digit"}) for digit in DIGITS} | {
    word: frozenset({"operator", name}) for name, words in OPERATORS.items() for word in words
}


class Expr(FormalLanguage):
    """Arithmetic expressions in prefix or postfix notation."""

    concepts: ClassVar[dict[str, str]] = {
        "digit": "The token is a digit.",
        "operator": "The token is an operator.",
        "unary": "The token is an operator with one operand.",
        "binary": "The token is an operator with two operands.",
        "ternary": "The token is an operator with three operands.",
        "first-operand": "The token begins the first operand of its operator (prefix only).",
        "second-operand": "The token begins the second operand of its operator (prefix only).",
        "third-operand": "The token begins the third operand of its operator (prefix only).",
        "whole": "What was read is one expression: a prefix string ends here, a postfix one may.",
    }
    measures: ClassVar[dict[str, str]] = {
        "pending": "Prefix: expressions still to come. Postfix: operands on the stack.",
        "depth": "Operators around the token (prefix only; in postfix they are yet to come).",
    }

    kind: Literal["expr"] = "expr"
    """Name of the language."""

    notation: Literal["prefix", "postfix"] = "prefix"
    """Whether operators stand before or after their operands."""

    min_tokens: int = Field(default=4, ge=1)
    """Shorter strings are drawn again; three of five bare ones are a single digit."""

    def rules(self) -> Rules:
        order = 1 if self.notation == "prefix" else -1
        names = tuple(OPERATORS)
        return {
            "S": [(1.0, ("Expr",))],
            "Expr": [(0.4, ("Op",)), (0.6, ("Digit",))],
            "Op": [
                (p, (name, *["Expr"] * arity)[::order])
                for p, arity, name in zip((0.33, 0.33, 0.34), (1, 2, 3), names, strict=True)
            ],
            "Digit": [(1 / len(DIGITS), (digit,)) for digit in DIGITS],
            **{name: [(1 / 3, (word,)) for word in OPERATORS[name]] for name in names},
        }

    def truth(self, tokens: Sequence[str]) -> Truth:
        return self._prefix(tokens) if self.notation == "prefix" else self._postfix(tokens)

    def _prefix(self, tokens: Sequence[str]) -> Truth:
        concepts, pendings, depths = [], [], []
        # operators that lack operands: how many they have, how many they need
        waiting: list[list[int]] = []
        pending = 1
        for token in tokens:
            if token not in ARITY or pending == 0:
                raise BadInput("this token cannot come here", key=" ".join(tokens), value=token)
            found = _CONCEPTS[token]
            if waiting:
                place = waiting[-1][0]
                found |= {("first-operand", "second-operand", "third-operand")[place]}
                waiting[-1][0] += 1
            depths.append(len(waiting))
            pending += ARITY[token] - 1
            if ARITY[token]:
                waiting.append([0, ARITY[token]])
            # an operator whose last operand has begun needs no further one
            while waiting and waiting[-1][0] == waiting[-1][1]:
                waiting.pop()
            concepts.append(found | {"whole"} if pending == 0 else found)
            pendings.append(pending)
        return Truth(tuple(concepts), {"pending": tuple(pendings), "depth": tuple(depths)})

    def _postfix(self, tokens: Sequence[str]) -> Truth:
        concepts, heights = [], []
        height = 0
        for token in tokens:
            if token not in ARITY or ARITY[token] > height:
                raise BadInput("this token cannot come here", key=" ".join(tokens), value=token)
            height += 1 - ARITY[token]
            found = _CONCEPTS[token]
            concepts.append(found | {"whole"} if height == 1 else found)
            heights.append(height)
        return Truth(tuple(concepts), {"pending": tuple(heights)})
