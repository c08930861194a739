"""Kills trainings at random moments and sees whether they end where undisturbed ones do.

    python -m tests.stress.kill_training [--kills 20] [--seed 0] [--steps 400]
                                         [--source stored streamed]

Per source of batches (a store on disk, a live model that is read ahead) three SAEs are trained
together, with a checkpoint after every step: TopK, BatchTopK, and a standard one that is steered
to an L0. One process is left alone. Another is ended at moments drawn from the seed and started
again: by SIGKILL, every second time in the midst of writing a checkpoint, and every fifth time by
Ctrl-C, after which it must end by itself with no thread left. In the end weights, buffers, moments
of Adam, counters and curves of both must agree to the bit. Exit code 1 where they do not.
"""

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import cycle, pairwise
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sae_lib.activations.batches import StoredBatches, StreamedBatches
from sae_lib.activations.harvest import harvest
from sae_lib.activations.order import Order
from sae_lib.activations.store import ActivationStore
from sae_lib.activations.tokens import Tokens
from sae_lib.saes import SaeConfig
from sae_lib.saes.batch_topk import BatchTopKConfig
from sae_lib.saes.standard import StandardConfig
from sae_lib.saes.topk import TopKConfig
from sae_lib.training import loop
from sae_lib.training.checkpoint import CHECKPOINT, read_checkpoint
from sae_lib.training.config import TrainConfig, resolve
from sae_lib.training.loop import StepReport, fit
from sae_lib.training.trainee import Trainee

ROOT = Path(__file__).parents[2]
SOURCES = ("stored", "streamed")
SITE, WIDTH, VOCAB = "resid_post.0", 16, 1 << 14
BATCH_TOKENS, BLOCK_TOKENS, TOKENS = 64, 1024, 4096
SAES: dict[str, SaeConfig] = {
    "topk": TopKConfig(d_in=WIDTH, d_sae=256, k=4),
    "batch": BatchTopKConfig(d_in=WIDTH, d_sae=256, k=4),
    "steered": StandardConfig(d_in=WIDTH, d_sae=256, target_l0=4),
}
INTERRUPTED = 130
"""Exit code after Ctrl-C, where everything was put away."""

PATIENCE = 300.0
"""Seconds without the progress that is waited for."""


class Lookup:
    """A model that looks tokens up and averages over those before: cheap, and exact."""

    device = torch.device("cpu")

    def __init__(self) -> None:
        self.table = torch.randn(VOCAB, WIDTH, generator=torch.Generator().manual_seed(0))

    def width(self, site: str) -> int:
        return WIDTH

    def capture(
        self, tokens: Tensor, sites: Sequence[str], *, mask: Tensor | None = None
    ) -> dict[str, Tensor]:
        x = self.table[tokens % VOCAB]
        means = x.cumsum(1) / torch.arange(1, tokens.shape[1] + 1)[None, :, None]
        return dict.fromkeys(sites, x + means)

    def reserved(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()


# --- the process that is killed ---


def train(data: Path, folder: Path, source: str, steps: int, pause: float) -> None:
    """Train all of `SAES`, from their checkpoints if there are any; ``pause`` seconds a step."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs in the background
    loop.INITIAL_ROWS = 16 * BATCH_TOKENS
    trainees = []
    for name, cfg in SAES.items():
        asked = TrainConfig(
            tokens=steps * BATCH_TOKENS,
            batch_tokens=BATCH_TOKENS,
            lr=1e-2,
            checkpoint_every_seconds=0,
            curve_points=steps,
        )
        how = resolve(asked, cfg)
        trainees.append(Trainee(name, cfg.build(), SITE, how, checkpoint=folder / name))

    def on_step(report: StepReport) -> None:
        if report.name == "topk":
            time.sleep(pause)

    try:
        fit(trainees, batches(data, source), on_step=on_step)
    except KeyboardInterrupt:
        left = [thread.name for thread in threading.enumerate()]
        sys.exit(INTERRUPTED if left == ["MainThread"] else f"threads are left: {left}")


def batches(data: Path, source: str) -> StoredBatches | StreamedBatches:
    split = Tokens.open(data / "tokens").split("train")
    order = Order(
        split.kept_per_context, seed=1, block_tokens=BLOCK_TOKENS, batch_tokens=BATCH_TOKENS
    )
    if source == "stored":
        return StoredBatches(ActivationStore.open(data / "store"), [SITE], order)
    return StreamedBatches(Lookup(), split, [SITE], order, batch_contexts=2)


# --- the one that kills ---


def prepare(data: Path) -> None:
    """Tokens of the world and a store of their activations."""
    from sae_lib.activations.corpus import CorpusConfig
    from sae_lib.activations.tokens import build_tokens
    from sae_lib.models.config import ModelConfig
    from sae_lib.models.language_model import load_model

    model = load_model(ModelConfig(id="world"))
    cfg = CorpusConfig(id="world", tokens=TOKENS, eval_tokens=128, context=64)
    build_tokens(cfg, model.tokenizer, model.info, data / "tokens")
    split = Tokens.open(data / "tokens").split("train")
    harvest(Lookup(), split, [SITE], data / "store", batch_contexts=2)


@contextlib.contextmanager
def training(
    data: Path, folder: Path, source: str, steps: int, pause: float
) -> Iterator[subprocess.Popen[bytes]]:
    """A training in a process of its own, which does not outlive the block."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "tests.stress.kill_training"),
            *("--child", source, str(data), str(folder)),
            *(f"--steps={steps}", f"--pause={pause}"),
        ],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def steps_done(folder: Path) -> int:
    """Steps of the last SAE's checkpoint; whenever one looks, it must be whole."""
    found = read_checkpoint(folder / list(SAES)[-1])
    return 0 if found is None else found.state["step"]


