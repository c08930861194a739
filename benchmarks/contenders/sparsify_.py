"""eai-sparsify: its coder with torch's Adam, and what its trainer does around a step.

Its trainer cannot be driven without a language model, so the body of its loop is followed here,
with its defaults (no auxiliary loss): unit norm of the decoder first, then loss, projection,
optimiser, schedule, counters. Left out are copies and masks of a model's outputs and the reading
of the loss for its log. It does not clip gradients, its Adam is not the fused one, and its default
optimiser (signum) is another family. On a GPU its forward pass runs in bfloat16 autocast; on a CPU
it does not, and ``sparsify-bf16`` puts it there by hand.
"""

from contextlib import nullcontext
from typing import Any

import torch
from sparsify.config import SparseCoderConfig  # pyright: ignore[reportMissingImports]
from sparsify.sparse_coder import SparseCoder  # pyright: ignore[reportMissingImports]
from torch import Tensor

from benchmarks.contenders import Reconstruction, Setting


class Sparsify:
    """The coder, its optimiser and its counters."""

    def __init__(self, setting: Setting, bf16: bool) -> None:
        torch.set_float32_matmul_precision("high")  # as its `Trainer.fit` does
        torch.manual_seed(setting.seed)
        self.coder = SparseCoder(
            setting.d_in, SparseCoderConfig(num_latents=setting.d_sae, k=setting.k)
        )
        self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=setting.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda i: min(1.0, (i + 1) / max(1, setting.warmup_steps))
        )
        self.silent_for = torch.zeros(setting.d_sae, dtype=torch.long)
        self.fired = torch.zeros(setting.d_sae, dtype=torch.bool)
        self.is_fresh, self.bf16 = True, bf16

    def autocast(self) -> Any:
        return torch.autocast("cpu", torch.bfloat16) if self.bf16 else nullcontext()

    def step(self, x: Tensor) -> None:
        coder = self.coder
        if self.is_fresh:  # its trainer starts b_dec at the mean of the first batch
            coder.b_dec.data = x.mean(0)
            self.is_fresh = False
        coder.set_decoder_norm_to_unit_norm()
        total_variance = (x - x.mean(0)).pow(2).sum()
        with self.autocast():
            out = coder(x, total_variance=total_variance)
        self.fired[out.latent_indices.flatten()] = True
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        self.silent_for += len(x)
        self.silent_for[self.fired] = 0
        self.fired.zero_()

    def reconstruct(self, x: Tensor) -> Reconstruction:
        out = self.coder(x)
        return Reconstruction(out.sae_out, (out.latent_acts > 0).sum())


def build(name: str, setting: Setting) -> Sparsify:
    if setting.kind != "topk":
        raise NotImplementedError("eai-sparsify has no BatchTopK")
    return Sparsify(setting, bf16=name.endswith("bf16"))
