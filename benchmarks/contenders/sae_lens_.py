"""SAELens: the step of its own trainer; once with its defaults, once with its sparse option.

The sparse option is said to be for float32 without autocast; it needs rescaling by decoder norms
switched off on the CPU, since that multiplies the sparse latents. Its trainer keeps firing
statistics on a dense batch x d_sae matrix.
"""

from typing import Any

import torch
from sae_lens import (  # pyright: ignore[reportMissingImports]
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    TopKTrainingSAE,
    TopKTrainingSAEConfig,
)
from sae_lens.config import SAETrainerConfig  # pyright: ignore[reportMissingImports]
from sae_lens.training.sae_trainer import SAETrainer  # pyright: ignore[reportMissingImports]
from torch import Tensor

from benchmarks.contenders import Setting


class SaeLens:
    """Its trainer, fed by hand."""

    def __init__(self, setting: Setting, sparse: bool) -> None:
        torch.manual_seed(setting.seed)
        options: dict[str, Any] = {"d_in": setting.d_in, "d_sae": setting.d_sae, "k": setting.k}
        if setting.kind == "topk":
            if sparse:
                options |= {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(**options))
        else:
            sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**options))
        config = SAETrainerConfig(
            total_training_samples=setting.steps * setting.batch,
            train_batch_size_samples=setting.batch,
            lr=setting.lr,
            lr_end=setting.lr,
            lr_warm_up_steps=setting.warmup_steps,
        )
        self.trainer = SAETrainer(config, sae, iter(()))

    def step(self, x: Tensor) -> None:
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.trainer.sae(x)


def build(name: str, setting: Setting) -> SaeLens:
    sparse = name == "sae-lens-sparse"
    if sparse and setting.kind != "topk":
        raise NotImplementedError("the sparse option of SAELens is for TopK")
    return SaeLens(setting, sparse)
