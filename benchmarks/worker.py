"""One contender in a process of its own: does what it is told, line by line, and reports times.

    python -m benchmarks.worker NAME '{"kind": ..., "d_in": ...}' ROWS.safetensors THREADS BYTES

Reads JSON lines {"do": "steps", "num": 5}, {"do": "fvu"}, {"do": "memory"}; answers each with one.
It ends when the process that started it does. BYTES bounds its memory, so that a contender that
needs more fails by itself instead of taking the machine along; 0 leaves it unbounded.
"""

import contextlib
import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.contenders import Contender, Setting, build


def peak_memory() -> int:
    """Largest resident set of this process in bytes.

    Not ``ru_maxrss`` where the kernel knows better: that starts at the size of the process which
    started this one.
    """
    status = Path("/proc/self/status")
    if status.exists():
        (line,) = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def take_steps(contender: Contender, train: Tensor, batch: int, first: int, num: int) -> Any:
    """Wall and CPU seconds of ``num`` steps, from step ``first``; batches are made in between."""
    wall, cpu, parent = [], [], os.getppid()
    for number in range(first, first + num):
        if os.getppid() != parent:
            sys.exit("whoever asked is gone")
        start = number * batch % (len(train) - batch + 1)
        x = train[start : start + batch].clone()
        at = time.perf_counter(), time.process_time()
        contender.step(x)
        wall.append(time.perf_counter() - at[0])
        cpu.append(time.process_time() - at[1])
    return {"wall": wall, "cpu": cpu}


@torch.no_grad()
def score(contender: Contender, held_out: Tensor, batch: int) -> dict[str, float]:
    """Share of variance left unexplained, and latents on per row."""
    error = num_on = 0.0
    for x in held_out.split(batch):
        found = contender.reconstruct(x)
        error += float((x - found.x_hat).square().sum())
        num_on += float(found.num_on)
    spread = float((held_out - held_out.mean(0)).square().sum())
    return {"fvu": error / spread, "l0": num_on / len(held_out)}


def main() -> None:
    name, setting_json, data, threads, limit = sys.argv[1:]
    if int(limit):
        resource.setrlimit(resource.RLIMIT_DATA, (int(limit), int(limit)))
    torch.set_num_threads(int(threads))
    setting = Setting(**json.loads(setting_json))
    answers = sys.stdout

    def answer(**what: Any) -> None:
        print(json.dumps(what), file=answers, flush=True)

    with contextlib.redirect_stdout(sys.stderr):  # libraries like to print
        rows = load_file(data)
        try:
            contender = build(name, setting)
        except (ImportError, NotImplementedError) as error:
            answer(missing=str(error))
            return
        # what may look at the beginning of its own training data before it starts does so
        if hasattr(contender, "begin"):
            contender.begin(rows["train"][: setting.steps * setting.batch])
        answer(ready=name)
        number = 0
        for line in sys.stdin:
            order = json.loads(line)
            if order["do"] == "steps":
                took = take_steps(contender, rows["train"], setting.batch, number, order["num"])
                number += order["num"]
                answer(**took)
            elif order["do"] == "fvu":
                answer(**score(contender, rows["held_out"], setting.batch))
            elif order["do"] == "memory":
                answer(peak=peak_memory())


if __name__ == "__main__":
    main()
