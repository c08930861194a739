"""Where sparse products have kernels of their own: on CUDA, where Triton is installed."""

import warnings
from functools import cache

import torch
from torch import Tensor


def can_run(x: Tensor) -> bool:
    """Whether the Triton kernels take ``x``."""
    return False


@cache
def quieten() -> None:
    """Let torch say once, unheard, that compressed sparse tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(
            torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1), check_invariants=False
        )
