"""What must be so before anything is imported."""

import os

import torch

if not torch.cuda.is_available():
    # Triton decides at its first import: without a GPU the tests interpret the kernels
    os.environ.setdefault("TRITON_INTERPRET", "1")
