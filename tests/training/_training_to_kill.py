"""Trains two small SAEs with a checkpoint after every step; somebody kills it now and then."""

import sys
import threading
import time
from pathlib import Path

import torch

from sae_lib.saes import SaeConfig
from sae_lib.saes.batch_topk import BatchTopKConfig
from sae_lib.saes.standard import StandardConfig
from sae_lib.training.config import TrainConfig, resolve
from sae_lib.training.loop import fit
from sae_lib.training.memory import InMemoryBatches, MemoryBatch
from sae_lib.training.trainee import Trainee

STEPS = 150


class Slow(InMemoryBatches):
    """Batches that take their time, so that there is time to be killed in."""

    def __init__(self, x: dict[str, torch.Tensor], pause: float) -> None:
        super().__init__(x, 32)
        self.pause = pause

    def batch(self, i: int) -> MemoryBatch:
        if threading.current_thread() is not threading.main_thread():  # not for initial values
            time.sleep(self.pause)
        return super().batch(i)


def main(folder: Path, pause: float) -> None:
    torch.set_num_threads(1)
    x = torch.randn(700, 8, generator=torch.Generator().manual_seed(0))
    configs: dict[str, SaeConfig] = {
        "batch": BatchTopKConfig.example(),
        "steered": StandardConfig(d_in=8, d_sae=32, target_l0=3),
    }
    trainees = []
    for name, cfg in configs.items():
        train = TrainConfig(
            tokens=STEPS * 32, batch_tokens=32, lr=1e-2, checkpoint_every_seconds=0, curve_points=9
        )
        how = resolve(train, cfg)
        trainees.append(
            Trainee(name, cfg.build(), "site", how, scale=0.5, checkpoint=folder / name)
        )
    fit(trainees, Slow({"site": x}, pause))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]))
