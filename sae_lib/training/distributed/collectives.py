"""What processes that train together say to each other, with gradients.

The two sums are a pair: where a value is used by all and each computes with a share, the value
goes in through `shared` (its gradient is summed) and the result comes out through `summed` (its
gradient is everybody's already).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


class LostRank(Exception):
    """Another process has died, or (``is_silent``) has not answered in time."""

    def __init__(self, said: str) -> None:
        self.is_silent = "timed out" in said.lower()
        super().__init__(said)


@contextmanager
def talking() -> Iterator[None]:
    """What the network reports inside the block becomes a `LostRank`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:  # the backends raise nothing narrower
        raise LostRank(str(error)) from error


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return all_sum_(part.clone(memory_format=torch.contiguous_format))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return gradients[0]


class _Shared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor) -> Tensor:
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        return all_sum_(gradients[0].clone(memory_format=torch.contiguous_format))


def summed(part: Tensor) -> Tensor:
    """Sum of everybody's ``part``; the gradient of ``part`` is that of the sum."""
    return _Summed.apply(part)  # pyright: ignore[reportReturnType]


def shared(value: Tensor) -> Tensor:
    """``value``, which everybody has; its gradient is the sum of everybody's."""
    return _Shared.apply(value)  # pyright: ignore[reportReturnType]


def all_sum_(value: Tensor) -> Tensor:
    """Replace ``value`` by the sum of everybody's; without gradients."""
    with talking():
        dist.all_reduce(value)
    return value


def all_any(flags: Tensor) -> Tensor:
    """Boolean: where anybody's ``flags`` are set."""
    found = flags.to(torch.uint8)
    with talking():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return found.bool()


def all_parts(part: Tensor) -> list[Tensor]:
    """Everybody's ``part``, by rank; all have one shape. Without gradients."""
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())]
    with talking():
        dist.all_gather(parts, part.contiguous())
    return parts


def parts_at_first(part: Tensor) -> list[Tensor] | None:
    """On rank 0 everybody's ``part``, by rank, on the CPU; None elsewhere."""
    part = part.detach().contiguous()
    is_first = dist.get_rank() == 0
    parts = [torch.empty_like(part) for _ in range(dist.get_world_size())] if is_first else None
    with talking():
        dist.gather(part, parts)
    return [one.cpu() for one in parts] if parts is not None else None
