"""One contender in a process of its own: does what it is told, line by line, and reports times.

    python -m benchmarks.worker NAME '{"kind": ..., "d_in": ...}' ROWS.pt THREADS

Reads JSON lines {"do": "steps", "num": 5}, {"do": "fvu"}, {"do": "memory"}; answers each with one.
"""

import contextlib
import json
import resource
import sys
import time
from typing import Any

import torch

from benchmarks.contenders import Setting, build


def main() -> None:
    name, setting_json, data, threads = sys.argv[1:]
    answers = sys.stdout
    torch.set_num_threads(int(threads))
    setting = Setting(**json.loads(setting_json))
    with contextlib.redirect_stdout(sys.stderr):  # libraries like to print
        try:
            rows = torch.load(data, weights_only=True)
            contender = build(name, setting)
        except (ImportError, NotImplementedError) as error:
            print(json.dumps({"missing": str(error)}), file=answers, flush=True)
            return
        print(json.dumps({"ready": name}), file=answers, flush=True)
        train, held_out = rows["train"], rows["held_out"]
        number = 0
        for line in sys.stdin:
            order = json.loads(line)
            answer: dict[str, Any] = {}
            if order["do"] == "steps":
                wall, cpu = [], []
                for _ in range(order["num"]):
                    first = number * setting.batch % (len(train) - setting.batch + 1)
                    x = train[first : first + setting.batch].clone()
                    at = time.perf_counter(), time.process_time()
                    contender.step(x)
                    wall.append(time.perf_counter() - at[0])
                    cpu.append(time.process_time() - at[1])
                    number += 1
                answer = {"wall": wall, "cpu": cpu}
            elif order["do"] == "fvu":
                with torch.no_grad():
                    error = sum(
                        float((x - contender.reconstruct(x)).square().sum())
                        for x in held_out.split(setting.batch)
                    )
                spread = float((held_out - held_out.mean(0)).square().sum())
                answer = {"fvu": error / spread, "steps": number}
            elif order["do"] == "memory":
                answer = {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
