"""Training steps of TopK and BatchTopK SAEs, this library beside others, and what they come to.

    python -m benchmarks.training [--d-sae 8192] [--kind topk] [--threads 1] [--rounds 6]
                                  [--fvu-steps 400] [--pairs] [--json FILE]

Contenders live in processes of their own (those of other libraries in the environment that
``make bench-peers`` makes) and take turns: in each round each does a few steps while the others
wait. A step is a whole one: loss, gradients, projection, clipping, Adam, counters of dead latents,
as each library does it; data lie in memory, and no latent is dead yet. Reported are medians over
all steps, and the ratio to ours as the median over rounds; the encoder's product alone takes part
as the floor. CPU seconds count all threads of a process; at one thread they hardly depend on what
else the machine does.

With ``--fvu-steps`` each contender then trains alone for so many steps, once for every learning
rate in ``--lrs``, and the share of variance that its best SAE leaves unexplained on held-out rows
is reported: the losses are scaled differently, so one rate for all would be unfair. Beside it are
the latents on per row, without which two such shares cannot be compared.

``--pairs`` races every contender against ours alone: wide SAEs of all would not fit in memory.
"""

import argparse
import json
import math
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from benchmarks.contenders import CONTENDERS, FLOORS, OURS, Setting
from sae_lib.synthetic.dictionary import DictionaryConfig, sparse_mixtures

ROOT = Path(__file__).parent.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"
LOCAL = {name for name, module in CONTENDERS.items() if module == OURS} | {*FLOORS}
"""Contenders that need no environment of their own."""

HELD_OUT = 8192
WARM_UP_STEPS = 2
START_SECONDS = 600
"""Time for a process to start, and for a contender that compiles to do so."""


class Limits(NamedTuple):
    """What a contender may use before it is given up."""

    threads: int = 1

    step_seconds: float = 60.0
    """Wall time of a step."""

    memory: int = 0
    """Bytes; 0 is without bound."""