def is_writing(process: subprocess.Popen[bytes], folder: Path) -> bool:
    """Whether ``process`` has a checkpoint half-written just now."""
    return any((folder / name / f".{CHECKPOINT}.{process.pid}").exists() for name in SAES)


class Killed(NamedTuple):
    step: int
    how: str


HOW = ("at any moment", "in a write", "at any moment", "in a write", "by Ctrl-C")
"""Ways to end a training, one after the other."""


def kill_at(
    data: Path, folder: Path, source: str, steps: int, *, step: int, wait: float, how: str
) -> Killed:
    """Start or go on, and end it from ``step`` on, ``wait`` seconds later, in one of `HOW`."""
    with training(data, folder, source, steps, pause=0.01) as process:
        began = time.monotonic()

        def watch() -> None:
            if process.poll() is not None:
                raise RuntimeError(f"it ended by itself with code {process.returncode}")
            if time.monotonic() - began > PATIENCE:
                raise RuntimeError(f"no step {step} within {PATIENCE:.0f} s")

        while steps_done(folder) < step:
            watch()
            time.sleep(0.005)
        time.sleep(wait)
        while how == "in a write" and not is_writing(process, folder):
            watch()
        process.send_signal(signal.SIGINT if how == "by Ctrl-C" else signal.SIGKILL)
        code = process.wait(PATIENCE)
        if how == "by Ctrl-C" and code != INTERRUPTED:
            raise RuntimeError(f"after Ctrl-C it ended with code {code}")
        if how == "at any moment" and is_writing(process, folder):
            how = "in a write"
        if how == "in a write" and not is_writing(process, folder):
            how = "at any moment"  # the write was over before the signal came
        return Killed(steps_done(folder), how)


def differences(folder: Path, other: Path) -> list[str]:
    """Everything in which the last checkpoints below two folders differ, but for the time."""
    found = []
    for name in SAES:
        mine, theirs = read_checkpoint(folder / name), read_checkpoint(other / name)
        if mine is None or theirs is None or mine.tensors.keys() != theirs.tensors.keys():
            found.append(f"{name}: a checkpoint is missing or has other tensors")
            continue
        for key, tensor in mine.tensors.items():
            if not torch.equal(tensor, theirs.tensors[key]):
                found.append(f"{name}: {key}")
        for key in ("identity", "step", "status"):
            if mine.state[key] != theirs.state[key]:
                found.append(f"{name}: {key}")
        if timeless(mine.state["curves"]) != timeless(theirs.state["curves"]):
            found.append(f"{name}: curves")
    return found


def timeless(curves: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [point for point in curves if point["name"] != "tokens_per_second"]


class Outcome(NamedTuple):
    kills: list[Killed]
    differences: list[str]


def ordeal(data: Path, work: Path, source: str, *, kills: int, seed: int, steps: int) -> Outcome:
    """One training left alone, one killed so often; where they differ in the end."""
    quiet, disturbed = work / "quiet", work / "disturbed"
    drawn = random.Random(f"{seed} {source}")
    # one moment in each part of the training, so that every start has something left to do
    edges = [1 + (steps - 10) * i // (kills + 1) for i in range(kills + 1)]
    moments = [drawn.randint(low, high) for low, high in pairwise(edges)]
    found = []
    with training(data, quiet, source, steps, pause=0) as undisturbed:
        for step, how in zip(moments, cycle(HOW), strict=False):
            wait = drawn.random() * 0.03
            found.append(kill_at(data, disturbed, source, steps, step=step, wait=wait, how=how))
            write(f"  {source}: ended at step {found[-1].step}, {found[-1].how}")
        if undisturbed.wait(PATIENCE) != 0:
            raise RuntimeError("the undisturbed training failed")
    with training(data, disturbed, source, steps, pause=0) as process:
        if process.wait(PATIENCE) != 0:
            raise RuntimeError("the disturbed training failed")
    if steps_done(disturbed) != steps:
        raise RuntimeError("the disturbed training did not come to its end")
    return Outcome(found, differences(quiet, disturbed))


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Kill trainings, and see where they end.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--source", nargs="+", choices=SOURCES, default=SOURCES)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--pause", type=float, default=0.0, help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        source, data, folder = args.child
        train(Path(data), Path(folder), source, args.steps, args.pause)
        return 0
    bad = 0
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        prepare(root)
        for source in args.source:
            outcome = ordeal(
                root, root / source, source, kills=args.kills, seed=args.seed, steps=args.steps
            )
            ways = Counter(killed.how for killed in outcome.kills)
            ended = ", ".join(f"{ways[how]} {how}" for how in sorted(ways))
            verdict = "; ".join(outcome.differences) or "equal to the bit"
            write(
                f"{source}: {len(SAES)} SAEs, {args.steps} steps, ended {len(outcome.kills)} times "
                f"({ended}): {verdict}"
            )
            bad += bool(outcome.differences)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
