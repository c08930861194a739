"""Training steps of TopK and BatchTopK SAEs, this library beside others, and what they come to.

    python -m benchmarks.training [--d-sae 8192] [--kind topk] [--threads 1] [--rounds 6]
                                  [--fvu-steps 400] [--json FILE]

Contenders live in processes of their own (those of other libraries in the environment that
``make bench-peers`` makes) and take turns: in each round each does a few steps while the others
wait. A step is a whole one: loss, gradients, projection, clipping, Adam, counters of dead latents,
as each library does it; data lie in memory. Reported are medians over all steps, and the ratio to
ours as the median over rounds. CPU seconds count all threads of a process.

With ``--fvu-steps`` each contender then trains alone for so many steps, once for every learning
rate in ``--lrs``, and the share of variance that its best SAE leaves unexplained on held-out rows
is reported: the losses are scaled differently, so one rate for all would be unfair.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch.nn import functional

from benchmarks.contenders import CONTENDERS, Setting
from sae_lib.synthetic.dictionary import DictionaryConfig, sparse_mixtures

ROOT = Path(__file__).parent.parent
PEERS = ROOT / ".venv-peers" / "bin" / "python"
HELD_OUT = 8192


def structured_rows(d_in: int, num: int, batch: int) -> torch.Tensor:
    """Rows of unit mean square norm: 24 of 8 d_in known directions on at a time, and noise."""
    config = DictionaryConfig(d_in=d_in, num_features=8 * d_in, mean_active=24)
    stream = sparse_mixtures(config, batch)
    rows = torch.cat([next(stream).x for _ in range(-(-num // batch))])[:num]
    return rows / rows.square().sum(1).mean().sqrt()


class Worker:
    """A contender's process."""

    def __init__(self, name: str, setting: Setting, data: Path, threads: int) -> None:
        self.name = name
        python = sys.executable if name == "ours" else str(PEERS)
        self.log = tempfile.TemporaryFile(mode="w+")  # noqa: SIM115 - closed in __exit__
        environment = {"OMP_NUM_THREADS": str(threads), "PATH": "/usr/bin:/bin"}
        self.process = subprocess.Popen(
            [python, "-m", "benchmarks.worker", name, json.dumps(setting._asdict()),
             str(data), str(threads)],
            cwd=ROOT, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        self.missing = self._read().get("missing")

    def ask(self, **order: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        self.log.seek(0)
        last = self.log.read().strip().splitlines()[-1:] or ["killed; out of memory?"]
        return {"missing": f"its process ended: {last[0]}"}

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait()
        self.log.close()


def floors(setting: Setting, threads: int, num: int = 5) -> dict[str, float]:
    """CPU seconds of the encoder's product alone, in float32 and bfloat16."""
    torch.set_num_threads(threads)
    x = torch.randn(setting.batch, setting.d_in)
    W, b = torch.randn(setting.d_sae, setting.d_in), torch.zeros(setting.d_sae)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        operands = x.to(dtype), W.to(dtype), b.to(dtype)
        times = []
        for _ in range(num):
            start = time.process_time()
            functional.linear(*operands)
            times.append(time.process_time() - start)
        found[str(dtype).removeprefix("torch.")] = min(times)
    return found


def race(
    names: Sequence[str], setting: Setting, data: Path, threads: int, rounds: int, steps: int
) -> dict[str, dict[str, Any]]:
    """Times of all contenders, in turns; the first round warms up and is not counted."""
    workers: list[Worker] = []
    found: dict[str, dict[str, Any]] = {}
    for name in names:
        worker = Worker(name, setting, data, threads)
        if worker.missing:
            found[name] = {"missing": worker.missing}
            worker.__exit__(None, None, None)
        else:
            workers.append(worker)
            found[name] = {"wall": [], "cpu": []}
    for number in range(rounds + 1):
        for worker in [w for w in workers if not w.missing]:
            took = worker.ask(do="steps", num=steps if number else 1)
            if "missing" in took:
                worker.missing = took["missing"]
                found[worker.name] = took
            elif number:
                for clock in ("wall", "cpu"):
                    found[worker.name][clock].append(took[clock])
    for worker in workers:
        if not worker.missing:
            found[worker.name]["peak"] = worker.ask(do="memory")["peak"]
        worker.__exit__(None, None, None)
    return found


def best_fvu(
    name: str, setting: Setting, data: Path, threads: int, steps: int, rates: Sequence[float]
) -> dict[str, Any]:
    """Unexplained share on held-out rows after ``steps``, at the best of the learning rates."""
    by_rate = {}
    for lr in rates:
        planned = setting._replace(steps=steps, lr=lr, warmup_steps=max(1, steps // 20))
        with Worker(name, planned, data, threads) as worker:
            if not worker.missing:
                worker.ask(do="steps", num=steps)
                by_rate[lr] = worker.ask(do="fvu")["fvu"]
    if not by_rate:
        return {}
    lr = min(by_rate, key=lambda rate: by_rate[rate])
    return {"fvu": by_rate[lr], "lr": lr, "by_rate": by_rate}


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
            if "wall" in found.get("ours", {}):
                ratios = [
                    statistics.median(theirs) / statistics.median(ours)
                    for theirs, ours in zip(times[clock], found["ours"][clock], strict=True)
                ]
                row[f"{clock}_ratio"] = statistics.median(ratios)
        rows.append(row)
    return rows


def show(rows: Sequence[dict[str, Any]], fvus: dict[str, dict[str, Any]]) -> None:
    """The table, with how many times as long as ours a step takes."""
    head = ("contender", "CPU s", "min", "x ours", "wall s", "min", "x ours", "rows/s", "MB", "FVU")
    write("{:<22}{:>8}{:>8}{:>8}{:>8}{:>8}{:>8}{:>9}{:>7}{:>9}".format(*head))
    for row in rows:
        if "missing" in row:
            write(f"{row['name']:<22}  {row['missing']}")
            continue
        fvu = fvus.get(row["name"], {})
        write(
            f"{row['name']:<22}{row['cpu']:>8.3f}{row['cpu_min']:>8.3f}"
            f"{row.get('cpu_ratio', 1):>8.2f}{row['wall']:>8.3f}{row['wall_min']:>8.3f}"
            f"{row.get('wall_ratio', 1):>8.2f}{row['wall_per_s']:>9.0f}{row['peak_mb']:>7.0f}"
            + (f"{fvu['fvu']:>9.4f}  (lr {fvu['lr']:g})" if fvu else "")
        )


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Training steps, beside other libraries.")
    parser.add_argument("--kind", default="topk", choices=["topk", "batch_topk"])
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
    parser.add_argument("--contenders", nargs="+", default=list(CONTENDERS), choices=CONTENDERS)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if not PEERS.exists() and args.contenders != ["ours"]:
        parser.error(f"{PEERS} is missing; run `make bench-peers`, or give --contenders ours")
    everything = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "rows.pt"
        rows = structured_rows(args.d_in, args.rows + HELD_OUT, args.batch)
        torch.save({"train": rows[HELD_OUT:].clone(), "held_out": rows[:HELD_OUT].clone()}, data)
        for d_sae in args.d_sae:
            setting = Setting(
                args.kind, args.d_in, d_sae, args.k, args.batch, 10_000, args.lrs[0], 1000
            )
            fvus = {}
            if args.fvu_steps:
                fvus = {
                    name: best_fvu(name, setting, data, max(args.threads), args.fvu_steps, args.lrs)
                    for name in args.contenders
                }
            for threads in args.threads:
                write(
                    f"\n{args.kind}: d_in {args.d_in}, d_sae {d_sae}, k {args.k}, batch "
                    f"{args.batch}, {threads} thread(s), torch {torch.__version__}"
                )
                floor = floors(setting, threads)
                found = race(args.contenders, setting, data, threads, args.rounds, args.steps)
                table = summary(found, args.batch)
                show(table, fvus)
                write(f"encoder's product alone, CPU s: {floor}")
                everything.append(
                    {"setting": setting._asdict(), "threads": threads, "floors": floor,
                     "contenders": table, "fvu": fvus}
                )  # fmt: skip
    if args.json:
        args.json.write_text(json.dumps(everything, indent=2))


if __name__ == "__main__":
    main()
