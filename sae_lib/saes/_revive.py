"""Terms that give dead latents of the ReLU family something to learn from.

    aux_k   weight var(x) aux(relu(W_enc (x - centre)))                    (aux as in topk.py)
    ghost   weight |r - sg[s] g|^2 sg[|r|^2 / |r - sg[s] g|^2],   r = sg[x - x_hat],
            g = sum over dead latents of exp(pi_i) W_dec_i,   s = |r| / (2 |g|)

Both look at the error as a constant and reach dead latents alone. AuxK was made for latents that
lose a competition, whose pre-activations are positive. A dead latent of the ReLU family has none
that is: rectified with their bias they are zero, and so is their gradient. Here they are taken
without the bias, by which the latent is silent; with a bias of zero the term is that of `TopK`.
Ghost gradients are of historical interest: recipes since April 2024 leave them out.
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor, nn

from sae_lib.saes._codes import aux_from
from sae_lib.saes._ops import half_width, pre_of, spread_of
from sae_lib.saes.base import SaeConfig, Step

DEFAULT_WEIGHTS = {"none": 0.0, "aux_k": 1 / 32, "ghost": 1.0}
"""AuxK: Gao et al. 2024, A.2; ghost gradients weigh as much as the reconstruction."""


class RevivingConfig(SaeConfig):
    """What the descriptions of the ReLU family have in common: a term for dead latents."""

    revive: Literal["none", "aux_k", "ghost"] = "none"
    """A term of the loss for dead latents: none, AuxK (without their bias) or ghost gradients."""

    revive_weight: float | None = Field(default=None, ge=0)
    """Weight of that term; left out: 1/32 for aux_k (times the variance of x), 1 for ghost."""

    aux_k: int = Field(default_factory=half_width, ge=0)
    """Dead latents of a token that ``aux_k`` uses; derived: near d_in / 2."""

    @model_validator(mode="after")
    def _has_a_term_to_weigh(self) -> "RevivingConfig":
        if self.revive == "none" and self.revive_weight is not None:
            raise ValueError(
                "revive_weight weighs a term for dead latents, and there is none; say revive: aux_k"
                f" or ghost, or leave it out; got revive_weight={self.revive_weight}"
            )
        return self


class Revived(NamedTuple):
    """What the term came to; both are empty where there is none."""

    extra: dict[str, Float[Tensor, ""]]

    per_token: dict[str, Float[Tensor, " batch"]]
    """Of ghost gradients; AuxK is a ratio of sums over the batch."""


class Reviver(nn.Module):
    """The term that a config asks for. A buffer holds var(x) where the term needs it."""

    x_variance: Tensor

    def __init__(self, cfg: RevivingConfig) -> None:
        super().__init__()
        self.kind, self.k = cfg.revive, cfg.aux_k
        given = cfg.revive_weight
        self.weight = DEFAULT_WEIGHTS[self.kind] if given is None else given
        if self.kind == "aux_k":  # a coder without the term is stored without it
            self.register_buffer("x_variance", torch.ones(()))

    def __call__(
        self,
        error: Float[Tensor, "batch d_in"],
        step: Step,
        W_enc: Float[Tensor, "d_sae d_in"],
        b_enc: Float[Tensor, " d_sae"],
        centre: Float[Tensor, " d_in"] | None,
        W_dec: Float[Tensor, "d_sae d_in"],
    ) -> Revived:
        """Weighted. ``b_enc`` is the bias by which latents are on or off; ``centre`` is what is
        subtracted from x before encoding, None for nothing."""
        if not self.weight:
            return Revived({}, {})
        if self.kind == "aux_k":
            no_centre = W_enc.new_zeros(W_enc.shape[1])
            encoder = W_enc, torch.zeros_like(b_enc), no_centre if centre is None else centre
            aux = aux_from(error, step.x, step.dead, *encoder, W_dec, self.k)
            return Revived({"aux": self.weight * self.x_variance * aux}, {})
        rows = step.dead.nonzero().squeeze(1)
        W, b = W_enc.index_select(0, rows), b_enc.index_select(0, rows)
        pre = pre_of(step.x, W, b, centre)
        ghost = self.weight * ghost_errors(error, pre, W_dec.index_select(0, rows))
        return Revived({"ghost": ghost.mean()}, {"ghost": ghost})

    @torch.no_grad()
    def initialise_(self, sample: Float[Tensor, "rows d_in"]) -> None:
        if self.kind == "aux_k":
            self.x_variance.copy_(spread_of(sample))

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        if self.kind == "aux_k":
            self.x_variance.mul_(factor**2)


def ghost_reconstruction(
    error: Float[Tensor, "batch d_in"],
    pre: Float[Tensor, "batch num_dead"],
    W_dec: Float[Tensor, "num_dead d_in"],
) -> Float[Tensor, "batch d_in"]:
    """What dead latents, made to fire, say of the error: at half its norm, token by token.

    ``pre`` are pre-activations. The largest of each token is subtracted from them first: that
    multiplies g and divides s, and nothing can overflow.
    """
    g = (pre - pre.detach().amax(1, keepdim=True)).exp() @ W_dec
    length = g.detach().norm(dim=1, keepdim=True)
    half = error.detach().norm(dim=1, keepdim=True) / 2
    return torch.where(length > 0, half / length.clamp_min(_tiny(g)), 0.0) * g


def ghost_errors(
    error: Float[Tensor, "batch d_in"],
    pre: Float[Tensor, "batch num_dead"],
    W_dec: Float[Tensor, "num_dead d_in"],
) -> Float[Tensor, " batch"]:
    """Ghost loss of each token: the value is |error|^2, the gradient only reaches ``pre`` and
    ``W_dec``, both of dead latents alone; 0 where there are none."""
    if pre.shape[1] == 0:
        return error.new_zeros(len(error))
    error = error.detach()
    missed = (ghost_reconstruction(error, pre, W_dec) - error).square().sum(1)
    # at least a quarter of |error|^2, since the ghost has half its norm; so 0 only for no error
    wanted = error.square().sum(1)
    ratio = torch.where(wanted > 0, wanted / missed.detach().clamp_min(_tiny(error)), 0.0)
    return ratio * missed


def _tiny(like: Tensor) -> float:
    """A number that may be divided by and is far below any norm that means something."""
    return math.sqrt(torch.finfo(like.dtype).tiny)
