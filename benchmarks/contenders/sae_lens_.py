"""SAELens: the step of its own trainer, with its defaults and with its two ways to be faster.

``sae-lens-sparse`` is its sparse option, which is said to be for float32 without autocast; on the
CPU it needs rescaling by decoder norms switched off, since that multiplies the sparse latents.
``sae-lens-bf16`` sets ``autocast`` and ``compile_sae``, which its runner applies as here. Its
trainer keeps firing statistics on a dense batch x d_sae matrix, and its Adam is not the fused one.
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

from benchmarks.contenders import Reconstruction, Setting


class SaeLens:
    """Its trainer, fed by hand."""

    def __init__(self, setting: Setting, *, sparse: bool, bf16: bool) -> None:
        torch.manual_seed(setting.seed)
        options: dict[str, Any] = {"d_in": setting.d_in, "d_sae": setting.d_sae, "k": setting.k}
        if setting.kind == "topk":
            if sparse:
                options |= {"use_sparse_activations": True, "rescale_acts_by_decoder_norm": False}
            sae = TopKTrainingSAE(TopKTrainingSAEConfig(**options))
        else:
            sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(**options))
        if bf16:
            sae.training_forward_pass = torch.compile(sae.training_forward_pass)
        config = SAETrainerConfig(
            total_training_samples=setting.steps * setting.batch,
            train_batch_size_samples=setting.batch,
            lr=setting.lr,
            lr_end=setting.lr,
            lr_warm_up_steps=setting.warmup_steps,
            autocast=bf16,
        )
        self.trainer = SAETrainer(config, sae, iter(()))

    def step(self, x: Tensor) -> None:
        self.trainer.maybe_reset_sparsity()
        self.trainer.step(x)
        self.trainer.n_training_steps += 1

    def reconstruct(self, x: Tensor) -> Reconstruction:
        sae = self.trainer.sae
        z = sae.encode(x)
        values = z.coalesce().values() if z.is_sparse else z
        return Reconstruction(sae.decode(z), (values > 0).sum())


def build(name: str, setting: Setting) -> SaeLens:
    sparse = name.endswith("sparse")
    if sparse and setting.kind != "topk":
        raise NotImplementedError("the sparse option of SAELens is for TopK")
    return SaeLens(setting, sparse=sparse, bf16=name.endswith("bf16"))
