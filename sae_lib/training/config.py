"""How sparse coders are trained, and what follows from what was left open."""

import math
from typing import Annotated, Literal, Protocol, runtime_checkable

from pydantic import BeforeValidator, Field, model_validator

from sae_lib.config import Config
from sae_lib.training.distributed.config import DevicesConfig, by_count

BASE_LR = 2e-4
"""Learning rate at `BASE_WIDTH` latents (dictionary_learning); it falls as 1/sqrt(width)."""

BASE_WIDTH = 2**14

LONG_RUN_STEPS = 50_000
"""A run of this many steps or more uses the base rate; a shorter one a larger one."""

MAX_SHORT_RUN_FACTOR = 4.0


@runtime_checkable
class HasWidth(Protocol):
    """Whatever says how many latents it has: any description of an SAE."""

    @property
    def d_sae(self) -> int: ...


class TrainConfig(Config):
    """A training as an experiment states it; ``resolve`` fills in what is left open."""

    tokens: int = Field(gt=0)
    """Tokens each SAE sees; more than are stored means several passes in different orders."""

    batch_tokens: int = Field(default=2048, gt=0)
    """Tokens in a step."""

    lr: float | None = Field(default=None, gt=0)
    """Peak learning rate of Adam; derived from the width and the number of steps."""

    betas: tuple[float, float] = (0.9, 0.999)
    """Adam's memories of the gradient and of its square."""

    eps: float = Field(default=6.25e-10, gt=0)
    """Adam's floor; small, so that latents that rarely fire still learn (Gao et al., A.1)."""

    warmup_steps: int | None = Field(default=None, ge=0)
    """Steps over which the learning rate rises from 0; derived: 5 % of the run, at most 1,000."""

    decay_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the run, at its end, over which the learning rate falls to 0."""

    sparsity_warmup_share: float = Field(default=0.05, ge=0, le=1)
    """Share of the run, at its start, over which sparsity penalties rise from 0."""

    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient over all parameters."""

    dead_after_tokens: int | None = Field(default=None, gt=0)
    """Tokens of silence after which a latent is dead; derived: a tenth of the run, at most 10 M."""

    normalise: Literal["unit_mean_square", "none"] = "unit_mean_square"
    """Scale of activations in training; it is folded into the weights at the end."""

    seed: int = Field(default=0, ge=0)
    """Seed of the order of the data."""

    checkpoint_every_seconds: float = Field(default=30.0, ge=0)
    """Time between checkpoints; 0 writes one after every step."""

    curve_points: int = Field(default=200, gt=0)
    """About how many points each curve has."""

    devices: Annotated[
        DevicesConfig,
        BeforeValidator(by_count, json_schema_input_type=int | DevicesConfig),
    ] = DevicesConfig()
    """Devices that train each SAE together: a number, or a mapping that also says how. What an SAE
    is does not depend on it, up to rounding."""

    @model_validator(mode="after")
    def _fits(self) -> "TrainConfig":
        if self.tokens < self.batch_tokens:
            raise ValueError(
                f"tokens must be at least batch_tokens={self.batch_tokens}, one step; "
                f"got tokens={self.tokens}"
            )
        if self.devices.split == "batch" and self.batch_tokens % self.devices.count:
            raise ValueError(
                f"batch_tokens={self.batch_tokens} do not split evenly among "
                f"{self.devices.count} devices; make batch_tokens a multiple of their number"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1); got betas={self.betas}")
        return self


class ResolvedTrain(TrainConfig):
    """A training with nothing left open, as it is written into the result."""

    lr: float = Field(gt=0)  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    """Peak learning rate of Adam."""

    warmup_steps: int = Field(ge=0)  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    """Steps over which the learning rate rises from 0."""

    dead_after_tokens: int = Field(gt=0)  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    """Tokens of silence after which a latent is dead."""

    steps: int = Field(gt=0)
    """Whole batches that ``tokens`` hold."""


def resolve(cfg: TrainConfig, sae_cfg: HasWidth) -> ResolvedTrain:
    """``cfg`` with what was left open derived for this SAE.

    The learning rate is 2e-4 / sqrt(d_sae / 2**14), and more in a short run: times
    sqrt(50,000 / steps), at most 4.
    """
    steps = cfg.tokens // cfg.batch_tokens
    given = cfg.model_dump()
    derived = {
        "lr": derived_lr(sae_cfg.d_sae, steps),
        "warmup_steps": min(1000, steps // 20),
        "dead_after_tokens": max(cfg.batch_tokens, min(10_000_000, cfg.tokens // 10)),
    }
    filled = {key: value for key, value in derived.items() if given[key] is None}
    return ResolvedTrain.model_validate({**given, **filled, "steps": steps})


def derived_lr(d_sae: int, steps: int) -> float:
    """Peak learning rate for a width and a number of steps, to three digits."""
    short = min(MAX_SHORT_RUN_FACTOR, max(1.0, math.sqrt(LONG_RUN_STEPS / steps)))
    return float(f"{short * BASE_LR / math.sqrt(d_sae / BASE_WIDTH):.3g}")


def normalisation_scale(normalise: str, mean_square_norm: float) -> float:
    """The factor c of x' = c x: 1 / sqrt(E|x|^2), or 1 where nothing is normalised.

    Activations that are all zero have no scale; they get 1.
    """
    if normalise == "none" or mean_square_norm <= 0:
        return 1.0
    return 1 / math.sqrt(mean_square_norm)
