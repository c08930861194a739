"""What a claim is: two kinds of SAEs, a number, the direction that supports it, and by how much."""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from sae_lib.claims.quantities import QUANTITIES, Quantity
from sae_lib.config import Config
from sae_lib.papers import Paper


class Selector(Config):
    """Which SAEs of an experiment are meant."""

    kind: str | None = None
    """Architecture; None for any."""

    objective: str = "plain"
    """Training strategy."""

    sae: Mapping[str, Any] = Field(default_factory=dict)
    """Values that fields of the architecture must have."""

    of_objective: Mapping[str, Any] = Field(default_factory=dict)
    """Values that fields of the training strategy must have; ``positive`` for any above 0."""

    def __str__(self) -> str:
        fields = {**self.sae, **self.of_objective}
        given = " ".join(f"{key}={value}" for key, value in fields.items())
        kind = self.kind or "any architecture"
        name = kind if self.objective == "plain" else f"{kind}, {self.objective}"
        return f"{name} ({given})" if given else name


class Claim(Config):
    """One claim that results can support or refute.

    The effect is a - b, or a / b - 1 where ``relative``. With ``direction`` "lower", -effect is
    the *gain*, else the effect itself. The claim is supported where the gain is at least
    ``least`` and its 95 % interval lies above 0 (above ``least``, where that is negative and allows
    a loss); it is refuted where the whole interval lies below ``least``.
    """

    name: str
    """What it is called on the command line and in the results."""

    statement: str
    """The claim as a sentence."""

    papers: tuple[Paper, ...]
    """Who makes it, and where."""

    a: Selector
    """The SAEs that it is about."""

    b: Selector | None = None
    """Those they are compared with; None where a number is compared with ``against``."""

    against: float | None = None
    """The number that ``a`` is compared with, instead of other SAEs."""

    quantity: str
    """What is compared: one of `QUANTITIES`."""

    direction: Literal["lower", "higher"]
    """What ``a`` must be to support the claim."""

    least: float
    """Smallest gain that counts; below 0 it is the largest loss that is let pass."""

    relative: bool = False
    """Whether the effect is a / b - 1 rather than a - b; for quantities above 0 only."""

    at: str | None = "l0"
    """The quantity at whose equal values is compared; None where it does not matter."""

    same: tuple[Literal["kind", "d_sae"], ...] = ("d_sae",)
    """What both must have in common."""

    equal_flops: bool = False
    """Whether both must cost about the same per token: of b, the nearest is taken."""

    @property
    def measured(self) -> Quantity:
        return QUANTITIES[self.quantity]

    @property
    def matched(self) -> Quantity | None:
        return QUANTITIES[self.at] if self.at else None

    @property
    def needs(self) -> list[Quantity]:
        """Every quantity without which there is no verdict."""
        cost = [QUANTITIES["flops_per_token"]] if self.equal_flops else []
        return [self.measured, *([self.matched] if self.matched else []), *cost]

    @model_validator(mode="after")
    def _fits_together(self) -> "Claim":
        for name in filter(None, (self.quantity, self.at)):
            if name not in QUANTITIES:
                raise ValueError(f"{name!r} is no quantity; there are {', '.join(QUANTITIES)}")
        if (self.b is None) == (self.against is None):
            raise ValueError("a claim compares either with other SAEs (b) or with a number")
        if self.against is not None and (self.relative or self.at):
            raise ValueError("a comparison with a number is a difference, at nothing in particular")
        if self.equal_flops and self.b is None:
            raise ValueError("equal_flops needs other SAEs (b) to compare with")
        if self.at == self.quantity:
            raise ValueError(f"{self.quantity} cannot be compared where it is equal")
        return self
