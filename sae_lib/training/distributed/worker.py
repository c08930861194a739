"""One of the processes that train a job together; `agent` starts them.

Reports of the first one are lines of JSON on standard output.
"""

import json
import os
import sys
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from sae_lib.errors import SaeError
from sae_lib.training.distributed._family import (
    AGENT_ID,
    LOST_RANK,
    SILENT_RANK,
    USERS_ERROR,
    end_with_parent,
)
from sae_lib.training.distributed.collectives import LostRank
from sae_lib.training.distributed.config import DevicesConfig
from sae_lib.training.distributed.job import Job, OnStep
from sae_lib.training.distributed.rules import RULES
from sae_lib.training.distributed.split import CommonClock, Split, SplitObjective
from sae_lib.training.loop import StepReport, fit
from sae_lib.training.trainee import Trainee


def main(folder: Path) -> int:
    """Train the job described in ``folder`` as one of its ranks."""
    job = Job.model_validate_json((folder / "job.json").read_bytes())
    device = start(job)
    trainees = [split_trainee(task.build(), job.devices, device) for task in job.tasks]
    try:
        fit(trainees, job.source.open(device), on_step=reporter(), clock=CommonClock(patience(job)))
    except LostRank as error:
        sys.stderr.write(f"lost another process: {error}\n")
        return SILENT_RANK if error.is_silent else LOST_RANK
    except SaeError as error:
        (folder / f"error-{dist.get_rank()}.txt").write_text(str(error), "utf-8")
        return USERS_ERROR
    dist.destroy_process_group()
    return 0


def start(job: Job) -> torch.device:
    """Join the others; the device of this process."""
    rank = int(os.environ["LOCAL_RANK"])
    fair_share = max(1, torch.get_num_threads() // job.devices.count)
    torch.set_num_threads(job.num_threads or fair_share)
    kind = torch.device(job.device).type
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=patience(job))
    return device


def patience(job: Job) -> timedelta:
    """How long the others are waited for."""
    return timedelta(seconds=job.devices.timeout_seconds)


def split_trainee(trainee: Trainee, devices: DevicesConfig, device: torch.device) -> Trainee:
    """``trainee`` as far as this process trains it, on ``device``."""
    terms, by_latent = RULES[trainee.coder.cfg.kind]
    split = Split(devices, by_latent)
    split.divide_(trainee.coder, device)
    trainee.objective = SplitObjective(trainee.objective, terms, split)
    trainee.ranks = split
    return trainee


def reporter() -> OnStep:
    """Tells whoever started the job how far it is; only the first process does."""
    is_first = dist.get_rank() == 0

    def report(found: StepReport) -> None:
        if is_first:
            sys.stdout.write(json.dumps(found._asdict()) + "\n")
            sys.stdout.flush()

    return report


if __name__ == "__main__":
    end_with_parent(int(os.environ[AGENT_ID]))
    sys.exit(main(Path(sys.argv[1])))
