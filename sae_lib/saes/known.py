"""Coders that are not trained: their weights, or even their codes, are given.

    LinearThresholdCoder  z = pre (pre > threshold),  pre = W_enc (x - b_dec) + b_enc
    HandedInCoder         z = recode(truth),  the truth looked up by the activation
    both                  x_hat = W_dec' z + b_dec

They stand where a trained coder would, so that what is computed from it has a known answer; they
are no variant that an experiment file can name.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lib.errors import BadInput
from sae_lib.saes._codes import Code
from sae_lib.saes._ops import squared_error
from sae_lib.saes.base import Activations, Latents, SaeConfig, SparseCoder, Step, Terms
from sae_lib.synthetic.controls import Control
from sae_lib.synthetic.dictionary import LinearThreshold


class KnownConfig(SaeConfig):
    """Shape of a coder whose weights are given."""

    kind: Literal["known"] = "known"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Says that there is nothing to build the weights from."""


class LinearThresholdCoder(SparseCoder[KnownConfig]):
    """A linear encoder with one threshold for all latents."""

    threshold: Tensor

    def __init__(self, weights: LinearThreshold) -> None:
        super().__init__()
        _give_weights_(self, weights)
        self.register_buffer("threshold", torch.tensor(float(weights.threshold)))

    def encode(self, x: Activations) -> Latents:
        pre = (x - self.b_dec) @ self.W_enc.mT + self.b_enc
        return pre * (pre > self.threshold)

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def terms(self, step: Step) -> Terms:
        z = self.encode(step.x)
        error = step.target - self.decode(z)
        return Terms(Code(z), error, squared_error(error), {})

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        for part in (self.b_enc, self.b_dec, self.threshold):
            part.mul_(factor)


class HandedInCoder(SparseCoder[KnownConfig]):
    """Has no encoder: it knows the code of the activations that were handed in last.

    Rows are found by their float32 bits, in any order and number. ``W_enc`` and ``b_enc`` are for
    metrics that read weights.
    """

    given_x: Tensor
    given_z: Tensor
    keys: Tensor
    multipliers: Tensor

    def __init__(
        self,
        weights: LinearThreshold,
        recode: Callable[[Tensor], Tensor] = lambda z: z,
    ) -> None:
        super().__init__()
        _give_weights_(self, weights)
        self.recode = recode
        odd = torch.randint(
            2**62, (self.d_in,), generator=torch.Generator().manual_seed(0), dtype=torch.int64
        )
        for name, value in {
            "given_x": torch.zeros(0, self.d_in),
            "given_z": torch.zeros(0, self.d_sae),
            "keys": torch.zeros(0, dtype=torch.int64),
            "multipliers": 2 * odd + 1,
        }.items():
            self.register_buffer(name, value, persistent=False)

    @torch.no_grad()
    def hand_in(
        self, x: Float[Tensor, "rows d_in"], truth: Float[Tensor, "rows num_features"]
    ) -> None:
        """Make the code of these activations known; those handed in before are forgotten."""
        keys = self._keys(x.float())
        self.keys, order = keys.sort()
        self.given_x, self.given_z = x.float()[order], self.recode(truth)[order]

    def encode(self, x: Activations) -> Latents:
        rows = x.reshape(-1, self.d_in).float()
        place = torch.searchsorted(self.keys, self._keys(rows)).clamp(max=len(self.keys) - 1)
        if len(rows) and (not len(self.keys) or not torch.equal(self.given_x[place], rows)):
            unknown = len(rows)
            if len(self.keys):
                unknown = int((self.given_x[place] != rows).any(-1).sum())
            raise BadInput(
                f"the true code of {unknown} of {len(rows)} activations was not handed in.", key="x"
            )
        return self.given_z[place].reshape(*x.shape[:-1], self.d_sae)

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def terms(self, step: Step) -> Terms:
        z = self.encode(step.x)
        error = step.target - self.decode(z)
        return Terms(Code(z), error, squared_error(error), {})

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.b_enc.mul_(factor)
        self.b_dec.mul_(factor)
        inner = self.recode
        self.recode = lambda truth: factor * inner(truth)
        self.given_z = factor * self.given_z
        self.given_x = factor * self.given_x
        self.keys, order = self._keys(self.given_x).sort()
        self.given_x, self.given_z = self.given_x[order], self.given_z[order]

    def _keys(self, rows: Float[Tensor, "rows d_in"]) -> Tensor:
        """A hash of each row's bits: exact arithmetic, whatever the number of rows."""
        bits = rows.contiguous().view(torch.int32).long()
        return (bits * self.multipliers).sum(-1)


def coder_of(control: Control) -> LinearThresholdCoder | HandedInCoder:
    """The control as a coder; one that knows the true code must be handed it with each batch."""
    if control.recode is None:
        return LinearThresholdCoder(control.weights)
    return HandedInCoder(control.weights, control.recode)


def _give_weights_(coder: SparseCoder[Any], weights: LinearThreshold) -> None:
    d_sae, d_in = weights.W_dec.shape
    coder.cfg = KnownConfig(d_in=d_in, d_sae=d_sae)
    for name in ("W_enc", "W_dec", "b_enc", "b_dec"):
        setattr(coder, name, nn.Parameter(getattr(weights, name).clone()))
