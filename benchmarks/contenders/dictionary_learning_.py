"""dictionary_learning: ``update`` of its trainers, which clip, project and renormalise.

Its ``trainSAE`` recommends bfloat16 autocast and applies it on a GPU only; ``-bf16`` applies it on
the CPU in the same way. Its Adam is not the fused one. BatchTopK is scored with the batch's cut,
since its threshold for inference is unset for the first 1,000 steps.
"""

from contextlib import nullcontext

import torch
from dictionary_learning.trainers.batch_top_k import (  # pyright: ignore[reportMissingImports]
    BatchTopKTrainer,
)
from dictionary_learning.trainers.top_k import TopKTrainer  # pyright: ignore[reportMissingImports]
from torch import Tensor

from benchmarks.contenders import Reconstruction, Setting


class DictionaryLearning:
    """One of its trainers."""

    def __init__(self, setting: Setting, bf16: bool) -> None:
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
        self.number, self.bf16 = 0, bf16

    def step(self, x: Tensor) -> None:
        dtype = torch.bfloat16 if self.bf16 else torch.float32
        with torch.autocast("cpu", dtype) if self.bf16 else nullcontext():
            self.trainer.update(self.number, x.to(dtype))
        self.number += 1

    def reconstruct(self, x: Tensor) -> Reconstruction:
        z = self.trainer.ae.encode(x, use_threshold=False)
        return Reconstruction(self.trainer.ae.decode(z), (z > 0).sum())


def build(name: str, setting: Setting) -> DictionaryLearning:
    return DictionaryLearning(setting, bf16=name.endswith("bf16"))
