"""Switch: a router sends each token to one expert, a k-sparse autoencoder of its own latents.

    p     = softmax(W_router (x - b_router)),   j = argmax p
    z     = p_j keep_top_k(relu(W_enc_j (x - b_dec) + b_enc_j), k)   in the block of expert j
    x_hat = W_dec' z + b_dec,   rows of W_dec have unit norm
    loss  = |x - x_hat|^2 + balance_weight var(x) balance
    balance = E sum_j f_j P_j,   f_j share of tokens sent to j (constant), P_j mean of p_j

Latents are reported with the factor p_j in them, so that they times their rows are the
reconstruction; without it they would not be. With ``weighting: heaviside`` the factor is 1 and the
router learns from the balance alone. Experts see only their own tokens, so a step costs a
d_sae / E th of a dense encoder.

Differs from the authors' code: that multiplies balance by d_in, the scale of |x|^2 where
coordinates have unit variance; training here is at mean square norm 1, so the factor is var(x), as
for AuxK elsewhere. Encoders start as copies of the decoders, of unit norm, and have a bias. As in
their final runs there is no AuxK.
"""

import math
from typing import Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional

from sae_lib.papers import Paper
from sae_lib.saes._codes import Code, is_sparse_faster, sparse_code, step_flops
from sae_lib.saes._ops import (
    geometric_median,
    keep_top_k,
    latents_of,
    normalise_rows_,
    project_gradient_rows_,
    random_unit_rows,
    spread_of,
    squared_error,
)
from sae_lib.saes._products import uniform_pattern
from sae_lib.saes._select import Choice, Encoder, largest_of_rows
from sae_lib.saes.base import Activations, Latents, SaeConfig, SparseCoder, Step, Terms, register

SHARES_MEMORY = 0.99
"""Share of the running mean of what experts get that a step leaves in place."""


class SwitchConfig(SaeConfig):
    """Description of a `Switch`."""

    papers = (Paper("Mudide et al. 2024", "https://arxiv.org/abs/2410.08201", "3"),)
    summary = "A router sends each token to one of several TopK experts: more latents per FLOP."
    dials = ("k", "num_experts")

    kind: Literal["switch"] = "switch"  # pyright: ignore[reportIncompatibleVariableOverride]
    """Name in experiment files."""

    k: int = Field(default=32, gt=0)
    """Latents on per token, all of one expert."""

    num_experts: int = Field(default=8, gt=0)
    """Experts E; each has d_sae / E latents, in one block. One expert is TopK."""

    weighting: Literal["router", "heaviside"] = "router"
    """Latents times the router's probability, or as they are."""

    balance_weight: float = Field(default=3.0, ge=0)
    """Loss per unit of balance, in units of the variance of x; balance is 1 when tokens are spread
    evenly and E when one expert gets all."""

    @model_validator(mode="after")
    def _fits(self) -> "SwitchConfig":
        if self.d_sae % self.num_experts:
            raise ValueError(
                f"d_sae must be a multiple of num_experts={self.num_experts}; "
                f"got d_sae={self.d_sae}"
            )
        if self.k > self.expert_size:
            raise ValueError(
                "k must be between 1 and the latents of an expert, "
                f"d_sae / num_experts = {self.expert_size}; got k={self.k}"
            )
        return self

    @property
    def expert_size(self) -> int:
        """Latents of one expert."""
        return self.d_sae // self.num_experts

    @classmethod
    def example(cls) -> "SwitchConfig":
        return cls(d_in=8, d_sae=32, k=4, num_experts=2)

    @classmethod
    def examples(cls) -> "tuple[SwitchConfig, ...]":
        return cls.example(), cls.example().but(weighting="heaviside")


class Routed(NamedTuple):
    """Where the tokens of a batch go."""

    p: Float[Tensor, "batch experts"]
    """The router's probabilities."""

    expert: Int64[Tensor, " batch"]

    factor: Float[Tensor, " batch"]
    """What latents are multiplied by."""

    groups: list[tuple[slice, Int64[Tensor, " some"]]]
    """For each expert that gets tokens its block of latents, and the numbers of the tokens."""


