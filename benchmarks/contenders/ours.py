"""This library: a trainee as `sae_lib.training.fit` steps it, with its default settings."""

import torch
from torch import Tensor

from benchmarks.contenders import Setting
from sae_lib.saes.base import VARIANTS
from sae_lib.training.config import TrainConfig, resolve
from sae_lib.training.memory import MemoryBatch
from sae_lib.training.trainee import Progress, Trainee


class Ours:
    """A trainee under way."""

    def __init__(self, setting: Setting) -> None:
        config = VARIANTS[setting.kind].model_validate(
            {"d_in": setting.d_in, "d_sae": setting.d_sae, "k": setting.k, "seed": setting.seed}
        )
        train = TrainConfig(
            tokens=setting.steps * setting.batch,
            batch_tokens=setting.batch,
            lr=setting.lr,
            warmup_steps=setting.warmup_steps,
            decay_share=0,
            dead_after_tokens=10_000_000,
        )
        self.trainee = Progress(Trainee("ours", config.build(), "x", resolve(train, config)))
        self.is_fresh = True

    def step(self, x: Tensor) -> None:
        if self.is_fresh:
            self.trainee.coder.initialise_(x)
            self.is_fresh = False
        batch = MemoryBatch({"x": x}, torch.arange(len(x)))
        if not bool(self.trainee.compute_gradients(batch)):
            raise RuntimeError("the loss is not finite")
        self.trainee.update()

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.trainee.coder(x)


def build(name: str, setting: Setting) -> Ours:
    return Ours(setting)
