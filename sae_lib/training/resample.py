"""Resampling: dead latents start anew from inputs that are reconstructed badly (Bricken 2023).

    w_n     = |x_n - x_hat_n|^4, the squared loss of input n, over a sample of whole batches
    d_i     = (x_n - centre) / |x_n - centre| for inputs n drawn, without replacement, by w
    W_dec_i = d_i,   W_enc_i = encoder_share (mean norm of encoder rows that are alive) d_i,
    b_enc_i = 0,     Adam's moments of exactly these rows = 0

The draw is an exponential race (Efraimidis and Spirakis 2006): input n gets the key -log(u) / w_n,
and the smallest keys win. So the sample goes by batch by batch, and only winners are kept.

Differs from the source: the loss is the squared error alone, without the penalty, and no input is
drawn twice, so that no two latents start out the same; where fewer inputs than dead latents have an
error, the rest waits for the next time. The sample are the next batches of the training instead
of a random set; their order is random anyway.
"""

import hashlib
import math
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sae_lib.errors import BadInput
from sae_lib.saes.base import SparseCoder
from sae_lib.training.config import ResolvedResample


def is_due(cfg: ResolvedResample, step: int, *, steps: int, batch_tokens: int) -> bool:
    """Whether dead latents start anew after ``step`` of ``steps`` steps have been taken."""
    every = cfg.every_tokens // batch_tokens
    return 0 < step < steps and step % every == 0 and step <= cfg.until_share * steps


def steps_since(cfg: ResolvedResample, step: int, *, steps: int, batch_tokens: int) -> int | None:
    """How long ago, in steps, that was last due before step ``step``; None: never yet."""
    every = cfg.every_tokens // batch_tokens
    latest = min(step, steps - 1, math.floor(cfg.until_share * steps)) // every * every
    return step - latest if latest > 0 else None


def sample_steps(cfg: ResolvedResample, step: int, *, steps: int, batch_tokens: int) -> range:
    """Which batches are looked at after ``step`` steps: the next ones, within the run."""
    count = min(max(1, cfg.sample_tokens // batch_tokens), steps)
    first = min(step, steps - count)
    return range(first, first + count)


class Race:
    """A weighted draw without replacement of ``num`` directions from inputs that go by."""

    def __init__(self, num: int, *seeds: object) -> None:
        """``seeds`` alone, with the inputs, decide what is drawn."""
        digest = hashlib.sha256(f"resampling {seeds}".encode()).digest()
        self.num = num
        self._generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
        self._keys: Tensor | None = None
        self._rows: Tensor | None = None

    @torch.no_grad()
    def offer(self, rows: Float[Tensor, "batch d_in"], weights: Float[Tensor, " batch"]) -> None:
        """Let some inputs, as centred by the coder, take part; those of weight 0 cannot win."""
        draws = torch.empty(len(rows), dtype=torch.float64).exponential_(generator=self._generator)
        weights = weights.double() * (rows.norm(dim=1) > 0)  # the zero vector has no direction
        keys = torch.where(weights > 0, draws.to(rows.device) / weights, torch.inf)
        if self._keys is not None and self._rows is not None:
            keys, rows = torch.cat([self._keys, keys]), torch.cat([self._rows, rows])
        best = keys.argsort(stable=True)[: self.num]
        best = best[keys[best].isfinite()]
        self._keys, self._rows = keys[best], rows[best]

    def directions(self) -> Float[Tensor, "won d_in"]:
        """The winners at norm 1; fewer than ``num`` where fewer could win."""
        assert self._rows is not None, "nothing was offered"
        return self._rows / self._rows.norm(dim=1, keepdim=True)


@torch.no_grad()
def offer_errors(
    race: Race,
    coder: SparseCoder[Any],
    x: Float[Tensor, "batch d_in"],
    target: Float[Tensor, "batch d_in"],
) -> None:
    """Enter a batch into the race by how badly ``coder`` reconstructs it."""
    loss = (target - coder.decode(coder.encode(x))).square().sum(1)
    centre = coder.input_centre
    race.offer(x if centre is None else x - centre, loss.square())


@torch.no_grad()
def start_anew_(
    coder: SparseCoder[Any],
    dead: Int64[Tensor, " dead"],
    directions: Float[Tensor, "won d_in"],
    encoder_share: float,
    states: Mapping[Tensor, Mapping[str, Tensor]],
) -> Int64[Tensor, " won"]:
    """Give the first of ``dead`` these directions; ``states`` are the optimiser's. Returns which.

    Where no latent is alive, the mean norm is that of all.
    """
    rows = dead[: len(directions)]
    norms = coder.W_enc.norm(dim=1)
    is_alive = torch.ones_like(norms, dtype=torch.bool).index_fill_(0, dead, False)
    alive = norms[is_alive] if bool(is_alive.any()) else norms
    coder.reset_latents_(rows, directions, encoder_share * alive.mean())
    for name, parameter in coder.named_parameters():
        if name in coder.by_latent:
            for moment in ("exp_avg", "exp_avg_sq"):
                if moment in states.get(parameter, {}):
                    states[parameter][moment][rows] = 0
    return rows


def check_can_resample(coder: SparseCoder[Any], name: str) -> None:
    """Refuse a coder of whose latents nobody has said how they start anew."""
    kind, width = coder.cfg.kind, (coder.d_sae, coder.d_in)
    if coder.W_enc.shape != width or coder.W_dec.shape != width:
        raise BadInput(
            f"{name}: resampling makes an encoder row and a decoder row from one input, and those "
            f"of {kind!r} are {tuple(coder.W_enc.shape)} and {tuple(coder.W_dec.shape)}, not both "
            f"{width}. Leave resample out.",
            key="resample",
        )
    unknown = [
        parameter_name
        for parameter_name, parameter in coder.named_parameters()
        if parameter_name not in (*coder.by_latent, "b_dec") and coder.d_sae in parameter.shape
    ]
    if unknown:
        raise BadInput(
            f"{name}: nobody has said what {', '.join(unknown)} of {kind!r} become for a latent "
            "that starts anew. Leave resample out.",
            key="resample",
        )
