"""SAEs trained on a live model that is run ahead of them, beside the same in turn.

    python -m benchmarks.overlap [--tokens 262144] [--rounds 3] [--saes 3] [--threads 2]

Both ways train the same SAEs on activations that are streamed from the bundled model, and must
agree to the bit. Ahead, a second thread harvests the next block while the SAEs train on the
current one; in turn, one thread does everything. The two take turns in one process; wall time and
CPU time, both as ratios of ahead to in turn, say what the overlap saves and what it costs.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from sae_lib.activations.batches import StreamedBatches
from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.order import Order
from sae_lib.activations.tokens import Tokens, TokenSplit, build_tokens
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import LanguageModel, load_model
from sae_lib.saes.topk import TopKConfig
from sae_lib.training import loop
from sae_lib.training.config import TrainConfig, resolve
from sae_lib.training.loop import fit
from sae_lib.training.prefetch import prefetched
from sae_lib.training.trainee import Fitted, Trainee

SITE = "resid_post.3"
BATCH_TOKENS, BLOCK_TOKENS = 2048, 32_768


def train(
    model: LanguageModel, split: TokenSplit, args: argparse.Namespace, *, ahead: bool
) -> tuple[float, float, list[Fitted]]:
    """Seconds on the wall, seconds of CPU, and the SAEs."""
    order = Order(
        split.kept_per_context, seed=0, block_tokens=BLOCK_TOKENS, batch_tokens=BATCH_TOKENS
    )
    batches = StreamedBatches(model, split, [SITE], order, batch_contexts=32)
    trainees = []
    for k in range(16, 16 + args.saes):
        config = TopKConfig(d_in=model.d_model, d_sae=args.d_sae, k=k)
        how = resolve(TrainConfig(tokens=args.tokens, batch_tokens=BATCH_TOKENS), config)
        trainees.append(Trainee(f"k{k}", config.build(), SITE, how))

    def in_turn(source: Any, first: int, last: int, **_: Any) -> Any:
        return prefetched(source, first, last, is_model_in_use=True)

    wall, cpu = time.perf_counter(), time.process_time()
    with mock.patch.object(loop, "prefetched", prefetched if ahead else in_turn):
        fitted = fit(trainees, batches)
    return time.perf_counter() - wall, time.process_time() - cpu, fitted


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Harvesting ahead of training, or in turn.")
    parser.add_argument("--tokens", type=int, default=1 << 18)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--saes", type=int, default=3)
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    walls, cpus = [], []
    with tempfile.TemporaryDirectory() as folder:
        model = load_model(ModelConfig(id="world"))
        corpus = CorpusConfig(id="world", tokens=args.tokens, eval_tokens=128)
        build_tokens(corpus, model.tokenizer, model.info, Path(folder))
        split = Tokens.open(Path(folder)).split("train")
        for number in range(args.rounds + 1):  # the first warms up
            wall, cpu, fitted = train(model, split, args, ahead=True)
            wall_turn, cpu_turn, same = train(model, split, args, ahead=False)
            for one, other in zip(fitted, same, strict=True):
                for key, value in one.coder.state_dict().items():
                    if not torch.equal(value, other.coder.state_dict()[key]):
                        raise RuntimeError(f"{one.name}: {key} depends on the overlap")
            if number:
                walls.append(wall / wall_turn)
                cpus.append(cpu / cpu_turn)
                write(f"  ahead {wall:.1f} s, in turn {wall_turn:.1f} s")
    write(
        f"{args.saes} SAEs of {args.d_sae} latents, {args.tokens} tokens, {args.threads} thread(s):"
        f" ahead takes {statistics.median(walls):.2f} of in turn by wall clock "
        f"({', '.join(f'{ratio:.2f}' for ratio in walls)}), {statistics.median(cpus):.2f} by CPU "
        "time; SAEs equal to the bit"
    )


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