def structured_rows(d_in: int, num: int, batch: int) -> torch.Tensor:
    """Rows of unit mean square norm: 24 of 8 d_in known directions on at a time, and noise."""
    config = DictionaryConfig(d_in=d_in, num_features=8 * d_in, mean_active=24)
    stream = sparse_mixtures(config, batch)
    rows = torch.cat([next(stream).x for _ in range(-(-num // batch))])[:num]
    return rows / rows.square().sum(1).mean().sqrt()


class Worker:
    """A contender's process. What it lacks, or died of, is in ``missing``."""

    def __init__(self, name: str, setting: Setting, data: Path, limits: Limits) -> None:
        self.name, self.limits = name, limits
        python = sys.executable if name in LOCAL else str(PEERS)
        self.log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed in __exit__
        environment = {"OMP_NUM_THREADS": str(limits.threads), "PATH": os.environ["PATH"]}
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", name, json.dumps(setting._asdict()),
             str(data), str(limits.threads), str(limits.memory)],
            cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        self.missing: str | None = None
        self._read(START_SECONDS)

    def steps(self, num: int) -> dict[str, Any]:
        """Wall and CPU seconds of so many steps; nothing from a contender that is missing."""
        took = self.ask(num * self.limits.step_seconds, do="steps", num=num)
        if took and statistics.median(took["wall"]) > self.limits.step_seconds:
            self._give_up()
        return {} if self.missing else took

    def warm_up(self) -> None:
        took = self.ask(
            START_SECONDS + WARM_UP_STEPS * self.limits.step_seconds, do="steps", num=WARM_UP_STEPS
        )
        if took and min(took["wall"]) > self.limits.step_seconds:
            self._give_up()

    def ask(self, within: float, **order: Any) -> dict[str, Any]:
        """The answer, or nothing where there is none within so many seconds."""
        if self.missing:
            return {}
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(json.dumps(order) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            self.missing = self._last_words()
            return {}
        return self._read(within)

    def _read(self, within: float) -> dict[str, Any]:
        assert self.process.stdout is not None
        # one answer to one order, so that nothing is left in the reader's buffer to be waited for
        if not select.select([self.process.stdout], [], [], within)[0]:
            self._give_up()
            return {}
        line = self.process.stdout.readline()
        if not line:
            self.missing = self._last_words()
            return {}
        answer = json.loads(line)
        self.missing = answer.get("missing")
        return {} if self.missing else answer

    def _give_up(self) -> None:
        self.process.kill()
        self.missing = f"more than {self.limits.step_seconds:g} s a step"

    def _last_words(self) -> str:
        code = self.process.wait()
        self.log.seek(0)
        lines = [line for line in self.log.read().splitlines() if line.strip()]
        last = lines[-1].strip() if lines else ""
        if code == -signal.SIGKILL:
            return "killed by the system, which had no memory left"
        if "MemoryError" in last or "can't allocate memory" in last:
            return f"out of memory at {self.limits.memory / 1e9:.1f} GB"
        return f"ended with code {code}: {last}"

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.process.kill()
        self.process.communicate()
        self.log.close()


def race(
    names: Sequence[str], setting: Setting, data: Path, limits: Limits, rounds: int, steps: int
) -> dict[str, dict[str, Any]]:
    """Times of all contenders, in turns, round by round; what happened to those without any."""
    found: dict[str, dict[str, Any]] = {name: {"wall": [], "cpu": []} for name in names}
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(name, setting, data, limits)) for name in names]
        for worker in workers:
            worker.warm_up()
        for _ in range(rounds):
            for worker in workers:
                took = worker.steps(steps)
                for clock, seconds in took.items():
                    found[worker.name][clock].append(seconds)
        for worker in workers:
            found[worker.name] |= worker.ask(START_SECONDS, do="memory")
            if worker.missing:
                found[worker.name] = {"missing": worker.missing}
    return found


def best_fvu(
    name: str, setting: Setting, data: Path, limits: Limits, steps: int, rates: Sequence[float]
) -> dict[str, Any]:
    """Score on held-out rows after ``steps``, at the best of the learning rates."""
    scores: dict[float, dict[str, float]] = {}
    failed: dict[float, str] = {}
    for lr in rates:
        planned = setting._replace(steps=steps, lr=lr, warmup_steps=max(1, steps // 20))
        with Worker(name, planned, data, limits) as worker:
            worker.warm_up()
            worker.steps(max(1, steps - WARM_UP_STEPS))
            score = worker.ask(START_SECONDS, do="fvu")
            if worker.missing:
                failed[lr] = worker.missing
            elif not math.isfinite(score["fvu"]):
                failed[lr] = "diverged"
            else:
                scores[lr] = score
    tried = {
        "by_rate": {lr: score["fvu"] for lr, score in scores.items()},
        "failed": failed,
        "steps": max(steps, WARM_UP_STEPS + 1),
    }
    if not scores:
        return tried
    lr = min(scores, key=lambda rate: scores[rate]["fvu"])
    return {**scores[lr], "lr": lr, **tried}


def summary(found: dict[str, dict[str, Any]], batch: int) -> list[dict[str, Any]]:
    """One row per contender: medians, and ratios to ours by round."""
    rows = []
    for name, times in found.items():
        if "missing" in times:
            rows.append({"name": name, "missing": times["missing"]})
            continue
        row: dict[str, Any] = {"name": name, "peak_mb": times["peak"] / 1e6}
        for clock in ("wall", "cpu"):
            steps = [value for round_ in times[clock] for value in round_]
            row[clock] = statistics.median(steps)
            row[f"{clock}_min"] = min(steps)
            row[f"{clock}_per_s"] = batch / row[clock]
            if "wall" in found.get(OURS, {}):
                ratios = [
                    statistics.median(theirs) / statistics.median(ours)
                    for theirs, ours in zip(times[clock], found[OURS][clock], strict=True)
                ]
                row[f"{clock}_ratio"] = statistics.median(ratios)
                row[f"{clock}_ratios"] = ratios
        rows.append(row)
    return rows


def show(rows: Sequence[dict[str, Any]]) -> None:
    """The table, with how many times as long as ours a step takes."""
    head = ("", "CPU s", "min", "x ours", "rows/CPU s", "wall s", "min", "x ours", "rows/s", "MB")
    write("{:<25}{:>8}{:>8}{:>8}{:>11}{:>9}{:>8}{:>8}{:>9}{:>7}".format(*head))
    for row in rows:
        if "missing" in row:
            write(f"{row['name']:<25}  {row['missing']}")
            continue
        ratios = [f"{row[key]:.2f}" if key in row else "-" for key in ("cpu_ratio", "wall_ratio")]
        write(
            f"{row['name']:<25}{row['cpu']:>8.3f}{row['cpu_min']:>8.3f}{ratios[0]:>8}"
            f"{row['cpu_per_s']:>11.0f}{row['wall']:>9.3f}{row['wall_min']:>8.3f}{ratios[1]:>8}"
            f"{row['wall_per_s']:>9.0f}{row['peak_mb']:>7.0f}"
        )


def show_fvus(fvus: dict[str, dict[str, Any]], batch: int) -> None:
    """What equal tokens came to, at the best learning rate and at the others."""
    if not fvus:
        return
    tokens = next(iter(fvus.values()))["steps"] * batch
    write(f"after {tokens} tokens, {HELD_OUT} rows held out:")
    write("{:<25}{:>8}{:>8}{:>9}   {}".format("", "FVU", "L0", "at lr", "at the other rates"))
    for name, found in fvus.items():
        rest = {lr: f"{fvu:.4f}" for lr, fvu in found["by_rate"].items() if lr != found.get("lr")}
        others = ", ".join(f"{lr:g}: {what}" for lr, what in (rest | found["failed"]).items())
        best = (
            f"{found['fvu']:>8.4f}{found['l0']:>8.2f}{found['lr']:>9g}"
            if "fvu" in found
            else f"{'-':>8}{'-':>8}{'-':>9}"
        )
        write(f"{name:<25}{best}   {others}")


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def measure(
    args: argparse.Namespace, setting: Setting, data: Path, fvus: dict[str, Any], threads: int
) -> dict[str, Any]:
    """One table, printed and returned."""
    limits = Limits(threads, args.max_step_seconds, int(args.max_gb * 1e9))
    names = list(dict.fromkeys(args.contenders))
    others = [name for name in names if name != OURS]
    groups = (
        [[OURS, name] for name in others] if args.pairs and OURS in names and others else [names]
    )
    table: list[dict[str, Any]] = []
    for group in groups:
        found = race(group, setting, data, limits, args.rounds, args.steps)
        known = {row["name"] for row in table}
        table += [row for row in summary(found, args.batch) if row["name"] not in known]
    write(
        f"\n{setting.kind}: d_in {setting.d_in}, d_sae {setting.d_sae}, k {setting.k}, batch "
        f"{setting.batch}, {threads} thread(s), torch {torch.__version__}"
    )
    show(table)
    show_fvus(fvus, setting.batch)
    return {"setting": setting._asdict(), "threads": threads, "contenders": table, "fvu": fvus}


def main(argv: Sequence[str] | None = None) -> None:
    everyone = [*CONTENDERS, *FLOORS]
    parser = argparse.ArgumentParser(description="Training steps, beside other libraries.")
    parser.add_argument("--kind", nargs="+", default=["topk"], choices=["topk", "batch_topk"])
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, nargs="+", default=[8192])
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=4, help="steps in a round")
    parser.add_argument("--rows", type=int, default=1 << 17, help="rows to train on")
    parser.add_argument("--fvu-steps", type=int, default=0)
    parser.add_argument("--lrs", type=float, nargs="+", default=[3e-4, 1e-3, 3e-3])
    parser.add_argument("--contenders", nargs="+", default=everyone, choices=everyone)
    parser.add_argument("--pairs", action="store_true", help="one contender at a time beside ours")
    parser.add_argument("--max-step-seconds", type=float, default=60.0)
    parser.add_argument(
        "--max-gb", type=float, default=0.0, help="memory of a process; 0: no bound"
    )
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if not PEERS.exists() and not set(args.contenders) <= LOCAL:
        parser.error(f"{PEERS} is missing; run `make bench-peers`, or give --contenders {OURS}")
    everything = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.safetensors"
        rows = structured_rows(args.d_in, args.rows + HELD_OUT, args.batch)
        save_file({"train": rows[HELD_OUT:].clone(), "held_out": rows[:HELD_OUT].clone()}, data)
        del rows
        limits = Limits(max(args.threads), args.max_step_seconds, int(args.max_gb * 1e9))
        for kind in args.kind:
            for d_sae in args.d_sae:
                setting = Setting(
                    kind, args.d_in, d_sae, args.k, args.batch, 10_000, args.lrs[0], 1000
                )
                fvus = {
                    name: best_fvu(name, setting, data, limits, args.fvu_steps, args.lrs)
                    for name in args.contenders
                    if name in CONTENDERS and args.fvu_steps
                }
                for threads in args.threads:
                    everything.append(measure(args, setting, data, fvus, threads))
                    if args.json:  # after every table: an interrupted run keeps what it has
                        args.json.write_text(json.dumps(everything, indent=2))


if __name__ == "__main__":
    main()
