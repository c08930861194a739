"""Where sparse products have kernels of their own: on CUDA, where Triton is installed."""

import warnings
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

DTYPES = torch.float32, torch.bfloat16
"""What the kernels take; they add in float32."""


def can_run(x: Tensor) -> bool:
    """Whether the Triton kernels take ``x``: on an NVIDIA GPU from Ampere on, see `DTYPES`."""
    return x.is_cuda and x.dtype in DTYPES and _is_new_enough(x.device) and has_triton()


def kernels() -> ModuleType:
    """`_triton`, imported when it is first needed, since that takes a while."""
    return import_module("sae_lib.saes._triton")


@cache
def has_triton() -> bool:
    """Whether Triton is installed; says so once where a GPU could use it and it is not."""
    if find_spec("triton") is not None:
        return True
    warnings.warn(
        "Triton is not installed, so sparse coders are trained with dense products on the GPU. "
        "Install it with: pip install 'sae-workflows[triton]'",
        RuntimeWarning,
        stacklevel=2,
    )
    return False


@cache
def _is_new_enough(device: torch.device) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(device) >= (8, 0)


@cache
def quieten() -> None:
    """Let torch say once, unheard, that compressed sparse tensors are in beta."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.sparse_csr_tensor(
            torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1), (1, 1), check_invariants=False
        )
