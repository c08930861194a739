"""Ratios of sums with their standard errors, in one pass and constant memory.

    value  = A / B,  A = sum_c a_c,  B = sum_c b_c          (c runs over contexts)
    stderr = sqrt(n / (n - 1) * sum_c (a_c - value b_c)^2) / |B|

Every metric that is a mean over tokens or a ratio of such means has this form. Tokens of one
context are not independent, so the context and not the token is what was sampled; the standard
error is the linearised (delta-method) one, which needs no more than the sums and the products of
the columns: the same numbers a bootstrap over contexts would settle on.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

TOKENS = "tokens"
"""The column that counts rows; it is always there."""


class Estimate(NamedTuple):
    """A number and how sure it is, or no number and why not."""

    value: float | None
    stderr: float | None = None
    n: int | None = None
    unit: str | None = None
    reason: str | None = None


class ContextMoments:
    """First and second moments, over contexts, of columns that are summed within a context."""

    def __init__(self, columns: Sequence[str], *, unit: str = "contexts") -> None:
        self.columns = {name: i for i, name in enumerate([TOKENS, *columns])}
        self.unit = unit
        self.num_contexts = 0
        self.sums = torch.zeros(len(self.columns), dtype=torch.float64)
        self.products = torch.zeros(len(self.columns), len(self.columns), dtype=torch.float64)

    def add(
        self,
        context: Int[Tensor, " rows"],
        num_contexts: int,
        *columns: Float[Tensor, " rows"],
    ) -> None:
        """Add the tokens of a batch, whose contexts are numbered from 0 to ``num_contexts`` - 1.

        ``columns`` come in the order in which they were named. A context is added whole: none of
        it may come in another batch. A context without a row counts for nothing.
        """
        values = torch.stack([torch.ones_like(columns[0]), *columns], dim=1).double()
        sums = values.new_zeros(num_contexts, len(self.columns)).index_add_(0, context, values)
        self.add_sums(*sums.unbind(-1))

    def add_sums(self, *columns: Float[Tensor, " contexts"]) -> None:
        """Add whole contexts: the number of tokens of each, then its sum of every column."""
        sums = torch.stack(columns, dim=1).double()
        sums = sums[sums[:, 0] > 0].cpu()
        self.num_contexts += len(sums)
        self.sums += sums.sum(0)
        self.products += sums.mT @ sums

    def total(self, column: str) -> float:
        """Sum of the column over everything that was added."""
        return self.sums[self.columns[column]].item()

    @property
    def num_tokens(self) -> int:
        return round(self.total(TOKENS))

    def ratio(self, numerator: str, denominator: str = TOKENS) -> Estimate:
        """Sum of one column over the sum of another; with one context there is no stderr."""
        if self.num_tokens == 0:
            return Estimate(None, n=0, unit=self.unit, reason="no token was kept")
        below = self.total(denominator)
        if below == 0:
            reason = f"the sum of {denominator.replace('_', ' ')} is 0"
            return Estimate(None, n=self.num_contexts, unit=self.unit, reason=reason)
        value = self.total(numerator) / below
        stderr = self._stderr(numerator, denominator, value)
        return Estimate(value, stderr, self.num_contexts, self.unit)

    def _stderr(self, numerator: str, denominator: str, value: float) -> float | None:
        if self.num_contexts < 2:
            return None
        a, b = self.columns[numerator], self.columns[denominator]
        # only these two columns: another one may hold infinity
        aa, ab, bb = (self.products[i, j].item() for i, j in ((a, a), (a, b), (b, b)))
        squares = aa - 2 * value * ab + value**2 * bb
        spread = self.num_contexts / (self.num_contexts - 1) * max(squares, 0.0)
        return math.sqrt(spread) / abs(self.total(denominator))
