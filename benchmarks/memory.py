"""Peak memory of training a wide SAE, beside what must be there.

    python -m benchmarks.memory [--d-sae 131072] [--d-in 512] [--kind topk] [--json FILE]

A fresh process trains with `sae_lib.training.fit` for a few steps on a small set in memory.
Counted is the growth of the largest resident set from before the SAE is made, once the set and
torch are there, beside weights, gradients, both moments of Adam, and two batches.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.worker import peak_memory
from sae_lib.saes.base import VARIANTS
from sae_lib.training.config import TrainConfig, resolve
from sae_lib.training.loop import fit
from sae_lib.training.memory import InMemoryBatches
from sae_lib.training.trainee import Trainee


def forget_peak() -> None:
    """Start the largest resident set at the present one, where the kernel can (Linux)."""
    forget = Path("/proc/self/clear_refs")
    if forget.exists():
        forget.write_text("5")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Peak memory of a training step.")
    parser.add_argument("--kind", default="topk", choices=["topk", "batch_topk"])
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=131_072)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    x = torch.randn(2 * args.batch, args.d_in, generator=torch.Generator().manual_seed(0))
    x /= x.square().sum(1).mean().sqrt()
    forget_peak()
    before = peak_memory()
    config = VARIANTS[args.kind].model_validate(
        {"d_in": args.d_in, "d_sae": args.d_sae, "k": args.k}
    )
    train = TrainConfig(tokens=args.steps * args.batch, batch_tokens=args.batch)
    trainee = Trainee("wide", config.build(), "x", resolve(train, config))
    weights = sum(p.numel() * p.element_size() for p in trainee.coder.parameters())
    fit([trainee], InMemoryBatches({"x": x}, args.batch))
    grown = peak_memory() - before
    needed = 4 * weights + x.numel() * x.element_size()  # x is two batches
    sys.stdout.write(
        f"{args.kind}, d_in {args.d_in}, d_sae {args.d_sae}: grew by {grown / 1e6:.0f} MB; "
        f"weights, gradients, moments and two batches {needed / 1e6:.0f} MB: "
        f"{grown / needed:.2f} times; goal 1.30\n"
    )
    if args.json:
        setting = {"kind": args.kind, "d_in": args.d_in, "d_sae": args.d_sae, "batch": args.batch}
        found = {**setting, "grown": grown, "needed": needed, "ratio": grown / needed}
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
