"""Latents that are clamped to forget a corpus: which ones, and what the clamp does to answers.

    selected = first n latents by s_i(forget), of those with s_i(retain) < tau and s_i(forget) > 0
    f'_i     = -multiplier * unit_i  where a selected latent is on, else f_i
    x'       = x + decode(f') - decode(f)

with s_i the share of a corpus' tokens on which latent i is on.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lib.evaluate._unlearning_questions import Asked, Deltas
from sae_lib.evaluate.reader import TextActivations
from sae_lib.saes.base import SparseCoder


class Setting(NamedTuple):
    """One intervention of a grid."""

    threshold: float | None
    num_latents: int | None
    multiplier: float
    latents: tuple[int, ...] = ()


class Frequencies(NamedTuple):
    """How often latents are on in a corpus."""

    share: Float[Tensor, " d_sae"]
    """Of the tokens; float64."""
    mean_on: Float[Tensor, " d_sae"]
    """Mean over the tokens on which a latent is on; 0 where it never is."""


@torch.no_grad()
def frequencies(coder: SparseCoder[Any], found: TextActivations) -> Frequencies:
    """Statistics of all latents, a chunk of tokens at a time."""
    on = torch.zeros(coder.d_sae, dtype=torch.float64)
    total = torch.zeros(coder.d_sae, dtype=torch.float64)
    for _, rows in found.chunks(coder.d_sae):
        z = coder.encode(found.x[rows].to(coder.W_dec.device))
        on += (z > 0).sum(0).double().cpu()
        total += z.clamp_min(0).sum(0, dtype=torch.float64).cpu()
    return Frequencies(on / len(found.x), total / on.clamp_min(1))


def select_latents(
    forget: Float[Tensor, " d_sae"], retain: Float[Tensor, " d_sae"], threshold: float, num: int
) -> list[int]:
    """The ``num`` latents most often on in ``forget``, of those below ``threshold`` in ``retain``.

    Latents that are never on there are not selected; of equal ones the first comes first.
    """
    allowed = torch.where(retain < threshold, forget, 0.0)
    order = allowed.sort(descending=True, stable=True).indices
    return [int(i) for i in order[:num] if allowed[i] > 0]


def clamped(
    z: Float[Tensor, "*batch latents"], value: Float[Tensor, " latents"]
) -> Float[Tensor, "*batch latents"]:
    """``z`` with minus ``value`` wherever a latent is on; selected latents only."""
    return torch.where(z > 0, -value.to(z), z)


class Clamps:
    """The codes of some latents on the questions, and what clamping them does."""

    @torch.no_grad()
    def __init__(
        self, coder: SparseCoder[Any], used: Sequence[int], asked: Asked, x: Deltas
    ) -> None:
        self.asked, self.place = asked, {latent: i for i, latent in enumerate(used)}
        device, columns = coder.W_dec.device, torch.tensor(used, dtype=torch.long)
        self.rows = coder.W_dec.detach()[columns.to(device)]
        self.z = [
            torch.cat(
                [coder.encode(part.to(device))[:, columns.to(device)] for part in own.split(2048)]
            )
            for own in x
        ]
        self.known: dict[tuple[Any, ...], Tensor] = {}

    def is_right(
        self, setting: Setting, unit: Float[Tensor, " d_sae"]
    ) -> Bool[Tensor, " questions"]:
        """Which questions are right; equal interventions are made once."""
        latents = torch.tensor(sorted(setting.latents), dtype=torch.long)
        value = setting.multiplier * unit[latents]
        key = tuple(latents.tolist()), tuple(value.tolist())
        if key not in self.known:
            columns = torch.tensor([self.place[i] for i in latents.tolist()], dtype=torch.long)
            columns = columns.to(self.rows.device)
            deltas = []
            for own in self.z:
                z = own[:, columns]
                moved = clamped(z, value.to(z)) - z
                deltas.append((moved @ self.rows[columns]).to(self.asked.device))
            self.known[key] = self.asked.is_right(deltas)
        return self.known[key]
