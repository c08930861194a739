"""What the latents of many SAEs do, in one pass: its cost beside harvesting, its memory, a peer.

    python -m benchmarks.latents [--tokens 131072] [--goal 2097152] [--rounds 3] [--threads 2]
                                 [--json FILE]
    python -m benchmarks.latents --only memory [--wide 131072]
    python -m benchmarks.latents --only peer --peer-python /path/to/python

- *cost*: four TopK SAEs of 2,048 latents read one site of the bundled model. The pass with every
  statistic, and the whole of `explain_site` with rows of examples and pairs, beside a harvest of
  the same site to disk, and beside the model and the encoders' matrix products alone, in float32.
  They take turns in one process. Which latents fire together is counted on
  the share of tokens that there would be with --goal tokens. Filling the lists of strongest places
  costs the more per token the fewer tokens there are.
- *memory*: largest resident set of a fresh process that explains a TopK SAE of 131,072 latents.
- *peer*: the ten strongest examples of every latent of one SAE, beside EleutherAI's delphi, which
  runs in an environment of its own (`pip install eai-delphi`; see `latents_peer.py`): its cache
  of the same codes, its files, and its reader of examples. They take turns; importing is outside
  of the clock.

SAEs have random weights: codes are as many as of trained ones, and statistics cost the same.
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
from typing import Any

import torch
from safetensors.torch import save_file

from benchmarks.memory import forget_peak
from benchmarks.worker import peak_memory
from sae_lib.activations.corpus import CorpusConfig
from sae_lib.activations.harvest import harvest
from sae_lib.activations.tokens import Tokens, TokenSplit, build_tokens
from sae_lib.explain.code_log import CodeLog
from sae_lib.explain.examples import ExamplesConfig
from sae_lib.explain.max_act import MaxActConfig
from sae_lib.explain.run import explain_site, read_all, read_contexts
from sae_lib.explain.statistics import LatentStatistics
from sae_lib.models.config import ModelConfig
from sae_lib.models.inspect import BUNDLED
from sae_lib.models.language_model import LanguageModel, load_model
from sae_lib.saes.base import SparseCoder
from sae_lib.saes.topk import TopKConfig

BATCH_CONTEXTS = 32


def prepare(args: argparse.Namespace, folder: Path) -> tuple[LanguageModel, TokenSplit]:
    torch.set_num_threads(args.threads)
    model = load_model(ModelConfig(id="world"))
    corpus = CorpusConfig(id="world", tokens=args.tokens, eval_tokens=max(128, args.tokens // 50))
    build_tokens(corpus, model.tokenizer, model.info, folder / "tokens")
    return model, Tokens.open(folder / "tokens").split("train")


def coders_of(
    args: argparse.Namespace, model: LanguageModel, num: int, d_sae: int
) -> dict[str, SparseCoder[Any]]:
    width = model.d_model
    return {
        f"topk-{seed}": TopKConfig(d_in=width, d_sae=d_sae, k=args.k, aux_k=4, seed=seed).build()
        for seed in range(num)
    }


def one_pass(
    model: LanguageModel,
    split: TokenSplit,
    site: str,
    coders: dict[str, SparseCoder[Any]],
    shown: ExamplesConfig,
    num_contexts: int,
) -> dict[str, LatentStatistics]:
    """The pass of `explain_site` alone: all statistics, and codes on disk."""
    vocab_size, extras = model.vocab_size, shown.extras(split, num_contexts)
    found = {
        name: LatentStatistics(coder.d_sae, vocab_size, shown.num_candidates, extras)
        for name, coder in coders.items()
    }
    logs = {name: CodeLog(coder.d_sae, 2**33) for name, coder in coders.items()}
    batches = read_contexts(model, split, site, torch.arange(num_contexts), BATCH_CONTEXTS)
    read_all(batches, coders, found, logs, apart=shown.apart)
    for log in logs.values():
        log.close()
    return found


def products(
    model: LanguageModel,
    split: TokenSplit,
    site: str,
    coders: dict[str, SparseCoder[Any]],
    num_contexts: int,
) -> None:
    """What no pass can do without: the model, and each encoder's product with what it holds."""
    everything = torch.arange(num_contexts)
    room = {name: torch.empty(2**20 // coder.d_sae, coder.d_sae) for name, coder in coders.items()}
    with torch.no_grad():
        for batch in read_contexts(model, split, site, everything, BATCH_CONTEXTS):
            x = batch.x[batch.keep]
            for name, coder in coders.items():
                for part in x.split(len(room[name])):
                    out = room[name][: len(part)]
                    torch.addmm(coder.b_enc, part, coder.W_enc.T, out=out)


def clock(work: Callable[[], Any]) -> tuple[float, float]:
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure_cost(args: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, split = prepare(args, folder)
        coders = coders_of(args, model, args.saes, args.d_sae)
        targets = iter(range(10**6))

        def store() -> None:
            target = folder / f"h{next(targets)}"
            harvest(model, split, [args.site], target, batch_contexts=BATCH_CONTEXTS)

        # as many pairs per token as there would be on a larger corpus
        pair_tokens = ExamplesConfig().pair_tokens * args.tokens // max(args.tokens, args.goal)
        shown = ExamplesConfig(pair_tokens=pair_tokens)
        methods, num = [MaxActConfig(examples=shown)], split.num_contexts

        def whole(num_contexts: int) -> Any:
            return explain_site(
                model,
                split,
                args.site,
                coders,
                methods,
                batch_contexts=BATCH_CONTEXTS,
                max_contexts=num_contexts,
            )

        contenders: dict[str, Callable[[], Any]] = {
            "harvest": store,
            "products": lambda: products(model, split, args.site, coders, num),
            "pass": lambda: one_pass(model, split, args.site, coders, shown, num),
            "whole": lambda: whole(num),
        }
        whole(min(num, 2 * BATCH_CONTEXTS))  # warms up
        took: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for _ in range(args.rounds):
            for name, work in contenders.items():
                took[name].append(clock(work))
        positions = split.num_contexts * split.context
    write(
        f"{args.saes} TopK SAEs of {args.d_sae} latents, k {args.k}, {args.site} of the world's "
        f"model, {positions} tokens, {args.threads} thread(s), torch {torch.__version__}"
    )
    found: dict[str, Any] = {"what": "cost", "tokens": positions, "threads": args.threads}
    for name, seconds in took.items():
        wall, cpu = (statistics.median(column) for column in zip(*seconds, strict=True))
        line = f"  {name:<8}{wall:>8.2f} s, {cpu:>8.2f} s of CPU"
        if name != "harvest":
            pairs = list(zip(seconds, took["harvest"], strict=True))
            walls, cpus = ([a[i] / b[i] for a, b in pairs] for i in (0, 1))
            found[f"{name}_wall_ratios"], found[f"{name}_cpu_ratios"] = walls, cpus
            line += (
                f"; of the harvest {statistics.median(walls):.2f} by wall clock "
                f"({', '.join(f'{ratio:.2f}' for ratio in walls)}), "
                f"{statistics.median(cpus):.2f} by CPU time"
            )
        write(line)
    return found


def measure_memory(args: argparse.Namespace) -> None:
    """In the fresh process."""
    with tempfile.TemporaryDirectory() as temporary:
        model, split = prepare(args, Path(temporary))
        coders = coders_of(args, model, 1, args.wide)
        forget_peak()
        before = peak_memory()
        (found,) = explain_site(
            model, split, args.site, coders, [], batch_contexts=BATCH_CONTEXTS
        ).values()
    answer = {
        "what": "memory",
        "d_sae": args.wide,
        "tokens": split.num_contexts * split.context,
        "before": before,
        "peak": peak_memory(),
        "alive": sum(row.density > 0 for row in found.latents),
        "examples": len(found.examples),
        "pairs": len(found.pairs),
    }
    sys.stdout.write(json.dumps(answer) + "\n")


def memory_of(args: argparse.Namespace) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.latents", "--only", "memory-here"]
    for name in ("threads", "tokens", "wide", "k", "site"):
        command += [f"--{name}", str(getattr(args, name))]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found = json.loads(done.stdout)
    write(
        f"{found['d_sae']} latents ({found['alive']} fire), {found['tokens']} tokens: largest "
        f"resident set {found['peak'] / 2**30:.2f} GiB, {found['before'] / 2**30:.2f} GiB before "
        f"the pass; {found['examples']} rows of examples, {found['pairs']} of pairs"
    )
    return found


def measure_peer(args: argparse.Namespace) -> dict[str, Any]:
    """Ratios to delphi, which gets the same model, weights and tokens."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model, split = prepare(args, folder)
        coders = coders_of(args, model, 1, args.d_sae)
        (coder,) = coders.values()
        tensors = {name: value.detach().contiguous() for name, value in coder.state_dict().items()}
        tensors["tokens"] = split.rows(torch.arange(split.num_contexts)).tokens.clone()
        save_file(tensors, folder / "given.safetensors")
        layer = args.site.rsplit(".", 1)[1]
        command = [
            args.peer_python, str(Path(__file__).with_name("latents_peer.py")),
            str(BUNDLED / "world"), str(folder / "given.safetensors"), layer, str(args.k),
            str(BATCH_CONTEXTS), str(args.threads),
        ]  # fmt: skip
        methods = [MaxActConfig(examples=ExamplesConfig(radius=16, buffer=16).bare())]
        ours, theirs, answer = [], [], {}
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as peer:
            for number in range(args.rounds + 1):
                own = clock(
                    lambda: explain_site(
                        model, split, args.site, coders, methods, batch_contexts=BATCH_CONTEXTS
                    )
                )
                answer = ask(peer)
                if number:  # the first warms up
                    ours.append(own)
                    theirs.append(tuple(answer["seconds"]))
            assert peer.stdin is not None
            peer.stdin.close()
    found = {"what": "peer", "ours": ours, "theirs": theirs, "versions": answer["versions"]}
    for i, kind in enumerate(("wall clock", "CPU time")):
        own = statistics.median(column[i] for column in ours)
        their = statistics.median(column[i] for column in theirs)
        ratios = [b[i] / a[i] for a, b in zip(ours, theirs, strict=True)]
        write(
            f"ten strongest examples of {args.d_sae} latents by {kind}: {own:.1f} s, delphi "
            f"{answer['versions']['eai-delphi']} {their:.1f} s, {statistics.median(ratios):.2f} "
            f"times as long ({', '.join(f'{ratio:.2f}' for ratio in ratios)}; torch "
            f"{answer['versions']['torch']}; {answer['latents']} latents had enough examples)"
        )
    return found


def ask(peer: subprocess.Popen[str]) -> dict[str, Any]:
    """One round of the peer."""
    assert peer.stdin is not None
    assert peer.stdout is not None
    peer.stdin.write("go\n")
    peer.stdin.flush()
    return json.loads(peer.stdout.readline())


def write(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Statistics of the latents of many SAEs.")
    parser.add_argument("--only", choices=["cost", "memory", "memory-here", "peer"])
    parser.add_argument("--tokens", type=int, default=1 << 17)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--goal", type=int, default=1 << 21)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--saes", type=int, default=4)
    parser.add_argument("--d-sae", type=int, default=2048)
    parser.add_argument("--wide", type=int, default=131_072)
    parser.add_argument("--k", type=int, default=32)
    parser.add_argument("--site", default="resid_post.3")
    parser.add_argument("--peer-python")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    if args.only == "memory-here":
        measure_memory(args)
        return
    found = []
    if args.only in (None, "cost"):
        found.append(measure_cost(args))
    if args.only in (None, "memory"):
        found.append(memory_of(args))
    if args.only == "peer" or args.peer_python:
        if not args.peer_python:
            parser.error("--only peer needs --peer-python, the Python that delphi is installed in")
        found.append(measure_peer(args))
    if args.json:
        args.json.write_text(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
