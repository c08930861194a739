"""Small batches of sparse mixtures, and trainees for them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from sae_lib.saes import SaeConfig
from sae_lib.saes.topk import TopKConfig
from sae_lib.training import loop
from sae_lib.training.config import TrainConfig, resolve
from sae_lib.training.memory import InMemoryBatches
from sae_lib.training.trainee import Trainee


def mixtures(rows: int, d_in: int = 8, seed: int = 0) -> Tensor:
    """Sums of a few of twelve unit directions; mean square norm near 1."""
    generator = torch.Generator().manual_seed(seed)
    directions = functional.normalize(torch.randn(12, d_in, generator=generator), dim=-1)
    is_on = torch.rand(rows, 12, generator=generator) < 0.17
    x = is_on.float() @ directions + 0.01 * torch.randn(rows, d_in, generator=generator)
    return x / x.square().sum(-1).mean().sqrt()


def trainee(
    name: str = "it",
    cfg: SaeConfig | None = None,
    *,
    steps: int = 20,
    site: str = "first",
    checkpoint: Path | None = None,
    scale: float = 1.0,
    **train: Any,
) -> Trainee:
    """A trainee of ``steps`` steps of 32 tokens; a checkpoint, if any, after every step."""
    cfg = cfg or TopKConfig.example()
    given: dict[str, Any] = {
        "batch_tokens": 32,
        "lr": 1e-2,
        "dead_after_tokens": 96,
        "checkpoint_every_seconds": 0,
        **train,
    }
    how = resolve(TrainConfig(tokens=steps * given["batch_tokens"], **given), cfg)
    return Trainee(name, cfg.build(), site, how, scale=scale, checkpoint=checkpoint)


@pytest.fixture(autouse=True)
def _few_rows_for_first_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop, "INITIAL_ROWS", 512)


@pytest.fixture(name="trainee", scope="session")
def _trainee() -> Callable[..., Trainee]:
    return trainee


@pytest.fixture(name="mixtures", scope="session")
def _mixtures() -> Callable[..., Tensor]:
    return mixtures


@pytest.fixture
def batches() -> InMemoryBatches:
    """500 rows at two sites, 32 in a batch."""
    x = {"first": mixtures(500), "second": mixtures(500, seed=1)}
    return InMemoryBatches(x, batch_tokens=32, seed=3)
