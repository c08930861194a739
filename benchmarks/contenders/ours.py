"""This library: a trainee stepped by the training loop's own function, with default settings.

``ours-data`` begins with inputs of the data as directions.

BatchTopK is scored with the batch's cut, as the others are: its threshold for inference would have
a few more or fewer latents on.
"""

import torch
from torch import Tensor

from benchmarks.contenders import Reconstruction, Setting
from sae_lib.saes._ops import keep_top_of_batch, latents_of
from sae_lib.saes.base import VARIANTS
from sae_lib.training.config import TrainConfig, resolve
from sae_lib.training.loop import INITIAL_ROWS, take_step
from sae_lib.training.memory import MemoryBatch
from sae_lib.training.trainee import Progress, Trainee


class Ours:
    """A trainee under way."""

    def __init__(self, setting: Setting, directions: str) -> None:
        config = VARIANTS[setting.kind].model_validate(
            {
                "d_in": setting.d_in,
                "d_sae": setting.d_sae,
                "k": setting.k,
                "seed": setting.seed,
                "directions": directions,
            }
        )
        train = TrainConfig(
            tokens=setting.steps * setting.batch,
            batch_tokens=setting.batch,
            lr=setting.lr,
            warmup_steps=setting.warmup_steps,
            decay_share=0,
            dead_after_tokens=10_000_000,
        )
        self.kind = setting.kind
        self.trainee = Progress(Trainee("ours", config.build(), "x", resolve(train, config)))

    def begin(self, train: Tensor) -> None:
        """As a training begins: from its first rows, which it is then trained on as well."""
        self.trainee.coder.initialise_(train[:INITIAL_ROWS])

    def step(self, x: Tensor) -> None:
        number = self.trainee.step
        take_step([self.trainee], MemoryBatch({"x": x}, torch.arange(len(x))), number)
        if self.trainee.status == "diverged":
            raise RuntimeError("the loss is not finite")

    def reconstruct(self, x: Tensor) -> Reconstruction:
        coder = self.trainee.coder
        if self.kind == "batch_topk":
            pre = latents_of(x, coder.W_enc, coder.b_enc, coder.b_dec)
            z = keep_top_of_batch(pre, coder.cfg.k * len(x))
        else:
            z = coder.encode(x)
        return Reconstruction(coder.decode(z), (z > 0).sum())


def build(name: str, setting: Setting) -> Ours:
    return Ours(setting, "data" if name == "ours-data" else "random")
