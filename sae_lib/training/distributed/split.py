"""One process's share of a training that several do together, and how its state is stored.

Every process runs the same loop on the same batches, whole, and comes to the same numbers: the
terms of the loss, the norm of the gradient, dead latents and schedules are those of the whole
batch and the whole SAE. What differs is which rows of the batch (``batch``) or which latents
(``latents``) it computes with.

Plain collectives say this most clearly. DistributedDataParallel averages losses of shares, and
the budget of a batch, AuxK's normaliser and a steered coefficient are no averages of shares;
DTensor has no rule for the sparse products.

A checkpoint is the one file that a single process would write: the first process gathers the
shares, tensor by tensor, and replaces the file in one step. So no file ever holds two steps, and
a training may go on with another number of devices.
"""

import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from sae_lib.saes.base import SparseCoder, Step, Terms
from sae_lib.training.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from sae_lib.training.distributed.collectives import (
    all_any,
    all_parts,
    all_sum_,
    parts_at_first,
    shared,
    summed,
    talking,
)
from sae_lib.training.distributed.config import DevicesConfig
from sae_lib.training.objectives.base import Batch, Objective, StepInfo

SplitTerms = Callable[[Any, Step, "Split"], Terms]
"""The loss of one step where each process computes a share: coder, step, split."""


class Split:
    """This process's share. Needs an initialised default process group."""

    def __init__(self, devices: DevicesConfig, by_latent: tuple[str, ...]) -> None:
        """``by_latent`` are the coder's parameters that have a row for each latent."""
        self.rank, self.count = dist.get_rank(), dist.get_world_size()
        self.is_of_latents = devices.split == "latents"
        self.by_latent = by_latent

    def share(self, total: int) -> slice:
        """This process's part of ``total`` things, which the count divides."""
        size = total // self.count
        return slice(self.rank * size, (self.rank + 1) * size)

    # --- what a loss is made with ---

    def rows(self, batch: Tensor) -> Tensor:
        """The rows of a batch that this process computes with."""
        return batch if self.is_of_latents else batch[self.share(len(batch))]

    def latents(self, per_latent: Tensor) -> Tensor:
        """The entries of a vector over all latents that belong to this process."""
        return per_latent[self.share(len(per_latent))] if self.is_of_latents else per_latent

    def common(self, parameter: Tensor) -> Tensor:
        """A parameter without rows of latents, for use with latents of this process."""
        return shared(parameter) if self.is_of_latents else parameter

    def over_latents(self, part: Tensor) -> Tensor:
        """Sum over all latents, from the sum over those of this process; with gradients."""
        return summed(part) if self.is_of_latents else part

    def over_rows(self, part: Tensor) -> Tensor:
        """Sum over the batch, from the sum over the rows of this process; with gradients."""
        return part if self.is_of_latents else summed(part)

    def over_all(self, part: Tensor) -> Tensor:
        """Sum over all rows and latents, from those of this process; with gradients."""
        return summed(part)

    def fired(self, mine: Tensor) -> Tensor:
        """Which of all latents fired, from which of this process's did."""
        if self.is_of_latents:
            return torch.cat(all_parts(mine.to(torch.uint8))).bool()
        return all_any(mine)

    # --- what a training is made with ---

    def divide_(self, coder: SparseCoder[Any], device: torch.device) -> None:
        """Keep of a fresh coder what this process trains, on ``device``; let gradients meet."""
        if self.is_of_latents:
            for name in self.by_latent:
                whole = coder.get_parameter(name).detach()
                setattr(coder, name, nn.Parameter(whole[self.share(len(whole))].clone()))
        coder.to(device)
        if not self.is_of_latents:
            for parameter in coder.parameters():
                parameter.register_post_accumulate_grad_hook(_sum_gradient_)

    def total_norm(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Norm of the gradient of the whole SAE, from this process's gradients by name."""
        if not self.is_of_latents:  # they are those of the whole SAE already
            return nn.utils.get_total_norm(list(gradients.values()))
        own = [gradients[name] for name in self.by_latent if name in gradients]
        common = [gradient for name, gradient in gradients.items() if name not in self.by_latent]
        squared = all_sum_(nn.utils.get_total_norm(own).square())
        return (squared + nn.utils.get_total_norm(common).square()).sqrt()

    def write(self, folder: Path, checkpoint: Checkpoint) -> None:
        """Store the whole training; every process calls it at the same step."""
        tensors = {}
        for name, tensor in checkpoint.tensors.items():
            if self._is_divided(name, tensor):
                parts = parts_at_first(tensor)
                if parts is not None:
                    tensors[name] = torch.cat(parts)
            else:
                tensors[name] = tensor
        if self.rank == 0:
            write_checkpoint(folder, Checkpoint(tensors, checkpoint.state))

    def read(self, folder: Path) -> Checkpoint | None:
        """This process's share of what is stored."""
        found = read_checkpoint(folder)
        if found is None:
            return None
        tensors = {
            name: tensor[self.share(len(tensor))].clone()
            if self._is_divided(name, tensor)
            else tensor
            for name, tensor in found.tensors.items()
        }
        return Checkpoint(tensors, found.state)

    def _is_divided(self, name: str, tensor: Tensor) -> bool:
        is_by_latent = name.rsplit(".", 1)[-1] in self.by_latent and tensor.ndim > 0
        return self.is_of_latents and is_by_latent


class SplitObjective(Objective):
    """Another objective's data with a loss of which each process computes its share."""

    def __init__(self, whole: Objective, terms: SplitTerms, split: Split) -> None:
        super().__init__(whole.cfg)
        self.whole, self.split_terms, self.split = whole, terms, split

    def step(self, batch: Batch, info: StepInfo) -> Step:
        return self.whole.step(batch, info)

    def terms(self, coder: SparseCoder[Any], step: Step, batch: Batch, info: StepInfo) -> Terms:
        return self.split_terms(coder, step, self.split)


class CommonClock:
    """The time of the first process, so that all find the same things due at the same step."""

    def __init__(self, timeout: timedelta) -> None:
        # the time is on the CPU, whatever the devices are
        is_gloo = dist.get_backend() == "gloo"
        self.group: Any = None if is_gloo else dist.new_group(backend="gloo", timeout=timeout)

    def __call__(self) -> float:
        now = torch.tensor(time.monotonic(), dtype=torch.float64)
        with talking():
            dist.broadcast(now, src=0, group=self.group)
        return float(now)


def _sum_gradient_(parameter: Tensor) -> None:
    if parameter.grad is not None:
        all_sum_(parameter.grad)
