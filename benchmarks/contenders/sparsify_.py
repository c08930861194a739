"""eai-sparsify: its coder with torch's Adam, and what its trainer does around a step.

Its trainer cannot be driven without a language model, so the body of its loop is followed here:
unit norm of the decoder first, then loss, projection, optimiser, counters. It does not clip
gradients, and its Adam is not the fused one.
"""

import torch
from sparsify.config import SparseCoderConfig  # pyright: ignore[reportMissingImports]
from sparsify.sparse_coder import SparseCoder  # pyright: ignore[reportMissingImports]
from torch import Tensor

from benchmarks.contenders import Setting

DEAD_AFTER = 10_000_000


class Sparsify:
    """The coder, its optimiser and its counters."""

    def __init__(self, setting: Setting) -> None:
        torch.manual_seed(setting.seed)
        self.coder = SparseCoder(
            setting.d_in, SparseCoderConfig(num_latents=setting.d_sae, k=setting.k)
        )
        self.optimizer = torch.optim.Adam(self.coder.parameters(), lr=setting.lr)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(
            self.optimizer, lambda i: min(1.0, (i + 1) / max(1, setting.warmup_steps))
        )
        self.silent_for = torch.zeros(setting.d_sae, dtype=torch.long)
        self.is_fresh = True

    def step(self, x: Tensor) -> None:
        coder = self.coder
        if self.is_fresh:  # its trainer starts b_dec at the mean of the first batch
            coder.b_dec.data = x.mean(0)
            self.is_fresh = False
        coder.set_decoder_norm_to_unit_norm()
        dead = self.silent_for > DEAD_AFTER
        out = coder(x, dead_mask=dead if bool(dead.any()) else None)
        out.fvu.backward()
        coder.remove_gradient_parallel_to_decoder_directions()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.schedule.step()
        fired = torch.zeros_like(self.silent_for, dtype=torch.bool)
        fired[out.latent_indices.flatten()] = True
        self.silent_for += len(x)
        self.silent_for[fired] = 0

    def reconstruct(self, x: Tensor) -> Tensor:
        return self.coder(x).sae_out


def build(name: str, setting: Setting) -> Sparsify:
    if setting.kind != "topk":
        raise NotImplementedError("eai-sparsify has no BatchTopK")
    return Sparsify(setting)
