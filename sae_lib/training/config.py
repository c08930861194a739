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

RESAMPLE_EVERY_TOKENS = 25_000 * 8192
"""25,000 steps of 8,192 tokens (Bricken et al. 2023)."""

RESAMPLE_SAMPLE_TOKENS = 819_200
"""Inputs among which new directions are chosen (Bricken et al. 2023)."""


@runtime_checkable
class HasWidth(Protocol):
    """Whatever says how many latents it has: any description of an SAE."""

    @property
    def d_sae(self) -> int: ...


class ResampleConfig(Config):
    """Now and then, dead latents start anew from inputs that are reconstructed badly.

    Defaults follow Bricken et al. 2023 (every 204.8 M tokens, four times, silent for the latter
    half of that time, chosen from 819,200 inputs) where the run is long enough for them, and else
    are shares of the run.
    """

    every_tokens: int | None = Field(default=None, gt=0)
    """Tokens between two times; derived: an eighth of the run, at most 204.8 M."""

    until_share: float = Field(default=0.5, gt=0, le=1)
    """Share of the run after which no latent starts anew, so that the last ones can settle."""

    silent_tokens: int | None = Field(default=None, gt=0)
    """Tokens of silence after which a latent starts anew; derived: half of every_tokens."""

    sample_tokens: int | None = Field(default=None, gt=0)
    """Inputs to choose from, in whole batches; derived: 1/64 of the run, at most 819,200."""

    encoder_share: float = Field(default=0.2, gt=0)
    """Norm of new encoder rows, in mean norms of those that are alive."""

    rewarm_steps: int = Field(default=0, ge=0)
    """Steps in which the learning rate rises again each time, along half a cosine; 0 leaves it
    alone (Rajamanoharan et al. 2024a: 1,000)."""

    rewarm_from: float = Field(default=0.1, ge=0, le=1)
    """Share of the learning rate at which it then begins."""


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
    """Steps over which the learning rate rises; derived: 5 % of the run, at most 1,000."""

    warmup_start: float = Field(default=0.0, ge=0, le=1)
    """Share of the peak learning rate from which it rises."""

    decay_share: float = Field(default=0.2, ge=0, le=1)
    """Share of the run, at its end, over which the learning rate falls to 0."""

    sparsity_warmup_share: float = Field(default=0.05, ge=0, le=1)
    """Share of the run, at its start, over which sparsity penalties rise from 0."""

    sparsity_warmup_steps: int | None = Field(default=None, ge=0)
    """The same in steps; where it is given, the share says nothing."""

    clip_norm: float = Field(default=1.0, gt=0)
    """Largest norm of the gradient over all parameters."""

    dead_after_tokens: int | None = Field(default=None, gt=0)
    """Tokens of silence after which a latent is dead; derived: a tenth of the run, at most 10 M."""

    resample: ResampleConfig | None = None
    """How dead latents start anew; null: they do not."""

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
        steps, rising_for = self.tokens // self.batch_tokens, self.sparsity_warmup_steps
        if rising_for is not None and rising_for >= steps:
            raise ValueError(
                f"sparsity_warmup_steps={rising_for} would not end within a run of {steps} steps "
                f"(tokens={self.tokens}, batch_tokens={self.batch_tokens}); give more tokens, or "
                "sparsity_warmup_steps below that"
            )
        if self.resample is not None and (self.resample.every_tokens or self.tokens) < (
            self.batch_tokens
        ):
            raise ValueError(
                f"resample.every_tokens must be at least batch_tokens={self.batch_tokens}, one "
                f"step; got every_tokens={self.resample.every_tokens}"
            )
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError(f"betas must lie in [0, 1); got betas={self.betas}")
        return self


class ResolvedResample(ResampleConfig):
    """A `ResampleConfig` with nothing left open."""

    every_tokens: int = Field(gt=0)  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    """Tokens between two times."""

    silent_tokens: int = Field(gt=0)  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    """Tokens of silence after which a latent starts anew."""

    sample_tokens: int = Field(gt=0)  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    """Inputs to choose from, in whole batches."""


class ResolvedTrain(TrainConfig):
    """A training with nothing left open, as it is written into the result."""

    lr: float = Field(gt=0)  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    """Peak learning rate of Adam."""

    warmup_steps: int = Field(ge=0)  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    """Steps over which the learning rate rises."""

    dead_after_tokens: int = Field(gt=0)  # pyright: ignore[reportIncompatibleVariableOverride, reportGeneralTypeIssues]
    """Tokens of silence after which a latent is dead."""

    resample: ResolvedResample | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    """How dead latents start anew; null: they do not."""

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
    if cfg.resample is not None:
        filled["resample"] = resolve_resample(cfg.resample, cfg.tokens, cfg.batch_tokens)
    return ResolvedTrain.model_validate({**given, **filled, "steps": steps})


def resolve_resample(
    cfg: ResampleConfig, tokens: int, batch_tokens: int
) -> dict[str, float | int | None]:
    """The fields of ``cfg`` with what was left open derived for a run of ``tokens``."""
    every = cfg.every_tokens or max(batch_tokens, min(RESAMPLE_EVERY_TOKENS, tokens // 8))
    derived = {
        "every_tokens": every,
        "silent_tokens": max(1, every // 2),
        "sample_tokens": max(batch_tokens, min(RESAMPLE_SAMPLE_TOKENS, tokens // 64)),
    }
    given = cfg.model_dump()
    return {**given, **{key: value for key, value in derived.items() if given[key] is None}}


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
