"""Sparse mixtures of known directions, and coders that have seen some of them."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sae_lib.saes import SaeConfig, SparseCoder, Step
from sae_lib.training.config import TrainConfig, resolve
from sae_lib.training.loop import fit
from sae_lib.training.memory import InMemoryBatches
from sae_lib.training.trainee import Fitted, Trainee


def mixtures(
    rows: int, d_in: int = 8, num_true: int = 12, on: float = 2.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Rows that are sums of a few of ``num_true`` unit directions, and the directions.

    Mean square norm is near 1. Which directions are common differs a lot, as in real activations.
    """
    generator = torch.Generator().manual_seed(seed)
    directions = functional.normalize(torch.randn(num_true, d_in, generator=generator), dim=-1)
    share = 1 / (torch.arange(num_true) + 2.0)
    is_on = torch.rand(rows, num_true, generator=generator) < share / share.sum() * on
    strength = 0.5 + 0.5 * torch.rand(rows, num_true, generator=generator)
    x = (is_on * strength) @ directions + 0.01 * torch.randn(rows, d_in, generator=generator)
    return x / x.square().sum(-1).mean().sqrt(), directions


def step_of(x: Tensor, d_sae: int, dead: Tensor | None = None, **changes: Any) -> Step:
    """A step in which ``x`` reconstructs itself."""
    none = torch.zeros(d_sae, dtype=torch.bool)
    return Step(x=x, target=x, dead=none if dead is None else dead, progress=0.5, **changes)


def fitted(
    cfg: SaeConfig, x: Tensor, *, steps: int = 60, scale: float = 1.0, **train: Any
) -> Fitted:
    """``cfg``, trained on ``x`` for some steps."""
    given: dict[str, Any] = {"batch_tokens": 128, "lr": 3e-3, **train}
    how = resolve(TrainConfig(tokens=steps * given["batch_tokens"], **given), cfg)
    batches = InMemoryBatches({"site": x}, given["batch_tokens"])
    return fit([Trainee("it", cfg.build(), "site", how, scale=scale)], batches)[0]


@pytest.fixture(name="mixtures", scope="session")
def _mixtures() -> Callable[..., tuple[Tensor, Tensor]]:
    return mixtures


@pytest.fixture(name="step_of", scope="session")
def _step_of() -> Callable[..., Step]:
    return step_of


@pytest.fixture(name="fitted", scope="session")
def _fitted() -> Callable[..., Fitted]:
    return fitted


@pytest.fixture(scope="session")
def seasoned() -> Callable[[SaeConfig], SparseCoder[Any]]:
    """A coder that was trained a little, so that nothing about it is special any more.

    It is made anew at each call, in training form: no scale and no norms are folded.
    """

    def make(cfg: SaeConfig, dtype: torch.dtype = torch.float32) -> SparseCoder[Any]:
        x, _ = mixtures(512, cfg.d_in)
        coder = cfg.build()
        coder.initialise_(x)
        coder.initialise_target_(x)
        optimizer = torch.optim.Adam(coder.parameters(), lr=3e-3)
        for number in range(8):
            optimizer.zero_grad()
            coder.terms(step_of(x[number * 64 :][:64], cfg.d_sae, number=number)).loss.backward()
            coder.before_update()
            optimizer.step()
            coder.after_update()
        coder.zero_grad()
        return coder.to(dtype)

    return make
