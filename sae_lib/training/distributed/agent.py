"""Starts the processes of a job as torchrun does, watches them, and says which one failed first.

A process of its own, so that the one that asked for the training keeps its signal handlers and
can show progress meanwhile.
"""

import json
import os
import signal
import sys
import uuid
from pathlib import Path

from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from sae_lib.training.distributed._family import AGENT_ID, end_with_parent

WORKER = "sae_lib.training.distributed.worker"


def main(folder: Path) -> int:
    """Run the job in ``folder``; a failure is described in ``failure.json`` there."""
    job = json.loads((folder / "job.json").read_bytes())
    os.environ[AGENT_ID] = str(os.getpid())
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=job["devices"]["count"],
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "logs"), redirects=Std.ERR),
    )
    try:
        elastic_launch(config, sys.executable)("-m", WORKER, str(folder))
    except ChildFailedError as error:
        failures = [
            {"rank": rank, "status": failure.exitcode}
            for rank, failure in sorted(error.failures.items())
        ]
        (folder / "failures.json").write_text(json.dumps(failures), "utf-8")
        return 1
    except SignalException as error:
        return 128 + int(signal.Signals(error.sigval))
    return 0


if __name__ == "__main__":
    end_with_parent(int(sys.argv[2]))
    sys.exit(main(Path(sys.argv[1])))
