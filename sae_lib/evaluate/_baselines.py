"""Coders that learned nothing: the floors beside which a score means something.

    random    unit directions drawn at random; a token keeps its L0 largest positive projections
    pca       principal directions, each split into a positive and a negative latent, likewise

Both are as wide as the coder they stand beside and have as many latents on, and both are fitted
to activations that no metric is scored on.
"""

from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lib.errors import NotApplicable
from sae_lib.saes._codes import Code
from sae_lib.saes._ops import squared_error
from sae_lib.saes.base import Activations, Latents, SaeConfig, SparseCoder, Step, Terms


class BaselineConfig(SaeConfig):
    """Shape of a coder that learned nothing."""

    kind: Literal["baseline"] = "baseline"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Says that there is nothing to build the weights from."""

    num_on: int
    """Latents that are on per token at most."""


class BaselineCoder(SparseCoder[BaselineConfig]):
    """The ``num_on`` largest positive projections on unit rows, from a centre."""

    def __init__(
        self,
        directions: Float[Tensor, "d_sae d_in"],
        centre: Float[Tensor, " d_in"],
        num_on: int,
    ) -> None:
        super().__init__()
        d_sae, d_in = directions.shape
        self.cfg = BaselineConfig(d_in=d_in, d_sae=d_sae, num_on=num_on)
        rows = directions / directions.norm(dim=1, keepdim=True).clamp_min(1e-12)
        self.W_dec, self.W_enc = nn.Parameter(rows), nn.Parameter(rows.clone())
        self.b_dec = nn.Parameter(centre.clone())
        self.b_enc = nn.Parameter(torch.zeros(d_sae, device=rows.device))

    def encode(self, x: Activations) -> Latents:
        pre = ((x - self.b_dec) @ self.W_enc.mT + self.b_enc).relu()
        largest = pre.topk(min(self.cfg.num_on, self.d_sae), dim=-1)
        return torch.zeros_like(pre).scatter(-1, largest.indices, largest.values)

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def terms(self, step: Step) -> Terms:
        z = self.encode(step.x)
        error = step.target - self.decode(z)
        return Terms(Code(z), error, squared_error(error), {})

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        self.b_dec.mul_(factor)


@torch.no_grad()
def random_coder(
    coder: SparseCoder[Any], x: Float[Tensor, "rows d_in"], *, seed: int = 0
) -> BaselineCoder:
    """Random directions at the width and the L0 of ``coder`` on ``x``; ``x`` also gives the centre.

    Raises `NotApplicable` for a coder that does not reconstruct what it reads.
    """
    _check_reads_what_it_writes(coder)
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(coder.d_sae, coder.d_in, generator=generator).to(coder.W_dec.device)
    return BaselineCoder(directions, _rows(coder, x).mean(0), _num_on(coder, x))


@torch.no_grad()
def pca_coder(coder: SparseCoder[Any], x: Float[Tensor, "rows d_in"]) -> BaselineCoder:
    """Principal directions of ``x``, the largest first, both signs, at the L0 of ``coder`` there.

    It has the width of ``coder`` or twice the number of dimensions, whichever is less.
    """
    _check_reads_what_it_writes(coder)
    centre = _rows(coder, x).mean(0)
    centred = (_rows(coder, x) - centre).double()
    vectors = torch.linalg.eigh(centred.mT @ centred).eigenvectors.flip(1).mT.float()
    both = torch.stack([vectors, -vectors], dim=1).flatten(0, 1)
    return BaselineCoder(both[: coder.d_sae], centre, _num_on(coder, x))


def _num_on(coder: SparseCoder[Any], x: Float[Tensor, "rows d_in"]) -> int:
    on = sum(int((coder.encode(part) != 0).sum()) for part in _rows(coder, x).split(1024))
    return max(1, round(on / len(x)))


def _rows(coder: SparseCoder[Any], x: Tensor) -> Float[Tensor, "rows d_in"]:
    return x.to(coder.W_dec.device, torch.float32)


def _check_reads_what_it_writes(coder: SparseCoder[Any]) -> None:
    if coder.d_in != coder.d_out:
        raise NotApplicable(
            "a baseline coder", "the coder writes another number of values than it reads."
        )
