"""Asks for a job on several devices, as any program would; somebody kills it meanwhile."""

import sys
from pathlib import Path

from sae_lib.training.distributed.job import Job
from sae_lib.training.distributed.launch import fit_on_devices

if __name__ == "__main__":
    fit_on_devices(Job.model_validate_json(Path(sys.argv[1]).read_bytes()))
