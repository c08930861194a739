"""Six SAEs in one pass over the activations, beside six passes of one SAE each.

    python -m benchmarks.many_saes [--tokens 131072] [--rounds 3] [--d-sae 2048] [--threads 2]
                                   [--json FILE]

Three sparsities of TopK and of BatchTopK read one site of the bundled model: from a store on disk,
and streamed from the live model. Every pass goes through `sae_lib.training.fit`; the two ways take
turns, and take turns in going first. Loading the model, tokenising and the harvest into the store
are outside of the clock. The SAEs of both ways are compared: they must be equal to the bit.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from sae_lib.activations.batches import StoredBatches, StreamedBatches
from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.harvest import harvest
from sae_lib.activations.order import Order
from sae_lib.activations.store import ActivationStore
from sae_lib.activations.tokens import Tokens, build_tokens
from sae_lib.models.config import ModelConfig
from sae_lib.models.language_model import load_model
from sae_lib.saes.base import VARIANTS
from sae_lib.training.config import TrainConfig, normalisation_scale, resolve
from sae_lib.training.loop import fit
from sae_lib.training.trainee import Trainee

BLOCK_TOKENS = 65_536
BATCH_TOKENS = 2048
SPARSITIES = (8, 16, 32)


def trainees(args: argparse.Namespace, width: int, scale: float) -> list[Trainee]:
    found = []
    for kind in ("topk", "batch_topk"):
        for k in SPARSITIES:
            config = VARIANTS[kind].model_validate({"d_in": width, "d_sae": args.d_sae, "k": k})
            train = resolve(TrainConfig(tokens=args.tokens, batch_tokens=BATCH_TOKENS), config)
            found.append(
                Trainee(f"{kind}-{k}", config.build(), args.site, train=train, scale=scale)
            )
    return found


def clock(work: Callable[[], Any]) -> tuple[float, float, Any]:
    wall, cpu = time.perf_counter(), time.process_time()
    result = work()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def compare(
    name: str, goal: float, batches: Callable[[], Any], args: argparse.Namespace
) -> dict[str, Any]:
    """Prints, and returns, the ratio of one pass to six."""
    source = batches()
    scale = normalisation_scale("unit_mean_square", source.stats(args.site).mean_square_norm)
    width = source.width(args.site)

    def together() -> list[Any]:
        return fit(trainees(args, width, scale), batches())

    def apart() -> list[Any]:
        return [fit([one], batches())[0] for one in trainees(args, width, scale)]

    walls, cpus = [], []
    for number in range(args.rounds + 1):  # the first warms up
        ways = (together, apart) if number % 2 else (apart, together)
        took = {way: clock(way) for way in ways}
        (wall_one, cpu_one, one), (wall_six, cpu_six, six) = took[together], took[apart]
        for a, b in zip(one, six, strict=True):
            for key, value in a.coder.state_dict().items():
                if not torch.equal(value, b.coder.state_dict()[key]):
                    raise RuntimeError(f"{a.name}: {key} depends on company")
        if number:
            walls.append(wall_one / wall_six)
            cpus.append(cpu_one / cpu_six)
            write(f"  {name}: together {wall_one:.1f} s, apart {wall_six:.1f} s")
    found = {
        "source": name,
        "goal": goal,
        "wall_ratio": statistics.median(walls),
        "cpu_ratio": statistics.median(cpus),
        "wall_ratios": walls,
        "cpu_ratios": cpus,
    }
    write(
        f"{name}: one pass takes {found['wall_ratio']:.2f} of six by wall clock "
        f"({', '.join(f'{ratio:.2f}' for ratio in walls)}), {found['cpu_ratio']:.2f} by CPU "
        f"time; goal {goal:.2f}; SAEs equal to the bit"
    )
    return found


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Many SAEs on one stream.")
    parser.add_argument("--tokens", type=int, default=1 << 17)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--site", default="resid_post.3")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = load_model(ModelConfig(id="world"))
        corpus = CorpusConfig(id="world", tokens=args.tokens, eval_tokens=128)
        build_tokens(corpus, model.tokenizer, model.info, folder / "tokens")
        split = Tokens.open(folder / "tokens").split("train")
        harvest(model, split, [args.site], folder / "store", batch_contexts=32)
        store = ActivationStore.open(folder / "store")
        order = Order(
            split.kept_per_context, seed=0, block_tokens=BLOCK_TOKENS, batch_tokens=BATCH_TOKENS
        )
        write(
            f"6 SAEs of {args.d_sae} latents, {args.site} of the world's model, {args.tokens} "
            f"tokens, {args.threads} thread(s), torch {torch.__version__}"
        )
        found = [
            compare("store", 0.85, lambda: StoredBatches(store, [args.site], order), args),
            compare(
                "streaming",
                0.60,
                lambda: StreamedBatches(model, split, [args.site], order, batch_contexts=32),
                args,
            ),
        ]
    if args.json:
        setting = {"d_sae": args.d_sae, "tokens": args.tokens, "threads": args.threads}
        args.json.write_text(json.dumps([{**setting, **one} for one in found], indent=2))


if __name__ == "__main__":
    main()
