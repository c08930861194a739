"""What the processes of a job are told: SAEs to train, and where their activations are."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pydantic import Field
from safetensors.torch import load_file

from sae_lib.activations.batches import StoredBatches
from sae_lib.activations.order import Order
from sae_lib.activations.store import ActivationStore
from sae_lib.config import Config
from sae_lib.errors import BadInput, MissingFile
from sae_lib.saes import VARIANTS
from sae_lib.training.config import ResolvedTrain
from sae_lib.training.distributed.config import DevicesConfig
from sae_lib.training.distributed.rules import check_split
from sae_lib.training.loop import StepReport
from sae_lib.training.memory import InMemoryBatches
from sae_lib.training.objectives import OBJECTIVES
from sae_lib.training.trainee import Trainee

OnStep = Callable[[StepReport], None]


class StoredSource(Config):
    """Batches from a store, in their seeded order."""

    store: Path
    """Folder of the activations."""

    sites: tuple[str, ...]
    """Sites that are read."""

    seed: int
    """Seed of the order."""

    block_tokens: int
    """Rows that are shuffled together."""

    batch_tokens: int
    """Rows in a batch."""

    def open(self, device: str | torch.device) -> StoredBatches:
        """The batches, on ``device``; the same in every process."""
        store = ActivationStore.open(self.store)
        order = Order(
            store.kept_per_context,
            seed=self.seed,
            block_tokens=self.block_tokens,
            batch_tokens=self.batch_tokens,
        )
        return StoredBatches(store, list(self.sites), order, device=device)


class FileSource(Config):
    """Batches from one file of activations, which each process holds in memory."""

    file: Path
    """A safetensors file with a float32 tensor (rows, d_in) for each site."""

    seed: int
    """Seed of the order."""

    batch_tokens: int
    """Rows in a batch."""

    def open(self, device: str | torch.device) -> InMemoryBatches:
        """The batches, on ``device``; the same in every process. Raises `MissingFile`."""
        if not self.file.is_file():
            raise MissingFile("there is no such file of activations.", file=self.file)
        x = {site: rows.to(device) for site, rows in load_file(self.file).items()}
        return InMemoryBatches(x, self.batch_tokens, self.seed)


class Task(Config):
    """An SAE to train: what a `Trainee` is made of, as JSON."""

    name: str
    """Name in reports; unique in the job."""

    sae: dict[str, Any]
    """Config of the coder."""

    site: str
    """Where its activations come from."""

    train: ResolvedTrain
    """How it is trained."""

    objective: dict[str, Any] = Field(default_factory=lambda: {"kind": "plain"})
    """Config of the objective."""

    scale: float = 1.0
    """Factor that brings raw activations to the scale of training."""

    checkpoint: Path
    """Folder of its checkpoint, which is also how the result comes back."""

    about: dict[str, Any] = Field(default_factory=dict)
    """Facts that must agree between a checkpoint and the training that takes it up."""

    def build(self) -> Trainee:
        """The trainee as one process would train it, on the CPU."""
        return Trainee(
            name=self.name,
            coder=VARIANTS[self.sae["kind"]].model_validate(self.sae).build(),
            site=self.site,
            train=self.train,
            objective=OBJECTIVES[self.objective["kind"]].model_validate(self.objective).build(),
            scale=self.scale,
            checkpoint=self.checkpoint,
            about=self.about,
        )


class Job(Config):
    """SAEs that the same devices train, in one pass over the activations."""

    devices: DevicesConfig
    """The devices."""

    device: str = "cpu"
    """Kind of device: ``cpu`` or ``cuda``."""

    num_threads: int | None = Field(default=None, gt=0)
    """Threads of each process; derived: a fair share of those one process would use."""

    source: StoredSource | FileSource
    """The activations."""

    tasks: tuple[Task, ...]
    """The SAEs."""


def check_job(job: Job) -> None:
    """Refuse, by `BadInput`, what cannot be trained so."""
    if sys.platform == "win32":
        raise BadInput("several devices need Linux or macOS.", key="devices")
    for task in job.tasks:
        if task.train.devices != job.devices:
            raise BadInput(
                f"{task.name} is to be trained on other devices than the job has.",
                key="devices",
                value=task.train.devices.model_dump(),
            )
        sae = VARIANTS[task.sae["kind"]].model_validate(task.sae)
        objective = OBJECTIVES[task.objective["kind"]].model_validate(task.objective)
        check_split(task.train, sae, objective)
    kind = torch.device(job.device).type
    if kind not in ("cpu", "cuda"):
        raise BadInput("several devices are cpu or cuda ones.", key="device", value=job.device)
    if kind == "cuda" and torch.cuda.device_count() < job.devices.count:
        raise BadInput(
            f"this machine has {torch.cuda.device_count()} GPUs.",
            key="devices",
            value=job.devices.count,
        )
