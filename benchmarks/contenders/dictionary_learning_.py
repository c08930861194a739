"""dictionary_learning: ``update`` of its trainers, which clip, project and renormalise."""

from dictionary_learning.trainers.batch_top_k import (  # pyright: ignore[reportMissingImports]
    BatchTopKTrainer,
)
from dictionary_learning.trainers.top_k import TopKTrainer  # pyright: ignore[reportMissingImports]
from torch import Tensor

from benchmarks.contenders import Setting


class DictionaryLearning:
    """One of its trainers."""

    def __init__(self, setting: Setting) -> None:
        make = {"topk": TopKTrainer, "batch_topk": BatchTopKTrainer}[setting.kind]
        self.trainer = make(
            steps=max(setting.steps, setting.warmup_steps + 1),
            activation_dim=setting.d_in,
            dict_size=setting.d_sae,
            k=setting.k,
            layer=0,
            lm_name="none",
            lr=setting.lr,
            warmup_steps=setting.warmup_steps,
            seed=setting.seed,
            device="cpu",
        )
        self.number = 0

    def step(self, x: Tensor) -> None:
        self.trainer.update(self.number, x)
        self.number += 1

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.trainer.ae.decode(self.trainer.ae.encode(x, use_threshold=False))


def build(name: str, setting: Setting) -> DictionaryLearning:
    return DictionaryLearning(setting)
