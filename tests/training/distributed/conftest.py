"""A file of activations, and jobs whose tasks reach every rule."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from safetensors.torch import save_file

from sae_lib.saes import SaeConfig
from sae_lib.saes.batch_topk import BatchTopKConfig
from sae_lib.saes.standard import StandardConfig
from sae_lib.saes.topk import TopKConfig
from sae_lib.training.config import TrainConfig, resolve
from sae_lib.training.distributed.config import DevicesConfig
from sae_lib.training.distributed.job import FileSource, Job, Task
from sae_lib.training.distributed.launch import fit_on_devices
from sae_lib.training.loop import StepReport, fit
from sae_lib.training.trainee import Fitted

STEPS, BATCH_TOKENS = 40, 64

SAES: dict[str, SaeConfig] = {
    # wide and sparse: the products are sparse ones, and many latents die
    "topk": TopKConfig(d_in=8, d_sae=256, k=2, aux_k=4),
    "multi": TopKConfig(d_in=8, d_sae=32, k=4, aux_k=4, multi_weight=1 / 8),
    "batch_topk": BatchTopKConfig(d_in=8, d_sae=64, k=3, aux_k=4, threshold_start_steps=10),
    "steered": StandardConfig(d_in=8, d_sae=32, target_l0=3),
    "weighted": StandardConfig(d_in=8, d_sae=32, l1=0.05, form="norm_weighted"),
}


@pytest.fixture(autouse=True)
def _few_rows_for_first_values() -> None:
    """Processes of a job draw the usual number, so the one they are compared with does."""


@pytest.fixture(scope="session")
def activations(mixtures: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("activations") / "x.safetensors"
    save_file({"site": mixtures(700)}, file)
    return file


def make_job(
    activations: Path,
    folder: Path,
    names: tuple[str, ...] = tuple(SAES),
    *,
    steps: int = STEPS,
    checkpoint_every_seconds: float = 30,
    **devices: Any,
) -> Job:
    """SAEs of `SAES` on these devices."""
    how = DevicesConfig(**devices)
    train = TrainConfig(
        tokens=steps * BATCH_TOKENS,
        batch_tokens=BATCH_TOKENS,
        lr=1e-2,
        clip_norm=0.2,
        dead_after_tokens=256,
        checkpoint_every_seconds=checkpoint_every_seconds,
        devices=how,
    )
    tasks = [
        Task(
            name=name,
            sae=SAES[name].model_dump(mode="json"),
            site="site",
            train=resolve(train, SAES[name]),
            scale=0.7,
            checkpoint=folder / name,
        )
        for name in names
    ]
    source = FileSource(file=activations, seed=3, batch_tokens=BATCH_TOKENS)
    return Job(devices=how, source=source, tasks=tuple(tasks))


@pytest.fixture(name="make_job", scope="session")
def _make_job(activations: Path) -> Callable[..., Job]:
    return lambda folder, *names, **how: make_job(activations, folder, *names, **how)


@pytest.fixture(scope="session")
def alone(
    make_job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Fitted]:
    """What one process comes to, by SAE."""
    job = make_job(tmp_path_factory.mktemp("alone"))
    found = fit([task.build() for task in job.tasks], job.source.open("cpu"))
    return {one.name: one for one in found}


class Together(NamedTuple):
    """An undisturbed job of two processes."""

    results: dict[str, Fitted]
    reports: list[StepReport]


@pytest.fixture(scope="session")
def together(
    make_job: Callable[..., Job], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Together]:
    """What two processes come to, by what is split."""
    found = {}
    for split in ("batch", "latents"):
        reports: list[StepReport] = []
        job = make_job(tmp_path_factory.mktemp(split), count=2, split=split)
        results = fit_on_devices(job, on_step=reports.append)
        found[split] = Together({one.name: one for one in results}, reports)
    return found
