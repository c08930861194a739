"""What `sae run` takes beyond the work itself: the orchestrator's share of a run.

    python -m benchmarks.overhead [--experiment world-demo] [--rounds 3] [--workers 1]

The wall time of the command, from its start to its exit, beside the seconds of its stages (as the
command reports them) and beside those of the bodies of the assets (from the start of a step to
its end, in the orchestrator's own log). Then the same command once more, when everything exists:
what it takes is what every run pays, and its CPU time depends little on what else the machine does.
Without ``--experiment`` it is a tiny one, of which the overhead is nearly everything; with
``world-demo`` it is what a small study sees. Settings such as ``SAE_EXECUTOR`` hold here as well.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import dagster as dg

from sae_workflows.home import dagster_home

TINY = """\
name: overhead-tiny
model: {id: world}
corpus: {id: world, tokens: 20_000, context: 64, eval_tokens: 2_000}
sites: [resid_post.1, resid_post.2]
saes: [{kind: topk, d_sae: 64, k: [2, 4]}]
train: {batch_tokens: 512, tokens: 16_384}
explain: [max_act]
evaluate: [reconstruction, model_loss, sparsity, frontier]
"""


class Round(NamedTuple):
    """Seconds of one run of the command."""

    wall: float
    """From start to exit, imports included."""

    stages: float
    """What the stages say they took, the orchestrator's work on them included."""

    steps: float
    """Inside the steps: loading, computing and writing, and nothing of the orchestrator."""

    num_steps: int

    cpu: float
    """CPU seconds of the run and its children."""

    cpu_again: float
    """The same of a run that finds everything."""


def one_round(experiment: str, home: Path, workers: int) -> Round:
    """Run the experiment into an empty home."""
    command = [sys.executable, "-m", "sae_workflows.cli", "run", experiment, "--home", str(home)]
    command += ["--workers", str(workers), "--json"]
    wall, cpu, output = timed(command)
    _, cpu_again, _ = timed(command)
    stages = sum(stage["seconds"] for stage in json.loads(output)["stages"])
    with dg.DagsterInstance.from_config(str(dagster_home(home))) as instance:
        found = [
            step
            for record in instance.get_run_records()
            for step in instance.get_run_step_stats(record.dagster_run.run_id)
        ]
    steps = sum(
        step.end_time - step.start_time for step in found if step.start_time and step.end_time
    )
    return Round(wall, stages, steps, len(found), cpu, cpu_again)


def timed(command: Sequence[str]) -> tuple[float, float, bytes]:
    """Run ``command``: seconds on the wall, CPU seconds with its children, and its output."""
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(command, capture_output=True)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise RuntimeError(done.stderr.decode()[-3000:])
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return wall, cpu, done.stdout


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="The orchestrator's share of a run.")
    parser.add_argument("--experiment", help="file or name; a tiny one unless given")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--workers", type=int, default=1)
    args = parser.parse_args(argv)
    os.environ["DAGSTER_DISABLE_TELEMETRY"] = "1"
    rounds = []
    for number in range(args.rounds):
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "overhead-tiny.yaml"
            file.write_text(TINY)
            found = one_round(args.experiment or str(file), Path(folder) / "home", args.workers)
        rounds.append(found)
        write(
            f"  round {number + 1}: wall {found.wall:.1f} s, stages {found.stages:.1f} s, inside "
            f"{found.num_steps} steps {found.steps:.1f} s; CPU {found.cpu:.1f} s, and "
            f"{found.cpu_again:.1f} s when all is there"
        )
    beyond_stages = [(one.wall - one.stages) / one.stages for one in rounds]
    write(
        f"{args.experiment or 'tiny'}, {args.workers} worker(s), median of {len(rounds)}: wall is "
        f"{statistics.median(beyond_stages):.1%} above the stages "
        f"({', '.join(f'{share:.1%}' for share in beyond_stages)})"
    )
    again = [one.cpu_again / one.cpu for one in rounds]
    write(
        f"a run that finds everything takes {statistics.median(again):.1%} of the CPU time "
        f"({', '.join(f'{share:.1%}' for share in again)})"
    )
    if args.workers == 1:  # with more, steps overlap and their sum says nothing
        beyond = [(one.wall - one.steps) / one.steps for one in rounds]
        each = statistics.median((one.stages - one.steps) / one.num_steps for one in rounds)
        start = statistics.median(one.wall - one.stages for one in rounds)
        write(
            f"wall is {statistics.median(beyond):.1%} above the steps "
            f"({', '.join(f'{share:.1%}' for share in beyond)}): {start:.1f} s to start and end, "
            f"{each:.2f} s per step"
        )


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
