"""Peak memory of training a wide SAE, beside what must be there.

    python -m benchmarks.memory [--d-sae 131072] [--d-in 512] [--kind topk]

A fresh process trains for a few steps on a small set in memory. Counted is the growth of the
largest resident set from before the SAE is made, once the set and torch are there, beside weights,
gradients, both moments of Adam, and two batches.
"""

import argparse
import resource
import sys
from collections.abc import Sequence

import torch

from benchmarks.contenders import Setting
from benchmarks.contenders.ours import Ours


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Peak memory of a training step.")
    parser.add_argument("--kind", default="topk", choices=["topk", "batch_topk"])
    parser.add_argument("--d-in", type=int, default=512)
    parser.add_argument("--d-sae", type=int, default=131_072)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--batch", type=int, default=2048)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    x = torch.randn(args.batch, args.d_in, generator=torch.Generator().manual_seed(0))
    x /= x.square().sum(1).mean().sqrt()
    before = peak()
    ours = Ours(Setting(args.kind, args.d_in, args.d_sae, args.k, args.batch, 1000, 1e-3, 10))
    for _ in range(args.steps):
        ours.step(x)
    weights = sum(p.numel() * p.element_size() for p in ours.trainee.parameters.values())
    needed = 4 * weights + 2 * x.numel() * x.element_size()
    grown = peak() - before
    sys.stdout.write(
        f"{args.kind}, d_in {args.d_in}, d_sae {args.d_sae}: grew by {grown / 1e6:.0f} MB; "
        f"weights, gradients, moments and two batches {needed / 1e6:.0f} MB: "
        f"{grown / needed:.2f} times\n"
    )


if __name__ == "__main__":
    main()
