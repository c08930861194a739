"""The encoder's product and nothing else, in float32 or bfloat16: what a step must at least do."""

import torch
from torch import Tensor

from benchmarks.contenders import Reconstruction, Setting


class Encode:
    """Weights, and room for the result, so that no memory is asked for in a step."""

    def __init__(self, setting: Setting, dtype: torch.dtype) -> None:
        torch.manual_seed(setting.seed)
        self.W = torch.randn(setting.d_sae, setting.d_in).to(dtype)
        self.b = torch.zeros(setting.d_sae, dtype=dtype)
        self.pre = torch.zeros(setting.batch, setting.d_sae, dtype=dtype)
        self.dtype = dtype

    def step(self, x: Tensor) -> None:
        torch.addmm(self.b, x.to(self.dtype), self.W.T, out=self.pre)

    def reconstruct(self, x: Tensor) -> Reconstruction:
        raise NotImplementedError("a product reconstructs nothing")


def build(name: str, setting: Setting) -> Encode:
    return Encode(setting, torch.bfloat16 if name.endswith("bfloat16") else torch.float32)
