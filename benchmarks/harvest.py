"""What storing activations costs beside computing them, and how much memory it takes.

    python benchmarks/harvest.py [--tokens 65536] [--rounds 5] [--threads 2] [--device cpu]

Inside the clock: token batches from disk, forward passes, and for the harvest everything else up
to the last file. Outside: loading the model, tokenising, one warm-up round of each contender.
Contenders take turns in one process. Memory is the largest resident set of a fresh process that
harvests once, at the given tokens and at eight times as many. Works on the bundled world model,
or, where it is not there, on a random GPT-2 of its size.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.harvest import harvest
from sae_lib.activations.tokens import Tokens, TokenSplit, build_tokens
from sae_lib.artifacts import package_versions, peak_memory_bytes
from sae_lib.models.config import ModelConfig
from sae_lib.models.inspect import bundled_models
from sae_lib.models.language_model import LanguageModel, load_model
from sae_lib.synthetic.world.tokenizer import build_tokenizer


def random_gpt2(folder: Path) -> ModelConfig:
    """4 layers, width 192, the vocabulary of the world."""
    tokenizer = build_tokenizer()
    config = GPT2Config(n_layer=4, n_head=6, n_embd=192, n_positions=128, vocab_size=len(tokenizer))
    GPT2LMHeadModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return ModelConfig(id=str(folder))


def bare_forward(model: LanguageModel, split: TokenSplit, sites: list[str], batch: int) -> None:
    for _, rows in split.batches(batch):
        model.capture(rows.tokens, sites)
    if model.device.type == "cuda":
        torch.cuda.synchronize()


class Took(NamedTuple):
    wall: float
    cpu: float
    """Of all threads: on one thread per contender this hardly moves with the neighbours' load."""


def clock(work: Callable[[], object]) -> Took:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return Took(time.perf_counter() - wall, time.process_time() - cpu)


def prepare(args: argparse.Namespace, folder: Path) -> tuple[LanguageModel, TokenSplit]:
    torch.set_num_threads(args.threads)
    if args.model is not None:
        cfg = ModelConfig(id=args.model)
    elif "world" in bundled_models():
        cfg = ModelConfig(id="world")
    else:
        cfg = random_gpt2(folder / "gpt2")
    model = load_model(cfg, device=args.device)
    corpus = CorpusConfig(id=args.corpus, tokens=args.tokens, eval_tokens=128)
    build_tokens(corpus, model.tokenizer, model.info, folder / "tokens")
    return model, Tokens.open(folder / "tokens").split("train")


def measure_memory(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, split = prepare(args, folder)
        before = peak_memory_bytes()
        done = harvest(model, split, args.sites, folder / "h", batch_contexts=args.batch_contexts)
        stored = sum(record.num_bytes for site in done.values() for record in site.files)
        found = {"before": before, "after": peak_memory_bytes(), "stored": stored}
    sys.stdout.write(json.dumps(found))


def memory_of(args: argparse.Namespace, tokens: int) -> dict[str, int]:
    command = [sys.executable, __file__, "--memory-only", "--tokens", str(tokens)]
    for name in ("threads", "batch_contexts", "device", "corpus", "model"):
        if (value := getattr(args, name)) is not None:
            command += [f"--{name.replace('_', '-')}", str(value)]
    done = subprocess.run([*command, "--sites", *args.sites], stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def measure_speed(args: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, split = prepare(args, folder)
        batch = args.batch_contexts
        took: dict[str, list[Took]] = {"bare forward": [], "harvest": []}
        for number in range(args.rounds + 1):  # the first warms up
            target = folder / f"h{number}"
            took["bare forward"].append(
                clock(lambda: bare_forward(model, split, args.sites, batch))
            )
            took["harvest"].append(
                clock(
                    lambda target=target: harvest(
                        model, split, args.sites, target, batch_contexts=batch
                    )
                )
            )
        positions = split.num_contexts * split.context
    write(f"model {model.info.id} ({model.info.model_type}), d {model.d_model}, {args.sites}")
    write(f"{positions} positions, {split.num_kept} kept, {batch} contexts a batch")
    write(f"torch {package_versions()['torch']}, {args.threads} threads, {args.device}\n")
    write(f"{'contender':<14}{'wall s':>9}{'tokens/s':>10}{'CPU s':>9}    (medians)")
    for name, all_times in took.items():
        wall, cpu = (statistics.median(column) for column in zip(*all_times[1:], strict=True))
        write(f"{name:<14}{wall:>9.3f}{positions / wall:>10.0f}{cpu:>9.3f}")
    pairs = list(zip(took["bare forward"][1:], took["harvest"][1:], strict=True))
    write("\nspeed of the harvest as a share of the bare forward's, median of the rounds")
    for number, name in enumerate(Took._fields):
        ratios = [bare[number] / full[number] for bare, full in pairs]
        write(f"by {name:<5}{statistics.median(ratios):.3f}  {[round(r, 2) for r in ratios]}")


def write(line: str) -> None:
    sys.stdout.write(line + "\n")


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of a harvest.")
    parser.add_argument("--tokens", type=int, default=1 << 16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--batch-contexts", type=int, default=32)
    parser.add_argument("--sites", nargs="+", default=["resid_post.1", "resid_post.3"])
    parser.add_argument("--model", default=None)
    parser.add_argument("--corpus", default="world")
    parser.add_argument("--memory-only", action="store_true")
    parser.add_argument("--no-memory", action="store_true")
    args = parser.parse_args(argv)
    if args.memory_only:
        measure_memory(args)
        return
    measure_speed(args)
    if args.no_memory:
        return
    write(f"\n{'tokens':>10}{'peak MB':>10}{'of it harvest':>15}{'MB on disk':>12}")
    for times in (1, 8):
        found = memory_of(args, times * args.tokens)
        write(
            f"{times * args.tokens:>10}{found['after'] / 1e6:>10.0f}"
            f"{(found['after'] - found['before']) / 1e6:>15.0f}{found['stored'] / 1e6:>12.0f}"
        )


if __name__ == "__main__":
    main()