@register(SwitchConfig)
class Switch(SparseCoder[SwitchConfig]):
    """Mixture of sparse experts."""

    x_variance: Tensor
    shares: Tensor

    def __init__(self, cfg: SwitchConfig) -> None:
        super().__init__()
        self.cfg = cfg
        # one draw for both, so that the router does not start as latents of the first expert
        rows = random_unit_rows(cfg.d_sae + cfg.num_experts, cfg.d_in, cfg.seed)
        self.W_dec = nn.Parameter(rows[: cfg.d_sae].clone())
        self.W_enc = nn.Parameter(self.W_dec.detach().clone())
        self.b_enc = nn.Parameter(torch.zeros(cfg.d_sae))
        self.b_dec = nn.Parameter(torch.zeros(cfg.d_in))
        # the norm that rows of torch's default initialisation have
        self.W_router = nn.Parameter(rows[cfg.d_sae :] / math.sqrt(3))
        self.b_router = nn.Parameter(torch.zeros(cfg.d_in))
        self.register_buffer("x_variance", torch.ones(()))
        self.register_buffer("shares", torch.full((cfg.num_experts,), 1 / cfg.num_experts))

    def probabilities(self, x: Float[Tensor, "batch d_in"]) -> Float[Tensor, "batch experts"]:
        """The router's. The gradient of b_router comes through a bias, as in `latents_of`."""
        centre = self.b_router.detach()
        bias = self.W_router.detach() @ (centre - self.b_router)
        return functional.linear(x - centre, self.W_router, bias).softmax(-1)

    def route(self, x: Float[Tensor, "batch d_in"]) -> Routed:
        """Send tokens to experts."""
        p, size = self.probabilities(x), self.cfg.expert_size
        largest, expert = p.max(-1)
        factor = largest if self.cfg.weighting == "router" else torch.ones_like(largest)
        counts = torch.bincount(expert, minlength=self.cfg.num_experts).tolist()
        tokens = expert.argsort(stable=True).split(counts)
        groups = [
            (slice(j * size, (j + 1) * size), its_tokens)
            for j, its_tokens in enumerate(tokens)
            if len(its_tokens)
        ]
        return Routed(p, expert, factor, groups)

    def encode(self, x: Activations) -> Latents:
        """Latents times the router's probability, all of a token in one expert's block."""
        flat = x.reshape(-1, x.shape[-1])
        return self.latents(flat, self.route(flat)).view(*x.shape[:-1], self.d_sae)

    def latents(self, x: Float[Tensor, "batch d_in"], routed: Routed) -> Tensor:
        """All latents as one matrix, computed expert by expert."""
        z = x.new_zeros(len(x), self.d_sae)
        for block, tokens in routed.groups:
            z[tokens, block] = self.expert(x, routed, block, tokens)
        return z

    def expert(
        self, x: Float[Tensor, "batch d_in"], routed: Routed, block: slice, tokens: Tensor
    ) -> Float[Tensor, "some expert_size"]:
        """One expert's latents of its tokens."""
        pre = latents_of(x[tokens], self.W_enc[block], self.b_enc[block], self.b_dec)
        return keep_top_k(pre, self.cfg.k) * routed.factor[tokens, None]

    def decode(self, z: Latents) -> Activations:
        return z @ self.W_dec + self.b_dec

    def code_and_product(
        self, x: Float[Tensor, "batch d_in"], routed: Routed
    ) -> tuple[Code, Float[Tensor, "batch d_in"]]:
        """Latents, and what they reconstruct without b_dec."""
        if not is_sparse_faster(x, self.cfg.k / self.cfg.expert_size):
            z, x_hat = x.new_zeros(len(x), self.d_sae), torch.zeros_like(x)
            for block, tokens in routed.groups:
                part = self.expert(x, routed, block, tokens)
                z[tokens, block] = part
                x_hat = x_hat.index_add(0, tokens, part @ self.W_dec[block])
            return Code(z), x_hat

        def select(centred: Tensor, encoder: Encoder) -> Choice:
            latents = torch.empty(len(x), self.cfg.k, dtype=torch.int64, device=x.device)
            values = centred.new_empty(len(x), self.cfg.k)
            for block, tokens in routed.groups:
                its_own = Encoder(encoder.W[block], encoder.b[block])
                found = largest_of_rows(centred[tokens], its_own, self.cfg.k)
                latents[tokens] = found.pattern.latents.view(-1, self.cfg.k) + block.start
                values[tokens] = found.values.view(-1, self.cfg.k)
            return Choice(uniform_pattern(latents, self.d_sae), values.view(-1))

        values, pattern = sparse_code(x, self.W_enc, self.b_enc, self.b_dec, select).entries
        code = Code(None, values * routed.factor[pattern.tokens], pattern)
        return code, code.times(self.W_dec)

    def terms(self, step: Step) -> Terms:
        routed = self.route(step.x)
        code, x_hat = self.code_and_product(step.x, routed)
        shares = torch.bincount(routed.expert, minlength=self.cfg.num_experts) / len(step.x)
        self.shares.lerp_(shares.to(self.shares.dtype), 1 - SHARES_MEMORY)
        extra, per_token = {}, {}
        if self.cfg.balance_weight:
            weight = self.cfg.balance_weight * self.x_variance
            per_token["balance"] = weight * balance_by_token(routed.p, shares)
            extra["balance"] = per_token["balance"].mean()
        error = step.target - x_hat - self.b_dec
        return Terms(code, error, squared_error(error), extra, per_token)

    def numbers(self) -> dict[str, float]:
        return {"smallest_expert_share": float(self.shares.min())}

    def flops_per_token(self) -> float:
        """One expert's step, and the router's product and its gradient by the weights."""
        expert = step_flops(self.d_in, self.d_out, self.cfg.expert_size, self.cfg.k)
        return expert + 4.0 * self.cfg.num_experts * self.d_in

    @torch.no_grad()
    def scale_(self, factor: float) -> None:
        """Probabilities stay as they are: the router's weights go the other way."""
        self.b_enc.mul_(factor)
        self.b_dec.mul_(factor)
        self.b_router.mul_(factor)
        self.W_router.div_(factor)
        self.x_variance.mul_(factor**2)

    @torch.no_grad()
    def initialise_(self, sample: Tensor) -> None:
        self.b_dec.copy_(geometric_median(sample))
        self.b_router.copy_(self.b_dec)
        self.x_variance.copy_(spread_of(sample))

    @torch.no_grad()
    def before_update(self) -> None:
        if self.W_dec.grad is not None:
            project_gradient_rows_(self.W_dec.grad, self.W_dec)

    @torch.no_grad()
    def after_update(self) -> None:
        normalise_rows_(self.W_dec)


def balance_by_token(
    p: Float[Tensor, "batch experts"], shares: Float[Tensor, " experts"]
) -> Float[Tensor, " batch"]:
    """What each token adds to E sum_j f_j P_j, whose mean over tokens it is."""
    return p.shape[1] * (p @ shares.detach().to(p.dtype))
